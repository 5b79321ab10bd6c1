"""Commands of figures: what the events say of how versions get into production, and a rehearsal of the way
back."""

import re
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click

from modelkeep.cli import report_views as views
from modelkeep.cli.session import Session, reason, verb

if TYPE_CHECKING:
    from modelkeep.core.drill import DrillPlan

_SPAN = re.compile(r"([0-9]{1,6}) ?(w|d|h|min)")
_UNIT_S = {"w": 7 * 86_400, "d": 86_400, "h": 3_600, "min": 60}


@click.group()
def report() -> None:
    """Figures: how well versions get into production."""


@verb(report, "delivery")
@click.option(
    "--since",
    default="30d",
    show_default=True,
    metavar="SPAN|TIME",
    help="Where it begins: 30d, 12h, or a time such as 2026-01-25.",
)
@click.option("--until", metavar="SPAN|TIME", help="Where the span ends; now when left out.")
@click.option("--model", metavar="MODEL", help="Only this model's deployments.")
@click.option("--project", metavar="PROJECT", help="Only those of this project.")
@click.option("--stage", metavar="STAGE", help="Only deployments to this stage.")
@click.option("--alias", metavar="ALIAS", help="Only those behind this alias.")
def report_delivery(
    session: Session,
    since: str,
    until: str | None,
    model: str | None,
    project: str | None,
    stage: str | None,
    alias: str | None,
) -> None:
    """Show how often, how fast and how safely versions get into production.

    Without --stage or --alias: to production, and behind every alias that an endpoint follows.
    """
    now = datetime.now(UTC)
    found = session.client.report_delivery(
        since=moment_of(since, now, "--since"),
        until=moment_of(until, now, "--until") if until is not None else None,
        model=model,
        project=project,
        stage=stage,
        alias=alias.removeprefix("@") if alias is not None else None,
    )
    session.answer(found, (f"{name}={value}" for name, value in views.plain(found)), views.delivery(found))


def moment_of(text: str, now: datetime, option: str) -> datetime:
    """A time that is said as a span back from now, such as `30d` or `12h`, or as itself.

    Raises:
        click.BadParameter: it is neither.
    """
    from modelkeep.core import codec, errors

    span = _SPAN.fullmatch(text.strip())
    if span is not None:
        return now - timedelta(seconds=int(span[1]) * _UNIT_S[span[2]])
    try:
        return codec.parse_time(text)
    except errors.ModelkeepError:
        raise click.BadParameter(
            f"write 30d, 12h, 2026-01-25 or 2026-01-25T14:03Z, not {text!r}", param_hint=option
        ) from None


@verb()
@click.argument("endpoint")
@reason
@click.option(
    "--hold",
    "hold_s",
    type=float,
    default=0.5,
    show_default=True,
    metavar="S",
    help="How long the former version answers, up to 10 seconds.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--anyway", metavar="WHY", help="Drill although something speaks against it, as an admin of the model."
)
@click.option("--dry-run", is_flag=True, help="Only say whether it may be now, and when else.")
@click.option("--data", metavar="DIR", help="The data folder of the gateway [MODELKEEP_GATEWAY_DATA].")
def drill(
    session: Session,
    endpoint: str,
    reason: str,
    hold_s: float,
    yes: bool,
    anyway: str | None,
    dry_run: bool,
    data: str | None,
) -> int:
    """Rehearse a rollback of ENDPOINT at the gateway on this machine, and measure it.

    For a moment the former version answers in earnest, then everything is put back. The time is kept in the
    audit log, and so is a drill that is refused: outside of the policy's windows, while a rollout is under
    way, while the endpoint is not well or nobody asks it.
    """
    from modelkeep.cli.processes import gateway_folder
    from modelkeep.core import codec
    from modelkeep.core.drill import Measured
    from modelkeep.serving.control import call

    plan = session.client.prepare_drill(endpoint)
    if dry_run:
        session.answer(plan, [one.obstacle.value for one in plan.against], views.drill_plan(plan))
        return 3 if plan.against else 0
    folder = gateway_folder(session.settings, data)
    if not plan.against or (anyway is not None and not plan.final):
        _confirm(plan, hold_s, yes)
    session.client.begin_drill(endpoint, reason, anyway=anyway)
    told = call(folder, "drill", endpoint=endpoint, hold_s=hold_s)
    measured = codec.convert({name: told.get(name) for name in Measured.__struct_fields__}, Measured)
    done = session.client.record_drill(endpoint, measured, reason)
    session.answer(done, [f"{measured.took_ms:.3f}"], views.drill(done))
    return 0


def _confirm(plan: "DrillPlan", hold_s: float, yes: bool) -> None:
    """Have a person agree; a program says --yes.

    Raises:
        click.UsageError: nobody can be asked.
        click.Abort: the answer was no.
    """
    if yes:
        return
    what = (
        f"For {hold_s:g} s {plan.former} answers the callers of {plan.endpoint} in the place of {plan.stands}"
    )
    if not sys.stdin.isatty():
        raise click.UsageError(f"{what}; say --yes to do so without being asked.")
    click.confirm(f"{what}. Go on?", abort=True, err=True)
