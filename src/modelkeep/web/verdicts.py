"""The operations of verdicts and simulations, for controllers, pipelines and people: each takes a decoded
call, asks the core, and returns its shape, or says no by a status code where a gate is asked. No decision is
made here.
"""

from typing import Any

from modelkeep.core import verdicts as core
from modelkeep.core.plan import Plan
from modelkeep.core.verdicts import Gate
from modelkeep.service import simulations
from modelkeep.service.act import Act
from modelkeep.web.operations import Call
from modelkeep.web.shapes import Shape


class VerdictQuery(Shape, frozen=True, kw_only=True):
    """With a gate, the status says yes (200) or no (403, 409); without one it is always 200."""

    gate: Gate | None = None


def get_verdict(act: Act, call: Call) -> Any:
    """What a rollout's evidence says; it is named by its id or by its endpoint."""
    return _verdict(act, call, call.path["id"])


def endpoint_verdict(act: Act, call: Call) -> Any:
    """The same of an endpoint's rollout under way, or its last one."""
    return _verdict(act, call, call.path["name"])


def _verdict(act: Act, call: Call, name: str) -> Any:
    found = core.verdict_of(call.house.rollouts.get_rollout(act, name))
    core.check_gate(found, call.query.gate)
    return found


class Trial(Shape, frozen=True, kw_only=True):
    """The plan to lead a former rollout through; its own when left out."""

    plan: Plan | None = None


def simulate_rollout(act: Act, call: Call) -> Any:
    """What would have come of a rollout under another plan."""
    return simulations.simulated(act, call.house.rollouts, call.path["id"], call.body.plan)


def judge_counts(act: Act, call: Call) -> Any:
    """A verdict on counts that somebody else's router made; nothing of it is kept."""
    del act  # whoever may speak here may have arithmetic done
    found = core.judge_counts(call.body)
    core.check_gate(found, call.query.gate)
    return found
