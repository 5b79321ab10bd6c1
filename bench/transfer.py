"""One large file registered and pulled through a real server, beside `sha256sum` of the same file in the
same run.

    python -m bench.transfer --size-mib 1024 --rounds 3

A round changes the file's first bytes (equal bytes would not be sent twice), hashes it with `sha256sum`,
registers it with the SDK (which hashes it, sends it, and has the server hash and keep it), and pulls it
into an empty folder, verified. The time is that of the whole verb as its caller waits for it; a version is
on disk before it is acknowledged, while what is pulled is left to the page cache. The memory is the most
that was resident above the rest before the verb, in the server and in the client. The first round is not
counted: it touches memory that a virtual machine may not have been given yet. It needs room for the file
once for each round, and once more.
"""

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bench import report, servers
from bench.blob_throughput import ask_sha256sum, make_file
from bench.report import Row, Table
from bench.servers import Running
from modelkeep import Client

SPEED_MIN = 0.8
"""The least share of the speed of `sha256sum`."""
MEMORY_MAX_MIB = 64.0
"""The most extra resident memory of a process."""


class Watch:
    """What a process has resident: at rest, and at most since then."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")
        (self._folder / "clear_refs").write_text("5", encoding="ascii")  # the peak is counted anew
        self._resting = self._mib("VmRSS")

    def extra_mib(self) -> float:
        """The peak above the rest, in MiB."""
        return max(self._mib("VmHWM") - self._resting, 0.0)

    def _mib(self, field: str) -> float:
        lines = (self._folder / "status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


class Taken(NamedTuple):
    """What one verb took: seconds, and MiB of extra memory in server and client."""

    seconds: float
    server_mib: float
    client_mib: float


class Round(NamedTuple):
    """One round."""

    sum_s: float
    register: Taken
    pull: Taken


def taken(server: Running, verb: Callable[[], object]) -> Taken:
    """Run a verb and watch it."""
    there, here = Watch(server.pid), Watch(os.getpid())
    started = time.perf_counter()
    verb()
    seconds = time.perf_counter() - started
    return Taken(seconds, there.extra_mib(), here.extra_mib())


@contextmanager
def empty(folder: Path) -> Iterator[Path]:
    """A folder that is there for the while."""
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def one_round(client: Client, server: Running, source: Path) -> Round:
    """Hash, register and pull the file once."""
    with source.open("r+b") as file:
        file.write(os.urandom(32))
    sum_s, digest = ask_sha256sum(source)
    register = taken(server, lambda: client.register("large", source))
    version = client.get_version("large@newest")
    assert version.files[0].digest == digest
    with empty(source.parent / "pulled") as folder:
        pull = taken(server, lambda: client.pull(f"large:#{version.number}", folder))
        assert (folder / source.name).stat().st_size == source.stat().st_size
    return Round(sum_s, register, pull)


def rows_of(rounds: Sequence[Round], size_mib: int) -> list[Row]:
    """The lines of the table."""
    found = []
    beside = f"sha256sum {size_mib / statistics.median(each.sum_s for each in rounds):,.0f} MiB/s"
    for what, chosen in (
        ("register", [each.register for each in rounds]),
        ("pull", [each.pull for each in rounds]),
    ):
        share = statistics.median(
            each.sum_s / verb.seconds for each, verb in zip(rounds, chosen, strict=True)
        )
        speed = size_mib / statistics.median(verb.seconds for verb in chosen)
        found.append(
            Row(
                what=f"{what}, {size_mib:,} MiB",
                figure=f"{speed:,.0f} MiB/s",
                beside=beside,
                ratio=share,
                goal=f"at least {SPEED_MIN:.2f}x",
                kept=share >= SPEED_MIN,
                values={"mib_per_second": speed, "share_of_sha256sum": share},
            )
        )
        for where, used in (
            ("server", [v.server_mib for v in chosen]),
            ("client", [v.client_mib for v in chosen]),
        ):
            found.append(
                Row(
                    what=f"{what}: extra memory of the {where}",
                    figure=f"{max(used):.0f} MiB",
                    goal=f"at most {MEMORY_MAX_MIB:g} MiB",
                    kept=max(used) <= MEMORY_MAX_MIB,
                    values={"mib": max(used)},
                )
            )
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run and print the table; 1 when a promise is broken."""
    parser = report.arguments(__doc__)
    parser.add_argument("--size-mib", type=int, default=1024, help="size of the file")
    parser.add_argument("--rounds", type=int, default=3, help="rounds that count, after one that does not")
    options = parser.parse_args(argv)
    size_mib, count = (16, 1) if options.quick else (options.size_mib, options.rounds)
    machine = report.this_machine()
    with tempfile.TemporaryDirectory(prefix="modelkeep-bench-", dir=options.folder) as name:
        source = Path(name) / "large.bin"
        make_file(source, size_mib)
        with (
            servers.modelkeep(Path(name) / "data") as server,
            Client(f"http://127.0.0.1:{server.port}") as client,
        ):
            rounds = []
            for turn in range(count + 1):
                report.tell(f"round {turn} of {count}")
                rounds.append(one_round(client, server, source))
    table = Table(
        name="transfer",
        title="One large file through the server",
        rows=tuple(rows_of(rounds[1:], size_mib)),
        remarks=(f"The middle of {count} rounds after one that does not count; of memory the most.",),
    )
    return report.finish(table, machine, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
