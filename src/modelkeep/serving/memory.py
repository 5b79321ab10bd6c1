"""Whom each rollout has counted, kept over restarts, so that nobody is new a second time.

One file a rollout, only appended to: what a caller did for the first time, in nine bytes, the kind and the
caller's hash. It is written before the tick that counts it may be sent, so whenever the process is killed,
what was told is remembered. It is not forced to the disk: after a power failure the callers of the last
seconds may be counted again. A memory that is not whole is not used at all; what that means is the ledger's
business.
"""

import contextlib
import hashlib
import struct
import time
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path

from modelkeep import telemetry

RECORD = struct.Struct("!BQ")
KEPT_S = 7 * 86_400.0
"""A file that nothing was written to for so long belongs to a rollout that is long over."""
_MARK = b"modelkeep callers 1\n"

log = telemetry.Log("gateway.memory")

RolloutKey = tuple[str, str | None]
"""Endpoint and rollout."""


class First(IntEnum):
    """What a caller did for the first time in a rollout."""

    ARRIVED = 0
    ANSWERED = 1
    FAILED = 2
    SLOW = 3
    LABELLED = 4
    MISTAKEN = 5
    PREDICTED = 6


class Memory:
    """A folder of such files, which is there only while there is something to remember. Blocking, for a few
    kilobytes at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with contextlib.suppress(OSError):
            for path in folder.iterdir():
                if time.time() - path.stat().st_mtime > KEPT_S:
                    path.unlink()

    def _path(self, key: RolloutKey) -> Path:
        name = f"{len(key[0])} {key[0]} {key[1]}"
        return self._folder / hashlib.sha256(name.encode()).hexdigest()

    def begin(self, key: RolloutKey) -> bool:
        """Have a memory for a rollout. Returns whether there was none before."""
        path = self._path(key)
        if path.exists():
            return False
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            path.write_bytes(_MARK)
        except OSError as problem:
            self._given_up(key, problem)
        return True

    def recall(self, key: RolloutKey) -> list[tuple[First, int]] | None:
        """What was remembered of a rollout; None when there is no memory that is whole."""
        path = self._path(key)
        try:
            data = path.read_bytes()
            if not data.startswith(_MARK):
                return None
            whole = len(data) - (len(data) - len(_MARK)) % RECORD.size
            if whole < len(data):  # a write that was cut off: its tick was never sent
                with open(path, "r+b") as file:
                    file.truncate(whole)
            return [(First(kind), caller) for kind, caller in RECORD.iter_unpack(data[len(_MARK) : whole])]
        except (OSError, ValueError) as problem:
            if not isinstance(problem, FileNotFoundError):
                log.error("What callers did cannot be recalled.", endpoint=key[0], error=str(problem))
            return None

    def note(self, key: RolloutKey, done: Iterable[tuple[First, int]]) -> None:
        """Remember more."""
        path = self._path(key)
        try:
            with open(path, "r+b") as file:  # a memory that was given up does not begin anew in the middle
                file.seek(0, 2)
                file.write(b"".join(RECORD.pack(kind, caller) for kind, caller in done))
        except FileNotFoundError:
            pass
        except OSError as problem:
            self._given_up(key, problem)

    def _given_up(self, key: RolloutKey, problem: OSError) -> None:
        log.error(
            "What callers did cannot be kept: after a restart nobody counts as new in this rollout.",
            endpoint=key[0],
            rollout=key[1],
            error=str(problem),
        )
        with contextlib.suppress(OSError):
            self._path(key).unlink()

    def forget(self, key: RolloutKey) -> None:
        """Let go of a rollout that is over."""
        with contextlib.suppress(OSError):
            self._path(key).unlink(missing_ok=True)
            self._folder.rmdir()  # only when it is empty
