"""Random histories of one endpoint with two gateways that lose, repeat and delay, are killed, fall silent,
and take back by themselves.

Invariants of the design: 1 and 9 (stage and traffic agree, nothing goes back and forth, what was taken back
stays back), 2 (the chain verifies), 8 (silence never raises a weight), 11 (whatever happens, a gateway serves
a route it was given, stable alone, or its own rollback; epochs only rise), 13 (the evidence can be
recomputed, to the bit).
"""

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec import structs

from modelkeep.core import errors
from modelkeep.core.observation import GatewayReport
from modelkeep.core.rollout import RolloutState
from modelkeep.core.routing import Epoch, Route, check_table
from modelkeep.core.values import parse_ref
from modelkeep.store import events as event_store
from modelkeep.store.database import Database
from modelkeep.store.rollout import active_rollouts
from tests.service.rollout_world import NAME, STEP_S, FakeGateway, RolloutWorld, epoch_of

SEMVERS = ("1.0.0", "1.1.0", "1.2.0", "1.3.0")
WHICH = st.sampled_from([0, 1])
REFUSED = (
    errors.Conflict,
    errors.Tombstoned,
    errors.GateFailed,
    errors.InvalidTransition,
    errors.NotFound,
    errors.NoRollbackTarget,
)
DELAYED_MAX = 4
SETTLING_TURNS = 200


class RolloutMachine(RuleBasedStateMachine):
    """Everything that can happen to one endpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        folder = self.stack.enter_context(tempfile.TemporaryDirectory())
        database = self.stack.enter_context(Database.open(f"sqlite:///{Path(folder) / 'store.db'}"))
        self.world = RolloutWorld(database)
        self.world.versions(*SEMVERS)
        self.world.promote("1.0.0", by="owner")
        self.world.made()
        self.gateways = [FakeGateway(self.world, "g1"), FakeGateway(self.world, "g2")]
        self.delayed: list[tuple[FakeGateway, GatewayReport]] = []
        self.allowed: set[Route] = set()
        self.ages: dict[str, Epoch] = {}
        self.number = 0
        self.age = Epoch(0, 0)
        self.note_table()
        self.go_on(3)

    def teardown(self) -> None:
        try:
            self.check_quiet()
        finally:
            self.stack.close()

    # --------------------------------------------------------------------------------------------- people

    @rule(place=st.integers(0, len(SEMVERS) - 1))
    def promote(self, place: int) -> None:
        self.attempt("promoted", lambda: self.world.promote(SEMVERS[place], by="owner"))

    @rule(word=st.sampled_from(["abort", "pause", "resume", "step"]))
    def say(self, word: str) -> None:
        verb = getattr(self.world.rollouts, word)
        self.attempt(word, lambda: self.world.do("owner", verb, NAME, "because"))

    @rule()
    def take_model_back(self) -> None:
        self.attempt("rolled back", lambda: self.world.rollback(by="owner"))

    @rule(place=st.integers(0, len(SEMVERS) - 1))
    def clear(self, place: int) -> None:
        ref = parse_ref(f"churn:{SEMVERS[place]}")
        clear = self.world.promotions.clear
        self.attempt("cleared", lambda: self.world.do("owner", clear, ref, "mended"))

    def attempt(self, what: str, act: Callable[[], object]) -> None:
        try:
            act()
            event(what)
        except REFUSED as refusal:
            event(f"{what}: {refusal.code}")

    # ------------------------------------------------------------------------------------------- gateways

    @rule(which=WHICH)
    def work(self, which: int) -> None:
        self.gateways[which].turn()

    @rule(which=WHICH)
    def fetch(self, which: int) -> None:
        self.gateways[which].poll()

    @rule(which=WHICH)
    def obey(self, which: int) -> None:
        self.gateways[which].obey()

    @rule(which=WHICH, times=st.integers(1, 3))
    def serve(self, which: int, times: int) -> None:
        for _ in range(times):
            self.gateways[which].serve()

    @rule(which=WHICH)
    def lose_the_answer(self, which: int) -> None:
        gateway = self.gateways[which]
        if not gateway.silent:
            gateway.send(gateway.make_report())

    @rule(which=WHICH)
    def delay_a_report(self, which: int) -> None:
        gateway = self.gateways[which]
        self.delayed = [*self.delayed, (gateway, gateway.make_report())][-DELAYED_MAX:]

    @precondition(lambda self: self.delayed)
    @rule(place=st.integers(0, DELAYED_MAX - 1), again=st.booleans())
    def deliver_late(self, place: int, again: bool) -> None:
        gateway, report = self.delayed[place % len(self.delayed)]
        gateway.send(report)
        if not again:
            self.delayed.remove((gateway, report))

    @rule(which=WHICH)
    def take_back_alone(self, which: int) -> None:
        gateway = self.gateways[which]
        try:
            gateway.roll_back()
        except (errors.NoRollbackTarget, errors.RouteNotFound):
            return
        event("taken back by a gateway")
        route = gateway.route()
        self.allowed |= {route, structs.replace(route, candidate_ppm=0)}

    @rule(which=WHICH)
    def kill(self, which: int) -> None:
        self.gateways[which].restart()

    @rule(which=WHICH, silent=st.booleans())
    def fall_silent(self, which: int, silent: bool) -> None:
        self.gateways[which].silent = silent

    @rule(place=st.integers(1, len(SEMVERS) - 1), percent=st.sampled_from([0, 0, 40]))
    def spoil(self, place: int, percent: int) -> None:
        digest = self.world.get(SEMVERS[place]).digest
        for gateway in self.gateways:
            gateway.failing[digest] = percent

    # ------------------------------------------------------------------------------------ time and control

    @rule(seconds=st.sampled_from([0.5, STEP_S, 70.0]))
    def wait(self, seconds: float) -> None:
        self.world.later(seconds=seconds)

    @rule(owner=st.sampled_from(["first", "second"]))
    def look(self, owner: str) -> None:
        silent = all(gateway.silent for gateway in self.gateways)
        before = self.world.latest()
        self.world.later(seconds=20 if silent else 0)
        self.world.look(owner)
        after = self.world.latest()
        if silent and after.id == before.id and before.ticks_until == after.ticks_until:
            assert after.weight_ppm <= before.weight_ppm, "silence never raises a weight"

    @rule(times=st.integers(1, 12))
    def go_on(self, times: int) -> None:
        for _ in range(times):
            self.world.turn(*self.gateways, seconds=STEP_S / 2)
            self.note_table()

    # ----------------------------------------------------------------------------------------- invariants

    @invariant()
    def note_table(self) -> None:
        table = self.world.read("gate", self.world.rollouts.table_if_newer, -1)
        assert table is not None
        check_table(table)
        assert table.number >= self.number
        self.number = table.number
        for route in table.routes:
            self.allowed |= {route, structs.replace(route, candidate_ppm=0)}

    @invariant()
    def epochs_rise(self) -> None:
        age = epoch_of(self.world)
        assert age >= self.age
        self.age = age
        for gateway in self.gateways:
            epoch = gateway.route().epoch
            assert epoch >= self.ages.get(gateway.name, Epoch(0, 0))
            self.ages[gateway.name] = epoch

    @invariant()
    def gateways_serve_what_they_were_given(self) -> None:
        for gateway in self.gateways:
            for table in gateway.applied:
                assert set(table.routes) <= self.allowed
            gateway.applied.clear()

    @invariant()
    def one_rollout_at_most(self) -> None:
        active = self.world.database.read(active_rollouts)
        assert len(active) <= 1
        assert [self.world.endpoint().rollout] == (active or [None])

    @invariant()
    def what_was_taken_back_has_no_weight_in_the_table(self) -> None:
        status = self.world.status()
        rollout = status.rollout
        if rollout is not None and rollout.state is RolloutState.STEPPING:
            candidate = self.world.get(rollout.candidate_semver)
            assert candidate.tombstone is None
        assert self.world.get(status.stable or "1.0.0").tombstone is None

    def check_quiet(self) -> None:
        """Everybody answers, nothing more is asked for: then all agree, and stay as they are."""
        world = self.world
        for gateway, report in self.delayed:
            gateway.send(report)
        for gateway in self.gateways:
            gateway.silent = False
        for _ in range(SETTLING_TURNS):
            if world.latest().paused is not None:
                world.do("owner", world.rollouts.resume, NAME, "because")
            world.turn(*self.gateways, seconds=STEP_S)
            if world.endpoint().rollout is None:
                break
        world.turn(*self.gateways)
        world.turn(*self.gateways)
        settled = self.agreed()
        for _ in range(3):
            world.turn(*self.gateways, seconds=STEP_S)
        assert self.agreed() == settled, "nothing goes back and forth"
        event_store.verify(world.database)
        page = world.read(
            "owner", world.rollouts.list_rollouts, endpoint=NAME, model=None, limit=100, page_token=None
        )
        for rollout in page.items:
            assert rollout.state.finished
            assert world.read("owner", world.rollouts.explain, rollout.id).equal
            event(f"ended {rollout.state}")

    def agreed(self) -> tuple[object, ...]:
        """What is served, when the registry, the stage and both gateways say the same."""
        world = self.world
        endpoint = world.endpoint()
        assert endpoint.rollout is None, world.latest()
        status = world.status()
        assert world.in_production() == status.stable
        digest = world.get(status.stable or "").digest
        for gateway in self.gateways:
            route = gateway.route()
            assert (route.stable, route.candidate, route.epoch) == (digest, None, endpoint.epoch)
            assert gateway.waiting == []
            assert gateway.rollbacks == []
        assert all(one.in_step for one in status.gateways)
        return status.stable, endpoint.epoch, len(world.events())


RolloutMachine.TestCase.settings = settings(stateful_step_count=40, suppress_health_check=list(HealthCheck))
TestRolloutMachine = pytest.mark.req("S3", "S8", "S9", "G8")(RolloutMachine.TestCase)
