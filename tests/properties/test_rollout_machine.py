"""Random histories of one endpoint with two gateways that lose, repeat and delay, are killed, fall silent,
and take back by themselves; with a store that dies at any statement or has no room, and wall clocks, the
registry's and the gateways', that are set forward and back.

Invariants of the design: 1 and 9 (stage and traffic agree, nothing goes back and forth, what was taken back
stays back), 2 (the chain verifies), 8 (silence never raises a weight), 11 (whatever happens, a gateway serves
a route it was given, stable alone, or its own rollback; epochs only rise), 13 (the evidence can be
recomputed, to the bit). Whatever a store refused has left nothing behind.
"""

import functools
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, closing
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec import structs

from modelkeep.core import codec, errors
from modelkeep.core.observation import GatewayReport
from modelkeep.core.plan import Plan, Step, Strategy, Variant
from modelkeep.core.rollout import RolloutState
from modelkeep.core.routing import WHOLE_PPM, Epoch, Route, check_table
from modelkeep.core.values import parse_ref
from modelkeep.service.gateways import SILENT_S
from modelkeep.serving import moves
from modelkeep.store import events as event_store
from modelkeep.store.rollout import active_rollouts
from tests.properties.kept_answers import KeptAnswers
from tests.service.failing_store import BROKEN, failing
from tests.service.rollout_world import NAME, PLAN, STEP_S, FakeGateway, RolloutWorld, epoch_of

SEMVERS = ("1.0.0", "1.1.0", "1.2.0", "1.3.0")
WHICH = st.sampled_from([0, 1])
REFUSED = (
    errors.Conflict,
    errors.Tombstoned,
    errors.GateFailed,
    errors.InvalidTransition,
    errors.NotFound,
    errors.NoRollbackTarget,
    errors.InvalidPlan,
)
ACTIONS = (
    "turn",
    "poll",
    "obey",
    "serve",
    "report",
    "lose the answer",
    "delay",
    "deliver late",
    "deliver again",
    "restart",
    "silence",
    "take back",
)
ONE_STEP = (Step(weight_ppm=WHOLE_PPM, min_s=STEP_S),)
PLANS = (
    Plan(strategy=Strategy.BLUE_GREEN, steps=ONE_STEP, preview_s=STEP_S),
    Plan(strategy=Strategy.IMMEDIATE, steps=ONE_STEP),
    structs.replace(PLAN, strategy=Strategy.ROLLING),
    Plan(strategy=Strategy.SHADOW, steps=(), shadow_ppm=500_000, shadow_s=STEP_S),
    structs.replace(PLAN, shadow_ppm=500_000, shadow_s=STEP_S, shadow_pairs=100),
    Plan(
        strategy=Strategy.AB_TEST,
        steps=(Step(weight_ppm=300_000, min_s=STEP_S),),
        versions=(Variant(version="1.3.0", weight_ppm=200_000),),
    ),
    Plan(strategy=Strategy.AB_TEST, steps=(Step(weight_ppm=300_000, min_s=STEP_S),), promote_winner=True),
)
DELAYED_MAX = 4
SETTLING_TURNS = 200
JUMPS_S = (-172_800.0, -3_600.0, -2.0, 2.0, 60.0, 3_600.0, 172_800.0)


def outside(look: Callable[["RolloutMachine"], None]) -> Callable[["RolloutMachine"], None]:
    """Look at what there is, whatever the store does to others."""

    @functools.wraps(look)
    def looked(machine: "RolloutMachine") -> None:
        with machine.store.looked_at():
            look(machine)

    return looked


class RolloutMachine(RuleBasedStateMachine):
    """Everything that can happen to one endpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        folder = self.stack.enter_context(tempfile.TemporaryDirectory())
        path = Path(folder) / "store.db"
        self.store, database = self.stack.enter_context(failing(f"sqlite:///{path}"))
        self.outside = self.stack.enter_context(closing(sqlite3.connect(path)))
        self.world = RolloutWorld(database)
        self.kept_answers = KeptAnswers()
        self.world.versions(*SEMVERS)
        self.world.promote("1.0.0", by="owner")
        self.world.made()
        self.gateways = [FakeGateway(self.world, "g1"), FakeGateway(self.world, "g2")]
        self.delayed: list[tuple[FakeGateway, GatewayReport]] = []
        self.allowed: set[bytes] = set()
        """Routes, as they are written."""
        self.ages: dict[str, Epoch] = {}
        self.number = 0
        self.age = Epoch(0, 0)
        self.note_table()
        self.go_on(3)
        self.world.promote("1.1.0", by="owner")
        self.note_table()
        self.go_on(20)
        assert self.world.endpoint().previous == 1

    def teardown(self) -> None:
        try:
            self.check_quiet()
        finally:
            self.stack.close()

    @property
    def moving(self) -> bool:
        """Whether a rollout is under way."""
        return self.world.endpoint().rollout is not None

    # --------------------------------------------------------------------------------------------- people

    @rule(
        place=st.integers(0, len(SEMVERS) - 1),
        percent=st.sampled_from([0, 0, 1, 40]),
        plan=st.sampled_from([None, *PLANS]),
        supersede=st.booleans(),
    )
    def promote(self, place: int, percent: int, plan: Plan | None, supersede: bool) -> None:
        """A version, the next one that could be promoted, which may turn out to be bad: by any strategy,
        and in the place of one that is under way."""
        with self.store.looked_at():
            serving = self.world.status().stable
            order = [*SEMVERS[place:], *SEMVERS[:place]]
            fit = [one for one in order if one != serving and self.world.get(one).tombstone is None]
            semver = fit[0] if fit else order[0]
            for gateway in self.gateways:
                gateway.failing[self.world.key(semver)] = percent
        event(f"promoted by {plan.strategy if plan is not None else 'the plan of the endpoint'}")
        self.attempt(
            "promote", lambda: self.world.promote(semver, by="owner", plan=plan, supersede=supersede)
        )

    @rule(word=st.sampled_from(["abort", "pause", "resume", "step", "step", "rollback", "clear"]))
    def say(self, word: str) -> None:
        """Whatever fits: words for a rollout while there is one, for the model while there is none."""
        world = self.world
        with self.store.looked_at():
            tombstoned = [semver for semver in SEMVERS if world.get(semver).tombstone is not None]
            moving = self.moving
        if word == "clear":
            if tombstoned:
                ref = parse_ref(f"churn:{tombstoned[0]}")
                self.attempt(word, lambda: world.do("owner", world.promotions.clear, ref, "mended"))
        elif word == "rollback" or not moving:
            self.attempt("rollback", lambda: world.rollback(by="owner"))
        else:
            verb = getattr(world.rollouts, word)
            self.attempt(word, lambda: world.do("owner", verb, NAME, "because"))

    def attempt(self, what: str, act: Callable[[], object]) -> None:
        """One act, which is done whole, or not at all where the store gives out."""
        before = self.seen()
        try:
            act()
            event(what)
        except REFUSED as refusal:
            event(f"{what}: {refusal.code}")
        except BROKEN as problem:
            event(f"{what} in vain: {problem.code}")
            assert self.seen() == before, "an act that failed has left something behind"

    def seen(self) -> object:
        """Another number after each change that the store has kept."""
        return self.outside.execute("pragma data_version").fetchone()

    # ------------------------------------------------------------------------------------------- gateways

    @rule(which=WHICH, what=st.sampled_from(ACTIONS), place=st.integers(0, DELAYED_MAX - 1))
    def happen(self, which: int, what: str, place: int) -> None:
        """Something happens to a gateway, or to one of its reports."""
        gateway = self.gateways[which]
        match what:
            case "lose the answer":
                if not gateway.silent:
                    self.attempt("report", lambda: gateway.send(gateway.make_report()))
            case "delay":
                self.delayed = [*self.delayed, (gateway, gateway.make_report())][-DELAYED_MAX:]
            case "deliver late" | "deliver again":
                if self.delayed:
                    late = self.delayed[place % len(self.delayed)]
                    self.attempt("late report", lambda: late[0].send(late[1]))
                    if what == "deliver late":
                        self.delayed.remove(late)
            case "silence":
                gateway.silent = not gateway.silent
            case "take back":
                self.take_back_alone(gateway)
            case _:
                getattr(gateway, what)()

    def take_back_alone(self, gateway: FakeGateway) -> None:
        try:
            gateway.roll_back()
        except errors.NoRollbackTarget:
            return
        event("taken back by a gateway")
        route = gateway.route()
        self.allow(route)

    def allow(self, route: Route) -> None:
        """A gateway may obey a route that was wanted, also without the candidate's share."""
        self.allowed |= {codec.encode(one) for one in (route, moves.stable_alone(route))}

    # ------------------------------------------------------------------------------------ time and control

    @rule(owner=st.sampled_from(["first", "second"]), seconds=st.sampled_from([0.5, 6.0, STEP_S, 70.0]))
    def look(self, owner: str, seconds: float) -> None:
        self.world.later(seconds=seconds)
        with self.store.looked_at():
            before = self.world.latest()
        self.attempt("look", lambda: self.world.look(owner))
        with self.store.looked_at():
            after = self.world.latest()
        if seconds > SILENT_S:
            assert after.weight_ppm <= before.weight_ppm, "silence never raises a weight"

    @rule(times=st.integers(1, 12))
    def go_on(self, times: int) -> None:
        for _ in range(times):
            self.world.later(seconds=STEP_S / 2)
            for gateway in self.gateways:
                gateway.turn()
            self.attempt("look", self.world.look)
            self.note_table()

    # --------------------------------------------------------------------------------------------- breakages

    @rule(
        what=st.sampled_from(["dead", "dead", "full", "mended"]),
        after=st.integers(0, 40),
        lasting=st.sampled_from([1, 2, 10, 1_000]),
    )
    def break_store(self, what: str, after: int, lasting: int) -> None:
        """The store dies after some more statements, for a while, or has no room, or is well again."""
        match what:
            case "dead":
                self.store.left, self.store.lasting = after, lasting
            case "full":
                self.store.fill()
            case _:
                self.store.mend()

    @rule(whose=st.sampled_from(["registry", 0, 1]), seconds=st.sampled_from(JUMPS_S))
    def set_clock(self, whose: str | int, seconds: float) -> None:
        """A wall clock is set."""
        by = timedelta(seconds=seconds)
        if isinstance(whose, int):
            self.gateways[whose].ahead += by
            return
        self.world.now += by
        for gateway in self.gateways:
            gateway.ahead -= by

    # ----------------------------------------------------------------------------------------- invariants

    @invariant()
    @outside
    def note_table(self) -> None:
        table = self.world.read("gate", self.world.rollouts.table_if_newer, -1)
        assert table is not None
        check_table(table)
        assert table.number >= self.number
        self.number = table.number
        for route in table.routes:
            self.allow(route)

    @invariant()
    @outside
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
                assert {codec.encode(route) for route in table.routes} <= self.allowed
            gateway.applied.clear()

    @invariant()
    @outside
    def one_rollout_at_most(self) -> None:
        active = self.world.database.read(active_rollouts)
        assert len(active) <= 1
        assert [self.world.endpoint().rollout] == (active or [None])

    @invariant()
    @outside
    def what_was_taken_back_has_no_weight_in_the_table(self) -> None:
        status = self.world.status()
        rollout = status.rollout
        if rollout is not None and rollout.state is RolloutState.STEPPING:
            semvers = (rollout.candidate_semver, *(other.semver for other in rollout.others))
            for place, semver in enumerate(semvers):
                assert (self.world.get(semver).tombstone is None) == (place in rollout.in_test)
        assert self.world.get(status.stable or "1.0.0").tombstone is None

    @invariant()
    @outside
    def answers_that_are_kept_still_hold(self) -> None:
        """Invariant 12, as the MLflow door leans on it: the same history, the same answer."""
        self.kept_answers.check(self.world.database)

    def check_quiet(self) -> None:
        """Everybody answers, nothing more is asked for: then all agree, and stay as they are."""
        world = self.world
        self.store.mend()
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
        key = world.key(status.stable or "")
        for gateway in self.gateways:
            route = gateway.route()
            assert (route.stable, route.candidate, route.epoch) == (key, None, endpoint.epoch)
            assert gateway.waiting == []
            assert gateway.rollbacks == []
        assert all(one.in_step for one in status.gateways)
        return status.stable, endpoint.epoch, len(world.events())


RolloutMachine.TestCase.settings = settings(stateful_step_count=40, suppress_health_check=list(HealthCheck))
TestRolloutMachine = pytest.mark.req("S3", "S8", "S9", "G8")(RolloutMachine.TestCase)
