"""A real gateway with versions that bring their own packages, code and golden requests."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelkeep.core.routing import Epoch, Route, RoutingTable, VersionSpec
from modelkeep.serving import environments
from tests.serving import models
from tests.serving.control_plane import FakeControlPlane, until
from tests.serving.gateways import Gateway, running
from tests.serving.wheels import make_wheel, only_from

pytestmark = [
    pytest.mark.journey,
    pytest.mark.network,
    pytest.mark.skipif(environments.find_uv() is None, reason="uv is not installed"),
]

PREDICTOR = b"""
import tiny

class Predictor:
    def __init__(self, folder):
        self.slope = tiny.SLOPE

    def predict(self, columns):
        return {"score": (columns["age"] * self.slope + columns["income"]).astype("float32")}
"""
LOCKED = "environments='locked', allow_code=True"


@pytest.fixture
def plane() -> Iterator[FakeControlPlane]:
    """A control plane without files."""
    with FakeControlPlane() as made:
        yield made


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the gateway's uv finds its packages."""
    only_from(tmp_path / "wheels", monkeypatch)
    return tmp_path / "wheels"


def publish(plane: FakeControlPlane, *files: dict[str, bytes]) -> tuple[VersionSpec, ...]:
    """Serve each of these versions at an endpoint of its own."""
    specs = tuple(models.spec(one, f"{n}.0.0") for n, one in enumerate(files, 1))
    for one in files:
        plane.blobs.update(models.blobs(one))
    routes = tuple(
        Route(endpoint=f"e{spec.number}", epoch=Epoch(1, plane.table.number + 1), stable=spec.key)
        for spec in specs
    )
    plane.publish(RoutingTable(number=plane.table.number + 1, routes=routes, versions=specs))
    return specs


def error_of(gateway: Gateway, label: str) -> str:
    """What a version that cannot be loaded says."""
    until(
        lambda: gateway.version(label)["phase"] == "failed", f"{label} has failed; {gateway.version(label)}"
    )
    return str(gateway.version(label)["error"])


def own(requirement: str, slope: float) -> dict[str, bytes]:
    """A version with a class of its own, the package that it needs, and what it answers."""
    golden = {"requests": [{"inputs": [{"age": 10, "income": 1}], "outputs": [10 * slope + 1]}]}
    return {
        "predictor.py": PREDICTOR,
        "requirements.txt": requirement.encode(),
        "golden.json": json.dumps(golden).encode(),
    }


@pytest.mark.req("S1", "S2")
def test_two_versions_run_with_two_versions_of_a_package(
    tmp_path: Path, plane: FakeControlPlane, wheels: Path
) -> None:
    """Each is served from the environment of its own lock, which outlives a restart without any index."""
    lines = [make_wheel(wheels, "tiny", f"{n}.0", f"SLOPE = {n}.0") for n in (1, 2)]
    with running(tmp_path / "gw", plane.url, options=LOCKED) as gateway:
        publish(plane, own(lines[0], 1.0), own(lines[1], 2.0))
        for number in (1, 2):
            gateway.wait_route(f"e{number}", stable=f"churn:{number}.0.0")
            answer = gateway.predict([{"age": 3, "income": 0}], endpoint=f"e{number}")
            assert answer.json() == {"outputs": [3.0 * number]}
        for wheel in wheels.iterdir():
            wheel.unlink()
        assert gateway.stop() == 0
        gateway.start()
        gateway.wait_route("e2", stable="churn:2.0.0")
        assert gateway.predict([{"age": 3, "income": 0}], endpoint="e2").json() == {"outputs": [6.0]}


@pytest.mark.req("S1", "S2")
def test_what_cannot_be_served_says_why(tmp_path: Path, plane: FakeControlPlane, wheels: Path) -> None:
    """A package that is nowhere, an open list, another answer than the golden one: each fails alone."""
    line = make_wheel(wheels, "tiny", "1.0", "SLOPE = 1.0")
    with running(tmp_path / "gw", plane.url, options=LOCKED + ", backoff_first_s=0.01") as gateway:
        publish(plane, own("tiny==7.0", 7.0), own("tiny>=1", 1.0), own(line, 5.0), own(line, 1.0))
        assert "tiny==7.0" in error_of(gateway, "churn:1.0.0")
        assert "list exact versions" in error_of(gateway, "churn:2.0.0")
        assert "row 0 is 11.0 instead of 51.0" in error_of(gateway, "churn:3.0.0")
        gateway.wait_route("e4", stable="churn:4.0.0")
        assert gateway.predict([{"age": 3, "income": 0}], endpoint="e4").json() == {"outputs": [3.0]}


@pytest.mark.req("S1")
def test_code_runs_only_where_it_is_allowed(tmp_path: Path, plane: FakeControlPlane) -> None:
    """A gateway that was not told so runs no class of somebody's own, and says which option it is."""
    with running(tmp_path / "gw", plane.url) as gateway:
        publish(plane, own("", 1.0))
        assert "--allow-code" in error_of(gateway, "churn:1.0.0")
