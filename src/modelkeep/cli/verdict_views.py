"""How verdicts read: the word, the sentence, the counts of both sides and what the promise depends on."""

from typing import TYPE_CHECKING

from modelkeep.cli.catalog_views import View
from modelkeep.cli.show import Screen, Text, number, share

if TYPE_CHECKING:
    from modelkeep.core.verdicts import CountsVerdict, RolloutVerdict, Seen

_STYLES = {"advance": "good", "hold": "warn", "rollback": "bad"}


def of_rollout(found: "RolloutVerdict") -> View:
    """The verdict on a rollout."""

    def draw(screen: Screen) -> None:
        _word(screen, found)
        step = f"step {found.step} of {found.steps}, " if found.step and not found.finished else ""
        over = f"{found.model}:{found.candidate_version} over {found.stable_version or 'nothing'}"
        screen.facts(
            (
                ("rollout", f"{found.rollout} of {found.endpoint}: {over}"),
                ("state", f"{found.state.value.replace('_', ' ')}, {step}{share(found.weight_ppm)}"),
            )
        )
        _sides(screen, found.candidate, found.stable)

    return draw


def of_counts(found: "CountsVerdict") -> View:
    """The verdict on counts from elsewhere."""

    def draw(screen: Screen) -> None:
        _word(screen, found)
        _sides(screen, found.candidate, found.stable)
        screen.blank()
        screen.table(
            ("test", "p-value"), ((name, number(p)) for name, p in found.p_values.items()), right=(1,)
        )
        screen.line(Text(found.caution, "dim"))

    return draw


def _word(screen: Screen, found: "RolloutVerdict | CountsVerdict") -> None:
    word = found.verdict.value
    screen.line(Text(word, _STYLES[word]), f"(p = {found.p_value:.2g}, risk {found.alpha:g}): {found.why}")


def _sides(screen: Screen, candidate: "Seen", stable: "Seen") -> None:
    if not candidate.requests and not stable.requests:
        return
    screen.table(
        ("", "requests", "errors", "slow", "callers", "failing callers"),
        (
            (name, side.requests, side.errors, side.slow, side.callers, side.callers_failed)
            for name, side in (("candidate", candidate), ("stable", stable))
        ),
        right=range(1, 6),
    )
