"""What the gateway itself costs: its processor time a request, what it adds to a worker's time, and how fast
it rolls back.

    python -m bench.gateway_cost [--quick] [--json] [--folder DIR]

A real gateway with a trivial ONNX model (a product and a sum), on this machine, against a small fake control
plane. Four measurements: closed loop for the processor time and the highest rate; open loop at a fixed rate
below that, in many short rounds, in each of which the requests go through the gateway, straight to the
worker's socket, and to a bare HTTP server in turns, so that the difference of the first two's 99th
percentiles is what the gateway adds and the third's is what any HTTP process would; rollbacks by the local
command under load, each after a fresh canary; and table swaps under load, of which none may cost a request.
"""

import asyncio
import contextlib
import itertools
import math
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

from bench import report
from bench.open_loop import HttpAnswers, OpenLoop, Seen, Speech, Target, bare_server, http_request
from bench.report import Row, Table
from modelkeep.core.routing import Epoch, Route, RoutingTable
from modelkeep.serving import control
from modelkeep.serving.processes import new_loop
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
LOAD_RATE = 2000.0
"""Requests a second while rollbacks and swaps are done."""
_TICKS = os.sysconf("SC_CLK_TCK")


class HttpCaller(asyncio.Protocol):
    """One kept connection to the gateway; `done` gets the version and status of each answer."""

    def __init__(self, done: Any) -> None:
        self._done = done
        self._answers = HttpAnswers()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def ask(self, user: int) -> None:
        """Send one request."""
        assert self.transport is not None
        self.transport.write(http_request(user))

    def data_received(self, data: bytes) -> None:
        for head, _ in self._answers.feed(data):
            self._done(self, head.startswith(b"HTTP/1.1 200"), b"churn:2.0.0" in head)


async def closed_loop(port: int, seconds: float, connections: int) -> dict[str, Any]:
    """As much as goes: each connection asks again when it is answered."""
    counts = {"requests": 0, "failed": 0, "candidate": 0}
    numbers = itertools.count()
    end = time.monotonic() + seconds

    def done(caller: HttpCaller, good: bool, candidate: bool) -> None:
        counts["requests"] += 1
        counts["failed"] += not good
        counts["candidate"] += candidate
        if time.monotonic() < end:
            caller.ask(next(numbers) % 1000)

    loop = asyncio.get_running_loop()
    callers = [
        (await loop.create_connection(lambda: HttpCaller(done), "127.0.0.1", port))[1]
        for _ in range(connections)
    ]
    started = time.monotonic()
    for caller in callers:
        caller.ask(next(numbers))
    await asyncio.sleep(seconds + 0.2)
    return {**counts, "seconds": min(seconds, time.monotonic() - started)}


def in_process(pipe: Connection, arguments: tuple[Any, ...]) -> None:
    """Entry of the closed loop's own process."""
    with new_loop() as runner:
        pipe.send(runner.run(closed_loop(*arguments)))


class ClosedLoop:
    """`closed_loop` in a process of its own, begun at once."""

    def __init__(self, *arguments: Any) -> None:
        self._ours, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(
            target=in_process, args=(theirs, arguments), daemon=True
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


def waited_s(pid: int) -> float:
    """How long a process so far was ready to run and had no processor."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


@contextlib.contextmanager
def ahead_of_others(pids: Sequence[int]) -> Iterator[bool]:
    """Let these processes run before all others while something is measured, where that is allowed: a tail
    says little on a machine that also does other work. Gives whether it was."""
    threads = [int(name) for pid in pids for name in os.listdir(f"/proc/{pid}/task")]
    try:
        for thread in threads:
            policy = os.SCHED_RR | os.SCHED_RESET_ON_FORK
            os.sched_setscheduler(thread, policy, os.sched_param(1))
    except PermissionError:
        yield False
        return
    try:
        yield True
    finally:
        for thread in threads:
            with contextlib.suppress(ProcessLookupError):  # it has finished
                os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))


def quantile(values: Sequence[float], share: float) -> float:
    """The value that a share of them does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


def unharmed(seen: Seen, over: str) -> int:
    """The requests of a round, none of which may have failed or been lost."""
    assert seen.failed == 0, f"a request failed over {over}"
    assert len(seen.latencies) == seen.sent, f"a request was lost over {over}"
    return seen.sent


def milliseconds(seen: Seen, share: float) -> float:
    """A quantile of a round in which all went well."""
    unharmed(seen, seen.target)
    return quantile(seen.latencies, share) * 1e3


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
        found = ClosedLoop(self.gateway.port, seconds, CONNECTIONS).result()
        assert found["failed"] == 0, found
        used = {kind: sum(cpu_s(pid) for pid in each) - before[kind] for kind, each in pids.items()}
        micro = {f"{kind}_us": value / found["requests"] * 1e6 for kind, value in used.items()}
        return {"rate": found["requests"] / found["seconds"], **micro}

    def added(self, rate: float, seconds: float, rounds: int) -> dict[str, float]:
        """Percentiles in milliseconds through the gateway, straight to the worker and to a bare HTTP server,
        and what the first has over the second: each the median of the rounds' own."""
        worker = next((self.gateway.data / "run").glob("w-*.sock"))
        pids = self.pids()
        front = pids["front"][0]
        with bare_server() as port:
            targets = (
                Target("through", Speech.HTTP, self.gateway.port),
                Target("straight", Speech.FRAMES, str(worker)),
                Target("bare", Speech.HTTP, port),
            )
            waited = waited_s(front)
            loop = OpenLoop(targets, rounds, seconds, rate)
            children = [child.pid for child in multiprocessing.active_children() if child.pid is not None]
            with ahead_of_others([*children, *(pid for each in pids.values() for pid in each)]) as ahead:
                found = loop.result()
            waited = waited_s(front) - waited
        figures: dict[str, float] = {
            "ahead": ahead,
            "waited_us": waited / sum(each[0].sent for each in found) * 1e6,
        }
        for share in (0.5, 0.99):
            name = f"p{share * 100:g}"
            seen = {t.name: [milliseconds(each[i], share) for each in found] for i, t in enumerate(targets)}
            figures |= {f"{target}_{name}": statistics.median(values) for target, values in seen.items()}
            over = [a - b for a, b in zip(seen["through"], seen["straight"], strict=True)]
            figures[f"added_{name}"] = statistics.median(over)
            figures[f"added_{name}_least"], figures[f"added_{name}_most"] = min(over), max(over)
        return figures

    def load(self, seconds: float) -> OpenLoop:
        """Callers at a steady rate, for something to be done meanwhile."""
        return OpenLoop((Target("load", Speech.HTTP, self.gateway.port),), 1, seconds, LOAD_RATE)

    def rollbacks(self, count: int) -> dict[str, list[float]]:
        """Times of rollbacks by the local command under load, each after a fresh canary at half."""
        times: dict[str, list[float]] = {"took": [], "last_sent": [], "command": []}
        load = self.load(count * 0.06 + 2.0)
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
        unharmed(load.result()[0][0], "the rollbacks")
        return times

    def swaps(self, count: int) -> int:
        """Requests answered while the table is swapped again and again; a failed or missing one ends the
        run."""
        self.term += 1
        load = self.load(count * 0.02 + 2.0)
        time.sleep(1.0)
        for seq in range(1, count + 1):
            self.canary(1 + seq % 2 * 500_000, seq=seq)
        return unharmed(load.result()[0][0], "the swaps")


def added_row(figures: dict[str, Any], share: str, what: str, goal_ms: float | None) -> Row:
    """What the gateway adds at a percentile, beside what a bare HTTP server takes there."""
    names = ("through", "straight", "bare", "added")
    return Row(
        what=what,
        figure=f"{figures[f'added_{share}']:.2f} ms",
        beside=f"{figures[f'bare_{share}']:.2f} ms",
        goal=f"< {goal_ms:g} ms" if goal_ms is not None else "",
        kept=figures[f"added_{share}"] < goal_ms if goal_ms is not None else None,
        values={f"{name}_ms": figures[f"{name}_{share}"] for name in names}
        | {f"{name}_ms": figures[f"added_{share}_{name}"] for name in ("least", "most")},
    )


_AHEAD = "While tails were measured, what takes part in that ran before all other work on the machine."


def table_of(figures: dict[str, Any], swaps: int) -> Table:
    """The figures beside what was promised."""
    own = figures["front_us"] + figures["supervisor_us"]
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
        added_row(
            figures, "p50", f"added at the median, {figures['open_rate']:,.0f} requests a second", None
        ),
        added_row(figures, "p99", "added at p99", ADDED_GOAL_MS),
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
        (
            f"Added: the way through the gateway ({figures['through_p99']:.2f} ms at p99) less that straight "
            f"to the worker ({figures['straight_p99']:.2f} ms), the median of rounds, which went from "
            f"{figures['added_p99_least']:.2f} to {figures['added_p99_most']:.2f} ms; the front waited "
            f"{figures['waited_us']:.0f} us a request for a processor. Beside it: a bare HTTP server that "
            "answers at once."
        ),
        _AHEAD if figures["ahead"] else "What was measured had no priority over other work on the machine.",
        "A rollback counts from the command's arrival until every front has confirmed that it obeys.",
    )
    return Table(
        name="gateway_cost", title="The gateway's own cost", rows=rows, remarks=remarks, beside="bare HTTP"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print one table. Returns 1 when a promise was broken."""
    options = report.arguments(__doc__).parse_args(argv)
    machine = report.this_machine()
    seconds, rounds, rollbacks, swaps = (1.0, 3, 20, 20) if options.quick else (4.0, 15, 200, 200)
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
            figures.update(bench.added(figures["open_rate"], 1.0, rounds))
            bench.canary(500_000)
            figures.update(bench.cost(seconds))
            figures.update(bench.rollbacks(rollbacks))
            report.tell("swaps")
            figures["swapped_requests"] = bench.swaps(swaps)
    return report.finish(table_of(figures, swaps), machine, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
