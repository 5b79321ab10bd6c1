"""What the gateway can carry, and what it loses: its capacity a core, and requests under a thousand swaps of
the table and under `kill -9` of workers.

    python -m bench.gateway_capacity [--quick] [--json] [--folder DIR]

The capacity is that of a real front in front of a worker that computes nothing, the front alone on one core
and all others on another one, by a closed loop; the latencies come from an open loop at half of what is
promised. For the rest there is a whole gateway with real workers and a closed loop that takes all it can get:
the table is swapped while each request's caller, times and version are noted, and afterwards every single
answer has to come from the version that a table gave its caller between sending and answer; then workers are
killed, of two and of one, and every answer that is no prediction is looked at.
"""

import asyncio
import contextlib
import itertools
import multiprocessing
import os
import sys
import tempfile
import time
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from msgspec import Struct

from bench import report
from bench.front_alone import front_alone
from bench.gateway_cost import ONE, TWO, V1, V2, HttpCaller, ahead_of_others, cpu_s, milliseconds
from bench.load import Call, Figure, drive, median_of
from bench.open_loop import BODY, USERS, HttpAnswers, OpenLoop, Speech, Target, bare_server, http_request
from bench.report import Row, Table
from modelkeep.core.routing import WHOLE_PPM, Epoch, Route, RoutingTable, bucket
from modelkeep.serving.processes import new_loop
from tests.serving import models
from tests.serving.control_plane import FakeControlPlane, until
from tests.serving.gateways import Gateway, gone, kill, running

CAPACITY_MIN = 15_000.0
"""Requests a second that one core has to carry."""
P99_MAX_MS = 2.0
HALF_LOAD = CAPACITY_MIN / 2
CONNECTIONS = 32
SHARES_PPM = (0, 500_000, WHOLE_PPM, 100_000)
"""The candidate's shares that follow one another: no caller stays where it was for long."""
SETTLED_S = 0.5
"""Before and after what is done under load, so that there is load."""


class Noted(Struct, frozen=True):
    """One request of a closed loop: the caller's number, when it was sent and answered (monotonic seconds),
    the answer's status, whether the candidate gave it, and whether it said when to come again."""

    user: int
    sent: float
    answered: float
    status: int
    candidate: bool
    again: bool


# ------------------------------------------------------------------------------------ a load that takes notes


class _Noting(HttpCaller):
    """One connection that asks, notes, and asks again."""

    def __init__(self, notes: list[tuple[int, float, float, int, bool, bool]], users: Any) -> None:
        super().__init__(None)
        self._notes, self._users = notes, users
        self._heads = HttpAnswers()
        self._user, self._sent = 0, 0.0
        self.over = False
        self.broken = False

    def begin(self) -> None:
        """Send the next request."""
        assert self.transport is not None
        self._user, self._sent = next(self._users) % USERS, time.monotonic()
        self.transport.write(http_request(self._user))

    def data_received(self, data: bytes) -> None:
        for head, _ in self._heads.feed(data):
            status, now = int(head[9:12]), time.monotonic()
            candidate, again = b"churn:2.0.0" in head, b"\r\nRetry-After: " in head
            self._notes.append((self._user, self._sent, now, status, candidate, again))
            if not self.over:
                self.begin()

    def connection_lost(self, exc: Exception | None) -> None:
        self.broken = not self.over


async def _noting(pipe: Connection, port: int, connections: int) -> None:
    notes: list[tuple[int, float, float, int, bool, bool]] = []
    loop, users = asyncio.get_running_loop(), itertools.count()
    callers = [
        (await loop.create_connection(lambda: _Noting(notes, users), "127.0.0.1", port))[1]
        for _ in range(connections)
    ]
    for caller in callers:
        caller.begin()
    pipe.send("begun")
    await loop.run_in_executor(None, pipe.recv)  # until told to stop
    for caller in callers:
        caller.over = True
    await asyncio.sleep(SETTLED_S)  # for what is under way
    pipe.send((notes, sum(caller.broken for caller in callers)))


def _in_process(pipe: Connection, port: int, connections: int) -> None:
    with new_loop() as runner:
        runner.run(_noting(pipe, port, connections))


class NotedLoad:
    """A closed loop in a process of its own, for as long as the block lasts; `notes` and the number of
    `broken` connections afterwards."""

    def __init__(self, port: int, connections: int = CONNECTIONS) -> None:
        self.notes: list[Noted] = []
        self.broken = 0
        self._ours, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(
            target=_in_process, args=(theirs, port, connections), daemon=True
        )
        self._process.start()
        theirs.close()

    def __enter__(self) -> "NotedLoad":
        self._ours.recv()
        time.sleep(SETTLED_S)
        return self

    def __exit__(self, *_: object) -> None:
        time.sleep(SETTLED_S)
        self._ours.send("stop")
        notes, self.broken = self._ours.recv()
        self.notes = [Noted(*each) for each in notes]
        self._process.join()

    @property
    def failed(self) -> list[Noted]:
        """What was no prediction."""
        return [note for note in self.notes if note.status != 200]

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.notes) / (self.notes[-1].answered - self.notes[0].sent)


# ----------------------------------------------------------------------------------------------- the capacity


class Capacity(Struct, frozen=True):
    """What one front carried: requests a second, its processor time for one, the generator's own ceiling, and
    the latencies of an open loop."""

    figure: Figure
    cpu_us: float
    ceiling: float
    rate: float
    p50_ms: float
    p99_ms: float
    ahead: bool


@contextlib.contextmanager
def apart(pid: int, others: Sequence[int]) -> Any:
    """One process on a core of its own, and all others, this one too, on the next; where there are two."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        os.sched_setaffinity(pid, cores[:1])
        for other in (0, *others):
            os.sched_setaffinity(other, cores[1:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def capacity(folder: Path, seconds: int, rounds: int) -> Capacity:
    """Measure a front alone."""
    calls = [Call("POST", "/endpoints/churn/predict", BODY.decode())]
    with front_alone(folder) as alone:
        figures, used = [], []
        with apart(alone.front, [alone.worker]):
            drive(alone.port, calls, connections=CONNECTIONS, seconds=1)  # the first requests are not counted
            for turn in range(rounds):
                report.tell(f"capacity, round {turn + 1}")
                before = cpu_s(alone.front)
                figures.append(drive(alone.port, calls, connections=CONNECTIONS, seconds=seconds))
                used.append((cpu_s(alone.front) - before) / figures[-1].requests * 1e6)
            with bare_server() as port:
                ceiling = drive(port, calls, connections=CONNECTIONS, seconds=seconds).per_second
        report.tell("half load")
        loop = OpenLoop((Target("front", Speech.HTTP, alone.port),), rounds, float(seconds), HALF_LOAD)
        children = [child.pid for child in multiprocessing.active_children() if child.pid is not None]
        with ahead_of_others([alone.front, *children]) as ahead:
            seen = [each[0] for each in loop.result()]
    p50, p99 = (sorted(milliseconds(each, share) for each in seen)[len(seen) // 2] for share in (0.5, 0.99))
    return Capacity(median_of(figures), min(used), ceiling, HALF_LOAD, p50, p99, ahead)


# ----------------------------------------------------------------------------------------------- what is lost


class Swapped(Struct, frozen=True):
    """What came of swaps under load."""

    swaps: int
    took_s: float
    requests: int
    rate: float
    failed: int
    misrouted: int


def route(seq: int, ppm: int, workers: int = 1) -> Route:
    """Some share of the callers on the candidate."""
    candidate = {} if ppm < 0 else {"candidate": V2.key, "candidate_ppm": ppm, "rollout": "ro_1"}
    return Route(
        endpoint="churn", epoch=Epoch(1, seq), stable=V1.key, salt="salt", key_header="X-User",
        workers=workers, **candidate,
    )  # fmt: skip


def swaps(plane: FakeControlPlane, gateway: Gateway, count: int) -> Swapped:
    """Swap the table again and again under full load, and look where every request went."""
    asked: list[float] = []
    obeyed: list[float] = []
    shares = [SHARES_PPM[number % len(SHARES_PPM)] for number in range(count + 1)]
    number = plane.table.number

    def swap(place: int) -> None:
        asked.append(time.monotonic())
        plane.publish(
            RoutingTable(
                number=number + place + 1, routes=(route(place + 1, shares[place]),), versions=(V1, V2)
            )
        )
        until(lambda: gateway.status()["table"] == number + place + 1, "the table is obeyed")
        obeyed.append(time.monotonic())

    swap(0)
    gateway.wait_ready("churn:2.0.0")
    gateway.wait_route("churn", candidate="churn:2.0.0")
    with NotedLoad(gateway.port) as load:
        began = time.monotonic()
        for place in range(1, count + 1):
            report.tell(f"swap {place} of {count}")
            swap(place)
        took_s = time.monotonic() - began
    buckets = [bucket("salt", b"user-%d" % user) for user in range(USERS)]
    misrouted = sum(not allowed(note, buckets[note.user], asked, obeyed, shares) for note in load.notes)
    failed = len(load.failed) + load.broken
    return Swapped(count, took_s, len(load.notes), load.rate, failed, misrouted)


def allowed(
    note: Noted, at: int, asked: Sequence[float], obeyed: Sequence[float], shares: Sequence[int]
) -> bool:
    """Whether some table that may have been obeyed while a request was under way gives its caller the version
    that answered.

    Args:
        at: the caller's bucket.
        asked, obeyed: of each table, when it was published and when every front had confirmed it.
        shares: the candidate's share in each.
    """
    first = max(0, bisect_right(obeyed, note.sent) - 1)
    last = bisect_left(asked, note.answered) - 1
    return any((at < shares[place]) == note.candidate for place in range(first, last + 1))


class Killed(Struct, frozen=True):
    """What came of killing workers: answers that were no prediction, connections that broke, and of those
    answers the ones that were not 503 with Retry-After."""

    kills: int
    requests: int
    failed: int
    broken: int
    worse: int


def workers_of(gateway: Gateway) -> list[int]:
    """The processes of the stable version that serve."""
    return [each["pid"] for each in gateway.version("churn:1.0.0")["workers"] if each["phase"] == "ready"]


def kills(plane: FakeControlPlane, gateway: Gateway, workers: int, count: int) -> Killed:
    """Kill stable's workers one after the other under full load."""
    number = plane.table.number + 1
    plane.publish(RoutingTable(number=number, routes=(route(10_000 + number, -1, workers),), versions=(V1,)))
    until(lambda: len(workers_of(gateway)) == workers, f"there are {workers} workers")
    with NotedLoad(gateway.port) as load:
        for turn in range(count):
            report.tell(f"kill {turn + 1} of {count}, {workers} workers")
            victim = workers_of(gateway)[0]
            kill(victim)
            until(partial(gone, victim), "the worker is gone")
            until(
                lambda victim=victim: (
                    (found := workers_of(gateway)) and len(found) == workers and victim not in found
                ),  # type: ignore[misc]
                "there is another in its place",
            )
            time.sleep(SETTLED_S)
    worse = [note for note in load.failed if note.status != 503 or not note.again]
    return Killed(count, len(load.notes), len(load.failed), load.broken, len(worse))


# -------------------------------------------------------------------------------------------------- the table


def rows_of(found: Capacity, swapped: Swapped, two: Killed, one: Killed) -> list[Row]:
    """The figures beside what was promised."""
    rate = found.figure.per_second
    return [
        Row(
            what=f"requests a second on one core, {CONNECTIONS} connections",
            figure=f"{rate:,.0f}",
            beside=f"{found.ceiling:,.0f} (bare HTTP)",
            goal=f"at least {CAPACITY_MIN:,.0f}",
            kept=rate >= CAPACITY_MIN,
            values={"per_second": rate, "cpu_us": found.cpu_us, "ceiling": found.ceiling},
        ),
        Row(
            what=f"p99 at {found.rate:,.0f} a second, an open loop",
            figure=f"{found.p99_ms:.2f} ms",
            beside=f"p50 {found.p50_ms:.2f} ms",
            goal=f"< {P99_MAX_MS:g} ms",
            kept=found.p99_ms < P99_MAX_MS,
            values={"p50_ms": found.p50_ms, "p99_ms": found.p99_ms},
        ),
        _none(f"failed over {swapped.swaps:,} swaps at full load", swapped.failed, swapped.requests),
        _none(f"misrouted over {swapped.swaps:,} swaps at full load", swapped.misrouted, swapped.requests),
        _none(f"failed over {two.kills} kills of a worker of two", two.failed + two.broken, two.requests),
        Row(
            what=f"failed over {one.kills} kills of the only worker",
            figure=f"{one.failed + one.broken} of {one.requests:,}",
            goal="at most those in flight, 503 with Retry-After",
            kept=one.failed <= one.kills * CONNECTIONS and not one.worse and not one.broken,
            values={"failed": one.failed, "broken": one.broken, "worse": one.worse},
        ),
    ]


def _none(what: str, bad: int, requests: int) -> Row:
    return Row(
        what=what,
        figure=f"{bad} of {requests:,}",
        goal="0",
        kept=bad == 0,
        values={"bad": bad, "of": requests},
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print one table. Returns 1 when a promise was broken."""
    options = report.arguments(__doc__).parse_args(argv)
    machine = report.this_machine()
    seconds, rounds, count, times = (1, 1, 20, 1) if options.quick else (4, 5, 1_000, 5)
    with tempfile.TemporaryDirectory(prefix="mk-", dir=options.folder) as name, FakeControlPlane() as plane:
        found = capacity(Path(name), seconds, rounds)
        plane.blobs.update({**models.blobs(ONE), **models.blobs(TWO)})
        plane.publish(RoutingTable(number=1, routes=(route(0, -1),), versions=(V1,)))
        with running(Path(name) / "gw", plane.url) as gateway:
            gateway.wait_route("churn", stable="churn:1.0.0")
            swapped = swaps(plane, gateway, count)
            two, one = kills(plane, gateway, 2, times), kills(plane, gateway, 1, times)
    rows = rows_of(found, swapped, two, one)
    remarks = (
        (
            f"The front alone needed {found.cpu_us:.1f} us of processor time a request, in front of a worker "
            "that computes nothing. Beside it: the load generator on a bare HTTP server, placed alike."
        ),
        (
            f"The open loop asks at half of the promised rate; it {'ran' if found.ahead else 'did not run'} "
            "before other work on the machine, with what it asked."
        ),
        (
            f"The swaps took {swapped.took_s:.1f} s under {swapped.rate:,.0f} requests a second from "
            f"{CONNECTIONS} connections; each was obeyed before the next was made."
        ),
    )
    table = Table(
        name="gateway_capacity", title="What the gateway carries, and what it loses", rows=tuple(rows),
        remarks=remarks, beside="beside",
    )  # fmt: skip
    return report.finish(table, machine, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
