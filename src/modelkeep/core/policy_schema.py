"""The JSON Schema of policy documents, made from their shapes, for editors and for whoever checks policies
before they are given to a server.

It tells each field's type, limits and meaning, the rollout plans in it among them. What a schema cannot say
(a gate that stands twice, a pattern that names no difference, a time zone that does not exist) is only known
when a policy is read (`policy.read_policy`).
"""

from typing import Any

from msgspec.json import schema as schema_of

from modelkeep.core import bump, plan_schema
from modelkeep.core.gates import CHECKLIST_MAX
from modelkeep.core.policy import (
    ALIASES_MAX,
    APPROVALS_MAX,
    EXPIRES_MAX_S,
    EXPIRES_MIN_S,
    GATES_MAX,
    SCHEMA,
    VOTING_ROLES,
    Policy,
)
from modelkeep.core.values import NAME_MAX, TEXT_MAX
from modelkeep.core.windows import TEXT_MAX as WINDOW_MAX
from modelkeep.core.windows import WINDOWS_MAX

_NAME = f"^[A-Za-z0-9][A-Za-z0-9._-]{{0,{NAME_MAX - 1}}}$"
_STAGE = f"^[a-z0-9][a-z0-9._-]{{0,{NAME_MAX - 1}}}$"
_TEXT = {"maxLength": TEXT_MAX}
_FILLED = {"minLength": 1, "maxLength": TEXT_MAX}
_PART = "Of the data, where the value was not measured on all of it."

_SAID: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "Policy": {
        "name": ("How people call it.", {"pattern": _NAME}),
        "schema": ("The form of this document.", {"const": SCHEMA}),
        "description": ("What it is for.", _TEXT),
        "stages": ("What each stage asks for.", {"propertyNames": {"pattern": _STAGE}}),
        "aliases": (
            "How traffic moves where an endpoint follows an alias.",
            {"propertyNames": {"pattern": _NAME}, "maxProperties": ALIASES_MAX},
        ),
        "rollout": ("How traffic moves behind stages and aliases that have no plan of their own.", {}),
        "drills": ("When rollbacks may be rehearsed.", {}),
        "versioning": ("How the numbers of new versions are inferred.", {}),
    },
    "StageRules": {
        "gates": ("What must hold, in the order in which it is told.", {"maxItems": GATES_MAX}),
        "approvals": ("Who has to agree.", {}),
        "rollout": ("How a promotion to this stage moves traffic.", {}),
    },
    "AliasRules": {"rollout": ("How traffic moves behind this alias.", {})},
    "Approvals": {
        "count": ("How many other people have to agree.", {"minimum": 0, "maximum": APPROVALS_MAX}),
        "roles": ("In which roles.", {"items": {"enum": list(VOTING_ROLES)}}),
        "expires_s": (
            "How long a request stays open.",
            {"minimum": EXPIRES_MIN_S, "maximum": EXPIRES_MAX_S, "x-unit": "seconds"},
        ),
    },
    "DrillRules": {
        "windows": (
            "Times of the week, such as `Mon-Fri 10:00-16:00 Europe/Berlin`; without any, at all times.",
            {"maxItems": WINDOWS_MAX, "items": {"type": "string", "minLength": 1, "maxLength": WINDOW_MAX}},
        )
    },
    "VersionRules": {
        "rules": (
            "The first that names a difference judges it; they stand before the default ones.",
            {"maxItems": bump.RULES_MAX},
        ),
        "metric_tolerance": (
            "Relative distance below which two values of a metric are the same.",
            {"minimum": 0, "exclusiveMaximum": 1},
        ),
        "extends": ("Whether the default rules follow.", {"enum": ["default", "nothing"]}),
    },
    "Rule": {
        "name": ("How the reasons name it.", {"pattern": "^[a-z0-9][a-z0-9_-]{0,63}$"}),
        "any_of": (
            "Kinds of difference, of which one has to be found.",
            {"minItems": 1, "maxItems": bump.PATTERNS_MAX},
        ),
        "all_of": ("All of these have to be found too.", {"maxItems": bump.PATTERNS_MAX}),
        "none_of": ("And none of these.", {"maxItems": bump.PATTERNS_MAX}),
        "bump": ("Which part of the number rises.", {}),
        "reason": (
            "In words; `{what}` is the difference's sentence and `{subject}` its name.",
            {"minLength": 1, "maxLength": bump.REASON_MAX},
        ),
    },
    "MetadataGate": {
        "fields": (
            "Fields of the metadata that say something, such as `business.owner`.",
            {"minItems": 1, "maxItems": CHECKLIST_MAX, "items": {"type": "string", "minLength": 1}},
        )
    },
    "MetricGate": {
        "name": ("Which metric, `auc@test[women]` as well.", _FILLED),
        "min": ("The least that it may be.", {}),
        "max": ("The most that it may be.", {}),
        "split": (_PART, {}),
        "slice": (_PART, {}),
    },
    "BetterThanGate": {
        "metric": ("Which metric, `auc@test[women]` as well.", _FILLED),
        "tolerance": ("By how much it may be worse than that of the version in the stage.", {"minimum": 0}),
        "by": ("By how much it has to be better.", {"minimum": 0}),
        "split": (_PART, {}),
        "slice": (_PART, {}),
    },
    "ChecklistGate": {
        "items": (
            "What somebody vouches for, with evidence, on the request.",
            {
                "minItems": 1,
                "maxItems": CHECKLIST_MAX,
                "uniqueItems": True,
                "items": {"type": "string", "pattern": r"^[^=]*[^=\s][^=]*$"},
            },
        )
    },
}
"""What each field means, and what it may be; of plans that stands beside their own."""
_NUMBER = {"type": "number"}
_TOGETHER: dict[str, dict[str, Any]] = {
    "Approvals": {
        "if": {"properties": {"count": {"minimum": 1}}, "required": ["count"]},
        "then": {"properties": {"roles": {"minItems": 1}}},
    },
    "MetricGate": {
        "anyOf": [{"properties": {side: _NUMBER}, "required": [side]} for side in ("min", "max")],
    },
    "BetterThanGate": {
        "if": {"properties": {"by": _NUMBER}, "required": ["by"]},
        "then": {"properties": {"tolerance": {"maximum": 0}}},
    },
}
"""What two fields may be together."""


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a policy; its `$id` has the version of the form that it describes."""
    definitions = schema_of(Policy)["$defs"]
    for name, fields in _SAID.items():
        properties = definitions[name]["properties"]
        for field, (meaning, limits) in fields.items():
            properties[field] |= {"description": meaning, **limits}
        definitions[name] |= _TOGETHER.get(name, {})
    for shape in definitions.values():
        if "mode" in shape.get("properties", {}):
            shape["properties"]["mode"]["description"] = "Whether it stops a promotion, or only warns."
        if "description" in shape:
            shape["description"] = " ".join(shape["description"].split())
    plan_schema.tidy(definitions["Plan"])
    definitions["Plan"]["properties"]["versions"]["maxItems"] = 0  # of one test, and of no policy
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:{SCHEMA.replace('/', ':')}",
        **definitions.pop("Policy"),
        "title": "Modelkeep policy",
        "$defs": definitions,
    }
