"""What the gateway itself costs: its processor time a request, what it adds to a worker's time, and how fast
it rolls back.

    python -m bench.gateway_cost [--quick] [--json] [--folder DIR]

A real gateway with a trivial ONNX model (a product and a sum), on this machine, against a small fake control
plane. Four measurements: closed loop for the processor time and the highest rate; open loop at a fixed rate
below that, once through the gateway and once straight to the worker's socket in turns, so that the difference
of their 99th percentiles is what the gateway adds (each latency counted from the moment the request was due,
so stalls are not hidden); rollbacks by the local command under load, each after a fresh canary; and table
swaps under load, of which none may cost a request.
"""

import asyncio
import itertools
import math
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

from bench import report
from bench.report import Row, Table
from modelkeep.core.routing import Epoch, Route, RoutingTable
from modelkeep.serving import control, frames
from modelkeep.serving.frames import FrameReader, Kind
from modelkeep.serving.processes import new_loop
from modelkeep.serving.upstream import PREFIX
from tests.serving import models
from tests.serving.control_plane import FakeControlPlane
from tests.serving.gateways import Gateway, running

CPU_GOAL_US = 25.0
ADDED_GOAL_MS = 1.0
ROLLBACK_GOAL_MS = 1.0
ROLLBACK_P99_GOAL_MS = 10.0
CONNECTIONS = 32
OPEN_LOOP_SHARE = 0.25
"""Of the highest rate: the load generator and the worker have to fit on the same cores."""
BODY = b'{"inputs":[{"age":40,"income":2.5}]}'
_TICKS = os.sysconf("SC_CLK_TCK")


def http_request(user: int) -> bytes:
    """A prediction as a client library sends it."""
    return (
        b"POST /endpoints/churn/predict HTTP/1.1\r\nHost: gateway.local:5001\r\nUser-Agent: bench/1.0\r\n"
        b"Accept: application/json\r\nContent-Type: application/json\r\nX-User: user-%d\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (user, len(BODY), BODY)
    )


class HttpCaller(asyncio.Protocol):
    """One kept connection to the gateway; `done` gets the version and status of each answer."""

    def __init__(self, done: Any) -> None:
        self._done = done
        self._data = b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def ask(self, user: int) -> None:
        """Send one request."""
        assert self.transport is not None
        self.transport.write(http_request(user))

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = self._data[:end]
            length = int(head[head.index(b"Content-Length: ") + 16 :].split(b"\r\n", 1)[0])
            if len(self._data) < end + 4 + length:
                return
            self._data = self._data[end + 4 + length :]
            self._done(self, head.startswith(b"HTTP/1.1 200"), b"churn:2.0.0" in head)


class FrameCaller(asyncio.Protocol):
    """One connection straight to a worker."""

    def __init__(self, done: Any) -> None:
        self._done = done
        self._reader = FrameReader()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def ask(self, user: int) -> None:
        """Send one request."""
        payload = PREFIX.pack(time.monotonic() + 30, 0, 5) + b"churn" + BODY
        assert self.transport is not None
        self.transport.write(frames.pack(user & 0xFFFFFFFF, Kind.REQUEST, payload))

    def data_received(self, data: bytes) -> None:
        for _, kind, _ in self._reader.feed(data):
            self._done(self, kind == Kind.ANSWER, False)


Caller = HttpCaller | FrameCaller


async def connect(target: int | str, count: int, done: Any) -> list[Caller]:
    """Callers to a port of this machine, or to a worker's socket."""
    loop = asyncio.get_running_loop()
    callers: list[Caller] = []
    for _ in range(count):
        if isinstance(target, int):
            _, caller = await loop.create_connection(lambda: HttpCaller(done), "127.0.0.1", target)
            callers.append(caller)
        else:
            _, framed = await loop.create_unix_connection(lambda: FrameCaller(done), target)
            callers.append(framed)
    return callers


async def closed_loop(target: int | str, seconds: float, connections: int) -> dict[str, Any]:
    """As much as goes: each connection asks again when it is answered."""
    counts = {"requests": 0, "failed": 0, "candidate": 0}
    numbers = itertools.count()
    end = time.monotonic() + seconds

    def done(caller: Caller, good: bool, candidate: bool) -> None:
        counts["requests"] += 1
        counts["failed"] += not good
        counts["candidate"] += candidate
        if time.monotonic() < end:
            caller.ask(next(numbers) % 1000)

    callers = await connect(target, connections, done)
    started = time.monotonic()
    for caller in callers:
        caller.ask(next(numbers))
    await asyncio.sleep(seconds + 0.2)
    return {**counts, "seconds": min(seconds, time.monotonic() - started)}


async def open_loop(target: int | str, seconds: float, rate: float, connections: int) -> dict[str, Any]:
    """At a fixed rate, whatever the answers do; latencies count from when a request was due."""
    loop = asyncio.get_running_loop()
    latencies: list[float] = []
    due: dict[Caller, list[float]] = {}
    failed = 0

    def done(caller: Caller, good: bool, candidate: bool) -> None:
        nonlocal failed
        failed += not good
        latencies.append(time.perf_counter() - due[caller].pop(0))

    callers = await connect(target, connections, done)
    due.update((caller, []) for caller in callers)
    turn = itertools.cycle(callers)
    started, sent, total = time.perf_counter(), 0, int(seconds * rate)
    while sent < total:
        now = time.perf_counter()
        while sent < total and started + sent / rate <= now:
            caller = next(turn)
            due[caller].append(started + sent / rate)
            caller.ask(sent % 1000)
            sent += 1
        await asyncio.sleep(0 if loop.is_running() and started + sent / rate - now < 0.0005 else 0.0002)
    await asyncio.sleep(0.3)
    return {"latencies": latencies, "failed": failed, "sent": sent}


def in_process(pipe: Connection, kind: str, arguments: tuple[Any, ...]) -> None:
    """Entry of the load generator's own process."""
    work = closed_loop if kind == "closed" else open_loop
    with new_loop() as runner:
        pipe.send(runner.run(work(*arguments)))


class Generator:
    """A load generator in a process of its own, started at once."""

    def __init__(self, kind: str, *arguments: Any) -> None:
        self._ours, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(
            target=in_process, args=(theirs, kind, arguments), daemon=True
        )
        self._process.start()
        theirs.close()

    def result(self) -> dict[str, Any]:
        """What it saw, when it has finished."""
        found: dict[str, Any] = self._ours.recv()
        self._process.join()
        return found


def cpu_s(pid: int) -> float:
    """Processor time of a process so far, to the resolution of the kernel's own account."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    precise = Path(f"/proc/{pid}/schedstat").read_text().split()[0]
    return int(precise) / 1e9 if precise != "0" else (int(fields[11]) + int(fields[12])) / _TICKS


def quantile(values: Sequence[float], share: float) -> float:
    """The value that a share of them does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


ONE, TWO = ({"model.onnx": models.linear_onnx(slope)} for slope in (1.0, 2.0))
V1, V2 = models.spec(ONE, "1.0.0"), models.spec(TWO, "2.0.0")


class Bench:
    """A gateway under measurement."""

    def __init__(self, plane: FakeControlPlane, gateway: Gateway) -> None:
        self.plane = plane
        self.gateway = gateway
        self.term, self.number = 1, 0

    def canary(self, ppm: int, *, seq: int = 1) -> None:
        """Have a canary with this share obeyed."""
        self.number += 1
        route = Route(
            endpoint="churn",
            epoch=Epoch(self.term, seq),
            stable=V1.key,
            candidate=V2.key,
            candidate_ppm=ppm,
            salt="salt",
            rollout=f"ro_{self.term}",
            key_header="X-User",
        )
        self.plane.publish(RoutingTable(number=self.number, routes=(route,), versions=(V1, V2)))
        self.gateway.wait_route("churn", candidate="churn:2.0.0", candidate_ppm=ppm)

    def pids(self) -> dict[str, list[int]]:
        """Processes by what they are."""
        status = self.gateway.status()
        return {
            "front": [front["pid"] for front in status["fronts"]],
            "supervisor": [status["pid"]],
            "worker": [version["pid"] for version in status["versions"]],
        }

    def cost(self, seconds: float) -> dict[str, float]:
        """The highest rate of a closed loop, and the microseconds of processor time a request in each
        process."""
        pids = self.pids()
        before = {kind: sum(cpu_s(pid) for pid in found) for kind, found in pids.items()}
        found = Generator("closed", self.gateway.port, seconds, CONNECTIONS).result()
        assert found["failed"] == 0, found
        used = {kind: sum(cpu_s(pid) for pid in each) - before[kind] for kind, each in pids.items()}
        micro = {f"{kind}_us": value / found["requests"] * 1e6 for kind, value in used.items()}
        return {"rate": found["requests"] / found["seconds"], **micro}

    def added(self, rate: float, seconds: float, rounds: int) -> dict[str, float]:
        """Percentiles in milliseconds through the gateway and straight to the worker, in turns, medians of
        rounds."""
        worker = next((self.gateway.data / "run").glob("w-*.sock"))
        seen: dict[str, list[float]] = {}
        for _ in range(rounds):
            for name, target in (("through", self.gateway.port), ("straight", str(worker))):
                found = Generator("open", target, seconds, rate, 16).result()
                assert found["failed"] == 0
                assert len(found["latencies"]) == found["sent"], "an answer is missing"
                for share in (0.5, 0.99):
                    seen.setdefault(f"{name}_p{share * 100:g}", []).append(
                        quantile(found["latencies"], share) * 1e3
                    )
        return {name: statistics.median(values) for name, values in seen.items()}

    def rollbacks(self, count: int) -> dict[str, list[float]]:
        """Times of rollbacks by the local command under load, each after a fresh canary at half."""
        times: dict[str, list[float]] = {"took": [], "last_sent": [], "command": []}
        load = Generator("open", self.gateway.port, count * 0.06 + 2.0, 2000.0, 16)
        time.sleep(1.0)
        for index in range(count):
            report.tell(f"rollback {index + 1} of {count}")
            self.term += 1
            self.canary(500_000)
            began = time.perf_counter()
            result = control.call(
                self.gateway.data, "rollback", endpoint="churn", actor="bench", reason="bench"
            )
            times["command"].append((time.perf_counter() - began) * 1e3)
            times["took"].append(result["took_ms"])
            times["last_sent"].append(result["last_sent_ms"])
            self.term = result["epoch"]["term"]
        found = load.result()
        assert found["failed"] == 0, "a request failed over the rollbacks"
        return times

    def swaps(self, count: int) -> int:
        """Requests answered while the table is swapped again and again; a failed or missing one ends the
        run."""
        self.term += 1
        load = Generator("open", self.gateway.port, count * 0.02 + 2.0, 2000.0, 16)
        time.sleep(1.0)
        for seq in range(1, count + 1):
            self.canary(1 + seq % 2 * 500_000, seq=seq)
        found = load.result()
        assert found["failed"] == 0, "a request failed over the swaps"
        assert len(found["latencies"]) == found["sent"], "a request was lost over the swaps"
        return int(found["sent"])


def table_of(figures: dict[str, Any], swaps: int) -> Table:
    """The figures beside what was promised."""
    own = figures["front_us"] + figures["supervisor_us"]
    added = {share: figures[f"through_{share}"] - figures[f"straight_{share}"] for share in ("p50", "p99")}
    took, command = figures["took"], figures["command"]
    typical, worst = statistics.median(took), quantile(took, 0.99)
    rows = (
        Row(
            what="own processor time a request, canary at half",
            figure=f"{own:.1f} us",
            goal=f"<= {CPU_GOAL_US:g} us",
            kept=own <= CPU_GOAL_US,
            values={
                "own_us": own,
                **{k: figures[k] for k in ("front_us", "supervisor_us", "worker_us", "rate")},
            },
        ),
        Row(
            what="the same without a rollout",
            figure=f"{figures['quiet_us']:.1f} us",
            values={"us": figures["quiet_us"]},
        ),
        Row(
            what=f"highest rate, {CONNECTIONS} connections, 1 front",
            figure=f"{figures['rate']:,.0f} a second",
        ),
        Row(
            what=f"added at the median, {figures['open_rate']:,.0f} requests a second",
            figure=f"{added['p50']:.2f} ms",
            values={
                "ms": added["p50"],
                "through_ms": figures["through_p50"],
                "straight_ms": figures["straight_p50"],
            },
        ),
        Row(
            what="added at p99",
            figure=f"{added['p99']:.2f} ms",
            goal=f"< {ADDED_GOAL_MS:g} ms",
            kept=added["p99"] < ADDED_GOAL_MS,
            values={
                "ms": added["p99"],
                "through_ms": figures["through_p99"],
                "straight_ms": figures["straight_p99"],
            },
        ),
        Row(
            what=f"rollback under load, median of {len(took)}",
            figure=f"{typical:.2f} ms",
            goal=f"< {ROLLBACK_GOAL_MS:g} ms",
            kept=typical < ROLLBACK_GOAL_MS,
            values={"ms": typical, "command_ms": statistics.median(command)},
        ),
        Row(
            what="rollback under load, p99",
            figure=f"{worst:.2f} ms",
            goal=f"< {ROLLBACK_P99_GOAL_MS:g} ms",
            kept=worst < ROLLBACK_P99_GOAL_MS,
            values={
                "ms": worst,
                "command_ms": quantile(command, 0.99),
                "last_sent_ms": quantile(figures["last_sent"], 0.99),
            },
        ),
        Row(
            what=f"requests failed or lost over {swaps} swaps",
            figure=f"0 of {figures['swapped_requests']:,}",
            goal="0",
            kept=True,
        ),
    )
    remarks = (
        (
            f"Of the processor time, the front took {figures['front_us']:.1f} us, the supervisor "
            f"{figures['supervisor_us']:.1f} us; the worker itself {figures['worker_us']:.1f} us."
        ),
        "A rollback counts from the command's arrival until every front has confirmed that it obeys.",
    )
    return Table(name="gateway_cost", title="The gateway's own cost", rows=rows, remarks=remarks)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print one table. Returns 1 when a promise was broken."""
    options = report.arguments(__doc__).parse_args(argv)
    machine = report.this_machine()
    seconds, rounds, rollbacks, swaps = (1.0, 1, 20, 20) if options.quick else (4.0, 3, 200, 200)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="mk-", dir=options.folder) as name, FakeControlPlane() as plane:
        plane.blobs.update({**models.blobs(ONE), **models.blobs(TWO)})
        with running(Path(name) / "gw", plane.url) as gateway:
            bench = Bench(plane, gateway)
            route = Route(endpoint="churn", epoch=Epoch(1, 0), stable=V1.key)
            bench.number += 1
            plane.publish(RoutingTable(number=1, routes=(route,), versions=(V1,)))
            gateway.wait_route("churn", stable="churn:1.0.0")
            report.tell("closed loop")
            bench.cost(min(1.0, seconds))  # the first requests are not counted
            quiet = bench.cost(seconds)
            figures["quiet_us"] = quiet["front_us"] + quiet["supervisor_us"]
            figures["open_rate"] = min(3000.0, quiet["rate"] * OPEN_LOOP_SHARE)
            report.tell("open loop")
            figures.update(bench.added(figures["open_rate"], seconds, rounds))
            bench.canary(500_000)
            figures.update(bench.cost(seconds))
            figures.update(bench.rollbacks(rollbacks))
            report.tell("swaps")
            figures["swapped_requests"] = bench.swaps(swaps)
    return report.finish(table_of(figures, swaps), machine, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
