"""Whether our answers to MLflow's requests stay as fast while the runs grow from a hundred to a million.

For each size a store is filled (`tracked`), all runs in one experiment; a server runs on each, and the same
kinds of requests go to all of them in turn. The ratio is how many times as long a request takes with the most
runs as with the fewest: 1.00x is flat. A part of `mlflow_side_by_side`; `registry_growth` does the same with
versions.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from bench import mlflow_scenarios, report, servers, tracked
from bench.load import Call, Figure, drive, median_of, probe
from bench.mlflow_scenarios import get, post
from bench.report import Row
from bench.servers import Running
from bench.tracked import BEGAN, EXPERIMENT_ID

SIZES = (100, 10_000, 1_000_000)
QUICK_SIZES = (100, 1_000)
QUICK_QUESTIONS = ("get a run", "search the newest runs")
CONNECTIONS = 8
ROUNDS = 3
PAGE = 20
"""Runs of a page. The smallest store has as many that pass each filter, so that all answers are as long."""
DEPTHS = 2
"""Different values of the param `depth`: half of the runs pass a filter on it, and half of these one on a
metric as well."""
ASKED = 50
"""Different runs asked for, evenly over the store."""
RATIO_MAX = 1.5


class Question(Struct, frozen=True, kw_only=True):
    """One kind of request to a store of some size. `promised`: whether it may not slow down; `runs`: how many
    runs every answer has, whatever the size, where that is known."""

    name: str
    calls: tuple[Call, ...]
    promised: bool = True
    runs: int | None = None


def questions(size: int) -> list[Question]:
    """What is asked of a store with so many runs."""
    runs = [tracked.run_id(index * size // ASKED) for index in range(ASKED)]
    started = post("runs/create", experiment_id=EXPERIMENT_ID, user_id="ada", start_time=BEGAN)
    return [
        Question(name="get a run", calls=tuple(get(f"runs/get?run_id={run}") for run in runs)),
        Question(name="create a run", calls=(started,)),
        Question(
            name="log a metric",
            calls=tuple(
                post("runs/log-metric", run_id=run, key="new", value=0.5, timestamp=BEGAN, step="@N@")
                for run in runs
            ),
        ),
        Question(
            name=f"log a batch of {mlflow_scenarios.BATCH} metrics",
            calls=tuple(post("runs/log-batch", **mlflow_scenarios.batch_of(run)) for run in runs),
        ),
        Question(
            name="set a run's tag",
            calls=tuple(post("runs/set-tag", run_id=run, key="note", value="v@N@") for run in runs),
        ),
        _search("the newest runs"),
        _search("the best runs by a metric", order_by=["metrics.auc DESC"]),
        _search("runs by a metric, the best", filter="metrics.auc > 0.5", order_by=["metrics.auc DESC"]),
        _search("runs by a param, the newest", filter="params.depth = '1'"),
        _search(
            "runs by a metric and a param, the best",
            filter="metrics.auc > 0.5 and params.depth = '1'",
            order_by=["metrics.auc DESC"],
        ),
        _search("runs by a tag that none has", runs=0, filter="tags.team = 'nobody'"),
    ]


def _search(name: str, runs: int = PAGE, **more: object) -> Question:
    body = {"experiment_ids": [EXPERIMENT_ID], "max_results": PAGE, **more}
    return Question(name=f"search {name}", calls=(post("runs/search", **body),), runs=runs)


def check(server: Running, question: Question) -> None:
    """See that an answer is as long as on the other stores: a shorter one would be quicker for that alone.

    Raises:
        RuntimeError: it is not.
    """
    if question.runs is None:
        return
    found = len(json.loads(probe(server.port, question.calls[0])).get("runs", ()))
    if found != question.runs:
        raise RuntimeError(f"{question.name}: {found} runs were found instead of {question.runs}")


def rows(folder: Path, sizes: Sequence[int], seconds: int, rounds: int, *, brief: bool) -> Iterator[Row]:
    """The lines, one for each kind of question; in brief only for a few kinds."""
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(filled(folder / f"runs-{size}", size)) for size in sizes]
        for asked in zip(*(questions(size) for size in sizes), strict=True):
            if brief and asked[0].name not in QUICK_QUESTIONS:
                continue
            report.tell(f"with {sizes[-1]:,} runs: {asked[0].name}")
            for server, question in zip(running, asked, strict=True):
                check(server, question)
            figures: list[list[Figure]] = [[] for _ in sizes]
            places = list(range(len(sizes)))
            for turn in range(rounds):
                for place in places if turn % 2 == 0 else reversed(places):
                    port, calls = running[place].port, asked[place].calls
                    figures[place].append(drive(port, calls, connections=CONNECTIONS, seconds=seconds))
            yield _row(asked[0], sizes, [median_of(each) for each in figures])
        mib = running[-1].resident_mib()
    yield Row(
        what=f"memory with {sizes[-1]:,} runs",
        figure=f"{mib:.0f} MiB",
        goal="at most 250 MiB",
        kept=mib <= 250,
    )


@contextlib.contextmanager
def filled(data: Path, size: int) -> Iterator[Running]:
    """Our server on a store with so many runs."""
    report.tell(f"filling a store with {size:,} runs")
    data.mkdir(mode=0o700)
    tracked.fill(f"sqlite:///{data / 'modelkeep.db'}", size, DEPTHS)
    with servers.modelkeep(data) as running:
        yield running


def _row(question: Question, sizes: Sequence[int], figures: Sequence[Figure]) -> Row:
    ratio = figures[0].per_second / figures[-1].per_second
    return Row(
        what=f"{question.name}, {sizes[-1]:,} runs",
        figure=figures[-1].text(),
        beside=", ".join(
            f"{figure.per_second:,.0f}/s at {size:,}"
            for size, figure in zip(sizes, figures[:-1], strict=False)
        ),
        ratio=ratio,
        goal=f"at most {RATIO_MAX:g}x" if question.promised else "",
        kept=ratio <= RATIO_MAX if question.promised else None,
        values={"ratio": ratio}
        | {f"per_second_{size}": each.per_second for size, each in zip(sizes, figures, strict=True)},
    )
