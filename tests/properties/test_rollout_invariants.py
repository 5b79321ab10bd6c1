"""Invariants 8, 9, 10, 11 and 13 of the design, each over random plans, counts, routes, moves and crashes.

What one gateway, one rollout or one decision may do is asked here of the pure functions that do it; what
whole histories of an endpoint may come to, with a store and two gateways, is in `test_rollout_machine`.
"""

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import event, given, target
from hypothesis import strategies as st
from msgspec import structs

from modelkeep.core import codec, errors, routing
from modelkeep.core import rollout as core
from modelkeep.core.observation import SideCounts, Tick, VersionPhase
from modelkeep.core.plan import OnInconclusive, Plan, Step, check_plan
from modelkeep.core.policy import Approvals, Facts, FilesVerifiedGate, Outcome, Policy, StageRules
from modelkeep.core.promotion import Granted, Interval, MoveCause, decide, rollback_target
from modelkeep.core.rollout import Advanced, Observed, Rollout, RolloutState, Verdict
from modelkeep.core.routing import STABLE_PLACE, WHOLE_PPM, Arm, Epoch, Route, RoutingTable
from modelkeep.serving import moves
from tests.core.test_outlook import fresh
from tests.core.test_promotion import ANN, decided, version, vote
from tests.serving.test_journal import MOVES, Gateway, TornDisk
from tests.serving.test_moves import tables

T0 = datetime(2026, 1, 25, 14, 3, tzinfo=UTC)
OWN = "rol_1"
CALLER_KEYS = st.binary(max_size=40)
SALTS = st.text(max_size=20)
SHARES = st.integers(0, WHOLE_PPM)
LONGEST = st.sampled_from([5.0, 60.0])


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any plan of up to three steps."""
    below = draw(st.lists(st.integers(1, WHOLE_PPM - 1), max_size=2, unique=True))
    steps = tuple(
        Step(
            weight_ppm=weight,
            min_s=draw(st.sampled_from([0.0, 5.0])),
            max_s=draw(st.sampled_from([5.0, 60.0])),
        )
        for weight in (*sorted(below), WHOLE_PPM)
    )
    return check_plan(
        Plan(
            steps=steps,
            alpha=draw(st.sampled_from([0.001, 0.01, 0.2])),
            beta=draw(st.sampled_from([0.05, 0.5])),
            on_inconclusive=draw(st.sampled_from(OnInconclusive)),
            automatic=draw(st.booleans()),
        )
    )


@st.composite
def sides(draw: st.DrawFn, most: int = 400) -> SideCounts:
    """What one version met with in a second."""
    callers = draw(st.integers(0, most))
    failed = draw(st.just(0) | st.integers(0, callers))
    return SideCounts(
        requests=callers,
        callers_arrived=callers,
        new_callers=callers,
        errors=failed,
        new_callers_failed=failed,
        callers_first_error=failed,
        callers_first_slow=draw(st.just(0) | st.integers(0, callers)),
        duration_ms_sum=draw(st.floats(0, 1e6)),
    )


@st.composite
def ticks(draw: st.DrawFn, rollout: str | None = OWN) -> Tick:
    """Any second of a rollout."""
    return Tick(
        endpoint="churn",
        rollout=rollout,
        epoch=Epoch(1, 1),
        number=draw(st.integers(1, 1_000)),
        started_at=T0,
        ended_at=T0 + timedelta(seconds=1),
        candidate_ppm=draw(st.integers(1, WHOLE_PPM)),
        stable=draw(sides()),
        candidate=draw(sides()),
    )


def silent_ticks() -> st.SearchStrategy[Tick]:
    """What measures nothing of this rollout: another's counts, none at all, or no share for the candidate."""
    nothing = SideCounts()
    return st.one_of(
        ticks(rollout="rol_another"),
        ticks(rollout=None),
        ticks().map(lambda tick: structs.replace(tick, candidate_ppm=0)),
        ticks().map(lambda tick: structs.replace(tick, stable=nothing, candidate=nothing)),
    )


APPLIED = st.sampled_from([None, Epoch(0, 0), Epoch(1, 1), Epoch(9, 9)])
PHASES = st.sampled_from([None, VersionPhase.READY, VersionPhase.STARTING, VersionPhase.RESTARTING])
Look = tuple[Observed, float]


def looks(of: st.SearchStrategy[Tick]) -> st.SearchStrategy[list[Look]]:
    """What is observed one after the other, with the seconds in between."""
    seen = st.builds(Observed, applied=APPLIED, phase=PHASES, ticks=st.lists(of, max_size=4).map(tuple))
    return st.lists(st.tuples(seen, st.sampled_from([0.0, 1.0, 6.0, 120.0])), max_size=12)


def carried_on(rollout: Rollout, seen: Sequence[Look]) -> list[Advanced]:
    """Each look's answer, one after the other."""
    now, answers = T0, []
    for observed, seconds in seen:
        now += timedelta(seconds=seconds)
        answers.append(core.advance(rollout, observed, now))
        rollout = answers[-1].rollout
    return answers


# ------------------------------------------------------------------------------------------------ invariant 8


@pytest.mark.req("S7", "S9")
@given(plan=plans(), seen=looks(silent_ticks()))
def test_what_measures_nothing_raises_no_weight(plan: Plan, seen: list[Look]) -> None:
    """Invariant 8: without a measurement a rollout in a step keeps its weight or loses it, however long it
    lasts and whatever the gateways confirm, and it never succeeds."""
    weight = fresh(plan).weight_ppm
    for answer in carried_on(fresh(plan), seen):
        assert answer.rollout.weight_ppm <= weight
        assert answer.rollout.state is not RolloutState.SUCCEEDED
        weight = answer.rollout.weight_ppm
        found = answer.rollout.judgement
        assert found is None or found.verdict is not Verdict.ADVANCE


@pytest.mark.req("S7", "S9")
@given(plan=plans(), seen=looks(ticks() | silent_ticks()))
def test_a_weight_rises_on_proof_alone(plan: Plan, seen: list[Look]) -> None:
    """Invariant 8: where a weight does rise, or a rollout succeeds, the verdict was advance (or the plan goes
    on when a step is over, and the candidate had requests in it), requests of the candidate were counted, and
    the gateways that answer had confirmed the weight before."""
    before = fresh(plan)
    now = T0
    for (observed, seconds), answer in zip(seen, carried_on(before, seen), strict=True):
        now += timedelta(seconds=seconds)
        after = answer.rollout
        if after.weight_ppm > before.weight_ppm or (
            after.state is RolloutState.SUCCEEDED and before.state is not RolloutState.SUCCEEDED
        ):
            assert after.judgement is not None
            if after.judgement.verdict is not Verdict.ADVANCE:
                assert plan.on_inconclusive is OnInconclusive.ADVANCE
                assert before.step_since is not None
                assert now - before.step_since >= timedelta(seconds=before.current.max_s)
                assert after.candidate_counts.requests > before.requests_before
            assert after.candidate_counts.requests > 0
            assert observed.applied is not None
            assert observed.applied >= before.epoch
            assert plan.automatic or before.last
            event(f"rose to {after.weight_ppm > before.weight_ppm}, {after.state}")
        before = after


@pytest.mark.req("G2", "S7")
@given(approvers=st.integers(0, 4), asked=st.integers(0, 3), verified=st.none() | st.just(False))
def test_an_inconclusive_gate_promotes_nobody(approvers: int, asked: int, verified: bool | None) -> None:
    """Invariant 8: a gate that could not be measured refuses as one that failed does, however many people
    agree to exactly what they see."""
    now = decided(asked, verified=verified).seen
    agreeing = [vote(f"person-{n}", of=now) for n in range(approvers)]
    rules = StageRules(gates=(FilesVerifiedGate(),), approvals=Approvals(count=asked, roles=("approver",)))
    decision = decide(
        Facts(version=version(), files_verified=verified),
        Policy(name="p", stages={"production": rules}),
        "production",
        requested_by=ANN,
        reviews=agreeing,
    )
    assert not isinstance(decision, Granted)
    wanted = Outcome.INCONCLUSIVE if verified is None else Outcome.FAILED
    assert [result.outcome for result in decision.gates] == [wanted]


# ------------------------------------------------------------------------------------------------ invariant 9


@pytest.mark.req("S8", "S9")
@given(plan=plans(), seen=looks(ticks() | silent_ticks()), key=CALLER_KEYS)
def test_whoever_has_weight_can_be_taken_back(plan: Plan, seen: list[Look], key: bytes) -> None:
    """Invariant 9: in every state a rollout can come to, its candidate's weight can be taken away at once,
    by a term above every former one; no look gives any back."""
    for answer in carried_on(fresh(plan), seen):
        rollout = answer.rollout
        if rollout.state.finished:
            with pytest.raises(errors.RolloutFinished):
                core.take_back(rollout, "why", T0)
            continue
        back = core.take_back(rollout, "why", T0).rollout
        assert back.weight_ppm == 0
        assert back.epoch.term > fresh(plan).epoch.term
        assert back.epoch >= rollout.epoch
        for later in carried_on(back, seen):
            assert later.rollout.weight_ppm == 0
            assert later.rollout.state in (RolloutState.ROLLING_BACK, RolloutState.ROLLED_BACK)


@pytest.mark.req("S8")
@given(live=tables(), key=CALLER_KEYS, late=tables())
def test_after_the_swap_no_request_reaches_the_candidate(
    live: RoutingTable, key: bytes, late: RoutingTable
) -> None:
    """Invariant 9: a gateway takes a candidate back from its own table alone, nobody is routed to it
    afterwards, and a table of the former term, however late, does not bring it back."""
    for route in live.routes:
        if route.candidate is None or not route.candidate_ppm:
            continue
        after, _, removed = moves.taken_back(live, route.endpoint)
        swapped = after.route(route.endpoint)
        assert swapped is not None
        assert removed == route.candidate
        assert routing.place(swapped, key) == STABLE_PLACE
        assert swapped.stable == route.stable
        old = structs.replace(late, routes=tuple(r for r in late.routes if r.epoch <= route.epoch))
        if old.route(route.endpoint) is not None:
            everything = [spec.key for spec in (*late.versions, *after.versions)]
            assert moves.next_table(after, old, everything).route(route.endpoint) == swapped


@pytest.mark.req("G8")
@given(order=st.lists(st.integers(1, 6), min_size=1, max_size=12))
def test_rollbacks_never_go_to_and_fro(order: list[int]) -> None:
    """Invariant 9: one rollback after the other, each leaves a tombstone and goes to a version that was in
    the stage and bears none, until there is no more; none is visited twice."""
    stays = [_stay(number, place) for place, number in enumerate(order)]
    current, tombstoned, visited = order[-1], set[int](), [order[-1]]
    while True:
        tombstoned.add(current)
        try:
            goal = rollback_target(stays, current, tombstoned=tombstoned, present=set(order))
        except errors.NoRollbackTarget:
            break
        assert goal in order
        assert goal not in visited
        visited.append(goal)
        stays.append(_stay(goal, len(stays)))
        current = goal
    assert set(visited) == set(order)


def _stay(number: int, place: int) -> Interval:
    return Interval(
        stage="production",
        number=number,
        semver=f"1.{number}.0",
        from_at=T0 + timedelta(hours=place),
        from_sequence=place + 1,
        cause=MoveCause.PROMOTION,
        actor="ann",
        reason="better",
    )


# ----------------------------------------------------------------------------------------------- invariant 10


@pytest.mark.req("S2", "S3")
@given(
    salt=SALTS, key=CALLER_KEYS, weights=st.lists(SHARES, min_size=1, max_size=8), epoch=st.integers(1, 99)
)
def test_a_caller_changes_sides_once_at_most(salt: str, key: bytes, weights: list[int], epoch: int) -> None:
    """Invariant 10: while the weight rises a caller goes to the candidate once and stays; the side depends
    on salt, key and weight alone, not on epochs, versions or what a table went through."""
    sides_taken = []
    for weight in sorted(weights):
        route = _split(salt, weight, Epoch(epoch, 0))
        again = codec.decode(codec.encode(_split(salt, weight, Epoch(epoch, 7))), Route)
        sides_taken.append(routing.place(route, key))
        assert routing.place(structs.replace(again, endpoint="other", slow_ms=1.0), key) == sides_taken[-1]
    changes = sum(one != two for one, two in pairwise(sides_taken))
    assert changes <= 1
    assert sides_taken == sorted(sides_taken)


@st.composite
def routes_of_many(draw: st.DrawFn) -> Route:
    """A route with several versions beside stable, each in its place."""
    cuts = sorted(draw(st.lists(SHARES, min_size=2, max_size=2 * routing.OTHERS_MAX, unique=True)))
    keys = [routing.VersionKey(f"version:{number}") for number in range(len(cuts))]
    others = tuple(
        Arm(key=keys[n], weight_ppm=high - low, from_ppm=low)
        for n, (low, high) in enumerate(zip(cuts[::2], cuts[1::2], strict=False))
    )
    first = draw(st.integers(0, cuts[0]))
    end = others[-1].from_ppm + others[-1].weight_ppm
    return structs.replace(_split(draw(SALTS), first, Epoch(1, 0)), others=others, stable_from_ppm=end)


@pytest.mark.req("S3")
@given(route=routes_of_many(), keys=st.lists(CALLER_KEYS, min_size=5, max_size=30), data=st.data())
def test_a_version_of_a_test_gives_and_takes_stable_s_callers_alone(
    route: Route, keys: list[bytes], data: st.DataObject
) -> None:
    """Invariant 10: where one version's weight sinks (to nothing, when it is taken out) its callers go to
    stable, where it rises again they come from stable, as many as the weights differ by; nobody else's
    callers move, and whose side a caller is on depends on salt, key and places alone. Who was moved to stable
    is counted nowhere, and nobody of stable's own is left out."""
    place = data.draw(st.integers(1, 1 + len(route.others)))
    had = route.candidate_ppm if place == 1 else route.others[place - 2].weight_ppm
    weight = data.draw(st.integers(0, had) | st.just(0))
    if place == 1:
        lower = structs.replace(route, candidate_ppm=weight)
    else:
        others = list(route.others)
        others[place - 2] = structs.replace(others[place - 2], weight_ppm=weight)
        lower = structs.replace(route, others=tuple(others))
    for key in keys:
        before, after = routing.place(route, key), routing.place(lower, key)
        assert after in (before, 0)
        assert after == before or before == place
        assert routing.place(codec.decode(codec.encode(route), Route), key) == before
        bucket = routing.bucket(route.salt, key)
        begin = 0 if place == 1 else route.others[place - 2].from_ppm
        assert (after != before) == (begin + weight <= bucket < begin + had)
        assert after == before or routing.set_aside(lower, key)
        assert not routing.set_aside(lower, key) or (after == 0 and bucket < route.stable_from_ppm)
    assert sum(arm.weight_ppm for arm in lower.arms) == WHOLE_PPM
    back = routing.rolled_back(route)
    assert {routing.place(back, key) for key in keys} == {0}
    assert not any(routing.set_aside(back, key) for key in keys)


def _split(salt: str, weight: int, epoch: Epoch) -> Route:
    stable, candidate = (routing.VersionKey(f"version:{letter * 64}") for letter in "ab")
    return Route(
        endpoint="e", epoch=epoch, stable=stable, candidate=candidate, candidate_ppm=weight, salt=salt
    )


# ----------------------------------------------------------------------------------------------- invariant 11


@pytest.mark.req("S8")
@given(done=MOVES, cut=st.floats(0, 1))
def test_a_journal_cut_anywhere_gives_a_table_that_was_obeyed(done: list[str], cut: float) -> None:
    """Invariant 11: whatever of its end a crash took, the journal opens and gives a table that was live at
    some moment, the last one when nothing was lost; and never an older one for a longer journal."""
    disk = TornDisk()
    gateway = Gateway(disk)
    obeyed, sizes = [gateway.live], [len(disk.data)]
    for move in done:
        if move == "compacted":
            continue  # it writes the file anew, at once or not at all
        getattr(gateway, move)()
        obeyed.append(gateway.live)
        sizes.append(len(disk.data))
    assert Gateway(TornDisk(disk.data)).live == gateway.live
    end = math.floor(cut * len(disk.data))
    target(float(end))
    found = Gateway(TornDisk(disk.data[:end])).live
    assert found.number in range(gateway.live.number + 1)
    whole = max((place for place, size in enumerate(sizes) if size <= end), default=0)
    assert found.number >= obeyed[whole].number


@pytest.mark.req("S8")
@given(live=tables(), late=tables())
def test_older_terms_are_no_ops(live: RoutingTable, late: RoutingTable) -> None:
    """Invariant 11: of a table with older epochs not one route is obeyed."""
    have = {route.endpoint: route for route in live.routes}
    older = tuple(
        structs.replace(route, epoch=Epoch(have[route.endpoint].epoch.term - 1, 99))
        for route in late.routes
        if route.endpoint in have
    )
    everything = [spec.key for spec in (*late.versions, *live.versions)]
    after = moves.next_table(live, structs.replace(late, routes=older), everything)
    assert {route.endpoint: route for route in after.routes} == {
        route.endpoint: have[route.endpoint] for route in older
    }


# ----------------------------------------------------------------------------------------------- invariant 13


@pytest.mark.req("S7")
@given(plan=plans(), seen=looks(ticks() | silent_ticks()), cut=st.integers(0, 12))
def test_the_same_evidence_gives_the_same_verdict_for_ever(plan: Plan, seen: list[Look], cut: int) -> None:
    """Invariant 13: from the stored counts alone, the evidence comes out again to the last bit, and with it
    the verdict and its sentence; every decision replays from what was written down, from any point on."""
    answers = carried_on(fresh(plan), seen)
    written = codec.decode(codec.encode([observed for observed, _ in seen]), list[Observed])
    again = [(observed, seconds) for observed, (_, seconds) in zip(written, seen, strict=True)]
    assert carried_on(codec.decode(codec.encode(fresh(plan)), Rollout), again) == answers
    if not answers:
        return
    stored = codec.decode(codec.encode(answers[-1].rollout), Rollout)
    assert stored == answers[-1].rollout
    log = [tick for observed, _ in again for tick in observed.ticks]
    recomputed = core.replay(stored, log)
    assert codec.encode(recomputed) == codec.encode(stored.evidence)
    assert core.judge(structs.replace(stored, evidence=recomputed)) == core.judge(stored)
    place = min(cut, len(answers) - 1)
    half = codec.decode(codec.encode(answers[place].rollout), Rollout)
    now = T0 + timedelta(seconds=sum(seconds for _, seconds in again[: place + 1]))
    for (observed, seconds), answer in zip(again[place + 1 :], answers[place + 1 :], strict=True):
        now += timedelta(seconds=seconds)
        replayed = core.advance(half, observed, now)
        assert replayed == answer
        half = replayed.rollout


@pytest.mark.req("S7")
@given(plan=plans(), log=st.lists(ticks() | silent_ticks(), max_size=20), cuts=st.lists(st.integers(0, 20)))
def test_how_ticks_are_bundled_changes_no_bit(plan: Plan, log: list[Tick], cuts: list[int]) -> None:
    """Invariant 13: a controller that looked rarely and one that looked often have the same evidence, and a
    tick beyond those taken in changes nothing of what is explained."""
    at_once = core.take_in(fresh(plan), log)
    bundled = fresh(plan)
    for begin, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(log)], strict=True):
        bundled = core.take_in(bundled, log[begin:end])
    assert codec.encode(bundled.evidence) == codec.encode(at_once.evidence)
    assert (bundled.ticks, core.judge(bundled).verdict) == (at_once.ticks, core.judge(at_once).verdict)
    assert core.replay(at_once, [*log, *log]) == at_once.evidence
