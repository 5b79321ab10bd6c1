"""Write docs/reference from the code: commands, settings, errors, events. `make docs` runs it, and a test
compares.

What it does not do: describe. Every sentence stands in the code, beside what it is about; change it there.
"""

import ast
import io
import sys
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import msgspec

from modelkeep import settings
from modelkeep.cli import main
from modelkeep.core import errors, events
from modelkeep.web import problems

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "reference"
GENERATED = "<!-- Written from the code by scripts/reference.py (make docs); do not edit. -->\n"


COMMANDS = """\
Every command takes `--json` (the server's answer), `-q` (names and ids only), `--url` and `--token`. Data
goes to standard output and everything else to standard error. Progress is drawn on a terminal only, and
`NO_COLOR` is obeyed.

Exit codes: 0 ok, 1 error, 2 usage, 3 gate or policy failed, 4 not authenticated or allowed, 5 not found,
6 conflict, 8 pending (somebody else has to act), 12 a rollout that was waited for had no traffic, 130 stopped
by Ctrl-C.
"""
SETTINGS = """\
Read once by each process, each from the last of these that says something: the default, the TOML file that
`MODELKEEP_CONFIG` names, the environment (`MODELKEEP_` and the name in capitals), the command line.
`modelkeep config show` prints what holds. Units stand in the names.
"""
ERRORS = """\
The codes are stable and are what programs compare. On the wire an error is `application/problem+json` with
`code`, `detail` and `details`; the SDK raises the class of the same code; the command line prints the
sentence and exits with the code of the family.
"""
EVENTS = """\
`modelkeep audit log` reads them, `modelkeep audit verify` walks their chain. Each has a sequence, a time, an
actor, a subject and, where people said why, a reason; the body depends on the kind.
"""


def commands() -> str:
    """Every command with its arguments and options."""
    text = ["# Command line\n", GENERATED, COMMANDS]
    section = ""
    for path, command in _leaves(main.modelkeep, ()):
        entry = main.COMMANDS[path[0]]
        if entry.section != section:
            section = entry.section
            text.append(f"## {section}\n")
        text.append(_command(path, command))
    return "\n".join(text)


_SHARED = frozenset({"as_json", "quiet", "url", "token"})


def _leaves(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if not isinstance(command, click.Group):
        yield path, command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        inner = command.get_command(context, name)
        if inner is not None and not inner.hidden:
            yield from _leaves(inner, (*path, name))


def _command(path: tuple[str, ...], command: click.Command) -> str:
    context = click.Context(command, info_name=" ".join(("modelkeep", *path)))
    usage = command.collect_usage_pieces(context)
    words = " ".join(word for word in usage if word != "[OPTIONS]")
    lines = [f"### modelkeep {' '.join(path)}\n", f"    modelkeep {' '.join(path)} {words}".rstrip() + "\n"]
    lines.append(" ".join((command.help or "").split()) + "\n")
    options = [
        parameter
        for parameter in command.params
        if isinstance(parameter, click.Option) and parameter.name not in _SHARED and not parameter.hidden
    ]
    if options:
        lines += ["| option | meaning |", "|---|---|"]
        lines += [_option(option, context) for option in options]
        lines.append("")
    return "\n".join(lines)


def _option(option: click.Option, context: click.Context) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    value = "" if option.is_flag else f" `{option.make_metavar(context)}`"
    more = " Required." if option.required else ""
    if option.show_default and option.default is not None:
        more += f" `{option.default}` when left out."
    return f"| {names}{value} | {_cell(option.help or '')}{more}{' Repeatable.' if option.multiple else ''} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def settings_page() -> str:
    """Every setting with its default and the comment beside it."""
    text = ["# Settings\n", GENERATED, SETTINGS]
    defaults = {field.name: field.default for field in msgspec.structs.fields(settings.Settings)}
    for name, comment in _commented(Path(settings.__file__), "Settings"):
        if name is None:
            text.append(
                f"\n## {comment[:1].upper()}{comment[1:]}\n\n| setting | default | meaning |\n|---|---|---|"
            )
            continue
        default = defaults[name]
        shown = "" if default in (None, ()) else f"`{default}`"
        text.append(f"| `{name}` | {shown} | {_cell(comment)} |")
    return "\n".join(text) + "\n"


def errors_page() -> str:
    """Every error with its family, status and exit code."""
    text = ["# Errors\n", GENERATED, ERRORS]
    for family in errors.ModelkeepError.__subclasses__():
        text.append(f"\n## {family.__name__}\n\n{' '.join((family.__doc__ or '').split())}\n")
        text.append("| class | code | kind of | HTTP | exit |\n|---|---|---|---|---|")
        text += [_error(kind) for kind in _kinds(family)]
    return "\n".join(text) + "\n"


def _kinds(family: type[errors.ModelkeepError]) -> Iterator[type[errors.ModelkeepError]]:
    yield family
    for kind in family.__subclasses__():
        if kind.__module__ == errors.__name__:  # the store has one that never leaves it
            yield from _kinds(kind)


def _error(kind: type[errors.ModelkeepError]) -> str:
    made = kind("")
    above, status, code = kind.__bases__[0].__name__, problems.status_of(made), main.exit_code(made)
    return f"| `{kind.__name__}` | `{kind.code}` | {above} | {status} | {code} |"


def events_page() -> str:
    """Every kind of event with what its body says."""
    what = " ".join((events.EventKind.__doc__ or "").split()) + "\n"
    text = ["# Events\n", GENERATED, what, EVENTS, "| kind | body |\n|---|---|"]
    bodies = dict(_commented(Path(events.__file__), "EventKind"))
    text += [f"| `{kind.value}` | {_cell(bodies.get(kind.name, ''))} |" for kind in events.EventKind]
    return "\n".join(text) + "\n"


def _commented(path: Path, name: str) -> Iterator[tuple[str | None, str]]:
    """The fields of a class with the comments on their lines; a line that is all comment comes with None."""
    source = path.read_text(encoding="utf-8")
    body = next(n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ClassDef) and n.name == name)
    comments = {
        token.start[0]: (token.string.lstrip("# "), token.line.strip().startswith("#"))
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    fields: dict[int, tuple[str, int]] = {}
    for node in body.body:
        target = (
            node.target
            if isinstance(node, ast.AnnAssign)
            else node.targets[0]
            if isinstance(node, ast.Assign)
            else None
        )
        if isinstance(target, ast.Name):
            fields[node.lineno] = (target.id, node.end_lineno or node.lineno)
    line = body.lineno
    while line <= (body.end_lineno or 0):
        if line in fields:
            found, end = fields[line]
            said = [comments[place][0] for place in range(line, end + 1) if place in comments]
            yield found, " ".join(said)
            line = end + 1
            continue
        if line in comments and comments[line][1]:
            yield None, comments[line][0]
        line += 1


PAGES: dict[str, Callable[[], str]] = {
    "cli.md": commands,
    "settings.md": settings_page,
    "errors.md": errors_page,
    "events.md": events_page,
}


def write() -> int:
    """Write every page; `--check` only says which are not current."""
    stale = []
    for name, page in PAGES.items():
        path, text = FOLDER / name, page()
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if "--check" not in sys.argv:
            FOLDER.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"docs/reference/{name} is written anew")
    if "--check" in sys.argv and stale:
        print(f"not current: {', '.join(stale)}; run 'make docs'")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(write())
