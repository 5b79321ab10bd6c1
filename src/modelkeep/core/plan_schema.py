"""The JSON Schema of rollout plans, made from their shapes, for editors and for whoever checks plans before
they are given to a server.

It tells each field's type, limits and meaning. What two fields may be together is only known when a plan is
read (`plan.check_plan`), and what a strategy brings along is left to it too.
"""

from typing import Any

from msgspec.json import schema as schema_of

from modelkeep.core.plan_shapes import SCHEMA, Plan

OWN = ("steps", "preview_s", "shadow_ppm", "shadow_s")
"""What each strategy has its own of, where a plan leaves it out."""


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a plan; its `$id` has the version of the form that it describes."""
    made = schema_of(Plan)
    definitions = made.pop("$defs")
    plan = definitions.pop("Plan")
    for name in OWN:
        plan["properties"][name].pop("default")
    for shape in (plan, *definitions.values()):
        shape["description"] = " ".join(shape["description"].split())
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:{SCHEMA.replace('/', ':')}",
        **plan,
        "title": "Modelkeep rollout plan",
        "$defs": definitions,
    }
