"""What a gateway tells of itself: to its owner (status), to monitoring (the metrics page), to callers (the
description of an endpoint) and to the control plane (the report).

Readings of one moment; nothing is changed, and nothing is asked of another process.
"""

import os
import time
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec

from modelkeep import telemetry
from modelkeep.core import codec
from modelkeep.core.observation import GatewayReport, state_of
from modelkeep.serving import openapi
from modelkeep.serving.contact import Contact
from modelkeep.serving.fronts import Fronts
from modelkeep.serving.ledger import Ledger
from modelkeep.serving.metrics import Metrics
from modelkeep.serving.mover import Mover
from modelkeep.serving.options import GatewayOptions
from modelkeep.serving.recorder_unit import RecorderUnit
from modelkeep.serving.versions import Versions


class Place(Protocol):
    """The parts of a gateway, as they are told of."""

    name: str
    url: str
    options: GatewayOptions
    mover: Mover
    draining: bool
    started: float
    versions: Versions
    fronts: Fronts
    contact: Contact
    ledger: Ledger
    metrics: Metrics
    recorder: RecorderUnit


def report(place: Place) -> GatewayReport:
    """What there is to tell the control plane."""
    return GatewayReport(
        gateway=place.name,
        table=place.contact.after or place.mover.live.number,
        url=place.url,
        sent_at=datetime.now(UTC),
        routes=tuple(state_of(route) for route in place.mover.live.routes),
        versions=tuple(unit.report() for unit in place.versions),
        ticks=place.ledger.to_send(),
        rollbacks=place.mover.pending,
    )


def status(place: Place) -> dict[str, Any]:
    """How the gateway stands, for a person."""
    label = place.versions.label
    routes = [
        {
            "endpoint": route.endpoint,
            "epoch": {"term": route.epoch.term, "seq": route.epoch.seq},
            "stable": label(route.stable),
            "candidate": label(route.candidate) if route.candidate else None,
            "candidate_ppm": route.candidate_ppm,
            "others": [
                {"version": label(other.key), "weight_ppm": other.weight_ppm} for other in route.others
            ],
            "previous": label(route.previous) if route.previous else None,
            "rollout": route.rollout,
        }
        for route in place.mover.live.routes
    ]
    versions = [
        {
            **msgspec.to_builtins(unit.report()),
            "digest": unit.spec.digest,
            "version": unit.spec.label,
            "pid": unit.pid,
            "workers": [
                {"pid": each.pid, "phase": each.phase, "device": each.device} for each in unit.workers
            ],
        }
        for unit in place.versions
    ]
    return {
        "gateway": place.name,
        "url": place.url,
        "pid": os.getpid(),
        "table": place.mover.live.number,
        "serial": place.mover.serial,
        "draining": place.draining,
        "uptime_s": time.monotonic() - place.started,
        "device": place.options.device,
        "cards": [card.label for card in place.versions.cards],
        "memory_budget_bytes": place.options.memory_budget_bytes,
        "memory_bytes": telemetry.process_use().memory_bytes,
        "contact_age_s": place.contact.age_s,
        "journal_ok": place.mover.scribe.ok,
        "recorder": place.recorder.status(place.metrics.log),
        "rollbacks_waiting": len(place.mover.pending),
        "ticks_waiting": place.ledger.waiting,
        "callers_lost": place.ledger.lost,
        "fronts": [
            {"pid": front.pid, "starts": front.starts, "alive": front.alive} for front in place.fronts
        ],
        "routes": routes,
        "versions": versions,
    }


def described(place: Place, endpoint: str) -> str:
    """An endpoint in OpenAPI, by the version that answers there; empty when there is none."""
    route = place.mover.live.route(endpoint)
    if route is None:
        return ""
    closed = place.options.callers_token_file is not None
    found = openapi.document(route, place.mover.live.version(route.stable), place.url, closed=closed)
    return codec.encode(found).decode()


def metrics_page(place: Place) -> str:
    """The metrics in Prometheus' text format."""
    use = telemetry.process_use()
    return place.metrics.render(
        place.mover.live,
        [unit.report() for unit in place.versions],
        place.versions.labels,
        contact_age_s=place.contact.age_s,
        ticks_waiting=place.ledger.waiting,
        journal_ok=place.mover.scribe.ok,
        cpu_s=use.cpu_s,
        memory_bytes=use.memory_bytes,
        budget_bytes=place.options.memory_budget_bytes,
    )
