"""The entry to the command line: the table of commands, loaded one at a time, and how errors leave the
process.

Exit codes: 0 ok, 1 error, 2 usage, 3 gate or policy failed, 4 not authenticated or allowed, 5 not found, 6
conflict, 8 pending, 12 a rollout that was waited for had no traffic. What a command does stands in the file
of its column.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import click

from modelkeep import __version__

if TYPE_CHECKING:
    from modelkeep.core.errors import ModelkeepError


class Entry(NamedTuple):
    """Where a command is, and what `--help` says of it without loading it."""

    module: str
    attribute: str
    section: str
    help: str


LOOK, MAKE, GOVERN, TRAFFIC, PEOPLE, RUN = (
    "Look",
    "Register and label",
    "Promote and roll back",
    "Traffic",
    "People and records",
    "Run and care",
)
_CATALOG, _PROMOTION, _ROLLOUT, _PREDICTION, _VERDICT, _REPORT, _ACCESS, _WEBHOOKS, _MOVING, _SERVER = (
    f"modelkeep.cli.{name}_commands"
    for name in (
        "catalog",
        "promotion",
        "rollout",
        "prediction",
        "verdict",
        "report",
        "access",
        "webhook",
        "moving",
        "server",
    )
)
COMMANDS: dict[str, Entry] = {
    "ls": Entry(_CATALOG, "ls", LOOK, "List models, or the versions of one."),
    "show": Entry(_CATALOG, "show", LOOK, "Show a model or a version."),
    "history": Entry(_PROMOTION, "history", LOOK, "Which version was in which stage, and why."),
    "search": Entry(_CATALOG, "search", LOOK, "Find versions by metrics, params, tags and fields."),
    "compare": Entry(_CATALOG, "compare", LOOK, "Set versions of a model side by side."),
    "diff": Entry(_CATALOG, "diff", LOOK, "Show what changed from one version to another."),
    "best": Entry(_CATALOG, "best", LOOK, "Find the best version by a metric."),
    "whatwas": Entry(_PROMOTION, "whatwas", LOOK, "What was in a stage at a moment, and why."),
    "register": Entry(_CATALOG, "register", MAKE, "Register a file or folder as a new version."),
    "schema": Entry(_CATALOG, "schema", MAKE, "Print the JSON Schema of metadata, a plan or a policy."),
    "pull": Entry(_CATALOG, "pull", MAKE, "Bring a version's files here, verified."),
    "verify": Entry(_CATALOG, "verify", MAKE, "Hash a version's stored bytes again."),
    "models": Entry(_CATALOG, "models", MAKE, "Create, edit and delete models."),
    "versions": Entry(_CATALOG, "versions", MAKE, "Edit and delete versions."),
    "tag": Entry(_CATALOG, "tag", MAKE, "Set and remove tags."),
    "rename": Entry(_CATALOG, "rename", MAKE, "Give a model another name; all it has goes with it."),
    "yank": Entry(_CATALOG, "yank", MAKE, "Have a version passed over by @latest and ranges."),
    "unyank": Entry(_CATALOG, "unyank", MAKE, "Let a yanked version be chosen again."),
    "alias": Entry(_CATALOG, "alias", MAKE, "Point and delete aliases."),
    "import": Entry(_MOVING, "imports", MAKE, "Move another registry in."),
    "export": Entry(_MOVING, "exports", MAKE, "Move everything out to another registry."),
    "gate": Entry(_PROMOTION, "gate", GOVERN, "Whether a version may enter a stage."),
    "request": Entry(_PROMOTION, "request", GOVERN, "Ask others to agree to a promotion."),
    "review": Entry(_PROMOTION, "review", GOVERN, "Approve, reject or comment on a request."),
    "promote": Entry(_PROMOTION, "promote", GOVERN, "Move a version to a stage."),
    "rollback": Entry(_PROMOTION, "rollback", GOVERN, "Take a model back to its last healthy version."),
    "clear": Entry(_PROMOTION, "clear", GOVERN, "Let a version that was taken back return."),
    "policy": Entry(_PROMOTION, "policy", GOVERN, "Show and set what a promotion asks for."),
    "stages": Entry(_PROMOTION, "stages", GOVERN, "Show and set a model's stages."),
    "endpoint": Entry(_ROLLOUT, "endpoint", TRAFFIC, "Create, list and remove endpoints."),
    "rollout": Entry(_VERDICT, "rollout", TRAFFIC, "Watch and steer how traffic moves."),
    "drill": Entry(_REPORT, "drill", TRAFFIC, "Rehearse a rollback, and measure it."),
    "predict": Entry(_ROLLOUT, "predict", TRAFFIC, "Ask an endpoint for predictions."),
    "predictions": Entry(_PREDICTION, "predictions", TRAFFIC, "Read the prediction log of a gateway here."),
    "feedback": Entry(_PREDICTION, "feedback", TRAFFIC, "Tell what became known of predictions."),
    "report": Entry(_REPORT, "report", TRAFFIC, "Figures: how well versions get into production."),
    "whoami": Entry(_ACCESS, "whoami", PEOPLE, "Who the server takes you for."),
    "user": Entry(_ACCESS, "user", PEOPLE, "Add, list and shut out people and programs."),
    "grant": Entry(_ACCESS, "grant", PEOPLE, "Give and take roles."),
    "token": Entry(_ACCESS, "token", PEOPLE, "Make, list and revoke tokens."),
    "audit": Entry(_ACCESS, "audit", PEOPLE, "Read, verify and export the audit log."),
    "webhook": Entry(_WEBHOOKS, "webhook", PEOPLE, "Tell other programs what happens."),
    "up": Entry(_SERVER, "up", RUN, "Run server and gateway together."),
    "server": Entry(_SERVER, "server", RUN, "Run the control plane alone."),
    "gateway": Entry(_SERVER, "gateway", RUN, "Run the data plane alone, or command a local one."),
    "doctor": Entry(_SERVER, "doctor", RUN, "Check that everything is in order."),
    "fsck": Entry(_SERVER, "fsck", RUN, "Hash everything again; find what dangles."),
    "config": Entry(_SERVER, "config", RUN, "Show the settings."),
    "completion": Entry(_SERVER, "completion", RUN, "Print the completion script of a shell."),
}
"""Every command of the first level."""


class LazyGroup(click.Group):
    """Loads a command when it is run; its help comes from the table."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command: click.Command = getattr(importlib.import_module(entry.module), entry.attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in COMMANDS:
            import difflib

            close = difflib.get_close_matches(name, COMMANDS, 1)
            hint = f" Did you mean {close[0]!r}?" if close else " 'modelkeep --help' lists the commands."
            raise click.UsageError(f"There is no command {name!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section in (LOOK, MAKE, GOVERN, TRAFFIC, PEOPLE, RUN):
            rows = [(name, entry.help) for name, entry in COMMANDS.items() if entry.section == section]
            with formatter.section(section):
                formatter.write_dl(rows)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="References: churn:2.1.0  churn:^2.1  churn:#7  churn@champion  churn#production  "
    "churn#production?at=2026-01-25T14:03Z",
)
@click.version_option(__version__, prog_name="modelkeep")
@click.option("--url", metavar="URL", help="Address of the server [MODELKEEP_URL].")
@click.option("--token", metavar="TOKEN", help="Token to send [MODELKEEP_TOKEN].")
@click.option("--no-color", flag_value="yes", default=None, envvar="NO_COLOR", help="No colours [NO_COLOR].")
def modelkeep(url: str | None, token: str | None, no_color: str | None) -> None:
    """Keep models: versions, governance, guarded rollouts, one audit trail."""


def exit_code(error: "ModelkeepError") -> int:
    """The exit code of an error's family."""
    from modelkeep.core import errors

    match error:
        case errors.Pending():
            return 8
        case errors.GateFailed() | errors.SelfApproval() | errors.Tombstoned() | errors.Yanked():
            return 3
        case errors.Denied():
            return 4
        case errors.NotFound():
            return 5
        case errors.Conflict():
            return 6
        case _:
            return 1


def told(error: "ModelkeepError") -> str:
    """What a person sees of an error: its sentence, and for a filter the caret under the place."""
    from modelkeep.core import values

    lines = [f"modelkeep: {values.printable(error.message)}"]
    caret = error.details.get("caret")
    if isinstance(caret, str):
        lines += [f"    {values.printable(line)}" for line in caret.split("\n")]
    if type(error).code == "MODELKEEP_ERROR" and (found := error.details.get("request_id")):
        lines[0] += f" (request {values.printable(str(found))})"
    return "\n".join(lines)


def run(arguments: list[str] | None = None) -> int:
    """Carry out one command line. Returns the exit code; errors are told on stderr."""
    try:
        result: Any = modelkeep.main(arguments, prog_name="modelkeep", standalone_mode=False)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as problem:
        problem.show()
        return problem.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("modelkeep: stopped.", err=True)
        return 130
    except BrokenPipeError:
        _stop_writing()
        return 1
    except Exception as error:
        from modelkeep.core.errors import ModelkeepError

        if not isinstance(error, ModelkeepError):
            raise
        click.echo(told(error), err=True)
        return exit_code(error)
    return result if isinstance(result, int) else 0


def _stop_writing() -> None:
    """The reader of a pipe is gone: keep the interpreter from complaining when it flushes."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> NoReturn:
    """The program `modelkeep`."""
    code = run()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _stop_writing()
    sys.exit(code)


if __name__ == "__main__":
    main()
