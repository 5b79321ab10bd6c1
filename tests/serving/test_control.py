"""Commands to a running gateway where its socket cannot be found or seen."""

from pathlib import Path

import pytest

from modelkeep.core import errors
from modelkeep.serving import control


def test_a_folder_that_no_gateway_runs_on_is_said(tmp_path: Path) -> None:
    """Whether it is there or not."""
    for data in (tmp_path, tmp_path / "missing"):
        with pytest.raises(errors.GatewayUnavailable, match="No gateway runs on"):
            control.call(data, "status")


def test_a_socket_that_cannot_be_looked_at_is_an_error_of_ours(tmp_path: Path) -> None:
    """As one in a folder of another user, or under an address that no system takes."""
    (tmp_path / control.ADDRESS_FILE).write_text("/" + "x" * 5_000)
    with pytest.raises(errors.GatewayUnavailable, match="does not answer"):
        control.call(tmp_path, "status")
