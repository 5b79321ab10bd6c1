"""Whether reads and resolutions stay as fast while the registry grows from a hundred versions to a hundred
thousand.

For each size a data folder is filled through the store (`filling` says how): half of the versions are in
one model, `big`, the others in models of two, so that both the number of models and the length of one grow.
A server runs on each folder; the same requests go to all of them in turn within each round, and the ratio
is the middle of the rounds' ratios of the smallest registry's speed to the largest one's: 1.00x is flat,
less is faster. It measures no writes.
"""

import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlencode

from msgspec import Struct

from bench import filling, report, servers
from bench.filling import Wanted
from bench.load import Call, Figure, drive, median_of
from bench.report import Row, Table
from bench.servers import Running

CONNECTIONS = 8
SIZES = (100, 10_000, 100_000)
QUICK_SIZES = (100, 1_000)
SMALL = 2
"""Versions of each model besides the big one; a hundred versions then make enough models for a whole page."""
PAGE = 20
"""Rows of a list."""
ASKED = 50
"""Different things asked for by the requests of one kind, spread evenly over the registry."""
RATIO_MAX = 1.5
MODELS = "/api/v1/models"


class Question(Struct, frozen=True, kw_only=True):
    """One kind of request. `promised`: whether it is a read or a resolution that may not slow down."""

    name: str
    calls: tuple[Call, ...]
    promised: bool = True


def models_of(size: int) -> list[Wanted]:
    """The models of a registry with so many versions."""
    big = size // 2
    small = (size - big) // SMALL
    return [Wanted("big", big, champion=big // 2), *(Wanted(f"m{index}", SMALL) for index in range(small))]


def questions(size: int) -> list[Question]:
    """What is asked of a registry with so many versions; of each kind ASKED different ones."""
    big = size // 2
    small = (size - big) // SMALL
    numbers = [1 + index * (big - 1) // ASKED for index in range(ASKED)]
    models = [f"m{index * small // ASKED}" for index in range(ASKED)]
    return [
        _versions("read a version by number", [f"big:#{number}" for number in numbers]),
        _versions("resolve a version by semver", [f"big:1.{number - 1}.0" for number in numbers]),
        _versions("resolve a range", [f"{name}:^1.0" for name in ["big", *models]]),
        _versions("resolve an alias", [f"{name}@champion" for name in ["big", *models]]),
        _versions("resolve the latest", [f"{name}@latest" for name in ["big", *models]]),
        Question(
            name="read a model", calls=tuple(Call("GET", f"{MODELS}/default/{name}") for name in models)
        ),
        Question(
            name="list versions, the first page",
            calls=(_get(f"{MODELS}/default/big/versions", {"limit": PAGE}),),
        ),
        Question(name="list models, the first page", calls=(_get(MODELS, {"limit": PAGE}),)),
        Question(
            name="search by a metric, the best page",
            calls=(
                _get(
                    "/api/v1/versions",
                    {"filter": "metrics.auc > 0.7", "order": "metrics.auc desc", "limit": PAGE},
                ),
            ),
            promised=False,
        ),
        Question(
            name="search by a tag that none has",
            calls=(_get("/api/v1/versions", {"filter": 'tags.team = "nobody"', "limit": PAGE}),),
            promised=False,
        ),
        Question(
            name="search by a parameter, the newest",
            calls=(_get("/api/v1/versions", {"filter": "params.depth = 6", "limit": PAGE}),),
            promised=False,
        ),
        Question(
            name="search by tag and model",
            calls=(
                _get("/api/v1/versions", {"filter": 'model = "m1" and tags.team = "risk"', "limit": PAGE}),
            ),
            promised=False,
        ),
    ]


def _get(path: str, query: dict[str, object]) -> Call:
    return Call("GET", f"{path}?{urlencode(query)}")


def _versions(name: str, refs: Sequence[str]) -> Question:
    return Question(name=name, calls=tuple(_get("/api/v1/version", {"ref": ref}) for ref in refs))


def measure(
    asked: Sequence[Question], running: Sequence[Running], rounds: int, seconds: int
) -> list[list[Figure]]:
    """Ask one kind of question of each server in turn. Returns the rounds of each server."""
    figures: list[list[Figure]] = [[] for _ in running]
    order = list(range(len(running)))
    for turn in range(rounds):
        for place in order if turn % 2 == 0 else reversed(order):
            calls = asked[place].calls
            figures[place].append(drive(running[place].port, calls, connections=CONNECTIONS, seconds=seconds))
    return figures


def row_of(question: Question, sizes: Sequence[int], figures: Sequence[Sequence[Figure]]) -> Row:
    """The line of one kind of question."""
    ratio = statistics.median(
        first.per_second / last.per_second for first, last in zip(figures[0], figures[-1], strict=True)
    )
    middles = [median_of(rounds) for rounds in figures]
    return Row(
        what=question.name,
        figure=middles[-1].text(),
        beside=", ".join(f"{middle.per_second:,.0f}/s" for middle in middles[:-1]),
        ratio=ratio,
        goal=f"at most {RATIO_MAX:g}x" if question.promised else "",
        kept=ratio <= RATIO_MAX if question.promised else None,
        values={"ratio": ratio}
        | {f"per_second_{size}": middle.per_second for size, middle in zip(sizes, middles, strict=True)},
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run and print the table; 1 when a promise is broken."""
    parser = report.arguments(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="versions, the smallest first")
    parser.add_argument("--seconds", type=int, default=2, help="how long each round asks each server")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(argv)
    sizes, rounds, seconds = tuple(options.sizes), options.rounds, options.seconds
    if options.quick:
        sizes, rounds, seconds = QUICK_SIZES, 1, 1
    machine = report.this_machine()
    rows = []
    with tempfile.TemporaryDirectory(prefix="modelkeep-bench-", dir=options.folder) as name:
        folders = [Path(name) / str(size) for size in sizes]
        began = time.perf_counter()
        for size, folder in zip(sizes, folders, strict=True):
            report.tell(f"filling a registry with {size:,} versions")
            filling.fill(folder, models_of(size))
        filled_s = time.perf_counter() - began
        with contextlib.ExitStack() as stack:
            running = [stack.enter_context(servers.modelkeep(folder)) for folder in folders]
            for asked in zip(*(questions(size) for size in sizes), strict=True):
                report.tell(asked[0].name)
                rows.append(row_of(asked[0], sizes, measure(asked, running, rounds, seconds)))
            resident = ", ".join(f"{server.resident_mib():.0f}" for server in running)
    small = ", ".join(f"{size:,}" for size in sizes[:-1])
    table = Table(
        name="registry_growth",
        title=f"With {sizes[-1]:,} versions, beside {small}",
        rows=tuple(rows),
        remarks=(
            f"{CONNECTIONS} connections, pages of {PAGE} rows; the middle of {rounds} rounds of {seconds} s.",
            "The ratio is how many times as long it takes in the largest registry as in the smallest.",
            f"Filled through the store in {filled_s:.0f} s; the servers then had {resident} MiB resident.",
        ),
        beside=small,
    )
    return report.finish(table, machine, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
