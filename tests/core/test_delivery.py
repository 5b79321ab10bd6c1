"""Deployment figures against an oracle that counts each random history by hand, and at their edges."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from statistics import fmean, median
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.core.delivery import DeliveryReport, report, share, times
from modelkeep.core.deployments import BEGINNINGS, KINDS, Asked, Outcome, named, wanted
from modelkeep.core.events import Event, EventKind
from modelkeep.core.values import Actor

pytestmark = pytest.mark.req("S10")

T0 = datetime(2026, 1, 1, tzinfo=UTC)
HORIZON_S = 1_000
STAGES = ["production", "production", "staging", "@champion", "@other"]
PRODUCTION = Asked(stage="production")
ASKED = (PRODUCTION, Asked(stage="production", aliases=None), Asked(stage=None, aliases=("champion",)))
ENDS = {
    Outcome.SUCCEEDED: EventKind.ROLLOUT_SUCCEEDED,
    Outcome.ROLLED_BACK: EventKind.ROLLOUT_ROLLED_BACK,
    Outcome.FAILED: EventKind.ROLLOUT_FAILED,
    Outcome.CANCELLED: EventKind.ROLLOUT_CANCELLED,
    Outcome.SUPERSEDED: EventKind.ROLLOUT_SUPERSEDED,
    Outcome.CONCLUDED: EventKind.ROLLOUT_CONCLUDED,
}


@dataclass(frozen=True)
class Story:
    """One version's life: when it was registered, how it was deployed, and what became of it. Times are
    seconds since the beginning; `outcome` None is a rollout that goes on."""

    number: int
    model: int
    registered: int
    began: int
    exposed: int
    decided: int
    ended: int
    undone: int | None
    outcome: Outcome | None
    at_once: bool
    stage: str

    @property
    def succeeded(self) -> bool:
        return self.outcome is Outcome.SUCCEEDED


@st.composite
def stories(draw: st.DrawFn) -> list[Story]:
    """Versions of three models that are deployed in any order, at the same time too."""
    made = []
    for number in range(1, draw(st.integers(0, 12)) + 1):
        moments = sorted(draw(st.lists(st.integers(0, HORIZON_S), min_size=6, max_size=6)))
        at_once = draw(st.booleans())
        outcome = Outcome.SUCCEEDED if at_once else draw(st.sampled_from([*Outcome, None]))
        undone = moments[5] if outcome is Outcome.SUCCEEDED and draw(st.booleans()) else None
        began, exposed, decided, ended = (moments[4],) * 4 if at_once else moments[1:5]
        made.append(
            Story(
                number=number,
                model=draw(st.integers(0, 2)),
                registered=moments[0],
                began=began,
                exposed=exposed,
                decided=decided,
                ended=ended,
                undone=undone,
                outcome=outcome,
                at_once=at_once,
                stage=draw(st.sampled_from(STAGES if not at_once else STAGES[:3])),
            )
        )
    return made


def told(story: Story) -> Iterator[tuple[int, EventKind, str, dict[str, Any]]]:
    """The events of a story: when, which, about what, and the body."""
    version, endpoint = f"m{story.model}:{story.number}.0.0", f"endpoint/e{story.model}"
    semver = f"{story.number}.0.0"
    alias = story.stage[1:] if story.stage.startswith("@") else None
    yield story.registered, EventKind.VERSION_REGISTERED, version, {"semver": semver}
    move: dict[str, Any] = {"from": "none", "to": story.stage, "semver": semver, "displaced": None}
    if story.at_once:
        yield story.ended, EventKind.STAGE_MOVED, version, {**move, "cause": "promotion"}
    else:
        body: dict[str, Any] = {"rollout": f"rol_{story.number}"}
        follows = {"stage": None, "alias": alias} if alias else {"stage": story.stage}
        yield story.began, EventKind.ROLLOUT_STARTED, endpoint, {**body, **follows, "to": semver}
        if story.outcome in (Outcome.SUCCEEDED, Outcome.ROLLED_BACK, None):
            yield story.exposed, EventKind.ROLLOUT_STEPPED, endpoint, body
        if story.outcome is Outcome.ROLLED_BACK:
            yield story.decided, EventKind.ROLLOUT_ROLLING_BACK, endpoint, body
        if story.outcome is not None:
            yield story.ended, ENDS[story.outcome], endpoint, body
        if story.succeeded and alias:
            pointed = {"alias": alias, "from": 0, "to": story.number, "semver": semver, "cause": "rollout"}
            yield story.ended, EventKind.ALIAS_SET, f"m{story.model}@{alias}", {**pointed, **body}
        elif story.succeeded:
            entered = {**move, "cause": "rollout", "rollout": f"rol_{story.number}"}
            yield story.ended, EventKind.STAGE_MOVED, version, entered
    if story.undone is not None and alias:
        undone = {"alias": alias, "from": story.number, "to": 0, "semver": "0.1.0", "cause": "rollback"}
        yield story.undone, EventKind.ALIAS_SET, f"m{story.model}@{alias}", {**undone, "number": 0}
    elif story.undone is not None:
        back = {"from": "archived", "to": story.stage, "semver": "0.1.0", "cause": "rollback"}
        back["displaced"] = {"number": story.number, "semver": semver, "to": "archived"}
        yield story.undone, EventKind.STAGE_MOVED, f"m{story.model}:0.1.0", {**back, "number": 0}


def history(found: list[Story], renamed_at: int) -> list[Event]:
    """All events in order. The first model is called differently from a moment on."""
    lines: list[tuple[int, int, int, Any]] = []
    for place, story in enumerate(found):
        for order, line in enumerate(told(story)):
            lines.append((line[0], place, order, (story, *line[1:])))
    lines.append((renamed_at, -1, 0, None))
    lines.sort(key=lambda line: line[:3])
    made, later = [], False
    for at, _, _, what in lines:
        fields: dict[str, Any] = {
            "sequence": len(made) + 1,
            "at": T0 + timedelta(seconds=at),
            "actor": Actor(name="ada"),
        }
        if what is None:
            later = True
            body = {"from": "m0", "to": "m0-new"}
            made.append(
                Event(kind=EventKind.MODEL_RENAMED, subject="m0-new", model="m0-new", body=body, **fields)
            )
            continue
        story, kind, subject, body = what
        model = "m0-new" if story.model == 0 and later else f"m{story.model}"
        number = body.pop("number", story.number)
        made.append(Event(kind=kind, subject=subject, model=model, number=number, body=body, **fields))
    return made


def by_hand(found: list[Story], since: int, until: int, asked: Asked) -> dict[str, Any]:
    """The figures as the definitions say them, story by story, without any event."""

    def inside(at: int | None) -> bool:
        return at is not None and since < at <= until

    own = [
        one
        for one in found
        if one.stage == asked.stage
        or (one.stage.startswith("@") and (asked.aliases is None or one.stage[1:] in asked.aliases))
    ]
    ended = [one for one in own if one.outcome is not None and inside(one.ended)]
    gone = {one.number for one in own if one.undone is not None and one.undone <= until}
    met = [one for one in ended if one.outcome in (Outcome.SUCCEEDED, Outcome.ROLLED_BACK)]
    tally = {outcome: [one for one in ended if one.outcome is outcome] for outcome in Outcome}
    return {
        "deployments": len(ended),
        "succeeded": len(tally[Outcome.SUCCEEDED]),
        "rolled_back": len(tally[Outcome.ROLLED_BACK]),
        "failed": len(tally[Outcome.FAILED]),
        "cancelled": len(tally[Outcome.CANCELLED]),
        "superseded": len(tally[Outcome.SUPERSEDED]),
        "concluded": len(tally[Outcome.CONCLUDED]),
        "success": (
            len(tally[Outcome.SUCCEEDED]),
            sum(len(tally[o]) for o in (Outcome.SUCCEEDED, Outcome.ROLLED_BACK, Outcome.FAILED)),
        ),
        "change_failure": (
            sum(one.outcome is Outcome.ROLLED_BACK or one.number in gone for one in met),
            len(met),
        ),
        "under_way": sum(
            inside(one.began) and not one.at_once and (one.outcome is None or one.ended > until)
            for one in own
        ),
        "deploy": [one.ended - one.began for one in tally[Outcome.SUCCEEDED] if not one.at_once],
        "rollback": [one.ended - one.decided for one in tally[Outcome.ROLLED_BACK]],
        "recovery": [one.ended - one.exposed for one in tally[Outcome.ROLLED_BACK]]
        + [one.undone - one.ended for one in own if one.undone is not None and inside(one.undone)],
        "lead": [one.ended - one.registered for one in own if one.succeeded and inside(one.ended)],
    }


def figures(found: DeliveryReport) -> dict[str, Any]:
    """The counts of a report as the oracle has them."""
    names = (
        "deployments", "succeeded", "rolled_back", "failed", "cancelled", "superseded", "concluded",
        "under_way",
    )  # fmt: skip
    shares = {
        name: (getattr(found, name).count, getattr(found, name).of) for name in ("success", "change_failure")
    }
    return {name: getattr(found, name) for name in names} | shares


@given(
    found=stories(),
    renamed_at=st.integers(0, HORIZON_S),
    ends=st.tuples(st.integers(0, 999), st.integers(1, 1_000)),
    asked=st.sampled_from(ASKED),
)
def test_the_figures_are_those_one_counts_by_hand(
    found: list[Story], renamed_at: int, ends: tuple[int, int], asked: Asked
) -> None:
    """Whatever happened in whatever order, under whatever name, within any span, to a stage, behind an alias,
    or both."""
    since, until = min(ends), max(*ends, min(ends) + 1)
    events = [event for event in history(found, renamed_at) if event.at <= T0 + timedelta(seconds=until)]
    told = report(
        named(events),
        since=T0 + timedelta(seconds=since),
        until=T0 + timedelta(seconds=until),
        asked=asked,
    )
    counted = by_hand(found, since, until, asked)
    assert figures(told) == {name: counted[name] for name in figures(told)}
    for name in ("deploy", "rollback", "recovery", "lead"):
        got, durations = getattr(told, name), counted[name]
        assert got.count == len(durations)
        if durations:
            assert got.mean_s == pytest.approx(fmean(durations))
            assert got.median_s == median(durations)
            assert got.longest_s == max(durations)
            assert sum(took <= got.p90_s for took in durations) >= 0.9 * len(durations)
            assert sum(took < got.p90_s for took in durations) < 0.9 * len(durations)
        else:
            assert (got.mean_s, got.median_s, got.p90_s) == (None, None, None)
    assert told.per_day == pytest.approx(told.succeeded * 86_400 / (until - since))


@given(
    found=stories(),
    renamed_at=st.integers(0, HORIZON_S),
    since=st.integers(0, 999),
    what=st.sampled_from(ASKED),
)
def test_nothing_but_what_is_asked_for_is_needed(
    found: list[Story], renamed_at: int, since: int, what: Asked
) -> None:
    """The events of the span and the beginnings that are asked for say the same as the whole log."""
    events = history(found, renamed_at)
    start, end = T0 + timedelta(seconds=since), T0 + timedelta(seconds=HORIZON_S)
    whole = report(named(events), since=start, until=end, asked=what)
    inside = [
        event for event in events if event.at > start and event.kind is not EventKind.VERSION_REGISTERED
    ]
    renames = [event for event in events if event.kind is EventKind.MODEL_RENAMED]
    known = {event.sequence: event for event in (*renames, *inside)}
    asked = wanted(named([known[number] for number in sorted(known)]), what)
    subjects = {*asked.endpoints, *(f"{model}{reference}" for model, reference in asked.references)}
    subjects |= {f"m0{reference}" for model, reference in asked.references if model == "m0-new"}
    for event in events:
        if event.subject in subjects and event.kind in BEGINNINGS:
            known[event.sequence] = event
    part = report(named([known[number] for number in sorted(known)]), since=start, until=end, asked=what)
    assert part == whole


def test_nothing_gives_no_rate_and_no_time() -> None:
    """An empty log divides by nothing: every rate is unknown, anything between none and all."""
    told = report([], since=T0, until=T0 + timedelta(days=30), asked=PRODUCTION)
    assert told.deployments == told.under_way == 0
    assert (told.success.value, told.success.low, told.success.high) == (None, 0.0, 1.0)
    assert told.deploy == told.lead == times([])
    assert told.per_day == 0.0


@given(of=st.integers(1, 10_000), part=st.floats(0, 1))
def test_the_interval_holds_the_share_and_stays_within_bounds(of: int, part: float) -> None:
    """Wilson's interval: around the share, inside 0 and 1, and an end of it solves Wilson's equation."""
    count = round(part * of)
    found = share(count, of)
    assert found.value is not None
    assert 0 <= found.low <= found.value <= found.high <= 1
    for end in (found.low, found.high):
        if 0 < end < 1:
            z = abs(found.value - end) / math.sqrt(end * (1 - end) / of)
            assert z == pytest.approx(1.96, abs=1e-3)


def test_few_say_little() -> None:
    """Two of two leave a true rate of 35 % credible."""
    found = share(2, 2)
    assert found.value == 1.0
    assert found.low == pytest.approx(0.342, abs=1e-3)
    assert found.high == 1.0


def test_a_clock_that_was_set_back_makes_nothing_negative() -> None:
    """Order is by sequence; a time is zero at least."""
    body = {"rollout": "rol_1", "stage": "production"}
    fields: dict[str, Any] = {"actor": Actor(name="ada"), "subject": "endpoint/e", "model": "m", "number": 1}
    events = [
        Event(sequence=1, kind=EventKind.ROLLOUT_STARTED, at=T0 + timedelta(seconds=9), body=body, **fields),
        Event(
            sequence=2, kind=EventKind.ROLLOUT_SUCCEEDED, at=T0 + timedelta(seconds=5), body=body, **fields
        ),
    ]
    told = report(named(events), since=T0, until=T0 + timedelta(days=1), asked=PRODUCTION)
    assert told.deploy.longest_s == 0.0
    assert told.succeeded == 1


def test_every_kind_that_is_read_counts_for_something() -> None:
    """No kind is read for nothing: each is an end, a beginning, or a name."""
    assert set(ENDS.values()) < set(KINDS)
    assert len(KINDS) == len(set(KINDS))
