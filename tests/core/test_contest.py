"""A/B tests of several versions: every reachable state meets every observation; what a report may say."""

import itertools
import random
from collections import deque
from datetime import datetime, timedelta
from functools import cache
from typing import Any

import pytest
from msgspec import structs

from modelkeep.core import codec, contest, errors, rollout, rollout_evidence
from modelkeep.core.evidence import Evidence
from modelkeep.core.movement import Contender, Sight
from modelkeep.core.observation import SideCounts, Tick, VersionPhase, check_report
from modelkeep.core.plan import Plan, Strategy, Variant, check_plan, check_standing, read_plan
from modelkeep.core.rollout import Change, Endpoint, Observed, Rollout, RolloutState
from modelkeep.core.routing import WHOLE_PPM, Epoch, RoutingTable, VersionKey, VersionSpec, check_table
from tests.core.test_rollout import AB_TEST, CANDIDATE, CHURN, MIN_S, NOW, begun, report, tick

KEYS = {n: VersionKey(f"version:{n}") for n in (1, 2, 3, 4)}
PLAN = structs.replace(AB_TEST, versions=(Variant(version="1.3.0", weight_ppm=200_000),), promote_winner=True)
SHARES = (100_000, 200_000)
OTHER = Contender(number=4, semver="1.3.0", digest=CANDIDATE, weight_ppm=SHARES[1], from_ppm=SHARES[0])
ENDS = PLAN.ends_at
assert ENDS is not None
KINDS = {
    "none": (),
    "good": (0, 0, 0),
    "stable worse": (1, 0, 0),
    "stable and candidate worse": (1, 1, 0),
    "candidate worse": (0, 1, 0),
    "other worse": (0, 0, 1),
    "both worse": (0, 1, 1),
}


def three(**changes: Any) -> Rollout:
    """A test of three versions that has just been started."""
    return begun(**({"plan": PLAN, "others": (OTHER,)} | changes))


def stepping(**changes: Any) -> Rollout:
    """One under way, as the gateways have confirmed."""
    fields: dict[str, Any] = {
        "state": RolloutState.STEPPING,
        "weight_ppm": SHARES[0],
        "step_since": NOW,
        "epoch": Epoch(4, 3),
    }
    return three(**(fields | changes))


def side(callers: int, worse: int) -> SideCounts:
    """Callers of one version, half of whom fail where it is a worse one."""
    failed = callers // 2 * worse
    return SideCounts(
        requests=callers,
        callers_arrived=callers,
        new_callers=callers,
        errors=failed,
        new_callers_failed=failed,
        callers_first_error=failed,
    )


def met(of: Rollout, kind: str) -> tuple[Tick, ...]:
    """Many callers, split as the rollout wants it now."""
    if not KINDS[kind]:
        return ()
    shares = (of.weight_ppm, *(of.others_ppm or (0,)))
    if of.state is not RolloutState.STEPPING:
        shares = SHARES
    stable, candidate, other = KINDS[kind]
    callers = [2_000 * share // WHOLE_PPM for share in shares]
    counts = (side(callers[0], candidate), side(callers[1], other))
    rest = side(2_000 - sum(callers), stable)
    return (tick(shares[0], rest, counts[0], others=counts[1:], others_ppm=shares[1:]),)


def seen(of: Rollout, kind: str = "none", **changes: Any) -> Observed:
    """All gateways do as they are told, everybody is ready, and this has arrived."""
    ready = VersionPhase.READY
    fields: dict[str, Any] = {
        "applied": of.epoch,
        "phase": ready,
        "others": (Sight(phase=ready),),
        "ticks": met(of, kind),
    }
    return Observed(**(fields | changes))


def events(of: Rollout) -> list[tuple[Observed, float]]:
    """Every kind of observation, after every kind of wait."""
    phases = (VersionPhase.STARTING, VersionPhase.READY, VersionPhase.FAILED)
    found = [(seen(of, kind), wait_s) for kind, wait_s in itertools.product(KINDS, (0.0, 4 * MIN_S))]
    found += [
        (seen(of, kind, applied=applied), 4 * MIN_S)
        for applied, kind in itertools.product((None, Epoch(0, 0)), ("none", "candidate worse"))
    ]
    found += [
        (seen(of, phase=one, others=(Sight(phase=two, error="no room"),)), 0.0)
        for one, two in itertools.product(phases[1:], phases)
    ]
    crashed = tick(SHARES[0], SideCounts(), SideCounts(), others=(SideCounts(crashes=3),), others_ppm=(1,))
    found += [(seen(of, ticks=(crashed,)), 0.0)]
    found += [(Observed(rolled_back="lease lost", rolled_back_epoch=Epoch(of.epoch.term + 1, 0)), 0.0)]
    return found


def shares_of(of: Rollout) -> tuple[int, ...]:
    """What each version beside stable has; a winner that takes over has everything."""
    return (of.weight_ppm, *(of.others_ppm or (0,)))


def mark(of: Rollout, at: datetime) -> tuple[Any, ...]:
    """What distinguishes a state from another."""
    if of.state.finished or of.state is RolloutState.ROLLING_BACK:
        return (of.state, of.in_test)
    waited = "unconfirmed" if of.step_since is None else "new" if at == of.step_since else "some"
    known = (waited, at >= ENDS, rollout.report(of).winner)
    return (of.state, of.in_test, of.paused is not None, of.held is not None, *known)


@cache
def reachable() -> tuple[tuple[Rollout, datetime], ...]:
    """One rollout for each state that a test can come to, with the time it was reached at."""
    queue = deque([(three(), NOW)])
    known, found = {mark(*queue[0])}, list[tuple[Rollout, datetime]]()
    while queue:
        of, at = queue.popleft()
        found.append((of, at))
        after = [
            (rollout.advance(of, observed, at + timedelta(seconds=wait_s)).rollout, wait_s)
            for observed, wait_s in events(of)
        ]
        if not of.state.finished and of.state is not RolloutState.ROLLING_BACK:
            after += [(rollout.pause(of, "lunch"), 0.0), (rollout.take_back(of, "no", at).rollout, 0.0)]
        if of.paused is not None:
            after.append((rollout.resume(of), 0.0))
        for one, wait_s in after:
            now = at + timedelta(seconds=wait_s)
            if (new := mark(one, now)) not in known:
                known.add(new)
                queue.append((one, now))
    return tuple(found)


@pytest.mark.req("S3", "S7", "S8")
def test_every_observation_in_every_state_of_a_test_keeps_the_promises() -> None:
    """Exhaustively: no share rises but at the beginning, when all are ready; a version that fails is taken
    out under a new term while the others keep theirs; with the last the test is taken back; who wins takes
    over only where the plan says so; and in every state all can be taken back."""
    found, changes = set[RolloutState](), set[Change]()
    for of, at in reachable():
        found.add(of.state)
        for observed, wait_s in events(of):
            now = at + timedelta(seconds=wait_s)
            done = rollout.advance(of, observed, now)
            check(of, observed, now, done.rollout, done.change)
            changes |= {done.change} if done.change else set()
        if not of.state.finished:
            back = rollout.take_back(of, "no", at).rollout
            assert shares_of(back) == (0, 0)
            assert back.epoch.term > of.epoch.term or of.state is RolloutState.ROLLING_BACK
    assert {RolloutState.STEPPING, RolloutState.ROLLED_BACK, RolloutState.CONCLUDED} <= found
    assert {RolloutState.SUCCEEDED, RolloutState.FAILED, RolloutState.CANCELLED} <= found
    assert {Change.TAKEN_OUT, Change.ROLLING_BACK, Change.CONCLUDED, Change.SUCCEEDED} <= changes


def check(of: Rollout, observed: Observed, now: datetime, new: Rollout, change: Change | None) -> None:
    """What must hold from any state to the next."""
    assert new.epoch >= of.epoch
    if of.state.finished:
        assert new == of
        return
    before, after = shares_of(of), shares_of(new)
    assert set(new.in_test) <= set(of.in_test), "who is out stays out"
    if new.state is RolloutState.SUCCEEDED:
        assert new.report is not None
        assert (new.report.winner, new.out) == ("candidate", None)
        assert now >= ENDS
        return
    if of.state is RolloutState.PREPARING and any(after):
        assert after == SHARES
        assert of.paused is None
        assert observed.applied is not None
        assert observed.applied >= of.epoch
        assert {observed.sight(place).phase for place in (0, 1)} == {VersionPhase.READY}
    else:
        assert all(one <= other for one, other in zip(after, before, strict=True))
    lost = [place for place in of.in_test if before[place] and not after[place]]
    if lost:
        assert new.epoch.term > of.epoch.term
        assert change is not None
    if of.state is RolloutState.STEPPING:
        failed = [
            place
            for place in of.in_test
            if observed.sight(place).phase is VersionPhase.FAILED
            or any(
                (t.candidate, *t.others)[place].errors >= 100 and not t.stable.errors for t in observed.ticks
            )
        ]
        assert set(failed) <= set(lost), "an alarm wins over everything"
        if new.state is RolloutState.STEPPING and lost:
            assert change is Change.TAKEN_OUT
            assert new.in_test
            assert new.step_since is None
        elif change is not Change.CONCLUDED and lost:
            assert new.state is RolloutState.ROLLING_BACK


@pytest.mark.req("S3")
def test_from_every_state_a_test_ends_and_its_routes_can_be_obeyed() -> None:
    """Gateways that answer and versions that fare alike lead to an end in few looks; each version has its
    place in the route from the first to the last, as itself or, taken out, as stable without a share."""
    endpoint = Endpoint(
        id="end_1", name="churn", model=CHURN, stage="production", stable=2, previous=1,
        epoch=Epoch(4, 1), rollout="rol_1", created_at=NOW, created_by="ann",
    )  # fmt: skip
    specs = tuple(
        VersionSpec(key=key, model="churn", number=n, semver=f"1.{n}.0", digest=CANDIDATE, files=())
        for n, key in KEYS.items()
    )
    for of, at in reachable():
        route = rollout.route_of(endpoint, of, KEYS)
        assert route is not None
        check_table(RoutingTable(number=1, routes=(route,), versions=specs))
        assert sum(arm.weight_ppm for arm in route.arms) == WHOLE_PPM
        live = not of.state.finished and of.state is not RolloutState.ROLLING_BACK
        assert route.candidate == (KEYS[3] if live and of.out is None else None)
        assert (route.candidate_ppm, route.others_ppm) == (of.weight_ppm if live else 0, of.others_ppm)
        if live:
            (other,) = route.others
            assert other.from_ppm == SHARES[0]
            assert other.key == (KEYS[4] if of.others[0].out is None else KEYS[2])
            gone = sum(share for place, share in enumerate(SHARES) if place not in of.in_test)
            assert route.aside_ppm == (gone if of.state is RolloutState.STEPPING else 0)
        current, now = of, at
        for _ in range(6):
            current = rollout.resume(current) if current.paused is not None else current
            now += timedelta(seconds=2 * MIN_S)
            current = rollout.advance(current, seen(current, "good"), now).rollout
        assert current.state.finished, (of, current)


@pytest.mark.req("S7")
def test_a_test_of_several_is_recomputed_to_the_last_bit() -> None:
    """From stored ticks, however they are bundled; a tick without the others' counts is one without them."""
    of, ticks = stepping(), list[Tick]()
    for kind in ("stable worse", "other worse", "good", "candidate worse"):
        ticks += met(of, kind)
    ticks.append(tick(100_000, side(50, 0), side(5, 0)))
    taken = rollout.take_in(rollout.take_in(of, ticks[:2]), ticks[2:])
    stored = codec.decode(codec.encode(taken), Rollout)
    assert stored == taken
    again = rollout.replay(stored, codec.decode(codec.encode(ticks), list[Tick]))
    assert codec.encode(again) == codec.encode(taken.evidence)
    assert (len(again.others), len(again.rivals)) == (1, 1)
    assert taken.others[0].counts.requests == 1_600
    plain = contest.evidence_of(AB_TEST, ticks[-1:])
    assert (plain.others, plain.rivals) == ((), ())


@pytest.mark.req("S3", "S7")
@pytest.mark.parametrize(
    ("kind", "winner", "semver", "words"),
    [
        ("good", "nobody", None, "nobody is shown to be better"),
        ("both worse", "stable", "1.1.0", "stable's callers fare better"),
        ("stable and candidate worse", "other", "1.3.0", "1.3.0 fare better than stable's"),
        ("stable worse", "other", "1.3.0", "and so do those of 1.2.0, between which nothing is shown"),
    ],
)
def test_the_report_names_who_fared_best_and_what_is_not_shown(
    kind: str, winner: str, semver: str | None, words: str
) -> None:
    """With the comparisons it was shown under: three versions, each with each, in both directions."""
    of = rollout.take_in(stepping(), met(stepping(), kind))
    if kind == "stable worse":
        of = structs.replace(of, candidate_counts=structs.replace(of.candidate_counts, callers_first_error=1))
    told = rollout.report(of)
    assert (told.winner, told.semver, told.comparisons) == (winner, semver, 6)
    assert words in told.why
    assert [arm.semver for arm in told.arms] == ["1.2.0", "1.3.0"]
    assert told.confidence == 1 - told.p_value


@pytest.mark.req("S3", "S7")
def test_among_equal_versions_a_winner_is_seldom_named_and_seldom_is_one_taken_out() -> None:
    """Looked at after each of many ticks, with each version's callers drawn by its share: in at most the
    share alpha of all tests, within the error of the sample."""
    rng, plan = random.Random(11), structs.replace(PLAN, alpha=0.1)
    wrong = dropped = 0
    for _ in range(80):
        of, named, gone = stepping(plan=plan), False, False
        for _ in range(25):
            places = rng.choices((0, 1, 2), (0.7, 0.1, 0.2), k=6)
            stable, candidate, other = (SideCounts(callers_first_error=places.count(n)) for n in range(3))
            arrived = tick(SHARES[0], stable, candidate, others=(other,), others_ppm=SHARES[1:])
            of = rollout.take_in(of, (arrived,))
            named = named or rollout.report(of).winner != "nobody"
            gone = gone or bool(rollout_evidence.fallen(of, seen(of))[1])
        wrong += named
        dropped += gone
    assert max(wrong, dropped) <= 8 + 3 * (80 * 0.1 * 0.9) ** 0.5


@pytest.mark.req("S3", "S7")
def test_those_whose_version_was_taken_out_are_on_nobody_s_side() -> None:
    """Their share is left out as they are: the version that stays has what is its own of its callers and
    stable's own, 200,000 of 900,000."""
    shares: dict[str, Any] = {"others_ppm": (0, SHARES[1]), "others": (SideCounts(), side(900, 1))}
    plan = structs.replace(PLAN, versions=(Variant(version="1.4.0", weight_ppm=1), *PLAN.versions))
    aside = tick(0, side(3_000, 1), SideCounts(), aside_ppm=100_000, **shares)
    _, found = contest.evidence_of(plan, (aside,)).others
    alone = tick(222_222, side(3_000, 1), side(900, 1))
    assert found == contest.evidence_of(AB_TEST, (alone,))
    counted = structs.replace(aside, aside_ppm=0)
    assert contest.evidence_of(plan, (counted,)).others[1].errors != found.errors


@pytest.mark.req("S7", "S8")
def test_a_report_of_versions_that_nobody_tests_stops_no_test() -> None:
    """A tick is kept for good, so one that counts more versions than the plan has is judged by those that it
    has, and an alarm is still heard behind it."""
    nothing = SideCounts()
    foreign = tick(SHARES[0], nothing, nothing, others=(nothing,) * 7, others_ppm=(SHARES[1], *[10] * 6))
    check_report(report(ticks=(foreign,)))
    of = stepping()
    ticks = (foreign, *met(of, "candidate worse"))
    done = rollout.advance(of, seen(of, ticks=ticks), NOW).rollout
    assert (done.ticks, done.in_test) == (2, (1,))
    assert rollout.replay(done, ticks) == done.evidence
    assert len(done.evidence.others) == 1
    counts = (side(100, 0), side(100, 1), side(50, 0))
    shares = ((SHARES[1], 70_000), (SHARES[1],))
    many, plain = (
        tick(SHARES[0], counts[0], counts[1], others=counts[2:] * len(ppm), others_ppm=ppm) for ppm in shares
    )
    assert contest.evidence_of(PLAN, (many,)) == contest.evidence_of(
        PLAN, (structs.replace(plain, aside_ppm=70_000),)
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strategy": Strategy.CANARY, "steps": ()}, "steps"),
        ({"versions": (Variant(version="2.0.0", weight_ppm=900_000),)}, "stable has the rest"),
        ({"versions": (Variant(version="2.0.0", weight_ppm=0),)}, "1 and below 1,000,000"),
        ({"versions": (Variant(version="2.0.0", weight_ppm=1),) * 2}, "each of them once"),
        (
            {"versions": tuple(Variant(version=f"{n}.0.0", weight_ppm=1) for n in range(8))},
            "has 0 to 7 items",
        ),
    ],
)
def test_a_test_that_could_not_be_is_refused(changes: dict[str, Any], words: str) -> None:
    """Further versions leave something for stable, are named once, and belong to an A/B test."""
    with pytest.raises(errors.InvalidPlan, match=words):
        check_plan(structs.replace(PLAN, **changes))


def test_versions_are_read_from_yaml_and_belong_to_one_test() -> None:
    """The candidate's share stands in the step, the others' beside their names; no plan to come has any."""
    plan = read_plan("""
        strategy: ab_test
        steps: [{weight_ppm: 300000}]
        versions: [{version: 2.1.0, weight_ppm: 200000}, {version: "#7", weight_ppm: 100000}]
    """)
    assert [variant.version for variant in plan.versions] == ["2.1.0", "#7"]
    assert rollout.judge(stepping()).verdict == "hold"
    with pytest.raises(errors.InvalidPlan, match="belong to one test"):
        check_standing(plan)
    assert check_standing(Plan()) == Plan()
    assert Evidence() == codec.decode(b"{}", Evidence), "what was stored before has no others"


def test_a_tick_whose_shares_cannot_be_is_refused() -> None:
    """More than everything, or a share without its counts."""
    nothing = SideCounts()
    for changes in (
        {"others_ppm": (600_000,), "others": (nothing,)},
        {"others_ppm": (1, 1), "others": (nothing,)},
        {"others_ppm": (-1,), "others": (nothing,)},
        {"aside_ppm": 600_000},
        {"aside_ppm": -1},
    ):
        wrong = tick(500_000, nothing, nothing, **changes)
        with pytest.raises(errors.Invalid, match="share"):
            check_report(report(ticks=(wrong,)))
