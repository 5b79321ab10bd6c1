"""How figures read, and how a span is said on the command line."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest
from msgspec import structs

from modelkeep.cli import report_views
from modelkeep.cli.report_commands import moment_of
from modelkeep.core import codec, errors
from modelkeep.core.delivery import DeliveryReport, report, share, times
from modelkeep.core.deployments import Asked, LastDrill
from modelkeep.core.drill import Drill, DrillPlan, Hindrance, Measured, Obstacle
from modelkeep.serving import control
from tests.cli.test_views import _drawn
from tests.client.fake_server import FakeServer

pytestmark = pytest.mark.req("S10", "U1")

Run = Callable[..., Any]
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
        drills=2,
        last_drill=LastDrill(
            sequence=41, at=T0 + timedelta(days=9), endpoint="churn", gateway="g1", took_ms=0.4, live=True
        ),
    )
    many = DeliveryReport(
        since=T0,
        until=T0 + timedelta(days=30),
        stage="production",
        project="fraud",
        deployments=1_207,
        succeeded=1_200,
        rolled_back=1,
        failed=0,
        cancelled=2,
        superseded=3,
        concluded=1,
        under_way=0,
        success=share(1_200, 1_201),
        change_failure=share(3, 1_201),
        per_day=40.0,
        deploy=times([600.0] * 1_000),
        rollback=times([0.8]),
        recovery=times([62.0] * 3),
        lead=times([5_400.0] * 1_200),
    )
    none = report([], since=T0, until=T0 + timedelta(days=30), asked=Asked(stage="staging"))
    text = _drawn(
        ("report delivery, few", report_views.delivery(few)),
        ("report delivery, many", report_views.delivery(many)),
        ("report delivery, none", report_views.delivery(none)),
        ("report delivery -q", lambda screen: [screen.line(f"{k}={v}") for k, v in report_views.plain(few)]),
    )
    golden("cli_report.txt", text)


MEASURED = Measured(
    gateway="g1", took_ms=0.41, confirmed_ms=0.93, back_ms=0.8, hold_s=0.5, live=True, fronts=2
)
CLOSED = Hindrance(obstacle=Obstacle.WINDOW, why="the policy has drills in Mon-Fri 10:00-16:00 UTC alone")
DONE = Drill(
    sequence=41,
    endpoint="churn",
    model="churn",
    stands="1.1.0",
    former="1.0.0",
    at=T0,
    by="ada",
    reason="monthly",
    measured=MEASURED,
)


@pytest.mark.req("S8")
def test_a_drill_reads_well(golden: Callable[[str, str], None]) -> None:
    """With traffic, and with the warning without; what speaks against it, and when it may be."""
    idle = structs.replace(DONE, measured=structs.replace(MEASURED, live=False, took_ms=0.0))
    forced = structs.replace(DONE, against=(CLOSED,), anyway="the board asks")
    plan = DrillPlan(endpoint="churn", model="churn", stands="1.1.0", former="1.0.0", gateways=("g1",))
    moving = Hindrance(obstacle=Obstacle.ROLLOUT, why="a rollout of churn is under way")
    text = _drawn(
        ("drill", report_views.drill(DONE)),
        ("drill, no traffic", report_views.drill(idle)),
        ("drill, anyway", report_views.drill(forced)),
        ("may be", report_views.drill_plan(plan)),
        ("not now", report_views.drill_plan(structs.replace(plan, against=(CLOSED,), next_at=T0))),
        ("never", report_views.drill_plan(structs.replace(plan, against=(moving, CLOSED), gateways=()))),
    )
    golden("cli_drill.txt", text)


@pytest.mark.req("S8")
@pytest.mark.network
def test_a_drill_asks_the_server_then_the_gateway_then_keeps_it(
    server: FakeServer, modelkeep: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In that order, once agreed to; a refusal of either ends it, and nothing is kept."""
    orders: list[tuple[str, dict[str, Any]]] = []

    def gateway(folder: Path, command: str, **arguments: Any) -> dict[str, Any]:
        orders.append((command, arguments))
        return {**codec.builtins(MEASURED), "stood": "k2", "former": "k1", "endpoint": "churn"}

    monkeypatch.setattr(control, "call", gateway)
    plan = DrillPlan(endpoint="churn", model="churn", stands="1.1.0", former="1.0.0", gateways=("g1",))
    server.on("GET", "/api/v1/endpoints/churn/drill", plan)
    server.on("POST", "/api/v1/endpoints/churn/drill", plan)
    server.on("POST", "/api/v1/endpoints/churn/drills", DONE)
    assert modelkeep("drill", "churn", "-m", "monthly").code == 2, "nobody can be asked"
    assert orders == []
    ran = modelkeep("drill", "churn", "-m", "monthly", "--yes", "--hold", "0.1", "-q")
    assert (ran.code, ran.out) == (0, "0.410\n")
    assert orders == [("drill", {"endpoint": "churn", "hold_s": 0.1})]
    sent = codec.decode(server.asked[-1].body, dict)
    assert sent == {"measured": codec.builtins(MEASURED), "reason": "monthly"}

    begun = codec.decode(server.asked[-2].body, dict)
    assert begun == {"reason": "monthly", "anyway": None}

    closed = structs.replace(plan, against=(CLOSED,))
    server.on("GET", "/api/v1/endpoints/churn/drill", closed)
    server.on("POST", "/api/v1/endpoints/churn/drill", errors.DrillRefused("No drill of churn now."))
    assert modelkeep("drill", "churn", "-m", "monthly").code == 3, "asked, so that the refusal is kept"
    ran = modelkeep("drill", "churn", "-m", "monthly", "--dry-run", "-q")
    assert (ran.code, ran.out) == (3, "window\n")
    assert len(orders) == 1
    server.on("POST", "/api/v1/endpoints/churn/drill", closed)
    assert modelkeep("drill", "churn", "-m", "monthly", "--anyway", "the board asks", "--yes").code == 0
    assert len(orders) == 2


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
