"""What a rollout may expect before it starts: the endpoint's own recent traffic, and its plan run over it.

Traffic is what gateways counted while former rollouts of the endpoint were under way: only then are callers
counted. Whatever was not counted can be said, and what was neither counted nor said is assumed and named as
such. Nothing is changed here, and no candidate is looked at: how good it is, is what the forecast varies.
"""

from collections.abc import Iterable
from datetime import datetime
from itertools import islice

from msgspec import Struct, structs

from modelkeep.core import errors, forecast
from modelkeep.core.answers import Measured, RolloutForecast
from modelkeep.core.catalog import ModelVersion
from modelkeep.core.forecast import Flow
from modelkeep.core.label_outlook import labels_outlook, shares_of
from modelkeep.core.observation import LabelCounts, SideCounts, Tick
from modelkeep.core.plan import Goal, Plan, Strategy, check_plan, dated
from modelkeep.core.rollout import Endpoint
from modelkeep.service.act import Act
from modelkeep.store import rollout as store
from modelkeep.store.visibility import visible_to

ROLLOUTS_LOOKED_AT = 5
"""Former rollouts of the endpoint, the latest first, until there are callers enough."""
CALLERS_ENOUGH = 10_000
"""New callers from which rates are well enough known."""
TICKS_READ_MAX = 20_000
"""Ticks of one rollout that are looked at: the first hours of it."""
FAILING = 0.005
"""Assumed share of stable's callers who fail, where nothing was counted or said."""
SLOW = 0.01
"""Assumed share of callers who are answered slowly, where nothing was counted."""


class Asked(Struct, frozen=True, kw_only=True):
    """What is said instead of counted: requests a second, requests of one caller, the share of stable's
    callers who fail, and another plan than the endpoint's."""

    traffic_per_s: float | None = None
    requests_per_caller: float | None = None
    error_rate: float | None = None
    plan: Plan | None = None
    seed: int = 1
    runs: int = forecast.RUNS


def foretell(
    act: Act, endpoint: Endpoint, version: ModelVersion | None, stable: str | None, asked: Asked
) -> RolloutForecast:
    """Run a plan over the endpoint's traffic, many times.

    Args:
        version: which one it is for; None for whichever, since no candidate is looked at.

    Raises:
        Conflict: the endpoint serves the version already, or serves nothing yet: nothing would be compared.
        Invalid: no traffic was counted and none was said.
        InvalidPlan: the plan cannot be carried out, or a figure is out of range.
    """
    # Both load numpy, which a server need not do to start.
    from modelkeep.core.contest_outlook import contest_outlook
    from modelkeep.core.outlook import outlook

    if endpoint.stable is None or (version is not None and endpoint.stable == version.number):
        serves = "already serves" if endpoint.stable is not None else "serves nothing yet to compare with"
        what = version.reference if version is not None else "a candidate"
        raise errors.Conflict(f"The endpoint {endpoint.name} {serves} {what}.")
    plan = check_plan(asked.plan or endpoint.plan)
    led = _until_its_end(plan, act.now)
    measured = _measured(act, endpoint)
    flow, given, assumed = _flow(endpoint, measured, asked)
    found = outlook(led, flow, seed=asked.seed, runs=asked.runs)
    candidate = version.semver if version is not None else None
    labels = {
        "labelled": measured.stable_labelled if measured is not None else 0,
        "wrong": measured.stable_wrong if measured is not None else 0,
        "callers": measured.stable_callers if measured is not None else 0,
    }
    labelled, wrong, counted = shares_of(**labels)
    if plan.goal is Goal.QUALITY and not counted:
        assumed = (*assumed, "labels")
    return RolloutForecast(
        endpoint=endpoint.name,
        version=version.reference if version is not None else None,
        stable=stable,
        stage=endpoint.stage,
        alias=endpoint.alias,
        plan=plan,
        flow=flow,
        measured=measured,
        given=given,
        assumed=assumed,
        outlook=found,
        contest=contest_outlook(
            led, flow, candidate=candidate, seed=asked.seed, runs=asked.runs, wrong=labelled * wrong
        ),
        labels=labels_outlook(plan, callers_per_s=flow.callers_per_s, **labels),
    )


def _until_its_end(plan: Plan, now: datetime) -> Plan:
    """A plan whose steps last as long as they will: that of an A/B test until the test ends."""
    ends_at = dated(plan, now).ends_at
    if plan.strategy is not Strategy.AB_TEST or ends_at is None:
        return plan
    lasts_s = (ends_at - now).total_seconds()
    return structs.replace(plan, steps=(structs.replace(plan.steps[0], min_s=lasts_s, max_s=lasts_s),))


def _measured(act: Act, endpoint: Endpoint) -> Measured | None:
    """What was counted in the latest rollouts, as many as it takes."""
    found: Measured | None = None
    latest = store.list_rollouts(
        act.tx, visible_to(act.caller), store.FIRST, ROLLOUTS_LOOKED_AT, endpoint.name
    )
    for rollout in latest:
        if rollout.model != endpoint.model or rollout.stable is None:
            continue
        own = measured_of(rollout.id, islice(store.ticks_of(act.tx, rollout.id), TICKS_READ_MAX))
        found = own if found is None else found if own is None else _joined(found, own)
        if found is not None and found.stable_callers >= CALLERS_ENOUGH:
            break
    return found


def measured_of(rollout: str, ticks: Iterable[Tick]) -> Measured | None:
    """What the ticks of one rollout, from all gateways, say of its traffic; None when nobody came."""
    both = stable = SideCounts()
    labels = LabelCounts()
    from_at: datetime | None = None
    to_at: datetime | None = None
    for tick in ticks:
        both, stable = both.plus(tick.candidate).plus(tick.stable), stable.plus(tick.stable)
        labels = labels.plus(tick.labels.stable) if tick.labels is not None else labels
        from_at = min(from_at or tick.started_at, tick.started_at)
        to_at = max(to_at or tick.ended_at, tick.ended_at)
    if from_at is None or to_at is None or to_at <= from_at or not stable.new_callers:
        return None
    return Measured(
        rollouts=(rollout,),
        from_at=from_at,
        to_at=to_at,
        span_s=(to_at - from_at).total_seconds(),
        requests=both.requests,
        callers=both.new_callers,
        stable_callers=stable.new_callers,
        stable_failed=stable.callers_first_error,
        stable_failed_first=stable.new_callers_failed,
        stable_slow=stable.callers_first_slow,
        stable_labelled=labels.callers_labelled,
        stable_wrong=labels.callers_wrong_at_once,
    )


def _joined(one: Measured, other: Measured) -> Measured:
    """Two rollouts together."""
    return structs.replace(
        one,
        rollouts=one.rollouts + other.rollouts,
        from_at=min(one.from_at, other.from_at),
        to_at=max(one.to_at, other.to_at),
        span_s=one.span_s + other.span_s,
        requests=one.requests + other.requests,
        callers=one.callers + other.callers,
        stable_callers=one.stable_callers + other.stable_callers,
        stable_failed=one.stable_failed + other.stable_failed,
        stable_failed_first=one.stable_failed_first + other.stable_failed_first,
        stable_slow=one.stable_slow + other.stable_slow,
        stable_labelled=one.stable_labelled + other.stable_labelled,
        stable_wrong=one.stable_wrong + other.stable_wrong,
    )


def _flow(
    endpoint: Endpoint, measured: Measured | None, asked: Asked
) -> tuple[Flow, tuple[str, ...], tuple[str, ...]]:
    """The traffic to reckon with, and which figures of it were given, and which assumed."""
    for name, value in (("traffic_per_s", asked.traffic_per_s), ("error_rate", asked.error_rate)):
        if value is not None and not value > 0:
            raise errors.Invalid(f"'{name}' is a number above 0.", field=name)
    if asked.traffic_per_s is None and measured is None:
        raise errors.Invalid(
            f"No rollout of {endpoint.name} has counted any traffic yet; say how much there is with "
            "'--traffic 50/s'.",
            field="traffic_per_s",
        )
    each = asked.requests_per_caller
    if each is None:
        each = max(1.0, measured.requests / measured.callers) if measured is not None else 1.0
    per_s = asked.traffic_per_s / each if asked.traffic_per_s is not None else None
    if per_s is None:
        assert measured is not None, "somebody counted or somebody said"
        per_s = measured.callers / measured.span_s
    failing = first = asked.error_rate
    if failing is None or first is None:
        failing = _share(measured, measured.stable_failed) if measured is not None else FAILING
        first = _share(measured, measured.stable_failed_first) if measured is not None else FAILING
    flow = Flow(
        callers_per_s=per_s,
        requests_per_caller=each,
        failing=max(failing, first),
        failing_first=first,
        slow=_share(measured, measured.stable_slow) if measured is not None else SLOW,
    )
    said = (
        ("traffic", asked.traffic_per_s),
        ("requests of one caller", asked.requests_per_caller),
        ("failing callers", asked.error_rate),
    )
    given = tuple(name for name, value in said if value is not None)
    if measured is not None:
        return flow, given, ()
    return flow, given, (*(name for name, value in said if value is None), "slow callers")


def _share(measured: Measured, count: int) -> float:
    """A share of stable's callers, never nothing and never all: half an event is added, and one caller."""
    return (count + 0.5) / (measured.stable_callers + 1)
