"""What is said of a gateway on the command line reaches the gateway; none is started here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelkeep import telemetry
from modelkeep.serving import main
from modelkeep.serving.options import GatewayOptions

pytestmark = pytest.mark.req("U1", "S2")


@pytest.fixture
def run(
    modelkeep: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., GatewayOptions]:
    """Run `gateway run` with some words, up to where the gateway would begin. Returns what it was given."""
    given: list[GatewayOptions] = []

    def instead(options: GatewayOptions, **_: Any) -> None:
        given.append(options)

    def keep_logging(**_: Any) -> None:
        """The tests' own logging stays as it is."""

    monkeypatch.setattr(main, "run_gateway", instead)
    monkeypatch.setattr(telemetry, "configure", keep_logging)

    def call(*words: str) -> GatewayOptions:
        ran = modelkeep("gateway", "run", "--data", str(tmp_path), *words)
        assert ran.code == 0, ran.err
        return given.pop()

    return call


def test_sizes_and_times_of_memory_reach_the_gateway(
    run: Callable[..., GatewayOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By option, else by variable, else there is no limit; each under its own name."""
    plain = run()
    assert (plain.memory_budget_bytes, plain.worker_memory_bytes, plain.sleep_after_s) == (0, 0, 300.0)
    said = run("--worker-memory", "4GiB", "--memory-budget", "2GiB", "--idle-timeout", "60")
    assert said.worker_memory_bytes == 4 * 1024**3
    assert (said.memory_budget_bytes, said.sleep_after_s) == (2 * 1024**3, 60.0)
    monkeypatch.setenv("MODELKEEP_GATEWAY_WORKER_MEMORY", "512MiB")
    assert run().worker_memory_bytes == 512 * 1024**2
