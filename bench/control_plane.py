"""The registry's speed over HTTP beside MLflow's server: reads, durable writes, resolutions, promotions,
rollbacks.

    python -m bench.control_plane                 # MLflow beside us when `make bench-peers` has installed it
    python -m bench.control_plane --peer-workers 4

Both servers are real processes on this machine, on SQLite, with the same models, and are asked in turn
within each round, so that whatever else the machine does meets both; the middle round counts, and the ratio
is the middle of the rounds' ratios. Ours commits with `synchronous = FULL` and chains an event to each
change. What MLflow has no word for is asked in the nearest one it has: a promotion is a transition that
archives the former version, and so is a rollback. It measures no client library and no network beyond the
loopback.
"""

import contextlib
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from urllib.parse import quote

from msgspec import Struct, structs

from bench import filling, peers, report, servers
from bench.filling import Wanted
from bench.load import Call, Figure, drive, drive_each, median_of
from bench.report import Row, Table
from bench.servers import Running

CONNECTIONS = 8
MODELS = 100
"""Models that both servers hold, two versions each; `registry_growth` has the large registries."""
PROMOTIONS = 1_000
"""Promotions in a round: each model's two versions in turn, so that each one displaces the other."""
ROLLBACKS = 500
"""Rollbacks in a round, each of a model of its own: what was taken back may not be taken back again."""
RATIO_MIN = 20.0
ROLLBACK_P99_MAX_MS = 50.0
PEER_ERRORS_MAX = 0.1
"""Of MLflow's answers, how many may be errors: under concurrent writes it tells some callers that SQLite is
locked."""

Run = Callable[[int], Figure]
"""Measure one round, whose number it is given."""


class Operation(Struct, frozen=True, kw_only=True):
    """One thing to ask of both servers. `ratio_min` is promised of the speed, `p99_max_ms` of ours alone."""

    name: str
    ours: Run
    peer: Run | None
    ratio_min: float | None = None
    p99_max_ms: float | None = None


# ----------------------------------------------------------------------------------------- what we are asked


def version_address(ref: str) -> str:
    """Where a version is, by reference."""
    return f"/api/v1/version?ref={quote(ref, safe='')}"


def our_tag(model: int) -> Call:
    """Set a tag of a version."""
    return Call("PATCH", version_address(f"m{model}:#2"), json.dumps({"set_tags": {"k": "v@N@"}}))


def our_promotion(model: str, number: int) -> Call:
    """Move a version to production."""
    body = {"ref": f"{model}:#{number}", "to": "production", "reason": "it is better"}
    return Call("POST", "/api/v1/promotions", json.dumps(body))


def our_rollback(model: str) -> Call:
    """Take a model back to the version before."""
    return Call("POST", "/api/v1/rollbacks", json.dumps({"model": model, "reason": "it is worse"}))


def rolled(turn: int, index: int) -> str:
    """The name of a model that is there to be rolled back once."""
    return f"r{turn}-{index}"


def our_models(rounds: int, rollbacks: int) -> list[Wanted]:
    """What our server holds: the models of both, and those that are rolled back."""
    named = [f"m{index}" for index in range(MODELS)]
    named += [rolled(turn, index) for turn in range(rounds) for index in range(rollbacks)]
    return [Wanted(name, 2) for name in named]


def watched(server: Running, asking: Callable[[], Figure]) -> Figure:
    """What a run gave, with the server's processor time."""
    before = server.cpu_s()
    figure = asking()
    return structs.replace(figure, cpu_us=(server.cpu_s() - before) * 1e6 / max(figure.requests, 1))


def promote(server: Running, count: int) -> Figure:
    """Promote the two versions of each model in turn.

    A number of times and not for some seconds: who stops in the middle does not know which version is where.
    """
    each = [our_promotion(f"m{model}", number) for number in (1, 2) for model in range(MODELS)]
    calls = each * (count // len(each))
    return watched(server, lambda: drive_each(server.port, calls, connections=CONNECTIONS))


def roll_back(server: Running, turn: int, rollbacks: int) -> Figure:
    """Promote two versions of fresh models one after the other, then take each model back, which counts."""
    names = [rolled(turn, index) for index in range(rollbacks)]
    for number in (1, 2):
        drive_each(server.port, [our_promotion(name, number) for name in names], connections=CONNECTIONS)
    calls = [our_rollback(name) for name in names]
    return watched(server, lambda: drive_each(server.port, calls, connections=CONNECTIONS))


def operations(
    ours: Running, peer: Running | None, *, seconds: int, promotions: int, rollbacks: int
) -> list[Operation]:
    """Everything that is asked, in the order of the table."""
    models = range(MODELS)

    def at_ours(calls: Sequence[Call]) -> Run:
        return lambda _turn: watched(
            ours, lambda: drive(ours.port, calls, connections=CONNECTIONS, seconds=seconds)
        )

    def at_peer(calls: Sequence[Call]) -> Run | None:
        if peer is None:
            return None
        asking = partial(drive, connections=CONNECTIONS, seconds=seconds, errors_max=PEER_ERRORS_MAX)
        return lambda _turn: watched(peer, lambda: asking(peer.port, calls))

    transitions = [peers.to_production(model, number) for number in (1, 2) for model in models]
    return [
        Operation(
            name="read a version",
            ours=at_ours([Call("GET", version_address(f"m{model}:#2")) for model in models]),
            peer=at_peer([peers.get_version(model, 2) for model in models]),
            ratio_min=RATIO_MIN,
        ),
        Operation(
            name="resolve an alias",
            ours=at_ours([Call("GET", version_address(f"m{model}@champion")) for model in models]),
            peer=at_peer([peers.by_alias(model) for model in models]),
            ratio_min=RATIO_MIN,
        ),
        Operation(
            name="set a tag, durably",
            ours=at_ours([our_tag(model) for model in models]),
            peer=at_peer([peers.set_tag(model, 2) for model in models]),
            ratio_min=RATIO_MIN,
        ),
        Operation(
            name="promote",
            ours=lambda _turn: promote(ours, promotions),
            peer=at_peer(transitions),
        ),
        Operation(
            name="roll back",
            ours=lambda turn: roll_back(ours, turn, rollbacks),
            peer=at_peer(transitions),
            p99_max_ms=ROLLBACK_P99_MAX_MS,
        ),
    ]


# ------------------------------------------------------------------------------------------------- measuring


def measure(operation: Operation, rounds: int) -> Row:
    """Ask both in turn, the other one first in every second round."""
    ours: list[Figure] = []
    peer: list[Figure] = []
    for turn in range(rounds):
        report.tell(f"{operation.name}: round {turn + 1} of {rounds}")
        asked = [(operation.ours, ours), *([(operation.peer, peer)] if operation.peer is not None else [])]
        for run, figures in asked if turn % 2 == 0 else reversed(asked):
            figures.append(run(turn))
    return row_of(operation, ours, peer)


def row_of(operation: Operation, ours: Sequence[Figure], peer: Sequence[Figure]) -> Row:
    """The line of one operation, from its rounds."""
    middle = median_of(ours)
    values = {"per_second": middle.per_second, "p50_ms": middle.p50_ms, "p99_ms": middle.p99_ms}
    if middle.cpu_us is not None:
        values["cpu_us"] = middle.cpu_us
    beside, ratio = "", None
    if peer:
        theirs = median_of(peer)
        beside = theirs.text()
        ratio = statistics.median(a.per_second / b.per_second for a, b in zip(ours, peer, strict=True))
        values |= {"peer_per_second": theirs.per_second, "peer_p99_ms": theirs.p99_ms, "ratio": ratio}
    goal, kept = "", None
    if operation.p99_max_ms is not None:
        worst = statistics.median(figure.p99_ms for figure in ours)
        goal, kept = f"p99 at most {operation.p99_max_ms:g} ms", worst <= operation.p99_max_ms
    elif operation.ratio_min is not None:
        goal = f"at least {operation.ratio_min:g}x"
        kept = ratio >= operation.ratio_min if ratio is not None else None
    return Row(
        what=operation.name,
        figure=middle.text(),
        beside=beside,
        ratio=ratio,
        goal=goal,
        kept=kept,
        values=values,
    )


@contextlib.contextmanager
def peer_server(folder: Path, workers: int, wanted: bool) -> Iterator[Running | None]:
    """MLflow's server with its models in it, or None."""
    if not wanted:
        yield None
        return
    with peers.mlflow(folder, workers=workers) as running:
        report.tell("filling MLflow's registry")
        peers.fill(running.port, MODELS)
        yield running


def main(argv: Sequence[str] | None = None) -> int:
    """Run and print the table; 1 when a promise is broken."""
    parser = report.arguments(__doc__)
    parser.add_argument("--seconds", type=int, default=3, help="how long each round asks each server")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer-workers", type=int, default=peers.WORKERS, help="worker processes of MLflow")
    parser.add_argument("--alone", action="store_true", help="leave MLflow out, also where it is installed")
    options = parser.parse_args(argv)
    rounds, seconds, promotions, rollbacks = options.rounds, options.seconds, PROMOTIONS, ROLLBACKS
    if options.quick:
        rounds, seconds, promotions, rollbacks = 2, 1, 2 * MODELS, 20
    machine = report.this_machine()
    version = None if options.alone else peers.installed()
    with tempfile.TemporaryDirectory(prefix="modelkeep-bench-", dir=options.folder) as name:
        folder = Path(name)
        filling.fill(folder / "ours", our_models(rounds, rollbacks))
        with (
            servers.modelkeep(folder / "ours") as ours,
            peer_server(folder / "peer", options.peer_workers, version is not None) as peer,
        ):
            asked = operations(ours, peer, seconds=seconds, promotions=promotions, rollbacks=rollbacks)
            rows = [measure(operation, rounds) for operation in asked]
    beside = (
        f"Beside it: MLflow {version} with {options.peer_workers} workers, uvloop, and its job runner off."
        if version is not None
        else "MLflow was not measured: `make bench-peers` installs it."
        if not options.alone
        else "MLflow was left out."
    )
    table = Table(
        name="control_plane",
        title=f"The registry over HTTP, {CONNECTIONS} connections, SQLite with synchronous=FULL",
        rows=tuple(rows),
        remarks=(
            beside,
            f"The middle of {rounds} rounds of {seconds} s; the servers were asked in turn.",
            f"A round of ours has {promotions:,} promotions and {rollbacks:,} rollbacks.",
            "CPU is the server's processor time a request, of all its processes.",
        ),
        beside="MLflow",
    )
    return report.finish(table, machine, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
