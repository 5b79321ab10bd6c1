"""How an A/B test reads: who has which share, what is said of each version, and who fares best."""

from typing import TYPE_CHECKING

from modelkeep.cli.show import Screen, Text, number, share

if TYPE_CHECKING:
    from modelkeep.core.observation import SideCounts
    from modelkeep.core.rollout import Rollout
    from modelkeep.core.winner import WinnerReport

_SHOWN = {True: "better", False: "worse", None: ""}


def sides(found: "Rollout") -> "list[tuple[str, SideCounts]]":
    """Everybody who answers callers of a rollout, with their counts: the candidate, a test's further
    versions, stable."""
    return [
        (f"candidate {found.candidate_semver}", found.candidate_counts),
        *((f"version {other.semver}", other.counts) for other in found.others),
        (f"stable {found.stable_semver or ''}", found.stable_counts),
    ]


def split(found: "Rollout") -> str:
    """Who beside stable has which share now."""
    if not found.others:
        return f"{share(found.weight_ppm)} to the candidate"
    shares = (found.weight_ppm, *(found.others_ppm or (0,) * len(found.others)))
    names = (found.candidate_semver, *(other.semver for other in found.others))
    return ", ".join(f"{share(ppm)} to {name}" for ppm, name in zip(shares, names, strict=True))


def outs(found: "Rollout") -> list[tuple[str, str]]:
    """The versions that were taken out of a test, each with why."""
    named = ((found.candidate_semver, found.out), *((other.semver, other.out) for other in found.others))
    return [(semver, why) for semver, why in named if why is not None]


def report(screen: Screen, found: "Rollout") -> None:
    """Who fares better in an A/B test: at its end, or so far; and what to do about it."""
    from modelkeep.core.rollout import report as reported

    for semver, why in outs(found):
        screen.line(Text(f"{semver} was taken out: {why}", "bad"))
    told = found.report or reported(found)
    word = "winner" if found.report is not None else "so far"
    winner = told.semver or told.winner.value
    seen = Text(winner, "good" if told.winner.value != "nobody" else "dim")
    screen.line(word, seen, f"(confidence {told.confidence:.1%}): {told.why}")
    if told.arms:
        _compared(screen, told)
    if told.labels:
        _awaited(screen, told)
    won = told.winner.value in ("candidate", "other")
    if found.state.value == "concluded" and won:
        semver = told.semver or found.candidate_semver
        stage = found.stage or "STAGE"
        screen.line(Text(f"  next: modelkeep promote '{found.model}:{semver}' --to {stage} -m WHY", "dim"))


def _compared(screen: Screen, told: "WinnerReport") -> None:
    """Each version against stable, with all comparisons of the test accounted for."""
    screen.table(
        ("version", "callers", "troubled", "p-value", "than stable", ""),
        (
            (
                arm.semver,
                arm.callers,
                f"{arm.rate:.2%}" if arm.rate is not None else "",
                number(arm.p_value),
                _SHOWN[arm.better],
                "taken out" if arm.out else "",
            )
            for arm in told.arms
        ),
        right=range(1, 4),
    )


def _awaited(screen: Screen, told: "WinnerReport") -> None:
    """How many labels are missing of each version, in a test that is about labels."""
    screen.table(
        ("version", "callers", "labelled", "labels missing"),
        ((one.version, one.callers, one.labelled, one.missing) for one in told.labels),
        right=range(1, 4),
    )
