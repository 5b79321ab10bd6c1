"""What a pipeline gets of `rollout wait`, `verdict` and `judge`: exit codes, words, and patience."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from modelkeep.cli import rollout_commands, verdict_views
from modelkeep.core import codec
from modelkeep.core.observation import SideCounts
from modelkeep.core.rollout import RolloutState
from modelkeep.core.simulation import Simulation, simulate
from modelkeep.core.verdicts import ArmTick, CountedTick, Question, judge_counts, verdict_of
from tests.cli.test_views import _drawn, _rollout, _status
from tests.client.fake_server import FakeServer
from tests.core.test_simulation import PLAN, side, tick

pytestmark = [pytest.mark.req("S7", "U1"), pytest.mark.network]

Run = Callable[..., Any]
STATUS = "/api/v1/endpoints/{}/rollout"
UNSEEN = SideCounts()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_commands, "WATCH_S", 0.001)


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"state": RolloutState.SUCCEEDED}, 0),
        ({"state": RolloutState.ROLLED_BACK}, 3),
        ({"state": RolloutState.FAILED}, 3),
        ({"state": RolloutState.CANCELLED}, 3),
        ({}, 8),
        ({"candidate_counts": UNSEEN}, 12),
        ({"candidate_counts": UNSEEN, "state": RolloutState.PREPARING}, 12),
    ],
)
def test_waiting_ends_with_a_code(
    server: FakeServer, modelkeep: Run, more: dict[str, Any], code: int
) -> None:
    """Promoted, taken back, still under way, without traffic; what is over is told at once."""
    status = _status(_rollout(**more))
    server.on("GET", STATUS.format("churn"), status)
    server.on("GET", STATUS.format("rol_1"), status)
    ran = modelkeep("rollout", "wait", "churn", "--timeout", "0.02s")
    assert ran.code == code
    assert "rol_1" in ran.out


def test_waiting_waits_for_the_rollout_that_was_there(server: FakeServer, modelkeep: Run) -> None:
    """It looks until that one ends, by its id, and says how."""
    server.on("GET", STATUS.format("churn"), _status(_rollout()))
    looks = iter((_status(_rollout()), _status(_rollout(state=RolloutState.SUCCEEDED))))
    server.on("GET", STATUS.format("rol_1"), lambda asked: next(looks))
    ran = modelkeep("rollout", "wait", "churn", "--json")
    assert ran.code == 0
    assert json.loads(ran.out)["rollout"]["state"] == "succeeded"


def test_there_has_to_be_a_rollout_and_a_span(server: FakeServer, modelkeep: Run) -> None:
    """Nothing to wait for is 5; a span that is none is a question of usage."""
    server.on("GET", STATUS.format("churn"), _status(None))
    assert modelkeep("rollout", "wait", "churn").code == 5
    for wrong in ("soon", "0", "-1s", "5y", "400d"):
        assert modelkeep("rollout", "wait", "churn", "--timeout", wrong).code == 2


@pytest.mark.parametrize(
    ("failed", "times", "code", "word"), [(20, 5, 3, "rollback"), (2, 60, 0, "advance"), (2, 1, 8, "hold")]
)
def test_counts_of_a_file_are_judged(
    server: FakeServer, modelkeep: Run, tmp_path: Path, failed: int, times: int, code: int, word: str
) -> None:
    """The file goes out as it was written; the verdict is the exit code."""
    tick = CountedTick(candidate=ArmTick(count=200, failed=failed), stable=ArmTick(count=1_800, failed=18))
    asked = Question(ticks=(tick,) * times)
    server.on("POST", "/api/v1/verdicts", judge_counts(asked))
    path = tmp_path / "counts.yaml"
    path.write_bytes(codec.encode({"ticks": asked.ticks}))
    ran = modelkeep("rollout", "judge", str(path), "-q")
    assert (ran.code, ran.out) == (code, f"{word}\n")
    sent = codec.decode(server.asked[-1].body, Question)
    assert sent == asked


def test_a_simulation_is_asked_with_the_plan(server: FakeServer, modelkeep: Run) -> None:
    """Steps of the command line go out as a plan; without any, the rollout's own holds."""
    server.on("POST", "/api/v1/rollouts/churn/simulation", _simulated())
    ran = modelkeep("rollout", "simulate", "churn", "--step", "25%:60", "--step", "100%:60")
    assert ran.code == 0
    assert "It would be rolled back after 10 s" in ran.out
    sent = codec.decode(server.asked[-1].body, dict)
    assert [step["weight_ppm"] for step in sent["plan"]["steps"]] == [250_000, 1_000_000]
    assert modelkeep("rollout", "simulate", "churn", "-q").out == "rolled_back\n"
    assert codec.decode(server.asked[-1].body, dict) == {}


def _simulated() -> Simulation:
    ticks = [tick(n, side(200, 20), side(1_800, 18), 50_000) for n in range(3)]
    return simulate(_rollout(state=RolloutState.SUCCEEDED, outcome="few fail"), PLAN, ticks)


def test_verdicts_read_well(golden: Callable[[str, str], None]) -> None:
    """Of a rollout under way and one that ended, and of counts from elsewhere."""
    done = structs.replace(
        _rollout(), state=RolloutState.ROLLED_BACK, outcome="more callers fail", weight_ppm=0
    )
    tick = CountedTick(
        candidate=ArmTick(count=200, failed=20, slow=1),
        stable=ArmTick(count=1_800, failed=18, slow=9),
        candidate_ppm=100_000,
    )
    text = _drawn(
        ("rollout verdict", verdict_views.of_rollout(verdict_of(_rollout()))),
        ("rollout verdict, ended", verdict_views.of_rollout(verdict_of(done))),
        ("rollout judge", verdict_views.of_counts(judge_counts(Question(ticks=(tick,) * 5)))),
        ("rollout simulate", verdict_views.simulation(_simulated())),
        ("rollout judge, nothing", verdict_views.of_counts(judge_counts(Question(ticks=())))),
    )
    golden("cli_verdict.txt", text)
