"""What may be logged: names, keys, values and batches; which point is the latest; the digest of a log."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.core import errors, tracking
from modelkeep.core.run_names import made_up_name
from modelkeep.core.tracking import (
    Dataset,
    DatasetInput,
    Metric,
    ModelOutput,
    Run,
    RunInfo,
    RunStatus,
    Tag,
    check_batch,
    check_key,
    latest,
    log_digest,
    rank,
)

pytestmark = pytest.mark.req("T1")

INFO = RunInfo(run_id="r", experiment_id="0", run_name="n", user_id="u", status=RunStatus.RUNNING)
POINTS = st.builds(
    lambda key, value, at, step: Metric(key=key, value=value, timestamp=at, step=step),
    st.sampled_from("abc"),
    st.floats(),
    st.integers(0, 3),
    st.integers(-1, 3),
)


def metric(key: str = "m", value: float = 1.0, **more: Any) -> Metric:
    """A point."""
    fields: dict[str, Any] = {"key": key, "value": value, "timestamp": 0}
    return Metric(**(fields | more))


@pytest.mark.parametrize(
    "key", ["a", "val/auc", "a.b", ".hidden", "a b", "a:b", "métrique_1", "-", "a" * 250, "a/.b"]
)
def test_keys_that_mlflow_takes(key: str) -> None:
    """Letters of any language, digits, spaces and a few signs, also as a path that stays below."""
    assert check_key(key) == key


@pytest.mark.parametrize(
    "key",
    [
        *("", ".", "..", "../a", "a/../b", "/a", "a/", "a//b", "./a", "..."),
        *("a\n", "a\x00", "a\u202eb", "a'b", "a\\b", "a%2fb", "a" * 251, "\ud800", "a\tb", "a;b", "C:\\x"),
    ],
)
def test_keys_that_lead_elsewhere_or_hide_something(key: str) -> None:
    """Refused with the field's name, and nothing of the key can steer a terminal."""
    with pytest.raises(errors.InvalidParameter) as caught:
        check_key(key, "metrics[3].key")
    assert caught.value.details["field"] == "metrics[3].key"
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"timestamp": -1}, "timestamp"),
        ({"timestamp": 2**63}, "timestamp"),
        ({"step": 2**63}, "step"),
        ({"step": -(2**63) - 1}, "step"),
        ({"key": "/"}, "key"),
    ],
)
def test_points_out_of_range(more: dict[str, Any], field: str) -> None:
    """Numbers are of 64 bits, and a time is not before 1970."""
    with pytest.raises(errors.InvalidParameter) as caught:
        tracking.check_metric(metric(**more))
    assert caught.value.details["field"] == field
    assert tracking.check_metric(metric(timestamp=2**63 - 1, step=-(2**63))).step == -(2**63)


def test_a_batch_has_bounds() -> None:
    """Of each kind and together; a param twice is refused, a tag twice is not."""
    many = [metric(step=at) for at in range(1000)]
    some = [Tag(f"k{at}", "") for at in range(101)]
    assert check_batch(many, [], []) == (many, [], [])
    for batch, field in (
        (([*many, metric()], [], []), "metrics"),
        (([], some, []), "params"),
        (([], [], some), "tags"),
        ((many, some[:1], []), "metrics, params and tags"),
        (([], [Tag("a", "1"), Tag("b", "1"), Tag("a", "1")], []), "params"),
        (([metric(), metric("/")], [], []), "metrics[1].key"),
        (([], [], [Tag("a", "\x00")]), "value"),
    ):
        with pytest.raises(errors.InvalidParameter) as caught:
            check_batch(*batch)
        assert caught.value.details["field"] == field
    assert check_batch([], [], [Tag("a", "1"), Tag("a", "2")])[2] == [Tag("a", "1"), Tag("a", "2")]


def test_what_is_cut_and_what_is_refused() -> None:
    """Params and run tags are cut, an experiment's tags and a run's name are not."""
    assert len(tracking.check_param(Tag("a", "x" * 6001)).value) == tracking.PARAM_VALUE_MAX
    assert len(tracking.check_run_tag(Tag("a", "x" * 8001)).value) == tracking.TAG_VALUE_MAX
    for refused in (
        lambda: tracking.check_whole_tag(Tag("a", "x" * 20_001)),
        lambda: tracking.check_run_tag(Tag("mlflow.runName", "x" * 251)),
        lambda: tracking.check_run_name("a\x1b[2J"),
        lambda: tracking.check_user("x" * 257),
        lambda: tracking.check_experiment_name(" \t"),
        lambda: tracking.check_experiment_name("x" * 501),
    ):
        with pytest.raises(errors.InvalidParameter):
            refused()


@pytest.mark.parametrize(
    ("part", "length"),
    [("name", 501), ("digest", 37), ("source_type", 37), ("source", 65_536), ("schema", 1_048_576)],
)
def test_a_dataset_has_bounds(part: str, length: int) -> None:
    """Each part as long as MLflow lets it be, and no longer."""
    fields = {"name": "d", "digest": "1", "source_type": "local", "source": "x"}
    fits = DatasetInput(dataset=Dataset(**(fields | {part: "x" * (length - 1)})))
    assert tracking.check_dataset(fits) is fits
    with pytest.raises(errors.InvalidParameter, match=part):
        tracking.check_dataset(DatasetInput(dataset=Dataset(**(fields | {part: "x" * length}))))
    for tag in (Tag("x" * 256, ""), Tag("x", "x" * 501), Tag("x", "\x00")):
        with pytest.raises(errors.InvalidParameter, match=r"dataset\.tags"):
            tracking.check_dataset(DatasetInput(dataset=Dataset(**fields), tags=(tag,)))


@given(st.lists(POINTS, max_size=20))
def test_the_latest_point(points: list[Metric]) -> None:
    """Of each key one that no other of the key ranks above, and the first of those that rank the same."""
    found = latest(points)
    assert found.keys() == {point.key for point in points}
    for key, point in found.items():
        best = max(rank(other) for other in points if other.key == key)
        assert point is next(other for other in points if other.key == key and rank(other) == best)


@given(st.lists(POINTS, max_size=8), st.randoms())
def test_the_digest_does_not_depend_on_order(points: list[Metric], random: Any) -> None:
    """A log has one digest in whatever order it is read, and another one when anything of it differs."""
    run = Run(info=INFO, metrics=tuple(latest(points).values()), tags=(Tag("a", "1"), Tag("b", "2")))
    shuffled = list(points)
    random.shuffle(shuffled)
    other = Run(info=INFO, metrics=run.metrics[::-1], tags=run.tags[::-1])
    assert log_digest(run, points) == log_digest(other, shuffled)
    assert log_digest(run, points) != log_digest(run, [*points, metric("d")])
    assert log_digest(run, None) != log_digest(run, [])
    assert log_digest(run, points) != log_digest(Run(info=INFO, metrics=run.metrics), points)


def test_the_digest_of_a_known_log() -> None:
    """The encoding is fixed: an event of today can be checked by a release of tomorrow."""
    point = metric("auc", math.nan, timestamp=3, step=2)
    run = Run(
        info=INFO,
        metrics=(point,),
        params=(Tag("lr", "0.1"),),
        datasets=(DatasetInput(dataset=Dataset(name="d", digest="1", source_type="s", source="x")),),
        model_outputs=(ModelOutput(model_id="m-" + "0" * 32, step=1),),
    )
    assert (
        log_digest(run, [point, metric("auc", 0.25)])
        == "sha256:3215f7d0b46afee125b21f05f9d6e5c2820af377948e93945c4a7bb143c01cb1"
    )


@given(st.binary(min_size=8, max_size=8))
def test_a_made_up_name(entropy: bytes) -> None:
    """An adjective, a noun and a number, short enough for a column of a terminal, and a name that may be."""
    name = made_up_name(entropy)
    adjective, noun, number = name.split("-")
    assert adjective.isalpha()
    assert noun.isalpha()
    assert 0 <= int(number) < 1000
    assert len(name) <= 20
    assert tracking.check_logged_model_name(name) == tracking.check_run_name(name)


def test_what_is_too_long_for_a_key_is_not_remembered() -> None:
    """Who sends keys of any length fills no memory with them."""
    before = tracking._is_word.cache_info().currsize
    for sign in "abc":
        with pytest.raises(errors.InvalidParameter):
            check_key(sign * 10_000)
    assert tracking._is_word.cache_info().currsize == before
