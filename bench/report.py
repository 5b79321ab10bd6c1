"""How benchmarks say what they saw: rows, one table, the note about the machine, and the page that keeps
them.

A row compares a figure with its goal, and with a peer or a yardstick measured in the same run. The text is
Markdown, so that what a terminal shows and what the page holds are the same. It measures nothing.
"""

import argparse
import json
import os
import platform
import re
import sqlite3
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

BUSY_SHARE = 0.25
"""Of the cores, how much may have been in use in the last minute for the machine to count as quiet."""


class Row(Struct, frozen=True, kw_only=True):
    """One line: what was measured, what it gave, and what it was to give.

    `beside` is the peer's or the yardstick's figure of the same run and `ratio` how many times as good ours
    is; `kept` is None where nothing was promised. `values` are the bare numbers, for programs.
    """

    what: str
    figure: str
    beside: str = ""
    ratio: float | None = None
    goal: str = ""
    kept: bool | None = None
    values: dict[str, float] = {}


class Table(Struct, frozen=True, kw_only=True):
    """What one benchmark found. `remarks` are sentences that a reader of the figures needs."""

    name: str
    title: str
    rows: tuple[Row, ...]
    remarks: tuple[str, ...] = ()
    beside: str = "beside it"

    @property
    def kept(self) -> bool:
        """Whether no promise was broken."""
        return all(row.kept is not False for row in self.rows)


class Machine(Struct, frozen=True, kw_only=True):
    """Where the figures were taken, and whether anything else was running there."""

    cores: int
    processor: str
    memory_gib: float
    python: str
    sqlite: str
    kernel: str
    load: float
    taken_at: str

    @property
    def quiet(self) -> bool:
        """Whether the load average of the last minute says that nobody else was at work."""
        return self.load <= BUSY_SHARE * self.cores

    def sentence(self) -> str:
        """The note that stands above the figures."""
        state = "quiet" if self.quiet else "busy with other work, so read the ratios"
        return (
            f"{self.cores} cores ({self.processor}), {self.memory_gib:.0f} GiB, Linux {self.kernel}, "
            f"Python {self.python}, SQLite {self.sqlite}; load average at the start {self.load:.2f}: "
            f"{state}. Taken {self.taken_at}."
        )


def this_machine() -> Machine:
    """The machine as it is now; call it before the benchmarks make their own load."""
    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    named = re.search(r"^model name\s*: (.+)$", cpu, re.MULTILINE)
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        processor=named[1].strip() if named else platform.machine(),
        memory_gib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        python=platform.python_version(),
        sqlite=sqlite3.sqlite_version,
        kernel=platform.release(),
        load=os.getloadavg()[0],
        taken_at=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )


# ------------------------------------------------------------------------------------------------- rendering


def markdown(table: Table) -> str:
    """A table as aligned Markdown, with its title above and its remarks below."""
    compared = any(row.beside or row.ratio is not None for row in table.rows)
    head = ["", "figure", *((table.beside, "ratio") if compared else ()), "goal", "kept"]
    lines = [head]
    for row in table.rows:
        ratio = "" if row.ratio is None else f"{row.ratio:,.2f}x" if row.ratio < 10 else f"{row.ratio:,.0f}x"
        kept = {None: "", True: "yes", False: "NO"}[row.kept]
        lines.append([row.what, row.figure, *((row.beside, ratio) if compared else ()), row.goal, kept])
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    rule = [("-" * max(width, 3)) for width in widths]
    text = "\n".join(
        "| " + " | ".join(cell.ljust(len(bar)) for cell, bar in zip(line, rule, strict=True)) + " |"
        for line in [head, rule, *lines[1:]]
    )
    remarks = "".join(f"\n{remark}" for remark in table.remarks)
    return f"**{table.title}**\n\n{text}\n" + (f"{remarks}\n" if remarks else "")


def rewrite(page: str, pieces: dict[str, str]) -> str:
    """A page with the text between each `<!-- bench:NAME -->` and `<!-- /bench:NAME -->` put anew.

    Raises:
        ValueError: a piece has no such place.
    """
    for name, text in pieces.items():
        first, last = f"<!-- bench:{name} -->\n", f"<!-- /bench:{name} -->"
        before, found, rest = page.partition(first)
        _, ended, after = rest.partition(last)
        if not found or not ended:
            raise ValueError(f"The page has no place for {name!r}: {first.strip()} and {last}.")
        page = f"{before}{first}{text.strip()}\n{last}{after}"
    return page


def promised(page: str) -> str:
    """Every line with a goal of all tables of a page, as one table: what was promised, and what was seen."""
    rows = []
    for name, text in re.findall(r"<!-- bench:(\w+) -->\n(.*?)<!-- /bench:\1 -->", page, re.DOTALL):
        lines = [_cells(line) for line in text.splitlines() if line.startswith("| ")]
        if name == "promises" or not lines:
            continue
        for cells in lines[2:]:
            line = dict(zip(lines[0], cells, strict=True))
            if line["goal"]:
                kept = {"yes": True, "NO": False}.get(line["kept"])
                rows.append(
                    Row(what=f"{name}: {line['']}", figure=line["figure"], goal=line["goal"], kept=kept)
                )
    broken = sum(row.kept is False for row in rows)
    summary = f"{len(rows)} promises, {broken} broken. The tables below say what each was compared with."
    table = Table(
        name="promises", title="What is promised, and what was seen", rows=tuple(rows), remarks=(summary,)
    )
    return markdown(table)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


# ----------------------------------------------------------------------------------------------- one program


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="short: shows that it works, not how fast it is")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    parser.add_argument("--folder", type=Path, help="where to work (default: the folder for temporary files)")
    return parser


def finish(table: Table, machine: Machine, *, as_json: bool) -> int:
    """Print what a benchmark found, alone. Returns its exit code: 1 when a promise was broken."""
    if as_json:
        print(json.dumps(document([table], machine)))
    else:
        print(f"{machine.sentence()}\n\n{markdown(table)}", end="")
    return 0 if table.kept else 1


def document(tables: Sequence[Table], machine: Machine) -> dict[str, Any]:
    """Everything as data."""
    return {
        "machine": msgspec.to_builtins(machine) | {"quiet": machine.quiet},
        "tables": [msgspec.to_builtins(table) | {"kept": table.kept} for table in tables],
    }


def tell(text: str) -> None:
    """Say on stderr how far a benchmark is, when a person watches."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
