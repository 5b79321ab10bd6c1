"""How answers about moving traffic read: a rollout with its evidence, how an endpoint stands, and what the
gateways say. Endpoints by themselves and forecasts are drawn elsewhere."""

import io
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from modelkeep.cli import contest_views
from modelkeep.cli.catalog_views import View
from modelkeep.cli.endpoint_views import disagreement
from modelkeep.cli.plans import summary
from modelkeep.cli.show import Screen, Text, moment, number, share

if TYPE_CHECKING:
    from modelkeep.core.answers import Explanation, RolloutStatus
    from modelkeep.core.observation import BandCounts, PairCounts
    from modelkeep.core.rollout import Rollout

_STATES = {
    "succeeded": "good",
    "stepping": "warn",
    "preparing": "warn",
    "previewing": "warn",
    "shadowing": "warn",
    "concluded": "good",
    "rolling_back": "bad",
    "rolled_back": "bad",
    "failed": "bad",
}
_VERDICTS = {"advance": "good", "hold": "warn", "rollback": "bad"}
BAR_CELLS = 30


def _state(value: str) -> Text:
    return Text(value.replace("_", " "), _STATES.get(value, "dim"))


def rollouts(items: Sequence["Rollout"]) -> View:
    """A list of rollouts."""

    def draw(screen: Screen) -> None:
        screen.table(
            ("id", "endpoint", "from", "to", "state", "share", "started", "by", "outcome"),
            (
                (
                    r.id,
                    r.endpoint,
                    r.stable_semver,
                    f"{r.model}:{r.candidate_semver}",
                    _state(r.state.value),
                    share(r.weight_ppm),
                    moment(r.started_at),
                    r.started_by.name,
                    r.outcome or r.held,
                )
                for r in items
            ),
            right=(5,),
        )

    return draw


def rollout(found: "Rollout") -> View:
    """One rollout with its counts and its verdict."""

    def draw(screen: Screen) -> None:
        steps = len(found.plan.steps)
        step = f"step {found.step + 1} of {steps}, " if steps and not found.state.finished else ""
        tried_ppm = found.weight_ppm + sum(found.others_ppm)
        screen.facts(
            (
                ("rollout", Text(found.id, "strong")),
                ("of", f"{found.model}:{found.candidate_semver} over {found.stable_semver or 'nothing'}"),
                ("state", _state(found.state.value)),
                ("plan", summary(found.plan) + (f" ({found.note})" if found.note else "")),
                ("preview", _preview(found)),
                ("traffic", f"{_bar(tried_ppm)} {step}{contest_views.split(found)}"),
                ("paused", found.paused),
                ("waits", found.held),
                ("outcome", found.outcome),
                ("started", f"{moment(found.started_at)} by {found.started_by.name}: {found.reason}"),
                ("ended", moment(found.finished_at) if found.finished_at else None),
            )
        )
        _counts(screen, found)
        _evidence(screen, found)
        for note in found.notes:
            who = "one of the versions" if found.others else "the candidate"
            screen.line(Text(f"  {who} said: {note}", "bad"))

    return draw


def _counts(screen: Screen, found: "Rollout") -> None:
    """What the callers of each side met, once there are any."""
    sides = list(contest_views.sides(found))
    if not any(side.requests for _, side in sides):
        return
    screen.blank()
    screen.table(
        ("", "requests", "errors", "slow", "callers", "failing callers", "mean ms"),
        [
            (
                name,
                side.requests,
                side.errors,
                side.slow,
                side.new_callers,
                side.callers_first_error,
                _mean(side.duration_ms_sum, side.requests),
            )
            for name, side in sides
        ],
        right=range(1, 7),
    )


def _evidence(screen: Screen, found: "Rollout") -> None:
    """The verdict, and what besides the counts speaks for it or against it."""
    if found.judgement is not None:
        judgement = found.judgement
        screen.line(
            "verdict",
            Text(judgement.verdict.value, _VERDICTS[judgement.verdict.value]),
            f"(p = {judgement.p_value:.2g}): {judgement.why}",
        )
    if found.plan.strategy.value == "ab_test":
        contest_views.report(screen, found)
    if found.pairs is not None:
        _pairs(screen, found.pairs)
    if found.outputs is not None:
        _outputs(screen, found.outputs)
    if found.plan.quality is not None and found.candidate_counts.requests:
        _labels(screen, found)


def _pairs(screen: Screen, pairs: "PairCounts") -> None:
    """How a shadow's answers to copies compare with stable's."""
    count = pairs.pairs
    screen.blank()
    screen.table(
        ("of pairs", "alone failed", "alone slow", "mean ms"),
        [
            (
                "candidate",
                pairs.only_shadow_failed,
                pairs.only_shadow_slow,
                _mean(pairs.shadow_ms_sum, pairs.pairs),
            ),
            (
                "stable",
                pairs.only_stable_failed,
                pairs.only_stable_slow,
                _mean(pairs.stable_ms_sum, pairs.pairs),
            ),
        ],
        right=range(1, 4),
    )
    widest = f", the widest by {pairs.difference_max:.3g}" if pairs.disagreements else ""
    screen.line(
        f"{count} pairs, {pairs.disagreements} of {pairs.compared} answers differ{widest}; "
        f"{pairs.dropped} copies dropped"
    )
    if pairs.labelled:
        screen.line(
            f"{pairs.labelled} with a label: the candidate alone was wrong in {pairs.only_shadow_wrong}, "
            f"stable alone in {pairs.only_stable_wrong}"
        )


def _outputs(screen: Screen, outputs: "BandCounts") -> None:
    """What was predicted for callers first, by band."""
    screen.blank()
    bands = max(len(outputs.candidate), len(outputs.stable))
    screen.table(
        ("predicted for", "callers", *(f"band {number}" for number in range(1, bands + 1))),
        [
            (name, sum(side), *(f"{count / sum(side):.0%}" if sum(side) else "" for count in side))
            for name, side in (("candidate", outputs.candidate), ("stable", outputs.stable))
        ],
        right=range(1, bands + 2),
    )


def _labels(screen: Screen, found: "Rollout") -> None:
    """What became known of predictions, and until when a step waits for more."""
    from modelkeep.core.observation import Labelled

    labels, quality = found.labels or Labelled(), found.plan.quality
    assert quality is not None, "asked only where labels are waited for"
    screen.blank()
    screen.table(
        ("labels", "came", "wrong", "callers", "with a wrong one", "cannot compare"),
        [
            (name, side.labels, side.wrong, side.callers_labelled, side.callers_first_wrong, side.odd)
            for name, side in (
                ("candidate", labels.candidate),
                *zip((other.semver for other in found.others), labels.others, strict=False),
                ("stable", labels.stable),
            )
        ],
        right=range(1, 6),
    )
    waits = found.plan.strategy.value == "canary" and found.judgement is not None and found.judgement.missing
    if waits and found.step_since is not None:
        until = moment(found.step_since + timedelta(seconds=max(quality.wait_s, found.current.max_s)))
        screen.line(f"Labels are waited for until {until}, then: {found.plan.on_inconclusive.value}.")


def _mean(total: float, count: int) -> str:
    return f"{total / count:.2f}" if count else ""


def _preview(found: "Rollout") -> str | None:
    """Where a candidate can be asked before it has traffic."""
    if found.state.value != "previewing":
        return None
    name = found.endpoint
    return f"modelkeep predict {name} --preview, or POST /endpoints/{name}/preview/predict"


def _bar(ppm: int) -> str:
    full = BAR_CELLS * ppm // 1_000_000
    return "█" * full + "░" * (BAR_CELLS - full)


def status(found: "RolloutStatus") -> View:
    """How an endpoint's traffic stands."""

    def draw(screen: Screen) -> None:
        screen.line(
            Text(found.endpoint.name, "strong"),
            f"follows {found.endpoint.follows}",
            f"and serves {found.stable or 'nothing yet'}"
            + (f"; before {found.previous}" if found.previous else ""),
        )
        if found.endpoint.disagreement is not None:
            screen.line(Text(f"It disagrees: {disagreement(found.endpoint)}.", "bad"))
        if found.rollout is not None:
            screen.blank()
            rollout(found.rollout)(screen)
        else:
            screen.line("No rollout yet.")
        if found.gateways:
            screen.blank()
            screen.table(
                ("gateway", "address", "seen", "state", "candidate", "versions"),
                (
                    (
                        g.gateway,
                        g.url,
                        moment(g.seen_at),
                        Text("answers", "good") if g.answering else Text("silent", "bad"),
                        share(g.candidate_ppm),
                        ", ".join(f"{semver} {phase.value}" for semver, phase in g.phases.items()),
                    )
                    for g in found.gateways
                ),
            )
        elif found.active:
            screen.line(Text("No gateway has been seen; start one with 'modelkeep gateway'.", "warn"))

    return draw


def change(found: "RolloutStatus") -> str:
    """A status in one line, which differs when something happened that a person wants to know."""
    r = found.rollout
    if r is None:
        return f"{found.endpoint.name} serves {found.stable or 'nothing yet'}; no rollout yet"
    words = [f"{r.model}:{r.candidate_semver} {r.state.value.replace('_', ' ')} {share(r.weight_ppm)}"]
    words += [f"{semver} was taken out" for semver, _ in contest_views.outs(r)]
    if r.outcome:
        words.append(r.outcome)
    elif r.paused:
        words.append(f"paused: {r.paused}")
    elif r.judgement is not None and r.judgement.verdict.value != "hold":
        words.append(r.judgement.verdict.value)
    return ": ".join(words)


def one_line(text: str) -> View:
    """A line."""
    return lambda screen: screen.line(text)


def redraw(screen: Screen, view: View, drawn: int) -> int:
    """Draw over what was drawn before. Returns the lines that are on the terminal now."""
    width = screen.width or 80
    buffer = io.StringIO()
    view(Screen(buffer, colour=screen.colour, width=screen.width))
    text = buffer.getvalue()
    if drawn:
        screen.out.write(f"\x1b[{drawn}F\x1b[J")
    screen.out.write(text)
    screen.out.flush()
    plain = Screen(io.StringIO(), width=screen.width)
    view(plain)
    lines = plain.out.getvalue().splitlines() if isinstance(plain.out, io.StringIO) else []
    return sum(max(1, -(-len(line) // width)) for line in lines)


def explanation(told: "Explanation", found: "Rollout") -> View:
    """Whether the evidence comes out the same again, and the evidence."""

    def draw(screen: Screen) -> None:
        same = Text("the same to the last bit", "good") if told.equal else Text("NOT THE SAME", "bad")
        screen.line(f"Recomputed from {told.ticks} stored ticks:", same)
        screen.blank()
        rollout(found)(screen)
        screen.blank()
        screen.table(
            ("test", "p-value"), ((name, number(p)) for name, p in _p_values(told.recomputed)), right=(1,)
        )
        for other, evidence in zip(found.others, told.recomputed.others, strict=False):
            screen.line(f"and of {other.semver}:")
            screen.table(
                ("test", "p-value"), ((name, number(p)) for name, p in _p_values(evidence)), right=(1,)
            )
        if told.report is not None:
            screen.line(f"report, recomputed: {told.report.why}")
        for name, value in told.judgement.contributions.items():
            screen.line(Text(f"  {name}: {number(value)}", "dim"))

    return draw


def _p_values(evidence: Any) -> list[tuple[str, float]]:
    names = (
        ("errors", "more callers fail"),
        ("slow", "more callers wait"),
        ("shares", "wrong shares"),
        ("no_worse", "not worse"),
        ("low_rate", "few failures"),
    )
    told = [(text, getattr(evidence, name).p_value) for name, text in names]
    later = (
        ("wrong", "more wrong predictions"),
        ("right", "predictions not worse"),
        ("shift", "other predictions"),
    )
    return told + [(t, getattr(evidence, n).p_value) for n, t in later if getattr(evidence, n).ticks]


def prediction(outputs: Any) -> View:
    """The outputs as they came."""

    def draw(screen: Screen) -> None:
        screen.json(outputs)

    return draw
