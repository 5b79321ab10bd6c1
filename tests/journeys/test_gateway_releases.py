"""A gateway whose files are replaced by another release's while it runs."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import modelkeep
from modelkeep.core.routing import Epoch, Route, RoutingTable
from modelkeep.serving import handshake
from tests.serving import models
from tests.serving.control_plane import FakeControlPlane, until
from tests.serving.gateways import kill, running

pytestmark = [pytest.mark.journey, pytest.mark.network]

ONE, TWO = ({"model.onnx": models.linear_onnx(slope)} for slope in (1.0, 2.0))
V1, V2 = models.spec(ONE, "1.0.0"), models.spec(TWO, "2.0.0")


@pytest.fixture
def plane() -> Iterator[FakeControlPlane]:
    """A control plane with two versions."""
    with FakeControlPlane() as made:
        made.blobs.update({**models.blobs(ONE), **models.blobs(TWO)})
        yield made


def publish(plane: FakeControlPlane, number: int) -> None:
    """A canary at half, anew."""
    route = Route(
        endpoint="churn", epoch=Epoch(number, 0), stable=V1.key, candidate=V2.key, candidate_ppm=500_000,
        salt="salt", rollout=f"ro_{number}", key_header="X-User",
    )  # fmt: skip
    plane.publish(RoutingTable(number=number, routes=(route,), versions=(V1, V2)))


def install_another(folder: Path) -> None:
    """Put the entry of a release with the next protocol where children find it first."""
    own = Path(modelkeep.__file__).parent
    (folder / "modelkeep" / "serving").mkdir(parents=True)
    (folder / "modelkeep" / "__init__.py").write_text('__version__ = "9.1.0"\n')
    for name in ("__init__.py", "child.py", "handshake.py"):
        text = (own / "serving" / name).read_text()
        changed = text.replace(f"PROTOCOL = {handshake.PROTOCOL}\n", f"PROTOCOL = {handshake.PROTOCOL + 1}\n")
        assert (changed != text) == (name == "handshake.py")
        (folder / "modelkeep" / "serving" / name).write_text(changed)


@pytest.mark.req("S1", "S7")
def test_a_worker_of_another_release_is_told_from_a_broken_one(
    tmp_path: Path, plane: FakeControlPlane
) -> None:
    """What cannot be started is said once and clearly, and is no crash of the version: the candidate is taken
    back, what runs goes on, and with the former files back all is as before."""
    other = tmp_path / "other"
    publish(plane, 1)
    options = f"environment={{'PYTHONPATH': {str(other)!r}, 'PYTHONDONTWRITEBYTECODE': '1'}}"
    with running(tmp_path / "gw", plane.url, options=options) as gateway:
        gateway.wait_route("churn", candidate="churn:2.0.0", candidate_ppm=500_000)
        install_another(other)
        kill(gateway.version("churn:2.0.0")["pid"])
        gateway.wait_route("churn", stable="churn:1.0.0", candidate=None)
        until(lambda: bool(plane.rollbacks), "the rollback is reported")
        assert plane.rollbacks[0].removed == V2.key
        told = [v for report in plane.reports for v in report.versions if v.key == V2.key and v.error]
        assert "release 9.1.0" in str(told[-1].error)
        assert "Restart the gateway" in str(told[-1].error)
        assert told[-1].crashes == 1  # the one that was killed
        assert gateway.predict([[10, 0]], X_User="u").version == "churn:1.0.0"
        assert "Traceback" not in gateway.log()

        kill(gateway.status()["fronts"][0]["pid"])
        until(lambda: "A front cannot be started" in gateway.log(), "the front says so too")
        shutil.rmtree(other)
        publish(plane, 3)
        gateway.wait_route("churn", candidate="churn:2.0.0", candidate_ppm=500_000)
        until(lambda: gateway.status()["fronts"][0]["alive"], "another front")
        assert gateway.predict([[10, 0]], X_User="u").status == 200
        assert "Traceback" not in gateway.log()
