"""What many models on one gateway cost when they are loaded on demand: the first request's delay, and memory.

    python -m bench.on_demand [--quick] [--json] [--folder DIR] [--models 200]

One real gateway with as many endpoints as there are models, each its own small ONNX file, and a budget of
memory for a tenth of them. First nothing is asked and all sleep. Then one model after the other is asked for
the first time, first while there is room and then while another has to give way for each; and last four
callers at once ask for any of them. Every answer is checked: a model that answered for another would be seen.

Memory is what the kernel says of the gateway's processes, those included that are being loaded or ending.
"""

import concurrent.futures
import http.client
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import report
from bench.report import Row, Table
from modelkeep.core.routing import Epoch, Loading, Route, RoutingTable
from modelkeep.telemetry import memory_bytes
from tests.serving import models
from tests.serving.control_plane import FakeControlPlane, until
from tests.serving.gateways import Gateway, running

MODELS, QUICK_MODELS = 200, 7
SHARE_LOADED = 10
"""One in so many fits into the budget; four at the least."""
LOADED_BYTES = 72 * 1024 * 1024
"""What one such model is given in the budget; it holds a little less."""
CALLERS = 4
MIB = 1024 * 1024


class Watcher(threading.Thread):
    """Looks at the workers' memory ten times a second, and keeps the highest."""

    def __init__(self, gateway: Gateway) -> None:
        super().__init__(daemon=True)
        assert gateway.process is not None
        self._supervisor = gateway.process.pid
        self._others = {front["pid"] for front in gateway.status()["fronts"]}
        self._end = threading.Event()
        self.highest_bytes = 0

    def run(self) -> None:
        while not self._end.wait(0.1):
            self.highest_bytes = max(self.highest_bytes, self.workers_bytes())

    def workers_bytes(self) -> int:
        """What all workers hold now."""
        return sum(memory_bytes(pid) for pid in self._children() - self._others)

    def own_bytes(self) -> int:
        """What the gateway itself holds: supervisor and fronts."""
        return sum(memory_bytes(pid) for pid in (self._supervisor, *self._others))

    def _children(self) -> set[int]:
        found: set[int] = set()
        for path in Path(f"/proc/{self._supervisor}/task").glob("*/children"):
            found.update(map(int, path.read_text().split()))
        return found

    def stop(self) -> None:
        """Look no more."""
        self._end.set()
        self.join()


class Asking:
    """Requests to models by their number, over one kept connection, and what became of them."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.failed = 0

    def ask(self, number: int) -> float:
        """Ask one model, and look at its answer. Returns the milliseconds it took."""
        body = json.dumps({"inputs": [[2, 1]]})
        began = time.perf_counter()
        self._connection.request(
            "POST", f"/endpoints/{name(number)}/predict", body, {"Content-Type": "application/json"}
        )
        answer = self._connection.getresponse()
        read = answer.read()
        took_ms = (time.perf_counter() - began) * 1000
        right = answer.status == 200 and json.loads(read)["outputs"] == [2.0 * number + 1]
        self.failed += not right
        return took_ms


def name(number: int) -> str:
    """The endpoint of a model."""
    return f"model-{number}"


def registered(plane: FakeControlPlane, count: int) -> None:
    """Publish so many endpoints, each with a model of its own that is loaded on demand."""
    specs = []
    for number in range(count):
        files = {"model.onnx": models.linear_onnx(float(number))}
        plane.blobs.update(models.blobs(files))
        specs.append(models.spec(files, "1.0.0", model=name(number)))
    routes = tuple(
        Route(endpoint=name(number), epoch=Epoch(1, 0), stable=spec.key, load=Loading.ON_DEMAND)
        for number, spec in enumerate(specs)
    )
    plane.publish(RoutingTable(number=1, routes=routes, versions=tuple(specs)))


def evictions(gateway: Gateway) -> int:
    """How often a version was put to sleep for want of memory."""
    page = gateway.request("GET", "/metrics").body.decode()
    lines = [line for line in page.splitlines() if "version_evictions_total{" in line and '"memory"' in line]
    return sum(int(line.rpartition(" ")[2]) for line in lines)


def measured(count: int, folder: Path | None) -> dict[str, Any]:
    """All that is measured, by name."""
    fitting = max(CALLERS, count // SHARE_LOADED)
    budget_bytes = fitting * LOADED_BYTES
    order = list(range(count))
    random.Random(1).shuffle(order)
    options = f"memory_budget_bytes={budget_bytes}, sleep_after_s=0, request_deadline_s=60"
    with tempfile.TemporaryDirectory(prefix="mk-", dir=folder) as place, FakeControlPlane() as plane:
        registered(plane, count)
        with running(Path(place) / "gw", plane.url, options=options) as gateway:
            until(
                lambda: gateway.request("GET", "/ready").json().get("asleep") == count,
                "all sleep",
                timeout_s=120,
            )
            watcher = Watcher(gateway)
            seen: dict[str, Any] = {"own_bytes": watcher.own_bytes(), "asleep_bytes": watcher.workers_bytes()}
            watcher.start()
            asking = Asking(gateway.port)
            room = fitting - 1
            seen["first_ms"] = [told(asking, number, at, count) for at, number in enumerate(order[:room])]
            seen["loaded"], seen["loaded_bytes"] = room, watcher.workers_bytes()
            seen["again_ms"] = [asking.ask(order[at % room]) for at in range(20 * room)]
            seen["crowded_ms"] = [
                told(asking, number, at, count) for at, number in enumerate(order[room:], start=room)
            ]
            seen["together_ms"], failed = together(gateway.port, count)
            watcher.stop()
            seen["failed"] = asking.failed + failed
            seen["evictions"] = evictions(gateway)
            seen["highest_bytes"], seen["budget_bytes"] = watcher.highest_bytes, budget_bytes
    seen["asked"] = sum(len(seen[key]) for key in ("first_ms", "again_ms", "crowded_ms", "together_ms"))
    return seen


def told(asking: Asking, number: int, at: int, count: int) -> float:
    """Ask one model for the first time."""
    report.tell(f"model {at + 1} of {count}")
    return asking.ask(number)


def together(port: int, count: int) -> tuple[list[float], int]:
    """Some callers at once, each asking for any model; the times, and the failures."""

    def call(seed: int) -> tuple[list[float], int]:
        asking, choice = Asking(port), random.Random(seed)
        return [asking.ask(choice.randrange(count)) for _ in range(max(3, count // 8))], asking.failed

    with concurrent.futures.ThreadPoolExecutor(CALLERS) as callers:
        found = list(callers.map(call, range(CALLERS)))
    return [took for times, _ in found for took in times], sum(failed for _, failed in found)


def _times(values: list[float]) -> str:
    ordered = sorted(values)
    p99 = ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))]
    return f"{statistics.median(values):,.0f} ms, p99 {p99:,.0f} ms"


def table_of(seen: dict[str, Any], count: int) -> Table:
    """Delays first, then memory."""
    each_bytes = seen["loaded_bytes"] / seen["loaded"]
    quick_ms = statistics.median(seen["again_ms"])
    rows = [
        _delay("first request for a model, with room", seen["first_ms"]),
        _delay("the same, another giving way for it", seen["crowded_ms"]),
        _delay(f"any model, {CALLERS} callers at once", seen["together_ms"]),
        Row(what="a request for a loaded model", figure=f"{quick_ms:.2f} ms", values={"median_ms": quick_ms}),
        Row(
            what="requests that failed",
            figure=f"{seen['failed']} of {seen['asked']:,}",
            goal="0",
            kept=seen["failed"] == 0,
            values={"failed": seen["failed"], "asked": seen["asked"]},
        ),
        Row(
            what=f"memory with all {count} asleep",
            figure=f"{seen['own_bytes'] / MIB:,.0f} MiB",
            goal="no worker",
            kept=seen["asleep_bytes"] == 0,
            values={"own_bytes": seen["own_bytes"], "workers_bytes": seen["asleep_bytes"]},
        ),
        Row(
            what=f"memory of {seen['loaded']} loaded models",
            figure=f"{seen['loaded_bytes'] / MIB:,.0f} MiB, {each_bytes / MIB:.0f} each",
            values={"loaded_bytes": seen["loaded_bytes"], "loaded": seen["loaded"]},
        ),
        Row(
            what="highest memory of all workers",
            figure=f"{seen['highest_bytes'] / MIB:,.0f} MiB",
            goal=f"<= {seen['budget_bytes'] / MIB:,.0f} MiB",
            kept=seen["highest_bytes"] <= seen["budget_bytes"],
            values={"highest_bytes": seen["highest_bytes"], "budget_bytes": seen["budget_bytes"]},
        ),
        Row(
            what="models that gave way",
            figure=f"{seen['evictions']:,}",
            goal="some",
            kept=seen["evictions"] > 0,
            values={"evictions": seen["evictions"]},
        ),
    ]
    always = f"All {count} loaded at once would hold about {count * each_bytes / 2**30:.1f} GiB."
    return Table(
        name="on_demand", title=f"{count} models loaded on demand", rows=tuple(rows), remarks=(always,)
    )


def _delay(what: str, values: list[float]) -> Row:
    return Row(what=what, figure=_times(values), values={"median_ms": statistics.median(values)})


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print one table. Returns 1 when a promise was broken."""
    parser = report.arguments(__doc__)
    parser.add_argument("--models", type=int, default=MODELS, help="models on the gateway")
    options = parser.parse_args(argv)
    machine = report.this_machine()
    count = min(options.models, QUICK_MODELS) if options.quick else options.models
    return report.finish(table_of(measured(count, options.folder), count), machine, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
