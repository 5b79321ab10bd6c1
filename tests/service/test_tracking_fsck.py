"""Whether experiments, runs and logged models are what the events say, and whether it is found when not."""

from typing import Any

import pytest
from sqlalchemy import text

from modelkeep.core.tracking import LoggedModelStatus, RunStatus
from modelkeep.service import projections
from modelkeep.service.act import SYSTEM_CONTEXT
from modelkeep.store.database import Database
from tests.service.tracking_world import TrackingWorld, tags

pytestmark = pytest.mark.req("T1", "G8")


@pytest.fixture
def world(database: Database, monkeypatch: pytest.MonkeyPatch) -> TrackingWorld:
    """A life in small batches: experiments, runs and models in every state that they can be in."""
    monkeypatch.setattr(projections, "TRACKED_BATCH", 2)
    world = TrackingWorld(database)
    made = world.do(world.tracking.create_experiment, "risk", "a", tags(x="1", y="2")).experiment_id
    world.do(world.tracking.set_experiment_tag, "0", "note", "n")
    world.do(world.tracking.delete_experiment_tag, made, "x")
    world.do(world.tracking.rename_experiment, made, "b")
    runs = [world.run(made) for _ in range(3)] + [world.run()]
    world.do(world.tracking.delete_run, runs[0])
    world.do(world.tracking.update_run, runs[1], status=RunStatus.FAILED)
    world.do(world.tracking.update_run, runs[1], status=RunStatus.SCHEDULED)
    world.do(world.tracking.update_run, runs[2], status=RunStatus.FINISHED)
    world.do(world.tracking.delete_experiment, made)
    world.do(world.tracking.restore_experiment, made)
    world.do(world.tracking.delete_run, runs[1])
    for status in (LoggedModelStatus.READY, LoggedModelStatus.FAILED, None):
        model = world.do(world.logged_models.create, made, source_run_id=runs[2]).model_id
        if status is None:
            world.do(world.logged_models.delete, model)
        else:
            world.do(world.logged_models.finalize, model, status)
    return world


def altered(world: TrackingWorld) -> list[tuple[str, str | None, str | None]]:
    """What was found: the place, what was recorded, what stands there."""
    found = projections.find_altered(world.desk, SYSTEM_CONTEXT)
    return [(one.what, one.recorded, one.found) for one in found]


def test_an_untouched_life_is_found_whole(world: TrackingWorld) -> None:
    """Whatever the verbs did, the events say the same."""
    assert altered(world) == []


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("update experiments set name = 'c' where name = 'b'", ("experiments.name", "b", "c")),
        ("update experiments set project = 'x' where id = 0", ("experiments.project", "default", "x")),
        ("update experiments set deleted = 1 where id = 1", ("experiments.deleted", "0", "1")),
        ("delete from experiment_tags where key = 'y'", ("experiments.tags", '{"y":"2"}', "{}")),
        ("update runs set status = 'FAILED' where serial = 3", ("runs.ended", "FINISHED", "FAILED")),
        ("update runs set status = 'FINISHED' where serial = 1", ("runs.ended", None, "FINISHED")),
        ("update runs set experiment_id = 0 where serial = 3", ("runs.experiment", "1", "0")),
        ("update runs set deleted = 0, deleted_time = null where serial = 2", ("runs.deleted", "1", "0")),
        (
            "update logged_models set status = 'LOGGED_MODEL_READY' where serial = 2",
            ("logged_models.status", "LOGGED_MODEL_UPLOAD_FAILED", "LOGGED_MODEL_READY"),
        ),
        ("update logged_models set deleted = 0", ("logged_models.deleted", "1", "0")),
        ("delete from logged_models where serial = 1", ("logged_models", "event *", None)),
        ("update runs set run_id = 'other' where serial = 1", ("runs", None, "a row")),
    ],
)
def test_what_was_altered_is_found(world: TrackingWorld, statement: str, found: tuple[Any, ...]) -> None:
    """A row that somebody changed, removed or put there without an event is named, with both sides."""
    world.database.write(lambda tx: tx.run(text(statement))).result(10)
    seen = [
        (what, "event *" if recorded and recorded.startswith("event ") else recorded, there)
        for what, recorded, there in altered(world)
    ]
    assert found in seen
