"""The journal: what was made durable is what comes back, at any byte a crash may tear, and damage is never
obeyed."""

import hashlib
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep import __version__
from modelkeep.core import errors
from modelkeep.core.observation import LocalRollback
from modelkeep.core.routing import EMPTY_TABLE, Epoch, Route, RoutingTable, VersionKey, VersionSpec
from modelkeep.core.values import Digest
from modelkeep.serving import journal
from modelkeep.serving.journal import DiskFile, Journal, Record, RecordKind, Replayed

NOW = datetime(2026, 1, 25, 14, 3, tzinfo=UTC)
A, B = (VersionKey(f"version:{letter * 64}") for letter in "ab")
CONTENT = Digest(f"sha256:{'e' * 64}")
VERSIONS = tuple(
    VersionSpec(key=key, model="m", number=1, semver="1.0.0", digest=CONTENT, files=()) for key in (A, B)
)


def table(number: int, ppm: int = 0) -> RoutingTable:
    """A table that differs from every other number's."""
    made = Route(endpoint="e", epoch=Epoch(1, number), stable=A, candidate=B, candidate_ppm=ppm)
    return RoutingTable(number=number, routes=(made,), versions=VERSIONS)


def rollback(number: int) -> LocalRollback:
    """A report of a rollback."""
    return LocalRollback(
        endpoint="e", epoch=Epoch(2, number), rollout=None, cause="test", actor="me", at=NOW, took_ms=0.1,
        stable=A, removed=B,
    )  # fmt: skip


def record(kind: RecordKind, serial: int = 0, left: tuple[LocalRollback, ...] = ()) -> Record:
    """A record of a kind, with what belongs to it."""
    carries = kind in (RecordKind.INTENT, RecordKind.ROLLBACK, RecordKind.SNAPSHOT)
    return Record(
        kind=kind,
        at=NOW,
        serial=serial,
        table=table(serial, serial % 1000) if carries else None,
        rollback=rollback(serial) if kind is RecordKind.ROLLBACK else None,
        pending=left,
    )


class TornDisk:
    """A disk in memory. `fail_after` bytes of the next append reach it, then it refuses."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = data
        self.fail_after: int | None = None

    def read(self) -> bytes:
        return self.data

    def append(self, data: bytes) -> None:
        if self.fail_after is not None:
            self.data += data[: self.fail_after]
            self.fail_after = None
            raise OSError(28, "No space left on device")
        self.data += data

    def truncate(self, size: int) -> None:
        self.data = self.data[:size]

    def replace(self, data: bytes) -> None:
        self.data = data

    def close(self) -> None:
        pass


class Gateway:
    """The supervisor's use of a journal, and the table it would be obeying, without anything else."""

    def __init__(self, disk: TornDisk) -> None:
        self.journal = Journal(disk)
        found = self.journal.open()
        self.live, self.serial = found.table, found.serial
        self.journal.append(Record(kind=RecordKind.OPENED, at=NOW))

    def forward(self) -> None:
        serial = self.serial + 1
        self.journal.append(record(RecordKind.INTENT, serial))
        self.live, self.serial = table(serial, serial % 1000), serial
        self.journal.append(Record(kind=RecordKind.APPLIED, at=NOW, serial=serial))

    def roll_back(self) -> None:
        self.serial += 1
        self.live = table(self.serial, self.serial % 1000)
        self.journal.append(record(RecordKind.ROLLBACK, self.serial))

    def abandoned(self) -> None:
        self.journal.append(record(RecordKind.INTENT, self.serial + 1))

    def overtaken(self) -> None:
        """A rollback between a forward move's swap and its APPLIED."""
        serial = self.serial + 1
        self.journal.append(record(RecordKind.INTENT, serial))
        self.serial = serial
        self.roll_back()
        self.journal.append(Record(kind=RecordKind.APPLIED, at=NOW, serial=serial))

    def compacted(self) -> None:
        def snapshot() -> Record:
            return Record(kind=RecordKind.SNAPSHOT, at=NOW, serial=self.serial, table=self.live)

        self.journal.compact(snapshot, force=True)


MOVES = st.lists(st.sampled_from(["forward", "roll_back", "abandoned", "overtaken", "compacted"]), max_size=8)


@pytest.mark.req("S7")
@given(moves=MOVES)
def test_replaying_gives_the_live_table(moves: list[str]) -> None:
    """After any sequence of moves the journal says what is obeyed (invariant 11)."""
    disk = TornDisk()
    gateway = Gateway(disk)
    for move in moves:
        getattr(gateway, move)()
    assert Journal(TornDisk(disk.data)).open().table == gateway.live


@pytest.mark.req("S7")
@settings(max_examples=25)
@given(moves=st.lists(st.sampled_from(["forward", "roll_back", "overtaken"]), min_size=1, max_size=4))
def test_a_crash_at_any_byte_leaves_the_table_before_or_after(moves: list[str]) -> None:
    """Whatever byte the last write got to, what comes back is one of the tables obeyed around that write."""
    disk = TornDisk()
    gateway = Gateway(disk)
    states = [(len(disk.data), [gateway.live])]
    for move in moves:
        before = gateway.live
        getattr(gateway, move)()
        intents = [table(n, n % 1000) for n in range(gateway.serial - 1, gateway.serial + 1) if n > 0]
        states.append((len(disk.data), [before, gateway.live, *(intents if move == "overtaken" else [])]))
    for cut in range(states[0][0], len(disk.data) + 1):
        allowed = next(tables for size, tables in states if cut <= size)
        found = Journal(TornDisk(disk.data[:cut])).open()
        assert found.table in allowed, cut
        whole = next((tables for size, tables in states if cut == size), None)
        if whole is not None:
            assert found.table == whole[-1] if len(whole) < 3 else found.table in whole


@pytest.mark.req("S7")
@given(fail_after=st.integers(0, 400), moves=MOVES)
def test_a_full_disk_leaves_a_usable_journal(fail_after: int, moves: list[str]) -> None:
    """After a write that was refused half way the next one cuts the torn part, and the chain holds."""
    disk = TornDisk()
    gateway = Gateway(disk)
    gateway.forward()
    live = gateway.live
    disk.fail_after = fail_after
    with pytest.raises(OSError, match="No space"):
        gateway.journal.append(record(RecordKind.INTENT, gateway.serial + 1))
    assert Journal(TornDisk(disk.data)).open().table == live
    for move in moves:
        getattr(gateway, move)()
    assert Journal(TornDisk(disk.data)).open().table == gateway.live


@given(where=st.floats(0, 0.999), bit=st.integers(0, 7))
def test_a_flipped_bit_is_never_obeyed(where: float, bit: int) -> None:
    """Damage before the last line is refused; in the last line it costs that line and nothing more."""
    disk = TornDisk()
    gateway = Gateway(disk)
    for _ in range(3):
        gateway.forward()
    data = bytearray(disk.data)
    at = int(where * len(data))
    data[at] ^= 1 << bit
    last_line = disk.data[:-1].rfind(b"\n") + 1
    damaged = Journal(TornDisk(bytes(data)), "j")
    if at < last_line - 1:
        with pytest.raises(errors.JournalDamaged, match="Move the file away"):
            damaged.open()
    elif (
        at == last_line - 1
    ):  # without its line end the last but one line swallows the last, and both are cut
        assert damaged.open().table == table(2, 2)
    else:
        assert damaged.open().table in (gateway.live, table(2, 2))


def test_a_clean_stop_is_told_from_a_crash() -> None:
    """Only a journal that ends with CLOSED was ended by its gateway."""
    disk = TornDisk()
    gateway = Gateway(disk)
    gateway.forward()
    assert not Journal(TornDisk(disk.data)).open().clean
    gateway.journal.append(Record(kind=RecordKind.CLOSED, at=NOW))
    assert Journal(TornDisk(disk.data)).open().clean
    assert Journal(TornDisk()).open() == Replayed(table=EMPTY_TABLE)


@pytest.mark.req("S7")
@given(fail_after=st.integers(0, 200), moves=MOVES)
def test_a_start_on_a_full_disk_is_no_clean_stop(fail_after: int, moves: list[str]) -> None:
    """Where the word that a gateway runs finds no room, the word that it had stopped is cut off: the next
    start knows, and the chain goes on from there."""
    disk = TornDisk()
    gateway = Gateway(disk)
    gateway.forward()
    gateway.journal.append(Record(kind=RecordKind.CLOSED, at=NOW))
    disk.fail_after = fail_after
    started = Journal(disk)
    assert started.open().clean
    with pytest.raises(OSError, match="No space"):
        started.append(Record(kind=RecordKind.OPENED, at=NOW))
    started.take_back_closed()
    size = len(disk.data)
    found = Journal(TornDisk(disk.data)).open()
    assert (found.table, found.clean) == (gateway.live, False)
    started.take_back_closed()
    assert len(disk.data) == size, "there is nothing more to take back"
    gateway.journal = started
    for move in moves:
        getattr(gateway, move)()
    found = Journal(TornDisk(disk.data)).open()
    assert (found.table, found.clean) == (gateway.live, False)


@pytest.mark.req("S7")
def test_a_torn_line_that_cannot_be_cut_is_cut_later() -> None:
    """A journal is read on a disk that refuses everything; the first write that it takes goes to the right
    place."""

    class Refusing(TornDisk):
        refuses = True

        def truncate(self, size: int) -> None:
            if self.refuses:
                raise OSError(30, "Read-only file system")
            super().truncate(size)

    whole = TornDisk()
    gateway = Gateway(whole)
    gateway.forward()
    disk = Refusing(whole.data + b"torn")
    opened = Journal(disk)
    assert opened.open().table == gateway.live
    with pytest.raises(OSError, match="Read-only"):
        opened.append(record(RecordKind.SNAPSHOT, 7))
    disk.refuses = False
    opened.append(record(RecordKind.SNAPSHOT, 7))
    assert Journal(TornDisk(disk.data)).open().serial == 7


def test_rollbacks_are_kept_until_they_are_taken_over() -> None:
    """What the control plane has not taken survives restarts and compaction; what it has does not come
    back."""
    disk = TornDisk()
    gateway = Gateway(disk)
    gateway.roll_back()
    gateway.roll_back()
    assert Journal(TornDisk(disk.data)).open().pending == (rollback(1), rollback(2))
    gateway.journal.append(record(RecordKind.TAKEN, left=(rollback(2),)))
    assert Journal(TornDisk(disk.data)).open().pending == (rollback(2),)
    last = Record(kind=RecordKind.SNAPSHOT, at=NOW, serial=2, table=gateway.live, pending=(rollback(2),))
    gateway.journal.compact(lambda: last, force=True)
    found = Journal(TornDisk(disk.data)).open()
    assert (found.pending, found.table, found.known) == ((rollback(2),), gateway.live, True)


def test_a_long_journal_is_written_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past its bound the file is replaced by the live table alone, and goes on from there."""
    monkeypatch.setattr(journal, "RECORDS_MAX", 20)
    disk = TornDisk()
    gateway = Gateway(disk)
    for _ in range(50):
        gateway.forward()
        snapshot = Record(kind=RecordKind.SNAPSHOT, at=NOW, serial=gateway.serial, table=gateway.live)
        gateway.journal.compact(lambda record=snapshot: record)
    assert disk.data.count(b"\n") < 25
    assert Journal(TornDisk(disk.data)).open().table == gateway.live


def test_a_journal_of_a_newer_release_is_refused() -> None:
    """A record whose hash is right but which nobody here can read was written, not torn: it is not cut."""
    disk = TornDisk()
    Gateway(disk).forward()
    chain = disk.data.splitlines()[-1][:64].decode()
    body = b'{"kind":"from the future","at":"2026-01-01T00:00:00Z"}'
    disk.data += hashlib.sha256(chain.encode() + b" " + body).hexdigest().encode() + b" " + body + b"\n"
    with pytest.raises(errors.SchemaTooNew, match="newer release"):
        Journal(disk).open()


@pytest.mark.req("S7")
def test_a_killed_writer_leaves_a_journal_that_opens(tmp_path: Path) -> None:
    """kill -9 in the middle of real writes: the file opens, and every move it confirmed is in it."""
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tests.serving.test_journal import *\n"
        "gateway = Gateway(DiskFile(Path(sys.argv[1])))\n"
        "while True:\n"
        "    gateway.forward() if gateway.serial % 3 else gateway.roll_back()\n"
        "    print(gateway.serial, flush=True)\n"
    )
    path = tmp_path / "journal.jsonl"
    root = Path(__file__).parents[2]
    last = 0
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True, cwd=root
        )
        assert process.stdout is not None
        for _ in range(15):
            last = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
        rest = process.stdout.read().split()
        process.stdout.close()
        process.wait()
        last = int(rest[-1]) if rest else last
        opened = Journal(DiskFile(path))
        found = opened.open()
        opened.close()
        assert found.serial in (last, last + 1)
        assert found.table == table(found.serial, found.serial % 1000)
        assert not found.clean


def test_a_disk_file_replaces_itself_at_once(tmp_path: Path) -> None:
    """Replace, append and truncate leave exactly the bytes asked for, and nothing beside them."""
    disk = DiskFile(tmp_path / "j")
    disk.append(b"one\n")
    disk.replace(b"two\n")
    disk.append(b"three\n")
    disk.truncate(6)
    assert disk.read() == b"two\nth"
    disk.close()
    assert os.listdir(tmp_path) == ["j"]
    assert (tmp_path / "j").stat().st_mode & 0o777 == 0o600


def test_records_are_small_where_they_can_be() -> None:
    """A confirmation does not carry what its intent already said."""
    assert len(msgspec.json.encode(record(RecordKind.APPLIED, 5))) < 100


def written(*bodies: bytes) -> TornDisk:
    """A journal with these bodies, each in its place in the chain."""
    chain, data = journal.GENESIS, b""
    for body in bodies:
        chain = hashlib.sha256(chain.encode() + b" " + body).hexdigest()
        data += chain.encode() + b" " + body + b"\n"
    return TornDisk(data)


OPENED = b'{"kind":"opened","at":"2025-01-01T00:00:00Z"}'
FORMER = (
    b'{"kind":"snapshot","at":"2025-01-01T00:00:00Z","serial":1,"table":{"number":1,"routes":[],'
    b'"versions":[{"model":"m","semver":"1.0.0"}]}}'
)
"""A table from the time when versions were known by their content alone."""


@pytest.mark.req("S7")
@pytest.mark.parametrize(
    ("bodies", "release"),
    [
        ((OPENED, FORMER), "earlier than"),
        ((b'{"format":0,"release":"0.0.9","more":1}', FORMER), r"\(0\.0\.9\)"),
    ],
)
def test_a_journal_of_an_earlier_format_says_what_to_do(bodies: tuple[bytes, ...], release: str) -> None:
    """It is not called damaged or newer; it is left as it is, and the message names the way on."""
    disk = written(*bodies)
    before = disk.data
    with pytest.raises(errors.JournalDamaged, match=f"is whole.*{release}.*Move the file away"):
        Journal(disk, "journal.jsonl").open()
    assert disk.data == before


@pytest.mark.req("S7")
def test_a_journal_of_a_later_format_names_its_release() -> None:
    """Whatever its records are, the header says whose they are."""
    disk = written(b'{"format":%d,"release":"9.1.0"}' % (journal.FORMAT + 1), b'{"unheard":"of"}')
    with pytest.raises(errors.SchemaTooNew, match=r"release 9\.1\.0.*newer than this one"):
        Journal(disk).open()


@pytest.mark.req("S7")
def test_every_file_begins_with_its_format() -> None:
    """A new file, one whose first write was refused, and one that was written anew."""
    disk = TornDisk()
    disk.fail_after = 30
    with pytest.raises(OSError, match="No space"):
        Gateway(disk)
    gateway = Gateway(disk)
    for _ in range(2):
        header = msgspec.json.decode(disk.data.splitlines()[0][65:], type=journal.Header)
        assert header == journal.Header(format=journal.FORMAT, release=__version__)
        gateway.forward()
        gateway.compacted()
