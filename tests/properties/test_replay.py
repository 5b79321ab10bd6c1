"""Random histories of every kind of act that there is, replayed from their events as they happen.

After each act the replayed state is the one in the tables, so that every moment of the past can be asked for.
How a replay goes stands in `replay`; fsck's own folding of the events is held against the same histories.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec import structs

from modelkeep.core import errors
from modelkeep.core.access import Effect, PrincipalKind, Role, Verb
from modelkeep.core.catalog import DEFAULT_STAGES, ModelChange, StageSpec
from modelkeep.core.drill import Measured
from modelkeep.core.events import Event, EventKind
from modelkeep.core.plan import Plan, Step, Strategy, Variant
from modelkeep.core.promotion import Vote
from modelkeep.core.values import PAGE_MAX, ModelName
from modelkeep.service import drills, renaming
from modelkeep.service.projections import find_altered
from modelkeep.store import events as event_store
from tests.properties.registry_world import AT_ONCE, RegistryWorld, database_in_a_folder, numbered
from tests.properties.replay import BESIDE, CHANGES_NOTHING, FOLDS, State, empty, replay, stored
from tests.service.rollout_world import PLAN

CHURN = ModelName("default", "churn")
FRAUD = ModelName("risk", "fraud")
MODELS = (CHURN, FRAUD)
REVIEWED = b"name: p\ndescription: version %d\nstages: {production: {approvals: {count: 1}}}"
QA = structs.replace(
    DEFAULT_STAGES,
    stages=(*DEFAULT_STAGES.stages, StageSpec(name="qa")),
    transitions=(*DEFAULT_STAGES.transitions, ("none", "qa"), ("qa", "none")),
)
ANY_MODEL = st.sampled_from(MODELS)
PLACE = st.integers(0, 4)
PEOPLE = st.sampled_from(["ann", "bob", "cat", "dan"])


class Past:
    """What the events made of an empty registry so far, and what is in the tables."""

    def __init__(self, world: RegistryWorld) -> None:
        self.world = world
        self.state = empty()
        self.events: list[Event] = []

    def catch_up(self) -> State:
        """Replay what is new, and read the tables."""
        while True:
            after = len(self.events)
            new = self.world.database.read(lambda tx: tx.events.after(after, limit=PAGE_MAX))  # noqa: B023
            if not new:
                return self.world.database.read(stored)
            for one in new:
                replay(self.state, one.event)
                self.events.append(one.event)


# ------------------------------------------------------------------------------------------ one whole life


def a_whole_life(world: RegistryWorld) -> Iterator[str]:
    """Everything that can happen to a registry, one act after the other; yields what was done."""
    yield from _of_people(world)
    yield from _of_the_catalog(world)
    yield from _of_promotion(world)
    yield from _of_traffic(world)
    world.do("owner", renaming.rename, world.house.access, CHURN, "leavers")
    yield "a model is renamed"
    world.do("owner", world.catalog.delete_model, FRAUD)
    yield "a model is deleted"


def _of_people(world: RegistryWorld) -> Iterator[str]:
    access = world.house.access
    world.do("owner", access.create_principal, "zoe", PrincipalKind.USER)
    yield "somebody is added"
    given = world.do(
        "owner", access.add_grant, principal="zoe", role=Role.ADMIN, project="default", model="churn"
    )
    yield "and given a role"
    world.do("owner", access.remove_grant, given.id)
    yield "which is taken away"
    token = world.do("owner", access.create_token, label="ci", principal="zoe", verbs=(Verb.READ,))
    yield "a token is made"
    world.do("owner", access.revoke_token, token.info.id)
    yield "and revoked"
    world.do("owner", access.disable_principal, "zoe")
    yield "and she is shut out"
    world.do("eve", access.note_refusal, "delete_model", errors.NotAllowed("No.", verb="delete"))
    yield "somebody is refused"


def _of_the_catalog(world: RegistryWorld) -> Iterator[str]:
    catalog = world.catalog
    for model in MODELS:
        world.do("owner", catalog.create_model, model, "Who leaves?", "ann", {"team": "risk"})
        yield "a model is created"
    for number in (1, 2, 3, 4):
        world.register(CHURN, b"weights %d" % number, tags={"n": str(number)})
        yield "a version is registered"
    world.register(FRAUD, b"others")
    world.do(
        "owner",
        catalog.change_model,
        CHURN,
        ModelChange(description="New.", set_tags={"a": "b"}, delete_tags=("team",)),
    )
    yield "a model's labels change"
    for before, after in (("churn", "leavers"), ("leavers", "churn")):
        rename = renaming.rename
        world.do("owner", rename, world.house.access, ModelName("default", before), after)
        yield "a model is renamed"
    world.do("owner", catalog.change_version, numbered(CHURN, 1), ModelChange(description="First."))
    yield "a version's labels change"
    world.do("owner", catalog.set_alias, CHURN, "best", numbered(CHURN, 1), protected=True)
    yield "an alias is set"
    world.do("owner", catalog.delete_alias, CHURN, "best")
    yield "and deleted"
    world.do("owner", catalog.yank, numbered(CHURN, 4), "leaks")
    yield "a version is yanked"
    world.do("owner", catalog.unyank, numbered(CHURN, 4), "does not")
    yield "and may be chosen again"
    world.do("owner", catalog.delete_version, numbered(CHURN, 4))
    yield "a version is deleted"
    world.do("owner", world.promotions.set_stages, FRAUD, QA)
    yield "a stage graph changes"
    damaged = world.get("1.0.0", FRAUD).files[0].digest
    assert world.blobs.delete(damaged)
    assert not world.fsck().ok
    yield "bytes are missed"


def _of_promotion(world: RegistryWorld) -> Iterator[str]:
    promotions = world.promotions
    for number in (1, 2):
        promote(world, number)
        yield "a version is promoted"
    world.rollback(by="owner")
    yield "and taken back"
    world.do("owner", promotions.clear, numbered(CHURN, 2), "mended")
    yield "and cleared"
    promoted_with_doubt(world)
    yield "a promotion is denied"
    world.do("dan", promotions.set_policy, "churn", REVIEWED % 1)
    yield "a policy is set"
    asked = ask(world, 2)
    yield "a promotion is asked for"
    world.review(asked, by="bob")
    yield "and approved"
    world.do("dan", promotions.set_policy, "churn", REVIEWED % 2)
    with pytest.raises(errors.ApprovalRequired):
        promote(world, 2, by="ann")
    yield "on another policy, so that it does not count"
    world.review(asked, by="bob", vote=Vote.REJECT)
    yield "and rejected"


def promoted_with_doubt(world: RegistryWorld) -> None:
    """A promotion that a gate refuses: the bytes are not what they were."""
    with pytest.raises(errors.GateFailed):
        promote(world, 3, files_verified=False)


def promote(world: RegistryWorld, number: int, by: str = "owner", **more: Any) -> None:
    """Promote a version of churn to production."""
    fields = {"files_verified": True} | more
    world.do(by, world.promotions.promote, numbered(CHURN, number), "production", "better", **fields)


def ask(world: RegistryWorld, number: int, model: ModelName = CHURN, by: str = "ann") -> str:
    """Ask for a promotion; the request's id."""
    opened = world.do(
        by,
        world.promotions.open_request,
        numbered(model, number),
        "production",
        "better",
        files_verified=True,
    )
    return str(opened.id)


A_TEST = Plan(strategy=Strategy.AB_TEST, steps=(Step(weight_ppm=500_000, min_s=2.0, max_s=600.0),))
"""Two versions beside each other for two seconds."""


def _of_traffic(world: RegistryWorld) -> Iterator[str]:
    rollouts, gateway = world.rollouts, world.gateway
    alone = b"name: alone\nstages: {}"
    world.do("owner", world.promotions.set_policy, "churn", alone)
    world.made(plan=AT_ONCE)
    yield "an endpoint is created"
    gateway.broken[world.key("1.0.0")] = "no such operator"
    world.turn(gateway)
    yield "its first rollout fails"
    gateway.broken.clear()
    world.made(plan=AT_ONCE)
    yield "and starts again"
    for _ in range(4):
        world.turn(gateway)
        yield "and goes on"
    world.made(plan=PLAN)
    yield "the plan changes"
    promote(world, 2)
    yield "a promotion begins to move traffic"
    world.do("owner", rollouts.abort, "churn", "not now")
    yield "it is cancelled"
    promote(world, 2)
    for _ in range(2):
        world.turn(gateway)
        yield "the next goes on"
    world.do("owner", rollouts.pause, "churn", "lunch")
    yield "it is paused"
    world.do("owner", rollouts.resume, "churn", "eaten")
    yield "and resumed"
    world.do("owner", rollouts.abort, "churn", "worse")
    yield "it is on its way back"
    for _ in range(3):
        world.turn(gateway)
        yield "until the gateway has confirmed"
    world.made(plan=AT_ONCE)
    promote(world, 3)
    yield "another version begins"
    world.do("owner", world.promotions.clear, numbered(CHURN, 2), "mended")
    yield "the one that was taken back is cleared"
    promote(world, 2, supersede=True)
    yield "and takes its place"
    for _ in range(4):
        world.turn(gateway)
        yield "until it serves"
    measured = Measured(
        gateway=gateway.name, took_ms=0.4, confirmed_ms=0.9, back_ms=0.8, hold_s=0.0, live=True
    )
    world.turn(gateway, seconds=700)
    with pytest.raises(errors.DrillRefused):
        world.do("owner", drills.begin, rollouts, "churn", "monthly")
    yield "a drill is refused, for nobody asks"
    world.do("owner", drills.begin, rollouts, "churn", "monthly", "to see how")
    yield "it is begun all the same"
    world.do("owner", drills.record, rollouts, "churn", measured, "monthly")
    yield "its rollback is rehearsed"
    served = world.do("owner", rollouts.get_endpoint, "churn")
    world.do("owner", rollouts.revert, served, world.get("1.0.0"), "without the stage")
    yield "it serves another version than stands in its stage"
    world.do("owner", rollouts.agree, "churn")
    yield "that is found, and a rollout begins"
    for _ in range(6):
        world.turn(gateway, seconds=400)
        yield "until it serves what it follows"
    world.do("owner", rollouts.agree, "churn")
    yield "they agree"
    world.made(plan=A_TEST)
    promote(world, 3)
    yield "a test of two versions begins"
    for _ in range(5):
        world.turn(gateway)
        yield "until its time is over"
    another = world.register(CHURN, b"another", semver="9.0.0")
    yield "a version is made"
    gateway.failing[world.key_of(CHURN, 3)] = 60
    beside = (Variant(version=f"#{another.number}", weight_ppm=100_000),)
    promote(world, 3, plan=structs.replace(A_TEST, versions=beside), others_verified=(True,))
    for _ in range(7):
        world.turn(gateway)
        yield "a test of three goes on without the one that is shown worse"
    world.do("owner", rollouts.delete_endpoint, "churn")
    yield "the endpoint is deleted"


@pytest.fixture
def world() -> Iterator[RegistryWorld]:
    """An empty registry."""
    with database_in_a_folder() as (database, _):
        yield RegistryWorld(database)


@pytest.mark.req("G8", "G9")
def test_every_kind_of_event_is_replayed() -> None:
    """Invariant 12: a new kind of event says how it is replayed, or why it changes nothing."""
    known = [*FOLDS, *CHANGES_NOTHING, *BESIDE]
    assert sorted(known) == sorted(EventKind)
    assert all((CHANGES_NOTHING | BESIDE).values())


@pytest.mark.req("G8", "G9")
def test_no_event_of_a_whole_life_could_be_spared(world: RegistryWorld) -> None:
    """Invariant 12: each kind of event happens in one life, which replays to the state of every moment;
    without any one kind that changes something it does not."""
    past, moments = Past(world), []
    for what in a_whole_life(world):
        kept = past.catch_up()
        assert past.state == kept, what
        moments.append((len(past.events), kept))
    assert {one.kind for one in past.events} == set(EventKind) - BESIDE.keys()
    for kind in FOLDS:
        assert not agrees([one for one in past.events if one.kind is not kind], moments), kind
    assert agrees([one for one in past.events if one.kind not in CHANGES_NOTHING], moments)
    assert list(find_altered(world.desk, world.context("dan"))) == []


def agrees(events: list[Event], moments: list[tuple[int, State]]) -> bool:
    """Whether these events alone replay to the state of each moment."""
    state, waiting = empty(), list(events)
    for sequence, kept in moments:
        while waiting and waiting[0].sequence <= sequence:
            try:
                replay(state, waiting.pop(0))
            except KeyError:
                return False
        if state != kept:
            return False
    return True


# ---------------------------------------------------------------------------------------- many random lives


class HistoryMachine(RuleBasedStateMachine):
    """Two models, two endpoints, a gateway, and people who do what they may and what they may not."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        database, _ = self.stack.enter_context(database_in_a_folder())
        self.world = RegistryWorld(database)
        self.past = Past(self.world)
        self.serial = 0
        self.tokens: list[str] = []
        for model in MODELS:
            self.world.do("owner", self.world.catalog.create_model, model)
            self.register(model, 0)
            self.register(model, 1)
        for place in (0, 1):
            self.administer(place, "add")
            self.administer(place, "give")
        self.go_live(CHURN, 0)

    def teardown(self) -> None:
        try:
            event_store.verify(self.world.database)
            assert list(find_altered(self.world.desk, self.world.context("dan"))) == []
        finally:
            self.stack.close()

    @invariant()
    def what_the_events_say_is_what_there_is(self) -> None:
        """Invariant 12: replaying the events gives the registry's state, after every act."""
        kept = self.past.catch_up()
        for kind, rows in kept.items():
            assert self.past.state[kind] == rows

    def attempt(self, who: str, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Do it, or have it refused."""
        try:
            done = self.world.do(who, method, *args, **kwargs)
        except errors.ModelkeepError as refusal:
            event(f"{method.__name__}: {refusal.code}")
            return None
        event(method.__name__)
        return done

    def next(self) -> int:
        """A number that was not used before."""
        self.serial += 1
        return self.serial

    def one(self, kind: str, place: int) -> Any:
        """A row of this kind, by what it is known by."""
        there = sorted(self.past.state[kind], key=str)
        return there[place % len(there)] if there else None

    # ------------------------------------------------------------------------------------------------ catalog

    @rule(model=ANY_MODEL, place=PLACE)
    def register(self, model: ModelName, place: int) -> None:
        """New weights, or the same ones of which something else is said."""
        data = b"weights %d" % place
        self.world.register(model, data, params={"n": str(self.next() // 2)})

    @rule(place=PLACE, word=st.sampled_from(["yank", "unyank", "tag", "alias", "protect", "delete", "clear"]))
    def label(self, place: int, word: str) -> None:
        """Everything that may be said of a version."""
        known = self.one("versions", place)
        if known is None:
            return
        model, number = self.model(known[0]), known[1]
        ref, catalog = numbered(model, number), self.world.catalog
        match word:
            case "tag":
                change = ModelChange(
                    description=f"v{place}", set_tags={"a": str(self.next())}, delete_tags=("n",)
                )
                self.attempt("owner", catalog.change_version, ref, change)
            case "alias" | "protect":
                self.attempt("owner", catalog.set_alias, model, "best", ref, protected=word == "protect")
            case "delete":
                self.attempt("owner", catalog.delete_version, ref)
            case "clear":
                self.attempt("owner", self.world.promotions.clear, ref, "mended")
            case _:
                self.attempt("owner", getattr(catalog, word), ref, "because")

    @rule(
        model=ANY_MODEL,
        word=st.sampled_from(["tag", "tag", "unalias", "stages", "delete"]),
        new=st.booleans(),
    )
    def change_model(self, model: ModelName, word: str, new: bool) -> None:
        """Everything that may be said of a model."""
        catalog = self.world.catalog
        match word:
            case "tag":
                change = ModelChange(
                    description="d",
                    owner="bob",
                    set_tags={"t": "1"} if new else {},
                    delete_tags=() if new else ("t",),
                )
                self.attempt("owner", catalog.change_model, model, change)
            case "unalias":
                self.attempt("owner", catalog.delete_alias, model, "best")
            case "stages":
                graph = QA if new else DEFAULT_STAGES
                self.attempt("owner", self.world.promotions.set_stages, model, graph)
            case _:
                self.attempt("owner", catalog.delete_model, model)
                self.attempt(
                    "owner", catalog.create_model, model, "again", "cat", {"x": "y"}, QA if new else None
                )

    @staticmethod
    def model(name: str) -> ModelName:
        return next(model for model in MODELS if str(model) == name)

    # ---------------------------------------------------------------------------------------------- promotion

    @rule(model=ANY_MODEL, reviewed=st.booleans())
    def set_policy(self, model: ModelName, reviewed: bool) -> None:
        """Ask for one person's approval, or for nothing."""
        document = REVIEWED % self.next() if reviewed else b"name: alone\nstages: {}"
        self.attempt("owner", self.world.promotions.set_policy, str(model), document)

    @rule(
        place=PLACE, by=st.sampled_from(["owner", "ann"]), to=st.sampled_from(["staging", "production", "qa"])
    )
    def promote(self, place: int, by: str, to: str) -> None:
        """Move a version, begin to move traffic, be refused, or have to ask."""
        known = self.one("versions", place)
        if known is not None:
            ref = numbered(self.model(known[0]), known[1])
            self.attempt(by, self.world.promotions.promote, ref, to, "better", files_verified=place != 4)

    @rule(place=PLACE, by=PEOPLE)
    def ask(self, place: int, by: str) -> None:
        """Ask for a promotion."""
        known = self.one("versions", place)
        if known is not None:
            ref = numbered(self.model(known[0]), known[1])
            open_request = self.world.promotions.open_request
            self.attempt(by, open_request, ref, "production", "better", files_verified=True)

    @rule(place=PLACE, by=PEOPLE, word=st.sampled_from([*Vote, "withdraw"]))
    def answer(self, place: int, by: str, word: str) -> None:
        """Vote on a request, say something, or take it back."""
        request = self.one("requests", place)
        if request is None:
            return
        key = request.removeprefix("request/")
        if word == "withdraw":
            self.attempt(by, self.world.promotions.withdraw, key, "no more")
        else:
            self.attempt(by, self.world.promotions.review, key, Vote(word), comment="so", files_verified=True)

    @rule(days=st.sampled_from([1, 20]))
    def expire(self, days: int) -> None:
        """Let time pass, and requests with it."""
        self.world.later(days=days)
        self.attempt("owner", self.world.promotions.expire_requests)

    @rule(model=ANY_MODEL)
    def roll_back(self, model: ModelName) -> None:
        """Take production back."""
        self.attempt("owner", self.world.promotions.rollback, model, "errors")

    # ------------------------------------------------------------------------------------------------ traffic

    @rule(
        model=ANY_MODEL,
        word=st.sampled_from(["put", "put at once", "pause", "resume", "step", "abort", "delete"]),
    )
    def move_traffic(self, model: ModelName, word: str) -> None:
        """Words for an endpoint and its rollout."""
        rollouts, name = self.world.rollouts, model.name
        match word:
            case "put" | "put at once":
                plan = PLAN if word == "put" else AT_ONCE
                caller = {} if word == "put" else {"key_header": "x-user", "slow_ms": 100.0}
                self.attempt("owner", rollouts.put_endpoint, name, model, plan=plan, **caller)
            case "delete":
                self.attempt("owner", rollouts.delete_endpoint, name)
            case _:
                self.attempt("owner", getattr(rollouts, word), name, "because")

    @rule(model=ANY_MODEL, place=PLACE)
    def go_live(self, model: ModelName, place: int) -> None:
        """The usual way, which chance alone seldom walks: promote to an endpoint, and let it move."""
        self.attempt("owner", self.world.promotions.set_policy, str(model), b"name: alone\nstages: {}")
        numbers = sorted(number for name, number in self.past.catch_up()["versions"] if name == str(model))
        if numbers:
            ref = numbered(model, numbers[place % len(numbers)])
            promote = self.world.promotions.promote
            self.attempt("owner", promote, ref, "production", "better", files_verified=True)
            self.move_traffic(model, "put")
            self.turn(3, 1.0)

    @rule(times=st.integers(1, 4), seconds=st.sampled_from([1.0, 20.0, 700.0]))
    def turn(self, times: int, seconds: float) -> None:
        """The gateway does as it is told, and the controller looks."""
        for _ in range(times):
            self.world.turn(self.world.gateway, seconds=seconds)

    @rule(place=PLACE, what=st.sampled_from(["breaks", "fails", "is mended"]))
    def behave(self, place: int, what: str) -> None:
        """A version cannot be loaded, or fails, from now on."""
        known = self.one("versions", place)
        if known is None:
            return
        key = self.world.key_of(self.model(known[0]), known[1])
        self.world.gateway.broken.pop(key, None)
        self.world.gateway.failing[key] = 40 if what == "fails" else 0
        if what == "breaks":
            self.world.gateway.broken[key] = "no such operator"

    @rule(model=ANY_MODEL)
    def take_back_alone(self, model: ModelName) -> None:
        """The gateway takes traffic back by itself, and tells of it."""
        try:
            self.world.gateway.roll_back(model.name)
        except errors.ModelkeepError as refusal:
            event(f"taken back alone: {refusal.code}")
            return
        event("taken back alone")
        self.world.gateway.report()

    # ------------------------------------------------------------------------------------------------- people

    @rule(place=PLACE, word=st.sampled_from(["add", "shut out", "give", "take", "token", "revoke"]))
    def administer(self, place: int, word: str) -> None:
        """Who may do what."""
        access, who = self.world.house.access, f"zoe{place % 2}"
        match word:
            case "add":
                kind = PrincipalKind.USER if place else PrincipalKind.SERVICE
                self.attempt("owner", access.create_principal, who, kind)
            case "shut out":
                self.attempt("owner", access.disable_principal, who)
            case "give":
                effect = Effect.DENY if place == 3 else Effect.ALLOW
                scope = {"project": "default", "model": "churn"} if place > 1 else {}
                self.attempt(
                    "owner", access.add_grant, principal=who, role=Role.VIEWER, effect=effect, **scope
                )
            case "take":
                self.attempt("owner", access.remove_grant, self.one("grants", place) or "grt_0")
            case "token":
                verbs = (Verb.READ,) if place else None
                self.attempt("owner", access.create_token, label="ci", principal=who, verbs=verbs)
            case _:
                token = self.one("tokens", place) or "token/none"
                self.attempt("owner", access.revoke_token, token.removeprefix("token/"))


HistoryMachine.TestCase.settings = settings(
    max_examples=settings().max_examples // 2, stateful_step_count=40, suppress_health_check=list(HealthCheck)
)
TestHistories = pytest.mark.req("G8", "G9")(HistoryMachine.TestCase)
