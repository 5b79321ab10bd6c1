"""An A/B test of several versions as people read it, under way and at its end; and how one is typed."""

import io
from collections.abc import Callable

import click
import pytest
from msgspec import structs

from modelkeep.cli import plans, rollout_views, verdict_views
from modelkeep.cli.show import Screen
from modelkeep.core import errors, rollout
from modelkeep.core.answers import Explanation
from modelkeep.core.plan import PRESETS, Strategy, Variant
from modelkeep.core.rollout import RolloutState
from modelkeep.core.verdicts import verdict_of
from tests.core.test_contest import ENDS, met, seen, stepping
from tests.core.test_contest_quality import SEVERAL, known
from tests.core.test_contest_quality import of as of_quality
from tests.core.test_contest_quality import told as told_of

pytestmark = pytest.mark.req("S3", "U1")


def test_a_test_of_several_versions_reads_like_this(golden: Callable[[str, str], None]) -> None:
    """Who has which share, who was taken out and why, who fares best, and what to run next."""
    out = io.StringIO()
    screen = Screen(out, colour=False, width=110)
    of = rollout.take_in(stepping(), met(stepping(), "stable worse"))
    gone = rollout.advance(of, seen(of, "other worse"), of.started_at).rollout
    plan = structs.replace(gone.plan, promote_winner=False)
    gone = structs.replace(gone, plan=plan, step_since=of.started_at)
    done = rollout.advance(gone, seen(gone), ENDS).rollout
    assert done.state is RolloutState.CONCLUDED
    for title, each in (("under way", of), ("one taken out", gone)):
        out.write(f"--- {title}\n")
        rollout_views.rollout(each)(screen)
    out.write("--- the verdict on it\n")
    verdict_views.of_rollout(verdict_of(gone))(screen)
    told = Explanation(
        rollout=done.id,
        ticks=done.ticks,
        recomputed=done.evidence,
        equal=True,
        judgement=rollout.judge(done),
        report=rollout.report(done),
    )
    out.write("--- concluded, and explained\n")
    rollout_views.explanation(told, done)(screen)
    sides = (known(3_500, 350), known(500, 60), known(1_000, 10))
    by_labels = of_quality(SEVERAL, told_of(sides, (7_000, 1_000, 2_000)))
    out.write("--- by labels\n")
    rollout_views.rollout(by_labels)(screen)
    golden("cli_contest.txt", out.getvalue())


def test_further_versions_are_typed_beside_the_one_that_is_promoted() -> None:
    """Each with its share, as in the plan; alone they mean an A/B test."""
    plan = plans.tested(None, ("2.1.0:25%", "#7:10"))
    assert plan is not None
    assert plan.strategy is Strategy.AB_TEST
    assert plan.versions == (
        Variant(version="2.1.0", weight_ppm=250_000),
        Variant(version="#7", weight_ppm=100_000),
    )
    assert plans.summary(plan) == "A/B test by errors: 50 %, 25 % 2.1.0, 10 % #7 for 7 d"
    assert plans.tested(None, ()) is None
    for wrong in ("2.1.0", "2.1.0:much", "2.1.0:100%"):
        with pytest.raises(click.BadParameter):
            plans.tested(None, (wrong,))
    with pytest.raises(errors.InvalidPlan):
        plans.tested(PRESETS[Strategy.CANARY], ("2.1.0:10%",))
