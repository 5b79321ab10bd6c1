"""Commands for pipelines: wait until a rollout has ended, ask for a verdict on it, or on foreign counts.

They belong to the group `rollout`, whose other words are in `rollout_commands`.
"""

import time
from typing import TYPE_CHECKING

import click

from modelkeep.cli import rollout_views, verdict_views
from modelkeep.cli.plans import plan_options, stated
from modelkeep.cli.rollout_commands import ARRIVED, EITHER, _next_status, rollout
from modelkeep.cli.session import Session, read_text, verb

if TYPE_CHECKING:
    from modelkeep.core.answers import RolloutStatus
    from modelkeep.core.judgement import Verdict
    from modelkeep.core.rollout import Endpoint

__all__ = ["rollout"]

SUCCEEDED, TAKEN_BACK, HELD, NO_TRAFFIC = 0, 3, 8, 12
"""How `wait` ends: as the command line's codes say (3 a gate failed, 8 pending), and 12 for what none of them
says; docs/explanation/decisions/0010 has the reasons."""
SLOW_MS = 250.0
"""From when on an answer of a log is slow, unless it is said: as endpoints have it by themselves."""
_UNIT_S = {"s": 1, "min": 60, "h": 3_600, "d": 86_400}


@verb(rollout, "wait")
@click.argument("endpoint", metavar=EITHER)
@click.option(
    "--timeout", default="1h", show_default=True, metavar="SPAN", help="How long to wait: 90s, 30min, 2h."
)
def rollout_wait(session: Session, endpoint: str, timeout: str) -> int:
    """Wait until a rollout has ended.

    Exit code: 0 succeeded or ended with its report, 3 taken back, failed, cancelled or superseded, 8 still
    under way when the time is over, 12 the same without a single request to the candidate.
    """
    until = time.monotonic() + _span(timeout)
    status = session.client.rollout_status(endpoint)
    if status.rollout is None:
        from modelkeep.core import errors

        raise errors.RolloutNotFound(
            f"No rollout of {endpoint} ever began; {_beginning(status.endpoint)} begins one.",
            endpoint=endpoint,
        )
    if status.active:
        endpoint = status.rollout.id  # this one, though another may begin meanwhile
    while status.active and time.monotonic() < until:
        status = _next_status(session, endpoint)
    assert status.rollout is not None, "rollouts do not vanish"
    session.answer(status, [status.rollout.id], rollout_views.rollout(status.rollout))
    return how_it_ended(status)


def how_it_ended(status: "RolloutStatus") -> int:
    """The exit code of a rollout that was waited for."""
    found = status.rollout
    assert found is not None, "somebody waited for it"
    if found.state.value in ARRIVED:
        return SUCCEEDED
    if not status.active:
        return TAKEN_BACK
    return HELD if found.candidate_counts.requests else NO_TRAFFIC


def _beginning(endpoint: "Endpoint") -> str:
    """What a person types to move the traffic of an endpoint."""
    if endpoint.alias is not None:
        return f"'modelkeep alias set {endpoint.follows} VERSION'"
    return f"'modelkeep promote REF --to {endpoint.stage} -m WHY'"


def _span(text: str) -> float:
    """`90s`, `30min`, `2h` in seconds; a bare number is seconds."""
    number = text.strip().rstrip("abcdefghijklmnopqrstuvwxyz")
    unit = text.strip()[len(number) :] or "s"
    try:
        seconds = float(number) * _UNIT_S[unit]
        if not 0 < seconds <= 90 * _UNIT_S["d"]:
            raise ValueError
    except (ValueError, KeyError):
        raise click.BadParameter(f"write 90s, 30min or 2h, not {text!r}", param_hint="--timeout") from None
    return seconds


@verb(rollout, "verdict")
@click.argument("endpoint", metavar=EITHER)
def rollout_verdict(session: Session, endpoint: str) -> int:
    """Say what the evidence of a rollout says. Exit code: 0 advance, 3 roll back, 8 hold."""
    found = session.client.get_verdict(endpoint)
    session.answer(found, [found.verdict.value], verdict_views.of_rollout(found))
    return _code(found.verdict)


@verb(rollout, "simulate")
@click.argument("endpoint", metavar=EITHER)
@plan_options
@click.option("--log", metavar="FILE", help="A prediction log in Parquet, instead of recorded counts.")
@click.option("--key", metavar="COLUMN", help="The log's column that tells callers apart.")
@click.option("--slow-ms", type=float, metavar="MS", help="From when on an answer of the log is slow [250].")
@click.option("--seed", type=int, metavar="N", help="Another seed draws other callers for the candidate [1].")
@click.option("--runs", type=int, metavar="N", help="Rollouts to simulate of each kind [200].")
def rollout_simulate(
    session: Session,
    endpoint: str,
    plan_file: str | None,
    strategy: str | None,
    steps: tuple[str, ...],
    log: str | None,
    key: str | None,
    slow_ms: float | None,
    seed: int | None,
    runs: int | None,
) -> None:
    """Lead what was recorded through a plan: what would have happened when.

    Without --log, the counts of a former rollout. With it, the requests of a prediction log: many rollouts of
    a candidate as good as stable, and of worse ones, under the traffic that there was; no server is asked.
    """
    plan = stated(plan_file, strategy, steps)
    if log is not None:
        from modelkeep.cli.rehearsals import rehearse

        slow = SLOW_MS if slow_ms is None else slow_ms
        rehearse(
            session, endpoint, log, plan, key=key, slow_ms=slow, seed=1 if seed is None else seed, runs=runs
        )
        return
    if any(option is not None for option in (key, slow_ms, seed, runs)):
        raise click.UsageError("--key, --slow-ms, --seed and --runs are about a log; name it with --log.")
    told = session.client.simulate_rollout(endpoint, plan)
    session.answer(told, [told.ended.value if told.ended is not None else ""], verdict_views.simulation(told))


@verb(rollout, "judge")
@click.argument("counts", metavar="FILE")
@click.option("--plan", "plan_file", metavar="FILE", help="The plan whose error rates hold, in YAML.")
@click.option(
    "--unit",
    type=click.Choice(["request", "caller"]),
    help="What the other router draws; the file's when left out.",
)
def rollout_judge(session: Session, counts: str, plan_file: str | None, unit: str | None) -> int:
    """Judge counts of somebody else's canary, in YAML or JSON; - is standard input.

    Exit code: 0 advance, 3 roll back, 8 hold.
    """
    from modelkeep.core import codec
    from modelkeep.core.plan import read_plan
    from modelkeep.core.sequential import Unit
    from modelkeep.core.verdicts import Question

    asked = codec.convert(codec.parse_yaml(read_text(counts)), Question)
    plan = read_plan(read_text(plan_file)) if plan_file is not None else asked.plan
    found = session.client.judge_counts(asked.ticks, plan=plan, unit=Unit(unit) if unit else asked.unit)
    session.answer(found, [found.verdict.value], verdict_views.of_counts(found))
    return _code(found.verdict)


def _code(verdict: "Verdict") -> int:
    return {"advance": SUCCEEDED, "rollback": TAKEN_BACK, "hold": HELD}[verdict.value]
