"""The gateway's local journal: what table it obeyed, when and why, so that it can go on without asking
anyone.

Hash-chained JSON lines, each `<sha256 of the line before and this body> <body>`. The first one says in which
format the others are, and can be read whatever they are. A forward move is two
records: INTENT, durable before any front swaps, and APPLIED after all have. A rollback is one record, written
after the swap, because nothing may stand between a rollback and its effect. Every record that changes the
table carries it whole, so the live table is the last one that counts, whatever came between.

    kind       counts when                            written
    opened     never                                  at start
    intent     its APPLIED follows                    before the swap
    applied    with its INTENT                        after the swap
    rollback   at once                                after the swap
    snapshot   at once                                at start, on compaction, after a failed write
    taken      never (says which rollbacks are left)  when the control plane has taken rollbacks over
    closed     never (says that the stop was clean)   at the end

A snapshot says how things stand when it is written, which may be ahead of records that were waiting before
it. So no record says alone what has changed: each says what holds, and can be read twice.

Whoever changes what a record carries, so that former ones cannot be read, raises FORMAT. A torn last line is
the trace of a crash and is cut. Damage anywhere else is not, and is refused. A disk that takes nothing any
more can still be read, and lets the word `closed` be cut off, which needs no room: so a start on a full disk
leaves a journal that says, as it should, that its gateway did not stop. This file does not decide what to
obey; `moves.py` and the supervisor do.
"""

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from modelkeep import __version__
from modelkeep.core import codec, errors, values
from modelkeep.core.observation import LocalRollback
from modelkeep.core.routing import EMPTY_TABLE, RoutingTable, check_table

FORMAT = 2
"""Of what this release writes, and the only one that it reads."""
RECORDS_MAX = 2_000
"""Records after which the file is written anew with the live table alone."""
FILE_MAX_BYTES = 16 * 1024 * 1024
"""Bytes after which it is too, whatever the records."""
_WAY_ON = "Move the file away and start again: the gateway then takes its table from the control plane."
GENESIS = "0" * 64
_HASH = 64


class Header(Struct, frozen=True, kw_only=True):
    """The first line. It may gain fields, and these two stay as they are for ever."""

    format: int
    release: str


class RecordKind(StrEnum):
    """What a record says; see the table above."""

    OPENED = "opened"
    INTENT = "intent"
    APPLIED = "applied"
    ROLLBACK = "rollback"
    SNAPSHOT = "snapshot"
    TAKEN = "taken"
    CLOSED = "closed"


class Record(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line. `serial` numbers the tables of this gateway and pairs APPLIED with its INTENT."""

    kind: RecordKind
    at: datetime
    serial: int = 0
    table: RoutingTable | None = None
    cause: str = ""
    rollback: LocalRollback | None = None
    pending: tuple[LocalRollback, ...] = ()


class Replayed(Struct, frozen=True, kw_only=True):
    """What a journal says: the live table, the rollbacks not yet taken over, and whether the last stop was
    clean."""

    table: RoutingTable = EMPTY_TABLE
    serial: int = 0
    pending: tuple[LocalRollback, ...] = ()
    clean: bool = True
    known: bool = False
    """Whether a table was ever obeyed."""


def replay(records: list[Record]) -> Replayed:
    """Fold records into the live table. An INTENT that another table overtook never counts."""
    table, serial, clean, known = EMPTY_TABLE, 0, True, False
    pending: tuple[LocalRollback, ...] = ()
    intent: Record | None = None
    for record in records:
        match record.kind:
            case RecordKind.OPENED:
                clean, intent = False, None
            case RecordKind.CLOSED:
                clean = True
            case RecordKind.INTENT:
                intent = record
            case RecordKind.APPLIED:
                if intent is not None and intent.serial == record.serial and intent.table is not None:
                    table, serial, known = intent.table, record.serial, True
                intent = None
            case RecordKind.ROLLBACK | RecordKind.SNAPSHOT:
                if record.table is not None:
                    table, serial, known, intent = record.table, record.serial, True, None
                if record.kind is RecordKind.SNAPSHOT:
                    pending = record.pending
                elif record.rollback is not None and record.rollback not in pending:
                    pending = (*pending, record.rollback)
            case RecordKind.TAKEN:
                pending = record.pending
    return Replayed(table=table, serial=serial, pending=pending, clean=clean, known=known)


class JournalFile(Protocol):
    """The few things a journal asks of a disk; the tests put one in its place that tears writes at any
    byte."""

    def read(self) -> bytes: ...

    def append(self, data: bytes) -> None:
        """Write at the end and make it durable. Raises OSError; some of the bytes may then stand in the
        file."""

    def truncate(self, size: int) -> None: ...

    def replace(self, data: bytes) -> None:
        """Put these bytes in place of the whole file, at once or not at all, durably."""

    def close(self) -> None: ...


class DiskFile:
    """A journal on a real disk. Where that was made read-only, it can be read, and is written again as soon
    as it is let."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            OSError: there is no such file, and none can be made.
        """
        self._path = path
        self._read_only = False
        try:
            self._fd = self._open()
        except OSError as problem:
            if problem.errno != errno.EROFS:
                raise
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._read_only = True
        with contextlib.suppress(OSError):  # then the first write says it
            _sync_folder(path.parent)

    def _open(self) -> int:
        return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def _require_writable(self) -> None:
        if self._read_only:
            writable = self._open()
            os.close(self._fd)
            self._fd, self._read_only = writable, False

    def read(self) -> bytes:
        return self._path.read_bytes()

    def append(self, data: bytes) -> None:
        self._require_writable()
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        os.fdatasync(self._fd)

    def truncate(self, size: int) -> None:
        self._require_writable()
        os.ftruncate(self._fd, size)
        os.fdatasync(self._fd)

    def replace(self, data: bytes) -> None:
        beside = self._path.with_suffix(".new")
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(beside, self._path)
        _sync_folder(self._path.parent)
        os.close(self._fd)
        self._fd = self._open()

    def close(self) -> None:
        os.close(self._fd)


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Journal:
    """An open journal: one writer, in the order of its calls. Not thread-safe; the supervisor gives it one
    thread."""

    def __init__(self, file: JournalFile, name: str = "journal") -> None:
        self._file = file
        self._name = name
        self._hash = GENESIS
        self._size = 0
        self._records = 0
        self._torn = False
        self._before_closed: tuple[int, str] | None = None
        """Where the word `closed` begins that is the last one, and the hash before it."""

    def open(self) -> Replayed:
        """Read, verify and cut a torn last line: at once, or before the first write where the disk refuses.

        Raises:
            JournalDamaged: a line before the last one is not what was written, its table cannot be obeyed, or
                an earlier release wrote it in a form that is not read any more.
            SchemaTooNew: it is what was written, by a release that says more than this one understands.
        """
        data = self._file.read()
        records, self._size, self._hash = self._parse(data)
        self._records = len(records)
        if self._size < len(data):
            try:
                self._file.truncate(self._size)
            except OSError:
                self._torn = True
        replayed = replay(records)
        try:
            check_table(replayed.table)
        except errors.ModelkeepError as problem:
            raise errors.JournalDamaged(f"{problem.message[:-1]} (in {self._name}). {_WAY_ON}") from problem
        return replayed

    def _parse(self, data: bytes) -> tuple[list[Record], int, str]:
        records: list[Record] = []
        chain, size, number = GENESIS, 0, 0
        while size < len(data):
            number += 1
            end = data.find(b"\n", size)
            body = _body(chain, data[size:end]) if end >= 0 else None
            if body is None:
                if 0 <= end < len(data) - 1:
                    raise errors.JournalDamaged(
                        f"Line {number} of {self._name} is not what was written. {_WAY_ON}", line=number
                    )
                break
            if number == 1:
                self._check_header(body)
            else:
                records.append(self._record(body))
                closed = records[-1].kind is RecordKind.CLOSED
                self._before_closed = (size, chain) if closed else None
            chain = data[size : size + _HASH].decode()
            size = end + 1
        return records, size, chain

    def _check_header(self, body: bytes) -> None:
        """Refuse a file in another format than this release's, before any of its records is looked at."""
        try:
            header = codec.decode(body, Header)
        except errors.MalformedBody:  # there was a time before headers
            header = Header(format=0, release="")
        release = values.printable(header.release)
        if header.format > FORMAT:
            raise errors.SchemaTooNew(
                f"The gateway's journal {self._name} was written by release {release}, which is newer than "
                f"this one ({__version__}); start that release, or move the file away."
            )
        if header.format < FORMAT:
            raise errors.JournalDamaged(
                f"The gateway's journal {self._name} is whole, but of a release "
                f"({release or 'earlier than those that give their name'}) whose form this one "
                f"({__version__}) does not read. {_WAY_ON} Should there be rollbacks that were not reported "
                "yet, start the former release first: it alone can tell them.",
                format=header.format,
            )

    def _record(self, body: bytes) -> Record:
        try:
            return codec.decode(body, Record)
        except errors.MalformedBody as problem:
            raise errors.SchemaTooNew(
                f"The gateway's journal {self._name} has a record of a newer release; start that one, or "
                "move the file away."
            ) from problem

    def append(self, *records: Record) -> None:
        """Make records durable, all in one write.

        Raises:
            OSError: the disk refused. The journal stays usable: what was torn is cut before the next write.
        """
        if self._torn:
            self._file.truncate(self._size)
            self._torn = False
        lines, chain = self._lines(records)
        try:
            self._file.append(lines)
        except OSError:
            self._torn = True
            raise
        self._hash, self._size, self._records = chain, self._size + len(lines), self._records + len(records)
        self._before_closed = None

    def take_back_closed(self) -> None:
        """Have the journal say no longer that its gateway has stopped, where that is its last word: for a
        start on a disk that has no room for OPENED.

        Raises:
            OSError: the disk refuses even that.
        """
        if self._before_closed is not None:
            size, chain = self._before_closed
            self._file.truncate(size)
            self._hash, self._size, self._records = chain, size, self._records - 1
            self._torn, self._before_closed = False, None

    def compact(self, snapshot: Callable[[], Record], *, force: bool = False) -> bool:
        """Write the file anew when it has grown large. The first record names the last hash of the old one.

        Raises:
            OSError: the disk refused; the old file stands.
        """
        if not force and self._records < RECORDS_MAX and self._size < FILE_MAX_BYTES:
            return False
        opened = Record(kind=RecordKind.OPENED, at=snapshot().at, cause=f"compacted after {self._hash}")
        lines, chain = _lines(GENESIS, (_header(), opened, snapshot()))
        self._file.replace(lines)
        self._hash, self._size, self._records, self._torn = chain, len(lines), 2, False
        self._before_closed = None
        return True

    def _lines(self, records: tuple[Record, ...]) -> tuple[bytes, str]:
        return _lines(self._hash, records if self._size else (_header(), *records))

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def _header() -> Header:
    return Header(format=FORMAT, release=__version__)


def _lines(chain: str, records: tuple[Header | Record, ...]) -> tuple[bytes, str]:
    lines = bytearray()
    for record in records:
        body = codec.encode(record)
        chain = _chained(chain, body)
        lines += chain.encode() + b" " + body + b"\n"
    return bytes(lines), chain


def _chained(previous: str, body: bytes) -> str:
    return hashlib.sha256(previous.encode() + b" " + body).hexdigest()


def _body(chain: str, line: bytes) -> bytes | None:
    """What a line says; None when that is not what was written after the line before."""
    digest, space, body = line[:_HASH], line[_HASH : _HASH + 1], line[_HASH + 1 :]
    if space != b" " or digest != _chained(chain, body).encode():
        return None
    return body
