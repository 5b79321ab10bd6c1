"""A model's whole life through real processes, as three people and a stream of callers live it.

Ana makes versions, Ben answers for them, callers ask all the time. Each step is a sentence of the story; what
a single part does in detail is tested beside that part.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from modelkeep import Client, errors
from modelkeep.core.bump import Bump
from modelkeep.core.catalog import ModelVersion
from modelkeep.core.rollout import Plan, Rollout, RolloutState, Step
from modelkeep.core.values import Digest
from tests.journeys.houses import House, running_house
from tests.serving import models

TRAFFIC = Path(__file__).parents[2] / "examples" / "traffic.py"
RATE = 240
QUICK = Plan(
    steps=(
        Step(weight_ppm=400_000, min_s=0.5, max_s=600),
        Step(weight_ppm=1_000_000, min_s=0.5, max_s=600),
    )
)
"""Large steps, so that the evidence of a few hundred callers is there within seconds."""
SLOW_MS = 30_000.0
"""That nothing takes: what a busy machine does to one version for a second says nothing about it."""
POLICY = """\
schema: modelkeep.policy/v1
name: churn
stages:
  staging:
    gates:
      - {gate: files_verified}
  production:
    gates:
      - {gate: files_verified}
      - {gate: signature}
      - {gate: metric, name: auc, min: 0.8}
    approvals: {count: 1}
"""

pytestmark = [
    pytest.mark.journey,
    pytest.mark.req("V1", "V3", "V13", "G1", "G2", "G3", "G7", "G8", "S1", "S2", "S3", "S8"),
]


def until(so: Callable[[], Any], what: str, timeout_s: float = 60.0) -> Any:
    """Wait for something, and give it back."""
    end = time.monotonic() + timeout_s
    while not (found := so()):
        assert time.monotonic() < end, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.05)
    return found


class Callers:
    """Several hundred people who ask all the time, from a process of their own."""

    def __init__(self, house: House, endpoint: str) -> None:
        folder = house.data.parent
        rows = folder / "rows.jsonl"
        with rows.open("w") as lines:
            for index in range(5_000):
                # One caller in twenty is older than any the worse build was tried with.
                age = 101.0 + index % 40 if index % 20 == 0 else 18.0 + index % 80
                row = {"key": f"caller-{index}", "inputs": {"age": age, "income": float(index % 90)}}
                lines.write(json.dumps(row) + "\n")
        self._summary = folder / "seen.json"
        words = [sys.executable, str(TRAFFIC), "--url", f"{house.gateway}/endpoints/{endpoint}/predict"]
        words += ["--rows", str(rows), "--callers-per-key", "1", "--rate", str(RATE)]
        self._process = subprocess.Popen([*words, "--summary", str(self._summary)], stdout=subprocess.DEVNULL)
        until(self._summary.exists, "the first summary")

    def seen(self) -> dict[str, Any]:
        """Everything they have seen, with what was asked before this call."""
        time.sleep(1.2)
        summary: dict[str, Any] = json.loads(self._summary.read_text())
        return summary

    def close(self) -> None:
        """Let them go."""
        self._process.terminate()
        assert self._process.wait(60) == 0


class World:
    """The house and the people in it."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.admin = house.client()
        self.ana = self._person("ana", "contributor", "approver")
        self.ben = self._person("ben", "maintainer")

    def _person(self, name: str, *roles: str) -> Client:
        self.admin.create_principal(name)
        for role in roles:
            self.admin.add_grant(name, role, project="default")
        return self.house.client(self.admin.create_token("journey", principal=name).secret)

    def register(self, name: str, data: bytes, auc: float) -> ModelVersion:
        """Ana registers a file."""
        path = self.house.data.parent / name
        path.write_bytes(data)
        made = self.ana.register("churn", path, metrics={"auc": auc}, signature=models.SIGNATURE)
        assert made.created
        return made.version

    def agree(self, version: ModelVersion) -> None:
        """Ana asks, Ben agrees."""
        request = self.ana.open_request(version.reference, "production", "it is better")
        self.ben.review(request.id, "approve")

    def promote(self, version: ModelVersion) -> Rollout:
        """Ben promotes, and the rollout is watched to its end."""
        done = self.ben.promote(version.reference, "production", "it is better")
        assert done.rollout is not None
        rollout = done.rollout
        until(lambda: self.ben.get_rollout(rollout).state.finished, f"the end of {rollout}", 120)
        return self.ben.get_rollout(rollout)

    def production(self) -> str:
        """The version in production."""
        return self.ben.get_version("churn#production").semver


@pytest.fixture
def world() -> Iterator[World]:
    """An installation with tokens, Ana and Ben."""
    with running_house(auth="token") as house:
        yield World(house)


def test_the_life_of_a_model(world: World) -> None:
    """Registered, compared, approved by another, rolled out, taken back, explained, and proven."""
    # Given two versions, whose numbers were inferred, and a policy
    first = world.register("model.onnx", models.linear_onnx(1.0), auc=0.85)
    second = world.register("model.onnx", models.linear_onnx(2.0), auc=0.90)
    assert (first.semver, second.semver) == ("1.0.0", "1.1.0")
    assert second.bump == Bump.MINOR
    assert world.ana.best("churn", "auc").best.number == second.number
    assert [v.semver for v in world.ana.comparison("churn", metrics=["auc"]).versions] == ["1.0.0", "1.1.0"]
    world.ben.set_policy("churn", POLICY)

    # and an endpoint that serves the first one
    world.agree(first)
    world.ben.put_endpoint("churn", "churn", key_header="x-user-id", plan=QUICK, slow_ms=SLOW_MS)
    assert world.promote(first).state is RolloutState.SUCCEEDED
    callers = Callers(world.house, "churn")
    try:
        canary_succeeds(world, callers, second)
        between = datetime.now(UTC)
        worse_build_is_taken_back(world, callers)
        rolled_back_by_hand(world, callers)
    finally:
        callers.close()
    the_record_knows(world, second, between)
    a_flipped_byte_is_found(world, second)


def canary_succeeds(world: World, callers: Callers, second: ModelVersion) -> None:
    """The good version comes in with four eyes and step by step."""
    # When Ana asks for the second one, she cannot agree herself, and nothing moves without Ben
    request = world.ana.open_request(second.reference, "production", "auc +0.05")
    with pytest.raises(errors.SelfApproval):
        world.ana.review(request.id, "approve")
    with pytest.raises(errors.ApprovalRequired):
        world.ben.promote(second.reference, "production", "auc +0.05")
    assert world.house.run("gate", second.reference, "--to", "production").returncode == 8
    assert world.ben.review(request.id, "approve").reviews[0].by.name == "ben"

    # then a canary takes it to everybody, and no caller notices
    before = callers.seen()
    rollout = world.promote(second)
    assert rollout.state is RolloutState.SUCCEEDED, rollout.outcome
    assert rollout.candidate_counts.requests > 0
    assert world.production() == "1.1.0"
    after = callers.seen()
    assert after["failed"] == before["failed"] == 0
    assert after["versions"]["churn:1.1.0"] > 0
    assert after["moved_back"] == 0


def worse_build_is_taken_back(world: World, callers: Callers) -> None:
    """The bad version leaves by itself."""
    # When a build comes that fails for one caller in twenty, and looks better than all
    worse = world.register("model.joblib", models.misbehaving(models.RAISES_ABOVE_100), auc=0.99)
    world.agree(worse)
    before = callers.seen()
    rollout = world.promote(worse)

    # then it is taken back by itself, with evidence that can be recomputed, and callers saw none of it
    assert rollout.state is RolloutState.ROLLED_BACK
    assert rollout.judgement is not None
    assert rollout.judgement.blamed == "errors"
    assert rollout.judgement.p_value <= rollout.plan.alpha
    assert world.ben.explain_rollout(rollout.id).equal
    after = callers.seen()
    assert after["failed"] == before["failed"]
    assert after["answered"] > before["answered"]

    # and it cannot come again before somebody has looked
    assert world.production() == "1.1.0"
    with pytest.raises(errors.Tombstoned):
        world.ben.promote(worse.reference, "production", "again")
    assert world.house.run("promote", worse.reference, "--to", "production", "-m", "again").returncode == 3


def rolled_back_by_hand(world: World, callers: Callers) -> None:
    """A person has the last word."""
    # When Ben takes the second one back, the first is there at once, for the record and for callers
    done = world.ben.rollback("churn", "complaints")
    assert done.version is not None
    assert (done.version.semver, world.production()) == ("1.0.0", "1.0.0")

    def left() -> bool:
        first, later = callers.seen()["versions"], callers.seen()["versions"]
        return later["churn:1.1.0"] == first["churn:1.1.0"] and later["churn:1.0.0"] > first["churn:1.0.0"]

    until(left, "everybody is answered by the first, and nobody by the second any more")


def the_record_knows(world: World, second: ModelVersion, between: datetime) -> None:
    """What was when can be asked and proven."""
    # Then one can still say what was live in between, who wanted it and who agreed
    was = world.ana.whatwas("churn#production", between)
    assert was.version.digest == second.digest
    assert was.approved_by == ("ben",)
    assert was.request is not None
    assert was.request.requested_by.name == "ana"
    assert was.interval.rollout is not None
    assert world.ana.get_rollout(was.interval.rollout).started_by.name == "ben"
    stays = [stay.semver for stay in world.ana.history("churn", stage="production").intervals]
    assert stays == ["1.0.0", "1.1.0", "1.0.0"]
    assert world.admin.verify_audit().intact


def a_flipped_byte_is_found(world: World, second: ModelVersion) -> None:
    """Bytes are checked, and not believed."""
    # And when a stored byte changes, the next look finds it and names the version
    assert world.house.run("fsck").returncode == 0
    flip(world.house, second.files[0].digest)
    found = world.house.run("fsck")
    assert found.returncode == 1
    assert second.reference in found.stdout
    assert not world.admin.verify_version(second.reference).ok
    flip(world.house, second.files[0].digest)
    assert world.house.run("fsck").returncode == 0


def flip(house: House, digest: Digest) -> None:
    """Turn one bit of a stored blob."""
    name = digest.removeprefix("sha256:")
    path = house.data / "blobs" / "sha256" / name[:2] / name[2:]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
