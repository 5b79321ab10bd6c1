"""What is remembered of callers over restarts: each counts once however often the gateway is killed, and
where that cannot be known nobody counts."""

import os
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.core.observation import SideCounts
from modelkeep.core.routing import Epoch
from modelkeep.serving.counting import Callers, RouteTally, arrive, count
from modelkeep.serving.ledger import Ledger
from modelkeep.serving.memory import KEPT_S, RECORD, First, Memory

NOW = datetime(2026, 1, 25, 14, 3, tzinfo=UTC)
KEY = ("e", "ro")
EVENTS = st.lists(
    st.tuples(st.integers(0, 9), st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=40
)


class Run:
    """A gateway's counting between two starts: one front and the ledger."""

    def __init__(self, folder: Path, *, resumed: bool) -> None:
        self.ledger = Ledger(NOW, 1, memory=Memory(folder), resumed=[KEY] if resumed else [])
        self.ledger.begin(*KEY)
        self._tally, self._book = RouteTally(*KEY, Epoch(1, 1), 500_000), Callers()

    def meet(self, caller: int, *, failed: bool = False, slow: bool = False) -> None:
        """One request of the candidate, whose counts come home at once."""
        arrive(self._tally.candidate, self._book, caller)
        count(
            self._tally.candidate, self._book, caller, 1.0,
            failed=failed, refused=False, violation=False, slow=slow,
        )  # fmt: skip
        counts = self._tally.collect()
        assert counts is not None
        self.ledger.add(counts)

    def told(self) -> SideCounts:
        """All that was closed."""
        self.ledger.close(NOW)
        total = SideCounts()
        for tick in self.ledger.to_send():
            total = total.plus(tick.candidate)
        return total


@pytest.mark.req("S6", "S7")
@given(events=EVENTS)
def test_a_caller_counts_once_however_often_the_gateway_starts(
    events: list[tuple[int, bool, bool, bool]],
) -> None:
    """Arrived, answered, failed, slow: what was told over many runs is what one run would have told."""
    with tempfile.TemporaryDirectory() as name:
        run, total = Run(Path(name) / "m", resumed=False), SideCounts()
        for caller, failed, slow, killed in events:
            run.meet(caller, failed=failed, slow=slow)
            if killed:
                total = total.plus(run.told())
                run = Run(Path(name) / "m", resumed=True)
        total = total.plus(run.told())
    assert total.requests == len(events)
    assert total.callers_arrived == total.new_callers == len({caller for caller, *_ in events})
    assert total.callers_first_error == len({caller for caller, failed, _, _ in events if failed})
    assert total.callers_first_slow == len({caller for caller, _, slow, _ in events if slow})


@pytest.mark.req("S6")
def test_without_its_memory_a_rollout_counts_nobody_as_new(tmp_path: Path) -> None:
    """Lost, or not what was written: requests and errors go on to count, callers do not, also after the next
    start; the next rollout begins with a clean book."""
    for harm in ("gone", "garbage"):
        folder = tmp_path / harm
        run = Run(folder, resumed=False)
        run.meet(1)
        assert run.told().new_callers == 1
        (path,) = folder.iterdir()
        path.write_bytes(b"garbage") if harm == "garbage" else path.unlink()
        for _ in range(2):
            run = Run(folder, resumed=True)
            run.meet(1, failed=True)
            run.meet(2)
            told = run.told()
            assert (told.requests, told.errors) == (2, 1)
            assert (told.callers_arrived, told.new_callers, told.callers_first_error) == (0, 0, 0)
            assert run.ledger.lost == ["e"]
        run.ledger.forget([])
        run.ledger.begin("e", "next")
        assert run.ledger.lost == []


def test_a_write_that_was_cut_off_is_cut(tmp_path: Path) -> None:
    """Half a record belongs to a tick that was never sent; what comes after it is read again."""
    memory = Memory(tmp_path)
    assert memory.begin(KEY)
    memory.note(KEY, [(First.ANSWERED, 7), (First.FAILED, 2**64 - 1)])
    (path,) = tmp_path.iterdir()
    with path.open("ab") as file:
        file.write(RECORD.pack(First.SLOW, 9)[:5])
    assert memory.recall(KEY) == [(First.ANSWERED, 7), (First.FAILED, 2**64 - 1)]
    assert not memory.begin(KEY)
    memory.note(KEY, [(First.SLOW, 1)])
    assert (memory.recall(KEY) or [])[2:] == [(First.SLOW, 1)]


def test_a_disk_that_refuses_leaves_no_half_memory(tmp_path: Path) -> None:
    """What could not be added makes the whole worthless: it is given up, and does not begin anew in the
    middle of the rollout."""
    memory = Memory(tmp_path / "m")
    memory.begin(KEY)
    (path,) = (tmp_path / "m").iterdir()
    path.unlink()
    path.symlink_to("/dev/full")
    memory.note(KEY, [(First.ANSWERED, caller) for caller in range(10_000)])
    assert memory.recall(KEY) is None
    memory.note(KEY, [(First.ANSWERED, 1)])
    assert memory.recall(KEY) is None
    (tmp_path / "file").touch()
    assert Memory(tmp_path / "file").begin(KEY), "a folder that cannot be made is no memory"


def test_what_is_over_is_removed(tmp_path: Path) -> None:
    """With the rollout its file, with the last file the folder, and at a start what is long over."""
    memory = Memory(tmp_path / "m")
    memory.begin(KEY)
    memory.begin(("e", "other"))
    memory.forget(KEY)
    (path,) = (tmp_path / "m").iterdir()
    Memory(tmp_path / "m")
    assert path.exists()
    old = time.time() - KEPT_S - 60
    os.utime(path, (old, old))
    Memory(tmp_path / "m")
    assert not path.exists()
    memory.forget(("e", "other"))
    assert not (tmp_path / "m").exists()
