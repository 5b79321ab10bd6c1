"""Webhooks on both databases: the whole way of a message, with leases, replays, pages and sweeps, and the
plans of what is asked all the time.
"""

import threading
from pathlib import Path

import pytest

from modelkeep.core.access import AuthMode
from modelkeep.core.tracking import Tag
from modelkeep.core.webhooks import DeliveryState
from modelkeep.service.act import SYSTEM_CONTEXT, Act
from modelkeep.service.deliveries import LEASE_S, Letter
from modelkeep.store import webhooks as store
from modelkeep.store.database import Database
from tests.service.promotion_world import START
from tests.service.test_webhooks import HookWorld

pytestmark = pytest.mark.req("G16")


@pytest.fixture
def world(database: Database) -> HookWorld:
    """A model and nobody subscribed."""
    return HookWorld(database)


def test_a_message_s_whole_way(world: HookWorld) -> None:
    """Due, leased, failed, tried again, delivered, asked for again, swept, deleted."""
    hook = world.hook("model.changed")
    world.receiver.answers = [500]
    happened = world.happen(3)
    world.turn()
    world.later(seconds=7)
    world.turn(world.postman("one"))
    assert world.sequences() == [happened[0], *happened]
    world.do("owner", world.hooks.replay, hook.id, sequence=happened[1])
    world.turn()
    assert world.sequences()[-1] == happened[1]
    assert [one.sequence for one in world.deliveries(hook)] == happened[::-1]
    assert [len(one.attempts) for one in world.deliveries(hook)] == [1, 2, 2]
    assert len(world.deliveries(hook, DeliveryState.DELIVERED)) == 3
    world.do("owner", world.hooks.replay, hook.id, after=happened[1])
    world.turn()
    assert world.sequences()[-1] == happened[2]
    world.later(days=31)
    world.desk.do(SYSTEM_CONTEXT, world.house.deliveries.sweep)
    assert not world.deliveries(hook)
    world.do("owner", world.hooks.delete_webhook, hook.id)
    assert world.desk.read(SYSTEM_CONTEXT, world.house.deliveries.next, hook.id, "one") is None


def test_of_many_deliverers_one_gets_the_lease(world: HookWorld) -> None:
    """However many reach for it at the same time; another one when it has ended."""
    hook = world.hook("model.changed")
    world.happen(1)
    found = world.desk.read(SYSTEM_CONTEXT, world.house.deliveries.next, hook.id, "nobody")
    assert isinstance(found, Letter)
    got: list[str] = []

    def reach(owner: str) -> None:
        if world.desk.do(SYSTEM_CONTEXT, world.house.deliveries.claim, found, owner):
            got.append(owner)

    threads = [threading.Thread(target=reach, args=(f"d{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1
    world.later(seconds=LEASE_S + 1)
    assert world.desk.do(SYSTEM_CONTEXT, world.house.deliveries.claim, found, "later")
    world.desk.do(SYSTEM_CONTEXT, world.house.deliveries.release, "later")
    assert world.desk.do(SYSTEM_CONTEXT, world.house.deliveries.claim, found, "last")
    world.desk.do(SYSTEM_CONTEXT, world.house.deliveries.release, None)
    assert world.desk.do(SYSTEM_CONTEXT, world.house.deliveries.claim, found, "one more")


def test_what_was_tried_is_told_to_its_project(world: HookWorld) -> None:
    """Experiments, runs and logged models have no model; they belong to a project all the same."""
    world.hook("experiment.*", "run.*", "logged_model.*")
    tracking, models = world.house.tracking, world.house.logged_models
    made = world.do("owner", tracking.create_experiment, "default", "first")
    world.do("owner", tracking.create_experiment, "other", "second")
    world.do("owner", tracking.set_experiment_tag, made.experiment_id, "a", "b")
    world.do(
        "owner",
        tracking.create_run,
        made.experiment_id,
        user_id="ann",
        start_time=1,
        tags=(Tag("a", "b"),),
        run_name="one",
        project=None,
    )
    world.desk.do(world.context("owner"), models.create, made.experiment_id, name="m")
    world.turn()
    kinds = [message.json()["type"] for message in world.receiver.taken]
    assert kinds == ["experiment.created", "experiment.changed", "run.started", "logged_model.created"]
    assert world.house.access.mode is AuthMode.LOCAL


def test_what_is_asked_all_the_time_is_found_by_an_index(tmp_path: Path) -> None:
    """The next message asked for by hand, a page of deliveries, one webhook."""

    def plans(act: Act) -> list[str]:
        tx = act.tx
        return [
            tx.explain(store._REQUESTED, webhook="h"),
            tx.explain(store._NEWEST, webhook="h", sequence=1, part=0, limit=10),
            tx.explain(store._GET, id="h"),
        ]

    with Database.open(f"sqlite:///{tmp_path / 'store.db'}") as database:
        for plan in database.read(lambda tx: plans(Act(tx, SYSTEM_CONTEXT, START))):
            assert "SCAN" not in plan, plan
