"""How long it takes to begin: `import modelkeep`, `modelkeep --help`, a server from its start to its first
answer.

Each figure is of fresh processes, the best and the middle of several; the best is what the code costs, the
middle what this machine made of it today, and the best is held against the goal. What is imported is compiled
before, as an installer does it. A server starts on an
empty folder (it makes its schema) and once more on that folder (it only looks). Memory is what is resident
in all processes of the server when it answers. MLflow, where `make bench-peers` has installed it, does the
nearest.
"""

import compileall
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import peers, report, servers
from bench.report import Row, Table

SOURCE = Path(__file__).parents[1] / "src"
IMPORT_MAX_MS = 100.0
HELP_MAX_MS = 200.0
READY_MAX_S = 1.5
RESIDENT_MAX_MIB = 150.0

_TIMED = "import time; t = time.perf_counter(); {}; print(time.perf_counter() - t)"


def import_ms(python: str, statement: str) -> float:
    """The time of an import statement in a fresh interpreter, without that of the interpreter itself."""
    said = subprocess.run(
        [python, "-W", "ignore", "-c", _TIMED.format(statement)],
        check=True, capture_output=True, text=True, env=servers.modelkeep_environment(),
    )  # fmt: skip
    return float(said.stdout.splitlines()[-1]) * 1_000


def run_ms(*command: str) -> float:
    """The time of a whole program."""
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=servers.modelkeep_environment())
    return (time.perf_counter() - started) * 1_000


def row(
    what: str,
    ours: Sequence[float],
    unit: str,
    limit: float | None,
    peer: Sequence[float] = (),
    digits: int = 0,
) -> Row:
    """A line of smaller-is-better figures."""
    best, middle = min(ours), statistics.median(ours)
    values = {"best": best, "median": middle}
    if peer:
        values |= {"peer_best": min(peer), "peer_median": statistics.median(peer)}
    return Row(
        what=what,
        figure=f"{best:.{digits}f} {unit} ({middle:.{digits}f})",
        beside=f"{min(peer):,.{digits}f} {unit} ({statistics.median(peer):,.{digits}f})" if peer else "",
        ratio=min(peer) / best if peer else None,
        goal=f"at most {limit:g} {unit}" if limit is not None else "",
        kept=best <= limit if limit is not None else None,
        values=values,
    )


def once(folder: Path) -> tuple[float, float]:
    """Our server on a folder: seconds until it answers, MiB resident then."""
    with servers.modelkeep(folder) as running:
        return running.ready_s, running.resident_mib()


def peer_once(folder: Path) -> tuple[float, float]:
    """The same of MLflow's."""
    with peers.mlflow(folder) as running:
        return running.ready_s, running.resident_mib()


def commands() -> list[tuple[str, float, Callable[[], float], Callable[[], float]]]:
    """What is started for a moment: its name, its limit, ours, and MLflow's nearest."""
    ours, theirs = sys.executable, str(peers.VENV / "bin" / "python")
    return [
        (
            "import modelkeep",
            IMPORT_MAX_MS,
            lambda: import_ms(ours, "import modelkeep"),
            lambda: import_ms(theirs, "import mlflow"),
        ),
        (
            "from modelkeep import Client",
            IMPORT_MAX_MS,
            lambda: import_ms(ours, "from modelkeep import Client"),
            lambda: import_ms(theirs, "from mlflow import MlflowClient"),
        ),
        (
            "modelkeep --help",
            HELP_MAX_MS,
            lambda: run_ms(str(servers.PROGRAM), "--help"),
            lambda: run_ms(str(peers.VENV / "bin" / "mlflow"), "--help"),
        ),
    ]


def rows(folder: Path, times: int, peer_times: int) -> list[Row]:
    """All lines. `peer_times` is 0 where MLflow is to be left out."""
    report.tell("importing")
    started = commands()
    # In turns, so that a busy second of the machine does not meet one of them ten times.
    turns = [[ours() for _, _, ours, _ in started] for _ in range(times)]
    peer_turns = [[theirs() for _, _, _, theirs in started] for _ in range(peer_times)]
    found = [
        row(what, [turn[place] for turn in turns], "ms", limit, [turn[place] for turn in peer_turns])
        for place, (what, limit, _, _) in enumerate(started)
    ]
    report.tell("starting servers")
    fresh = [once(folder / f"server-{turn}") for turn in range(times)]
    again = [once(folder / f"server-{turn}") for turn in range(times)]
    peer = [peer_once(folder / f"peer-{turn}") for turn in range(peer_times)]
    peer_again = [peer_once(folder / f"peer-{turn}") for turn in range(peer_times)]
    for what, ours, beside in (
        ("server ready, first start", fresh, peer),
        ("server ready, next start", again, peer_again),
    ):
        found.append(
            row(
                what, [ready for ready, _ in ours], "s", READY_MAX_S, [ready for ready, _ in beside], digits=2
            )
        )
    resident = [mib for _, mib in fresh + again]
    found.append(
        row(
            "server's memory when ready", resident, "MiB", RESIDENT_MAX_MIB, [m for _, m in peer + peer_again]
        )
    )
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run and print the table; 1 when a promise is broken."""
    parser = report.arguments(__doc__)
    parser.add_argument("--times", type=int, default=10, help="fresh processes for each figure")
    parser.add_argument("--alone", action="store_true", help="leave MLflow out, also where it is installed")
    options = parser.parse_args(argv)
    times = 2 if options.quick else options.times
    compileall.compile_dir(SOURCE, quiet=1)
    machine = report.this_machine()
    version = None if options.alone or options.quick else peers.installed()
    peer_times = min(times, 3) if version is not None else 0
    with tempfile.TemporaryDirectory(prefix="modelkeep-bench-", dir=options.folder) as name:
        found = rows(Path(name), times, peer_times)
    beside = (
        f"Beside it: MLflow {version}, the same of it." if version is not None else "MLflow was not measured."
    )
    table = Table(
        name="start_times",
        title="Starting",
        rows=tuple(found),
        remarks=(f"The best of {times} fresh processes, and the middle in parentheses.", beside),
        beside="MLflow",
    )
    return report.finish(table, machine, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
