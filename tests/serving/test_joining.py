"""Labels find their predictions days later, on a gateway that was restarted, once each; nothing grows."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from modelkeep.core import codec
from modelkeep.core.feedback import Label
from modelkeep.core.observation import PairCounts
from modelkeep.core.quality import Kind, Quality, Value
from modelkeep.core.recording import Privacy, Treatment
from modelkeep.core.routing import Arm, Epoch, Route
from modelkeep.core.shift import LEARNED_FROM, Shift
from modelkeep.serving import messages, records
from modelkeep.serving.awaiting import SLOTS, Awaiting, Prediction
from modelkeep.serving.joining import FILES_KEPT, SUFFIX, Joining
from modelkeep.serving.messages import Door
from modelkeep.serving.prediction_log import FOLDER
from modelkeep.serving.shifting import Shifting
from tests.serving import models

SPEC = models.spec({"model.onnx": b"1"}, "1.0.0")
ROUTE = Route(
    endpoint="churn",
    epoch=Epoch(1, 2),
    stable=SPEC.key,
    candidate=SPEC.key,
    candidate_ppm=100_000,
    rollout="ro_1",
    quality=Quality(tolerance=1.0),
)


def made(at: int, caller: int = 7) -> Prediction:
    """A prediction of 0.5 on the candidate."""
    value = Value(Kind.NUMBER, 0.5)
    return Prediction(value=value, caller=caller, place=1, epoch=Epoch(2, 3), candidate_ppm=100_000, at=at)


def predicted(request_id: str, outputs: Any, caller: int = 7, **changes: Any) -> records.Predicted:
    """What a front says of an answer."""
    body = codec.encode({"outputs": outputs})
    record = records.Predicted(
        "churn", "ro_1", request_id, SPEC.key, 1, 2, 100_000, 1, caller, 1e9, Door.PREDICT, body
    )
    return structs.replace(record, **changes)


def told(joining: Joining, *labels: tuple[str, Any]) -> list[messages.LabelsOf]:
    """What labels come to."""
    joining.labelled("churn", [Label(request_id=request_id, label=label) for request_id, label in labels])
    return joining.noted()


@pytest.mark.req("S7", "S11")
def test_a_prediction_waits_over_restarts_and_is_taken_once(tmp_path: Path) -> None:
    """Everything that was kept of it comes back; a second label finds nothing, nor does an unknown one."""
    path = tmp_path / "a" / "table"
    table = Awaiting(path, sets=4)
    table.put("r1", 0, made(10))
    table.put("r1", 1, made(11, caller=2**64 - 1))
    table.close()
    again = Awaiting(path, sets=4)
    assert again.take("r1", 0) == made(10)
    assert again.take("r1", 0) is None
    assert again.take("r2", 0) is None
    again.close()
    third = Awaiting(path, sets=4)
    assert third.take("r1", 0) is None
    assert third.take("r1", 1) == made(11, caller=2**64 - 1)
    third.close()
    other = Awaiting(path, sets=8)  # of another release: begun anew
    assert other.take("r1", 1) is None
    other.close()


@settings(max_examples=30)
@given(count=st.integers(1, 60))
def test_a_full_table_forgets_the_oldest_and_never_grows(
    count: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """However many come, the latest of a set are there and the file is as large as it was."""
    table = Awaiting(tmp_path_factory.mktemp("t") / "table", sets=1)
    size = table.path.stat().st_size
    for at in range(count):
        table.put(f"r{at}", 0, made(at))
    kept = [at for at in range(count) if table.take(f"r{at}", 0) is not None]
    assert kept == list(range(max(0, count - SLOTS), count))
    assert table.path.stat().st_size == size
    table.close()


@pytest.mark.req("S7")
def test_labels_are_counted_where_was_predicted(tmp_path: Path) -> None:
    """By side, epoch and weight, also when the route has moved on since; once each, whatever is said later;
    what cannot be compared is counted as such; other endpoints and unknown requests count nothing."""
    joining = Joining(tmp_path)
    joining.watch([ROUTE])
    for record in (
        predicted("a", [10.0, 20.0]),
        predicted("b", [10.0], 8, place=0),
        predicted("c", [10.0], 9, seq=3, candidate_ppm=500_000),
    ):
        joining.predicted(record, SPEC, None)
    joining.watch([structs.replace(ROUTE, epoch=Epoch(1, 3), candidate_ppm=500_000)])
    joining.labelled("other", [Label(request_id="a", label=0)])
    assert joining.noted() == []
    first, second = told(joining, ("a", 10.5), ("b", 99), ("c", "ten"), ("nobody", 1))
    assert (first.epoch, first.candidate_ppm) == (Epoch(1, 2), 100_000)
    assert first.candidate == messages.ToldSide(labels=1, callers=[(7, False)])
    assert first.stable == messages.ToldSide(labels=1, wrong=1, callers=[(8, True)])
    assert (second.epoch, second.candidate) == (Epoch(1, 3), messages.ToldSide(labels=1, odd=1))
    assert told(joining, ("a", 99)) == []
    joining.labelled("churn", [Label(request_id="a", row=1, label=99)])
    (row,) = joining.noted()
    assert row.candidate.callers == [(7, True)]
    joining.close()


@pytest.mark.req("S3", "S7")
def test_labels_of_several_versions_are_counted_at_their_places(tmp_path: Path) -> None:
    """Over a restart, with the weights of all of them then; a prediction under another test's route waits for
    nothing."""
    route = structs.replace(ROUTE, others=(Arm(key=SPEC.key, weight_ppm=200_000, from_ppm=100_000),))
    joining = Joining(tmp_path)
    joining.watch([route])
    for place, request_id in enumerate("abc"):
        shares: dict[str, Any] = {"others_ppm": (200_000,), "aside_ppm": 7}
        joining.predicted(predicted(request_id, [10.0], 7 + place, place=place, **shares), SPEC, None)
    joining.predicted(predicted("d", [10.0], 10), SPEC, None)
    joining.close()
    again = Joining(tmp_path)
    again.watch([route])
    (found,) = told(again, ("a", 10.0), ("b", 99), ("c", 99), ("d", 99))
    assert (found.candidate_ppm, found.others_ppm, found.aside_ppm) == (100_000, (200_000,), 7)
    assert found.stable.callers == [(7, False)]
    assert found.candidate.callers == [(8, True)]
    assert [side.callers for side in found.others] == [[(9, True)]]
    again.close()


@pytest.mark.req("S4", "S7")
def test_a_label_says_which_of_two_answers_to_one_request_was_wrong(tmp_path: Path) -> None:
    """Over a restart, of the first row, once; where one of the two failed, or the label cannot be compared,
    it says nothing."""
    shadowed = structs.replace(ROUTE, candidate=None, candidate_ppm=0, shadow=SPEC.key, shadow_ppm=500_000)

    def pair(request_id: str, stable: list[float], shadow: list[float], status: int = 200) -> records.Pair:
        replies = [
            records.Reply(SPEC.key, code, 1.0, codec.encode({"outputs": said}))
            for code, said in ((200, stable), (status, shadow))
        ]
        return records.Pair("churn", "ro_1", 1, 2, 0, 10.0, Door.PREDICT, *replies, request_id)

    joining = Joining(tmp_path)
    joining.watch([shadowed])
    for each in (
        pair("a", [10.0, 99.0], [20.0, 0.0]),
        pair("b", [20.0], [10.0]),
        pair("c", [10.0], [10.5]),
        pair("d", [10.0], [20.0], status=500),
        pair("e", [10.0], [20.0]),
        pair("", [10.0], [20.0]),
    ):
        joining.paired(each, (SPEC, SPEC), None)
    hidden = Privacy(fields={"score": Treatment.DROP})
    joining.paired(pair("f", [10.0], [20.0]), (SPEC, SPEC), hidden)
    joining.close()
    again = Joining(tmp_path)
    again.watch([shadowed])
    labels: list[tuple[str, Any]] = [(name, 10.0) for name in ("a", "b", "c", "d", "f", "", "a")]
    assert told(again, *labels, ("e", "ten")) == []
    again.labelled("churn", [Label(request_id="a", row=1, label=99.0)])
    ((key, counts),) = again.noted_pairs().items()
    assert key == ("churn", "ro_1", Epoch(1, 2), 0)
    assert counts == PairCounts(version=SPEC.key, labelled=3, only_stable_wrong=1, only_shadow_wrong=1)
    assert again.noted_pairs() == {}
    again.close()


@pytest.mark.req("S7", "S11")
def test_what_privacy_forbids_is_not_remembered(tmp_path: Path) -> None:
    """A dropped or hashed output waits for nothing; an answer in no form of ours neither."""
    joining = Joining(tmp_path)
    joining.watch([ROUTE])
    for treatment in (Treatment.DROP, Treatment.HASH):
        joining.predicted(predicted("a", [1.0]), SPEC, Privacy(fields={"score": treatment}))
    joining.predicted(structs.replace(predicted("a", [1.0]), body=b"\xff"), SPEC, None)
    joining.predicted(predicted("a", [None, {"x": 1}]), SPEC, None)
    joining.predicted(predicted("a", [1.0], rollout="ro_0"), SPEC, None)
    assert told(joining, ("a", 1.0)) == []
    joining.close()


@pytest.mark.req("S7")
def test_a_named_output_is_judged(tmp_path: Path) -> None:
    """Of several outputs the named one; one that is not there waits for nothing."""
    for name, found in (("score", 1), ("reason", 1), ("nothing", 0)):
        joining = Joining(tmp_path / name)
        joining.watch([structs.replace(ROUTE, quality=Quality(output=name))])
        answer = {"score": [1.0], "reason": ["late"]}
        joining.predicted(predicted("a", answer), None, None)
        label = 1.0 if name == "score" else "late"
        assert sum(len(each.candidate.callers) for each in told(joining, ("a", label))) == found
        joining.close()


@pytest.mark.req("S7")
def test_tables_of_former_rollouts_are_few(tmp_path: Path) -> None:
    """The newest stay for a while, the others go; a disk that refuses one costs labels and nothing else."""
    joining = Joining(tmp_path)
    for number in range(FILES_KEPT + 4):
        joining.watch([structs.replace(ROUTE, rollout=f"ro_{number}")])
        joining.predicted(predicted("a", [1.0], rollout=f"ro_{number}"), SPEC, None)
    joining.watch([])
    assert len(list((tmp_path / FOLDER).glob(f"*/*{SUFFIX}"))) == FILES_KEPT
    (tmp_path / "file").write_bytes(b"")
    refused = Joining(tmp_path / "file")
    refused.watch([ROUTE])
    refused.predicted(predicted("a", [1.0]), SPEC, None)
    assert told(refused, ("a", 1.0)) == []


@pytest.mark.req("S7")
def test_callers_are_put_into_bands_that_the_first_of_them_set() -> None:
    """The first callers are not counted and set tenths; then each counts once, by its first row, on its side;
    what is no prediction, and callers of other rollouts, count nothing."""
    shifting = Shifting()
    route = structs.replace(ROUTE, quality=None, shift=Shift())
    shifting.watch([route])
    for caller in range(LEARNED_FROM):
        shifting.predicted(predicted("a", [float(caller)], caller), SPEC, None)
    assert shifting.noted() == []
    shifting.watch([structs.replace(route, epoch=Epoch(1, 3))])  # a step later the bands are the same
    for caller, value in ((200, 5.0), (200, 95.0), (201, 95.0), (0, 5.0)):
        shifting.predicted(predicted("a", [value, 5.0], caller), SPEC, None)
    shifting.predicted(predicted("a", [15.0], 202, place=0), SPEC, None)
    shifting.predicted(predicted("a", [None], 203), SPEC, None)
    shifting.predicted(predicted("a", [5.0], 204, rollout="ro_2"), SPEC, None)
    (told,) = shifting.noted()
    assert (told.candidate, told.stable) == ([(200, 0), (201, 9)], [(202, 1)])
    assert (told.epoch, told.candidate_ppm) == (Epoch(1, 2), 100_000)
    assert shifting.noted() == []
