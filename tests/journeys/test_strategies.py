"""Ways in which a candidate takes over, through a real server and gateway, from the command line."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from modelkeep import Client
from modelkeep.core.rollout import RolloutState as State
from tests.journeys.houses import House, running_house
from tests.serving import models

pytestmark = [pytest.mark.journey, pytest.mark.network, pytest.mark.req("S3", "S4", "S8")]

BLUE_GREEN = """\
schema: modelkeep.rollout/v1
strategy: blue_green
preview_s: 1
automatic: false
steps:
  - {weight_ppm: 1000000, min_s: 1, max_s: 600}
"""
ROLLING = """\
schema: modelkeep.rollout/v1
strategy: rolling
steps:
  - {weight_ppm: 250000, min_s: 0.5, max_s: 600}
  - {weight_ppm: 1000000, min_s: 0.5, max_s: 600}
"""
AB_TEST = """\
schema: modelkeep.rollout/v1
strategy: ab_test
steps:
  - {weight_ppm: 400000, min_s: 600, max_s: 600}
versions:
  - {version: 3.0.0, weight_ppm: 300000}
  - {version: 4.0.0, weight_ppm: 100000}
"""
SHADOW = """\
schema: modelkeep.rollout/v1
strategy: shadow
shadow_ppm: 1000000
shadow_s: 1
"""
ROWS = {"inputs": [{"age": 100.0, "income": 10.0}]}


def until(so: Callable[[], Any], what: str, timeout_s: float = 60.0) -> Any:
    """Wait for something, and give it back."""
    end = time.monotonic() + timeout_s
    while not (found := so()):
        assert time.monotonic() < end, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.05)
    return found


class World:
    """One person, a gateway that serves churn 1.0.0, and two more versions."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.client: Client = house.client()
        for slope in (1.0, 2.0, 3.0):
            path = house.data.parent / f"{slope}.onnx"
            path.write_bytes(models.linear_onnx(slope))
            stated = {"semver": f"{slope:.0f}.0.0", "signature": models.SIGNATURE}
            self.client.register("churn", path, **stated)
        self.client.put_endpoint("churn", "churn", key_header="X-User", key_cookie="visitor")
        self.client.promote("churn:1.0.0", "production", "the first one")
        self.reaches(State.SUCCEEDED)
        until(lambda: self.asks() == "churn:1.0.0", "the first version answers")

    def reaches(self, state: State) -> str:
        """The id of the latest rollout, once it has come so far."""

        def there() -> str | None:
            found = self.client.rollout_status("churn").rollout
            return found.id if found is not None and found.state is state else None

        return str(until(there, f"the rollout is {state}"))

    def asks(
        self, door: str = "predict", key: str = "ann", cookie: str = "", request_id: str | None = None
    ) -> str:
        """Who answers a caller: the version, or the code of the problem."""
        named = {"X-Request-Id": request_id} if request_id is not None else {}
        request = urllib.request.Request(
            f"{self.house.gateway}/endpoints/churn/{door}",
            data=json.dumps(ROWS).encode(),
            headers={"Content-Type": "application/json", "X-User": key, "Cookie": cookie, **named},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return str(answer.headers["X-Modelkeep-Version"])
        except urllib.error.HTTPError as problem:
            return str(json.loads(problem.read())["code"])

    def plan(self, text: str) -> str:
        """A file with a plan."""
        path = self.house.data.parent / "plan.yaml"
        path.write_text(text)
        return str(path)


@pytest.fixture
def world() -> Iterator[World]:
    """An installation for one person."""
    with running_house() as house:
        yield World(house)


@pytest.mark.long
def test_a_candidate_is_previewed_switched_to_and_taken_back_in_one_swap(world: World) -> None:
    """Blue-green, by hand: the plan is shown before, the candidate answers under its preview address and to
    nobody else, one word gives it everything, another takes it back, and it does not return uncleared."""
    house, reason = world.house, ("-m", "bigger trees")
    shown = house.run(
        "promote", "churn:2.0.0", "--to", "production", "--strategy", "blue-green", "--dry-run", *reason
    )
    assert "blue-green: preview for 5 min" in shown.stdout, shown
    assert world.asks("preview/predict") == "VERSION_NOT_FOUND"
    plan = world.plan(BLUE_GREEN)
    begun = house.run("promote", "churn:2.0.0", "--to", "production", "--plan", plan, *reason)
    assert "blue-green: preview for 1 s" in begun.stdout, begun
    world.reaches(State.PREVIEWING)
    until(lambda: world.asks("preview/predict") == "churn:2.0.0", "the candidate answers in its preview")
    assert world.asks("preview/invocations") in ("churn:2.0.0", "MALFORMED_BODY", "SCHEMA_VIOLATION")
    assert world.asks() == "churn:1.0.0"
    rows = house.data.parent / "rows.json"
    rows.write_text(json.dumps(ROWS["inputs"]))
    asked = house.run("predict", "churn", "--input", str(rows), "--preview", "--gateway", house.gateway)
    assert "churn:2.0.0" in asked.stdout + asked.stderr, asked
    status = house.run("rollout", "status", "churn")
    assert "preview/predict" in status.stdout, status

    until(lambda: house.run("rollout", "advance", "churn", *reason).returncode == 0, "a person may switch")
    until(lambda: world.asks() == "churn:2.0.0", "everything at once")
    assert house.run("rollout", "abort", "churn", "-m", "customers complain").returncode == 0
    until(lambda: world.asks() == "churn:1.0.0", "back in one swap")
    world.reaches(State.ROLLED_BACK)
    refused = house.run("promote", "churn:2.0.0", "--to", "production", "--plan", plan, *reason)
    assert refused.returncode != 0
    assert "modelkeep clear" in refused.stderr


@pytest.mark.long
def test_a_rolling_update_is_superseded_and_the_other_one_arrives(world: World) -> None:
    """Rolling, in batches, with no callers at all; a newer rollout takes its place only when told so."""
    house = world.house
    slow = world.plan(ROLLING.replace("250000, min_s: 0.5", "250000, min_s: 20"))
    assert (
        house.run("promote", "churn:2.0.0", "--to", "production", "--plan", slow, "-m", "a").returncode == 0
    )
    older = world.reaches(State.STEPPING)
    quick = ("promote", "churn:3.0.0", "--to", "production", "--plan", world.plan(ROLLING), "-m", "b")
    refused = house.run(*quick)
    assert refused.returncode != 0
    assert "--supersede" in refused.stderr
    assert house.run(*quick, "--supersede").returncode == 0
    assert world.client.get_rollout(older).state is State.SUPERSEDED
    world.reaches(State.SUCCEEDED)
    until(lambda: world.asks() == "churn:3.0.0", "the newer version answers")
    assert world.client.get_version("churn#production").semver == "3.0.0"
    assert world.client.get_version("churn:2.0.0").tombstone is None


def test_an_a_b_test_of_several_versions_reports_at_its_end(world: World) -> None:
    """Each caller always meets the same version; one that breaks its own output schema is taken out alone,
    without a caller who notices; at the end the report is there and stable has everybody again."""
    house = world.house
    broken = house.data.parent / "broken.onnx"
    broken.write_bytes(models.linear_onnx(4e36))  # above an age of 85, more than a float holds
    world.client.register("churn", broken, semver="4.0.0", signature=models.SIGNATURE)
    plan = world.plan(AB_TEST)
    words = ("promote", "churn:2.0.0", "--to", "production", "--plan", plan, "-m", "who fails less")
    begun = house.run(*words)
    assert "A/B test by errors: 40 %, 30 % 3.0.0, 10 % 4.0.0 until" in begun.stdout, begun
    world.reaches(State.STEPPING)
    keys, three = [f"k{n}" for n in range(40)], {"churn:1.0.0", "churn:2.0.0", "churn:3.0.0"}
    until(lambda: {world.asks(key=key) for key in keys} == three, "all versions answer")
    until(lambda: world.client.get_rollout("churn").others[1].out, "one is taken out")
    assert "4.0.0 was taken out: 4.0.0 broke its own output" in house.run("rollout", "status", "churn").stdout
    first = [world.asks(key=key) for key in keys]
    assert set(first) == three, "the test goes on"
    assert first == [world.asks(key="", cookie=f"visitor={key}") for key in keys], "each with its version"
    assert "output schema" in (world.client.get_version("churn:4.0.0").tombstone or "")
    assert house.run("rollout", "advance", "churn", "-m", "seen enough").returncode == 0
    world.reaches(State.CONCLUDED)
    status = house.run("rollout", "status", "churn")
    assert "winner nobody" in status.stdout, status
    until(lambda: {world.asks(key=key) for key in keys} == {"churn:1.0.0"}, "stable has everybody")
    explained = house.run("rollout", "explain", "churn")
    assert explained.returncode == 0
    assert "the same to the last bit" in explained.stdout


@pytest.mark.long
def test_a_shadow_is_compared_and_answers_nobody(world: World) -> None:
    """It gets copies of every request; callers hear stable alone; its end says how the answers differ."""
    house = world.house
    plan = world.plan(SHADOW)
    begun = house.run("promote", "churn:2.0.0", "--to", "production", "--plan", plan, "-m", "is it the same")
    assert "shadow: copies of 100 % for 1 s" in begun.stdout, begun
    world.reaches(State.SHADOWING)

    def concluded() -> bool:
        assert {world.asks(key=f"k{n}") for n in range(10)} == {"churn:1.0.0"}
        status = world.client.rollout_status("churn").rollout
        return status is not None and status.state is State.CONCLUDED

    until(concluded, "copies were compared, and its time is over")
    found = world.client.rollout_status("churn").rollout
    assert found is not None
    assert found.pairs is not None
    assert found.pairs.pairs > 0
    assert found.pairs.disagreements == found.pairs.compared > 0, "another slope gives other scores"
    status = house.run("rollout", "status", "churn")
    assert "answers differ" in status.stdout, status
    assert house.run("rollout", "explain", "churn").returncode == 0
    forecast = house.run("rollout", "forecast", "churn:2.0.0", "--traffic", "9/s", "--strategy", "shadow")
    assert "no traffic" in forecast.stderr, forecast


def test_a_plan_that_cannot_be_is_refused_before_anything_moves(world: World) -> None:
    """Each with the sentence that says what is off."""
    house = world.house
    for text, said in (
        (BLUE_GREEN.replace("blue_green", "rolling"), "preview"),
        (ROLLING.replace("250000", "1000000"), "rise"),
        (ROLLING.replace("  - {weight_ppm: 1000000, min_s: 0.5, max_s: 600}\n", ""), "everything"),
        (ROLLING + "metrics: {accuracy: 1}\n", "errors, latency, shares"),
        (ROLLING.replace("/v1", "/v7"), "modelkeep.rollout/v1"),
    ):
        ran = house.run(
            "promote", "churn:2.0.0", "--to", "production", "--plan", world.plan(text), "-m", "no"
        )
        assert ran.returncode != 0
        assert said in ran.stderr, ran
    assert house.run(
        "promote", "churn:2.0.0", "--to", "production", "--strategy", "chess", "-m", "no"
    ).returncode
    assert world.client.get_endpoint("churn").rollout is None
