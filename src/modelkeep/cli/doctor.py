"""The doctor's checks: each looks at one thing and says what to do about it. It changes nothing.

A check that cannot be made where the command runs, such as that of a remote server's disk, is left out.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from msgspec import Struct

from modelkeep import __version__
from modelkeep.client import Client
from modelkeep.client.transport import Request
from modelkeep.core import errors
from modelkeep.settings import Settings

SKEW_MAX_S = 5.0
"""Clocks that differ by more make times in two logs hard to read together."""
DISK_MIN_SHARE = 0.05
DISK_MIN_BYTES = 1024**3
"""Less free space than this share, or than this, is told before it is too late."""


class Check(Struct, frozen=True, kw_only=True):
    """One thing that was looked at; `advice` says what to do when it is not in order."""

    name: str
    ok: bool
    found: str
    advice: str = ""


def examine(client: Client, settings: Settings) -> list[Check]:
    """All checks, in the order in which one would look."""
    server = list(_server(client))
    checks = [*server, *_local(settings)]
    if server[0].ok:
        checks += [
            *_guarded("who you are", lambda: _caller(client)),
            *_guarded("gateways", lambda: _gateways(client)),
            *_guarded("endpoints", lambda: _agreement(client)),
        ]
    return checks


def _guarded(name: str, look: Callable[[], Check]) -> Iterator[Check]:
    """A check that asks the server; that it may not ask is a finding too."""
    try:
        yield look()
    except errors.ModelkeepError as problem:
        yield Check(name=name, ok=False, found="could not be asked", advice=problem.message)


def _server(client: Client) -> Iterator[Check]:
    began = time.monotonic()
    try:
        with client.http.open(Request(method="GET", path="/health")) as answer:
            date = answer.headers.get("Date")
            answer.read()
        health = client.health()
    except errors.ModelkeepError as problem:
        yield Check(name="server", ok=False, found=f"{client.url} does not answer", advice=problem.message)
        return
    yield Check(
        name="server", ok=True, found=f"{client.url} answers in {(time.monotonic() - began) * 500:.0f} ms"
    )
    same = health.version == __version__
    yield Check(
        name="release",
        ok=same,
        found=f"server {health.version}, here {__version__}",
        advice="" if same else "install the same release on both sides",
    )
    try:
        client.ready()
        yield Check(name="database", ok=True, found="answers, and its schema is this release's")
    except errors.ModelkeepError as problem:
        yield Check(name="database", ok=False, found="does not answer", advice=problem.message)
    if date is not None:
        skew_s = abs((datetime.now(UTC) - parsedate_to_datetime(date)).total_seconds())
        fine = skew_s <= SKEW_MAX_S
        advice = "" if fine else "set both clocks by NTP; order in the log does not depend on it"
        yield Check(name="clock", ok=fine, found=f"{skew_s:.0f} s apart from the server's", advice=advice)


def _caller(client: Client) -> Check:
    found = client.whoami()
    sure = " (asserted)" if found.actor.asserted else ""
    return Check(name="who you are", ok=True, found=f"{found.actor.name}{sure}, mode {found.mode.value}")


def _gateways(client: Client) -> Check:
    endpoints = list(client.list_endpoints())
    if not endpoints:
        return Check(name="gateways", ok=True, found="no endpoint, so none is needed")
    seen = {g.gateway: g for e in endpoints for g in client.rollout_status(e.name).gateways}
    silent = [g for g in seen.values() if not g.answering]
    if not seen:
        advice = "start one with 'modelkeep gateway'"
        return Check(
            name="gateways", ok=False, found=f"{len(endpoints)} endpoints and no gateway", advice=advice
        )
    return Check(
        name="gateways",
        ok=not silent,
        found=f"{len(seen) - len(silent)} of {len(seen)} answer",
        advice=f"look at the log of {silent[0].gateway} at {silent[0].url}" if silent else "",
    )


def _agreement(client: Client) -> Check:
    """Whether endpoints serve what they follow, as the reconciler saw it last."""
    endpoints = list(client.list_endpoints())
    apart = [e for e in endpoints if e.disagreement is not None]
    if not apart:
        return Check(name="endpoints", ok=True, found=f"{len(endpoints)}, each serves what it follows")
    first = apart[0]
    assert first.disagreement is not None, "it was asked for a line ago"
    return Check(
        name="endpoints",
        ok=False,
        found=f"{len(apart)} of {len(endpoints)} do not agree; {first.name}: {first.disagreement.why}",
        advice=f"see 'modelkeep endpoint show {first.name}'",
    )


def _local(settings: Settings) -> Iterator[Check]:
    """The data folder, where it is on this machine."""
    folder = settings.folder
    if not folder.is_dir():
        return
    usage = shutil.disk_usage(folder)
    fine = usage.free >= DISK_MIN_BYTES and usage.free >= usage.total * DISK_MIN_SHARE
    yield Check(
        name="disk",
        ok=fine,
        found=f"{usage.free / 1024**3:.1f} GiB of {usage.total / 1024**3:.1f} GiB are free for {folder}",
        advice="" if fine else "make room, or move the data to a larger disk; a full disk stops all writes",
    )
    if not settings.blobs_place.startswith("s3://"):
        place = Path(settings.blobs_place)
        writable = os.access(place if place.exists() else folder, os.W_OK)
        yield Check(
            name="blobs",
            ok=writable,
            found=f"{place} can {'' if writable else 'not '}be written",
            advice="" if writable else "give the server's user the right to write there",
        )
    private = folder.stat().st_mode & 0o077 == 0
    yield Check(
        name="folder",
        ok=private,
        found=f"{folder} is {'private' if private else 'open to other users of this machine'}",
        advice="" if private else f"run 'chmod 700 {folder}'",
    )
