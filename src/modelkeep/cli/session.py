"""What every command has: the options for address, token and form of the answer, a client, and the way to
answer.

It knows no command. Settings are read when the client is first needed, so that help costs nothing.
"""

import functools
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from modelkeep.cli.show import Screen
    from modelkeep.client import Client
    from modelkeep.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])


class Session:
    """One run of one command."""

    def __init__(self, flags: dict[str, Any], *, json: bool, quiet: bool, colour: bool) -> None:
        self.flags = flags
        self.json = json
        self.quiet = quiet
        self._colour = colour

    @functools.cached_property
    def settings(self) -> "Settings":
        """The settings with what was said on this command line."""
        from modelkeep import settings

        return settings.load(self.flags)

    @functools.cached_property
    def client(self) -> "Client":
        """The client, made when it is first needed."""
        from modelkeep import __version__
        from modelkeep.client import Client

        found = self.settings
        return Client(found.url, found.token, found.timeout_s, agent=f"modelkeep-cli/{__version__}")

    @functools.cached_property
    def screen(self) -> "Screen":
        """Standard output, with colour and a width only on a terminal."""
        from modelkeep.cli.show import Screen

        terminal = sys.stdout.isatty()
        width = None
        if terminal:
            import shutil

            width = shutil.get_terminal_size().columns
        return Screen(sys.stdout, colour=self._colour and terminal, width=width)

    def answer(self, value: object, ids: Iterable[str], render: "Callable[[Screen], None]") -> None:
        """Print an answer as it was asked for: JSON as the server has it, ids only, or for people."""
        if self.json:
            self.screen.json(value)
        elif self.quiet:
            for name in ids:
                self.screen.line(name)
        else:
            render(self.screen)

    def say(self, text: str) -> None:
        """A remark beside the answer: on stderr, and not when only ids or JSON were asked for."""
        if not self.quiet and not self.json:
            click.echo(text, err=True)

    def confirm(self, what: str, name: str, yes: bool) -> None:
        """Have a person type the name of what will be gone; a program says --yes.

        Raises:
            click.UsageError: nobody can be asked.
            click.Abort: another name was typed.
        """
        if yes:
            return
        if not sys.stdin.isatty():
            raise click.UsageError(f"This deletes {what} for good; say --yes to do so without being asked.")
        if click.prompt(f"This deletes {what} for good. Type {name} to do so", err=True, default="") != name:
            raise click.Abort


_SHARED = (
    click.option("--json", "as_json", is_flag=True, help="Print the server's answer as JSON."),
    click.option("-q", "--quiet", is_flag=True, help="Print names and ids only."),
    click.option("--url", metavar="URL", help="Address of the server [MODELKEEP_URL]."),
    click.option("--token", metavar="TOKEN", help="Token to send [MODELKEEP_TOKEN]."),
)


def verb(
    group: click.Group | None = None, name: str | None = None, **attributes: Any
) -> Callable[[F], click.Command]:
    """Make a function a command with the shared options; it is called with a Session first."""

    def wrap(function: F) -> click.Command:
        def run(
            as_json: bool,
            quiet: bool,
            url: str | None,
            token: str | None,
            **said: Any,
        ) -> Any:
            context = click.get_current_context()
            above = context.find_root().params
            flags = {"url": url or above.get("url"), "token": token or above.get("token")}
            session = Session(flags, json=as_json, quiet=quiet, colour=not above.get("no_color"))
            try:
                return function(session, **said)
            finally:
                if "client" in vars(session):
                    session.client.close()

        own = vars(function).pop("__click_params__", [])
        functools.update_wrapper(run, function)
        for option in reversed(_SHARED):
            option(run)
        vars(run)["__click_params__"] += own  # the list runs from the last parameter to the first
        make = click.command if group is None else group.command
        return make(name, **attributes)(run)

    return wrap


class DefaultGroup(click.Group):
    """A group one of whose commands may be left out: `request REF` is `request open REF`."""

    def __init__(self, *args: Any, default: str, **more: Any) -> None:
        super().__init__(*args, **more)
        self.default = default

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        known = args and (args[0] in self.commands or args[0] in ("--help", "-h"))
        if not known and (args or not self.no_args_is_help):
            args = [self.default, *args]
        return super().parse_args(ctx, args)


reason = click.option(
    "-m", "--message", "reason", required=True, metavar="WHY", help="Why; people read it later."
)
"""A reason that must be given."""
limit = click.option(
    "--limit", type=click.IntRange(1), default=100, show_default=True, metavar="N", help="Rows at most."
)
"""How many rows of a list."""
yes = click.option("--yes", is_flag=True, help="Do not ask.")
"""For programs that delete."""


def pairs(entries: Iterable[str], what: str, *, at_last: bool = False) -> dict[str, str]:
    """`KEY=VALUE` words as a mapping; with `at_last`, the key may hold `=` and the value may not.

    Raises:
        click.BadParameter: a word without `=` or without a key, or a key twice.
    """
    found: dict[str, str] = {}
    for entry in entries:
        key, equals, value = entry.rpartition("=") if at_last else entry.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"write KEY=VALUE, not {entry!r}", param_hint=f"--{what}")
        if key in found:
            raise click.BadParameter(f"{key!r} is said twice", param_hint=f"--{what}")
        found[key] = value
    return found


def read_text(path: str) -> bytes:
    """A document that was named on the command line; `-` is standard input.

    Raises:
        click.BadParameter: it cannot be read.
    """
    try:
        if path == "-":
            return sys.stdin.buffer.read()
        with open(path, "rb") as file:
            return file.read()
    except OSError as problem:
        raise click.BadParameter(f"{path}: {problem.strerror}") from problem
