"""A gateway that starts on a disk which takes nothing: it serves and rolls back as its journal and cache say,
says that nothing can be recorded, and records again when there is room. Disks are small real ones, in mounts
of their own that nobody else sees; the tests need root for them."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from modelkeep.core import codec, errors
from modelkeep.core.routing import Epoch, Route, RoutingTable
from modelkeep.serving import control
from modelkeep.serving.journal import DiskFile, Journal, Record, RecordKind
from modelkeep.serving.main import run_gateway
from modelkeep.serving.options import GatewayOptions
from tests.servers import missing
from tests.serving import models
from tests.serving.control_plane import FakeControlPlane, until
from tests.serving.gateways import Gateway, briefly, live, replayed

pytestmark = [pytest.mark.journey, pytest.mark.network]

ONE, TWO = ({"model.onnx": models.linear_onnx(slope)} for slope in (1.0, 2.0))
V1, V2 = models.spec(ONE, "1.0.0"), models.spec(TWO, "2.0.0")
STABLE, CANARY = ("churn", "churn:1.0.0", None, 0), ("churn", "churn:1.0.0", "churn:2.0.0", 500_000)
AT_REST = ("churn", "churn:1.0.0", "churn:2.0.0", 0)
ROOT = Path(__file__).parents[2]
CHILD_S = 120.0
BLOCK_BYTES = 4096
"""Of a tmpfs."""


def table(number: int, **changed: Any) -> RoutingTable:
    """A canary at half."""
    fields: dict[str, Any] = {
        "endpoint": "churn", "epoch": Epoch(1, number), "stable": V1.key, "candidate": V2.key,
        "candidate_ppm": 500_000, "salt": "salt", "rollout": "ro_1", "key_header": "X-User",
        "log_ppm": 1_000_000,
    }  # fmt: skip
    return RoutingTable(number=number, routes=(Route(**{**fields, **changed}),), versions=(V1, V2))


def on_a_disk(scenario: Callable[[Path], None], folder: Path, *commands: str) -> None:
    """Run a scenario of this file in a process with mounts of its own, which end with it."""
    if os.geteuid() != 0:
        missing("the right to mount a small disk", "run as root")
    if subprocess.run(["unshare", "-m", "true"], check=False, timeout=CHILD_S).returncode != 0:
        missing("a namespace for mounts", "root without the right to unshare")
    disk = folder / "disk"
    disk.mkdir()
    mounted = " && ".join((*(command.format(disk=disk) for command in commands), 'exec "$@"'))
    before = ("unshare", "--mount", "--propagation", "private", "sh", "-c", mounted, "sh")
    program = f"from pathlib import Path; from {__name__} import {scenario.__name__} as run; run(Path.cwd())"
    done = subprocess.run(
        [*before, "env", "--chdir", str(disk), f"PYTHONPATH={ROOT}", sys.executable, "-c", program],
        check=False,
        capture_output=True,
        text=True,
        timeout=CHILD_S,
    )
    assert done.returncode == 0, done.stderr[-6000:]


def fill(disk: Path, journal: Path) -> Path:
    """Leave no room, not even behind the journal's last word: that ends where a block of the disk ends."""
    told, now = Journal(DiskFile(journal)), datetime.now(UTC)
    assert told.open().clean
    opened, ended = (Record(kind=kind, at=now, cause=".") for kind in (RecordKind.OPENED, RecordKind.CLOSED))
    lines = sum(66 + len(codec.encode(record)) for record in (opened, ended))
    more = -(journal.stat().st_size + lines) % BLOCK_BYTES
    told.append(structs.replace(opened, cause="." * (1 + more)), ended)
    told.close()
    assert journal.stat().st_size % BLOCK_BYTES == 0
    filler = disk / "filler"
    with open(filler, "wb") as file, contextlib.suppress(OSError):
        while True:
            os.write(file.fileno(), bytes(BLOCK_BYTES))
    return filler


def served(gateway: Gateway) -> bool:
    """Whether callers are answered."""
    try:
        return gateway.predict([[1, 1]]).status == 200
    except OSError:
        return False


def starts_full(disk: Path) -> None:
    """Stopped, started on a full disk, killed, started again; then there is room."""
    with FakeControlPlane() as plane:
        for files in (ONE, TWO):
            plane.blobs.update(models.blobs(files))
        plane.publish(table(1))
        gateway = Gateway(disk / "gw", plane.url, log=disk.parent / "log").start()
        try:
            gateway.wait_route("churn", candidate="churn:2.0.0", candidate_ppm=500_000)
            plane.stop()
            assert gateway.stop() == 0
            filler = fill(disk, gateway.data / "journal.jsonl")

            gateway.start()
            until(lambda: served(gateway), f"callers are answered; {gateway.log()[-2000:]}")
            assert live(gateway) == [CANARY], "as the journal has it"
            assert not gateway.status()["journal_ok"]
            assert "NOTHING CAN BE RECORDED" in gateway.log()
            assert "modelkeep_gateway_journal_ok 0" in gateway.request("GET", "/metrics").body.decode()

            gateway.kill()
            gateway.start()
            until(lambda: served(gateway), "callers are answered")
            assert live(gateway) == [AT_REST], "the next start knows that the last did not end"
            plane.start()
            plane.publish(table(2, candidate_ppm=900_000))
            until(lambda: gateway.status()["contact_age_s"] is not None, "the control plane is heard")
            done = control.call(gateway.data, "rollback", endpoint="churn", reason="it is bad")
            assert (done["journaled"], done["version"]) == (False, "churn:1.0.0")
            assert live(gateway) == [STABLE]
            until(lambda: bool(plane.rollbacks), "the control plane is told")

            filler.unlink()
            until(lambda: gateway.status()["journal_ok"], "what was missed is made up for")
            assert briefly(replayed(gateway)) == live(gateway) == [STABLE]
        finally:
            gateway.close()


@pytest.mark.hostile("exhaustion")
@pytest.mark.req("S1", "S7")
def test_a_gateway_starts_on_a_full_disk(tmp_path: Path) -> None:
    """It serves the table of its journal, takes candidates back, knows afterwards that it ran, and records
    again with the first room."""
    on_a_disk(starts_full, tmp_path, "mount -t tmpfs -o size=80m tmpfs '{disk}'")


def starts_read_only(disk: Path) -> None:
    """Stopped, started where nothing can be written any more, and stopped."""
    with FakeControlPlane() as plane:
        for files in (ONE, TWO):
            plane.blobs.update(models.blobs(files))
        plane.publish(table(1))
        gateway = Gateway(disk / "gw", plane.url, log=disk.parent / "log").start()
        try:
            gateway.wait_route("churn", candidate="churn:2.0.0", candidate_ppm=500_000)
            assert gateway.stop() == 0
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            gateway.start()
            until(lambda: served(gateway), f"callers are answered; {gateway.log()[-2000:]}")
            until(lambda: gateway.status()["contact_age_s"] is not None, "the control plane is heard")
            assert live(gateway) == [AT_REST], "the next start could not know what this one did"
            done = control.call(gateway.data, "rollback", endpoint="churn", reason="it is bad")
            assert (done["journaled"], live(gateway)) == (False, [STABLE])
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
            until(lambda: gateway.status()["journal_ok"], "what was missed is made up for")
            assert briefly(replayed(gateway)) == [STABLE]
        finally:
            gateway.close()


@pytest.mark.long
@pytest.mark.req("S1", "S7")
def test_a_gateway_starts_on_a_disk_that_was_made_read_only(tmp_path: Path) -> None:
    """As a system does with a disk that fails: stable serves, nobody else does, and rolling back works."""
    on_a_disk(starts_read_only, tmp_path, "mount -t tmpfs -o size=80m tmpfs '{disk}'")


def starts_first(disk: Path) -> None:
    """Started for the first time where there is no room."""
    data = disk / "gw"
    data.mkdir()
    for free in (0, 1):  # for the lock
        with contextlib.suppress(OSError):
            for number in range(1_000):
                (data / f"{number}").touch()
        for number in range(free):
            (data / f"{number}").unlink()
        with pytest.raises(errors.InvalidSetting, match=r"cannot be used.*No space left"):
            run_gateway(GatewayOptions(data=data, port=0))


@pytest.mark.req("S1")
def test_a_first_start_without_room_says_so(tmp_path: Path) -> None:
    """Where there is no journal and none can be made there is nothing to serve, and a sentence says it."""
    on_a_disk(starts_first, tmp_path, "mount -t tmpfs -o size=1m,nr_inodes=20 tmpfs '{disk}'")
