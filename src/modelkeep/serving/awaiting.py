"""Predictions of a rollout that wait for their labels: a table of fixed size on disk, forgetting the oldest.

What is kept of a prediction is one small value, the side and the weight under which it was made, and the
caller's hash: enough to count a label that comes days later, on a gateway that was restarted meanwhile. A
label is taken once. It is a file of sets of slots, read and written a few dozen bytes at a time, so that
neither memory nor disk grows with traffic. It is not forced to the disk: after a power failure some labels
find nothing, which costs power and no validity. What a label means is not known here.
"""

import contextlib
import hashlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from modelkeep.core.quality import Kind, Value
from modelkeep.core.routing import Epoch

SLOTS = 8
"""Of one set: a prediction takes the place of the oldest of its set."""
SETS = 65_536
"""Half a million predictions in 23 MB; a plan of many requests and late labels remembers the latest."""
_SLOT = struct.Struct("=QQdIIIIBB2x")
"""Key, caller, the value's number; the moment, the epoch and the weight; flags and the value's kind."""
_Slot = tuple[int, int, float, int, int, int, int, int, int]
_USED, _CANDIDATE, _TOLD = 1, 2, 4
_MARK = b"modelkeep awaiting 1\n".ljust(64, b"\0")


class Prediction(Struct, frozen=True, kw_only=True):
    """One predicted row. `at` is in whole Unix seconds."""

    value: Value
    caller: int
    candidate: bool
    epoch: Epoch
    candidate_ppm: int
    at: int


def _key(request_id: str, row: int) -> int:
    data = b"%d %b" % (row, request_id.encode("utf-8", "surrogateescape"))
    return int.from_bytes(hashlib.blake2b(data, digest_size=8, person=b"awaiting").digest(), "big")


class Awaiting:
    """The table of one rollout. There is one writer, the recorder."""

    def __init__(self, path: Path, *, sets: int = SETS) -> None:
        """Take up the file, or begin one.

        Raises:
            OSError: it cannot be opened or made.
        """
        self.path = path
        self._sets = sets
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        size = len(_MARK) + sets * SLOTS * _SLOT.size
        try:
            if os.pread(self._file, len(_MARK), 0) != _MARK or os.fstat(self._file).st_size != size:
                os.ftruncate(self._file, 0)
                os.ftruncate(self._file, size)
                os.pwrite(self._file, _MARK, 0)
        except OSError:
            self.close()
            raise

    def put(self, request_id: str, row: int, made: Prediction) -> None:
        """Remember a prediction. The same request and row again takes its own place.

        Raises:
            OSError: it could not be written.
        """
        key = _key(request_id, row)
        place, age = 0, 1 << 33
        for where, flags, slot in self._set(key):
            if not flags & _USED:
                place = where
                break
            if slot[0] == key:
                place = where
                break
            if slot[3] < age:
                place, age = where, slot[3]
        flags = _USED | (_CANDIDATE if made.candidate else 0)
        term, seq = made.epoch.term, made.epoch.seq
        packed = _SLOT.pack(
            key,
            made.caller,
            made.value.number,
            made.at,
            term,
            seq,
            made.candidate_ppm,
            flags,
            made.value.kind,
        )
        os.pwrite(self._file, packed, place)

    def take(self, request_id: str, row: int) -> Prediction | None:
        """The prediction that a label belongs to, once; None when it is unknown, forgotten or taken.

        Raises:
            OSError: the disk fails.
        """
        key = _key(request_id, row)
        for where, flags, slot in self._set(key):
            if slot[0] == key and flags & _USED:
                if flags & _TOLD:
                    return None
                _, caller, number, at, term, seq, ppm, _, kind = slot
                os.pwrite(self._file, _SLOT.pack(*slot[:7], flags | _TOLD, kind), where)
                return Prediction(
                    value=Value(Kind(kind), number),
                    caller=caller,
                    candidate=bool(flags & _CANDIDATE),
                    epoch=Epoch(term, seq),
                    candidate_ppm=ppm,
                    at=at,
                )
        return None

    def _set(self, key: int) -> Iterator[tuple[int, int, _Slot]]:
        """Where each slot of a key's set stands, its flags, and all of it."""
        start = len(_MARK) + key % self._sets * SLOTS * _SLOT.size
        data = os.pread(self._file, SLOTS * _SLOT.size, start)
        for place, slot in enumerate(_SLOT.iter_unpack(data)):
            yield start + place * _SLOT.size, slot[7], slot

    def close(self) -> None:
        """Let go of the file."""
        with contextlib.suppress(OSError):
            os.close(self._file)
