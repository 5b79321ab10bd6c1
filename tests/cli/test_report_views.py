"""How figures read, and how a span is said on the command line."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import click
import pytest

from modelkeep.cli import report_views
from modelkeep.cli.report_commands import moment_of
from modelkeep.core.delivery import DeliveryReport, report, share, times
from tests.cli.test_views import _drawn

pytestmark = pytest.mark.req("S10", "U1")

T0 = datetime(2026, 1, 25, 14, 3, tzinfo=UTC)


def test_figures_read_well(golden: Callable[[str, str], None]) -> None:
    """Few deployments with a warning, many without, and none at all."""
    few = DeliveryReport(
        since=T0,
        until=T0 + timedelta(days=30),
        stage="production",
        model="churn",
        deployments=5,
        succeeded=3,
        rolled_back=1,
        failed=1,
        cancelled=0,
        under_way=1,
        success=share(3, 5),
        change_failure=share(1, 4),
        per_day=0.1,
        deploy=times([900.0, 1_200.0, 7_300.0]),
        rollback=times([0.8]),
        recovery=times([62.0]),
        lead=times([5_400.0, 86_400.0, 400_000.0]),
    )
    many = DeliveryReport(
        since=T0,
        until=T0 + timedelta(days=30),
        stage="production",
        project="fraud",
        deployments=1_203,
        succeeded=1_200,
        rolled_back=1,
        failed=0,
        cancelled=2,
        under_way=0,
        success=share(1_200, 1_201),
        change_failure=share(3, 1_201),
        per_day=40.0,
        deploy=times([600.0] * 1_000),
        rollback=times([0.8]),
        recovery=times([62.0] * 3),
        lead=times([5_400.0] * 1_200),
    )
    none = report([], since=T0, until=T0 + timedelta(days=30), stage="staging")
    text = _drawn(
        ("report delivery, few", report_views.delivery(few)),
        ("report delivery, many", report_views.delivery(many)),
        ("report delivery, none", report_views.delivery(none)),
        ("report delivery -q", lambda screen: [screen.line(f"{k}={v}") for k, v in report_views.plain(few)]),
    )
    golden("cli_report.txt", text)


def test_a_span_is_said_as_people_say_it() -> None:
    """Back from now, or as a time; anything else is a question about the option."""
    assert moment_of("30d", T0, "--since") == T0 - timedelta(days=30)
    assert moment_of("90min", T0, "--since") == T0 - timedelta(minutes=90)
    assert moment_of("2w", T0, "--since") == T0 - timedelta(days=14)
    assert moment_of("2026-01-25", T0, "--since") == datetime(2026, 1, 25, tzinfo=UTC)
    assert moment_of("2026-01-25T14:03Z", T0, "--since") == T0
    for wrong in ("", "30", "d", "yesterday", "30y"):
        with pytest.raises(click.BadParameter, match="write 30d"):
            moment_of(wrong, T0, "--since")
