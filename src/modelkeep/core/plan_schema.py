"""The JSON Schema of rollout plans, made from their shapes, for editors and for whoever checks plans before
they are given to a server.

It tells each field's type, limits and meaning, and of the rules between fields those that a schema can say.
What is left (weights that rise, sums, times beside each other) is only known when a plan is read
(`plan.check_plan`), and what a strategy brings along is left to it too.
"""

from collections.abc import Collection
from typing import Any

from msgspec.json import schema as schema_of

from modelkeep.core.plan_shapes import SCHEMA, Goal, OnInconclusive, Plan, Strategy
from modelkeep.core.routing import WHOLE_PPM

OWN = ("steps", "preview_s", "shadow_ppm", "shadow_s")
"""What each strategy has its own of, where a plan leaves it out."""

_NONE: dict[str, Any] = {"type": "null"}
_LIMITED: tuple[tuple[tuple[Strategy, ...], dict[str, Any]], ...] = (
    (
        (Strategy.SHADOW,),
        {"steps": {"maxItems": 0}, "shadow_ppm": {"minimum": 1}, "shadow_s": {"exclusiveMinimum": 0}},
    ),
    (
        (Strategy.AB_TEST,),
        {"steps": {"minItems": 1, "items": {"properties": {"weight_ppm": {"exclusiveMaximum": WHOLE_PPM}}}}},
    ),
    ((Strategy.AB_TEST, Strategy.BLUE_GREEN, Strategy.IMMEDIATE), {"steps": {"maxItems": 1}}),
    ((Strategy.AB_TEST, Strategy.SHADOW), {"automatic": {"const": True}}),
    (
        (Strategy.CANARY, Strategy.BLUE_GREEN, Strategy.ROLLING, Strategy.IMMEDIATE),
        {"steps": {"contains": {"properties": {"weight_ppm": {"const": WHOLE_PPM}}}}},
    ),
)
"""What fields of a plan of these strategies may be."""
_ALONE: tuple[tuple[tuple[Strategy, ...], dict[str, Any]], ...] = (
    ((Strategy.BLUE_GREEN,), {"preview_s": {"maximum": 0}}),
    (
        (Strategy.AB_TEST,),
        {
            "ends_at": _NONE,
            "goal": {"const": Goal.ERRORS.value},
            "promote_winner": {"const": False},
            "versions": {"maxItems": 0},
        },
    ),
    (
        (Strategy.CANARY,),
        {"on_inconclusive": {"const": OnInconclusive.HOLD.value}, "prediction_shift": _NONE},
    ),
    (
        (Strategy.CANARY, Strategy.SHADOW),
        {"shadow_ppm": {"maximum": 0}, "shadow_s": {"maximum": 0}, "shadow_pairs": {"maximum": 1}},
    ),
    ((Strategy.CANARY, Strategy.AB_TEST, Strategy.SHADOW), {"quality": _NONE}),
)
"""What belongs to these strategies alone, as it is in a plan of any other."""


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a plan; its `$id` has the version of the form that it describes."""
    made = schema_of(Plan)
    definitions = made.pop("$defs")
    plan = definitions.pop("Plan")
    tidy(plan)
    for shape in (plan, *definitions.values()):
        shape["description"] = " ".join(shape["description"].split())
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:{SCHEMA.replace('/', ':')}",
        **plan,
        "title": "Modelkeep rollout plan",
        "$defs": definitions,
    }


def tidy(plan: dict[str, Any]) -> None:
    """Have the schema of a plan, as it is made of its shape, say what its fields may be together, and nothing
    of what strategies bring along."""
    for name in OWN:
        plan["properties"][name].pop("default")
    plan["allOf"] = [
        *({"if": _of(strategies), "then": {"properties": fields}} for strategies, fields in _LIMITED),
        *({"if": _of(strategies), "else": {"properties": fields}} for strategies, fields in _ALONE),
        _judged_where_asked("quality"),
        _judged_where_asked("prediction_shift"),
        {
            "if": {"properties": {"goal": {"const": Goal.QUALITY.value}}, "required": ["goal"]},
            "then": _said("quality"),
        },
    ]


def _of(strategies: Collection[Strategy]) -> dict[str, Any]:
    """A plan of one of these strategies; one that names none is a canary."""
    named: dict[str, Any] = {"properties": {"strategy": {"enum": [each.value for each in strategies]}}}
    return named if Strategy.CANARY in strategies else named | {"required": ["strategy"]}


def _said(field: str) -> dict[str, Any]:
    """A plan with this field, and not with none in it."""
    return {"properties": {field: {"not": _NONE}}, "required": [field]}


def _judged_where_asked(field: str) -> dict[str, Any]:
    """Where a plan divides alpha itself, there is a share for this if and only if the plan has it judged."""
    some = {"properties": {field: {"exclusiveMinimum": 0}}, "required": [field]}
    return {
        "if": {"required": ["metrics"]},
        "then": {
            "if": _said(field),
            "then": {"properties": {"metrics": some}},
            "else": {"properties": {"metrics": {"not": some}}},
        },
    }
