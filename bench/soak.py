"""A day's requests in ten minutes: whether a gateway at full load grows, leaks descriptors, or lets its
prediction log outgrow its bound.

    python -m bench.soak [--quick] [--json] [--folder DIR] [--seconds 600]

A whole gateway with a canary at half, every answer logged, and a closed loop that takes all it can get, with
a new connection for every thousandth request and a new table every second. Meanwhile the resident memory and
the open descriptors of each of its processes and the size of the log's folder are looked at, two hundred
times in all. The first third is for warming up. Of the rest the slope is that of Theil and Sen, the middle
of the slopes between all pairs of looks: what comes and goes, as the recorder's memory does when it makes a
file, moves it little. It says nothing about speed.
"""

import asyncio
import itertools
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from msgspec import Struct

from bench import report
from bench.gateway_cost import ONE, TWO, V1, V2, HttpCaller
from bench.report import Row, Table
from modelkeep.core.routing import WHOLE_PPM, Epoch, Route, RoutingTable
from modelkeep.serving.prediction_log import FOLDER, STREAM_MAX_BYTES
from modelkeep.serving.processes import new_loop
from tests.serving import models
from tests.serving.control_plane import FakeControlPlane, until
from tests.serving.gateways import Gateway, running

SECONDS, QUICK_SECONDS = 600, 20
LOOKS = 200
CONNECTIONS = 32
RENEWED_EVERY = 1_000
"""Requests on a connection before it is closed and another one made: what is left of a connection must not
pile up either."""
WARM_SHARE = 1 / 3
GROWTH_MAX_MIB = 4.0
"""What the slope may come to over the whole time that counts, for each process."""
DESCRIPTORS_MAX = 0
"""By how many the least that each process held may have grown from one half of that time to the other: what
is open for a moment is no leak, and a leak is never gone again."""
LOG_MAX_BYTES = 48 * 1024 * 1024
"""Small, so that the bound is met again and again: two streams may be written, of 16 MiB each."""
DAY_S = 86_400


class Look(Struct, frozen=True):
    """How things stand: by process, resident MiB and open descriptors; and the bytes of the log."""

    at: float
    memory_mib: dict[str, float]
    descriptors: dict[str, int]
    log_bytes: int


# --------------------------------------------------------------------------------------------------- the load


class _Renewed(HttpCaller):
    """A connection that asks again when it is answered, and is replaced when it has asked enough."""

    def __init__(self, load: "_Load") -> None:
        super().__init__(self._answered)
        self._load, self._asked = load, 0

    def begin(self) -> None:
        self._asked += 1
        self.ask(next(self._load.users) % 1000)

    def _answered(self, _: HttpCaller, good: bool, candidate: bool) -> None:
        load = self._load
        load.requests += 1
        load.failed += not good
        load.candidate += candidate
        if load.over:
            return
        if self._asked < RENEWED_EVERY:
            self.begin()
            return
        assert self.transport is not None
        self._asked = -1
        self.transport.close()
        load.connect()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._asked >= 0 and not self._load.over:  # not closed by us
            self._load.failed += 1


class _Load:
    """Callers until told to stop."""

    def __init__(self, port: int) -> None:
        self.users = itertools.count()
        self.requests = self.failed = self.candidate = 0
        self.over = False
        self._port = port
        self._tasks: set[asyncio.Task[None]] = set()

    def connect(self) -> None:
        """Have one more connection soon."""
        task = asyncio.get_running_loop().create_task(self._connect())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self) -> None:
        _, caller = await asyncio.get_running_loop().create_connection(
            lambda: _Renewed(self), "127.0.0.1", self._port
        )
        caller.begin()


async def _loaded(pipe: Connection, port: int) -> None:
    load = _Load(port)
    for _ in range(CONNECTIONS):
        load.connect()
    await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
    load.over = True
    await asyncio.sleep(1.0)
    pipe.send((load.requests, load.failed, load.candidate))


def _in_process(pipe: Connection, port: int) -> None:
    with new_loop() as runner:
        runner.run(_loaded(pipe, port))


# ------------------------------------------------------------------------------------------------ the looking


def processes_of(gateway: Gateway) -> dict[str, int]:
    """The gateway's processes by what they are."""
    status: dict[str, Any] = gateway.status()
    found = {"supervisor": status["pid"], "front": status["fronts"][0]["pid"]}
    found |= {f"worker {version['version']}": version["pid"] for version in status["versions"]}
    return found | {"recorder": status["recorder"]["pid"]}


def look(pids: dict[str, int], gateway: Gateway) -> Look:
    """How things stand now."""
    memory, descriptors = {}, {}
    for name, pid in pids.items():
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        memory[name] = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
        descriptors[name] = len(os.listdir(f"/proc/{pid}/fd"))
    return Look(time.monotonic(), memory, descriptors, log_bytes(gateway))


def log_bytes(gateway: Gateway) -> int:
    """The size of the log's files together."""
    total = 0
    for path in (gateway.data / FOLDER).rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # it went while it was looked at
            continue
    return total


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """The middle of the slopes between all pairs of points, after Theil (1950) and Sen (1968): a second."""
    points = list(zip(times, values, strict=True))
    return statistics.median((w - v) / (t - s) for (s, v), (t, w) in itertools.combinations(points, 2))


def table_number(number: int) -> RoutingTable:
    """A canary close to half, another one in every table, with everything logged."""
    route = Route(
        endpoint="churn", epoch=Epoch(1, number), stable=V1.key, candidate=V2.key,
        candidate_ppm=500_000 + number % 2, salt="salt", rollout="ro_1", key_header="X-User",
        log_ppm=WHOLE_PPM,
    )  # fmt: skip
    return RoutingTable(number=number, routes=(route,), versions=(V1, V2))


class Soaked(Struct, frozen=True):
    """What was seen. `counts`: requests, those that failed, those of the candidate."""

    looks: list[Look]
    counts: tuple[int, int, int]
    rows: int
    lost: int


def soak(folder: Path, seconds: float) -> Soaked:
    """Run a gateway at full load and look at it."""
    with FakeControlPlane() as plane:
        plane.blobs.update({**models.blobs(ONE), **models.blobs(TWO)})
        plane.publish(table_number(1))
        with running(folder / "gw", plane.url, options=f"log_max_bytes={LOG_MAX_BYTES}") as gateway:
            gateway.wait_route("churn", candidate="churn:2.0.0")
            gateway.wait_ready("churn:2.0.0")
            until(lambda: bool((gateway.status()["recorder"] or {}).get("pid")), "there is a recorder")
            ours, theirs = multiprocessing.Pipe()
            load = multiprocessing.get_context("spawn").Process(
                target=_in_process, args=(theirs, gateway.port), daemon=True
            )
            load.start()
            theirs.close()
            looks, pids = [], processes_of(gateway)
            began, number = time.monotonic(), 1
            while (now := time.monotonic()) < began + seconds:
                report.tell(f"{now - began:.0f} of {seconds:.0f} s")
                looks.append(look(pids, gateway))
                if now - began > number:
                    number += 1
                    plane.publish(table_number(number))
                time.sleep(max(0.0, began + len(looks) * seconds / LOOKS - time.monotonic()))
            ours.send("stop")
            counts = ours.recv()
            load.join()
            if processes_of(gateway) != pids:
                raise RuntimeError(f"a process was replaced: {gateway.log()[-2_000:]}")
            recorder = gateway.status()["recorder"]
            return Soaked(looks, counts, int(recorder["rows"]), int(recorder["lost"]))


# -------------------------------------------------------------------------------------------------- the table


def rows_of(seen: Soaked, seconds: float) -> list[Row]:
    """The figures beside what was promised."""
    looks = seen.looks[int(len(seen.looks) * WARM_SHARE) :]
    times, half = [each.at for each in looks], len(looks) // 2
    requests, failed, _ = seen.counts
    rows = [
        Row(
            what="requests failed",
            figure=f"{failed} of {requests:,}",
            beside=f"{requests / DAY_S:,.1f} a second for a day",
            goal="0",
            kept=failed == 0,
            values={"failed": failed, "requests": requests},
        )
    ]
    for name in looks[0].memory_mib:
        memory = [each.memory_mib[name] for each in looks]
        growth = slope(times, memory) * (times[-1] - times[0])
        rows.append(
            Row(
                what=f"growth of memory, {name}",
                figure=f"{growth:+.2f} MiB",
                beside=f"{memory[-1]:.0f} MiB, at most {max(memory):.0f}",
                goal=f"at most {GROWTH_MAX_MIB:g} MiB",
                kept=growth <= GROWTH_MAX_MIB,
                values={"growth_mib": growth, "mib": memory[-1], "most_mib": max(memory)},
            )
        )
    grown = {
        name: min(each.descriptors[name] for each in looks[half:])
        - min(each.descriptors[name] for each in looks[:half])
        for name in looks[0].descriptors
    }
    most = max(each.log_bytes for each in seen.looks)
    bound = LOG_MAX_BYTES + STREAM_MAX_BYTES
    return [
        *rows,
        Row(
            what="growth of open descriptors, the worst process",
            figure=f"{max(grown.values()):+d}",
            beside=f"{sum(looks[-1].descriptors.values())} in all",
            goal=f"at most {DESCRIPTORS_MAX}",
            kept=max(grown.values()) <= DESCRIPTORS_MAX,
            values={f"grown_{name.replace(' ', '_')}": number for name, number in grown.items()},
        ),
        Row(
            what=f"the prediction log at its largest, its bound {LOG_MAX_BYTES // 2**20} MiB",
            figure=f"{most / 2**20:.1f} MiB",
            beside=f"{seen.rows:,} rows, {seen.lost:,} lost",
            goal="at most that and a file in the making",
            kept=most <= bound,
            values={"most_mib": most / 2**20, "rows": seen.rows, "lost": seen.lost},
        ),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print one table. Returns 1 when a promise was broken."""
    parser = report.arguments(__doc__)
    parser.add_argument("--seconds", type=float, help=f"how long ({SECONDS}; with --quick {QUICK_SECONDS})")
    options = parser.parse_args(argv)
    machine = report.this_machine()
    seconds = options.seconds or (QUICK_SECONDS if options.quick else SECONDS)
    with tempfile.TemporaryDirectory(prefix="mk-", dir=options.folder) as name:
        seen = soak(Path(name), seconds)
    rate = seen.counts[0] / seconds
    remarks = (
        (
            f"{seconds:.0f} s at {rate:,.0f} requests a second from {CONNECTIONS} connections, each replaced "
            f"after {RENEWED_EVERY:,} requests; a canary at half, a new table a second, every answer logged."
        ),
        (
            "Growth is the Theil-Sen slope over the last two thirds, times their length: "
            f"{len(seen.looks)} looks at the processes in all."
        ),
    )
    table = Table(
        name="soak",
        title="A day's requests at full load",
        rows=tuple(rows_of(seen, seconds)),
        remarks=remarks,
    )
    return report.finish(table, machine, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
