"""Feedback on disk: what became known of a prediction later, by the request's id, however late.

Lines of JSON, only appended to, a file a day; the last line for a request and row is what holds. What is
known already is not written again, so feedback may be sent as often as its sender likes. Feedback is on the
disk before it is confirmed. Joining it with predictions is done by whoever reads.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import msgspec
from msgspec import Struct

from modelkeep import telemetry
from modelkeep.core import codec, errors
from modelkeep.core.feedback import Label, Taken
from modelkeep.serving.prediction_log import endpoint_folder

LABELS_MAX_BYTES = 256 * 1024 * 1024
"""Of one endpoint's labels on the disk; the oldest day goes first."""
INDEXED_MAX = 200_000
"""Labels of one endpoint remembered in memory to tell news from repetition. An older one that is repeated is
written again, which changes nothing for a reader."""
SUFFIX = ".labels"
_TAIL_BYTES = 16 * 1024
"""Read at a time to find the end of the last line, which is shorter."""

log = telemetry.Log("gateway.labels")


class Stored(Struct, frozen=True, kw_only=True):
    """A label as it stands on the disk."""

    request_id: str
    row: int
    label: Any
    at: datetime | None
    received_at: datetime


class Labels:
    """One endpoint's labels, as its recorder keeps them."""

    def __init__(self, data: Path, endpoint: str, *, max_bytes: int = LABELS_MAX_BYTES) -> None:
        self._folder = endpoint_folder(data, endpoint)
        self._max_bytes = max_bytes
        self._index: dict[int, int] = {}
        """Hash of request and row to hash of what is known, the oldest first."""
        for stored in read_labels(data, endpoint):
            self._remember(stored.request_id, stored.row, stored.label, stored.at)

    def take(self, labels: list[Label], now: datetime) -> Taken:
        """Keep what is news.

        Raises:
            StorageFull: nothing of it could be kept.
        """
        new = changed = 0
        lines: list[bytes] = []
        before: dict[int, int | None] = {}
        for label in labels:
            key, known = self._hashes(label.request_id, label.row, label.label, label.at)
            had = self._index.get(key)
            if had == known:
                continue
            before.setdefault(key, had)
            new, changed = new + (had is None), changed + (had is not None)
            self._remember(label.request_id, label.row, label.label, label.at)
            stored = Stored(
                request_id=label.request_id, row=label.row, label=label.label, at=label.at, received_at=now
            )
            lines.append(codec.encode(stored) + b"\n")
        if lines:
            try:
                self._append(b"".join(lines), now)
            except OSError as problem:
                for key, had in before.items():
                    if had is None:
                        self._index.pop(key, None)
                    else:
                        self._index[key] = had
                text = f"The feedback could not be written ({problem.strerror}); send it again later."
                raise errors.StorageFull(text) from problem
        return Taken(received=len(labels), new=new, changed=changed, unchanged=len(labels) - new - changed)

    def _append(self, data: bytes, now: datetime) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._folder / f"{now:%Y%m%d}{SUFFIX}"
        with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0) as file:
            end = _end_of_lines(file)  # a line that was cut off is not confirmed, and must not spoil the next
            file.truncate(end)
            file.seek(end)
            try:
                view = memoryview(data)
                while view:
                    view = view[file.write(view) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(end)
                raise
        self._keep_bound(path)

    def _keep_bound(self, writing: Path) -> None:
        files = sorted(self._folder.glob(f"*{SUFFIX}"))
        sizes = {path: path.stat().st_size for path in files}
        total = sum(sizes.values())
        for path in files:
            if total > self._max_bytes and path != writing:
                with contextlib.suppress(OSError):
                    path.unlink()
                    total -= sizes[path]

    def _hashes(self, request_id: str, row: int, label: Any, at: datetime | None) -> tuple[int, int]:
        return _hash((request_id, row)), _hash((label, at))

    def _remember(self, request_id: str, row: int, label: Any, at: datetime | None) -> None:
        key, known = self._hashes(request_id, row, label, at)
        self._index.pop(key, None)
        self._index[key] = known
        if len(self._index) > INDEXED_MAX:
            del self._index[next(iter(self._index))]


def _hash(value: Any) -> int:
    return int.from_bytes(hashlib.blake2b(codec.encode(value), digest_size=8).digest(), "big")


def _end_of_lines(file: IO[bytes]) -> int:
    """Where the last whole line ends."""
    at = file.seek(0, os.SEEK_END)
    while at > 0:
        start = max(0, at - _TAIL_BYTES)
        file.seek(start)
        found = file.read(at - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        at = start
    return 0


def read_labels(data: Path, endpoint: str) -> Iterator[Stored]:
    """All that was ever said, in the order in which it came; the last for a request and row holds."""
    for path in sorted(endpoint_folder(data, endpoint).glob(f"*{SUFFIX}")):
        with (
            contextlib.suppress(FileNotFoundError),
            open(path, "rb") as file,
        ):  # it may go for the bound meanwhile
            for line in file:
                try:
                    yield msgspec.json.decode(line, type=Stored)
                except msgspec.MsgspecError:  # the last line of a writer that was killed
                    log.debug("A label was cut off.", file=path.name)
