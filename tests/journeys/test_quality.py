"""Labels that come later judge a candidate, through a real server and gateway, from the command line."""

import json

import pytest

from modelkeep.core.plan import read_plan
from modelkeep.core.rollout import RolloutState as State
from tests.journeys.houses import running_house
from tests.journeys.test_strategies import ROWS, World, until

pytestmark = [
    pytest.mark.journey,
    pytest.mark.long,
    pytest.mark.network,
    pytest.mark.req("S7", "S11"),
]

TRUE = sum(ROWS["inputs"][0].values())
"""What stable says of the row that is asked about."""
PLAN = """\
schema: modelkeep.rollout/v1
steps:
  - {weight_ppm: 500000, min_s: 0.5, max_s: 600}
  - {weight_ppm: 1000000, min_s: 0.5, max_s: 600}
alpha: 0.1
beta: 0.5
pass_rate: 0.5
fail_rate: 0.9
quality: {tolerance: 5, wait_s: 86400}
"""


def test_a_candidate_waits_for_labels_and_goes_back_by_them() -> None:
    """It answers every request and is wrong each time: nothing but its labels can tell. It holds and says so,
    labels by 'modelkeep feedback' take it back with the blame, and the evidence is recomputed to the bit."""
    with running_house() as house:
        world = World(house)
        world.client.promote("churn:2.0.0", "production", "bigger trees", plan=read_plan(PLAN))
        world.reaches(State.STEPPING)
        asked = 0

        def ask() -> None:
            nonlocal asked
            for number in range(asked, asked + 40):
                world.asks(key=f"u{number}", request_id=f"order-{number}")
            asked += 40

        def waits() -> bool:
            ask()
            found = world.client.rollout_status("churn").rollout
            return found is not None and found.held == "no labels yet: holding"

        until(waits, "all is shown but the labels")
        status = house.run("rollout", "status", "churn").stdout
        assert "Labels are waited for until" in status, status
        labels = house.data.parent / "labels.jsonl"

        def back() -> bool:
            ask()  # what was asked before the recorder was there is not remembered
            rows = [{"request_id": f"order-{number}", "label": TRUE} for number in range(asked)]
            labels.write_text("\n".join(json.dumps(row) for row in rows))
            sent = house.run("feedback", "churn", "--input", str(labels), "--gateway", house.gateway)
            assert sent.returncode == 0, sent
            found = world.client.rollout_status("churn").rollout
            return found is not None and found.state is State.ROLLED_BACK

        until(back, "the labels take it back")
        told = house.run("rollout", "explain", "churn").stdout
        assert "the same to the last bit" in told, told
        assert "more callers have wrong predictions than on stable" in told, told
        found = world.client.rollout_status("churn").rollout
        assert found is not None
        assert found.labels is not None
        assert found.labels.stable.wrong == 0
        assert found.labels.candidate.wrong == found.labels.candidate.labels > 0
