"""Random sequences of logging, held against a plain-Python model of what MLflow's server does.

The model is a few dictionaries and knows no store: a list of distinct points, of each key the one that is
later than those before, params that stay, tags of which the last counts, a name that follows its tag, and a
bin. It is compared after every step, on both dialects.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelkeep.core import errors
from modelkeep.core.tracking import Metric, RunStatus, Tag
from modelkeep.store.database import Database
from tests.service.tracking_world import TrackingWorld

pytestmark = pytest.mark.req("T1")

KEYS = st.sampled_from(["a", "b", "val/auc", "ü"])
NUMBERS = st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.5, 0.25, 1.0, 1e300])
POINTS = st.builds(
    lambda key, value, at, step: Metric(key=key, value=value, timestamp=at, step=step),
    KEYS,
    NUMBERS,
    st.integers(0, 2),
    st.integers(-1, 2),
)
PAIRS = st.builds(Tag, KEYS, st.sampled_from(["0", "1", "", "two\nlines"]))
TAGS = st.one_of(PAIRS, st.builds(Tag, st.just("mlflow.runName"), st.sampled_from(["x", "y", ""])))
STEPS = st.one_of(
    st.tuples(
        st.just("batch"),
        st.lists(POINTS, max_size=6),
        st.lists(PAIRS, max_size=2, unique_by=lambda param: param.key),
        st.lists(TAGS, max_size=3),
    ),
    st.tuples(st.just("metric"), POINTS),
    st.tuples(st.just("param"), PAIRS),
    st.tuples(st.just("tag"), TAGS),
    st.tuples(st.just("untag"), st.one_of(KEYS, st.just("mlflow.runName"))),
    st.tuples(st.just("status"), st.sampled_from(list(RunStatus))),
    st.tuples(st.just("name"), st.sampled_from(["x", "z", ""])),
    st.tuples(st.just("delete")),
    st.tuples(st.just("restore")),
)


def plain(point: Metric) -> tuple[str, int, int, str]:
    """A point as something that equals itself; the two zeros are one."""
    return point.key, point.timestamp, point.step, repr(point.value + 0.0)


@dataclass
class ModelRun:
    """What a run should be."""

    name: str
    points: dict[tuple[str, int, int, str], Metric] = field(default_factory=dict)
    latest: dict[str, Metric] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    status: str = "RUNNING"
    deleted: bool = False

    def act(self, step: tuple[Any, ...]) -> bool:
        """Do one step; whether it may be done."""
        match step:
            case ("delete",):
                self.deleted = True
                return True
            case ("restore",):
                self.deleted = False
                return True
        if self.deleted:
            return False
        match step:
            case ("batch", points, params, tags):
                return self._log(points, params, tags)
            case ("metric", point):
                return self._log([point], [], [])
            case ("param", param):
                return self._log([], [param], [])
            case ("tag", tag):
                return self._log([], [], [tag])
            case ("untag", key):
                return self.tags.pop(key, None) is not None
            case ("status", status):
                self.status = status
            case ("name", name) if name:
                self.name = self.tags["mlflow.runName"] = name
        return True

    def _log(self, points: list[Metric], params: list[Tag], tags: list[Tag]) -> bool:
        if any(self.params.get(param.key, param.value) != param.value for param in params):
            return False
        self.params |= {param.key: param.value for param in params}
        for point in points:
            self.points.setdefault(plain(point), point)
            known = self.latest.get(point.key)
            if known is None or self._rank(point) > self._rank(known):
                self.latest[point.key] = point
        for tag in tags:
            if tag.key == "mlflow.runName" and not tag.value:
                continue
            self.tags[tag.key] = tag.value
            self.name = tag.value if tag.key == "mlflow.runName" else self.name
        return True

    @staticmethod
    def _rank(point: Metric) -> tuple[int, int, float]:
        return point.step, point.timestamp, 0.0 if math.isnan(point.value) else point.value


def take(world: TrackingWorld, run: str, step: tuple[Any, ...]) -> bool:
    """Do the same step for real; whether it was done."""
    verbs = world.tracking
    try:
        match step:
            case ("batch", points, params, tags):
                world.log(run, points, params, tags)
            case ("metric", point):
                world.do(verbs.log_metric, run, point)
            case ("param", param):
                world.do(verbs.log_param, run, param)
            case ("tag", tag):
                world.do(verbs.set_tag, run, tag)
            case ("untag", key):
                world.do(verbs.delete_tag, run, key)
            case ("status", status):
                world.do(verbs.update_run, run, status=status)
            case ("name", name):
                world.do(verbs.update_run, run, run_name=name)
            case ("delete",):
                world.do(verbs.delete_run, run)
            case ("restore",):
                world.do(verbs.restore_run, run)
    except (errors.InvalidState, errors.InvalidParameter, errors.TagNotFound):
        return False
    return True


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(steps=st.lists(STEPS, min_size=1, max_size=12))
def test_a_run_is_what_was_logged_to_it(database: Database, steps: list[tuple[Any, ...]]) -> None:
    """Whatever is logged in whatever order, and whatever is refused, run and histories are the model's."""
    world = TrackingWorld(database)
    run = world.run(run_name="first")
    model = ModelRun(name="first", tags={"mlflow.runName": "first"})
    for step in steps:
        assert take(world, run, step) == model.act(step), step
    found = world.get(run)
    assert {m.key: plain(m) for m in found.metrics} == {k: plain(m) for k, m in model.latest.items()}
    assert {param.key: param.value for param in found.params} == model.params
    assert {tag.key: tag.value for tag in found.tags} == model.tags
    assert (found.info.run_name, found.info.status) == (model.name, model.status)
    assert (found.info.lifecycle_stage == "deleted") == model.deleted
    for key in {point.key for point in model.points.values()}:
        history = world.read(world.tracking.metric_history, run, key).items
        assert sorted(map(plain, history)) == sorted(known for known in model.points if known[0] == key)
        assert [(m.timestamp, m.step) for m in history] == sorted((m.timestamp, m.step) for m in history)
