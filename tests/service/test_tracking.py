"""Experiments and runs as MLflow means them: names, bins, logging, histories, rights and events.

Random sequences of logging are in `test_tracking_machine`; logged models in `test_tracking_models`; searches
have tests of their own.
"""

import math
from typing import Any

import pytest

from modelkeep.core import errors, tracking
from modelkeep.core.access import Role
from modelkeep.core.events import EventKind
from modelkeep.core.tracking import (
    Dataset,
    DatasetInput,
    LifecycleStage,
    ModelOutput,
    RunStatus,
    Tag,
    log_digest,
)
from modelkeep.store.database import Database
from tests.service.tracking_world import NOW_MS, TrackingWorld, metric, tags

pytestmark = pytest.mark.req("T1")


@pytest.fixture
def world(database: Database) -> TrackingWorld:
    """An installation in which nothing was tracked yet, on each dialect."""
    return TrackingWorld(database)


# ------------------------------------------------------------------------------------------------ experiments


def test_the_default_experiment_is_always_there(world: TrackingWorld) -> None:
    """A script that names no experiment has one to log to, with the id it expects, before any is made."""
    found = world.read(world.tracking.get_experiment, "0")
    assert (found.experiment_id, found.project, found.name) == ("0", "default", "Default")
    assert found == world.read(world.tracking.get_experiment_by_name, "default", "Default")
    assert world.get(world.run("")).info.experiment_id == "0"


def test_a_project_of_its_own_gets_a_default_experiment(world: TrackingWorld) -> None:
    """The experiment 0 of another project is its own, made by its first run and used by the next."""
    first, second = (world.get(world.run("0", project="risk")).info.experiment_id for _ in range(2))
    assert first == second != "0"
    assert world.read(world.tracking.get_experiment, first).project == "risk"
    assert [event.body["name"] for event in world.events(EventKind.EXPERIMENT_CREATED)] == ["Default"]


def test_an_experiment_is_made_renamed_and_tagged(world: TrackingWorld) -> None:
    """Each change is there at once and in the log, from what to what; nothing is logged for no change."""
    made = world.do(world.tracking.create_experiment, "risk", "churn (v2)", tags(team="a"))
    assert (made.tags, made.creation_time, made.last_update_time) == (tags(team="a"), NOW_MS, NOW_MS)
    later = world.pass_time(5)
    renamed = world.do(world.tracking.rename_experiment, made.experiment_id, "churn")
    assert (renamed.name, renamed.last_update_time) == ("churn", later)
    world.do(world.tracking.rename_experiment, made.experiment_id, "churn")
    world.do(world.tracking.set_experiment_tag, made.experiment_id, "team", "b")
    world.do(world.tracking.set_experiment_tag, made.experiment_id, "team", "b")
    world.do(world.tracking.delete_experiment_tag, made.experiment_id, "team")
    assert world.read(world.tracking.get_experiment, made.experiment_id).tags == ()
    assert [event.body for event in world.events(EventKind.EXPERIMENT_CHANGED)] == [
        {"name": {"from": "churn (v2)", "to": "churn"}},
        {"tags": {"team": {"from": "a", "to": "b"}}},
        {"tags": {"team": {"from": "b", "to": None}}},
    ]
    with pytest.raises(errors.TagNotFound, match="team"):
        world.do(world.tracking.delete_experiment_tag, made.experiment_id, "team")


def test_names_are_unique_in_a_project_also_in_the_bin(world: TrackingWorld) -> None:
    """A deleted experiment keeps its name; another project has names of its own."""
    made = world.experiment("churn")
    assert world.experiment("churn", "risk").experiment_id != made.experiment_id
    with pytest.raises(errors.ExperimentExists, match="choose another name"):
        world.experiment("churn")
    world.do(world.tracking.delete_experiment, made.experiment_id)
    with pytest.raises(errors.ExperimentExists, match="restore it"):
        world.experiment("churn")
    other = world.experiment("other")
    with pytest.raises(errors.ExperimentExists):
        world.do(world.tracking.rename_experiment, other.experiment_id, "churn")


def test_an_experiment_goes_to_the_bin_with_its_runs(world: TrackingWorld) -> None:
    """Deleting marks every run, restoring unmarks every run, also one deleted before, as in MLflow."""
    kept, gone = world.experiment("a").experiment_id, world.experiment("b").experiment_id
    runs = [world.run(gone), world.run(gone)]
    bystander = world.run(kept)
    world.do(world.tracking.delete_run, runs[0])
    world.do(world.tracking.delete_experiment, gone)
    assert world.read(world.tracking.get_experiment, gone).lifecycle_stage is LifecycleStage.DELETED
    assert {world.get(run).info.lifecycle_stage for run in runs} == {LifecycleStage.DELETED}
    assert world.get(bystander).info.lifecycle_stage is LifecycleStage.ACTIVE
    for refused in (
        lambda: world.run(gone),
        lambda: world.do(world.tracking.rename_experiment, gone, "c"),
        lambda: world.do(world.tracking.set_experiment_tag, gone, "a", "b"),
        lambda: world.log(runs[1], tags=tags(a="b")),
    ):
        with pytest.raises(errors.InvalidState, match="restore it first"):
            refused()
    with pytest.raises(errors.ExperimentNotFound, match="no active experiment"):
        world.do(world.tracking.delete_experiment, gone)
    world.do(world.tracking.restore_experiment, gone)
    assert {world.get(run).info.lifecycle_stage for run in runs} == {LifecycleStage.ACTIVE}
    with pytest.raises(errors.ExperimentNotFound, match="no deleted experiment"):
        world.do(world.tracking.restore_experiment, gone)
    kinds = (EventKind.EXPERIMENT_DELETED, EventKind.EXPERIMENT_RESTORED)
    assert [event.body["runs"] for event in world.events(*kinds)] == [1, 2]


@pytest.mark.parametrize("wrong", ["x", "", "-1", "1.0", "9" * 19, "٣"])
def test_an_experiment_id_is_a_number(world: TrackingWorld, wrong: str) -> None:
    """What cannot be an id is refused as such, and reaches no statement."""
    with pytest.raises(errors.InvalidParameter, match="whole numbers"):
        world.read(world.tracking.get_experiment, wrong)


# ------------------------------------------------------------------------------------------------------- runs


def test_a_run_begins_with_a_name_and_a_user(world: TrackingWorld) -> None:
    """Name, tag of the name and user are in step, whichever of them the client sends; a name is made up."""
    ann = world.person("ann", Role.CONTRIBUTOR)
    plain = world.do(world.tracking.create_run, "0", who=ann)
    assert plain.info.run_name.count("-") == 2
    assert plain.tags == tags(mlflow__runName=plain.info.run_name)
    assert (plain.info.user_id, plain.info.status, plain.info.start_time) == ("ann", "RUNNING", NOW_MS)
    named = world.do(world.tracking.create_run, "0", run_name="first", user_id="bo", start_time=7)
    assert (named.info.run_name, named.info.user_id, named.info.start_time) == ("first", "bo", 7)
    tagged = world.do(world.tracking.create_run, "0", tags=tags(mlflow__runName="second", mlflow__user="cy"))
    assert (tagged.info.run_name, tagged.info.user_id) == ("second", "cy")
    with pytest.raises(errors.InvalidParameter, match="send one of them"):
        world.do(world.tracking.create_run, "0", run_name="a", tags=tags(mlflow__runName="b"))
    for run in (plain, named, tagged):
        assert world.get(run.info.run_id) == run


def test_a_name_and_its_tag_change_together(world: TrackingWorld) -> None:
    """Renaming a run sets the tag, setting the tag renames the run; removing the tag leaves the name."""
    run = world.run(run_name="a")
    world.do(world.tracking.update_run, run, run_name="b")
    assert (world.get(run).info.run_name, world.get(run).tags) == ("b", tags(mlflow__runName="b"))
    world.do(world.tracking.set_tag, run, Tag("mlflow.runName", "c"))
    assert world.get(run).info.run_name == "c"
    world.log(run, tags=tags(mlflow__runName="d", x="1"))
    assert world.get(run).info.run_name == "d"
    world.do(world.tracking.delete_tag, run, "mlflow.runName")
    assert (world.get(run).info.run_name, world.get(run).tags) == ("d", tags(x="1"))
    assert world.do(world.tracking.update_run, run, run_name="").run_name == "d"


def test_the_end_of_a_run_holds_a_digest_of_its_log(world: TrackingWorld) -> None:
    """What was logged by then can be compared with the event; a run that goes on is said to begin again."""
    run = world.run()
    points = [metric("auc", 0.5, at=1, step=1), metric("auc", math.nan, at=2, step=2)]
    world.log(run, points, tags(lr="0.1"))
    ended = world.do(world.tracking.update_run, run, status=RunStatus.FINISHED, end_time=9)
    assert (ended.status, ended.end_time) == (RunStatus.FINISHED, 9)
    world.do(world.tracking.update_run, run, status=RunStatus.FINISHED)
    (event,) = world.events(EventKind.RUN_ENDED)
    assert event.body == {
        "status": "FINISHED",
        "digest": log_digest(world.get(run), points),
        "metrics": 1,
        "params": 1,
        "tags": 1,
        "points": 2,
    }
    world.do(world.tracking.update_run, run, status=RunStatus.RUNNING)
    world.do(world.tracking.log_metric, run, metric("auc", 0.7, at=3, step=3))
    world.do(world.tracking.update_run, run, status=RunStatus.FAILED)
    digests = [event.body["digest"] for event in world.events(EventKind.RUN_ENDED)]
    assert len(set(digests)) == 2
    assert [event.body.get("again") for event in world.events(EventKind.RUN_STARTED)] == [None, True]


def test_a_long_history_is_left_out_of_the_digest(
    world: TrackingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ending a run keeps other writes waiting for a bounded time, and the event says what it covers."""
    monkeypatch.setattr(tracking, "DIGEST_POINTS_MAX", 2)
    run = world.run()
    world.log(run, [metric("auc", step, step=step) for step in range(3)])
    world.do(world.tracking.update_run, run, status=RunStatus.KILLED)
    (event,) = world.events(EventKind.RUN_ENDED)
    assert (event.body["points"], event.body["digest"]) == (None, log_digest(world.get(run), None))


def test_a_deleted_run_is_seen_and_takes_nothing(world: TrackingWorld) -> None:
    """It can be read and restored; logging to it is refused and leaves nothing."""
    run = world.run()
    for _ in range(2):
        world.do(world.tracking.delete_run, run)
    before = world.get(run)
    assert before.info.lifecycle_stage is LifecycleStage.DELETED
    for refused in (
        lambda: world.do(world.tracking.log_metric, run, metric("a", 1)),
        lambda: world.do(world.tracking.log_param, run, Tag("a", "b")),
        lambda: world.do(world.tracking.set_tag, run, Tag("a", "b")),
        lambda: world.do(world.tracking.delete_tag, run, "mlflow.runName"),
        lambda: world.do(world.tracking.log_outputs, run, [ModelOutput(model_id="m-" + "0" * 32)]),
        lambda: world.do(world.tracking.update_run, run, status=RunStatus.FINISHED),
        lambda: world.do(world.tracking.log_model, run, "{}"),
    ):
        with pytest.raises(errors.InvalidState, match="restore it first"):
            refused()
    assert world.get(run) == before
    for _ in range(2):
        world.do(world.tracking.restore_run, run)
    world.do(world.tracking.log_metric, run, metric("a", 1))
    kinds = [event.kind for event in world.events()]
    assert kinds == [EventKind.RUN_STARTED, EventKind.RUN_DELETED, EventKind.RUN_RESTORED]


# ---------------------------------------------------------------------------------------------------- logging


def test_a_param_is_logged_once(world: TrackingWorld) -> None:
    """The same value again is fine, another is refused with both; a refused batch leaves nothing."""
    run = world.run()
    world.do(world.tracking.log_param, run, Tag("lr", "0.1"))
    world.do(world.tracking.log_param, run, Tag("lr", "0.1"))
    with pytest.raises(errors.InvalidParameter, match=r"'lr' of run \w+ is '0.1' and cannot become '0.2'"):
        world.do(world.tracking.log_param, run, Tag("lr", "0.2"))
    with pytest.raises(errors.InvalidParameter, match="'lr'"):
        world.log(run, [metric("auc", 1)], tags(new="1", lr="0.2"), tags(done="yes"))
    found = world.get(run)
    assert (found.params, found.metrics) == (tags(lr="0.1"), ())
    assert Tag("done", "yes") not in found.tags


def test_values_that_are_too_long_are_cut(world: TrackingWorld) -> None:
    """As MLflow's server does it; a cut param that comes again is still the same value."""
    run = world.run()
    long = "é" * 9000
    for _ in range(2):
        world.log(run, params=tags(p=long), tags=tags(t=long))
    found = world.get(run)
    assert [len(param.value) for param in found.params] == [6000]
    assert [len(tag.value) for tag in found.tags if tag.key == "t"] == [8000]


def test_every_double_comes_back(world: TrackingWorld) -> None:
    """NaN, both infinities, zeros, the smallest and the largest, at the ends of what steps can be."""
    run = world.run()
    values = [math.inf, -math.inf, 0.0, 5e-324, 1.7976931348623157e308, 0.1, 2.0**53 + 2]
    points = [metric(f"m{at}", value, at=2**63 - 1, step=-(2**63)) for at, value in enumerate(values)]
    world.log(run, [*points, metric("nan", math.nan, step=2**63 - 1)])
    found = world.get(run).metrics
    assert [(m.key, m.value, m.timestamp, m.step) for m in found[:-1]] == [
        (m.key, m.value, m.timestamp, m.step) for m in points
    ]
    assert math.isnan(found[-1].value)
    assert found[-1].step == 2**63 - 1


def test_a_run_holds_so_many_keys(world: TrackingWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that could not be shown any more is refused; keys that are there can always be logged again."""
    monkeypatch.setattr("modelkeep.service.run_logging.RUN_KEYS_MAX", 2)
    run = world.run()
    for kind in ("metrics", "params"):
        sent = [metric("a", 1), metric("b", 1)] if kind == "metrics" else tags(a="1", b="1")
        one = [metric("c", 1)] if kind == "metrics" else tags(c="1")
        world.log(run, **{kind: sent})  # type: ignore[arg-type]  # both kinds go the same way
        world.log(run, **{kind: sent})  # type: ignore[arg-type]
        with pytest.raises(errors.LimitExceeded, match=f"2 {kind}"):
            world.log(run, **{kind: one})  # type: ignore[arg-type]
    world.log(run, tags=tags(a="1"))
    with pytest.raises(errors.LimitExceeded, match="2 tags"):
        world.log(run, tags=tags(b="1"))


def test_inputs_are_noted_once(world: TrackingWorld) -> None:
    """A dataset is known by name and digest within an experiment; its first description and tags stay."""
    first, second = world.run(), world.run()
    data = Dataset(name="d", digest="1", source_type="local", source="{}", schema="s", profile="p")
    again = Dataset(name="d", digest="1", source_type="s3", source="other")
    train = DatasetInput(dataset=data, tags=tags(mlflow__data__context="train"))
    world.do(world.tracking.log_inputs, first, [train, DatasetInput(dataset=again)])
    world.do(world.tracking.log_inputs, first, [DatasetInput(dataset=again, tags=tags(x="1"))])
    world.do(world.tracking.log_inputs, second, [DatasetInput(dataset=again)])
    assert world.get(first).datasets == (train,)
    assert world.get(second).datasets == (DatasetInput(dataset=data),)
    model = ModelOutput(model_id="m-" + "a" * 32, step=3)
    world.do(world.tracking.log_inputs, first, models=[model])
    for _ in range(2):
        world.do(world.tracking.log_outputs, first, [model])
    found = world.get(first)
    assert (found.model_inputs, found.model_outputs) == ((model,), (model,))


def test_models_of_older_clients_are_listed_in_a_tag(world: TrackingWorld) -> None:
    """Each is added to the list; what is no object, or has no room, is refused."""
    run = world.run()
    for number in (1, 2):
        world.do(world.tracking.log_model, run, f'{{"artifact_path":"m{number}"}}')
    listed = {tag.key: tag.value for tag in world.get(run).tags}["mlflow.log-model.history"]
    assert listed == '[{"artifact_path":"m1"},{"artifact_path":"m2"}]'
    with pytest.raises(errors.InvalidParameter, match="no JSON"):
        world.do(world.tracking.log_model, run, "[1]")
    with pytest.raises(errors.InvalidParameter, match="room"):
        world.do(world.tracking.log_model, run, '{"a":"%s"}' % ("x" * 8000))


# ---------------------------------------------------------------------------------------------------- history


def test_a_history_is_read_in_pages(world: TrackingWorld) -> None:
    """By time, step and value, each point once, whatever is logged meanwhile before the page's place."""
    run = world.run()
    sent = [
        metric("m", value, at=at, step=step)
        for at, step, value in [
            (2, 0, 1.0),
            (1, 5, 2.0),
            (1, 5, -1.0),
            (1, 4, math.inf),
            (3, 0, math.nan),
            (3, 0, 0.0),
        ]
    ]
    world.log(run, [*sent, *sent, metric("other", 1)])
    pages = []
    page = world.read(world.tracking.metric_history, run, "m", max_results=2)
    while page.next_page_token:
        pages.append(page.items)
        world.log(run, [metric("m", -9, at=0, step=len(pages))])
        page = world.read(
            world.tracking.metric_history, run, "m", max_results=2, page_token=page.next_page_token
        )
    shown = [(m.timestamp, m.step, str(m.value)) for page in (*pages, page.items) for m in page]
    assert shown == [
        (1, 4, "inf"),
        (1, 5, "-1.0"),
        (1, 5, "2.0"),
        (2, 0, "1.0"),
        (3, 0, "0.0"),
        (3, 0, "nan"),
    ]
    with pytest.raises(errors.Invalid, match="does not belong"):
        world.read(world.tracking.metric_history, run, "other", page_token=_token(world, run))
    assert world.read(world.tracking.metric_history, run, "none").items == ()


def _token(world: TrackingWorld, run: str) -> str | None:
    return world.read(world.tracking.metric_history, run, "m", max_results=1).next_page_token


def test_histories_of_several_runs(world: TrackingWorld) -> None:
    """In the order of ids and up to a number of points; unknown runs have none."""
    runs = sorted(world.run() for _ in range(3))
    for at, run in enumerate(runs):
        world.log(run, [metric("m", at, step=step) for step in range(3)])
    asked = [*reversed(runs), "nowhere"]
    found = world.read(world.tracking.metric_history_bulk, asked, "m", max_results=5)
    assert [(m.run_id, m.step) for m in found] == [
        *((runs[0], s) for s in range(3)),
        (runs[1], 0),
        (runs[1], 1),
    ]
    with pytest.raises(errors.InvalidParameter, match="at most 100 runs"):
        world.read(world.tracking.metric_history_bulk, ["x"] * 101, "m")


def test_a_long_history_is_sampled(world: TrackingWorld) -> None:
    """Evenly, with the first and the last point, within the steps that were asked for."""
    run = world.run()
    world.log(run, [metric("m", step, at=100 - step, step=step) for step in range(10)])

    def steps(count: int, **interval: Any) -> list[int]:
        found = world.read(
            world.tracking.metric_history_interval, [run, run, "nowhere"], "m", max_results=count, **interval
        )
        assert {point.run_id for point in found} == {run}
        return [point.step for point in found]

    assert steps(20) == list(range(10))
    assert steps(4) == [0, 3, 6, 9]
    assert steps(3) == [0, 4, 9]
    assert steps(1) == [9]
    assert steps(3, start_step=2, end_step=5) == [2, 4, 5]
    for wrong in ({"start_step": 1}, {"start_step": 2, "end_step": 1}):
        with pytest.raises(errors.InvalidParameter, match="end_step"):
            steps(3, **wrong)


# ----------------------------------------------------------------------------------------------------- rights


@pytest.mark.req("T1", "G10")
def test_what_may_not_be_read_does_not_exist(world: TrackingWorld) -> None:
    """Of another project neither experiments nor runs can be told from none; a viewer may look, not log."""
    experiment = world.experiment("secret", "risk").experiment_id
    run = world.run(experiment)
    outsider = world.person("out", Role.MAINTAINER, "ads")
    viewer = world.person("view", Role.VIEWER, "risk")
    for who in (outsider, viewer):
        error = errors.NotAllowed if who is viewer else errors.NotFound
        for refused in (
            lambda who=who: world.do(world.tracking.create_run, experiment, who=who),
            lambda who=who: world.do(world.tracking.delete_experiment, experiment, who=who),
            lambda who=who: world.do(world.tracking.log_metric, run, metric("m", 1), who=who),
            lambda who=who: world.do(world.tracking.update_run, run, run_name="x", who=who),
            lambda who=who: world.do(world.tracking.delete_run, run, who=who),
            lambda who=who: world.do(world.tracking.restore_run, run, who=who),
        ):
            with pytest.raises(error):
                refused()
    told = []
    for which in (run, "f" * 32):
        with pytest.raises(errors.RunNotFound) as caught:
            world.read(world.tracking.get_run, which, who=outsider)
        told.append(caught.value.message.replace(which, "it"))
    assert told[0] == told[1]
    with pytest.raises(errors.ExperimentNotFound):
        world.read(world.tracking.get_experiment_by_name, "risk", "secret", who=outsider)
    assert world.read(world.tracking.metric_history_bulk, [run], "m", who=outsider) == ()
    assert world.read(world.tracking.get_run, run, who=viewer).info.run_id == run
    with pytest.raises(errors.NotAllowed, match="'track' on risk"):
        world.do(world.tracking.create_experiment, "risk", "mine", who=viewer)
