"""The gateway's token over real restarts of a real server, which makes a new one at each start."""

import time
from functools import partial

import pytest

from modelkeep.core.errors import GatewayUnavailable
from tests.journeys.apart import Site
from tests.serving.control_plane import until
from tests.serving.gateways import Gateway, running

pytestmark = [pytest.mark.journey, pytest.mark.network]


def heard(gateway: Gateway, within_s: float) -> bool:
    """Whether the gateway had an answer so lately."""
    try:
        age_s = gateway.status()["contact_age_s"]
    except GatewayUnavailable:  # it answers callers a moment before it takes commands
        return False
    return age_s is not None and age_s < within_s


def heard_since(gateway: Gateway, since: float) -> bool:
    """The same, from a moment of this machine's monotonic clock on."""
    return heard(gateway, time.monotonic() - since)


@pytest.mark.req("S1", "G8")
def test_a_restarted_server_refuses_its_gateway_nothing() -> None:
    """The server is killed and started again: what the gateway asks while it starts waits in the listening
    socket with the former token, and is still answered; its log has no word of a token."""
    with Site({}) as site:
        server = site.server("house")
        data = server.folder / "gateway"
        with running(data, server.url) as gateway:
            until(lambda: heard(gateway, 5.0), "the first answer")
            former = (data / "token").read_text()
            for _ in range(2):
                server.kill()
                server.start()
                since = time.monotonic()
                until(partial(heard_since, gateway, since), "an answer after the start")
            assert (data / "token").read_text() != former
            log = gateway.log()
            assert "No table was to be had" in log  # it did ask while nobody was there
            assert "token" not in log, log
