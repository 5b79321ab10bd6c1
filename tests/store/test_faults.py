"""Faults from outside: killed processes, a full disk, a Postgres that dies or loses the answer to a commit.

Each test compares what was acknowledged with what is there afterwards. What the store does while nothing is
broken stands in test_database.py.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import select, text

from modelkeep.core import errors
from modelkeep.store import events, schema, writer
from modelkeep.store.database import Database, Transaction
from modelkeep.store.postgres import Postgres
from tests.servers import PostgresServer, missing, run_postgres
from tests.store.writes import append

ROOT = Path(__file__).parents[2]
WRITES = [sys.executable, "-m", "tests.store.writes"]
KEYS = select(schema.settings.c.key)


def keys(database: Database) -> set[str]:
    """The subjects whose change is there."""
    return {row[0] for row in database.read(lambda tx: tx.all(KEYS))}


def write(database: Database, subject: str) -> int:
    """Write one change with its event, and wait for the answer."""
    return database.write(lambda tx: append(tx, subject)).result(30).sequence


def check_against(database: Database, said: list[str]) -> int:
    """Compare a database with what processes were told: nothing acknowledged is lost, nothing stands alone.

    Returns:
        how many events there are.
    """
    acknowledged = {}
    for line in said:
        name, thread, index, sequence = line.split()
        acknowledged[int(sequence)] = f"{name}.{thread}.{index}"
    report = events.verify(database)
    found = {stored.event.sequence: stored.event.subject for stored in events.walk(database)}
    assert acknowledged.items() <= found.items()
    assert keys(database) == set(found.values())
    return report.events


def killed_after(command: list[str], seconds: float) -> list[str]:
    """Run a process, kill it without warning, and give the whole lines it printed."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first = process.stdout.readline()  # so that the clock starts with the work
    threading.Timer(seconds, process.kill).start()
    rest = process.stdout.read()
    process.stdout.close()
    assert process.wait(60) == -signal.SIGKILL
    return (first + rest).splitlines()


# ------------------------------------------------------------------------------------------------ kill -9


@pytest.mark.journey
@pytest.mark.req("G8")
def test_a_killed_process_loses_nothing_it_acknowledged(database_url: str) -> None:
    """A process killed in the middle of its writes leaves what it acknowledged, and a chain that holds."""
    said: list[str] = []
    chance = random.Random(7)
    for attempt in range(3):
        said += killed_after([*WRITES, database_url, f"p{attempt}", "8", "100000"], chance.uniform(0.05, 0.4))
        with Database.open(database_url) as database:
            assert check_against(database, said) >= len(said) > 0
            write(database, f"after {attempt}")


@pytest.fixture
def durable_postgres() -> Iterator[PostgresServer]:
    """A Postgres of this test alone that flushes each commit, to be killed."""
    with run_postgres(durable=True) as server:
        yield server


@pytest.mark.journey
@pytest.mark.external
@pytest.mark.req("G8")
def test_a_killed_postgres_loses_nothing_it_acknowledged(durable_postgres: PostgresServer) -> None:
    """Postgres is killed under load and started again: writers are told, and go on; nothing is lost."""
    url = durable_postgres.new_database()
    command = [*WRITES, url, "p", "4", "1000000"]  # it goes on for as long as it is let
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(50)]
    durable_postgres.kill()
    time.sleep(0.5)
    durable_postgres.start()
    while not said[-1].startswith("error"):
        said.append(process.stdout.readline())
        assert said[-1], "the writers go on"
    said += [process.stdout.readline() for _ in range(800)]
    process.kill()
    said += process.communicate(timeout=60)[0].splitlines()
    refused = {line.strip() for line in said if line.startswith("error")}
    assert refused == {"error STORE_UNAVAILABLE"}
    acknowledged = [line for line in said if not line.startswith("error")]
    assert len(acknowledged) > 400
    with Database.open(url) as database:
        # What each of the four threads had under way in either death may be kept without a word.
        assert check_against(database, acknowledged) - len(acknowledged) <= 8


@pytest.mark.external
def test_a_postgres_that_is_away_is_named_and_taken_up_again(durable_postgres: PostgresServer) -> None:
    """While Postgres is down reads and writes say so; once it is back the same Database works again."""
    with Database.open(durable_postgres.new_database()) as database:
        write(database, "before")
        keys(database)
        durable_postgres.kill()
        for act in (lambda: write(database, "lost"), lambda: keys(database)):
            began = time.monotonic()
            with pytest.raises(errors.StoreUnavailable, match="does not answer"):
                act()
            assert time.monotonic() - began < 25
        durable_postgres.start()
        assert keys(database) == {"before"}
        assert write(database, "after") == 2
        durable_postgres.kill()
        durable_postgres.start()
        assert keys(database) == {"before", "after"}  # the idle session was dead; nobody notices


# --------------------------------------------------------------------------------------------- a full disk


@pytest.mark.journey
@pytest.mark.req("I8")
def test_a_full_disk_is_named_and_forgiven(tmp_path: Path) -> None:
    """On a full disk writes are refused and change nothing, reads go on; with space again so do writes."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        missing("the right to mount a small disk", "run as root")
    program = [
        "unshare",
        "-m",
        "sh",
        "-c",
        'mount -t tmpfs -o size=3m tmpfs "$1" && exec "$2" -c "$3" "$1"',
        "sh",
    ]
    done = subprocess.run(
        [*program, str(tmp_path), sys.executable, FULL_DISK],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["filled", "refused", "read", "freed", "written", "verified"]


FULL_DISK = """
import os, sys
from modelkeep.core import errors
from modelkeep.store import events, schema
from modelkeep.store.database import Database
from modelkeep.store.statements import insert
from sqlalchemy import func, select
from tests.store.writes import append

folder = sys.argv[1]
database = Database.open(f"sqlite:///{folder}/store.db")
count = lambda: database.read(lambda tx: tx.one(select(func.count()).select_from(schema.events)))[0]
with open(f"{folder}/ballast", "wb") as ballast:
    ballast.write(bytes(1_500_000))

def big(tx, subject):
    tx.run(insert(schema.settings), key=f"big {subject}", value="x" * 20_000, updated_at="")
    return append(tx, subject)

kept, refused = 0, 0
for number in range(300):
    futures = [database.write(lambda tx, n=n: big(tx, f"{number}.{n}")) for n in range(4)]
    for future in futures:
        try:
            future.result(30)
            kept += 1
        except errors.StorageFull as problem:
            assert "Free space" in str(problem)
            refused += 1
    if refused > 20:
        break
print("filled" if kept > 5 else kept)
print("refused" if refused > 20 else refused)
assert count() == kept, (count(), kept)
print("read")
os.remove(f"{folder}/ballast")
print("freed")
for number in range(5):
    database.write(lambda tx: big(tx, f"after {number}")).result(30)
print("written")
assert events.verify(database).events == kept + 5 == count()
database.close()
with Database.open(f"sqlite:///{folder}/store.db") as again:
    assert events.verify(again).events == kept + 5
print("verified")
"""


@pytest.mark.journey
@pytest.mark.req("G8")
@pytest.mark.parametrize("when", ["10", "12..14", "11..19+4"])
def test_a_flush_that_fails_keeps_nothing(tmp_path: Path, when: str) -> None:
    """When the disk cannot flush a commit its writers are told, nothing of it is kept, the next go on."""
    if shutil.which("strace") is None:
        missing("strace, which makes flushes fail", "apt-get install strace")
    fault = f"inject=fsync,fdatasync:error=EIO:when={when}"
    url = f"sqlite:///{tmp_path / 'store.db'}"
    tracer = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync", "-e", fault]
    command = [*tracer, *WRITES, url, "p", "1", "40"]
    done = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True, timeout=120)
    said = done.stdout.splitlines()
    acknowledged = [line for line in said if not line.startswith("error")]
    assert {line for line in said if line.startswith("error")} == {"error STORE_UNAVAILABLE"}
    with Database.open(url) as database:
        assert check_against(database, acknowledged) == len(acknowledged) >= 30


# -------------------------------------------------------------------------- Postgres, one exchange at a time


def once(act: Callable[[Transaction], Any]) -> Callable[[Transaction, str], Any]:
    """A job that does something terrible when it is run for the first time."""
    done = []

    def job(tx: Transaction, subject: str) -> Any:
        if not done:
            done.append(True)
            append(tx, "undone")
            act(tx)
        return append(tx, subject)

    return job


CONFLICT = text("do $$ begin raise exception using errcode = '40001'; end $$")
DEADLOCK = text("do $$ begin raise exception using errcode = '40P01'; end $$")
HANG_UP = text("select pg_terminate_backend(pg_backend_pid())")


@pytest.mark.external
@pytest.mark.parametrize("fault", [CONFLICT, DEADLOCK, HANG_UP], ids=["conflict", "deadlock", "hang up"])
def test_a_group_is_repeated_when_that_is_safe(postgres_url: str, fault: Any) -> None:
    """When Postgres undoes a group before its commit, the group is run again and nobody hears of it."""
    with Database.open(postgres_url) as database:
        job = once(lambda tx: tx.run(fault))
        futures = [database.write(lambda tx: append(tx, "a")), database.write(lambda tx: job(tx, "b"))]
        assert sorted(future.result(30).sequence for future in futures) == [1, 2]
        assert keys(database) == {"a", "b"}
        assert events.verify(database).events == 2


@pytest.mark.external
def test_repeating_has_an_end(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A conflict that does not go away is told after a few tries."""
    monkeypatch.setattr(writer, "PAUSE_S", 0.0001)
    tries = []

    def job(tx: Transaction) -> None:
        tries.append(True)
        tx.run(CONFLICT)

    with Database.open(postgres_url) as database:
        with pytest.raises(errors.StoreUnavailable, match="try again"):
            database.write(job).result(30)
        assert len(tries) == writer.TRIES_MAX
        assert write(database, "a") == 1


class Forgetful:
    """A session whose next commit gets no answer: it is carried out, or not, and then the line is dead."""

    def __init__(self, connection: Any, plan: list[str]) -> None:
        self._connection = connection
        self._plan = plan

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, query: str, *params: Any) -> Any:
        if query == "commit" and self._plan:
            if self._plan.pop(0) == "committed":
                self._connection.execute("commit")
            self._connection.close()
            raise psycopg.OperationalError("server closed the connection unexpectedly")
        return self._connection.execute(query, *params)


class ForgetfulPostgres(Postgres):
    """Postgres whose writer's sessions follow a plan: what becomes of the next commits, one word for each."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.plan: list[str] = []

    def connect(self, *, writing: bool) -> Any:
        connection = super().connect(writing=writing)
        return Forgetful(connection, self.plan) if writing else connection


@pytest.fixture
def forgetful(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Database, list[str]]]:
    """A database whose commits lose their answers as planned, and the plan."""
    dialect = ForgetfulPostgres(postgres_url)
    monkeypatch.setattr("modelkeep.store.database.choose", lambda url: dialect)
    with Database.open(postgres_url) as database:
        yield database, dialect.plan


@pytest.mark.external
@pytest.mark.req("G8")
@pytest.mark.parametrize("plan", [["committed"], ["undone"], ["undone", "committed"], ["undone", "undone"]])
def test_a_commit_without_an_answer_is_asked_for(
    forgetful: tuple[Database, list[str]], plan: list[str]
) -> None:
    """When the line dies during a commit its fate is asked for: what was kept is not done twice."""
    database, planned = forgetful
    planned += plan
    assert write(database, "a") == 1
    assert planned == []
    assert write(database, "b") == 2
    assert keys(database) == {"a", "b"}
    assert events.verify(database).events == 2


@pytest.mark.external
def test_a_fate_that_cannot_be_known_is_said_to_be_unknown(
    forgetful: tuple[Database, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where even that question gets no answer, the error says that nobody knows."""
    database, planned = forgetful
    monkeypatch.setattr(writer, "FATE_S", 0.01)
    monkeypatch.setattr(Postgres, "fate", lambda self, ticket: None)
    planned.append("committed")
    with pytest.raises(errors.StoreUnavailable, match="unknown") as raised:
        write(database, "a")
    assert raised.value.details["unknown"] is True
    assert write(database, "b") == 2
