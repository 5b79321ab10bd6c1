"""The operations of drills: each takes an act and a decoded call, calls one service function, and returns its
shape. No decision is made here."""

from typing import Any

from modelkeep.core.drill import Measured
from modelkeep.service import drills
from modelkeep.service.act import Act
from modelkeep.web.operations import Call
from modelkeep.web.shapes import Reason, Shape


class DoneDrill(Shape, frozen=True, kw_only=True):
    """What a gateway measured, and why somebody drilled."""

    measured: Measured
    reason: Reason


def prepare_drill(act: Act, call: Call) -> Any:
    """Whether an endpoint is fit for a drill."""
    return drills.prepare(act, call.house.rollouts, call.path["name"])


def record_drill(act: Act, call: Call) -> Any:
    """Keep a drill."""
    b = call.body
    return drills.record(act, call.house.rollouts, call.path["name"], b.measured, b.reason)
