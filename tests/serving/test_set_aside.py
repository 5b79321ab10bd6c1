"""A version that is taken out of a test: its callers are answered by stable, and what they meet says nothing
of anybody who stays. From the route over the counts to the verdict, with the parts that a gateway has."""

import random

import pytest
from msgspec import structs

from modelkeep.core import rollout
from modelkeep.core.movement import Contender, Endpoint, Observed, Rollout, RolloutState, Sight
from modelkeep.core.observation import Tick, VersionPhase
from modelkeep.core.plan import Variant
from modelkeep.core.routing import VersionKey
from modelkeep.core.winner import Winner
from modelkeep.serving.counting import Callers, arrive, count
from modelkeep.serving.ledger import Ledger
from modelkeep.serving.router import Target
from tests.core.test_rollout import AB_TEST, CANDIDATE, CHURN, NOW, begun
from tests.serving.test_router import Version

QUARTER = 250_000
ALPHA = 0.1
SEMVERS = {2: "1.1.0", 3: "1.2.0", 4: "1.3.0", 5: "1.4.0"}
KEYS = {number: VersionKey(f"version:{number}") for number in SEMVERS}
VERSIONS = {key: Version(key, SEMVERS[number]) for number, key in KEYS.items()}
PLAN = structs.replace(
    AB_TEST,
    alpha=ALPHA,
    steps=(structs.replace(AB_TEST.steps[0], weight_ppm=QUARTER),),
    versions=tuple(Variant(version=SEMVERS[number], weight_ppm=QUARTER) for number in (4, 5)),
)
OTHERS = tuple(
    Contender(number=number, semver=SEMVERS[number], digest=CANDIDATE, weight_ppm=QUARTER, from_ppm=begin)
    for number, begin in ((4, QUARTER), (5, 2 * QUARTER))
)
ENDPOINT = Endpoint(
    id="end_1", name="churn", model=CHURN, stage="production", key_header="x-user", stable=2, rollout="rol_1",
    created_at=NOW, created_by="ann",
)  # fmt: skip
READY = Sight(phase=VersionPhase.READY)
CALLERS = [f"caller-{number}".encode() for number in range(2_000)]


class Served:
    """A test of three versions beside stable under way on one gateway, whose callers come again and again."""

    def __init__(self, salt: str) -> None:
        self.test: Rollout = begun(
            plan=PLAN, others=OTHERS, salt=salt, state=RolloutState.STEPPING, weight_ppm=QUARTER,
            step_since=NOW,
        )  # fmt: skip
        self._ledger = Ledger(NOW, 1)
        self._book = Callers()
        self.target = self._target()

    def _target(self) -> Target[Version]:
        route = rollout.route_of(ENDPOINT, self.test, KEYS)
        assert route is not None
        return Target(route, VERSIONS, self._book)

    def turn(self, rng: random.Random, rate: float, bad: VersionKey) -> Tick:
        """Everybody asks once; one version fails all of its callers, the others as many as stable does."""
        target = self.target
        for key in CALLERS:
            place, caller = target.assign({b"x-user": key}, b"")
            version, side = target.at(place) or target.stable, target.tally.side(place)
            book = target.callers if caller else None
            if book is not None:
                arrive(side, book, caller)
            failed = version.key == bad or rng.random() < rate
            count(side, book, caller, 1.0, failed=failed, refused=False, violation=False, slow=False)
        counts = target.tally.collect()
        assert counts is not None
        self._ledger.add(counts)
        self._ledger.close(NOW)
        (tick,) = self._ledger.to_send()
        self._ledger.taken([(tick.endpoint, tick.rollout, tick.number)])
        seen = Observed(applied=self.test.epoch, phase=READY.phase, others=(READY, READY), ticks=(tick,))
        self.test = rollout.advance(self.test, seen, NOW).rollout
        self.target = self._target()
        return tick


@pytest.mark.req("S3", "S7", "S8")
def test_after_a_bad_version_was_taken_out_those_that_stay_are_judged_as_before() -> None:
    """Callers who have all failed on it have no first failure left. Were they taken for stable's, every
    version that is as good as stable would look worse, and most would fall; of these tests, looked at after
    each tick, at most the share alpha may lose one, or name a winner, within the error of the sample."""
    rng, runs, fallen, named = random.Random(7), 8, 0, 0
    for run in range(runs):
        served, bad = Served(f"salt {run}"), (0, 2)[run % 2]
        worst = KEYS[served.test.numbers[bad]]
        served.turn(rng, 0.2, worst)
        stay = tuple(place for place in range(3) if place != bad)
        assert served.test.in_test == stay
        for _ in range(6):
            served.turn(rng, 0.2, worst)
        fallen += served.test.in_test != stay
        told = rollout.report(served.test)
        named += told.winner is not Winner.NOBODY or any(
            arm.better is not None for arm in told.arms if arm.out is None
        )
    assert max(fallen, named) <= runs * ALPHA + 3 * (runs * ALPHA * (1 - ALPHA)) ** 0.5


@pytest.mark.req("S3", "S6")
def test_callers_of_a_version_that_was_taken_out_are_answered_and_counted_on_no_side() -> None:
    """Their requests are stable's from then on; none of them arrives there, is new there, or fails there for
    the first time, and the tick says whose share is missing."""
    rng, served = random.Random(1), Served("salt")
    first = served.turn(rng, 0.0, KEYS[5])
    assert (first.others_ppm, first.aside_ppm, served.test.in_test) == ((QUARTER, QUARTER), 0, (0, 1))
    gone = first.others[1].new_callers
    second = served.turn(rng, 1.0, KEYS[5])
    assert (second.others_ppm, second.aside_ppm) == ((QUARTER, 0), QUARTER)
    assert second.others[1].requests == 0
    assert second.stable.requests == second.stable.errors == first.stable.requests + gone
    assert (second.stable.callers_arrived, second.stable.new_callers) == (0, 0)
    assert second.stable.callers_first_error == first.stable.new_callers
    sides = (second.stable, second.candidate, *second.others)
    assert sum(side.callers_first_error for side in sides) == len(CALLERS) - gone
