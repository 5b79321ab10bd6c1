"""Write docs/reference from the code: commands, settings, errors, events, rollout plans. `make docs` runs it,
and a test compares.

What it does not do: describe. Every sentence stands in the code, beside what it is about; change it there.
"""

import ast
import enum
import io
import json
import sys
import tokenize
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import click
import msgspec

from modelkeep import settings
from modelkeep.cli import main
from modelkeep.core import errors, events, fields, plan, plan_schema, plan_shapes
from modelkeep.core.quality import Quality
from modelkeep.core.shift import Shift
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


PLANS = ROOT / "examples" / "plans"
PLAN = f"""\
A rollout plan says how traffic moves from one version to another. It is one YAML (or JSON) document, and
stands in a file (`--plan FILE`), in the settings of an endpoint, or in a [policy](policy.md), for a stage, an
alias or everything. Each document bears the version of its form, `schema: {plan_shapes.SCHEMA}`; one of
another form is refused, and left out it is this one. Unknown fields are refused.

    modelkeep schema plan > rollout-plan.schema.json

prints the JSON Schema of this page. An editor that speaks YAML's language server completes and checks a plan
whose first line names it, as those of the examples below do; the file beside them is
[rollout-plan.schema.json](../../examples/plans/rollout-plan.schema.json).
"""


def rollout_plan() -> str:
    """Every field of a plan, what each strategy has by itself, and an example of each."""
    text = ["# Rollout plans\n", GENERATED, PLAN]
    for heading, kind in (
        ("The plan", plan.Plan),
        ("A step", plan.Step),
        ("A further version", plan.Variant),
        ("Shares of alpha", plan.Metrics),
        ("Guards", plan.Guards),
        ("Quality", Quality),
        ("Prediction shift", Shift),
    ):
        what = " ".join((kind.__doc__ or "").split())
        text.append(f"## {heading}\n\n{what}\n")
        text.append("| field | type | unit | default | limits | meaning |\n|---|---|---|---|---|---|")
        text += [_plan_field(kind, field) for field in fields.told_of(kind)]
        text.append("")
    strategies = " ".join((plan.Strategy.__doc__ or "").split())
    text.append(f"## Strategies, each with an example\n\n{strategies}\n")
    for strategy in plan.Strategy:
        example = (PLANS / f"{strategy}.yaml").read_text(encoding="utf-8")
        text.append(f"### {strategy}\n\n{_brought(strategy)}\n\n```yaml\n{example}```\n")
    return "\n".join(text).rstrip("\n") + "\n"


def _plan_field(kind: type[msgspec.Struct], field: fields.Said) -> str:
    made = next(one for one in msgspec.structs.fields(kind) if one.name == field.name)
    limits = (
        f"{field.limits}{' of them' if field.sized and field.type is not str else ''}" if field.limits else ""
    )
    limits += " characters" if field.sized and field.type is str else ""
    return (
        f"| `{field.name}` | {_plan_type(field)} | {field.unit} | {_plan_default(made)} | {limits} | "
        f"{_cell(field.meaning)} |"
    )


def _plan_type(field: fields.Said) -> str:
    names = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    if field.type in names:
        return names[field.type]
    if isinstance(field.type, type) and issubclass(field.type, enum.StrEnum):
        return ", ".join(f"`{word}`" for word in field.type)
    if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
        return "mapping"
    return "time" if field.type is datetime else "list"


def _plan_default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "required"
    if field.name in plan_schema.OWN:
        return "the strategy's"
    if field.default is None or field.default is msgspec.NODEFAULT or field.default == ():
        return "none" if field.default_factory is msgspec.NODEFAULT else "as below"
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


def _brought(strategy: plan.Strategy) -> str:
    """What a strategy has by itself, where a plan leaves it out."""
    preset = plan.PRESETS[strategy]
    steps = [f"{step.weight_ppm:,} ppm for {step.min_s:,.0f} to {step.max_s:,.0f} s" for step in preset.steps]
    own = [f"steps of {', '.join(steps)}"] if steps else []
    own += [
        f"`{name}: {getattr(preset, name):,.0f}`" for name in plan_schema.OWN[1:] if getattr(preset, name)
    ]
    return f"By itself: {'; '.join(own)}."


def plan_schema_file() -> str:
    """The JSON Schema of plans, as `modelkeep schema plan` prints it."""
    return json.dumps(plan_schema.json_schema(), indent=2, ensure_ascii=False) + "\n"


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
    "rollout-plan.md": rollout_plan,
    "../../examples/plans/rollout-plan.schema.json": plan_schema_file,
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
            print(f"{path.resolve().relative_to(ROOT)} is written anew")
    if "--check" in sys.argv and stale:
        print(f"not current: {', '.join(stale)}; run 'make docs'")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(write())
