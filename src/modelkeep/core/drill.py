"""A rehearsed rollback: what it needs, what a gateway measured, and what is kept of it.

The drill itself is the gateway's business (`serving.drills`), who may order one the service's.
"""

import math
from datetime import datetime
from typing import Annotated

from msgspec import Meta, Struct

from modelkeep.core import errors, values

TOOK_MS_MAX = 600_000.0
"""A rollback that takes ten minutes is no drill."""


class DrillPlan(Struct, frozen=True, kw_only=True):
    """What a drill of an endpoint would do: take `stands` away for a moment, in favour of `former`."""

    endpoint: str
    model: str
    stands: str
    former: str
    gateways: tuple[str, ...]


class Measured(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a gateway measured.

    Attributes:
        took_ms: from the command to the last request sent to the version taken away.
        confirmed_ms: from the command until every front obeyed.
        back_ms: what putting the version back took.
        hold_s: how long the former version answered.
        live: whether there was traffic; without any, the time says little.
    """

    gateway: Annotated[str, Meta(max_length=values.NAME_MAX)]
    took_ms: float
    confirmed_ms: float
    back_ms: float
    hold_s: float
    live: bool
    fronts: Annotated[int, Meta(ge=1, le=10_000)] = 1


class Drill(Struct, frozen=True, kw_only=True):
    """A drill that was done, as its event has it."""

    sequence: int
    endpoint: str
    model: str
    stands: str
    former: str
    at: datetime
    by: str
    reason: str
    measured: Measured


def check_measured(found: Measured) -> Measured:
    """Refuse what no clock can have measured.

    Raises:
        InvalidName, Invalid: names what is off.
    """
    values.check_name(found.gateway, "gateway")
    for name, value in (
        ("took_ms", found.took_ms),
        ("confirmed_ms", found.confirmed_ms),
        ("back_ms", found.back_ms),
        ("hold_s", found.hold_s * 1_000),
    ):
        if not (math.isfinite(value) and 0 <= value <= TOOK_MS_MAX):
            raise errors.Invalid(f"'{name}' is a time of 0 to ten minutes.", field=name)
    if found.took_ms > found.confirmed_ms:
        raise errors.Invalid("No request is sent to a version after all fronts left it.", field="took_ms")
    return found
