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
from typing import Any

from msgspec import Struct

from modelkeep.core.quality import Kind, Value
from modelkeep.core.routing import Epoch

SLOTS = 8
"""Of one set: a prediction takes the place of the oldest of its set."""
SETS = 65_536
"""Half a million predictions in 23 MB, or 40 in the largest test; a plan of many requests and late labels
remembers the latest."""
_SLOT = "=QQdIIIIBBBx"
"""Key, caller, the value's number; the moment, the epoch and the weight; flags, the value's kind and the
place. Of a test of several versions the others' weights follow, and the share that is set aside."""
_USED, _TOLD = 1, 4
_MARK = b"modelkeep awaiting 2\n".ljust(64, b"\0")


class Prediction(Struct, frozen=True, kw_only=True):
    """One predicted row. `at` is in whole Unix seconds."""

    value: Value
    caller: int
    place: int
    epoch: Epoch
    candidate_ppm: int
    at: int
    others_ppm: tuple[int, ...] = ()
    aside_ppm: int = 0


def _key(request_id: str, row: int) -> int:
    data = b"%d %b" % (row, request_id.encode("utf-8", "surrogateescape"))
    return int.from_bytes(hashlib.blake2b(data, digest_size=8, person=b"awaiting").digest(), "big")


class Awaiting:
    """The table of one rollout. There is one writer, the recorder."""

    def __init__(self, path: Path, *, sets: int = SETS, others: int = 0) -> None:
        """Take up the file, or begin one.

        Args:
            others: the further versions of a test.

        Raises:
            OSError: it cannot be opened or made.
        """
        self.path = path
        self._sets = sets
        self._others = others
        self._slot = struct.Struct(_SLOT + (f"{others + 1}I" if others else ""))
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        size = len(_MARK) + sets * SLOTS * self._slot.size
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
        shares = (*made.others_ppm, made.aside_ppm) if self._others else ()
        term, seq = made.epoch.term, made.epoch.seq
        packed = self._slot.pack(
            key,
            made.caller,
            made.value.number,
            made.at,
            term,
            seq,
            made.candidate_ppm,
            _USED,
            made.value.kind,
            made.place,
            *shares,
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
                _, caller, number, at, term, seq, ppm, _, kind, place, *shares = slot
                os.pwrite(self._file, self._slot.pack(*slot[:7], flags | _TOLD, *slot[8:]), where)
                return Prediction(
                    value=Value(Kind(kind), number),
                    caller=caller,
                    place=place,
                    epoch=Epoch(term, seq),
                    candidate_ppm=ppm,
                    at=at,
                    others_ppm=tuple(shares[:-1]),
                    aside_ppm=shares[-1] if shares else 0,
                )
        return None

    def _set(self, key: int) -> Iterator[tuple[int, int, tuple[Any, ...]]]:
        """Where each slot of a key's set stands, its flags, and all of it."""
        size = self._slot.size
        start = len(_MARK) + key % self._sets * SLOTS * size
        data = os.pread(self._file, SLOTS * size, start)
        for place, slot in enumerate(self._slot.iter_unpack(data)):
            yield start + place * size, slot[7], slot

    def close(self) -> None:
        """Let go of the file."""
        with contextlib.suppress(OSError):
            os.close(self._file)
