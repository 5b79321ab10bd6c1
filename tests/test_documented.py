"""The pages of metrics say what stands in the reference, and nothing else.

Commands, settings, errors and events are compared in tests/cli, policies and filters beside their own code.
Every page is linked from the first one.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from modelkeep.core.observation import FieldMisses, SideCounts, VersionPhase, VersionReport
from modelkeep.core.routing import Epoch, Route, RoutingTable, VersionKey
from modelkeep.serving.counting import BUCKETS_MS, RouteCounts, SideDelta
from modelkeep.serving.messages import DELAY_BUCKETS_MS, ROWS_BUCKETS, FrontCounts, Noted, Worked
from modelkeep.serving.metrics import Metrics
from modelkeep.serving.pool import Cause
from modelkeep.web.figures import Figures

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "metrics.md"
ROW = re.compile(r"^\| `(\w+)` \| (counter|gauge|histogram) \|([^|]*)\| ([^|]+) \|$", re.MULTILINE)
SAMPLE = re.compile(r"^(\w+?)(?:_bucket|_sum|_count)?(?:\{(.*)\})? \S+$", re.MULTILINE)
OF_HISTOGRAMS = {"le"}
FIRST = Epoch(1, 0)
KEY = VersionKey("version:1")


class Family(NamedTuple):
    """What a reader is told of a metric."""

    kind: str
    labels: frozenset[str]
    meaning: str


def documented(section: str) -> dict[str, Family]:
    """The rows under a heading of the reference."""
    part = PAGE.read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return {
        name: Family(kind, frozenset(re.findall(r"`(\w+)`", labels)), meaning)
        for name, kind, labels, meaning in ROW.findall(part)
    }


def exposed(text: str) -> dict[str, Family]:
    """The families of a page, with the labels that their samples have."""
    kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))
    meanings = dict(re.findall(r"^# HELP (\w+) (.*)$", text, re.MULTILINE))
    labels: dict[str, set[str]] = {name: set() for name in kinds}
    for name, inner in SAMPLE.findall(text):
        labels[name] |= set(re.findall(r'(\w+)="', inner)) - OF_HISTOGRAMS
    return {name: Family(kinds[name], frozenset(labels[name]), meanings[name]) for name in kinds}


def server() -> str:
    """The server's page after one request."""
    figures = Figures()
    figures.began()
    figures.count("get_model", 200, 0.01)
    return figures.exposition().decode()


def gateway() -> str:
    """The gateway's page when everything it counts has happened once."""
    metrics, side = Metrics(), SideCounts(requests=1, duration_ms_sum=1.0)
    delta = SideDelta(counts=side, buckets=[1] * (len(BUCKETS_MS) + 1))
    counts = RouteCounts(
        endpoint="e", rollout=None, epoch=FIRST, candidate_ppm=0, stable=delta, candidate=delta
    )
    once = {"e": 1}
    front = FrontCounts(
        routes=[counts], statuses={200: 1}, retries=once, shed=once, log_lost=once, copies_dropped=once
    )
    metrics.add(0, front, {("e", 0): "m:1.0.0", ("e", 1): "m:1.1.0"})
    metrics.rollbacks["e"] = 1
    metrics.log = Noted()
    worked = Worked(
        batches={"all": 1},
        rows=1,
        rows_buckets=[1] + [0] * len(ROWS_BUCKETS),
        delay_s=1.0,
        delay_buckets=[1] + [0] * len(DELAY_BUCKETS_MS),
        misses=FieldMisses(refused={"age": 1}),
    )
    metrics.worked("m:1.0.0", worked)
    metrics.slept("m:1.0.0", Cause.IDLE)
    return metrics.render(
        RoutingTable(number=1, routes=(Route(endpoint="e", epoch=FIRST, stable=KEY),), versions=()),
        [VersionReport(key=KEY, phase=VersionPhase.READY, devices=("cpu",))],
        {KEY: "m:1.0.0"},
        contact_age_s=1.0,
        ticks_waiting=0,
        journal_ok=True,
        cpu_s=1.0,
        memory_bytes=1,
        budget_bytes=1,
    )


@pytest.mark.req("M1")
@pytest.mark.parametrize(("section", "page"), [("Server", server), ("Gateway", gateway)])
def test_the_reference_has_every_metric(section: str, page: Callable[[], str]) -> None:
    """Name, kind, labels and meaning are those of the page, and no row is left of one that is gone."""
    assert documented(section) == exposed(page())


@pytest.mark.req("U1")
def test_every_page_is_linked_from_the_first() -> None:
    """A page that the table of contents lacks is found by nobody, and no link there leads nowhere."""
    folder = PAGE.parents[1]
    index = folder / "README.md"
    pages = {str(page.relative_to(folder)) for page in folder.rglob("*.md") if page != index}
    assert pages == set(re.findall(r"\]\(([^)#]+\.md)", index.read_text()))
