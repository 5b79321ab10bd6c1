"""The lines that a simulation of rollouts comes to, and its tables in Markdown. It simulates nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import beta as beta_law

from bench.sequential_twin import Array

PROOF_RUNS = 10_000
"""From here on the upper bound is sharp enough to hold against alpha; below, only a clear breach counts."""
SEEN_MIN = 0.5
"""A median is told of what at least this share of the runs came to."""


@dataclass(kw_only=True)
class Row:
    """One line of a table: how often something fired, and when.

    `limit` is the promise that is held against the upper bound; None for rules that promise nothing here.
    `requests` and `callers` are those whom the candidate had met when it fired.
    """

    kind: str
    scenario: str
    judge: str
    limit: float | None
    fired: int = 0
    runs: int = 0
    seconds: list[float] = field(default_factory=list)
    requests: list[float] = field(default_factory=list)
    callers: list[float] = field(default_factory=list)
    forecast_s: float | None = None

    @property
    def rate(self) -> float:
        """The share of the runs in which it fired."""
        return self.fired / self.runs

    @property
    def upper(self) -> float:
        """Clopper and Pearson's upper bound of the rate, at 99 %."""
        return (
            1.0
            if self.fired == self.runs
            else float(beta_law.ppf(0.99, self.fired + 1, self.runs - self.fired))
        )

    @property
    def broken(self) -> bool:
        """Whether the promise fails: by the upper bound, or with too few runs for that, by the lower one."""
        if self.limit is None:
            return False
        if self.runs >= PROOF_RUNS:
            return self.upper > self.limit
        return (
            self.fired > 0 and float(beta_law.ppf(0.01, self.fired, self.runs - self.fired + 1)) > self.limit
        )

    def add(self, at: Array, second_per_step: float) -> None:
        """Take the step at which each run fired, -1 for never."""
        hits = at[at >= 0]
        self.fired += len(hits)
        self.runs += len(at)
        self.seconds += [(float(step) + 1) * second_per_step for step in hits]

    def as_json(self) -> dict[str, Any]:
        """The line as JSON."""
        return {
            "kind": self.kind,
            "scenario": self.scenario,
            "judge": self.judge,
            "limit": self.limit,
            "runs": self.runs,
            "fired": self.fired,
            "rate": self.rate,
            "upper_99": self.upper,
            "broken": self.broken,
            "median_s": _median(self.seconds),
            "median_requests": _median(self.requests),
            "median_callers": _median(self.callers),
            "forecast_s": self.forecast_s,
        }


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None


TITLES = {
    "errors": "Errors",
    "slow": "Latency: slow answers",
    "quality": "Quality: wrong labels, late",
    "share": "Shares of the arms",
    "shift": "What is predicted",
    "whole": "The whole rollout: all metrics under one alpha",
    "shadow errors": "Shadow: pairs of which one failed",
    "shadow latency": "Shadow: pairs of which one was slow",
    "bound": "At an absolute bound",
    "proof": "Candidates twice as bad, shown to be better than that",
}
"""How the tables are called, in their order."""


def show_nulls(rows: Sequence[Row]) -> None:
    """Print a table for each kind: a line for each scenario, a column for each judge."""
    for kind, title in TITLES.items():
        lines = [row for row in rows if row.kind == kind]
        if not lines:
            continue
        judges = list(dict.fromkeys(row.judge for row in lines))
        print(f"**{title}**\n\n| Candidates | {' | '.join(judges)} |")
        print("|---|" + "---:|" * len(judges))
        for scenario in dict.fromkeys(row.scenario for row in lines):
            by_judge = {row.judge: row for row in lines if row.scenario == scenario}
            cells = [_false(by_judge[judge]) if judge in by_judge else "" for judge in judges]
            print(f"| {scenario} | {' | '.join(cells)} |")
        print()


def _false(row: Row) -> str:
    """False rollbacks; where something is promised, with the bound of what was seen."""
    if row.limit is None:
        return f"{row.rate:.2%}"
    return f"{row.rate:.2%} ({row.upper:.2%}){' BROKEN' if row.broken else ''}"


def show_power(rows: Sequence[Row]) -> None:
    """Print a table for each kind: a line for each candidate, the product first, then the other rules."""
    for kind, title in TITLES.items():
        lines = [row for row in rows if row.kind == kind]
        if not lines:
            continue
        told = any(row.forecast_s is not None for row in lines)
        ours = [row for row in lines if row.judge == lines[0].judge or row.judge.startswith(f"{kind}, by")]
        others = list(dict.fromkeys(row.judge for row in lines if row not in ours))
        print(f"**{title}**\n")
        print(
            "| Candidate | seen in the hour | after | requests | callers |"
            + (" forecast |" if told else "")
            + "".join(f" {name} |" for name in others)
        )
        print("|---|" + "---:|" * (4 + told + len(others)))
        for row in ours:
            beside = [
                _seen(next(each for each in lines if each.scenario == row.scenario and each.judge == name))
                for name in others
            ]
            cells = [f"{row.rate:.0%}", *_cost(row)]
            if told:
                cells.append("" if row.forecast_s is None else f"{row.forecast_s:.0f} s")
            print(f"| {row.scenario} | {' | '.join([*cells, *beside])} |")
        print()


def _cost(row: Row) -> list[str]:
    """The median time, and the median number of requests and callers that the candidate had until then."""
    if row.rate < SEEN_MIN:
        return ["-", "-", "-"]
    return [
        f"{np.median(row.seconds):.0f} s",
        f"{np.median(row.requests):,.0f}",
        f"{np.median(row.callers):,.0f}" if row.callers else "none",
    ]


def _seen(row: Row) -> str:
    median = f", {np.median(row.seconds):.0f} s" if row.rate >= SEEN_MIN else ""
    return f"{row.rate:.0%}{median}"
