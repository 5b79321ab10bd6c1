"""Feedback: late, repeated and corrected labels, and what a killed writer or a full disk leaves of them."""

import os
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.core import codec, errors
from modelkeep.core.feedback import Label, Taken, read_feedback
from modelkeep.serving import labels
from modelkeep.serving.labels import Labels, read_labels

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def current(data: Path) -> dict[tuple[str, int], object]:
    """What holds: the last word for each request and row."""
    return {(stored.request_id, stored.row): stored.label for stored in read_labels(data, "churn")}


@pytest.mark.req("S11")
def test_a_label_is_kept_once_and_corrected_in_place(tmp_path: Path) -> None:
    """The same again changes nothing, also days and restarts later; another value is a correction."""
    kept = Labels(tmp_path, "churn")
    assert kept.take([Label(request_id="r1", label=True)], NOW) == Taken(received=1, new=1)
    again = Labels(tmp_path, "churn")
    later = NOW + timedelta(days=9)
    assert again.take([Label(request_id="r1", label=True)], later) == Taken(received=1, unchanged=1)
    assert again.take([Label(request_id="r1", label=False)], later) == Taken(received=1, changed=1)
    assert current(tmp_path) == {("r1", 0): False}
    assert len(list(read_labels(tmp_path, "churn"))) == 2


WORDS = st.tuples(st.sampled_from("abc"), st.integers(0, 1), st.sampled_from([0, 1, "x", 0.5, True]))


@pytest.mark.req("S11")
@given(said=st.lists(WORDS, max_size=25), sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_replaying_any_history_changes_nothing(said: list[tuple[str, int, object]], sizes: list[int]) -> None:
    """However feedback is cut into requests, the last word holds; sending the last words again is no news."""
    with tempfile.TemporaryDirectory() as name:
        data = Path(name)
        kept, left, cuts = Labels(data, "churn"), list(said), list(sizes)
        while left:
            size = cuts[0] if len(cuts) == 1 else cuts.pop(0)
            part, left = left[:size], left[size:]
            kept.take([Label(request_id=i, row=r, label=v) for i, r, v in part], NOW)
        wanted = {(i, r): v for i, r, v in said}
        assert current(data) == wanted
        before = list(read_labels(data, "churn"))
        last = [Label(request_id=i, row=r, label=v) for (i, r), v in wanted.items()]
        assert Labels(data, "churn").take(last, NOW) == Taken(received=len(last), unchanged=len(last))
        assert list(read_labels(data, "churn")) == before


@pytest.mark.req("S11")
def test_a_line_that_was_cut_off_spoils_no_other(tmp_path: Path) -> None:
    """A writer killed in the middle of a line: it was never confirmed, and the next label stands alone."""
    Labels(tmp_path, "churn").take([Label(request_id="r1", label=1)], NOW)
    (path,) = tmp_path.rglob(f"*{labels.SUFFIX}")
    with open(path, "ab") as file:
        file.write(b'{"request_id":"r2","row":0,"lab')
    assert current(tmp_path) == {("r1", 0): 1}
    Labels(tmp_path, "churn").take([Label(request_id="r3", label=3)], NOW)
    assert current(tmp_path) == {("r1", 0): 1, ("r3", 0): 3}


@pytest.mark.req("S11")
def test_a_full_disk_confirms_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Feedback that could not be written is refused, and is news when it is sent again."""
    kept = Labels(tmp_path, "churn")
    kept.take([Label(request_id="r1", label=1)], NOW)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(errors.StorageFull, match="send it again"):
            kept.take([Label(request_id="r1", label=2), Label(request_id="r2", label=2)], NOW)
    assert current(tmp_path) == {("r1", 0): 1}
    taken = kept.take([Label(request_id="r1", label=2), Label(request_id="r2", label=2)], NOW)
    assert taken == Taken(received=2, new=1, changed=1)


@pytest.mark.req("S11")
def test_labels_keep_a_bound_and_the_oldest_day_goes_first(tmp_path: Path) -> None:
    """The day that is written stays, whatever the bound."""
    kept = Labels(tmp_path, "churn", max_bytes=600)
    for day in range(10):
        kept.take([Label(request_id=f"r{day}", label="x" * 100)], NOW + timedelta(days=day))
    found = [stored.request_id for stored in read_labels(tmp_path, "churn")]
    assert found == [f"r{day}" for day in range(10)][-len(found) :]
    assert 1 <= len(found) <= 4


@pytest.mark.req("S11")
def test_memory_is_bounded_and_forgetting_is_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A label that is no longer remembered and repeated is written once more; readers see no difference."""
    monkeypatch.setattr(labels, "INDEXED_MAX", 3)
    kept = Labels(tmp_path, "churn")
    kept.take([Label(request_id=f"r{n}", label=n) for n in range(6)], NOW)
    assert kept.take([Label(request_id="r0", label=0)], NOW).new == 1
    assert current(tmp_path) == {(f"r{n}", 0): n for n in range(6)}


@pytest.mark.req("S11")
def test_feedback_comes_alone_or_in_a_list() -> None:
    """Both forms; a label may be an object of values by name."""
    assert read_feedback(b'{"request_id": "a-1", "label": 3}') == [Label(request_id="a-1", label=3)]
    body = (
        b'{"labels": [{"request_id": "a", "label": {"y": 1, "z": "b"}, "row": 2,'
        b' "at": "2026-01-02T00:00:00Z"}]}'
    )
    (label,) = read_feedback(body)
    assert (label.label, label.row, label.at) == ({"y": 1, "z": "b"}, 2, datetime(2026, 1, 2, tzinfo=UTC))


@pytest.mark.req("S11")
@pytest.mark.parametrize(
    "document",
    [
        {"labels": []},
        {"request_id": "a"},
        {"request_id": "a", "label": None},
        {"request_id": "a", "label": [1]},
        {"request_id": "a", "label": {}},
        {"request_id": "a", "label": {"x": {"y": 1}}},
        {"request_id": "a b", "label": 1},
        {"request_id": "", "label": 1},
        {"request_id": "a", "label": 1, "row": -1},
        {"request_id": "a", "label": 1, "at": "2026-01-02T00:00:00"},
        {"request_id": "a", "label": "x" * 5000},
        {"request_id": "a", "label": 1, "weight": 2},
        {"labels": [{"request_id": "a", "label": 1}] * 10_001},
    ],
)
def test_what_is_no_feedback_is_refused(document: object) -> None:
    """Each with a sentence that says what would be."""
    with pytest.raises(errors.Invalid):
        read_feedback(codec.encode(document))
