"""Versions side by side: the order, what a difference means, the best one with its reasons, diffs."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.core import compare, errors, semver
from modelkeep.core.catalog import Direction, FileEntry, Metric, ModelVersion
from modelkeep.core.compare import Trend
from modelkeep.core.semver import Bump
from modelkeep.core.signature import DataType, Field, Signature
from modelkeep.core.values import Digest, ModelName

pytestmark = pytest.mark.req("V9", "V10")

NOW = datetime(2026, 1, 25, 14, 3, tzinfo=UTC)


def digest(letter: str) -> Digest:
    """A digest that stands for some content."""
    return Digest(f"sha256:{letter * 64}")


def version(text: str, number: int = 1, **more: Any) -> ModelVersion:
    """A version with these facts; `metrics` may be a mapping of names to values."""
    metrics = more.pop("metrics", ())
    if isinstance(metrics, dict):
        metrics = tuple(Metric(name=name, value=value) for name, value in metrics.items())
    fields: dict[str, Any] = {
        "id": f"version_{number}",
        "model": ModelName("default", "churn"),
        "number": number,
        "semver": text,
        "digest": digest("a"),
        "size_bytes": 3,
        "files": (FileEntry(path="model.onnx", size_bytes=3, digest=digest("a")),),
        "created_at": NOW,
        "created_by": "ann",
    }
    return ModelVersion(**(fields | {"metrics": metrics} | more))


# ------------------------------------------------------------------------------------------------- comparison


def test_versions_stand_in_the_order_of_semver() -> None:
    """1.10.0 comes after 1.9.0, and a release after its candidate; each version once."""
    texts = ["1.10.0", "1.9.0", "1.10.0-rc.1", "2.0.0"]
    versions = [version(text, number) for number, text in enumerate(texts, 1)]

    table = compare.compare([*versions, versions[0]])

    assert [column.semver for column in table.versions] == ["1.9.0", "1.10.0-rc.1", "1.10.0", "2.0.0"]


def test_a_difference_says_whether_it_is_better() -> None:
    """For a loss less is better; the difference is from the nearest version that has the metric."""
    versions = [
        version("1.0.0", 1, metrics={"auc": 0.8, "logloss": 0.5}),
        version("1.1.0", 2, metrics={"auc": 0.9}),
        version("1.2.0", 3, metrics={"auc": 0.9, "logloss": 0.6}),
    ]

    auc, loss = compare.compare(versions).metrics

    assert [cell.trend for cell in auc.cells] == [None, Trend.BETTER, Trend.SAME]
    assert auc.cells[1].delta == pytest.approx(0.1)
    assert auc.cells[1].share == pytest.approx(0.125)
    assert auc.best == (2, 3)
    assert (loss.direction, loss.best) == (Direction.LOWER, (1,))
    assert [cell.value for cell in loss.cells] == [0.5, None, 0.6]
    assert loss.cells[2].trend is Trend.WORSE


def test_what_a_metric_says_of_its_direction_counts() -> None:
    """A name only suggests which way is better."""
    metrics = (Metric(name="time_saved", value=1.0, direction=Direction.HIGHER),)

    row = compare.compare([version("1.0.0", metrics=metrics)]).metrics[0]

    assert row.direction is Direction.HIGHER


def test_metrics_are_asked_for_by_name_and_split() -> None:
    """In the order asked; a bare name means the only split there is, and what is unknown names what is
    near."""
    metrics = (
        Metric(name="auc", value=0.9, split="test"),
        Metric(name="f1", value=0.8, split="test"),
        Metric(name="f1", value=0.7, split="val"),
    )
    one = version("1.0.0", metrics=metrics)

    assert [row.name for row in compare.compare([one], ["f1@val", "auc"]).metrics] == ["f1@val", "auc@test"]
    with pytest.raises(errors.MetricNotFound, match="several splits"):
        compare.compare([one], ["f1"])
    with pytest.raises(errors.MetricNotFound, match="Did you mean auc@test"):
        compare.compare([one], ["auc@testt"])
    with pytest.raises(errors.MetricNotFound, match="--metric"):
        compare.compare([version("1.0.0")], ["auc"])
    with pytest.raises(errors.Invalid):
        compare.compare([])


def test_parameters_are_shown_where_they_differ() -> None:
    """What is the same everywhere is no news; what is not stated is told from what is empty."""
    versions = [
        version("1.0.0", 1, params={"depth": "3", "rate": "0.1"}),
        version("1.1.0", 2, params={"depth": "3", "rate": "0.2", "seed": ""}),
    ]

    rows = compare.compare(versions).params

    assert [(row.name, row.values) for row in rows] == [("rate", ("0.1", "0.2")), ("seed", (None, ""))]


# ------------------------------------------------------------------------------------------------------- best


def test_the_best_is_named_with_everything_that_was_decided() -> None:
    """Ties, skipped versions and a guessed direction are all said."""
    versions = [
        version("1.9.0", 1, metrics={"auc": 0.9}),
        version("1.10.0", 2, metrics={"auc": 0.9}),
        version("2.0.0", 3, metrics={"auc": 0.8}),
        version("2.1.0", 4),
        version("2.2.0", 5, metrics={"auc": 0.99}, tombstone="errors"),
    ]

    found = compare.best(versions, "auc")

    assert (found.best.semver, found.value, found.ties) == ("1.10.0", 0.9, (1,))
    assert [(entry.rank, entry.semver) for entry in found.ranking] == [
        (1, "1.10.0"),
        (1, "1.9.0"),
        (3, "2.0.0"),
    ]
    assert [(entry.number, entry.reason) for entry in found.skipped] == [
        (4, "it has no auc"),
        (5, "it was taken back: errors"),
    ]
    assert (found.considered, found.skipped_count) == (5, 2)
    said = " ".join(found.reasons)
    for words in (
        "churn:1.10.0 has the highest auc of 3 versions: 0.9",
        "same value",
        "suggests higher",
        "2 of 5",
    ):
        assert words in said


def test_the_direction_can_be_given_and_must_be_where_versions_disagree() -> None:
    """Whoever says it is believed; two statements that contradict each other are not."""
    low = version("1.0.0", 1, metrics=(Metric(name="x", value=1.0, direction=Direction.LOWER),))
    high = version("1.1.0", 2, metrics=(Metric(name="x", value=2.0, direction=Direction.HIGHER),))

    assert compare.best([low, high], "x", direction=Direction.HIGHER).best is high
    assert compare.best([low], "x").direction is Direction.LOWER
    with pytest.raises(errors.InvalidMetric, match="name the direction"):
        compare.best([low, high], "x")


def test_values_of_different_splits_are_not_ranked_together() -> None:
    """The split that most have is compared, the others are skipped and told so, unless one is named."""
    versions = [
        version("1.0.0", 1, metrics=(Metric(name="auc", value=0.8, split="test"),)),
        version("1.1.0", 2, metrics=(Metric(name="auc", value=0.7, split="test"),)),
        version("1.2.0", 3, metrics=(Metric(name="auc", value=0.99, split="train"),)),
    ]

    found = compare.best(versions, "auc")
    assert (found.best.number, found.split) == (1, "test")
    assert found.skipped[0].reason == "its auc was measured on train, not on test"
    assert any("--split" in reason for reason in found.reasons)
    assert compare.best(versions, "auc", split="train").best.number == 3
    labelled = compare.best(versions, "auc@train")
    assert (labelled.best.number, labelled.metric, labelled.split, labelled.label) == (
        3,
        "auc",
        "train",
        "auc@train",
    )


def test_a_slice_is_ranked_by_its_label() -> None:
    """The label that is shown is the one that is asked for, and versions without the slice are skipped."""
    sliced = Metric(name="auc", value=0.8, split="test", slice="age<30")
    versions = [
        version("1.0.0", 1, metrics=(sliced,)),
        version("1.1.0", 2, metrics=(Metric(name="auc", value=0.9, split="test"),)),
    ]

    found = compare.best(versions, sliced.label)
    assert (found.best.number, found.value, found.label) == (1, 0.8, "auc@test[age<30]")
    assert found.skipped[0].reason == "it has no auc[age<30]"
    assert compare.compare(versions, [sliced.label]).metrics[0].cells[0].value == 0.8


def test_without_the_metric_there_is_no_best() -> None:
    """The error says which there are; versions that were taken back do not count."""
    versions = [
        version("1.0.0", 1, metrics={"f1": 0.9}),
        version("1.1.0", 2, metrics={"auc": 1}, tombstone="x"),
    ]

    with pytest.raises(errors.MetricNotFound, match="there are f1"):
        compare.best(versions, "auc")


VERSIONS = st.lists(
    st.tuples(
        st.builds(semver.SemVer, st.integers(0, 12), st.integers(0, 12), st.integers(0, 12)),
        st.sampled_from([None, -1.0, 0.0, 0.5, 0.5, 2.0]),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda pair: semver.sort_key(pair[0]),
)


@given(VERSIONS, st.sampled_from(Direction), st.randoms())
def test_the_best_is_the_best_whatever_the_order(
    pairs: list[tuple[semver.SemVer, float | None]], direction: Direction, random: Any
) -> None:
    """No version beats it, every version is ranked or skipped, and the order they come in changes nothing."""
    versions = [
        version(str(number), index, metrics={} if value is None else {"x": value})
        for index, (number, value) in enumerate(pairs, 1)
    ]
    values = [value for _, value in pairs if value is not None]
    shuffled = random.sample(versions, len(versions))
    if not values:
        with pytest.raises(errors.MetricNotFound):
            compare.best(shuffled, "x", direction=direction)
        return

    found = compare.best(shuffled, "x", direction=direction)

    assert found.value == (max(values) if direction is Direction.HIGHER else min(values))
    assert len(found.ranking) + len(found.skipped) == len(versions) == found.considered
    assert len(found.ties) == values.count(found.value) - 1
    ties = [v for v in versions if v.metric("x") is not None and v.metrics[0].value == found.value]
    assert found.best is max(ties, key=lambda v: semver.sort_key(semver.parse(v.semver)))
    assert found == compare.best(versions, "x", direction=direction)


# ------------------------------------------------------------------------------------------------------- diff


def test_a_diff_names_every_change_and_what_it_is_worth() -> None:
    """Files, signature, metrics, parameters, metadata, and the bump with its reasons."""
    took = Signature(inputs=(Field(name="age", type=DataType.INT64),))
    takes = Signature(inputs=(Field(name="years", type=DataType.INT64),))
    a = version(
        "1.0.0",
        1,
        signature=took,
        metrics={"auc": 0.8, "gone": 1.0},
        params={"depth": "3"},
        metadata={"schema": "modelkeep.metadata/v1", "training": {"date": "2026-01-01", "run": "7"}},
    )
    b = version(
        "2.0.0",
        2,
        signature=takes,
        digest=digest("b"),
        files=(
            FileEntry(path="model.onnx", size_bytes=3, digest=digest("b")),
            FileEntry(path="readme.md", size_bytes=1, digest=digest("c")),
        ),
        metrics={"auc": 0.9},
        params={"depth": "4"},
        metadata={"schema": "modelkeep.metadata/v1", "training": {"date": "2026-02-01", "run": "7"}},
    )

    found = compare.diff(a, b)

    assert [(f.path, f.before is None, f.after is None) for f in found.files] == [
        ("model.onnx", False, False),
        ("readme.md", True, False),
    ]
    assert {(change.field, change.breaks) for change in found.signature} >= {("age", True)}
    assert [(m.name, m.before, m.after, m.trend) for m in found.metrics] == [
        ("auc", 0.8, 0.9, Trend.BETTER),
        ("gone", 1.0, None, None),
    ]
    assert [(p.name, p.before, p.after) for p in found.params] == [("depth", "3", "4")]
    assert [(c.name, c.after) for c in found.metadata] == [("training.date", "2026-02-01")]
    assert found.bump is Bump.MAJOR
    assert any("age" in reason for reason in found.reasons)
    assert not found.same_content


def test_a_version_differs_from_itself_in_nothing() -> None:
    """An empty diff, and no bump."""
    one = version("1.0.0", metrics={"auc": 0.9}, params={"a": "b"}, metadata={"x": {"y": [1, 2]}})

    found = compare.diff(one, one)

    assert found.same_content
    assert (found.files, found.params, found.metadata, found.signature) == ((), (), (), ())
    assert (found.files_unchanged, found.bump) == (1, Bump.NONE)
    assert [metric.trend for metric in found.metrics] == [Trend.SAME]
