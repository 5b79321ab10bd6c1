"""What a gateway saw: the counts and states that flow back to the control plane.

Counts are per tick and per side of one endpoint. The unit that rollouts are judged by is the caller, because
callers are what is split: besides requests a tick counts the callers seen for the first time in this rollout
(on either side), those of them whose very first request failed, and those who failed (or were answered
slowly) for the first time on either side. A tick is closed once and numbered, so that a report may be sent
twice and is counted once. This file does not judge.
"""

import math
from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from itertools import zip_longest

from msgspec import Struct

from modelkeep.core import errors, values
from modelkeep.core.routing import OTHERS_MAX, ROUTES_MAX, WHOLE_PPM, Epoch, Route, VersionKey
from modelkeep.core.sequential import COUNT_MAX
from modelkeep.core.shift import BANDS

FIELDS_COUNTED_MAX = 50
"""Fields of one version whose misses are counted by name, the first of its signature; the others are one."""
TICKS_PER_REPORT_MAX = 120
"""Ticks that one report carries; older unsent ones are merged, never dropped."""
CALLERS_TRACKED_MAX = 200_000
"""Distinct callers remembered per rollout. Past that, new callers are no longer counted as first-time ones,
which costs power and never validity."""
ROLLBACKS_PER_REPORT_MAX = 1_000
"""Local rollbacks that one report carries: people and guards do a few of them, not thousands."""
TEXT_MAX = 2_000
"""Characters of a text that a gateway passes on: what a person reads first, not a whole trace."""
LATELY_HALF_S = 30.0
"""After so long, what was answered says half as much of what is answered now."""
LATELY_KEPT_S = 600.0
"""After so long, it says nothing."""
NUMBER_MAX = 2**53
"""Numbers of ticks, tables and epochs; JSON readers agree on whole numbers up to here."""


class SideCounts(Struct, frozen=True, kw_only=True):
    """One side of one endpoint during one tick.

    `errors` are answers the version is to blame for (5xx, crash, time-out, output that breaks its own
    signature); `refused` are the caller's own faults (4xx) and never count against a version.

    `callers_arrived` are counted when they are given a side, `new_callers` when their first request is
    answered: how callers were split must not depend on how fast either side answers.
    """

    requests: int = 0
    errors: int = 0
    slow: int = 0
    refused: int = 0
    schema_violations: int = 0
    crashes: int = 0
    callers_arrived: int = 0
    new_callers: int = 0
    new_callers_failed: int = 0
    callers_first_error: int = 0
    callers_first_slow: int = 0
    duration_ms_sum: float = 0.0
    duration_ms_max: float = 0.0

    def plus(self, other: "SideCounts") -> "SideCounts":
        """The counts of two spans together."""
        return SideCounts(
            requests=self.requests + other.requests,
            errors=self.errors + other.errors,
            slow=self.slow + other.slow,
            refused=self.refused + other.refused,
            schema_violations=self.schema_violations + other.schema_violations,
            crashes=self.crashes + other.crashes,
            callers_arrived=self.callers_arrived + other.callers_arrived,
            new_callers=self.new_callers + other.new_callers,
            new_callers_failed=self.new_callers_failed + other.new_callers_failed,
            callers_first_error=self.callers_first_error + other.callers_first_error,
            callers_first_slow=self.callers_first_slow + other.callers_first_slow,
            duration_ms_sum=self.duration_ms_sum + other.duration_ms_sum,
            duration_ms_max=max(self.duration_ms_max, other.duration_ms_max),
        )


class PairCounts(Struct, frozen=True, kw_only=True):
    """Requests of one tick that the stable version answered and of which the shadow `version` got a copy.

    A pair whose two answers differ in kind is counted on the side that did worse: `only_stable_failed`,
    `only_shadow_failed`, and likewise slow. `compared` pairs are those that both answered; `disagreements`
    are those of them whose predictions are not equal within the precision of their types. `difference_sum` is
    over the `values` numbers in them. `dropped` copies were never sent or never compared, because the shadow
    or the recorder had no room: they say nothing about the version. Labels that came meanwhile, whenever the
    copies were made, are of `labelled` pairs that both answered; where only one of the two was wrong, it is
    counted on that side. They are of a request's first row.
    """

    version: VersionKey
    pairs: int = 0
    both_failed: int = 0
    only_stable_failed: int = 0
    only_shadow_failed: int = 0
    only_stable_slow: int = 0
    only_shadow_slow: int = 0
    compared: int = 0
    disagreements: int = 0
    values: int = 0
    difference_sum: float = 0.0
    difference_max: float = 0.0
    stable_ms_sum: float = 0.0
    shadow_ms_sum: float = 0.0
    dropped: int = 0
    labelled: int = 0
    only_stable_wrong: int = 0
    only_shadow_wrong: int = 0

    def plus(self, other: "PairCounts") -> "PairCounts":
        """The counts of two spans together."""
        return PairCounts(
            version=other.version,
            pairs=self.pairs + other.pairs,
            both_failed=self.both_failed + other.both_failed,
            only_stable_failed=self.only_stable_failed + other.only_stable_failed,
            only_shadow_failed=self.only_shadow_failed + other.only_shadow_failed,
            only_stable_slow=self.only_stable_slow + other.only_stable_slow,
            only_shadow_slow=self.only_shadow_slow + other.only_shadow_slow,
            compared=self.compared + other.compared,
            disagreements=self.disagreements + other.disagreements,
            values=self.values + other.values,
            difference_sum=self.difference_sum + other.difference_sum,
            difference_max=max(self.difference_max, other.difference_max),
            stable_ms_sum=self.stable_ms_sum + other.stable_ms_sum,
            shadow_ms_sum=self.shadow_ms_sum + other.shadow_ms_sum,
            dropped=self.dropped + other.dropped,
            labelled=self.labelled + other.labelled,
            only_stable_wrong=self.only_stable_wrong + other.only_stable_wrong,
            only_shadow_wrong=self.only_shadow_wrong + other.only_shadow_wrong,
        )


class LabelCounts(Struct, frozen=True, kw_only=True):
    """Labels that came during one tick for predictions of one side, whenever those were made.

    `labels` are rows, each counted once; `wrong` of them were predicted wrongly, and `odd` could not be
    compared. `callers_labelled` had a label for the first time in this rollout, and with
    `callers_wrong_at_once` that label said wrong; `callers_first_wrong` had a wrong prediction for the first
    time, by whichever of their labels.
    """

    labels: int = 0
    wrong: int = 0
    odd: int = 0
    callers_labelled: int = 0
    callers_wrong_at_once: int = 0
    callers_first_wrong: int = 0

    def plus(self, other: "LabelCounts") -> "LabelCounts":
        """The counts of two spans together."""
        return LabelCounts(
            labels=self.labels + other.labels,
            wrong=self.wrong + other.wrong,
            odd=self.odd + other.odd,
            callers_labelled=self.callers_labelled + other.callers_labelled,
            callers_wrong_at_once=self.callers_wrong_at_once + other.callers_wrong_at_once,
            callers_first_wrong=self.callers_first_wrong + other.callers_first_wrong,
        )


class Labelled(Struct, frozen=True, kw_only=True):
    """Labels of both sides, and of an A/B test's further versions in the order of the route. Their tick is
    that of the epoch and weights under which was predicted."""

    candidate: LabelCounts = LabelCounts()
    stable: LabelCounts = LabelCounts()
    others: tuple[LabelCounts, ...] = ()

    @property
    def sides(self) -> tuple[LabelCounts, ...]:
        """All of them, stable first, as places of a route go."""
        return (self.stable, self.candidate, *self.others)

    def plus(self, other: "Labelled") -> "Labelled":
        """The counts of two spans together."""
        both = zip_longest(self.others, other.others, fillvalue=LabelCounts())
        return Labelled(
            candidate=self.candidate.plus(other.candidate),
            stable=self.stable.plus(other.stable),
            others=tuple(one.plus(two) for one, two in both),
        )


class BandCounts(Struct, frozen=True, kw_only=True):
    """Callers by the band of their first prediction in this rollout, a number a band. What a band is may
    differ from gateway to gateway, and only the two sides of one tick compare."""

    candidate: tuple[int, ...] = ()
    stable: tuple[int, ...] = ()

    def plus(self, other: "BandCounts") -> "BandCounts":
        """The counts of two spans together."""
        return BandCounts(
            candidate=tuple(a + b for a, b in zip_longest(self.candidate, other.candidate, fillvalue=0)),
            stable=tuple(a + b for a, b in zip_longest(self.stable, other.stable, fillvalue=0)),
        )


class Tick(Struct, frozen=True, kw_only=True):
    """One closed span of one endpoint under one epoch.

    `number` rises by one within (gateway, endpoint, rollout). A new epoch closes the tick, so that the weight
    is one number for the whole span.
    """

    endpoint: str
    rollout: str | None
    epoch: Epoch
    number: int
    started_at: datetime
    ended_at: datetime
    candidate_ppm: int
    stable: SideCounts
    candidate: SideCounts
    errors_seen: tuple[str, ...] = ()
    """At most three error texts of the candidate, shortened: what a person wants to read first."""
    pairs: PairCounts | None = None
    """What the shadow version said to copies; None where none was compared."""
    labels: Labelled | None = None
    """What became known of predictions; None where nothing did."""
    outputs: BandCounts | None = None
    """What was predicted for callers; None where it is not compared."""
    others: tuple[SideCounts, ...] = ()
    """What the further versions of an A/B test met with, in the order of the route."""
    others_ppm: tuple[int, ...] = ()
    """Their shares."""
    aside_ppm: int = 0
    """The share of callers who are set aside: on no side, because their version was taken out of the test."""

    @property
    def tried(self) -> bool:
        """Whether anybody but stable could be asked during this tick."""
        return self.candidate_ppm > 0 or any(self.others_ppm)


class VersionPhase(StrEnum):
    """How far a version is on a gateway."""

    FETCHING = "fetching"
    BUILDING = "building"
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    FAILED = "failed"
    DRAINING = "draining"
    SLEEPING = "sleeping"
    """Its files are there, and it is loaded when somebody asks for it."""


class FieldMisses(Struct, frozen=True, kw_only=True):
    """In how many requests each field missed the signature: of those `refused` for it, and of those that were
    `fitted` on a lenient endpoint. Fields are a signature's own, or one of three words in brackets.
    """

    refused: dict[str, int] = {}
    fitted: dict[str, int] = {}

    def plus(self, other: "FieldMisses") -> "FieldMisses":
        """Both together."""
        return FieldMisses(
            refused=_added(self.refused, other.refused), fitted=_added(self.fitted, other.fitted)
        )


def _added(one: dict[str, int], two: dict[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + two.get(name, 0) for name in one | two}


class VersionReport(Struct, frozen=True, kw_only=True):
    """One version on one gateway. `crashes`, `loads`, `replaced` and `misses` count since it was first needed
    there; `replaced` are processes that grew towards their limit of memory. `devices`: what each process that
    serves computes on; `device_word`: what there is to say of that."""

    key: VersionKey
    phase: VersionPhase
    crashes: int = 0
    error: str | None = None
    memory_bytes: int = 0
    loads: int = 0
    replaced: int = 0
    misses: FieldMisses = FieldMisses()
    devices: tuple[str, ...] = ()
    device_word: str | None = None


class LocalRollback(Struct, frozen=True, kw_only=True):
    """A rollback done by the gateway itself or on a local command; the control plane takes it over."""

    endpoint: str
    epoch: Epoch
    rollout: str | None
    cause: str
    actor: str
    at: datetime
    took_ms: float
    stable: VersionKey
    removed: VersionKey


class RouteState(Struct, frozen=True, kw_only=True):
    """What an endpoint really does on a gateway."""

    endpoint: str
    epoch: Epoch
    stable: VersionKey
    candidate: VersionKey | None
    candidate_ppm: int
    previous: VersionKey | None
    others_ppm: tuple[int, ...] = ()


def state_of(route: Route) -> RouteState:
    """What a gateway that obeys a route says of its endpoint."""
    return RouteState(
        endpoint=route.endpoint,
        epoch=route.epoch,
        stable=route.stable,
        candidate=route.candidate,
        candidate_ppm=route.candidate_ppm,
        previous=route.previous,
        others_ppm=route.others_ppm,
    )


class Lately(Struct, frozen=True, kw_only=True):
    """What the stable version of an endpoint answered lately on one gateway, as the registry keeps it: a
    request weighs half as much after each `LATELY_HALF_S`.

    `at` is when the registry heard of it last, `until` up to when the gateway had counted, by its own clock.
    """

    endpoint: str
    requests: float
    errors: float
    at: datetime
    until: datetime

    def weighed(self, now: datetime) -> tuple[float, float]:
        """Requests and errors as they weigh at a moment."""
        share = 0.5 ** (max(0.0, (now - self.at).total_seconds()) / LATELY_HALF_S)
        return self.requests * share, self.errors * share


def lately(before: Iterable[Lately], ticks: Iterable[Tick], now: datetime) -> tuple[Lately, ...]:
    """What was answered lately, with ticks that have just come. One that came before changes nothing."""
    known = {one.endpoint: one for one in before if (now - one.at).total_seconds() < LATELY_KEPT_S}
    counted = {name: one.until for name, one in known.items()}
    for tick in sorted(ticks, key=lambda tick: tick.ended_at):
        own = known.get(tick.endpoint)
        until = counted.get(tick.endpoint)
        if not tick.stable.requests or (until is not None and tick.ended_at <= until):
            continue
        requests, failed = own.weighed(now) if own is not None else (0.0, 0.0)
        known[tick.endpoint] = Lately(
            endpoint=tick.endpoint,
            requests=requests + tick.stable.requests,
            errors=failed + tick.stable.errors,
            at=now,
            until=tick.ended_at,
        )
    return tuple(known.values())


class GatewayReport(Struct, frozen=True, kw_only=True):
    """What a gateway tells the control plane, about once a second. Sending it twice changes nothing.
    `lately` is the registry's own; what a gateway says of it is not looked at."""

    gateway: str
    table: int
    url: str
    sent_at: datetime
    routes: tuple[RouteState, ...] = ()
    versions: tuple[VersionReport, ...] = ()
    ticks: tuple[Tick, ...] = ()
    rollbacks: tuple[LocalRollback, ...] = ()
    lately: tuple[Lately, ...] = ()


class GatewayReply(Struct, frozen=True, kw_only=True):
    """The answer to a report: the highest tick taken in per (endpoint, rollout), which need not be sent
    again.
    """

    taken: tuple[tuple[str, str | None, int], ...] = ()
    rollbacks_taken: int = 0


def check_report(report: GatewayReport) -> GatewayReport:
    """Refuse a report that no gateway of ours would send: what is taken in here is evidence for ever, and a
    number that cannot be must not stop a rollout from being judged.

    Raises:
        InvalidName, Invalid, LimitExceeded: names what is off.
    """
    values.check_name(report.gateway, "gateway")
    for what, items, maximum in (
        ("ticks", report.ticks, TICKS_PER_REPORT_MAX),
        ("routes", report.routes, ROUTES_MAX),
        ("versions", report.versions, 3 * ROUTES_MAX),
        ("rollbacks", report.rollbacks, ROLLBACKS_PER_REPORT_MAX),
    ):
        if len(items) > maximum:
            raise errors.LimitExceeded(f"A report has at most {maximum:,} {what}.", field=what)
    _number("table", report.table)
    _texts(report.url)
    for tick in report.ticks:
        _check_tick(tick)
    for route in report.routes:
        _texts(route.endpoint)
        _epoch(route.epoch)
    for version in report.versions:
        _texts(version.error or "")
        for counted in (version.misses.refused, version.misses.fitted):
            if len(counted) > FIELDS_COUNTED_MAX + 3:
                raise errors.LimitExceeded("A version's misses name too many fields.", field="misses")
            for name, number in counted.items():
                _texts(name)
                _number("misses", number)
    for done in report.rollbacks:
        _texts(done.endpoint, done.rollout or "", done.cause, done.actor)
        _epoch(done.epoch)
        if not (math.isfinite(done.took_ms) and done.took_ms >= 0):
            raise errors.Invalid("A rollback took a time that cannot be.", field="took_ms")
    return report


def _check_tick(tick: Tick) -> None:
    _texts(tick.endpoint, tick.rollout or "", *tick.errors_seen)
    if tick.pairs is not None:
        _texts(tick.pairs.version)
        for name in tick.pairs.__struct_fields__[1:]:
            number = getattr(tick.pairs, name)
            if not (0 <= number < math.inf) or (isinstance(number, int) and number > COUNT_MAX):
                raise errors.Invalid(f"A tick's pairs cannot hold {name}={number}.", field=name)
    if tick.labels is not None and len(tick.labels.others) > OTHERS_MAX:
        raise errors.Invalid("A tick has labels of more versions than a test has.", field="labels")
    for told in tick.labels.sides if tick.labels is not None else ():
        for name in told.__struct_fields__:
            if not 0 <= getattr(told, name) <= COUNT_MAX:
                raise errors.Invalid(f"A tick's labels cannot hold {name}={getattr(told, name)}.", field=name)
    for counts in (tick.outputs.candidate, tick.outputs.stable) if tick.outputs is not None else ():
        if len(counts) > BANDS or not all(0 <= count <= COUNT_MAX for count in counts):
            raise errors.Invalid(f"A tick has callers in {BANDS} bands, from 0 on each.", field="outputs")
    _epoch(tick.epoch)
    _number("tick number", tick.number)
    shares = (tick.candidate_ppm, *tick.others_ppm, tick.aside_ppm)
    if not all(0 <= share <= WHOLE_PPM for share in shares) or sum(shares) > WHOLE_PPM:
        raise errors.Invalid(
            "A tick's shares lie within 0 and 1,000,000 ppm, also together.", field="candidate_ppm"
        )
    if not len(tick.others) == len(tick.others_ppm) <= OTHERS_MAX:
        raise errors.Invalid("A tick has one share for each of its further versions.", field="others_ppm")
    for side in (tick.candidate, tick.stable, *tick.others):
        for name in side.__struct_fields__:
            if not 0 <= getattr(side, name) <= COUNT_MAX:
                raise errors.Invalid(f"A tick cannot hold {name}={getattr(side, name)}.", field=name)
        if side.new_callers_failed > side.new_callers:
            raise errors.Invalid(
                "More new callers failed than there were new callers.", field="new_callers_failed"
            )


def _texts(*texts: str) -> None:
    if any(len(text) > TEXT_MAX for text in texts):
        raise errors.LimitExceeded(f"A text of a report has at most {TEXT_MAX:,} characters.")


def _epoch(epoch: Epoch) -> None:
    _number("epoch", epoch.term)
    _number("epoch", epoch.seq)


def _number(what: str, number: int) -> None:
    if not 0 <= number < NUMBER_MAX:
        raise errors.Invalid(f"A {what} of {number} cannot be.", field=what)
