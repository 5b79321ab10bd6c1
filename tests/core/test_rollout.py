"""The state machine of a rollout: every reachable state meets every observation, and the promises hold."""

import contextlib
import itertools
import random
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from modelkeep.core import codec, errors, rollout
from modelkeep.core import movement as rollout_keys
from modelkeep.core.observation import (
    GatewayReport,
    PairCounts,
    RouteState,
    SideCounts,
    Tick,
    VersionPhase,
    VersionReport,
    check_report,
)
from modelkeep.core.plan import PRESETS, Metrics, apart, chosen, dated, read_strategy
from modelkeep.core.rollout import (
    CANARY,
    CONFIRM_S,
    Advanced,
    Change,
    Endpoint,
    Guards,
    Observed,
    OnInconclusive,
    Plan,
    Rollout,
    RolloutState,
    Step,
    Strategy,
    Verdict,
    advance,
    observe,
    pause,
    replay,
    resume,
    route_of,
    step_on,
    supersede,
    take_back,
)
from modelkeep.core.routing import (
    WHOLE_PPM,
    Epoch,
    Loading,
    RoutingTable,
    VersionKey,
    VersionSpec,
    check_table,
)
from modelkeep.core.values import SYSTEM, Digest, ModelName

NOW = datetime(2026, 1, 25, 14, 3, tzinfo=UTC)
CHURN = ModelName("default", "churn")
STABLE, CANDIDATE = (Digest("sha256:" + letter * 64) for letter in "ab")
KEYS = {n: VersionKey(f"version:{n}") for n in (1, 2, 3)}
MIN_S, MAX_S, PREPARE_S = 10.0, 100.0, 60.0
STEPS = tuple(Step(weight_ppm=weight, min_s=MIN_S, max_s=MAX_S) for weight in (100_000, 500_000, WHOLE_PPM))
PLAN = Plan(steps=STEPS, prepare_s=PREPARE_S)
AB_TEST = structs.replace(
    PLAN, strategy=Strategy.AB_TEST, steps=STEPS[:1], ends_at=NOW + timedelta(seconds=3 * MIN_S)
)
SHADOW = structs.replace(PLAN, strategy=Strategy.SHADOW, steps=(), shadow_ppm=500_000, shadow_s=MIN_S)
COPIES_FIRST = structs.replace(PLAN, steps=STEPS[1:], shadow_ppm=500_000, shadow_s=MIN_S, shadow_pairs=1_001)
TICK_NUMBERS = itertools.count(1)


def begun(**changes: Any) -> Rollout:
    """A rollout that has just been started."""
    fields: dict[str, Any] = {
        "id": "rol_1",
        "endpoint": "churn",
        "model": CHURN,
        "stage": "production",
        "stable": 2,
        "stable_digest": STABLE,
        "stable_semver": "1.1.0",
        "candidate": 3,
        "candidate_digest": CANDIDATE,
        "candidate_semver": "1.2.0",
        "plan": PLAN,
        "salt": "5a" * 16,
        "epoch": Epoch(4, 2),
        "table": 7,
        "started_at": NOW,
        "started_by": SYSTEM,
        "reason": "better",
    }
    return Rollout(**(fields | changes))


def tick(weight: int, stable: SideCounts, candidate: SideCounts, **changes: Any) -> Tick:
    """A tick of the rollout under a weight."""
    fields: dict[str, Any] = {
        "endpoint": "churn",
        "rollout": "rol_1",
        "epoch": Epoch(4, 3),
        "number": next(TICK_NUMBERS),
        "started_at": NOW,
        "ended_at": NOW + timedelta(seconds=1),
        "candidate_ppm": weight,
        "stable": stable,
        "candidate": candidate,
    }
    return Tick(**(fields | changes))


def split(weight: int, callers: int) -> tuple[SideCounts, SideCounts]:
    """Callers who all fare well, shared between stable and candidate as the weight says."""
    new = callers * weight // WHOLE_PPM
    return (
        SideCounts(requests=callers - new, callers_arrived=callers - new, new_callers=callers - new),
        SideCounts(requests=new, callers_arrived=new, new_callers=new),
    )


def good(weight: int) -> Tick:
    """Evidence enough for an advance."""
    return tick(weight, *split(weight, 20_000))


def bad(weight: int) -> Tick:
    """Evidence enough for a rollback: many callers fail, all of them on the candidate."""
    stable, candidate = split(weight, 2_000)
    half = candidate.new_callers // 2
    failing = structs.replace(candidate, errors=half, callers_first_error=half, new_callers_failed=half)
    return tick(weight, stable, failing)


def few(weight: int) -> Tick:
    """Too little to say anything."""
    return tick(weight, *split(weight, 10))


def better(weight: int) -> Tick:
    """Many of stable's callers fail, none of the candidate's."""
    stable, candidate = split(weight, 2_000)
    half = stable.new_callers // 2
    return tick(weight, structs.replace(stable, errors=half, callers_first_error=half), candidate)


def paired(**counts: int) -> Tick:
    """Copies that were compared."""
    counts = {"pairs": 1_000, "compared": 900, "disagreements": 30} | counts
    nothing = SideCounts()
    return tick(0, nothing, nothing, pairs=PairCounts(version=KEYS[3], **counts))


PAIRED = ("none", "alike", "worse", "foreign")
KINDS = ("none", "good", "better", "bad", "few", "crash", "schema", "foreign", "idle")


def ticks_of(kind: str, weight: int) -> tuple[Tick, ...]:
    """What arrives, by its kind."""
    idle = SideCounts()
    match kind:
        case "none":
            return ()
        case "good":
            return (good(weight),)
        case "better":
            return (better(weight),)
        case "alike":
            return (paired(only_shadow_failed=20, only_stable_failed=20),)
        case "worse":
            return (paired(only_shadow_failed=60, only_stable_failed=2),)
        case "bad":
            return (bad(weight),)
        case "few":
            return (few(weight),)
        case "crash":
            return (tick(weight, idle, SideCounts(crashes=3)),)
        case "schema":
            return (tick(weight, idle, SideCounts(requests=1, errors=1, schema_violations=1)),)
        case "foreign":
            return (structs.replace(bad(weight), rollout="rol_another"),)
        case "idle":
            return (structs.replace(bad(weight), candidate_ppm=0),)
        case _:
            raise AssertionError(kind)


def seen(of: Rollout, kind: str = "none", **changes: Any) -> Observed:
    """All gateways have applied what is wanted, the candidate is ready, and this has arrived."""
    weight = of.weight_ppm or 100_000
    fields: dict[str, Any] = {
        "applied": of.epoch,
        "phase": VersionPhase.READY,
        "ticks": ticks_of(kind, weight),
    }
    return Observed(**(fields | changes))


def stepping(step: int = 0, since: datetime | None = NOW, **changes: Any) -> Rollout:
    """A rollout in a step whose weight the gateways have confirmed."""
    fields: dict[str, Any] = {
        "state": RolloutState.STEPPING,
        "step": step,
        "weight_ppm": PLAN.steps[step].weight_ppm,
        "step_since": since,
        "epoch": Epoch(4, 3 + step),
    }
    return begun(**(fields | changes))


# ----------------------------------------------------------------------------------- every state, every event

PLANS = {
    "canary": PLAN,
    "by hand": structs.replace(PLAN, automatic=False),
    "taken back when inconclusive": structs.replace(PLAN, on_inconclusive=OnInconclusive.ROLLBACK),
    "immediate": structs.replace(PLAN, strategy=Strategy.IMMEDIATE, steps=STEPS[-1:]),
    "goes on when inconclusive": structs.replace(PLAN, on_inconclusive=OnInconclusive.ADVANCE),
    "blue-green": structs.replace(PLAN, strategy=Strategy.BLUE_GREEN, steps=STEPS[-1:], preview_s=MIN_S),
    "blue-green by hand": structs.replace(
        PLAN, strategy=Strategy.BLUE_GREEN, steps=STEPS[-1:], preview_s=MIN_S, automatic=False
    ),
    "rolling": structs.replace(PLAN, strategy=Strategy.ROLLING),
    "shadow": SHADOW,
    "copies before steps": COPIES_FIRST,
    "a/b test": AB_TEST,
    "a/b test, winner promoted": structs.replace(AB_TEST, promote_winner=True),
}


def key(of: Rollout, age_s: float, at: datetime) -> tuple[Any, ...]:
    """What distinguishes a state from another; counts only as far as they change what comes next."""
    waited = (
        "unconfirmed"
        if of.step_since is None
        else "long"
        if age_s > MAX_S
        else "some"
        if age_s >= MIN_S
        else "new"
    )
    verdict = of.judgement.verdict if of.judgement is not None else None
    enough = rollout.judge(of).verdict if of.state is RolloutState.STEPPING else None
    some = (
        of.plan.on_inconclusive is OnInconclusive.ADVANCE
        and of.candidate_counts.requests > of.requests_before
    )
    if of.plan.strategy is Strategy.AB_TEST:
        won = rollout.report(of).winner
        waited = f"{waited}, {'over' if at >= AB_TEST.ends_at else 'under way'}, {won}"
    if of.state is RolloutState.SHADOWING:
        enough_pairs = of.pairs is not None and of.pairs.pairs >= of.plan.shadow_pairs
        waited = f"{waited}, {rollout.judge(of).verdict}, {of.pairs is not None}, {enough_pairs}"
    return (of.state, of.step, of.paused is not None, of.held is not None, waited, verdict, enough, some)


def events(of: Rollout) -> Iterator[tuple[Observed, float]]:
    """Every kind of observation, after every kind of wait."""
    applied = (None, Epoch(0, 0), of.epoch, Epoch(of.epoch.term + 1, 0))
    phases = (None, VersionPhase.STARTING, VersionPhase.READY, VersionPhase.FAILED)
    kinds = PAIRED if of.state is RolloutState.SHADOWING else KINDS
    if of.plan.strategy is Strategy.SHADOW:
        kinds = PAIRED
    for epoch, phase, kind, wait_s in itertools.product(applied, phases, kinds, (0.0, MIN_S, MAX_S + 1)):
        if epoch is None and phase is not None:
            continue  # who does not answer says nothing of a phase
        if phase is VersionPhase.READY or kind in ("none", "good", "bad", "alike", "worse"):
            yield seen(of, kind, applied=epoch, phase=phase), wait_s
    for epoch in (of.epoch, Epoch(of.epoch.term + 1, 0), Epoch(of.epoch.term + 3, 0)):
        yield Observed(rolled_back="lease lost", rolled_back_epoch=epoch), 0.0


@cache
def reachable(name: str) -> tuple[tuple[Rollout, datetime], ...]:
    """One rollout for each state that can be reached with a plan, with the time it was reached at."""
    first = begun(plan=PLANS[name])
    queue = deque([(first, NOW)])
    known = {key(first, 0.0, NOW)}
    found: list[tuple[Rollout, datetime]] = []
    while queue:
        of, at = queue.popleft()
        found.append((of, at))
        after: list[tuple[Rollout, datetime]] = []
        for observed, wait_s in events(of):
            now = at + timedelta(seconds=wait_s)
            after.append((advance(of, observed, now).rollout, now))
        if not of.state.finished and of.state is not RolloutState.ROLLING_BACK:
            after.append((pause(of, "lunch"), at))
            after.append((take_back(of, "no", at).rollout, at))
            after.append((supersede(of, "1.3.0", at).rollout, at))
        if of.paused is not None:
            after.append((resume(of), at))
        with contextlib.suppress(errors.RolloutFinished, errors.GateFailed, errors.Conflict):
            after.append((step_on(of, seen(of), "go on", at).rollout, at))
        for one, now in after:
            age_s = (now - one.step_since).total_seconds() if one.step_since else 0.0
            if (mark := key(one, age_s, now)) not in known:
                known.add(mark)
                queue.append((one, now))
    return tuple(found)


def check_transition(of: Rollout, observed: Observed, now: datetime, done: Advanced) -> None:
    """What must hold from any state to the next."""
    new = done.rollout
    assert advance(of, observed, now) == done, "the same again gives the same"
    assert new.epoch >= of.epoch, "epochs only rise"
    if of.state.finished:
        assert new == of, "what is finished stays as it is"
        return
    assert (new.weight_ppm > 0) == (new.state in (RolloutState.STEPPING, RolloutState.SUCCEEDED))
    if of.plan.strategy is Strategy.AB_TEST and new.state is RolloutState.SUCCEEDED:
        assert new.report is not None
        assert new.report.winner == "candidate"
        assert of.plan.promote_winner
        assert observed.applied is not None
        assert observed.applied >= of.epoch
    elif new.weight_ppm > of.weight_ppm:
        assert of.paused is None, "a pause holds"
        assert observed.applied is not None, "silence never raises"
        assert observed.applied >= of.epoch, "nor does a gateway that lags"
        assert observed.rolled_back is None
        if of.state is RolloutState.PREPARING:
            assert observed.phase is VersionPhase.READY
            assert new.step == 0
            assert of.plan.strategy is not Strategy.BLUE_GREEN, "seen before it has traffic"
            assert not of.plan.shadow_ppm, "compared before it has traffic"
        elif of.state is RolloutState.SHADOWING:
            assert observed.phase is VersionPhase.READY
            assert of.plan.automatic
            assert of.step_since is not None
            assert (now - of.step_since).total_seconds() >= of.plan.shadow_s
            assert new.pairs is not None
            assert new.pairs.pairs >= of.plan.shadow_pairs
            assert new.judgement is not None
            assert new.judgement.verdict is not Verdict.ROLLBACK
            assert (new.state, new.step) == (RolloutState.STEPPING, 0)
        elif of.state is RolloutState.PREVIEWING:
            assert observed.phase is VersionPhase.READY
            assert of.plan.automatic
            assert of.step_since is not None
            assert (now - of.step_since).total_seconds() >= of.plan.preview_s
            assert new.step == 0
        else:
            assert new.judgement is not None
            assert of.plan.automatic
            assert of.step_since is not None
            lasted_s = (now - of.step_since).total_seconds()
            assert lasted_s >= of.current.min_s
            assert new.step == of.step + 1
            if new.judgement.verdict is not Verdict.ADVANCE:
                assert of.plan.on_inconclusive is OnInconclusive.ADVANCE, "no proof, no raise"
                assert lasted_s >= of.current.max_s
                assert new.candidate_counts.requests > of.requests_before, "nor without any request"
            if of.plan.strategy is Strategy.ROLLING:
                assert observed.phase is VersionPhase.READY
        assert new.epoch > of.epoch
    if of.weight_ppm > 0 and new.weight_ppm == 0:
        if of.plan.strategy is Strategy.AB_TEST and new.state is RolloutState.CONCLUDED:
            assert new.report is not None
            assert of.plan.ends_at is not None
            assert now >= of.plan.ends_at
        else:
            assert new.state is RolloutState.ROLLING_BACK, "taken back, and the gateways are waited for"
        assert new.epoch.term > of.epoch.term, "nothing older can put it back"
        assert new.outcome
    if new.state is RolloutState.SUCCEEDED and of.stable is not None:
        assert of.last
        assert of.step_since is not None
    if of.state is not new.state:
        assert done.change is not None, "people are told"
    if (of.state, of.weight_ppm, of.epoch) != (new.state, new.weight_ppm, new.epoch):
        assert done.change is not None, "gateways are told"


@pytest.mark.req("S3", "S7", "S8")
@pytest.mark.parametrize("name", PLANS)
def test_every_observation_in_every_state_keeps_the_promises(name: str) -> None:
    """Exhaustively: no raise without proof or without the gateways, epochs only rise, alarms always win."""
    count = 0
    found: set[RolloutState] = set()
    for of, at in reachable(name):
        found.add(of.state)
        for observed, wait_s in events(of):
            now = at + timedelta(seconds=wait_s)
            done = advance(of, observed, now)
            check_transition(of, observed, now, done)
            count += 1
            alarmed = of.state is RolloutState.STEPPING and (
                observed.phase is VersionPhase.FAILED
                or any(t.candidate.crashes or t.candidate.schema_violations for t in observed.ticks)
                or (
                    of.plan.strategy is not Strategy.ROLLING
                    and any(rollout.counts_for(of, t) and t.candidate.errors >= 100 for t in observed.ticks)
                )
            )
            if alarmed:
                assert done.rollout.state is RolloutState.ROLLING_BACK, "an alarm wins over everything"
    shown = {RolloutState.PREVIEWING} if "blue" in name else set()
    ends = {RolloutState.CONCLUDED} if "a/b" in name else set()
    if name == "copies before steps":
        shown = {RolloutState.SHADOWING}
    missing = {RolloutState.PREVIEWING, RolloutState.SHADOWING, RolloutState.CONCLUDED}
    if name == "a/b test":
        missing |= {RolloutState.SUCCEEDED}
    if name == "shadow":
        shown = {RolloutState.SHADOWING, RolloutState.CONCLUDED}
        missing |= {RolloutState.STEPPING, RolloutState.SUCCEEDED}
        missing |= {RolloutState.ROLLING_BACK, RolloutState.ROLLED_BACK}
    assert found == set(RolloutState) - missing | shown | ends
    assert count > 1_000


@pytest.mark.req("S8")
@pytest.mark.parametrize("name", PLANS)
def test_a_rollback_is_possible_in_every_state_with_weight(name: str) -> None:
    """Whatever was seen, one word takes the candidate back, needs no gateway, and raises the term."""
    for of, at in reachable(name):
        if of.state.finished:
            with pytest.raises(errors.RolloutFinished):
                take_back(of, "no", at)
            continue
        done = take_back(of, "no", at)
        assert done.rollout.weight_ppm == 0
        if of.state is RolloutState.STEPPING:
            assert done.rollout.state is RolloutState.ROLLING_BACK
            assert done.change is Change.ROLLING_BACK
        if of.weight_ppm == 0 and of.state is not RolloutState.ROLLING_BACK:
            assert done.rollout.state is RolloutState.CANCELLED
        if of.state is not RolloutState.ROLLING_BACK:
            assert done.rollout.epoch == Epoch(of.epoch.term + 1, 0)


@pytest.mark.req("S3")
@pytest.mark.parametrize("name", PLANS)
def test_without_further_faults_every_rollout_ends(name: str) -> None:
    """From every reachable state, gateways that answer and a healthy candidate lead to an end in few looks; a
    rollback ends even when nobody answers."""
    for of, at in reachable(name):
        current, now = of, at
        for _ in range(4 * len(PLAN.steps) + 4):
            if current.state.finished:
                break
            if current.paused is not None:
                current = resume(current)
            now += timedelta(seconds=MIN_S)
            kind = "alike" if current.state is RolloutState.SHADOWING else "good"
            current = advance(current, seen(current, kind), now).rollout
            by_hand = current.state is RolloutState.PREVIEWING or (
                current.state is RolloutState.STEPPING and not current.last
            )
            if by_hand and not current.plan.automatic:
                assert current.step_since is None or current.held or current.step_since == now
                if current.step_since is not None:
                    current = step_on(current, seen(current), "go on", now).rollout
        assert current.state.finished, (of, current)
        if not of.state.finished:
            gone = take_back(of, "no", at).rollout
            end = advance(gone, Observed(), at + timedelta(seconds=CONFIRM_S)).rollout
            assert end.state in (RolloutState.ROLLED_BACK, RolloutState.CANCELLED)


@pytest.mark.req("S3")
def test_the_routes_of_every_state_could_be_obeyed() -> None:
    """Shares are whole and valid, the candidate stands in the route only while it may have traffic, and no
    finished rollout leaves it there."""
    endpoint = Endpoint(
        id="end_1",
        name="churn",
        model=CHURN,
        stage="production",
        stable=2,
        previous=1,
        epoch=Epoch(4, 1),
        rollout="rol_1",
        load=Loading.ON_DEMAND,
        created_at=NOW,
        created_by="ann",
    )
    specs = tuple(
        VersionSpec(key=key, model="churn", number=n, semver=f"1.{n}.0", digest=CANDIDATE, files=())
        for n, key in KEYS.items()
    )
    for name in PLANS:
        for of, _ in reachable(name):
            route = route_of(endpoint, of, KEYS)
            assert route is not None
            check_table(RoutingTable(number=1, routes=(route,), versions=specs))
            assert sum(arm.weight_ppm for arm in route.arms) == WHOLE_PPM
            assert route.stable == KEYS[2]
            assert route.previous == KEYS[1]
            assert route.epoch == of.epoch
            live = not of.state.finished and of.state is not RolloutState.ROLLING_BACK
            shadowing = of.state is RolloutState.SHADOWING
            assert (route.shadow, route.shadow_ppm) == ((KEYS[3], 500_000) if shadowing else (None, 0))
            blue_green = of.plan.strategy is Strategy.BLUE_GREEN
            assert route.preview == (live and blue_green and of.state is not RolloutState.PREPARING)
            assert (route.candidate == KEYS[3]) == live
            assert route.may_sleep == (not live)
            assert route.candidate_ppm == (of.weight_ppm if live else 0)
            assert (route.salt == of.salt) == live


# -------------------------------------------------------------------------------------------------- preparing


def test_preparing_ends_in_the_first_step_when_the_gateways_are_ready() -> None:
    """The weight rises from nothing only when the candidate is loaded and the gateways have the route."""
    of = begun()
    for observed in (
        seen(of, applied=Epoch(4, 1)),
        seen(of, phase=VersionPhase.STARTING),
        seen(of, phase=None),
        Observed(),
    ):
        assert advance(of, observed, NOW).rollout.weight_ppm == 0
    done = advance(of, seen(of), NOW)
    assert done.change is Change.STEPPED
    assert done.rollout.weight_ppm == 100_000
    assert done.rollout.epoch == Epoch(4, 3)
    assert done.rollout.step_since is None, "the step's clock waits for the gateways"


def test_a_version_that_cannot_be_loaded_fails_without_a_rollback() -> None:
    """It never had traffic, so it is no version that was taken back; the term stays."""
    of = begun()
    done = advance(of, seen(of, phase=VersionPhase.FAILED, error="no such operator"), NOW)
    assert done.rollout.state is RolloutState.FAILED
    assert "no such operator" in done.why
    assert done.rollout.epoch == Epoch(4, 3)


def test_the_time_to_prepare_runs_only_while_a_gateway_answers() -> None:
    """An endpoint may be made before any gateway was started; it is not given up for that."""
    of = begun()
    held = advance(of, Observed(), NOW + timedelta(days=2))
    assert held.change is Change.HELD
    assert "no gateway answers" in held.why
    later = NOW + timedelta(days=3)
    loading = seen(of, applied=Epoch(4, 1), phase=VersionPhase.STARTING)
    begun_to_load = advance(held.rollout, loading, later).rollout
    assert begun_to_load.state is RolloutState.PREPARING
    assert begun_to_load.held is None
    late = advance(begun_to_load, loading, later + timedelta(seconds=PREPARE_S + 1))
    assert late.rollout.state is RolloutState.FAILED
    assert "not ready within 60 s: it is starting" in late.why


def test_a_pause_while_preparing_keeps_the_weight_at_nothing() -> None:
    """Who pauses before the first step means it."""
    of = pause(begun(), "lunch (ann)")
    held = advance(of, seen(of), NOW)
    assert held.rollout.weight_ppm == 0
    assert held.change is None, "the pause itself was the news"
    assert advance(resume(held.rollout), seen(of), NOW).rollout.weight_ppm == 100_000


@pytest.mark.req("S9")
def test_the_first_version_of_an_endpoint_serves_when_it_is_loaded() -> None:
    """There is no stable version to compare with and nobody to take the traffic from. It may not sleep before
    it was seen to work, whatever the endpoint says."""
    of = begun(stable=None, stable_digest=None, stable_semver=None)
    endpoint = Endpoint(
        id="end_1",
        name="churn",
        model=CHURN,
        stage="production",
        rollout=of.id,
        load=Loading.ON_DEMAND,
        created_at=NOW,
        created_by="ann",
    )
    route = route_of(endpoint, of, KEYS)
    assert route is not None
    assert (route.stable, route.candidate, route.may_sleep) == (KEYS[3], None, False)
    settled = route_of(structs.replace(endpoint, stable=3, rollout=None), None, KEYS)
    assert settled is not None
    assert settled.may_sleep
    done = advance(of, seen(of), NOW)
    assert done.rollout.state is RolloutState.SUCCEEDED
    failed = advance(of, seen(of, phase=VersionPhase.FAILED, error="bad bytes"), NOW).rollout
    assert route_of(endpoint, failed, KEYS) is None


# --------------------------------------------------------------------------------------------------- stepping


@pytest.mark.req("S3")
def test_a_steps_time_begins_when_the_gateways_confirm_its_weight() -> None:
    """Not when it was decided, and anew when a gateway falls behind."""
    of = stepping(since=None)
    unconfirmed = advance(of, seen(of, "good", applied=Epoch(4, 2)), NOW + timedelta(hours=1)).rollout
    assert unconfirmed.step_since is None
    confirmed_at = NOW + timedelta(hours=2)
    confirmed = advance(unconfirmed, seen(of), confirmed_at).rollout
    assert confirmed.step_since == confirmed_at
    early = advance(confirmed, seen(of), confirmed_at + timedelta(seconds=MIN_S - 0.001)).rollout
    assert early.step == 0
    assert advance(early, seen(of), confirmed_at + timedelta(seconds=MIN_S)).rollout.step == 1
    restarted = advance(confirmed, seen(of, applied=Epoch(0, 0)), confirmed_at + timedelta(seconds=5))
    assert restarted.rollout.step_since is None


@pytest.mark.req("S7")
def test_ticks_are_taken_in_while_paused_and_judged_by_their_own_weight() -> None:
    """A late tick of the former step counts with the former weight, whatever the present one is."""
    of = pause(stepping(step=1), "lunch")
    late = bad(100_000)
    after = advance(of, seen(of, ticks=(late,)), NOW)
    assert after.rollout.state is RolloutState.ROLLING_BACK, "a rollback verdict wins over a pause"
    assert after.rollout.ticks == 1
    as_present = advance(of, seen(of, ticks=(structs.replace(late, candidate_ppm=500_000),)), NOW).rollout
    assert as_present.evidence != after.rollout.evidence


def test_what_comes_after_the_decision_is_no_evidence() -> None:
    """A rollout on its way back takes no more ticks in, so that its explanation stays what it was."""
    of = take_back(stepping(), "no", NOW).rollout
    assert advance(of, seen(of, "bad", applied=None), NOW).rollout == of


@pytest.mark.req("S7")
def test_inconclusive_evidence_is_held_or_taken_back_as_the_plan_says() -> None:
    """Nothing advances on it, however long it lasts."""
    for policy, state in (
        (OnInconclusive.HOLD, RolloutState.STEPPING),
        (OnInconclusive.ROLLBACK, RolloutState.ROLLING_BACK),
    ):
        of = stepping(plan=structs.replace(PLAN, on_inconclusive=policy))
        before = advance(of, seen(of, "few"), NOW + timedelta(seconds=MAX_S - 1)).rollout
        assert before.state is RolloutState.STEPPING
        after = advance(before, seen(of), NOW + timedelta(seconds=MAX_S))
        assert after.rollout.state is state
        assert after.rollout.weight_ppm <= of.weight_ppm
    paused = pause(stepping(plan=structs.replace(PLAN, on_inconclusive=OnInconclusive.ROLLBACK)), "lunch")
    assert advance(paused, seen(paused), NOW + timedelta(days=1)).rollout.state is RolloutState.STEPPING


def test_guards_take_back_at_their_number_and_not_before() -> None:
    """Crashes and broken schemas are facts, outside the statistics."""
    plan = structs.replace(PLAN, guards=Guards(crashes=2, schema_violations=3))
    for counts, state in (
        (SideCounts(crashes=1, schema_violations=2), RolloutState.STEPPING),
        (SideCounts(crashes=2), RolloutState.ROLLING_BACK),
        (SideCounts(schema_violations=3), RolloutState.ROLLING_BACK),
    ):
        of = stepping(plan=plan)
        done = advance(of, seen(of, ticks=(tick(100_000, SideCounts(), counts),)), NOW)
        assert done.rollout.state is state
    broken = stepping()
    gone = advance(broken, seen(broken, phase=VersionPhase.FAILED, error="killed by signal 11"), NOW)
    assert gone.rollout.judgement is not None
    assert gone.rollout.judgement.blamed == "guard"
    assert "killed by signal 11" in gone.why


@pytest.mark.req("S7", "S8")
def test_a_candidate_that_breaks_with_all_of_the_traffic_is_taken_back() -> None:
    """Nobody is left to compare with, so an absolute limit counts; below it, and before, it does not."""
    last = stepping(step=2)
    early = tick(WHOLE_PPM, SideCounts(), SideCounts(requests=400, new_callers=400, new_callers_failed=80))
    assert advance(last, seen(last, ticks=(early,)), NOW).rollout.state is RolloutState.STEPPING
    broken = structs.replace(early, candidate=structs.replace(early.candidate, new_callers_failed=160))
    gone = advance(last, seen(last, ticks=(broken,)), NOW).rollout
    assert gone.state is RolloutState.ROLLING_BACK
    assert "25% or more of first requests fail" in (gone.outcome or "")
    outage = SideCounts(requests=400, new_callers=400, new_callers_failed=200, callers_first_error=200)
    shared = tick(500_000, outage, outage)
    half = stepping(step=1)
    after = advance(half, seen(half, ticks=(shared,)), NOW).rollout
    assert after.state is RolloutState.STEPPING, "a fault of both is no fault of the candidate"


def test_a_stable_version_that_answers_nobody_for_a_while_does_not_tip_the_shares() -> None:
    """Callers are shared out when they come: that stable is slow to answer says nothing about the split."""
    half = stepping(step=1)
    stalled = tick(
        500_000,
        SideCounts(callers_arrived=60),
        SideCounts(requests=60, callers_arrived=60, new_callers=60),
    )
    after = advance(half, seen(half, ticks=(stalled,)), NOW).rollout
    assert after.state is RolloutState.STEPPING
    unfair = structs.replace(stalled, stable=SideCounts(callers_arrived=6))
    gone = advance(half, seen(half, ticks=(unfair,)), NOW).rollout
    assert gone.state is RolloutState.ROLLING_BACK
    assert "60 of 66 new callers were given to the candidate" in (gone.outcome or "")


def test_only_the_beginning_of_a_hold_is_news() -> None:
    """The counts in its reason change with every tick; people are told once."""
    of = stepping()
    late = NOW + timedelta(seconds=MIN_S)
    first = advance(of, seen(of, "few"), late)
    assert first.change is Change.HELD
    second = advance(first.rollout, seen(of, "few"), late)
    assert second.change is None
    assert second.rollout.held != first.rollout.held


@pytest.mark.req("S3")
def test_an_immediate_rollout_needs_no_proof_but_obeys_alarms() -> None:
    """All traffic at once, and back when something is certainly wrong."""
    plan = PLANS["immediate"]
    of = advance(begun(plan=plan), seen(begun()), NOW).rollout
    assert of.weight_ppm == WHOLE_PPM
    confirmed = advance(of, seen(of), NOW).rollout
    assert (
        advance(confirmed, seen(of), NOW + timedelta(seconds=MIN_S)).rollout.state is RolloutState.SUCCEEDED
    )
    assert advance(confirmed, Observed(), NOW + timedelta(days=1)).rollout.state is RolloutState.STEPPING
    assert advance(confirmed, seen(of, "crash"), NOW).rollout.state is RolloutState.ROLLING_BACK


# --------------------------------------------------------------------------------------------- people's words


@pytest.mark.req("S3")
def test_a_person_may_step_on_without_proof_and_not_against_one() -> None:
    """No proof is needed; a rollback verdict, a guard, or gateways that lag are not stepped over."""
    of = stepping()
    done = step_on(of, seen(of), "advanced by ann: known good", NOW)
    assert (done.rollout.step, done.rollout.weight_ppm) == (1, 500_000)
    assert done.rollout.step_since is None
    with pytest.raises(errors.Conflict, match="not applied"):
        step_on(done.rollout, seen(of), "again", NOW)
    for kind in ("bad", "crash", "schema"):
        worse = rollout.take_in(of, ticks_of(kind, 100_000))
        with pytest.raises(errors.GateFailed, match="taken back"):
            step_on(worse, seen(of), "go on", NOW)
    with pytest.raises(errors.GateFailed):
        step_on(of, seen(of, phase=VersionPhase.FAILED), "go on", NOW)
    for state in set(RolloutState) - {
        RolloutState.SHADOWING,
        RolloutState.PREVIEWING,
        RolloutState.STEPPING,
    }:
        with pytest.raises(errors.RolloutFinished):
            step_on(begun(state=state), seen(of), "go on", NOW)
    last = stepping(step=2)
    assert step_on(last, seen(last), "done", NOW).rollout.state is RolloutState.SUCCEEDED


def test_a_pause_outlives_a_step_taken_by_hand() -> None:
    """Pause and advance together is how a person drives a rollout alone."""
    of = pause(stepping(), "by hand (ann)")
    stepped = step_on(of, seen(of), "go on", NOW).rollout
    assert stepped.paused == "by hand (ann)"
    on = advance(stepped, seen(stepped), NOW).rollout
    assert advance(on, seen(on, "good"), NOW + timedelta(days=1)).rollout.step == 1
    with pytest.raises(errors.Conflict):
        resume(stepping())
    with pytest.raises(errors.RolloutFinished):
        pause(take_back(of, "no", NOW).rollout, "too late")


# ------------------------------------------------------------------------------------------------------- back


@pytest.mark.req("S8")
def test_a_gateways_own_rollback_is_followed_with_its_epoch() -> None:
    """Whoever is ahead is followed: our epoch is never the older one, and the others are waited for."""
    of = stepping()
    done = advance(of, Observed(rolled_back="lease lost", rolled_back_epoch=Epoch(6, 0)), NOW)
    assert done.rollout.state is RolloutState.ROLLING_BACK
    assert done.rollout.epoch == Epoch(6, 0)
    assert "lease lost" in (done.rollout.outcome or "")
    again = advance(done.rollout, Observed(rolled_back="twice", rolled_back_epoch=Epoch(6, 0)), NOW)
    assert again.rollout == done.rollout
    assert again.change is None
    ahead = advance(done.rollout, Observed(rolled_back="twice", rolled_back_epoch=Epoch(7, 0)), NOW)
    assert ahead.rollout.epoch == Epoch(7, 0)
    assert ahead.change is Change.ROLLING_BACK, "the table has to tell the others"
    early = advance(begun(), Observed(rolled_back="by hand", rolled_back_epoch=Epoch(5, 0)), NOW)
    assert early.rollout.state is RolloutState.CANCELLED


@pytest.mark.req("S8")
def test_a_rollback_ends_when_the_gateways_have_confirmed_it() -> None:
    """Until then it is under way; while nobody answers, for a bounded time."""
    of = take_back(stepping(), "no", NOW).rollout
    assert advance(of, seen(of, applied=Epoch(4, 3)), NOW + timedelta(days=1)).rollout == of
    done = advance(of, seen(of), NOW)
    assert done.change is Change.ROLLED_BACK
    assert done.rollout.outcome == "no"
    assert advance(of, Observed(), NOW + timedelta(seconds=CONFIRM_S - 1)).rollout == of
    alone = advance(of, Observed(), NOW + timedelta(seconds=CONFIRM_S)).rollout
    assert alone.state is RolloutState.ROLLED_BACK
    assert "no gateway answered" in (alone.outcome or "")


# ----------------------------------------------------------------------------------------------- what is seen


def report(name: str = "g1", **changes: Any) -> GatewayReport:
    """What a gateway says while it does as it is told by `stepping()`."""
    fields: dict[str, Any] = {
        "gateway": name,
        "table": 9,
        "url": "http://127.0.0.1:5001",
        "sent_at": NOW,
        "routes": (
            RouteState(
                endpoint="churn",
                epoch=Epoch(4, 3),
                stable=KEYS[2],
                candidate=KEYS[3],
                candidate_ppm=100_000,
                previous=None,
            ),
        ),
        "versions": (VersionReport(key=KEYS[3], phase=VersionPhase.READY),),
    }
    return GatewayReport(**(fields | changes))


def test_the_slowest_and_the_worst_gateway_counts() -> None:
    """One that lags, or that does not know the version, holds all."""
    of = stepping()
    assert observe(of, KEYS[3], [], ()).applied is None
    assert observe(of, KEYS[3], [report(), report("g2")], ()) == seen(of)
    failed = report(
        "g2", versions=(VersionReport(key=KEYS[3], phase=VersionPhase.FAILED, error="no\x1b[2J"),)
    )
    assert observe(of, KEYS[3], [report(), failed], ()).phase is VersionPhase.FAILED
    assert observe(of, KEYS[3], [report(), failed], ()).error == "no\\x1b[2J", (
        "a model does not steer terminals"
    )
    assert observe(of, KEYS[3], [report(), report("g2", versions=())], ()).phase is None
    assert observe(of, KEYS[3], [report(), report("g2", routes=())], ()).applied == Epoch(0, 0)


def test_a_gateway_that_came_back_with_stable_alone_has_not_confirmed() -> None:
    """After a kill it serves the same epoch without the candidate, until it is told again."""
    of = stepping()
    alone = structs.replace(report().routes[0], candidate_ppm=0)
    assert observe(of, KEYS[3], [report(routes=(alone,))], ()).applied == Epoch(0, 0)


def test_what_a_gateway_said_before_it_knew_of_the_rollout_does_not_count() -> None:
    """The version may have failed there in an earlier rollout."""
    of = begun()
    old = report(table=6, versions=(VersionReport(key=KEYS[3], phase=VersionPhase.FAILED, error="old"),))
    assert observe(of, KEYS[3], [old], ()).phase is None
    assert advance(of, observe(of, KEYS[3], [old], ()), NOW).rollout.state is RolloutState.PREPARING


def test_a_gateway_without_the_route_does_not_hold_up_a_rollback() -> None:
    """Who has no route sends nobody to the candidate."""
    of = take_back(stepping(), "no", NOW).rollout
    assert (
        advance(of, observe(of, KEYS[3], [report(routes=())], ()), NOW).rollout.state
        is RolloutState.ROLLED_BACK
    )


SIDES = st.builds(
    lambda n, k, e, s: SideCounts(
        requests=n,
        callers_arrived=n,
        new_callers=n,
        new_callers_failed=min(k, n),
        errors=e,
        callers_first_error=e,
        callers_first_slow=s,
    ),
    st.integers(0, 500),
    st.integers(0, 20),
    st.integers(0, 20),
    st.integers(0, 50),
)


@pytest.mark.req("S7")
@given(st.lists(st.tuples(SIDES, SIDES, st.sampled_from([100_000, 500_000, WHOLE_PPM])), max_size=30))
def test_replaying_the_ticks_gives_the_same_bits_through_json(
    ticks: list[tuple[SideCounts, SideCounts, int]],
) -> None:
    """Whatever was counted, in however many looks: the explanation agrees to the last bit."""
    stored = [tick(weight, stable, candidate) for stable, candidate, weight in ticks]
    plan = structs.replace(PLAN, alpha=1e-9)
    of = stepping(plan=plan)
    for one in stored:
        fresh = codec.decode(codec.encode(of), Rollout)
        assert fresh == of
        of = rollout.take_in(fresh, (codec.decode(codec.encode(one), Tick),))
    assert of.ticks == len(stored)
    more = [*stored, bad(100_000)]
    assert replay(of, iter(codec.decode(codec.encode(one), Tick) for one in more)) == of.evidence
    assert rollout.take_in(stepping(plan=plan), stored).evidence == of.evidence


def test_error_texts_of_the_candidate_are_kept_few_and_fit_to_show() -> None:
    """A person reads three of them; a model cannot write control characters on a terminal."""
    texts = ("division by zero", "division by zero", "bad \x1b[31m value", "x" * 5_000, "a fourth")
    of = rollout.take_in(stepping(), (tick(100_000, SideCounts(), SideCounts(), errors_seen=texts),))
    assert of.notes[:2] == ("division by zero", "bad \\x1b[31m value")
    assert len(of.notes) == 3
    assert len(of.notes[2]) == 300


# ---------------------------------------------------------------------------------------------- what comes in


@pytest.mark.hostile("impossible-moves")
@pytest.mark.parametrize(
    "changes",
    [
        {"steps": ()},
        {"steps": (Step(weight_ppm=500_000), Step(weight_ppm=100_000))},
        {"steps": (Step(weight_ppm=0), Step(weight_ppm=WHOLE_PPM))},
        {"steps": (Step(weight_ppm=500_000),)},
        {"steps": (Step(weight_ppm=WHOLE_PPM, min_s=10, max_s=5),)},
        {"steps": (Step(weight_ppm=WHOLE_PPM, min_s=float("nan")),)},
        {"strategy": Strategy.IMMEDIATE},
        {"strategy": Strategy.BLUE_GREEN},
        {"strategy": Strategy.ROLLING, "on_inconclusive": OnInconclusive.ADVANCE},
        {"strategy": Strategy.ROLLING, "preview_s": 60.0},
        {"preview_s": 60.0},
        {"ends_at": NOW},
        {"shadow_ppm": 1},
        {"strategy": Strategy.SHADOW, "shadow_ppm": WHOLE_PPM, "shadow_s": 60.0},
        {"strategy": Strategy.SHADOW, "steps": (), "shadow_s": 60.0},
        {"strategy": Strategy.SHADOW, "steps": (), "shadow_ppm": WHOLE_PPM},
        {"promote_winner": True},
        {"strategy": Strategy.AB_TEST},
        {"strategy": Strategy.AB_TEST, "steps": (Step(weight_ppm=WHOLE_PPM),)},
        {"strategy": Strategy.AB_TEST, "steps": STEPS[:1], "automatic": False},
        {"strategy": Strategy.AB_TEST, "steps": STEPS[:1], "ends_at": datetime(2027, 1, 1)},  # noqa: DTZ001
        {"schema": "modelkeep.rollout/v2"},
        {"metrics": Metrics(errors=0.9, latency=0.2)},
        {"metrics": Metrics(errors=0.0)},
        {"metrics": Metrics(latency=-0.1)},
        {"metrics": Metrics(latency=float("nan"))},
        {"alpha": 0.0},
        {"alpha": float("nan")},
        {"beta": 0.6},
        {"margin": 0.9},
        {"pass_odds": 1.0},
        {"pass_rate": 0.9},
        {"fail_rate": 0.01},
        {"fail_rate": 1.0},
        {"prepare_s": 0.0},
        {"guards": Guards(crashes=0)},
    ],
)
def test_a_plan_that_could_not_be_carried_out_is_refused(changes: dict[str, Any]) -> None:
    """Each with a sentence that says what may be; the default passes."""
    assert rollout.check_plan(CANARY) == CANARY
    with pytest.raises(errors.InvalidPlan):
        rollout.check_plan(structs.replace(CANARY, **changes))


@pytest.mark.hostile("impossible-moves")
def test_a_plan_is_read_from_yaml_and_nonsense_is_named() -> None:
    """People write plans; a misspelt word must not become a default."""
    text = "steps: [{weight_ppm: 50000, min_s: 60}, {weight_ppm: 1000000}]\nalpha: 0.02\n"
    assert rollout.read_plan(text).steps[0].weight_ppm == 50_000
    for wrong in ("step: []", "steps: 3", "- a", "alpha: [", "steps: [{weight_ppm: 1.5}]", "strategy: []"):
        with pytest.raises(errors.InvalidPlan):
            rollout.read_plan(wrong)
    for wrong, named in (
        ("metrics: {error: 0.5}", "errors, latency, shares"),
        ("strategy: red_green", "blue_green"),
        ("schema: modelkeep.rollout/v9", "modelkeep.rollout/v1"),
        ("steps: [{weight_ppm: 500000}, {weight_ppm: 400000}, {weight_ppm: 1000000}]", "rise"),
    ):
        with pytest.raises(errors.InvalidPlan, match=named):
            rollout.read_plan(wrong)


@pytest.mark.parametrize("strategy", Strategy)
def test_a_strategy_brings_its_own_plan_and_what_is_written_goes_first(strategy: Strategy) -> None:
    """Whoever names only the strategy gets a plan that can be carried out; steps that are written stay."""
    assert rollout.read_plan(f"schema: modelkeep.rollout/v1\nstrategy: {strategy}\n") == PRESETS[strategy]
    assert rollout.check_plan(PRESETS[strategy]).strategy is strategy
    if strategy is Strategy.SHADOW:
        return
    weight = 300_000 if strategy is Strategy.AB_TEST else WHOLE_PPM
    own = rollout.read_plan(f"strategy: {strategy}\nsteps: [{{weight_ppm: {weight}, min_s: 7}}]\n")
    assert own == structs.replace(PRESETS[strategy], steps=(Step(weight_ppm=weight, min_s=7.0),))
    assert chosen(None, strategy) == PRESETS[strategy]
    assert chosen(own, strategy) == own
    assert read_strategy(strategy.replace("_", "-").upper()) is strategy
    other = next(one for one in Strategy if one is not strategy)
    with pytest.raises(errors.InvalidPlan):
        chosen(own, other)
    with pytest.raises(errors.InvalidPlan):
        read_strategy("chess")


def test_a_plan_without_a_metric_is_not_judged_by_it() -> None:
    """What has no share of alpha takes nobody back; the share that is left is the errors' own."""
    only = structs.replace(PLAN, metrics=Metrics(errors=1.0, latency=0.0, shares=0.0))
    stable, candidate = split(100_000, 2_000)
    slow = structs.replace(candidate, slow=200, callers_first_slow=200)
    for plan, verdict in ((PLAN, Verdict.ROLLBACK), (only, Verdict.ADVANCE)):
        of = rollout.take_in(stepping(plan=plan), (tick(100_000, stable, slow), good(100_000)))
        assert rollout.judge(of).verdict is verdict
    of = rollout.take_in(stepping(plan=only), (bad(100_000),))
    assert rollout.judge(of).blamed == "errors"


# --------------------------------------------------------------------------------------- the other strategies


@pytest.mark.req("S3", "S4")
def test_a_blue_green_candidate_is_shown_then_gets_everything_then_bakes() -> None:
    """Loaded, it stands under its preview address with no traffic for as long as the plan says; the time does
    not run while it is not ready; then all of the traffic at once, and success when the bake is over."""
    of = begun(plan=PLANS["blue-green"])
    shown = advance(of, seen(of), NOW).rollout
    assert (shown.state, shown.weight_ppm, shown.epoch) == (RolloutState.PREVIEWING, 0, Epoch(4, 3))
    began = advance(shown, seen(shown), NOW).rollout
    stopped = advance(began, seen(began, phase=VersionPhase.RESTARTING), NOW + timedelta(seconds=5)).rollout
    assert stopped.step_since is None
    again = advance(stopped, seen(stopped), NOW + timedelta(seconds=9)).rollout
    waiting = advance(again, seen(again), NOW + timedelta(seconds=9 + MIN_S / 2)).rollout
    assert waiting.state is RolloutState.PREVIEWING
    switched = advance(waiting, seen(waiting), NOW + timedelta(seconds=9 + MIN_S))
    assert switched.change is Change.STEPPED
    assert (switched.rollout.state, switched.rollout.weight_ppm) == (RolloutState.STEPPING, WHOLE_PPM)
    baking = advance(switched.rollout, seen(switched.rollout), NOW).rollout
    done = advance(baking, seen(baking), NOW + timedelta(seconds=MIN_S))
    assert done.change is Change.SUCCEEDED
    back = take_back(baking, "customers complain", NOW).rollout
    assert (back.state, back.weight_ppm) == (RolloutState.ROLLING_BACK, 0)


@pytest.mark.req("S4")
def test_a_preview_that_fails_costs_nobody_a_request() -> None:
    """It never had traffic: failed, and no version that was taken back."""
    of = advance(begun(plan=PLANS["blue-green"]), seen(begun()), NOW).rollout
    done = advance(of, seen(of, phase=VersionPhase.FAILED, error="out of memory"), NOW)
    assert (done.rollout.state, done.rollout.weight_ppm) == (RolloutState.FAILED, 0)
    assert "out of memory" in done.why


@pytest.mark.req("S4")
def test_a_switch_by_hand_waits_for_a_person() -> None:
    """However long the preview lasts; one word switches, at any time once the gateways have it."""
    of = advance(begun(plan=PLANS["blue-green by hand"]), seen(begun()), NOW).rollout
    with pytest.raises(errors.Conflict):
        step_on(of, seen(of), "go", NOW)
    of = advance(of, seen(of), NOW).rollout
    of = advance(of, seen(of), NOW + timedelta(days=1)).rollout
    assert of.state is RolloutState.PREVIEWING
    assert "rollout advance churn" in (of.held or "")
    assert step_on(of, seen(of), "go", NOW).rollout.weight_ppm == WHOLE_PPM


@pytest.mark.req("S3")
def test_a_rolling_update_goes_by_readiness_and_obeys_guards_alone() -> None:
    """No statistics: failing callers do not stop it, a candidate that is not ready does, a guard ends it."""
    of = stepping(plan=PLANS["rolling"])
    later = NOW + timedelta(seconds=MIN_S)
    held = advance(of, seen(of, phase=VersionPhase.RESTARTING), later).rollout
    assert (held.weight_ppm, held.held) == (100_000, "the candidate is restarting on the gateways")
    assert advance(of, seen(of, "bad"), later).rollout.weight_ppm == 500_000
    assert advance(of, seen(of, "crash"), later).rollout.state is RolloutState.ROLLING_BACK


@pytest.mark.req("S7")
def test_an_inconclusive_step_goes_on_only_with_requests_of_its_own() -> None:
    """A plan may go on without a proof, not without any request: those of former steps do not count."""
    of = structs.replace(
        stepping(plan=PLANS["goes on when inconclusive"]),
        candidate_counts=SideCounts(requests=50),
        requests_before=50,
    )
    later = NOW + timedelta(seconds=MAX_S)
    assert advance(of, seen(of), later).rollout.weight_ppm == 100_000
    done = advance(of, seen(of, "few"), later)
    assert done.rollout.weight_ppm == 500_000
    assert "inconclusive" in done.why


@pytest.mark.req("S5")
def test_a_shadow_is_compared_and_ends_without_a_caller() -> None:
    """It gets copies and no weight; its time ends it when something was compared; one that fails where stable
    does not, or dies for good, has failed, and needs no rollback, because nobody was answered by it."""
    of = advance(begun(plan=SHADOW), seen(begun()), NOW).rollout
    assert (of.state, of.weight_ppm) == (RolloutState.SHADOWING, 0)
    with pytest.raises(errors.Conflict):
        step_on(of, seen(of), "enough", NOW)
    of = advance(of, seen(of), NOW).rollout
    later = NOW + timedelta(seconds=MIN_S)
    silent = advance(of, seen(of), later).rollout
    assert (silent.state, silent.held) == (RolloutState.SHADOWING, "no copy has been compared yet")
    done = advance(of, seen(of, "alike"), later)
    assert (done.change, done.rollout.state) == (Change.CONCLUDED, RolloutState.CONCLUDED)
    assert "30 of 900 answers differ" in done.why
    assert done.rollout.pairs is not None
    assert done.rollout.pairs.pairs == 1_000
    for observed in (seen(of, "worse"), seen(of, phase=VersionPhase.FAILED)):
        failed = advance(of, observed, NOW).rollout
        assert (failed.state, failed.weight_ppm) == (RolloutState.FAILED, 0)
    assert step_on(of, seen(of), "enough", NOW).rollout.state is RolloutState.CONCLUDED
    stored = [paired(only_shadow_failed=3, only_stable_slow=2), paired(only_shadow_slow=4)]
    taken = rollout.take_in(of, stored)
    assert replay(taken, stored) == taken.evidence


@pytest.mark.req("S3", "S5", "S7")
def test_copies_come_before_the_steps_and_share_their_alpha() -> None:
    """A canary that begins with copies waits for its time and its pairs, goes on to the first step with the
    candidate it compared, and judges both under half of alpha; too few pairs hold, worse ones end it."""
    of = advance(begun(plan=COPIES_FIRST), seen(begun()), NOW).rollout
    assert (of.state, of.weight_ppm) == (RolloutState.SHADOWING, 0)
    of = advance(of, seen(of, "alike"), NOW).rollout
    later = NOW + timedelta(seconds=MIN_S)
    waits = advance(of, seen(of), later)
    assert (waits.change, waits.rollout.state) == (Change.HELD, RolloutState.SHADOWING)
    assert "waits for 1001 pairs" in waits.why
    assert advance(of, seen(of, "worse"), NOW).rollout.state is RolloutState.FAILED
    by_hand = structs.replace(of, plan=structs.replace(COPIES_FIRST, automatic=False))
    assert "rollout advance" in advance(by_hand, seen(of, "alike"), later).why
    assert step_on(by_hand, seen(of), "it will do", later).rollout.weight_ppm == 500_000
    done = advance(of, seen(of, "alike"), later).rollout
    assert (done.state, done.step, done.weight_ppm) == (RolloutState.STEPPING, 0, 500_000)
    half = structs.replace(COPIES_FIRST, alpha=COPIES_FIRST.alpha / 2)
    assert (apart(COPIES_FIRST), apart(PLAN), apart(SHADOW)) == (half, PLAN, SHADOW)
    failing = advance(done, seen(done, "bad"), later)
    assert failing.change is Change.ROLLING_BACK
    assert f"limit {half.alpha:g}" in failing.why


@pytest.mark.req("S3")
def test_an_a_b_test_ends_on_its_day_with_a_report() -> None:
    """Until then it holds its share, whatever is proven; then stable has its callers back, nothing is held
    against the candidate, and the report says who fared better. A person may end it earlier."""
    of = stepping(plan=AB_TEST)
    early = advance(of, seen(of, "better"), NOW + timedelta(seconds=MAX_S / 5)).rollout
    assert (early.state, early.weight_ppm, early.report) == (RolloutState.STEPPING, 100_000, None)
    assert AB_TEST.ends_at is not None
    done = advance(early, seen(early), AB_TEST.ends_at)
    assert done.change is Change.CONCLUDED
    assert (done.rollout.state, done.rollout.weight_ppm) == (RolloutState.CONCLUDED, 0)
    assert done.rollout.epoch == Epoch(of.epoch.term + 1, 0)
    told = done.rollout.report
    assert told is not None
    assert told.winner == "candidate"
    assert told.confidence > 0.999
    assert (told.candidate_rate, told.stable_rate) == (0.0, 0.5)
    ended = step_on(early, seen(early), "ended by ann", NOW)
    assert ended.rollout.report == told
    nobody = advance(of, seen(of, "few"), AB_TEST.ends_at).rollout.report
    assert nobody is not None
    assert (nobody.winner, nobody.confidence) == ("nobody", 0.0)
    promoted = structs.replace(early, plan=structs.replace(AB_TEST, promote_winner=True))
    assert advance(promoted, seen(promoted), AB_TEST.ends_at).rollout.state is RolloutState.SUCCEEDED


@pytest.mark.req("S3", "S7")
def test_equal_versions_seldom_have_a_winner() -> None:
    """Looked at after each of many ticks, a winner between equals is named in at most the share alpha of all
    tests, within the error of the sample; and swapping who fails more swaps the winner."""
    rng, plan = random.Random(7), structs.replace(AB_TEST, alpha=0.1)
    wrong = 0
    for _ in range(300):
        of, named = stepping(plan=plan), False
        for _ in range(60):
            on_candidate = sum(rng.random() < 0.1 for _ in range(4))
            sides = (SideCounts(callers_first_error=n) for n in (4 - on_candidate, on_candidate))
            of = rollout.take_in(of, (tick(100_000, *sides),))
            named = named or rollout.report(of).winner != "nobody"
        wrong += named
    assert wrong <= 30 + 3 * (300 * 0.1 * 0.9) ** 0.5
    for x, y, winner in ((60, 40, "stable"), (1, 99, "candidate")):
        counts = (SideCounts(callers_first_error=n) for n in (y, x))
        assert (
            rollout.report(rollout.take_in(stepping(plan=plan), (tick(100_000, *counts),))).winner == winner
        )


def test_a_test_without_a_day_gets_one_when_it_begins() -> None:
    """By the length of its step; a day that has passed, or lies years ahead, is refused."""
    plan = PRESETS[Strategy.AB_TEST]
    assert dated(plan, NOW).ends_at == NOW + timedelta(days=7)
    assert dated(AB_TEST, NOW) == AB_TEST
    assert dated(CANARY, NOW) == CANARY
    for ends_at in (NOW, NOW - timedelta(days=1), NOW + timedelta(days=400)):
        with pytest.raises(errors.InvalidPlan, match="ends_at"):
            dated(structs.replace(plan, ends_at=ends_at), NOW)


@pytest.mark.req("S3")
def test_a_superseded_rollout_ends_at_once_under_a_new_term() -> None:
    """The candidate's traffic is gone with it; one that is being taken back is not forgotten for another."""
    for of in (begun(), stepping(), stepping(2)):
        done = supersede(of, "1.3.0: better", NOW)
        assert done.change is Change.SUPERSEDED
        assert (done.rollout.state, done.rollout.weight_ppm) == (RolloutState.SUPERSEDED, 0)
        assert done.rollout.epoch == Epoch(of.epoch.term + 1, 0)
        assert "1.3.0" in (done.rollout.outcome or "")
        with pytest.raises(errors.RolloutFinished):
            supersede(done.rollout, "1.4.0", NOW)
    with pytest.raises(errors.RolloutActive):
        supersede(take_back(stepping(), "no", NOW).rollout, "1.3.0", NOW)


@pytest.mark.parametrize(
    ("slow_ms", "lease_s"), [(0, 0), (-1, 0), (float("nan"), 0), (1e9, 0), (1, 1), (1, -3), (1, 1e9)]
)
def test_settings_of_an_endpoint_that_mean_nothing_are_refused(slow_ms: float, lease_s: float) -> None:
    """A lease shorter than a few reports would take every candidate back."""
    rollout.check_endpoint(250.0, 0.0)
    rollout.check_endpoint(0.5, 3.0)
    with pytest.raises(errors.Invalid):
        rollout.check_endpoint(slow_ms, lease_s)


def test_names_of_keys_that_cannot_be_are_refused() -> None:
    """A cookie's name is a token, a field a JSON pointer below the whole body."""
    rollout_keys.check_keys(None, None)
    rollout_keys.check_keys("visitor_id", "/customer/a~1b/0")
    for cookie, field in (
        ("a b", None),
        ("", None),
        ("a=b", None),
        (None, "customer"),
        (None, ""),
        (None, "/~2"),
    ):
        with pytest.raises(errors.Invalid):
            rollout_keys.check_keys(cookie, field)


IMPOSSIBLE: dict[str, dict[str, Any]] = {
    "share": {"candidate_ppm": WHOLE_PPM + 1},
    "negative": {"candidate": SideCounts(requests=-1)},
    "more failed than new": {"candidate": SideCounts(new_callers=1, new_callers_failed=2)},
    "not a number": {"stable": SideCounts(duration_ms_sum=float("nan"))},
    "too many": {"stable": SideCounts(requests=2_000_000_000)},
    "number": {"number": -1},
    "epoch": {"epoch": Epoch(-1, 0)},
    "text": {"errors_seen": ("x" * 10_000,)},
    "pairs": {"pairs": PairCounts(version=VersionKey("version:2"), pairs=-1)},
    "differences": {"pairs": PairCounts(version=VersionKey("version:2"), difference_sum=float("nan"))},
    "infinite": {"pairs": PairCounts(version=VersionKey("version:2"), stable_ms_sum=float("inf"))},
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_a_report_of_what_cannot_be_is_refused_whole(name: str) -> None:
    """It must neither become evidence nor stop a rollout from being judged."""
    fine = report(ticks=(good(100_000),))
    assert check_report(fine) is fine
    with pytest.raises(errors.Invalid):
        check_report(report(ticks=(structs.replace(good(100_000), **IMPOSSIBLE[name]),)))
    with pytest.raises(errors.LimitExceeded):
        check_report(report(ticks=(good(100_000),) * 121))
    with pytest.raises(errors.InvalidName):
        check_report(report("no name"))
