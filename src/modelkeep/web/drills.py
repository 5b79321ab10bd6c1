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


class BegunDrill(Shape, frozen=True, kw_only=True):
    """Why somebody drills, and why it is to be although something speaks against it."""

    reason: Reason
    anyway: Reason | None = None


def prepare_drill(act: Act, call: Call) -> Any:
    """Whether an endpoint is fit for a drill."""
    return drills.prepare(act, call.house.rollouts, call.path["name"])


def begin_drill(act: Act, call: Call) -> Any:
    """Begin a drill, or say and keep why it may not be."""
    return drills.begin(act, call.house.rollouts, call.path["name"], call.body.reason, call.body.anyway)


def record_drill(act: Act, call: Call) -> Any:
    """Keep a drill."""
    b = call.body
    return drills.record(act, call.house.rollouts, call.path["name"], b.measured, b.reason)
