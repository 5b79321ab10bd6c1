"""How often a healthy rollout is taken back, and how soon a bad one: simulated rollouts, judged as the
product does.

    python -m bench.rollout_statistics --runs 10000 --seed 1

simulates an hour of ticks of ten seconds, many times over, in each scenario and for each kind of evidence:
candidates that are exactly as good as stable (false rollbacks, with a 99 % upper bound by Clopper and
Pearson), then bad ones (share seen, median time, and whom it cost). Fixed limits, repeated z-tests and Mann
and Whitney's test judge the same data. It leaves with 1 when a bound that the product promises does not
hold. It measures no speed and starts no server.

The judge is `core.sequential`. Because ten thousand hours are a lot of ticks, `bench.sequential_twin` repeats
its recursion for many runs at once; each table replays a sample of its runs, and those that were taken back,
through the real code and stops if they differ by more than 1e-9 (the tests do the same on random logs).
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from bench import rollout_rivals as rivals
from bench.rollout_rows import PROOF_RUNS, Row, show_nulls, show_power
from bench.rollout_worlds import (
    BETA,
    NULLS,
    PAIR_NULLS,
    PAIR_REPEATS,
    TICK_S,
    TICKS,
    Pairs,
    PairScenario,
    Scenario,
    World,
    pairs_world,
    world,
)
from bench.sequential_twin import Array, judge, judge_bands, replayed, replayed_bands
from modelkeep.core import forecast, sequential, shift
from modelkeep.core.mixing import log_threshold
from modelkeep.core.sequential import EProcessSpec, RateSpec, Unit

ALPHA = 0.01
OMEGA = {"errors": 0.4, "slow": 0.3, "quality": 0.2, "share": 0.1}
"""How a whole rollout shares its alpha; one without labels leaves the share of quality unspent."""
CHUNK = 500
"""Runs simulated together: the arrays of one chunk fit the processor's cache."""
AGREE = 1e-9
"""How far the vectorised twin may be from the real code in log V."""
REPLAYED = 6
"""Runs of each chunk taken back that the real code judges again, beside one other."""
QUICK_RUNS = 300
SUBSET = (
    "requests alike",
    "all of it: 20 bad, day and night, ramp",
    "shadow, all of it: 20 odd callers, day and night",
)
"""The tables of healthy candidates of the long test."""
EFFECTS = (1.5, 2.0, 4.0, 10.0)
SHIFTED = tuple(each for each in NULLS if each.name.startswith("all of it"))
"""Where predictions are compared: ten bands both ways cost ten times as much as errors."""
MCNEMAR_PPM = sequential.WHOLE_PPM // 2
"""An odd pair lies on either side with this chance where the versions are alike."""
SLOW_ODD = {"odd_rate": 0.02, "both_rate": 0.03}
"""Of pairs: 5 % slow on either version, three fifths of them on both."""
Z_NAME = "z-test each minute, 1 %"
FIRST = "false proof of less than twice, by first requests"
WRONG_NAME = "errors, by request (wrong unit)"
WRONG_UNIT_RUNS = 2_000
"""Runs of what is slow and promises nothing."""
RANKS_NAME = "Mann-Whitney on p95 each minute, 1 %"


class Disagreement(Exception):
    """The vectorised twin and the real code differ: no number of this run may be used."""


def _chunks(runs: int) -> Iterable[int]:
    for start in range(0, runs, CHUNK):
        yield min(CHUNK, runs - start)


def _rng(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, *name.encode()])


def _path(spec: EProcessSpec | RateSpec, columns: Sequence[Array], threshold: float) -> Array:
    """Log V of each run by tick; a sample is judged again by the real code."""
    path, final, peak = judge(spec, columns)
    crossed = np.nonzero(peak >= threshold)[0]
    for run in {0, *crossed[:REPLAYED].tolist()}:
        log_v, max_log_v = replayed(spec, columns, run)
        if abs(log_v - final[run]) > AGREE or abs(max_log_v - peak[run]) > AGREE:
            raise Disagreement(f"run {run}: {log_v} is not {final[run]}, or {max_log_v} is not {peak[run]}")
    parts = len(path) // TICKS
    return path.reshape(TICKS, parts, -1).max(axis=1) if parts > 1 else path


def _crossed(spec: EProcessSpec | RateSpec, columns: Sequence[Array], alpha: float = ALPHA) -> Array:
    """The tick at which each run crossed 1/alpha, or -1."""
    threshold = log_threshold(alpha)
    return rivals.first_step(_path(spec, columns, threshold) >= threshold)


def _specs(unit: Unit, *, labels: bool) -> dict[str, EProcessSpec]:
    """The tests of a rollout at the edge of their hypothesis: no margin, no tolerance."""
    guard = sequential.fail_spec(unit=unit)
    specs = {"errors": guard, "slow": guard, "share": sequential.mismatch_spec(tolerance=1.0)}
    return specs | {"quality": guard} if labels else specs


def _judge_names(unit: Unit) -> dict[str, str]:
    return {
        "errors": f"errors, by {unit}",
        "slow": f"slow, by {unit}",
        "quality": "wrong labels, by caller",
        "share": "share of the arms",
    }


# --------------------------------------------------------------------------- healthy candidates


def null_rows(scenario: Scenario, runs: int, seed: int) -> list[Row]:
    """False rollbacks of one scenario, by metric and for the whole rollout, beside the customary rules."""
    unit = Unit.CALLER if scenario.callers else Unit.REQUEST
    rng = _rng(seed, scenario.name)
    specs = _specs(unit, labels=scenario.labels)
    limit = log_threshold(ALPHA)
    rows: dict[tuple[str, str], Row] = {}

    def row(kind: str, judge_name: str, promise: float | None = None) -> Row:
        known = rows.get((kind, judge_name))
        if known is None:
            known = Row(kind=kind, scenario=scenario.name, judge=judge_name, limit=promise)
            rows[kind, judge_name] = known
        return known

    for size in _chunks(runs):
        drawn = world(scenario, size, rng)
        taken_back = np.zeros((TICKS, size), dtype=bool)
        for name, spec in specs.items():
            columns = drawn.columns(name, Unit.CALLER if name == "share" else unit)
            path = _path(spec, columns, limit)
            row(name, _judge_names(unit)[name], ALPHA).add(rivals.first_step(path >= limit), TICK_S)
            taken_back |= path >= limit - math.log(OMEGA[name])
        row("whole", "whole rollout (all metrics, one alpha)", ALPHA).add(
            rivals.first_step(taken_back), TICK_S
        )
        if unit is Unit.CALLER and row("errors", WRONG_NAME).runs < WRONG_UNIT_RUNS:
            per_request = sequential.fail_spec(unit=Unit.REQUEST)
            at = _crossed(per_request, drawn.columns("errors", Unit.REQUEST))
            row("errors", WRONG_NAME).add(at, TICK_S)
        for (kind, judge_name), at in _rival_hits(drawn, scenario, rng).items():
            row(kind, judge_name).add(at, 60)
    return list(rows.values())


def _rival_hits(drawn: World, scenario: Scenario, rng: np.random.Generator) -> dict[tuple[str, str], Array]:
    """The minute (or -1) at which each of the other rules took each run back."""
    hits = {}
    for name in drawn.totals:
        hits[name, Z_NAME] = rivals.z_fires(drawn, name)
        if name != "slow":
            hits[name, rivals.FIXED[name]] = rivals.limit_fires(drawn, name)
    if "slow" in drawn.totals:
        ranks, fixed = rivals.p95_fires(drawn, scenario, rng)
        hits["slow", RANKS_NAME], hits["slow", rivals.FIXED["slow"]] = ranks, fixed
    hits["share", Z_NAME] = rivals.share_z_fires(drawn)
    hits["share", rivals.FIXED["share"]] = rivals.share_limit_fires(drawn)
    return hits


def pair_rows(scenario: PairScenario, runs: int, seed: int, *, promised: bool = True) -> list[Row]:
    """False rollbacks of a shadow, by the pairs of which one failed and those of which one was slow."""
    rows = []
    spec = sequential.fail_spec()
    for kind in ("shadow errors", "shadow latency"):
        slow = kind == "shadow latency"
        asked = _slow(scenario) if slow else scenario
        rng = _rng(seed, kind + scenario.name)
        ours = Row(
            kind=kind, scenario=scenario.name, judge=f"{kind}, by pair", limit=ALPHA if promised else None
        )
        by_caller = Row(kind=kind, scenario=scenario.name, judge=f"{kind}, by caller", limit=None)
        theirs: dict[str, Row] = {}
        for size in _chunks(runs):
            drawn = pairs_world(asked, size, rng)
            ours.add(_crossed(spec, _pair_columns(drawn.shadow, drawn.stable)), TICK_S)
            by_caller.add(_crossed(spec, _pair_columns(*drawn.first)), TICK_S)
            for name, at in _pair_hits(drawn, kind, rng).items():
                theirs.setdefault(name, Row(kind=kind, scenario=scenario.name, judge=name, limit=None)).add(
                    at, 60
                )
        rows += [ours, by_caller, *theirs.values()]
    return rows


def _slow(scenario: PairScenario) -> PairScenario:
    return PairScenario(
        name=scenario.name, diurnal=scenario.diurnal, odd_callers=scenario.odd_callers,
        repeats=scenario.repeats, effect=scenario.effect, **SLOW_ODD,
    )  # fmt: skip


def _pair_columns(shadow: Array, stable: Array) -> list[Array]:
    return [shadow, stable, np.full(shadow.shape, MCNEMAR_PPM)]


def _pair_hits(drawn: Pairs, kind: str, rng: np.random.Generator) -> dict[str, Array]:
    hits = {Z_NAME: rivals.mcnemar_fires(drawn)}
    if kind == "shadow latency":
        slow_rate = SLOW_ODD["odd_rate"] + SLOW_ODD["both_rate"]
        hits[RANKS_NAME], hits[rivals.FIXED[kind]] = rivals.pair_p95_fires(drawn, slow_rate, rng)
    else:
        hits[rivals.FIXED[kind]] = rivals.pair_limit_fires(drawn)
    return hits


def shift_rows(scenario: Scenario, runs: int, seed: int) -> list[Row]:
    """False rollbacks of a candidate that predicts as stable does: callers by the band of their first
    prediction, which is one of ten whatever the side."""
    spec = shift.shift_spec(1.0)
    limit = log_threshold(ALPHA)
    rng = _rng(seed, "shift " + scenario.name)
    row = Row(kind="shift", scenario=scenario.name, judge="predictions, by caller", limit=ALPHA)
    for size in _chunks(runs):
        drawn = world(scenario, size, rng)
        x, y = (rng.multinomial(side, [1 / shift.BANDS] * shift.BANDS) for side in drawn.first["share"])
        path, final, peak = judge_bands(spec, x, y, drawn.weight_ppm)
        for run in {0, *np.nonzero(peak >= limit)[0][:1].tolist()}:
            log_v, max_log_v = replayed_bands(spec, x, y, drawn.weight_ppm, run)
            if abs(log_v - final[run]) > AGREE or abs(max_log_v - peak[run]) > AGREE:
                raise Disagreement(f"run {run}: {log_v} is not {final[run]}")
        row.add(rivals.first_step(path >= limit), TICK_S)
    return [row]


def bound_rows(runs: int, seed: int) -> list[Row]:
    """The absolute bound, at its worst: a candidate that fails exactly at the bound, judged both ways."""
    rows = []
    for bound, trials_per_tick in ((0.01, 20.0), (0.05, 20.0), (0.01, 1.0)):
        rng = np.random.default_rng([seed, int(bound * 1e6), int(trials_per_tick)])
        name = f"fails at the bound {bound:.0%}, {trials_per_tick:g} trials a tick"
        alarm = Row(kind="bound", scenario=name, judge="false alarm of the bound", limit=ALPHA)
        proof = Row(kind="bound", scenario=name, judge="false proof of the bound", limit=BETA)
        for size in _chunks(runs):
            n = rng.poisson(trials_per_tick, (TICKS, size))
            columns = [n, rng.binomial(n, bound)]
            alarm.add(_crossed(sequential.rate_fail_spec(bound=bound), columns), TICK_S)
            proof.add(_crossed(sequential.rate_pass_spec(bound=bound), columns, BETA), TICK_S)
        rows += [alarm, proof]
    return rows


def proof_rows(runs: int, seed: int) -> list[Row]:
    """The proof that the candidate fails less than twice as often, at its worst: one that fails exactly twice
    as often. Callers whose first failures are counted wear out, on the worse side first; first requests do
    not.
    """
    spec = sequential.pass_spec(bound=2.0)
    name = "2000 callers who come again, 2 % x2"
    scenario = Scenario(name=name, callers=2_000, error_rate=0.02, effect=2.0, labels=True)
    rng = _rng(seed, scenario.name)
    rows = {
        name: Row(kind="proof", scenario=scenario.name, judge=name, limit=BETA if name == FIRST else None)
        for name in (FIRST, "by first failures (wrong)", "by first wrong labels, 5 % x2 (wrong)")
    }
    more = Row(kind="proof", scenario="50 new callers a tick, 2 % x2", judge=FIRST, limit=BETA)
    first, failures, labelled = rows.values()
    for size in _chunks(runs):
        if failures.runs < WRONG_UNIT_RUNS:
            drawn = world(scenario, size, rng)
            failures.add(_crossed(spec, drawn.columns("errors", Unit.CALLER), BETA), TICK_S)
            labelled.add(_crossed(spec, drawn.labels, BETA), TICK_S)
            come = drawn.first["share"]
            at_once = [rng.binomial(n, rate) for n, rate in zip(come, (0.04, 0.02), strict=True)]
            first.add(_crossed(spec, [*at_once, drawn.weight_ppm], BETA), TICK_S)
        w = scenario.weights()[:, None] / sequential.WHOLE_PPM
        failed = [rng.poisson(50 * w * 0.04, (TICKS, size)), rng.poisson(50 * (1 - w) * 0.02, (TICKS, size))]
        weight_ppm = np.repeat(scenario.weights()[:, None], size, axis=1)
        more.add(_crossed(spec, [*failed, weight_ppm], BETA), TICK_S)
    return [first, failures, labelled, more]


# --------------------------------------------------------------------------- bad candidates

BAD = (
    *(Scenario(name=f"requests 0.5 % x{by:g}", effect=by) for by in EFFECTS),
    *(Scenario(name=f"requests 0.05 % x{by:g}", effect=by, error_rate=0.0005) for by in (4.0, 10.0)),
    Scenario(name="requests 0.5 %, 1 a second, x4", effect=4.0, requests_per_s=1.0),
    Scenario(name="requests 0.5 % x4 from 2000 s on", effect=4.0, effect_from=200),
    *(Scenario(name=f"2000 callers x{by:g}", effect=by, callers=2_000, labels=True) for by in EFFECTS),
)  # fmt: skip
"""Candidates that are worse: in the share of requests with an error, slow, and with a wrong prediction."""


def power_rows(runs: int, seed: int) -> list[Row]:
    """Bad candidates: how many are seen within the hour, when, and whom they met until then; seconds count
    from the beginning of the fault.
    """
    return [row for scenario in BAD for row in _scenario_power(scenario, runs, seed)] + [
        row for effect in EFFECTS for row in _pair_power(effect, runs, seed)
    ]


def _scenario_power(scenario: Scenario, runs: int, seed: int) -> list[Row]:
    rng = _rng(seed, scenario.name)
    unit = Unit.CALLER if scenario.callers else Unit.REQUEST
    specs = _specs(unit, labels=scenario.labels)
    specs.pop("share")
    if scenario.error_rate < 0.005:
        specs.pop("slow")
    rows: dict[tuple[str, str], Row] = {}

    def row(kind: str, judge_name: str) -> Row:
        return rows.setdefault(
            (kind, judge_name), Row(kind=kind, scenario=scenario.name, judge=judge_name, limit=None)
        )

    for size in _chunks(runs):
        drawn = world(scenario, size, rng, exposed=True)
        requests = np.cumsum(drawn.n1, axis=0)
        callers = np.cumsum(drawn.exposed if drawn.exposed is not None else drawn.n1, axis=0)

        def add(to: Row, at: Array, every: int, requests: Array = requests, callers: Array = callers) -> None:
            begin = scenario.effect_from // every
            # One that fired before the fault began did so by mistake and counts as never.
            hits = np.nonzero(at >= begin)[0]
            tick = at[hits] * every + every - 1
            to.add(np.where(at >= begin, at - begin, -1), every * TICK_S)
            to.requests += requests[tick, hits].tolist()
            to.callers += callers[tick, hits].tolist()

        for name, spec in specs.items():
            add(row(name, _judge_names(unit)[name]), _crossed(spec, drawn.columns(name, unit)), 1)
        for (kind, judge_name), at in _rival_hits(drawn, scenario, rng).items():
            if kind in specs:
                add(row(kind, judge_name), at, 6)
    if unit is Unit.REQUEST:
        rows["errors", _judge_names(unit)["errors"]].forecast_s = _expected(scenario, specs["errors"])
    return list(rows.values())


def _pair_power(effect: float, runs: int, seed: int) -> list[Row]:
    scenario = PairScenario(name=f"odd pairs of the shadow x{effect:g}", effect=effect)
    rng = _rng(seed, scenario.name)
    ours = Row(kind="shadow errors", scenario=scenario.name, judge="shadow errors, by pair", limit=None)
    theirs = {
        name: Row(kind="shadow errors", scenario=scenario.name, judge=name, limit=None)
        for name in (Z_NAME, rivals.FIXED["shadow errors"])
    }
    for size in _chunks(runs):
        drawn = pairs_world(scenario, size, rng)
        pairs = np.cumsum(drawn.n, axis=0)
        at = _crossed(sequential.fail_spec(), _pair_columns(drawn.shadow, drawn.stable))
        found: list[tuple[Row, Array, int]] = [(ours, at, 1)]
        found += [(theirs[name], hits, 6) for name, hits in _pair_hits(drawn, "shadow errors", rng).items()]
        for row, at, every in found:
            row.add(at, every * TICK_S)
            runs_hit = np.nonzero(at >= 0)[0]
            row.requests += pairs[at[runs_hit] * every + every - 1, runs_hit].tolist()
    return [ours, *theirs.values()]


def _expected(scenario: Scenario, spec: EProcessSpec) -> float | None:
    """What the product's own forecast says, from the beginning of the fault on; by callers it would need to
    know how soon callers return.
    """
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


def nulls(runs: int, seed: int, only: Sequence[str] | None = None) -> list[Row]:
    """All tables of healthy candidates, or the scenarios that are named."""
    parts: list[tuple[str, Callable[[], list[Row]]]] = [
        *((each.name, lambda each=each: null_rows(each, runs, seed)) for each in NULLS),
        *((f"shadow, {each.name}", lambda each=each: pair_rows(each, runs, seed)) for each in PAIR_NULLS),
        (f"shadow, {PAIR_REPEATS.name}", lambda: pair_rows(PAIR_REPEATS, runs, seed, promised=False)),
        *((f"predictions, {each.name}", lambda each=each: shift_rows(each, runs, seed)) for each in SHIFTED),
        ("at the bound", lambda: bound_rows(runs, seed)),
        ("twice as bad", lambda: proof_rows(runs, seed)),
    ]  # fmt: skip
    return [row for name, rows in parts if only is None or name in only for row in rows()]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the simulations and print their tables; 1 when a promise is broken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=PROOF_RUNS, help="null rollouts per scenario")
    parser.add_argument("--power-runs", type=int, default=1_000, help="bad rollouts per scenario")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_RUNS} null rollouts, 100 bad ones")
    parser.add_argument("--only", action="append", help="null scenarios by name; leaves the other tables out")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    options = parser.parse_args(argv)
    runs = QUICK_RUNS if options.quick else options.runs
    power_runs = 100 if options.quick else options.power_runs
    started = time.perf_counter()
    healthy = nulls(runs, options.seed, options.only)
    power = power_rows(power_runs, options.seed) if options.only is None else []
    took_s = time.perf_counter() - started
    broken = [row for row in healthy if row.broken]
    if options.json:
        document = {
            "seed": options.seed,
            "runs": runs,
            "power_runs": power_runs,
            "alpha": ALPHA,
            "took_s": round(took_s, 1),
            "null": [row.as_json() for row in healthy],
            "power": [row.as_json() for row in power],
        }
        print(json.dumps(document, indent=1))
    else:
        show_nulls(healthy)
        show_power(power)
        print(f"{runs} null and {power_runs} bad rollouts per line, seed {options.seed}, {took_s:.0f} s; "
              f"{len(broken)} promises broken.")  # fmt: skip
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
