"""The controller over a real house: it goes on, whatever is killed, fails or makes noise, and never spins."""

import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from modelkeep.controller import BACKOFF_MAX_S, Controller
from modelkeep.core import errors
from modelkeep.core.events import EventKind
from modelkeep.core.rollout import RolloutState
from modelkeep.core.values import SYSTEM, ModelName, parse_ref
from modelkeep.service.act import Act
from modelkeep.store import events
from modelkeep.store.database import Database
from tests.service.rollout_world import PLAN, STEP_S, FakeGateway, RolloutWorld


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """An open SQLite database."""
    with Database.open(f"sqlite:///{tmp_path / 'store.db'}") as opened:
        yield opened


@pytest.fixture
def world(database: Database) -> RolloutWorld:
    """Three versions of churn, nothing served."""
    made = RolloutWorld(database)
    made.versions("1.0.0", "1.1.0", "1.2.0")
    return made


def drive(world: RolloutWorld, gateway: FakeGateway, controller: Callable[[], Controller]) -> None:
    """Go on until the rollout has ended, with the controller of each turn."""
    for _ in range(60):
        world.turn(gateway, seconds=STEP_S / 3, controller=controller())
        if world.endpoint().rollout is None:
            return
    raise AssertionError(f"it is still {world.latest()}")


@pytest.mark.req("S3", "S9")
def test_a_healthy_rollout_is_brought_to_its_end(world: RolloutWorld) -> None:
    """Every step in turn, and the stage at the end."""
    gateway = world.serving()
    world.promote("1.1.0", by="owner")
    controller = Controller(world.house)
    drive(world, gateway, lambda: controller)
    assert world.state() is RolloutState.SUCCEEDED
    assert world.in_production() == "1.1.0"
    assert [event.body["weight_ppm"] for event in world.events(EventKind.ROLLOUT_STEPPED)] == [
        step.weight_ppm for step in PLAN.steps
    ]
    controller.stop()


@pytest.mark.req("S7", "S8")
def test_a_bad_candidate_is_taken_back(world: RolloutWorld) -> None:
    """Nobody has to be there."""
    gateway = world.serving()
    gateway.failing[world.key("1.1.0")] = 25
    world.promote("1.1.0", by="owner")
    controller = Controller(world.house)
    drive(world, gateway, lambda: controller)
    assert world.state() is RolloutState.ROLLED_BACK
    assert world.in_production() == "1.0.0"
    assert gateway.route().candidate_ppm == 0
    controller.stop()


@pytest.mark.req("I9")
@pytest.mark.parametrize("failing", [0, 25])
def test_a_controller_that_is_killed_at_any_look_is_followed_by_the_next(
    world: RolloutWorld, failing: int
) -> None:
    """Each look by another one, none of which ever ends properly: all that counts is in the store."""
    gateway = world.serving()
    gateway.failing[world.key("1.1.0")] = failing
    world.promote("1.1.0", by="owner")
    for _ in range(80):
        world.later(seconds=6)  # a lease that nobody lets go of
        gateway.turn()
        Controller(world.house).look()
        if world.endpoint().rollout is None:
            break
    assert world.state() is (RolloutState.ROLLED_BACK if failing else RolloutState.SUCCEEDED)
    assert world.in_production() == ("1.0.0" if failing else "1.1.0")
    events.verify(world.database)


@pytest.mark.req("I9")
def test_an_act_that_dies_halfway_leaves_nothing_behind(
    world: RolloutWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The success, the stage and their events are one transaction: all of it or nothing, and then again."""
    gateway = world.serving()
    world.promote("1.1.0", by="owner")
    controller = Controller(world.house)
    enter = world.promotions.enter_stage
    deaths = []

    def die(*args: Any, **kwargs: Any) -> object:
        enter(*args, **kwargs)
        deaths.append(world.now)
        raise RuntimeError("killed after the stage moved")

    with monkeypatch.context() as patched:
        patched.setattr(world.promotions, "enter_stage", die)
        for _ in range(30):
            world.turn(gateway, seconds=STEP_S / 3, controller=controller)
    assert deaths
    assert world.state() is RolloutState.STEPPING
    assert world.in_production() == "1.0.0"
    assert world.get("1.1.0").stage == "none"
    assert len(world.events(EventKind.ROLLOUT_SUCCEEDED)) == 1, "only that of the first version"
    fresh = Controller(world.house)
    drive(world, gateway, lambda: fresh)
    assert world.in_production() == "1.1.0"
    events.verify(world.database)


def test_one_rollout_that_cannot_be_looked_at_stops_no_other(
    world: RolloutWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it raises: the others go on, and it is tried again, less and less often."""
    gateway = world.serving()
    other = world.model(ModelName("default", "other"))
    world.version("1.0.0", other)
    world.do("owner", world.rollouts.put_endpoint, "other", other, plan=PLAN)
    world.promote("1.1.0", by="owner")
    sick = world.latest().id
    world.do("owner", world.promotions.promote, _other(), "production", "first", files_verified=True)
    healthy = world.latest("other").id
    assert healthy > sick
    looks: list[str] = []
    has_news = world.rollouts.has_news

    def look(act: Act, rollout_id: str) -> bool:
        looks.append(rollout_id)
        if rollout_id == sick:
            raise ZeroDivisionError("a fault of ours")
        return has_news(act, rollout_id)

    monkeypatch.setattr(world.rollouts, "has_news", look)
    controller = Controller(world.house)
    for _ in range(8):
        world.turn(gateway, seconds=STEP_S / 3, controller=controller)
    assert world.state("other") is RolloutState.SUCCEEDED
    assert world.state() is RolloutState.PREPARING
    assert looks.count(sick) == 1, "it waits before it is tried again"
    monkeypatch.setattr(world.rollouts, "has_news", has_news)
    monkeypatch.setattr("modelkeep.controller.time", _Later(2 * BACKOFF_MAX_S))
    drive(world, gateway, lambda: controller)
    assert world.state() is RolloutState.SUCCEEDED


def _other() -> Any:
    return parse_ref("other:1.0.0")


class _Later:
    """A clock that is ahead."""

    def __init__(self, ahead_s: float) -> None:
        self._ahead_s = ahead_s

    def monotonic(self) -> float:
        """Seconds, some time from now."""
        return time.monotonic() + self._ahead_s


def test_a_sweep_that_fails_is_no_reason_not_to_look(
    world: RolloutWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor for the other sweeps: each is on its own."""
    swept: list[str] = []

    def broken(*_: Any) -> None:
        raise errors.BlobsUnavailable("The bucket does not answer.")

    monkeypatch.setattr(world.house.catalog, "sweep_drafts", broken)
    monkeypatch.setattr(world.rollouts, "housekeeping", lambda act: swept.append("gateways"))
    controller = Controller(world.house)
    controller.look()
    assert swept == ["gateways"]
    controller.look()
    assert swept == ["gateways"], "once a minute is enough"


@pytest.mark.req("I9")
def test_it_runs_by_itself_and_stops_promptly(world: RolloutWorld) -> None:
    """In its thread, woken by commits: a rollout ends without anybody calling; stopping does not wait for a
    look that is due, and leaves no lease behind."""
    gateway = world.serving()
    world.promote("1.1.0", by="owner")
    controller = Controller(world.house)
    controller.start()
    try:
        deadline = time.monotonic() + 60
        while world.endpoint().rollout is not None and time.monotonic() < deadline:
            world.later(seconds=STEP_S / 3)
            gateway.turn()
            time.sleep(0.02)
        assert world.state() is RolloutState.SUCCEEDED
    finally:
        begin = time.monotonic()
        controller.stop()
    assert time.monotonic() - begin < 30  # prompt, not fast: the machine may be busy
    assert not any(thread.name == "modelkeep-controller" for thread in threading.enumerate())


def test_commits_wake_it_and_do_not_keep_it_spinning(world: RolloutWorld) -> None:
    """Under a storm of commits it looks at most ten times a second; without any, about twice."""
    world.serving()

    def commit(act: Act) -> None:
        act.tx.events.append(EventKind.MODEL_CHANGED, at=act.now, actor=SYSTEM, subject="churn")

    controller = Controller(world.house)
    begun = time.monotonic()
    controller.start()
    try:
        end = begun + 60
        while time.monotonic() < min(begun + 1.5, end) or (controller.looks < 3 and time.monotonic() < end):
            world.do("owner", commit)
        stormy, calm = controller.looks, time.monotonic()
        time.sleep(1.5)
        while controller.looks == stormy and time.monotonic() < end:
            time.sleep(0.02)
        quiet, over = controller.looks - stormy, time.monotonic()
    finally:
        controller.stop()
    # As many as the time that it really took allows, the machine may be busy; and two at its edges.
    assert 3 <= stormy <= 10 * (calm - begun) + 2
    assert 1 <= quiet <= 2 * (over - calm) + 2


def test_its_own_changes_do_not_wake_it_for_ever(world: RolloutWorld) -> None:
    """A rollout that waits causes no commit, and so no look but those of the clock."""
    gateway = world.serving()
    world.promote("1.1.0", by="owner")
    world.until(RolloutState.STEPPING, gateway)
    controller = Controller(world.house)
    controller.look()
    before = len(world.events())
    for _ in range(20):
        controller.look()
    assert len(world.events()) == before
    assert world.latest().step == 0
    controller.stop()


def test_it_outlives_a_store_that_does_not_answer(
    world: RolloutWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so and tries again."""
    calls: list[float] = []

    def away(_: Any, method: Any, *__: Any) -> Any:
        if method == world.house.rollouts.active:
            calls.append(time.monotonic())
        raise errors.StoreUnavailable("The database does not answer.")

    controller = Controller(world.house)
    monkeypatch.setattr(world.house.desk, "read", away)
    controller.start()
    deadline = time.monotonic() + 60
    while len(calls) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    controller.stop()
    assert len(calls) >= 3
    assert all(b - a >= 0.09 for a, b in pairwise(calls))
