"""How often a healthy rollout is taken back, and how soon a bad one: simulated rollouts, judged as the
product does.

    python -m bench.rollout_statistics --runs 10000 --seed 1

simulates an hour of ticks of ten seconds, many times over, in each scenario: candidates that are exactly as
good as stable (false rollbacks, with a 99 % upper bound by Clopper and Pearson), then bad ones (share seen,
median time). Fixed thresholds, a repeated z-test and Mann and Whitney's test judge the same data. It leaves
with 1 when a bound that the product promises does not hold. It measures no speed and starts no server.

The judge is `core.sequential`. Because ten thousand hours are a lot of ticks, `bench.sequential_twin` repeats
its recursion for many runs at once; each table replays a sample of its runs, and those that were taken back,
through the real code and stops if they differ by more than 1e-9 (the tests do the same on random logs).
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import beta as beta_law

from bench.rollout_worlds import (
    BETA,
    NULLS,
    TICK_S,
    TICKS,
    Scenario,
    World,
    callers_world,
    first_step,
    mann_whitney_fires,
    requests_world,
    threshold_fires,
    z_test_fires,
)
from bench.sequential_twin import Array, judge, replayed
from modelkeep.core import forecast, sequential
from modelkeep.core.sequential import EProcessSpec, RateSpec, Unit

ALPHA = 0.01
OMEGA = {"errors": 0.5, "slow": 0.4, "share": 0.1}
"""How a rollout of the three metrics shares its alpha."""
CHUNK = 500
"""Runs simulated together: the arrays of one chunk fit the processor's cache."""
AGREE = 1e-9
"""How far the vectorised twin may be from the real code in log V."""
REPLAYED = 12
"""Runs of each chunk taken back that the real code judges again, beside two others."""
QUICK_RUNS = 1_000
PROOF_RUNS = 10_000
"""From here on the upper bound is sharp enough to hold against alpha; below, only a clear breach counts."""
SUBSET = ("requests alike", "20 bad callers of 2000", "callers, ramp 10-50-100")
"""The null scenarios of the long test."""


# --------------------------------------------------------------------------- the tables


@dataclass(kw_only=True)
class Row:
    """One line of a table: how often something fired, and when."""

    scenario: str
    judge: str
    limit: float | None
    """The promise that is held against the upper bound; None for tests that promise nothing here."""
    fired: int = 0
    runs: int = 0
    seconds: list[float] = field(default_factory=list)
    forecast_s: float | None = None

    @property
    def upper(self) -> float:
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
        return {
            "scenario": self.scenario,
            "judge": self.judge,
            "limit": self.limit,
            "runs": self.runs,
            "fired": self.fired,
            "rate": self.fired / self.runs,
            "upper_99": self.upper,
            "broken": self.broken,
            "median_s": float(np.median(self.seconds)) if self.seconds else None,
            "forecast_s": self.forecast_s,
        }


class Disagreement(Exception):
    """The vectorised twin and the real code differ: no number of this run may be used."""


def _chunks(runs: int) -> Iterable[int]:
    for start in range(0, runs, CHUNK):
        yield min(CHUNK, runs - start)


def _world(scenario: Scenario, runs: int, rng: np.random.Generator) -> World:
    return callers_world(scenario, runs, rng) if scenario.callers else requests_world(scenario, runs, rng)


def _judged(spec: EProcessSpec | RateSpec, columns: Sequence[Array], threshold: float) -> tuple[Array, Array]:
    """Log V of each tick, and the tick at which each run crossed (or -1); a sample is judged again by the
    real code.
    """
    path, final, peak = judge(spec, columns)
    crossed = np.nonzero(peak >= threshold)[0]
    for run in {*range(min(2, path.shape[1])), *crossed[:REPLAYED].tolist()}:
        log_v, max_log_v = replayed(spec, columns, run)
        if abs(log_v - final[run]) > AGREE or abs(max_log_v - peak[run]) > AGREE:
            raise Disagreement(f"run {run}: {log_v} is not {final[run]}, or {max_log_v} is not {peak[run]}")
    over = path >= threshold
    return path, np.where(over.any(axis=0), over.argmax(axis=0), -1)


def null_rows(scenario: Scenario, runs: int, seed: int) -> list[Row]:
    """False rollbacks of one scenario, by metric and for the whole rollout, beside the customary tests."""
    unit = Unit.CALLER if scenario.callers else Unit.REQUEST
    rng = np.random.default_rng([seed, *scenario.name.encode()])
    specs = {
        "errors": sequential.fail_spec(unit=unit),
        "slow": sequential.fail_spec(unit=unit),
        "share": sequential.mismatch_spec(tolerance=1.0),
    }
    limit = sequential.log_threshold(ALPHA)
    rows = {name: Row(scenario=scenario.name, judge=f"{name}, by {unit}", limit=ALPHA) for name in specs}
    rows["share"].judge = "share of the arms"
    whole = Row(scenario=scenario.name, judge="whole rollout (all three, one alpha)", limit=ALPHA)
    wrong = Row(scenario=scenario.name, judge="errors, by request (wrong unit)", limit=None)
    z_test = Row(scenario=scenario.name, judge="z-test each minute, 1 %", limit=None)
    fixed = Row(scenario=scenario.name, judge="above 1 % in 4 minutes", limit=None)
    ranks = Row(scenario=scenario.name, judge="Mann-Whitney on p95 each minute, 1 %", limit=None)
    for size in _chunks(runs):
        world = _world(scenario, size, rng)
        combined = np.full((TICKS, size), -np.inf)
        for name, spec in specs.items():
            columns = world.columns(name, Unit.CALLER if name == "share" else unit)
            path, at = _judged(spec, columns, limit)
            rows[name].add(at, TICK_S)
            combined = np.maximum(combined, path + math.log(OMEGA[name]))
        whole.add(first_step(combined >= limit), TICK_S)
        if unit is Unit.CALLER:
            per_request = world.columns("errors", Unit.REQUEST)
            wrong.add(_judged(sequential.fail_spec(unit=Unit.REQUEST), per_request, limit)[1], TICK_S)
        else:
            ranks.add(mann_whitney_fires(world, scenario, rng), 60)
        z_test.add(z_test_fires(world), 60)
        fixed.add(threshold_fires(world), 60)
    return [row for row in (*rows.values(), whole, wrong, z_test, fixed, ranks) if row.runs]


def bound_rows(runs: int, seed: int) -> list[Row]:
    """The absolute bound, at its worst: a candidate that fails exactly at the bound, judged both ways."""
    rows = []
    for bound, trials_per_tick in ((0.01, 20.0), (0.05, 20.0), (0.01, 1.0)):
        rng = np.random.default_rng([seed, int(bound * 1e6), int(trials_per_tick)])
        name = f"fails at the bound {bound:.0%}, {trials_per_tick:g} trials a tick"
        alarm = Row(scenario=name, judge="false alarm of the bound", limit=ALPHA)
        proof = Row(scenario=name, judge="false proof of the bound", limit=BETA)
        for size in _chunks(runs):
            n = rng.poisson(trials_per_tick, (TICKS, size))
            columns = [n, rng.binomial(n, bound)]
            for row, spec in (
                (alarm, sequential.rate_fail_spec(bound=bound)),
                (proof, sequential.rate_pass_spec(bound=bound)),
            ):
                row.add(_judged(spec, columns, sequential.log_threshold(row.limit or ALPHA))[1], TICK_S)
        rows += [alarm, proof]
    return rows


def power_rows(runs: int, seed: int) -> list[Row]:
    """Bad candidates: how many are seen within the hour, and when; seconds count from the beginning of the
    fault.
    """
    bad = [
        Scenario(name=f"{kind} x{effect:g}", effect=effect, callers=callers, error_rate=rate)
        for kind, callers, rate in (("requests 0.5 %", 0, 0.005), ("2000 callers 0.5 %", 2_000, 0.005))
        for effect in (1.5, 2.0, 4.0, 10.0)
    ]
    bad += [
        Scenario(name=f"requests 0.05 % x{effect:g}", effect=effect, error_rate=0.0005)
        for effect in (4.0, 10.0)
    ]
    bad += [Scenario(name="requests 0.5 %, 1 a second, x4", effect=4.0, requests_per_s=1.0)]
    bad += [Scenario(name="requests 0.5 % x4 from 2000 s on", effect=4.0, effect_from=200)]
    rows: list[Row] = []
    for scenario in bad:
        rng = np.random.default_rng([seed, *scenario.name.encode()])
        unit = Unit.CALLER if scenario.callers else Unit.REQUEST
        spec = sequential.fail_spec(unit=unit)
        ours = Row(
            scenario=scenario.name,
            judge=f"errors, by {unit}",
            limit=None,
            forecast_s=_expected(scenario, spec),
        )
        slow = Row(scenario=scenario.name, judge=f"slow (5 %), by {unit}", limit=None)
        others = {
            "z-test each minute, 1 %": z_test_fires,
            "above 1 % in 4 minutes": threshold_fires,
        }
        theirs = {name: Row(scenario=scenario.name, judge=name, limit=None) for name in others}
        for size in _chunks(runs):
            world = _world(scenario, size, rng)
            threshold = sequential.log_threshold(ALPHA)
            ours.add(
                _since(_judged(spec, world.columns("errors", unit), threshold)[1], scenario.effect_from),
                TICK_S,
            )
            if unit is Unit.REQUEST and scenario.error_rate == 0.005:
                slow.add(
                    _since(_judged(spec, world.columns("slow", unit), threshold)[1], scenario.effect_from),
                    TICK_S,
                )
            for name, fires in others.items():
                theirs[name].add(_since(fires(world), scenario.effect_from // 6), 60)
        rows += [row for row in (ours, slow, *theirs.values()) if row.runs]
    return rows


def _since(at: Array, start: int) -> Array:
    """Steps since the fault began; one that fired before it did so by mistake and counts as never."""
    return np.where(at >= start, at - start, -1)


def _expected(scenario: Scenario, spec: EProcessSpec) -> float | None:
    """What the product's own forecast says, from the beginning of the fault on; by callers it would need to
    know how soon callers return.
    """
    if scenario.callers:
        return None
    ends = [start for start, _ in scenario.steps[1:]] + [TICKS]
    steps = [
        forecast.Step(weight_ppm=ppm, lasts_s=float(TICK_S * (end - max(start, scenario.effect_from))))
        for (start, ppm), end in zip(scenario.steps, ends, strict=True)
        if end > scenario.effect_from
    ]
    return forecast.forecast(
        spec,
        odds_ratio=scenario.effect,
        base_rate=scenario.error_rate,
        traffic_per_s=scenario.requests_per_s,
        steps=steps,
        alpha=ALPHA,
    ).detect_s


# --------------------------------------------------------------------------- the command


def show(rows: Sequence[Row], *, power: bool) -> None:
    """Print one table in Markdown."""
    if power:
        print("| candidate | judge | seen in the hour | median | forecast |\n|---|---|---:|---:|---:|")
    else:
        print("| healthy candidates | judge | false | rate | 99 % upper bound | promise |")
        print("|---|---|---:|---:|---:|---|")
    for row in rows:
        rate = row.fired / row.runs
        if power:
            median = f"{np.median(row.seconds):.0f} s" if row.seconds and rate >= 0.5 else "-"
            expected = "-" if row.forecast_s is None else f"{row.forecast_s:.0f} s"
            print(f"| {row.scenario} | {row.judge} | {rate:.0%} | {median} | {expected} |")
        else:
            kept = "" if row.limit is None else f"{'BROKEN' if row.broken else 'kept'}: {row.limit:.0%}"
            counted = f"{row.fired} of {row.runs} | {rate:.2%} | {row.upper:.2%}"
            print(f"| {row.scenario} | {row.judge} | {counted} | {kept} |")
    print()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the simulations and print their tables; 1 when a promise is broken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=PROOF_RUNS, help="null rollouts per scenario")
    parser.add_argument("--power-runs", type=int, default=1_000, help="bad rollouts per scenario")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_RUNS} null rollouts, 200 bad ones")
    parser.add_argument("--only", action="append", help="null scenarios by name; leaves the other tables out")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    options = parser.parse_args(argv)
    runs = QUICK_RUNS if options.quick else options.runs
    power_runs = 200 if options.quick else options.power_runs
    started = time.perf_counter()
    nulls: list[Row] = []
    for scenario in NULLS:
        if options.only is None or scenario.name in options.only:
            nulls += null_rows(scenario, runs, options.seed)
    if options.only is None:
        nulls += bound_rows(runs, options.seed)
    power = power_rows(power_runs, options.seed) if options.only is None else []
    took_s = time.perf_counter() - started
    broken = [row for row in nulls if row.broken]
    if options.json:
        document = {
            "seed": options.seed,
            "runs": runs,
            "power_runs": power_runs,
            "alpha": ALPHA,
            "took_s": round(took_s, 1),
            "null": [row.as_json() for row in nulls],
            "power": [row.as_json() for row in power],
        }
        print(json.dumps(document, indent=1))
    else:
        show(nulls, power=False)
        if power:
            show(power, power=True)
        print(f"{runs} null and {power_runs} bad rollouts per line, seed {options.seed}, {took_s:.0f} s; "
              f"{len(broken)} promises broken.")  # fmt: skip
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
