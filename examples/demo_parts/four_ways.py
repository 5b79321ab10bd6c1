"""The demo's second act: the four strategies side by side, each on an endpoint of its own, all under real
traffic: canary, blue-green, shadow, and an A/B test. What each has to show is checked when all have ended.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from demo_parts.house import House
from demo_parts.premises import Traffic
from demo_parts.watching import Act, Board, Lane
from modelkeep.core.rollout import Rollout, RolloutState, report
from modelkeep.core.winner import Winner

RATES = {"newark": 40, "kennedy": 40, "laguardia": 30}
"""Questions a second at the three airports' own endpoints."""
ROWS_MAX = 6_000
"""Flights that they ask about, over and over."""
AIRPORTS = {
    "newark": ("baseline", "boosted"),
    "kennedy": ("baseline", "boosted"),
    "laguardia": ("hasty", "wide"),
}
"""What each has live, and what it wants next."""
POLICY = """\
schema: modelkeep.policy/v1
name: {name}
stages:
  production:
    gates:
      - {{gate: files_verified}}
      - {{gate: signature}}
    rollout:
      strategy: {strategy}
"""
PLANS = {
    "newark": ("blue_green", "automatic: false", "steps: [{weight_ppm: 1000000, min_s: 8}]"),
    "kennedy": ("shadow", "shadow_ppm: 1000000", "shadow_s: 12"),
    "laguardia": (
        "ab_test",
        "steps: [{weight_ppm: 500000, min_s: 90}]",
        "goal: errors",
        "alpha: 0.05",
        "promote_winner: true",
    ),
}
"""The way of each, and what makes it its own."""
CREATE = "modelkeep endpoint create {0} --model {0} --key-header x-user-id --slow-ms 1000"
PROMOTE = "modelkeep promote {} --to production -m '{}'"


def airports(house: House) -> None:
    """Three more endpoints, each with a version that serves and callers of its own."""
    tell, shell = house.story, house.shell
    tell.chapter(
        "Three airports with apps of their own",
        "Newark and Kennedy have the first model live, LaGuardia the hasty one. Each wants a better one, and "
        "each another way, which stands in its policy.",
    )
    for airport, (strategy, *details) in PLANS.items():
        text = POLICY.format(name=airport, strategy=strategy) + "".join(f"      {line}\n" for line in details)
        house.written(f"{airport}.yaml", text, lines_from=3)
    shell.type_together(
        [
            [
                *((house.ana, f"modelkeep register models/{name} --name {airport}") for name in variants),
                (house.admin, f"modelkeep policy set {airport} --file {airport}.yaml"),
                (house.ben, CREATE.format(airport)),
                (house.ben, PROMOTE.format(f"{airport}:1.0.0", "the first one")),
            ]
            for airport, variants in AIRPORTS.items()
        ]
    )
    for airport in AIRPORTS:
        first = house.rollout(airport)
        house.up.until(lambda first=first: house.finished(first.id), f"{airport} was served")
    stages = {airport: house.stage(airport) for airport in AIRPORTS}
    tell.claim("all three answer", set(stages.values()) == {"1.0.0"}, stages)


def side_by_side(house: House) -> None:
    """All four begin together, are watched together, and show what each is for."""
    tell = house.story
    tell.chapter(
        "Four ways into production, side by side",
        "A canary moves the airline's callers in steps, each with a proof. Newark looks first and switches "
        "all at once. Kennedy's new model gets copies and answers nobody. LaGuardia lets half of its callers "
        "decide, and looks at the result whenever it likes. Callers stick to their version.",
    )
    callers = {
        airport: Traffic(house.premises, airport, house.address(airport), house.rows, rate, ROWS_MAX)
        for airport, rate in RATES.items()
    }
    before = house.traffic.seen()
    house.shell.type_together(
        [
            [(house.ben, PROMOTE.format("flights:2.1.0", "AUC 0.747"))],
            [(house.ben, PROMOTE.format("newark:2.0.0", "trees"))],
            [(house.ben, PROMOTE.format("kennedy:2.0.0", "the same?"))],
            [(house.ben, PROMOTE.format("laguardia:1.1.0", "fewer errors?"))],
        ]
    )
    ways = {"flights": "canary", "newark": "blue-green", "kennedy": "shadow", "laguardia": "A/B test"}
    lanes = [
        Lane(endpoint, way, house.rollout(endpoint).id, callers.get(endpoint, house.traffic))
        for endpoint, way in ways.items()
    ]
    ended = Board(tell, house.registry, lanes).watch(
        {
            "newark": Act(_stands, lambda: _look_and_switch(house)),
            "laguardia": Act(_decided, lambda: _end_the_test(house)),
        }
    )
    house.let_traffic_run(1.0)
    house.wide_was_live = datetime.now(UTC)
    seen = {airport: traffic.end() for airport, traffic in callers.items()}
    _canary(house, ended["flights"], before)
    _blue_green(house, ended["newark"], seen["newark"])
    _shadow(house, ended["kennedy"], seen["kennedy"])
    _ab_test(house, ended["laguardia"], seen["laguardia"])
    explained = {endpoint: house.registry.explain_rollout(rollout.id) for endpoint, rollout in ended.items()}
    tell.claim(
        "all four verdicts recomputed from the stored counts: the same to the last bit",
        all(found.equal for found in explained.values()),
        explained,
    )


def _stands(rollout: Rollout) -> bool:
    """Whether the candidate can be asked at its preview address."""
    return rollout.state is RolloutState.PREVIEWING and rollout.step_since is not None


def _decided(rollout: Rollout) -> bool:
    """Whether the test would name a winner now. To look all the time costs nothing of its confidence."""
    return rollout.state is RolloutState.STEPPING and report(rollout).winner is not Winner.NOBODY


def _end_the_test(house: House) -> None:
    house.shell.type(house.ben, "modelkeep rollout advance laguardia -m 'it is decided'", quiet=True)


def _look_and_switch(house: House) -> None:
    """Newark's candidate is loaded beside the one that serves: ask it, and switch."""
    with house.rows.open() as rows:
        question = json.loads(next(rows))["inputs"]
    (house.premises.folder / "question.json").write_text(json.dumps([question]))
    house.shell.type(house.ben, "modelkeep predict newark --preview --input question.json", lines_max=6)
    shown = house.answered_by(house.address("newark", preview=True))
    met = house.answered_by(house.address("newark"))
    house.story.claim(
        f"blue-green: {shown} answers at the preview address, and {met} everywhere else",
        (shown, met) == ("newark:2.0.0", "newark:1.0.0"),
        (shown, met),
    )
    house.shell.type(house.ben, "modelkeep rollout advance newark -m 'looks right'", quiet=True)


def _canary(house: House, rollout: Rollout, before: Mapping[str, Any]) -> None:
    """The airline's endpoint."""
    tell = house.story
    after = house.traffic.seen()
    tell.claim("the canary succeeded", rollout.state is RolloutState.SUCCEEDED, rollout.outcome)
    stage = house.stage()
    tell.claim("and only now the stage moved: 2.1.0 is in production", stage == "2.1.0", stage)
    tell.claim(
        f"{after['answered'] - before['answered']:,} answers meanwhile, and not one failed",
        after["failed"] == before["failed"],
        after,
    )
    tell.claim("no caller was sent back and forth", after["moved_back"] == 0, after["moved_back"])
    house.shell.type(house.ben, "modelkeep gate flights:2.0.0 --to production --explain", code=3)
    tell.claim("a version that is worse than the one that is live is refused, and told why", True)


def _blue_green(house: House, rollout: Rollout, seen: Mapping[str, Any]) -> None:
    """Newark."""
    house.story.claim(
        f"blue-green: one switch, {seen['answered']:,} answers before and after it, none failed, nobody was "
        "sent back; the former version stayed loaded until it was over",
        rollout.state is RolloutState.SUCCEEDED
        and house.stage("newark") == "2.0.0"
        and set(seen["versions"]) == {"newark:1.0.0", "newark:2.0.0"}
        and (seen["failed"], seen["moved_back"]) == (0, 0),
        (rollout.outcome, seen),
    )


def _shadow(house: House, rollout: Rollout, seen: Mapping[str, Any]) -> None:
    """Kennedy."""
    pairs = rollout.pairs
    assert pairs is not None, "a shadow that has concluded has compared something"
    house.story.claim(
        f"shadow: {pairs.compared:,} answers compared with what stable said to the same question, "
        f"{pairs.disagreements:,} of them differ, by {pairs.difference_sum / max(pairs.values, 1):.3f} on "
        f"average; its callers heard 1.0.0 alone, {seen['answered']:,} times, "
        f"and {seen['failed']} failed",
        rollout.state is RolloutState.CONCLUDED
        and pairs.compared > 0
        and pairs.disagreements > 0
        and set(seen["versions"]) == {"kennedy:1.0.0"}
        and seen["failed"] == 0
        and house.stage("kennedy") == "1.0.0",
        (rollout.state, rollout.outcome, seen),
    )


def _ab_test(house: House, rollout: Rollout, seen: Mapping[str, Any]) -> None:
    """LaGuardia."""
    report = rollout.report
    assert report is not None, "a test that has ended has a report"
    house.story.claim(
        f"A/B test: the winner is the {report.winner}, with confidence {report.confidence:.2%}. Of "
        f"{report.stable_callers} callers {_share(report.stable_rate)} met an error on the hasty build, of "
        f"{report.candidate_callers} on the other {_share(report.candidate_rate)}; so 1.1.0 took over",
        report.winner is Winner.CANDIDATE
        and rollout.state is RolloutState.SUCCEEDED
        and house.stage("laguardia") == "1.1.0"
        and seen["moved_back"] == 0,
        (rollout.state, rollout.outcome, report, seen),
    )


def _share(rate: float | None) -> str:
    return f"{rate or 0:.1%}"
