"""The reconciler over the real store: rows from different moments, gateways from another one still, and in
the end the alias or stage, the endpoint and the gateways are the same again.
"""

from itertools import product
from typing import Any

import pytest
from msgspec import structs
from sqlalchemy import delete, insert, select

from modelkeep.controller import Controller
from modelkeep.core.events import EventKind
from modelkeep.core.movement import Rift
from modelkeep.core.rollout import RolloutState
from modelkeep.core.routing import Epoch, rolled_back
from modelkeep.core.values import parse_ref
from modelkeep.service.act import SYSTEM_CONTEXT, Act
from modelkeep.service.agreement import DEAF_S, DRILL_S
from modelkeep.service.traffic import Traffic
from modelkeep.serving.drills import HOLD_S_MAX
from modelkeep.store import events
from modelkeep.store.database import Database
from modelkeep.store.schema import aliases, endpoints, rollouts
from tests.service.promotion_world import CHURN
from tests.service.rollout_world import NAME, STEP_S, FakeGateway, RolloutWorld
from tests.service.test_alias_endpoints import CHAMPION, champion, point

TABLES = {"endpoints": endpoints, "rollouts": rollouts, "aliases": aliases}
Rows = dict[str, list[dict[str, Any]]]
MOMENTS = ("first", "serving", "stepping", "succeeded", "rolling_back")


@pytest.fixture
def world(sqlite_database: Database) -> RolloutWorld:
    """Three versions of churn."""
    made = RolloutWorld(sqlite_database)
    made.versions("1.0.0", "1.1.0", "1.2.0")
    return made


def rows(world: RolloutWorld) -> Rows:
    """What the tables have now."""

    def read(act: Act) -> Rows:
        found: Rows = {}
        for name, table in TABLES.items():
            columns = [column.name for column in table.columns]
            found[name] = [dict(zip(columns, row, strict=True)) for row in act.tx.all(select(table))]
        return found

    return world.desk.read(SYSTEM_CONTEXT, read)


def put(world: RolloutWorld, restored: Rows) -> None:
    """Have the tables say something else, behind everybody's back."""

    def write(act: Act) -> None:
        for name, table in TABLES.items():
            act.tx.run(delete(table))
            if restored[name]:
                act.tx.many(insert(table), restored[name])

    world.desk.do(SYSTEM_CONTEXT, write)


def settle(world: RolloutWorld, gateway: FakeGateway, what: str = "", turns: int = 40) -> int:
    """Go on until nothing disagrees and nothing moves; how many turns that took."""
    controller = Controller(world.house)
    for turn in range(turns):
        world.turn(gateway, seconds=STEP_S)
        controller.compare()
        endpoint = world.endpoint()
        if endpoint.disagreement is None and endpoint.rollout is None and _agree(world, gateway):
            return turn
    said, route, last = world.endpoint(), gateway.route(), world.latest()
    raise AssertionError(
        f"{what} still apart: serves {said.stable} (before {said.previous}) at {said.epoch}, "
        f"rollout {said.rollout}, {said.disagreement}; named {champion(world)}; "
        f"the gateway at {route.epoch} {route.arms}, latest {last.state} {last.outcome} {last.held}"
    )


def _agree(world: RolloutWorld, gateway: FakeGateway) -> bool:
    return gateway.serves() == world.key(champion(world)) and gateway.route().candidate_ppm == 0


def life(world: RolloutWorld) -> tuple[FakeGateway, dict[str, Rows]]:
    """A first version, a rollout that succeeds, one that is taken back; and the rows of five moments."""
    taken: dict[str, Rows] = {}
    gateway = FakeGateway(world)
    point(world, "1.0.0")
    world.made(alias=CHAMPION)
    taken["first"] = rows(world)
    world.until(RolloutState.SUCCEEDED, gateway)
    world.turn(gateway)
    taken["serving"] = rows(world)
    point(world, "1.1.0")
    world.until(RolloutState.STEPPING, gateway)
    world.turn(gateway)
    taken["stepping"] = rows(world)
    world.until(RolloutState.SUCCEEDED, gateway)
    world.turn(gateway)
    taken["succeeded"] = rows(world)
    gateway.failing[world.key("1.2.0")] = 25
    point(world, "1.2.0")
    world.until(RolloutState.ROLLING_BACK, gateway)
    taken["rolling_back"] = rows(world)
    world.until(RolloutState.ROLLED_BACK, gateway)
    world.turn(gateway)
    return gateway, taken


@pytest.mark.req("S9", "I9")
@pytest.mark.parametrize(
    "moments",
    [
        pytest.param(("stepping", "succeeded"), id="around a success"),
        pytest.param(MOMENTS, id="any two", marks=pytest.mark.long),
    ],
)
def test_rows_of_two_moments_come_together_again(world: RolloutWorld, moments: tuple[str, ...]) -> None:
    """One table from one moment, the others from a second, gateways and events from a third: within a bounded
    time one version is named, recorded and served, and none that was taken back has callers."""
    gateway, taken = life(world)
    bad = world.key("1.2.0")
    for table, one, other in product(TABLES, moments, moments):
        _forgive(world)
        put(world, taken[one] | {table: taken[other][table]})
        before = len(gateway.applied)
        settle(world, gateway, f"{one} with {table} of {other}")
        assert all(_weight(applied, bad) == 0 for applied in gateway.applied[before:]), (table, one, other)
    events.verify(world.database)


def _forgive(world: RolloutWorld) -> None:
    """What was taken back only because the rows did not fit is a good version all the same."""
    for semver in ("1.0.0", "1.1.0"):
        if world.get(semver).tombstone is not None:
            world.do("owner", world.promotions.clear, parse_ref(f"churn:{semver}"), "it was good")


def _forgive_all(world: RolloutWorld) -> None:
    world.do("owner", world.promotions.clear, parse_ref("churn:1.2.0"), "mended")


def _weight(table: Any, key: str) -> int:
    route = table.route(NAME)
    return sum(arm.weight_ppm for arm in route.arms if arm.key == key) if route is not None else 0


@pytest.mark.req("S9")
def test_an_alias_that_was_moved_behind_our_back_is_followed(world: RolloutWorld) -> None:
    """Said once in an event and at the endpoint, mended by a rollout at once that keeps the way back loaded;
    and said again when it is over."""
    gateway, _ = life(world)
    _rewrite(world, aliases, number=1)
    controller = Controller(world.house)
    controller.compare()
    controller.compare()
    (said,) = world.events(EventKind.ENDPOINT_DISAGREED)
    assert (said.body["rift"], said.body["mend"], said.number) == ("apart", "start", 1)
    note = world.status().endpoint.disagreement
    assert note is not None
    assert (note.rift, note.pointed, note.served) == (Rift.APART, 1, 2)
    assert world.latest().plan.strategy == "immediate"
    settle(world, gateway)
    assert (gateway.serves(), gateway.route().previous) == (world.key("1.0.0"), world.key("1.1.0"))
    assert (
        len(world.events(EventKind.ENDPOINT_DISAGREED)) == len(world.events(EventKind.ENDPOINT_AGREED)) == 1
    )


@pytest.mark.req("S8", "S9")
def test_what_cannot_be_followed_is_not_named_any_longer(world: RolloutWorld) -> None:
    """A version that was taken back, or that cannot be loaded: the alias names what is served again."""
    gateway, _ = life(world)
    _rewrite(world, aliases, number=3)
    settle(world, gateway)
    assert champion(world) == "1.1.0"
    gateway.broken[world.key("1.0.0")] = "out of memory"
    _rewrite(world, aliases, number=1)
    settle(world, gateway)
    assert champion(world) == "1.1.0"
    assert world.state() is RolloutState.FAILED


@pytest.mark.req("S9")
def test_an_alias_that_is_gone_is_said_and_left_to_a_person(world: RolloutWorld) -> None:
    """Nobody knows what was meant: traffic stays, and setting the alias ends the matter."""
    gateway, _ = life(world)
    world.desk.do(SYSTEM_CONTEXT, lambda act: act.tx.run(delete(aliases)))
    controller = Controller(world.house)
    for _ in range(3):
        world.turn(gateway)
        controller.compare()
    note = world.endpoint().disagreement
    assert note is not None
    assert (note.rift, note.mend) == (Rift.VACANT, "nothing")
    assert gateway.serves() == world.key("1.1.0")
    point(world, "1.1.0")
    settle(world, gateway)


@pytest.mark.req("S9")
def test_a_stage_and_its_endpoint_are_compared_as_well(world: RolloutWorld) -> None:
    """An endpoint that was told another version than stands in the stage is brought to the stage."""
    gateway = world.serving()
    world.promote("1.1.0", by="owner")
    world.until(RolloutState.SUCCEEDED, gateway)
    world.turn(gateway)
    endpoint = world.endpoint()
    world.desk.do(
        SYSTEM_CONTEXT, world.rollouts.revert, endpoint, world.get("1.0.0"), "by hand, without the stage"
    )
    controller = Controller(world.house)
    for _ in range(12):
        world.turn(gateway, seconds=STEP_S)
        controller.compare()
    assert world.in_production() == "1.1.0"
    assert gateway.serves() == world.key("1.1.0")
    assert world.endpoint().disagreement is None


@pytest.mark.req("S8", "S9")
def test_gateways_that_are_ahead_of_a_restored_registry_follow_again(world: RolloutWorld) -> None:
    """They would ignore every route for ever; what a candidate has is taken away first, never given back."""
    gateway, _ = life(world)
    point(world, "1.0.0")
    world.until(RolloutState.STEPPING, gateway)
    world.turn(gateway)
    assert gateway.route().candidate_ppm > 0
    route = gateway.live.routes[0]
    newer = structs.replace(route, epoch=Epoch(route.epoch.term + 7, 3))
    gateway.live = structs.replace(gateway.live, routes=(newer,))
    controller = Controller(world.house)
    world.turn(gateway)
    controller.compare()
    assert world.state() is RolloutState.STEPPING, "a report on its way could explain it once"
    world.turn(gateway)
    controller.compare()
    assert world.state() is RolloutState.CANCELLED
    assert "its counts are not of what is served" in (world.latest().outcome or "")
    assert world.get("1.0.0").tombstone is None, "nothing is known against it"
    settle(world, gateway)
    assert champion(world) == "1.1.0"
    assert world.read("owner", world.rollouts.get_endpoint, NAME).epoch.term > route.epoch.term + 7


@pytest.mark.req("S8", "S9")
@pytest.mark.parametrize("answering", [True, False])
def test_a_rollout_that_lost_its_endpoint_takes_no_caller_from_a_newer_version(
    world: RolloutWorld, answering: bool
) -> None:
    """The endpoint's row is older than what its gateways serve: the rollout that it does not name ends, its
    candidate loses its share, and stable's callers stay where they are the whole time."""
    gateway, taken = life(world)
    _forgive_all(world)
    gateway.failing.clear()
    point(world, "1.2.0")
    world.until(RolloutState.STEPPING, gateway)
    world.turn(gateway)
    assert gateway.route().candidate_ppm > 0
    put(world, rows(world) | {"endpoints": taken["serving"]["endpoints"]})
    gateway.silent = not answering
    before = len(gateway.applied)
    world.turn(gateway, seconds=1.0 if answering else 60.0)
    assert world.latest().state is RolloutState.CANCELLED
    gateway.silent = False
    settle(world, gateway)
    stable = {applied.route(NAME).stable for applied in gateway.applied[before:]}  # type: ignore[union-attr]
    assert stable == {world.key("1.1.0")}
    assert (champion(world), gateway.route().candidate_ppm) == ("1.1.0", 0)


@pytest.mark.req("S8", "S9")
@pytest.mark.parametrize("where", ["gateway", "registry"])
def test_a_registry_that_was_restored_does_not_undo_a_rollback(world: RolloutWorld, where: str) -> None:
    """Invariants 9 and 11: a backup, a rollback, the backup restored: the version that was taken back gets no
    callers, and the registry says again what is served and what was taken back."""
    gateway, _ = life(world)
    backup, bad = rows(world), world.key("1.1.0")
    if where == "gateway":
        gateway.roll_back()
        gateway.report()
    else:
        world.do("owner", world.promotions.rollback, CHURN, "errors", alias=CHAMPION)
    world.turn(gateway)
    assert gateway.serves() == world.key("1.0.0")
    put(world, backup)
    world.do("owner", world.promotions.clear, parse_ref("churn:1.1.0"), "as the backup has it")
    before = len(gateway.applied)
    settle(world, gateway)
    assert all(_weight(applied, bad) == 0 for applied in gateway.applied[before:])
    assert (champion(world), world.endpoint().stable, world.endpoint().previous) == ("1.0.0", 1, None)
    assert world.get("1.1.0").tombstone is not None
    assert world.events(EventKind.ENDPOINT_DISAGREED)[-1].body["mend"] == "take_over"
    events.verify(world.database)


@pytest.mark.req("S8", "S9")
def test_a_success_that_the_registry_forgot_is_taken_over(world: RolloutWorld) -> None:
    """Gateways that keep the former version as the way back have not taken it back, and nor does anybody."""
    gateway, taken = life(world)
    put(world, taken["stepping"])
    before = len(gateway.applied)
    settle(world, gateway)
    assert (champion(world), world.endpoint().previous) == ("1.1.0", 1)
    assert world.get("1.0.0").tombstone is None
    assert all(applied.route(NAME).stable == world.key("1.1.0") for applied in gateway.applied[before:])


@pytest.mark.req("S8", "S9")
def test_what_nothing_is_known_of_stays_until_a_person_says(world: RolloutWorld) -> None:
    """A gateway that is ahead with a version that never held here keeps it, and no rollout elsewhere gets
    round that; whoever promotes that version has it named without a moment of another one."""
    gateway, _ = life(world)
    world.do("owner", world.promotions.clear, parse_ref("churn:1.2.0"), "mended")
    other = world.key("1.2.0")
    spec = world.desk.read(SYSTEM_CONTEXT, Traffic().spec, CHURN, 3)
    route = structs.replace(gateway.live.routes[0], stable=other, previous=None, epoch=Epoch(99, 0))
    gateway.live = structs.replace(gateway.live, routes=(route,), versions=(*gateway.live.versions, spec))
    controller = Controller(world.house)
    for _ in range(4):
        world.turn(gateway, seconds=STEP_S)
        controller.compare()
    note = world.endpoint().disagreement
    assert note is not None
    assert (note.rift, note.mend, note.served) == (Rift.OUTRUN, "nothing", 2)
    assert len(world.events(EventKind.ENDPOINT_DISAGREED)) == 1, "said once"
    before = len(gateway.applied)
    point(world, "1.2.0")
    settle(world, gateway)
    assert champion(world) == "1.2.0"
    assert all(applied.route(NAME).stable == other for applied in gateway.applied[before:])


@pytest.mark.req("S8", "S9")
def test_a_candidate_that_gateways_took_back_stays_away(world: RolloutWorld) -> None:
    """The registry is restored to the middle of a rollout that a gateway has taken back since."""
    gateway, _ = life(world)
    world.do("owner", world.promotions.clear, parse_ref("churn:1.2.0"), "mended")
    gateway.failing.clear()
    point(world, "1.2.0")
    world.until(RolloutState.STEPPING, gateway)
    world.turn(gateway)
    backup, bad = rows(world), world.key("1.2.0")
    gateway.roll_back()
    gateway.report()
    world.turn(gateway)
    put(world, backup)
    world.do("owner", world.promotions.clear, parse_ref("churn:1.2.0"), "as the backup has it")
    before = len(gateway.applied)
    settle(world, gateway)
    assert all(_weight(applied, bad) == 0 for applied in gateway.applied[before:])
    assert world.get("1.2.0").tombstone is not None
    assert champion(world) == "1.1.0"


@pytest.mark.req("S8", "S9")
def test_a_drill_is_no_disagreement(world: RolloutWorld) -> None:
    """For as long as a drill may hold, the former version answers under the same epoch; a gateway that stays
    so for longer is told again."""
    gateway, _ = life(world)
    world.turn(gateway, seconds=DEAF_S)
    controller = Controller(world.house)
    controller.compare()
    stood = gateway.live
    route = stood.routes[0]
    aside = structs.replace(rolled_back(route), epoch=route.epoch)
    drilled = structs.replace(stood, routes=(aside,))

    def look(seconds: float) -> None:
        world.later(seconds=seconds)
        gateway.live = drilled
        gateway.report()
        controller.compare()

    assert DRILL_S > HOLD_S_MAX
    number = world.table_number()
    for _ in range(3):
        look(HOLD_S_MAX / 2)
    assert not world.events(EventKind.ENDPOINT_DISAGREED)
    gateway.live = stood
    gateway.report()
    controller.compare()
    assert world.table_number() == number
    for _ in range(6):
        look(HOLD_S_MAX / 2)
    (said,) = world.events(EventKind.ENDPOINT_DISAGREED)
    assert (said.body["rift"], said.body["mend"]) == ("deaf", "republish")


@pytest.mark.req("S9")
def test_looking_at_endpoints_in_order_reads_no_version(
    world: RolloutWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every few seconds all endpoints are looked at: what gateways call a version is found out once, and no
    route is built."""
    gateway, _ = life(world)
    world.turn(gateway, seconds=DEAF_S)
    controller = Controller(world.house)
    controller.compare()

    def refused(*_args: object, **_more: object) -> None:
        raise AssertionError("nothing is the matter")

    for name in ("spec", "route", "served"):
        monkeypatch.setattr(Traffic, name, refused)
    world.house.desk.read(SYSTEM_CONTEXT, world.rollouts.disagreeing, "")


def _rewrite(world: RolloutWorld, table: Any, **values: Any) -> None:
    world.desk.do(SYSTEM_CONTEXT, lambda act: act.tx.run(table.update().values(**values)))
