"""How fast the folder store takes in and gives out one large file, against `sha256sum` on the same file in
the same run.

    python -m bench.blob_throughput --size-mib 1024 --rounds 3

stores the file in chunks as a connection delivers them, commits it (so the time contains the fsync), reads it
back verified, and asks `sha256sum`, in turn, for each round; the medians count. The first round is run for
nothing: it touches memory that a virtual machine may not have been given yet, which costs more than all the
work measured here. It leaves with 1 when a promise is broken (80 % of the speed of `sha256sum`, 64 MiB of
extra memory). It measures no network.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from modelkeep.adapters.blobs_folder import FolderBlobs
from modelkeep.core.values import Digest

MIB = 1024 * 1024
CHUNK_BYTES = 64 * 1024
"""What a server of ours is handed at a time."""
SPEED_MIN = 0.8
"""The least share of the speed of `sha256sum`."""
MEMORY_MAX_MIB = 64
"""The most extra resident memory."""


def make_file(path: Path, size_mib: int) -> None:
    """Fill a file with bytes that cannot be compressed."""
    with path.open("wb") as file:
        for _ in range(size_mib):
            file.write(os.urandom(MIB))
        file.flush()
        os.fsync(file.fileno())


def chunks_of(path: Path) -> Iterator[bytes]:
    """A file's bytes as a connection delivers them."""
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def ask_sha256sum(path: Path) -> tuple[float, Digest]:
    """Run the yardstick. Returns its seconds and the digest."""
    started = time.perf_counter()
    said = subprocess.run(["sha256sum", str(path)], check=True, capture_output=True, text=True).stdout
    return time.perf_counter() - started, Digest(f"sha256:{said.split()[0]}")


def memory_mib(field: str) -> float:
    """A figure of this process's memory, in MiB: VmRSS is now, VmHWM the most since `forget_peak`."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def forget_peak() -> None:
    """Begin to count the peak of resident memory anew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def one_round(store: FolderBlobs, source: Path, number: int) -> dict[str, float]:
    """Store, read and hash once. Returns seconds of each, and the extra memory in MiB."""
    sum_s, digest = ask_sha256sum(source)
    resting = memory_mib("VmRSS")
    forget_peak()
    started = time.perf_counter()
    store.begin(f"up_{number}", source.stat().st_size)
    store.append(f"up_{number}", 0, chunks_of(source))
    store.commit(f"up_{number}", digest)
    stored_s = time.perf_counter() - started
    started = time.perf_counter()
    store.verify(digest)
    read_s = time.perf_counter() - started
    return {
        "sha256sum_s": sum_s,
        "store_s": stored_s,
        "read_s": read_s,
        "memory_mib": memory_mib("VmHWM") - resting,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run and print the figures; 1 when a promise is broken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size-mib", type=int, default=1024, help="size of the file")
    parser.add_argument("--rounds", type=int, default=3, help="rounds that count, after one that does not")
    parser.add_argument("--folder", type=Path, help="where to work (default: the folder for temporary files)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="modelkeep-bench-", dir=options.folder) as name:
        source = Path(name) / "file"
        make_file(source, options.size_mib)
        store = FolderBlobs(Path(name) / "blobs")
        rounds = [one_round(store, source, number) for number in range(options.rounds + 1)]
        store.close()
    counted = {key: statistics.median(row[key] for row in rounds[1:]) for key in rounds[0]}
    store_ratio = counted["sha256sum_s"] / counted["store_s"]
    read_ratio = counted["sha256sum_s"] / counted["read_s"]
    memory = max(row["memory_mib"] for row in rounds)
    kept = store_ratio >= SPEED_MIN and read_ratio >= SPEED_MIN and memory <= MEMORY_MAX_MIB
    if options.json:
        figures = {"store_ratio": store_ratio, "read_ratio": read_ratio, "memory_mib": memory, "kept": kept}
        print(json.dumps({"size_mib": options.size_mib, "rounds": rounds, **figures}))
        return 0 if kept else 1
    print(
        f"One file of {options.size_mib:,} MiB, medians of {options.rounds} rounds, on {platform.platform()}"
    )
    for what, key in (
        ("sha256sum", "sha256sum_s"),
        ("store, with fsync", "store_s"),
        ("verified read", "read_s"),
    ):
        share = counted["sha256sum_s"] / counted[key]
        print(
            f"  {what:<20} {counted[key]:7.2f} s {options.size_mib / counted[key]:8,.0f} MiB/s {share:8.0%}"
        )
    print(f"  first round, not counted: stored at {rounds[0]['sha256sum_s'] / rounds[0]['store_s']:.0%}")
    print(f"  extra memory at most {memory:.0f} MiB (limit {MEMORY_MAX_MIB})")
    print(f"  {'kept' if kept else 'BROKEN'}: at least {SPEED_MIN:.0%} of the speed of sha256sum")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
