"""Versions whose process prints without end, or writes into its connections what is no answer: whoever asked
is told, the process goes on, and nobody else notices."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from modelkeep.core.routing import Epoch, Route, RoutingTable
from tests.serving import models
from tests.serving.control_plane import FakeControlPlane, until
from tests.serving.gateways import Gateway, running

pytestmark = [pytest.mark.journey, pytest.mark.network, pytest.mark.req("S2")]

_WRITE = """
import os, socket, struct
for number in range(3, 64):
    try:
        with socket.socket(fileno=os.dup(number)) as one:
            if one.getsockname():  # a front's connection
                one.getpeername()
                one.send({data})
    except OSError:
        pass
"""


def writing(data: str) -> bytes:
    """A model that writes bytes to every front when it is asked about more than 100."""
    program = _WRITE.format(data=data)
    return models.misbehaving(f"x[0, 0] > 100 and exec({program!r}) or {models.ECHO}")


FRAMED = "b''.join(struct.pack('!IIB', 4, number, 3) + b'oops' for number in range(1_000))"
FILES = {
    "prints": {"model.joblib": models.misbehaving(f"print('x' * 3_000_000) or {models.ECHO}")},
    "garbage": {"model.joblib": writing("b'garbage' * 20")},
    "framed": {"model.joblib": writing(FRAMED)},
}
SPECS = {name: models.spec(files, "1.0.0", model=name) for name, files in FILES.items()}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway that serves all of them."""
    routes = (Route(endpoint=name, epoch=Epoch(1, 1), stable=one.key) for name, one in SPECS.items())
    folder: Path = tmp_path_factory.mktemp("nonsense")
    with FakeControlPlane() as plane:
        for files in FILES.values():
            plane.blobs.update(models.blobs(files))
        plane.publish(RoutingTable(number=1, routes=tuple(routes), versions=tuple(SPECS.values())))
        with running(folder / "gw", plane.url) as made:
            for name in FILES:
                made.wait_route(name, stable=f"{name}:1.0.0")
            yield made


@pytest.mark.hostile("foreign-models")
def test_a_model_may_print_as_much_as_it_likes(gateway: Gateway) -> None:
    """Its pipe is read and all but the end is dropped, so that printing keeps no request waiting."""
    for _ in range(5):
        assert gateway.predict([[10, 0]], endpoint="prints").json() == {"outputs": [10.0]}


@pytest.mark.hostile("foreign-models")
@pytest.mark.parametrize(
    ("name", "status", "code"), [("garbage", 503, None), ("framed", 500, "MODEL_FAILED")]
)
def test_what_is_no_answer_is_told_and_forgotten(
    gateway: Gateway, name: str, status: int, code: str | None
) -> None:
    """Whoever asked is answered, at once, by the gateway itself; the next request by the same process."""
    pid = gateway.version(f"{name}:1.0.0")["pid"]
    told = gateway.predict([[120, 0]], endpoint=name)
    assert told.status == status
    assert code is None or told.json()["code"] == code
    assert status != 503 or told.headers["retry-after"] == "1"
    until(lambda: gateway.predict([[10, 0]], endpoint=name).status == 200, "the next is answered")
    assert gateway.version(f"{name}:1.0.0")["pid"] == pid
