"""Predictions a second: the same two models behind our gateway, `mlflow models serve` and MLServer, one row a
request.

    python -m bench.serving_side_by_side [--quick] [--json] [--folder DIR] [--alone]
    python -m bench.serving_side_by_side --models forest --connections 8 --workers 2

A scaled logistic regression and a forest of 100 trees are fitted on a table of 30 columns and written once.
That file is registered with us as it is and once more with `--to-onnx`, served by `modelkeep up` with the one
process a version that is its default, and given to the peers, which run with each of several worker counts;
of each figure the fastest of them counts. Before anything is measured all of them have to give the same
answers. They are then asked in turn, the other way round in every second round, by the same load generator;
while one is asked the others are idle. What the generator can do is measured beside, on a server that answers
at once, and so is the model's own call without any server.
"""

import argparse
import contextlib
import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from msgspec import Struct

from bench import report, serving_peers
from bench.gateway_cost import ahead_of_others
from bench.load import Call, Figure, drive, drive_each, median_of, probe
from bench.open_loop import bare_server
from bench.report import Row, Table
from bench.serving_peers import Kind, Peer, Rows, answer_of
from modelkeep.core.rollout import Plan, Step, Strategy
from modelkeep.core.signature import Signature, check_signature
from modelkeep.serving import control, runtimes, validation
from tests.journeys.houses import House, running_house
from tests.serving import models
from tests.serving.control_plane import until

CONNECTIONS = (1, 8, 64)
WORKERS = (1, 2, 4)
MLSERVER_WORKERS = (0, 1, 2)
MODELS = ("logistic", "forest")
TITLES = {"logistic": "a scaled logistic regression", "forest": "a forest of 100 trees"}
TREES = 100
ROWS = 64
"""Requests that differ; they are sent round and round."""
NATIVE_MIN = 5.0
"""Times the better peer at several connections, as the model was registered."""
CONVERTED_MIN = {"forest": 20.0}
"""The same for the converted form, where something is promised."""
OWN_SHARE_MAX_US = 100.0
"""Of one request at one connection, what is neither the model's time nor that of the generator."""
ERRORS_MAX = 0.01
"""Of a peer's answers, how many may be errors."""
CALLS = 300
"""Of the model without a server."""
ALONE_CALLS = 2_000
"""Requests one after the other, for our own share of each."""
READY_S = 60.0
AT_ONCE = Plan(strategy=Strategy.IMMEDIATE, steps=(Step(weight_ppm=1_000_000, min_s=0, max_s=60),))


class Subject(Struct, frozen=True):
    """One fitted model: its name, its file, and rows that it is asked about."""

    name: str
    file: Path
    signature: Signature
    rows: Rows

    @property
    def title(self) -> str:
        """As a table names it."""
        return TITLES[self.name]


class Share(Struct, frozen=True):
    """Of one request at one connection: all of it, a bare HTTP server's, and the model's own call, in
    microseconds."""

    whole_us: float
    bare_us: float
    model_us: float

    @property
    def own_us(self) -> float:
        """What is neither the model's nor that of client and network."""
        return self.whole_us - self.bare_us - self.model_us


class Level(Struct, frozen=True):
    """What one model gave with one number of connections: both our forms, and each peer by its label."""

    connections: int
    native: Figure
    converted: Figure
    peers: dict[str, Figure]

    @property
    def best(self) -> tuple[str, Figure] | None:
        """The fastest peer."""
        label = max(self.peers, key=lambda label: self.peers[label].per_second, default=None)
        return None if label is None else (label, self.peers[label])


def fitted(name: str, folder: Path) -> Subject:
    """Fit a model and write it."""
    import joblib
    from sklearn.datasets import load_breast_cancer
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    table, labels = load_breast_cancer(return_X_y=True, as_frame=True)
    table.columns = [str(column).replace(" ", "_") for column in table.columns]
    model = (
        make_pipeline(StandardScaler(), LogisticRegression())
        if name == "logistic"
        else RandomForestClassifier(TREES, random_state=7)
    ).fit(table, labels)
    place = folder / name
    place.mkdir()
    joblib.dump(model, place / "model.joblib")
    some = table.iloc[:: len(table) // ROWS][:ROWS]
    columns = tuple(table.columns)
    rows = Rows(columns, tuple(tuple(float(value) for value in row) for row in some.to_numpy()))
    signature = check_signature({"inputs": dict.fromkeys(columns, "float64"), "outputs": {"class": "int64"}})
    return Subject(name, place / "model.joblib", signature, rows)


def serve(house: House, subject: Subject) -> tuple[list[Call], list[Call]]:
    """Register a model in both forms and have the gateway serve them. Returns how each is asked."""
    from modelkeep.conversion import to_onnx

    client, folder, calls = house.client(), subject.file.parent, []
    with to_onnx(folder, signature=subject.signature) as converted:
        for name, also in ((subject.name, ()), (f"{subject.name}-onnx", converted.files)):
            made = client.register(name, folder, signature=subject.signature, also=also)
            client.promote(made.version.reference, "production", "to be measured")
            client.put_endpoint(name, name, plan=AT_ONCE)
            calls.append(subject.rows.scoring(f"/endpoints/{name}/invocations"))
    for name in (subject.name, f"{subject.name}-onnx"):
        until(
            lambda name=name: client.rollout_status(name).stable is not None,  # type: ignore[misc]
            f"{name} is served; {house.log()}",
            timeout_s=READY_S,
        )
    return calls[0], calls[1]


def compare_answers(port: int, native: list[Call], converted: list[Call], others: Sequence[Peer]) -> None:
    """See that all of them answer alike, each for each row.

    Raises:
        RuntimeError: they do not.
    """
    wanted = [answer_of(probe(port, call)) for call in native]
    asked = [("converted", port, converted), *((p.label, p.server.port, p.calls) for p in others)]
    for label, where, calls in asked:
        if (given := [answer_of(probe(where, call)) for call in calls]) != wanted:
            raise RuntimeError(f"{label} answers {given}, and the gateway {wanted}")
    if len(set(wanted)) < 2:
        raise RuntimeError("all rows have the same answer, which would prove nothing")


def measured(
    gateway: int, subject: Subject, ours: tuple[list[Call], list[Call]], others: Sequence[Peer],
    connections: Sequence[int], seconds: int, rounds: int,
) -> list[Level]:  # fmt: skip
    """Ask all of them in turn, at each number of connections."""
    levels = []
    for count in connections:
        figures: dict[str, list[Figure]] = {}
        asked = [("native", gateway, ours[0], 0.0), ("converted", gateway, ours[1], 0.0)]
        asked += [(peer.label, peer.server.port, list(peer.calls), ERRORS_MAX) for peer in others]
        for turn in range(rounds):
            for label, port, calls, errors in asked if turn % 2 == 0 else reversed(asked):
                report.tell(f"{subject.name}, {count} connections, round {turn + 1}: {label}")
                drive_each(port, islice(calls, 8), connections=1, errors_max=errors)
                found = drive(port, calls, connections=count, seconds=seconds, errors_max=errors)
                figures.setdefault(label, []).append(found)
        middle = {label: median_of(found) for label, found in figures.items()}
        levels.append(Level(count, middle.pop("native"), middle.pop("converted"), middle))
    return levels


def one_by_one_us(port: int, calls: Sequence[Call]) -> float:
    """The middle time of a request on one connection, by a client that does nothing but wait, in
    microseconds."""
    asked = [_as_bytes(call) for call in calls]
    times = []
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for request in islice(cycle(asked), ALONE_CALLS):
            began = time.perf_counter()
            sock.sendall(request)
            answer = sock.recv(65536)
            times.append(time.perf_counter() - began)
            if not answer.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"a request was answered {answer[:200]!r}")
    return statistics.median(times) * 1e6


def _as_bytes(call: Call) -> bytes:
    head = f"{call.method} {call.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(call.body)}\r\n\r\n{call.body}".encode()


@contextlib.contextmanager
def on_one_core(pids: Sequence[int]) -> Iterator[bool]:
    """These processes and this one on one core, before other work where that is allowed. With one request
    under way nothing happens at the same time as anything else, and waking another core costs more, on a
    virtual machine, than all that is to be measured. Gives whether other work had to wait."""
    cores = os.sched_getaffinity(0)
    threads = [int(name) for pid in (*pids, os.getpid()) for name in os.listdir(f"/proc/{pid}/task")]
    try:
        for thread in threads:
            os.sched_setaffinity(thread, [min(cores)])
        with ahead_of_others([*pids, os.getpid()]) as ahead:
            yield ahead
    finally:
        for thread in threads:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread, cores)


def share_of(subject: Subject, house: House, gateway: int, calls: Sequence[Call]) -> Share:
    """What one request takes in all, what a bare HTTP server takes in its place, and what the model takes."""
    status = control.call(house.data / "gateway", "status")
    named = next(each for each in status["versions"] if each["version"].startswith(f"{subject.name}:"))
    with bare_server() as port:
        children = [child.pid for child in multiprocessing.active_children() if child.pid is not None]
        with on_one_core([*(front["pid"] for front in status["fronts"]), named["pid"], *children]):
            one_by_one_us(gateway, calls)  # the first requests are not counted
            whole = statistics.median(one_by_one_us(gateway, calls) for _ in range(3))
            bare = statistics.median(one_by_one_us(port, calls) for _ in range(3))
            model = own_call_us(subject)
    return Share(whole, bare, model)


def own_call_us(subject: Subject) -> float:
    """What the model takes for one row where nothing is around it: the middle of many calls."""
    files = {subject.file.name: subject.file.read_bytes()}
    spec = models.spec(files, "1.0.0", signature=subject.signature)
    runtime = runtimes.load(spec, files, subject.file.parent, 1)
    # As the decoder makes it of a request.
    columns = validation.Table(list(subject.rows.columns), np.array(subject.rows.values[:1]))
    times = []
    for _ in range(CALLS):
        began = time.perf_counter()
        runtime.predict(columns)
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e6


# ------------------------------------------------------------------------------------------------- the table


def rows_of(subject: Subject, levels: Sequence[Level], share: Share) -> Iterator[Row]:
    """The lines of one model."""
    for form in ("native", "converted"):
        for level in levels:
            yield _contest_row(subject, form, level)
    yield Row(
        what=f"{subject.title}: our own share of a request",
        figure=f"{share.own_us:.0f} of {share.whole_us:.0f} us",
        beside=f"model {share.model_us:.0f} us, bare HTTP {share.bare_us:.0f} us",
        goal=f"< {OWN_SHARE_MAX_US:g} us",
        kept=share.own_us < OWN_SHARE_MAX_US,
        values={
            "own_us": share.own_us, "whole_us": share.whole_us, "bare_us": share.bare_us,
            "model_us": share.model_us,
        },
    )  # fmt: skip


def _contest_row(subject: Subject, form: str, level: Level) -> Row:
    """One of our forms beside the fastest peer."""
    ours: Figure = getattr(level, form)
    count, best = level.connections, level.best
    least = NATIVE_MIN if form == "native" else CONVERTED_MIN.get(subject.name)
    promised = least is not None and count > 1
    values = {"per_second": ours.per_second, "p50_ms": ours.p50_ms, "p99_ms": ours.p99_ms}
    ratio = prompt = None
    if best is not None:
        ratio = ours.per_second / best[1].per_second
        prompt = ours.p99_ms <= min(peer.p50_ms for peer in level.peers.values())
        for label, peer in level.peers.items():
            name = label.lower().replace(" ", "_")
            values |= {f"{name}_per_second": peer.per_second, f"{name}_p50_ms": peer.p50_ms}
    return Row(
        what=f"{subject.title}, {form}, {count} connection{'s' if count > 1 else ''}",
        figure=ours.text(),
        beside=f"{best[1].text()} ({best[0]})" if best is not None else "",
        ratio=ratio,
        goal=f"at least {least:g}x, p99 <= their p50" if promised else "",
        kept=bool(ratio >= least and prompt) if promised and ratio is not None and least else None,
        values=values,
    )


_OWN_SHARE = (
    "Our own share: of the middle one of requests that are sent one after the other, what is neither the "
    "model's own call nor what the same client needs with a bare HTTP server; all on one core, where nothing "
    "waits for another core to wake."
)


def table_of(rows: Sequence[Row], floors: dict[int, Figure], left_out: Sequence[str], seconds: int) -> Table:
    """All lines, with what a reader has to know of them."""
    ceiling = ", ".join(f"{floor.per_second:,.0f} at {count}" for count, floor in floors.items())
    there = serving_peers.installed()
    beside = ", ".join(f"{kind} {version}" for kind, version in there.items() if kind not in left_out)
    return Table(
        name="serving_side_by_side",
        title="Predictions over HTTP, one row a request",
        rows=tuple(rows),
        remarks=(
            f"Beside it: the fastest of {beside}, each with several worker counts (in brackets)."
            if beside
            else "No peer was measured: bench/README.md says how they are installed.",
            *(f"{name} was not measured." for name in left_out),
            "Ours has one front and one worker a version. Converted: the ONNX form made at registration.",
            f"The load generator's own ceiling, on a bare HTTP server, is {ceiling} connections a second.",
            _OWN_SHARE,
            f"The middle round counts, {seconds} s each; the servers were asked in turn.",
        ),
        beside="best peer",
    )


def rounds_of(options: argparse.Namespace, folder: Path) -> Table:
    """Run everything that is asked for."""
    there = {} if options.alone else serving_peers.installed()
    rows: list[Row] = []
    floors: dict[int, Figure] = {}
    with running_house() as house:
        gateway = int(house.gateway.rpartition(":")[2])
        for name in options.models:
            subject = fitted(name, folder)
            ours = serve(house, subject)
            with contextlib.ExitStack() as stack:
                others = []
                for kind in there:
                    for workers in options.workers if kind is Kind.MLFLOW else options.mlserver_workers:
                        report.tell(f"{name}: starting {kind} with {workers} workers")
                        starting = serving_peers.running(kind, subject.file, workers, subject.rows)
                        others.append(stack.enter_context(starting))
                compare_answers(gateway, *ours, others)
                report.tell(f"{name}: one request after the other")
                share = share_of(subject, house, gateway, ours[0])
                if not floors:
                    with bare_server() as port:
                        for count in options.connections:
                            calls = subject.rows.scoring("/")
                            floors[count] = drive(port, calls, connections=count, seconds=options.seconds)
                levels = measured(
                    gateway, subject, ours, others, options.connections, options.seconds, options.rounds
                )
            rows += rows_of(subject, levels, share)
    left_out = [str(kind) for kind in Kind if kind not in there]
    return table_of(rows, floors, left_out, options.seconds)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print one table. Returns 1 when a promise was broken."""
    parser = report.arguments(__doc__)
    parser.add_argument("--seconds", type=int, default=3, help="how long each server is asked for a figure")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, nargs="+", default=CONNECTIONS)
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS, help="worker processes of MLflow")
    parser.add_argument(
        "--mlserver-workers", type=int, nargs="+", default=MLSERVER_WORKERS,
        help="worker processes of MLServer; with 0 it predicts in its own",
    )  # fmt: skip
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument(
        "--alone", action="store_true", help="leave the peers out, also where they are installed"
    )
    options = parser.parse_args(argv)
    if options.quick:
        options.seconds, options.rounds = 1, 1
        options.connections, options.workers, options.mlserver_workers = (8,), (1,), (0,)
    machine = report.this_machine()
    with tempfile.TemporaryDirectory(prefix="modelkeep-bench-", dir=options.folder) as name:
        table = rounds_of(options, Path(name))
    return report.finish(table, machine, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
