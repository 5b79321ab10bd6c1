"""Logged models: made, measured, finalized, tagged, deleted; and who may do that."""

import math
from typing import Any

import pytest

from modelkeep.core import errors
from modelkeep.core.access import Role
from modelkeep.core.events import EventKind
from modelkeep.core.tracking import LOGGED_MODEL_ID, LoggedModelStatus, Tag
from modelkeep.store import logged_models as store
from modelkeep.store.database import Database
from tests.service.tracking_world import NOW_MS, TrackingWorld, metric, tags

pytestmark = pytest.mark.req("T3")


@pytest.fixture
def world(database: Database) -> TrackingWorld:
    """An installation in which nothing was tracked yet, on each dialect."""
    return TrackingWorld(database)


def test_a_logged_model_lives(world: TrackingWorld) -> None:
    """It is pending until it is said to be ready; what was said of it stays, and its life is in the log."""
    run = world.run()
    verbs = world.logged_models
    made = world.do(verbs.create, "0", name="tree", model_type="sklearn", source_run_id=run, tags=tags(a="1"))
    assert LOGGED_MODEL_ID.fullmatch(made.model_id)
    assert (made.status, made.creation_timestamp_ms) == (LoggedModelStatus.PENDING, NOW_MS)
    assert world.read(verbs.get, made.model_id) == made
    later = world.pass_time()
    ready = world.do(verbs.finalize, made.model_id, LoggedModelStatus.READY)
    assert (ready.status, ready.last_updated_timestamp_ms) == (LoggedModelStatus.READY, later)
    world.do(verbs.finalize, made.model_id, LoggedModelStatus.READY)
    assert world.do(verbs.set_tags, made.model_id, tags(a="2", b="3")).tags == tags(a="2", b="3")
    world.do(verbs.delete_tag, made.model_id, "a")
    with pytest.raises(errors.TagNotFound):
        world.do(verbs.delete_tag, made.model_id, "a")
    for _ in range(2):
        world.do(verbs.log_params, made.model_id, tags(depth="3"))
    with pytest.raises(errors.InvalidParameter, match="'depth' of logged model"):
        world.do(verbs.log_params, made.model_id, tags(depth="4"))
    found = world.read(verbs.get, made.model_id)
    assert (found.tags, found.params) == (tags(b="3"), tags(depth="3"))
    for _ in range(2):
        world.do(verbs.delete, made.model_id)
    with pytest.raises(errors.LoggedModelNotFound):
        world.read(verbs.get, made.model_id)
    assert [event.kind for event in world.events() if event.subject == f"logged_model/{made.model_id}"] == [
        EventKind.LOGGED_MODEL_CREATED,
        EventKind.LOGGED_MODEL_FINALIZED,
        EventKind.LOGGED_MODEL_DELETED,
    ]


def test_metrics_of_a_model_are_the_runs_too(world: TrackingWorld) -> None:
    """A point that names a model is in the run's history and on the model, with the data it was taken on."""
    run = world.run()
    model = world.do(world.logged_models.create, "0").model_id
    more: dict[str, Any] = {"model_id": model, "dataset_name": "test", "dataset_digest": "1"}
    sent = [metric("auc", 0.5, at=1, **more), metric("auc", math.nan, at=2, **more), metric("mae", 1, at=1)]
    world.log(run, sent)
    world.do(world.tracking.log_metric, run, sent[0])
    found = world.read(world.logged_models.get, model).metrics
    assert [(m.key, str(m.value), m.timestamp, m.dataset_name, m.model_id, m.run_id) for m in found] == [
        ("auc", "0.5", 1, "test", model, run),
        ("auc", "nan", 2, "test", model, run),
    ]
    assert [m.key for m in world.get(run).metrics] == ["auc", "mae"]
    assert len(world.read(world.tracking.metric_history, run, "auc").items) == 2
    elsewhere = world.do(world.logged_models.create, world.experiment("x", "risk").experiment_id).model_id
    for missing in ("m-" + "0" * 32, elsewhere):
        with pytest.raises(errors.LoggedModelNotFound):
            world.do(world.tracking.log_metric, run, metric("new", 1, model_id=missing))
    assert [m.key for m in world.get(run).metrics] == ["auc", "mae"]


def test_a_logged_model_knows_its_versions(world: TrackingWorld) -> None:
    """What it became is shown with it, each once."""
    model = world.do(world.logged_models.create, "0").model_id
    row = world.database.read(lambda tx: store.find(tx, model))
    assert row is not None
    for number in (2, 1, 2):
        world.database.write(lambda tx, n=number: store.add_version(tx, row.serial, "churn", n)).result(10)  # type: ignore[misc]  # a default binds the loop's value
    assert world.read(world.logged_models.get, model).registrations == (("churn", 1), ("churn", 2))


@pytest.mark.parametrize("name", ["a/b", "a:b", "a.b", "50%", "'", '"', "x" * 501, "a\x00b"])
def test_names_that_lead_elsewhere_are_refused(world: TrackingWorld, name: str) -> None:
    """A name becomes part of a path and of a reference."""
    with pytest.raises(errors.InvalidParameter):
        world.do(world.logged_models.create, "0", name=name)


@pytest.mark.req("T3", "G10")
def test_logged_models_of_another_project_do_not_exist(world: TrackingWorld) -> None:
    """For whoever may not read the project; a viewer of it may look and change nothing."""
    experiment = world.experiment("secret", "risk").experiment_id
    model = world.do(world.logged_models.create, experiment).model_id
    outsider = world.person("out", Role.MAINTAINER, "ads")
    viewer = world.person("view", Role.VIEWER, "risk")
    verbs = world.logged_models
    for who, error in ((outsider, errors.NotFound), (viewer, errors.NotAllowed)):
        for refused in (
            lambda who=who: world.do(verbs.create, experiment, who=who),
            lambda who=who: world.do(verbs.finalize, model, LoggedModelStatus.READY, who=who),
            lambda who=who: world.do(verbs.set_tags, model, [Tag("a", "b")], who=who),
            lambda who=who: world.do(verbs.delete_tag, model, "a", who=who),
            lambda who=who: world.do(verbs.log_params, model, [Tag("a", "b")], who=who),
            lambda who=who: world.do(verbs.delete, model, who=who),
        ):
            with pytest.raises(error):
                refused()
    with pytest.raises(errors.LoggedModelNotFound):
        world.read(verbs.get, model, who=outsider)
    assert world.read(verbs.get, model, who=viewer).model_id == model
    run = world.run()
    with pytest.raises(errors.RunNotFound):
        world.do(verbs.create, experiment, source_run_id=run)
