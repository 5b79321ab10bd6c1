"""MLflow's server and ours under the same requests: tracking, registry and artifacts over its REST interface.

    python -m bench.mlflow_side_by_side                                  # all of it, some twelve minutes
    python -m bench.mlflow_side_by_side --list                           # the scenarios' names
    python -m bench.mlflow_side_by_side --only "get a run" --stores sqlite --parts requests
    python -m bench.mlflow_side_by_side --parts large client growth

Both are real processes on this machine with equal contents, on SQLite and then on a Postgres of their own
that writes each commit to disk. MLflow is measured at its fastest: uvloop and httptools, no job runner, and
with each of several worker counts, each a server with a database of its own; of each figure the fastest of
them counts. All are asked in turn, by the same load generator, within the same run; while one is asked the
others are idle.

The parts: `requests` is what `mlflow_scenarios` asks, at several numbers of connections; `large` sends a
large artifact there and back; `client` is what MLflow's own client costs; `growth` looks at whether ours
stays as fast with a million runs. It measures no network beyond the loopback.
"""

import argparse
import contextlib
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path

from msgspec import Struct

from bench import (
    mlflow_client_cost,
    mlflow_growth,
    mlflow_large_files,
    mlflow_scenarios,
    peers,
    report,
    servers,
    tracked,
)
from bench.control_plane import watched
from bench.load import Call, Figure, Refused, drive, drive_each, probe
from bench.mlflow_scenarios import Scenario
from bench.report import Row, Table
from bench.servers import Running
from tests.servers import PostgresServer, find_postgres, run_postgres

CONNECTIONS = (1, 8, 32)
WORKERS = (1, 2, 4)
STORES = ("sqlite", "postgres")
PARTS = ("requests", "large", "client", "growth")
QUICK_SCENARIOS = ("get a run", "log a metric", "set an alias", "take an artifact of 10 KiB")
MEAN_MIN = 30.0
READY_MAX_S = 1.5
RESIDENT_MAX_MIB = 250.0
PEER_ERRORS_MAX = 0.1
"""Of MLflow's answers, how many may be errors: under concurrent writes it tells some callers that SQLite is
locked, or that two made the same version."""
FEW = 8
"""Answers that are too few for a figure, as are fewer than there are connections: so many are waited for,
however long that takes."""
POSTGRES = {"max_connections": "300", "shared_buffers": "256MB"}
"""Room for the pools of all of MLflow's workers."""


class Contest(Struct, frozen=True, kw_only=True):
    """The servers of one store: ours, and MLflow's by their number of workers."""

    store: str
    ours: Running
    peers: dict[int, Running]


class Level(Struct, frozen=True, kw_only=True):
    """What one scenario gave with one number of connections; of MLflow the fastest of its servers."""

    connections: int
    ours: Figure
    peer: Figure | None
    workers: int

    @property
    def ratio(self) -> float | None:
        """How many times as many requests a second ours answers."""
        if self.peer is None:
            return None
        return self.ours.per_second / self.peer.per_second

    @property
    def prompt(self) -> bool:
        """Whether our slow answers come no later than MLflow's usual ones."""
        return self.peer is None or self.ours.p99_ms <= self.peer.p50_ms


# --------------------------------------------------------------------------------------------------- starting


@contextlib.contextmanager
def contest(
    folder: Path, store: str, postgres: PostgresServer | None, workers: Sequence[int], runs: int
) -> Iterator[Contest]:
    """All servers on one store, with the same runs and models in them."""
    folder.mkdir()
    data = folder / "ours"
    data.mkdir(mode=0o700)
    with contextlib.ExitStack() as stack:
        report.tell(f"{store}: filling ours")
        address = postgres.new_database() if postgres is not None else f"sqlite:///{data / 'modelkeep.db'}"
        tracked.fill(address, runs)
        ours = stack.enter_context(servers.modelkeep(data, address))
        mlflow_scenarios.prepare(ours.port)
        theirs = {}
        for count in workers:
            report.tell(f"{store}: filling MLflow with {count} workers")
            place = folder / f"peer-{count}"
            place.mkdir()
            filled = peer_database(postgres) if postgres is not None else peers.sqlite_in(place)
            tracked.fill_peer(filled, runs)
            theirs[count] = stack.enter_context(peers.mlflow(place, workers=count, database=filled))
            mlflow_scenarios.prepare(theirs[count].port)
        yield Contest(store=store, ours=ours, peers=theirs)


def peer_database(postgres: PostgresServer) -> str:
    """An empty database, as MLflow's driver is named in its address."""
    return postgres.new_database().replace("postgresql://", "postgresql+psycopg2://")


# -------------------------------------------------------------------------------------------------- measuring


def is_there(server: Running, call: Call) -> bool:
    """Whether the server has the operation; other errors are left to whoever measures."""
    try:
        probe(server.port, call)
    except Refused as refused:
        return refused.status != 404 or "ENDPOINT_NOT_FOUND" not in str(refused)
    return True


def levels_of(
    scenario: Scenario, among: Contest, connections: Sequence[int], seconds: float, turn: int
) -> list[Level]:
    """Ask all servers in turn, the other way round in every second turn. Of MLflow those count that answer.

    Raises:
        Refused: ours answers with an error.
    """
    found = []
    for count in connections:
        asked = [(0, among.ours), *among.peers.items()]
        figures: dict[int, Figure] = {}
        few = max(FEW, count)
        for workers, server in asked if turn % 2 == 0 else reversed(asked):
            asking = partial(
                drive,
                server.port,
                scenario.calls,
                connections=count,
                errors_max=PEER_ERRORS_MAX if workers else 0.0,
            )
            try:
                figures[workers] = watched(server, partial(asking, seconds=seconds))
                if figures[workers].requests < few:
                    figures[workers] = watched(server, partial(asked_once, server, scenario, few, count))
            except Refused as refused:
                if not workers:
                    raise
                figures.pop(workers, None)
                report.tell(f"MLflow with {workers} workers gives up at {count} connections: {refused}")
        ours = figures.pop(0)
        best = max(figures, key=lambda workers: figures[workers].per_second, default=0)
        found.append(Level(connections=count, ours=ours, peer=figures.get(best), workers=best))
    return found


def asked_once(server: Running, scenario: Scenario, requests: int, connections: int) -> Figure:
    """So many requests, each answered in its own time. Raises as `drive_each`."""
    calls = islice(cycle(scenario.calls), requests)
    return drive_each(server.port, calls, connections=connections, errors_max=PEER_ERRORS_MAX)


def row_of(store: str, scenario: Scenario, levels: Sequence[Level]) -> Row:
    """The line of one scenario: its figures at each number of connections, and the worst ratio."""
    ratios = [level.ratio for level in levels if level.ratio is not None]
    ratio = min(ratios, default=None)
    prompt = all(level.prompt for level in levels)
    ours, theirs = [level.ours for level in levels], [level.peer for level in levels]
    workers = "/".join(str(level.workers) if level.peer is not None else "-" for level in levels)
    cpu = min(figure.cpu_us or 0.0 for figure in ours)
    values = {"cpu_us": cpu}
    for level in levels:
        at = f"at_{level.connections}"
        values |= {f"per_second_{at}": level.ours.per_second, f"p99_ms_{at}": level.ours.p99_ms}
        if level.peer is not None:
            values |= {
                f"peer_per_second_{at}": level.peer.per_second,
                f"peer_p50_ms_{at}": level.peer.p50_ms,
                f"peer_workers_{at}": level.workers,
            }
    return Row(
        what=f"{scenario.name}, {store}",
        figure=f"{_speeds(ours)}, p99 {_times([f.p99_ms for f in ours])}, {cpu:,.0f} us CPU",
        beside=f"{_speeds(theirs)}, p50 {_times([f and f.p50_ms for f in theirs])} ({workers})"
        if any(theirs)
        else "",
        ratio=ratio,
        goal=f"at least {scenario.ratio_min:g}x, p99 <= its p50",
        kept=ratio >= scenario.ratio_min and prompt if ratio is not None else None,
        values=values,
    )


def _speeds(figures: Sequence[Figure | None]) -> str:
    return " / ".join(f"{figure.per_second:,.0f}" if figure else "fails" for figure in figures) + " per s"


def _times(times_ms: Sequence[float | None]) -> str:
    shown = ("-" if time is None else f"{time:.1f}" if time < 10 else f"{time:.0f}" for time in times_ms)
    return " / ".join(shown) + " ms"


def request_rows(
    among: Contest, asked: Sequence[Scenario], connections: Sequence[int], seconds: float
) -> list[Row]:
    """The lines of all scenarios on one store, and their mean."""
    rows, ratios = [], []
    for turn, scenario in enumerate(asked):
        report.tell(f"{among.store}: {scenario.name} ({turn + 1} of {len(asked)})")
        if not is_there(among.ours, scenario.calls[0]):
            rows.append(Row(what=f"{scenario.name}, {among.store}", figure="not there yet"))
            continue
        levels = levels_of(scenario, among, connections, seconds, turn)
        rows.append(row_of(among.store, scenario, levels))
        if scenario.averaged:
            ratios += [level.ratio for level in levels if level.ratio is not None]
    if ratios:
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        rows.append(
            Row(
                what=f"geometric mean, {among.store}",
                figure=f"{len(ratios)} figures",
                ratio=mean,
                goal=f"at least {MEAN_MIN:g}x",
                kept=mean >= MEAN_MIN,
                values={"ratio": mean},
            )
        )
    return rows


def server_rows(among: Contest) -> list[Row]:
    """How long the servers took to be ready, and what they hold in memory after all that was asked."""
    ready = [peer.ready_s for peer in among.peers.values()]
    resident = [peer.resident_mib() for peer in among.peers.values()]
    counts = "/".join(map(str, among.peers))
    ours_mib = among.ours.resident_mib()
    return [
        Row(
            what=f"ready, {among.store}",
            figure=f"{among.ours.ready_s:.2f} s",
            beside=" / ".join(f"{seconds:.1f}" for seconds in ready) + f" s ({counts})" if ready else "",
            ratio=min(ready) / among.ours.ready_s if ready else None,
            goal=f"at most {READY_MAX_S:g} s",
            kept=among.ours.ready_s <= READY_MAX_S,
            values={"seconds": among.ours.ready_s},
        ),
        Row(
            what=f"memory after the run, {among.store}",
            figure=f"{ours_mib:.0f} MiB",
            beside=" / ".join(f"{mib:,.0f}" for mib in resident) + f" MiB ({counts})" if resident else "",
            ratio=min(resident) / ours_mib if resident else None,
            goal=f"at most {RESIDENT_MAX_MIB:g} MiB",
            kept=ours_mib <= RESIDENT_MAX_MIB,
            values={"mib": ours_mib},
        ),
    ]


# ------------------------------------------------------------------------------------------------ the program


def rows_of(options: argparse.Namespace, folder: Path, workers: Sequence[int]) -> Iterator[Row]:
    """All lines that are asked for."""
    asked = [each for each in mlflow_scenarios.scenarios() if not options.only or each.name in options.only]
    serving = {"requests", "large", "client"} & set(options.parts)
    for place, store in enumerate(options.stores if serving else ()):
        with contextlib.ExitStack() as stack:
            postgres = None
            if store == "postgres":
                if find_postgres() is None:
                    yield Row(what="everything, postgres", figure="no Postgres (make setup-system)")
                    continue
                postgres = stack.enter_context(run_postgres(durable=True, settings=POSTGRES))
            among = stack.enter_context(contest(folder / store, store, postgres, workers, options.runs))
            if "requests" in options.parts:
                yield from request_rows(among, asked, options.connections, options.seconds)
            if place == 0:  # what follows asks the store for little
                peer = among.peers.get(peers.WORKERS) or next(iter(among.peers.values()), None)
                if "large" in options.parts:
                    yield from mlflow_large_files.rows(among.ours, peer, options.large_mib)
                if "client" in options.parts and peers.installed() is not None:
                    yield from mlflow_client_cost.rows(among.ours, peer, options.client_calls)
            yield from server_rows(among)
    if "growth" in options.parts:
        rounds = 1 if options.quick else mlflow_growth.ROUNDS
        yield from mlflow_growth.rows(folder, options.growth, options.seconds, rounds, brief=options.quick)


def arguments() -> argparse.ArgumentParser:
    """What it takes."""
    parser = report.arguments(__doc__)
    parser.add_argument("--seconds", type=int, default=1, help="how long each server is asked for a figure")
    parser.add_argument("--connections", type=int, nargs="+", default=CONNECTIONS)
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS, help="worker processes of MLflow")
    parser.add_argument("--stores", nargs="+", choices=STORES, default=STORES)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these scenarios; --list shows them")
    parser.add_argument("--list", action="store_true", help="show the scenarios' names and end")
    parser.add_argument("--large-mib", type=int, default=100, help="size of the large artifact")
    parser.add_argument("--client-calls", type=int, default=500, help="calls of the client to each server")
    parser.add_argument("--growth", type=int, nargs="+", default=mlflow_growth.SIZES, help="runs")
    parser.add_argument("--alone", action="store_true", help="leave MLflow out, also where it is installed")
    parser.set_defaults(runs=mlflow_scenarios.RUNS)
    return parser


def be_quick(options: argparse.Namespace) -> None:
    """Show that it works and no more."""
    options.connections, options.workers, options.stores = (2,), (1,), STORES[:1]
    options.only = options.only or QUICK_SCENARIOS
    options.large_mib, options.client_calls = 8, 20
    options.growth = mlflow_growth.QUICK_SIZES


def main(argv: Sequence[str] | None = None) -> int:
    """Run and print the table; 1 when a promise is broken."""
    parser = arguments()
    options = parser.parse_args(argv)
    names = [scenario.name for scenario in mlflow_scenarios.scenarios()]
    if options.list:
        print("\n".join(names))
        return 0
    if unknown := sorted(set(options.only or ()) - set(names)):
        parser.error(f"there is no scenario {', '.join(unknown)}; --list shows them")
    if options.quick:
        be_quick(options)
    machine = report.this_machine()
    version = None if options.alone else peers.installed()
    workers = options.workers if version is not None else ()
    with tempfile.TemporaryDirectory(prefix="modelkeep-bench-", dir=options.folder) as name:
        rows = tuple(rows_of(options, Path(name), workers))
    counts = "/".join(map(str, options.connections))
    beside = (
        f"Beside it: MLflow {version} with uvloop and httptools, its job runner off; of "
        f"{', '.join(map(str, workers))} workers the fastest counts, named in brackets."
        if version is not None
        else "MLflow was left out."
        if options.alone
        else "MLflow was not measured: `make bench-peers` installs it."
    )
    table = Table(
        name="mlflow_side_by_side",
        title=f"MLflow's REST requests to both servers, with {counts} connections",
        rows=rows,
        remarks=(
            beside,
            f"{options.seconds} s for each figure; the ratio is the worst of all numbers of connections.",
            "On SQLite ours commits with synchronous=FULL, MLflow as it comes; Postgres waits for the disk.",
            "MLflow reaches Postgres by psycopg2.",
        ),
        beside="MLflow",
    )
    return report.finish(table, machine, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
