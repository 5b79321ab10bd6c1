"""All benchmarks, one after the other, each in a process of its own, and what they found on one page.

    python -m bench                                          # everything; `make bench` says the same
    python -m bench transfer start_times                     # some of them
    python -m bench --quick                                  # shows that all of them work, in a few minutes
    python -m bench --write docs/explanation/performance.md  # puts the tables of what ran into the page

What was promised comes last, in one table. It measures nothing itself. Each benchmark can be run alone
(`python -m bench.transfer`) and has options of its own there. It leaves with 1 when one of them broke a
promise or failed; the others are run nevertheless.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from bench import report
from bench.report import Machine, Row, Table

Read = Callable[[dict[str, Any]], Table]
"""Makes a table of what a benchmark prints with --json."""


class Bench(NamedTuple):
    """One benchmark: its module, how it is told to be quick, and how its answer is read."""

    name: str
    quick: tuple[str, ...]
    read: Read


# ------------------------------------------------------------------------------------- reading their answers


def table_itself(answer: dict[str, Any]) -> Table:
    """Of those that print a table as it is."""
    return msgspec.convert(answer["tables"][0], Table)


def of_store_speed(answer: dict[str, Any]) -> Table:
    """The store beside the bare driver."""
    rows = [
        Row(
            what=f"{each['what']}, {each['threads']} {'thread' if each['threads'] == 1 else 'threads'}",
            figure=f"{each['per_second']:,.0f}/s",
            beside=f"{each['bare_per_second']:,.0f}/s",
            ratio=each["per_second"] / each["bare_per_second"],
            goal="at least 0.50x",
            kept=each["per_second"] >= 0.5 * each["bare_per_second"],
            values={"per_second": each["per_second"], "bare_per_second": each["bare_per_second"]},
        )
        for each in answer["sqlite"]
    ]
    return Table(
        name="store_speed",
        title="The store, without HTTP",
        rows=tuple(rows),
        remarks=("A write is a tag with its chained event, on disk; beside it a bare spike on sqlite3.",),
        beside="bare driver",
    )


def of_blob_throughput(answer: dict[str, Any]) -> Table:
    """The folder store beside sha256sum."""
    rows = [
        Row(
            what=what,
            figure=f"{answer[key]:.0%} of sha256sum",
            ratio=answer[key],
            goal="at least 0.80x",
            kept=answer[key] >= 0.8,
            values={"ratio": answer[key]},
        )
        for what, key in (("store a file, with fsync", "store_ratio"), ("read it, verified", "read_ratio"))
    ]
    extra = Row(
        what="extra memory",
        figure=f"{answer['memory_mib']:.0f} MiB",
        goal="at most 64 MiB",
        kept=answer["memory_mib"] <= 64,
        values={"mib": answer["memory_mib"]},
    )
    return Table(
        name="blob_throughput",
        title=f"The folder store, without HTTP, one file of {answer['size_mib']:,} MiB",
        rows=(*rows, extra),
    )


def of_rollout_statistics(answer: dict[str, Any]) -> Table:
    """The false rollbacks of healthy candidates, by judge, in the scenario where there were most; all
    scenarios, and the power, stand in the page about the statistics."""
    judges: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for each in answer["null"]:
        if each["limit"] is not None:
            judges.setdefault((each["judge"], each["limit"]), []).append(each)
    rows = []
    for (judge, limit), seen in judges.items():
        worst = max(seen, key=lambda each: float(each["rate"]))
        rows.append(
            Row(
                what=f"{judge}, the worst of {len(seen)}",
                figure=f"{worst['fired']:,} of {worst['runs']:,}",
                goal=f"at most {limit:.1%}",
                kept=not any(each["broken"] for each in seen),
                values={"rate": worst["rate"], "upper_99": worst["upper_99"]},
            )
        )
    return Table(
        name="rollout_statistics",
        title="False rollbacks of healthy candidates, simulated",
        rows=tuple(rows),
        remarks=("Kept: the 99 % upper bound of what was seen is below what was promised.",),
    )


QUICK = ("--quick",)

BENCHES: tuple[Bench, ...] = (
    Bench("start_times", QUICK, table_itself),
    Bench("control_plane", QUICK, table_itself),
    Bench("registry_growth", QUICK, table_itself),
    Bench("mlflow_side_by_side", QUICK, table_itself),
    Bench("transfer", QUICK, table_itself),
    Bench("gateway_cost", QUICK, table_itself),
    Bench("gateway_capacity", QUICK, table_itself),
    Bench("soak", QUICK, table_itself),
    Bench("batching", QUICK, table_itself),
    Bench("on_demand", QUICK, table_itself),
    Bench("serving_side_by_side", QUICK, table_itself),
    Bench("store_speed", ("--seconds", "0.2"), of_store_speed),
    Bench("blob_throughput", ("--size-mib", "16", "--rounds", "1"), of_blob_throughput),
    Bench("rollout_statistics", QUICK, of_rollout_statistics),
)
"""Every benchmark, in the order in which a reader wants them."""


# --------------------------------------------------------------------------------------------------- running


class Failed(RuntimeError):
    """A benchmark ended without an answer."""


def run(bench: Bench, *, quick: bool, folder: Path | None) -> Table:
    """Run one benchmark in a fresh process.

    Raises:
        Failed: it printed no answer; the message has what it said instead.
    """
    command = [sys.executable, "-m", f"bench.{bench.name}", "--json", *(bench.quick if quick else ())]
    if folder is not None and bench.name != "rollout_statistics":
        command += ["--folder", str(folder)]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    try:
        return bench.read(json.loads(done.stdout))
    except (ValueError, KeyError, msgspec.ValidationError) as problem:
        raise Failed(
            f"{bench.name} ended with {done.returncode} and no answer: {done.stdout[-500:]}"
        ) from problem


def promises(tables: Sequence[Table]) -> Table:
    """Whatever was promised, of all benchmarks, in one table."""
    rows = [
        msgspec.structs.replace(row, what=f"{table.name}: {row.what}")
        for table in tables
        for row in table.rows
        if row.goal
    ]
    return Table(name="promises", title="What is promised, and what was seen", rows=tuple(rows))


def write_page(path: Path, tables: Sequence[Table], machine: Machine) -> None:
    """Put the tables of what ran between their marks in a page, each with the note about its machine, and
    gather what all tables of the page promise."""
    note = machine.sentence()
    pieces = {table.name: f"{report.markdown(table)}\n*{note}*" for table in tables}
    page = report.rewrite(path.read_text(encoding="utf-8"), pieces)
    path.write_text(report.rewrite(page, {"promises": report.promised(page)}), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks that are named, or all; 1 when a promise is broken or a benchmark failed."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="All benchmarks, or those that are named."
    )
    names = [bench.name for bench in BENCHES]
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names))
    parser.add_argument(
        "--quick", action="store_true", help="short: shows that they work, not how fast it is"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the tables into this page as well")
    parser.add_argument("--folder", type=Path, help="where to work (default: the folder for temporary files)")
    options = parser.parse_args(argv)
    if unknown := sorted(set(options.names) - set(names)):
        parser.error(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(names)}")
    machine = report.this_machine()
    chosen = [bench for bench in BENCHES if not options.names or bench.name in options.names]
    tables, failed = [], []
    if not options.json:
        print(machine.sentence(), flush=True)
    for bench in chosen:
        began = time.perf_counter()
        try:
            table = run(bench, quick=options.quick, folder=options.folder)
        except Failed as problem:
            failed.append(bench.name)
            print(f"bench: {problem}", file=sys.stderr)
            continue
        tables.append(table)
        report.tell("")
        if not options.json:
            print(
                f"\n{report.markdown(table)}\n({bench.name}, {time.perf_counter() - began:.0f} s)", flush=True
            )
    whole = promises(tables)
    if options.json:
        print(json.dumps(report.document(tables, machine) | {"failed": failed}))
    else:
        print(f"\n{machine.sentence()}\n\n{report.markdown(whole)}")
        broken = sum(row.kept is False for row in whole.rows)
        ran_not = f" Failed: {', '.join(failed)}." if failed else ""
        print(f"{len(whole.rows)} promises, {broken} broken.{ran_not}")
    if options.write is not None:
        write_page(options.write, tables, machine)
    return 0 if whole.kept and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
