"""What the store costs above the bare driver: durable writes with their events, and reads of one version.

    python -m bench.store_speed --seconds 2
    python -m bench.store_speed --postgres postgresql://user@host/name

A write sets a tag and appends its chained event, and counts when it is on disk; a read takes one version with
its tags and aliases out of 10,000 in one snapshot. Threads do one after the other and wait for each answer.
Beside each figure stands that of a bare spike in the same run: the same tables, rows and SQL on sqlite3,
typed by hand, with one writer thread that groups what waits, and a hash over the event, but no savepoints, no
shapes and no errors. It leaves with 1 when a promise is broken (half of the bare speed). It measures no HTTP.
"""

import argparse
import hashlib
import json
import os
import platform
import queue
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from msgspec import Struct
from sqlalchemy import Table, bindparam, select

from modelkeep.core.events import EventKind
from modelkeep.core.values import Actor
from modelkeep.store import schema
from modelkeep.store.database import Database, Transaction
from modelkeep.store.statements import insert

VERSIONS = 10_000
THREADS = (1, 8, 32)
SHARE_MIN = 0.5
"""The least share of the bare driver's speed that is left above the store."""

WHO = Actor(name="ada")

_TAG = insert(schema.version_tags)
_SET_TAG = _TAG.on_conflict_do_update(
    index_elements=["version_id", "key"],
    set_={"value": _TAG.excluded.value, "value_head": _TAG.excluded.value_head},
)
_V, _T, _A = schema.versions.c, schema.version_tags.c, schema.aliases.c
_VERSION = select(_V.id, _V.semver, _V.digest, _V.status, _V.document, _V.description, _V.created_at).where(
    _V.model_id == bindparam("model_id"), _V.number == bindparam("number")
)
_TAGS = select(_T.key, _T.value).where(_T.version_id == bindparam("version_id")).order_by(_T.key)
_ALIASES = (
    select(_A.alias)
    .where(_A.model_id == bindparam("model_id"), _A.number == bindparam("number"))
    .order_by(_A.alias)
)


class Figure(Struct, frozen=True, kw_only=True):
    """What one measurement gave."""

    per_second: float
    p50_ms: float
    p99_ms: float


# ---------------------------------------------------------------------------------------------------- filling


def row_of(table: Table, **given: Any) -> dict[str, Any]:
    """A row of any table: what is given, and the emptiest value for all other columns."""
    empty = {
        column.name: None if column.nullable else "" if column.type.python_type is str else 0
        for column in table.columns
    }
    return empty | given


def fill(tx: Transaction) -> None:
    """One model with VERSIONS versions, three tags on each, and an alias on every tenth."""
    tx.run(
        insert(schema.models), **row_of(schema.models, id="m", name="m", folded="m", next_number=VERSIONS + 1)
    )
    document = json.dumps({"files": [{"path": "model.onnx", "digest": "sha256:" + "0" * 64}], "metrics": []})
    numbers = range(1, VERSIONS + 1)
    versions = [
        row_of(
            schema.versions,
            id=f"v{number}",
            model_id="m",
            number=number,
            semver=f"1.{number}.0",
            semver_key=f"{number:09d}",
            digest=f"sha256:{number:064x}",
            status="ready",
            document=document,
        )
        for number in numbers
    ]
    tx.many(insert(schema.versions), versions)
    tags = [
        row_of(schema.version_tags, version_id=f"v{number}", key=key, value="risk", value_head="risk")
        for number in numbers
        for key in ("team", "region", "purpose")
    ]
    tx.many(insert(schema.version_tags), tags)
    aliases = [row_of(schema.aliases, model_id="m", alias=f"a{n}", number=n) for n in numbers[::10]]
    tx.many(insert(schema.aliases), aliases)


# --------------------------------------------------------------------------------------------------- our side


def our_write(database: Database) -> Callable[[int, int], None]:
    """Set a tag and append its event through the store."""

    empty = row_of(schema.version_tags, key="k")

    def act(thread: int, index: int) -> None:
        version = f"v{1 + (thread * 977 + index) % VERSIONS}"

        def job(tx: Transaction) -> None:
            value = str(index)
            tx.run(_SET_TAG, **(empty | {"version_id": version, "value": value, "value_head": value}))
            tx.events.append(
                EventKind.VERSION_CHANGED,
                at=datetime.now(UTC),
                actor=WHO,
                subject=f"m:{version}",
                model="m",
                number=1,
                body={"tags": {"k": {"from": None, "to": value}}},
            )

        database.write(job).result()

    return act


def our_read(database: Database) -> Callable[[int, int], None]:
    """Read one version with its tags and aliases through the store."""

    def act(thread: int, index: int) -> None:
        number = 1 + (thread * 977 + index * 31) % VERSIONS

        def job(tx: Transaction) -> tuple[Any, Any, Any]:
            row = tx.one(_VERSION, model_id="m", number=number)
            assert row is not None
            return row, tx.all(_TAGS, version_id=row[0]), tx.all(_ALIASES, model_id="m", number=number)

        assert len(database.read(job)[1]) >= 3

    return act


# -------------------------------------------------------------------------------------------------- bare side


def connect(path: Path) -> sqlite3.Connection:
    """A connection with the settings that durability asks for, and nothing else."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    for pragma in ("journal_mode = wal", "synchronous = full", "foreign_keys = on", "cache_size = -8192"):
        connection.execute(f"pragma {pragma}")
    return connection


Job = tuple[str, str, "Future[None]"]


@contextmanager
def bare_writer(path: Path) -> Iterator[Callable[[int, int], None]]:
    """The least that could do the same work: one thread, SQL by hand, one commit for all who wait."""
    connection = connect(path)
    waiting: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
    set_tag = (
        "insert into version_tags (version_id, key, value, value_head, number) values (?, 'k', ?, ?, null) "
        "on conflict (version_id, key) do update set value = excluded.value, value_head = excluded.value_head"
    )
    add_event = (
        "insert into events (sequence, kind, at, subject, model, number, document, leaf, link) "
        "values (?, 'version.changed', ?, ?, 'm', 1, ?, ?, ?)"
    )

    def work() -> None:
        (sequence,) = connection.execute("select max(sequence) from events").fetchone()
        sequence, link = sequence or 0, b""
        while (job := waiting.get()) is not None:
            group = [job]
            connection.execute("begin immediate")
            while True:
                version, value, _ = group[-1]
                connection.execute(set_tag, (version, value, value))
                sequence += 1
                at = datetime.now(UTC).isoformat()
                document = json.dumps({"sequence": sequence, "at": at, "subject": version, "to": value})
                leaf = hashlib.sha256(document.encode()).digest()
                link = hashlib.sha256(link + leaf).digest()
                connection.execute(add_event, (sequence, at, version, document, leaf.hex(), link.hex()))
                if waiting.empty() or (following := waiting.get()) is None:
                    break
                group.append(following)
            connection.execute("commit")
            for _, _, future in group:
                future.set_result(None)

    def act(thread: int, index: int) -> None:
        future: Future[None] = Future()
        waiting.put((f"v{1 + (thread * 977 + index) % VERSIONS}", str(index), future))
        future.result()

    worker = threading.Thread(target=work)
    worker.start()
    yield act
    waiting.put(None)
    worker.join()
    connection.close()


def bare_read(path: Path) -> Callable[[int, int], None]:
    """The same three queries in one snapshot, by hand."""
    local = threading.local()
    version = (
        "select id, semver, digest, status, document, description, created_at from versions "
        "where model_id = ? and number = ?"
    )
    tags = "select key, value from version_tags where version_id = ? order by key"
    aliases = "select alias from aliases where model_id = ? and number = ? order by alias"

    def act(thread: int, index: int) -> None:
        connection = getattr(local, "connection", None)
        if connection is None:
            connection = local.connection = connect(path)
        number = 1 + (thread * 977 + index * 31) % VERSIONS
        connection.execute("begin")
        row = connection.execute(version, ("m", number)).fetchone()
        found = connection.execute(tags, (row[0],)).fetchall()
        connection.execute(aliases, ("m", number)).fetchall()
        connection.execute("commit")
        assert len(found) >= 3

    return act


# -------------------------------------------------------------------------------------------------- measuring


def measure(act: Callable[[int, int], None], threads: int, seconds: float) -> Figure:
    """Let threads do one after the other for a while, after a tenth of that which does not count."""
    spent: list[list[float]] = [[] for _ in range(threads)]
    counts_from = time.perf_counter() + seconds / 10
    until = counts_from + seconds

    def work(thread: int) -> None:
        mine, index, began = spent[thread], 0, time.perf_counter()
        while began < until:
            act(thread, index)
            ended = time.perf_counter()
            if began >= counts_from:
                mine.append(ended - began)
            began, index = ended, index + 1

    workers = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    times = sorted(second for mine in spent for second in mine)
    return Figure(
        per_second=len(times) / seconds,
        p50_ms=statistics.median(times) * 1000,
        p99_ms=times[int(len(times) * 0.99)] * 1000,
    )


def compare(folder: Path, seconds: float) -> Iterator[tuple[str, int, Figure, Figure]]:
    """Measure both sides in turn on two copies of one database. Yields what, threads, ours, bare."""
    ours, bare = folder / "ours.db", folder / "bare.db"
    for path in (ours, bare):
        with Database.open(f"sqlite:///{path}") as database:
            database.write(fill).result()
    with Database.open(f"sqlite:///{ours}") as database, bare_writer(bare) as bare_write:
        for threads in THREADS:
            yield (
                "write",
                threads,
                measure(our_write(database), threads, seconds),
                measure(bare_write, threads, seconds),
            )
        for threads in (1, 8):
            yield (
                "read",
                threads,
                measure(our_read(database), threads, seconds),
                measure(bare_read(bare), threads, seconds),
            )


def alone(url: str, seconds: float) -> Iterator[tuple[str, int, Figure]]:
    """Measure ours on an empty Postgres database."""
    with Database.open(url) as database:
        database.write(fill).result()
        for threads in THREADS:
            yield "write", threads, measure(our_write(database), threads, seconds)
        for threads in (1, 8):
            yield "read", threads, measure(our_read(database), threads, seconds)


def main(argv: Sequence[str] | None = None) -> int:
    """Run and print the figures; 1 when a promise is broken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each figure is measured")
    parser.add_argument("--postgres", metavar="URL", help="measure an empty Postgres database as well")
    parser.add_argument("--folder", type=Path, help="where to work (default: the folder for temporary files)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="modelkeep-bench-", dir=options.folder) as name:
        rows = list(compare(Path(name), options.seconds))
    kept = all(ours.per_second >= SHARE_MIN * bare.per_second for _, _, ours, bare in rows)
    postgres = list(alone(options.postgres, options.seconds)) if options.postgres else []
    if options.json:
        document = [
            {
                "what": what,
                "threads": threads,
                "per_second": ours.per_second,
                "bare_per_second": bare.per_second,
            }
            for what, threads, ours, bare in rows
        ]
        print(json.dumps({"sqlite": document, "kept": kept}))
        return 0 if kept else 1
    cores = os.cpu_count()
    print(f"SQLite {sqlite3.sqlite_version}, synchronous=FULL, {cores} cores, on {platform.platform()}")
    print(
        f"  {'':<7}{'threads':>8}{'a second':>10}{'p50 ms':>9}{'p99 ms':>9}{'bare':>10}{'p50':>9}{'share':>7}"
    )
    for what, threads, ours, bare in rows:
        print(
            f"  {what:<7}{threads:>8}{ours.per_second:>10,.0f}{ours.p50_ms:>9.2f}{ours.p99_ms:>9.2f}"
            f"{bare.per_second:>10,.0f}{bare.p50_ms:>9.2f}{ours.per_second / bare.per_second:>7.0%}"
        )
    for what, threads, ours in postgres:
        figures = f"{ours.per_second:>10,.0f}{ours.p50_ms:>9.2f}{ours.p99_ms:>9.2f}"
        print(f"  {what:<7}{threads:>8}{figures}  Postgres")
    print(f"  {'kept' if kept else 'BROKEN'}: at least {SHARE_MIN:.0%} of the bare driver's speed")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
