"""The JSON Schemas of policies and plans: whatever they refuse, the reader refuses; and what can be said of
two fields together they do refuse."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from modelkeep.core import codec, errors, plan_schema, policy_schema
from modelkeep.core.plan import Strategy, read_plan
from modelkeep.core.policy import ALONE, TEAM, read_policy

PLANS = Draft202012Validator(plan_schema.json_schema())
POLICIES = Draft202012Validator(policy_schema.json_schema())
REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "policy.md"
WHOLE = 1_000_000
STEP = st.fixed_dictionaries({"weight_ppm": st.sampled_from([0, 1, 500_000, WHOLE])})
PLAN: dict[str, st.SearchStrategy[Any]] = {
    "strategy": st.sampled_from([*Strategy, "later"]).map(str),
    "steps": st.lists(STEP, max_size=3, unique_by=lambda step: step["weight_ppm"]).map(
        lambda steps: sorted(steps, key=lambda step: step["weight_ppm"])
    ),
    "alpha": st.sampled_from([0, 0.05, 0.5, "little"]),
    "metrics": st.fixed_dictionaries(
        {},
        optional={
            "errors": st.just(0.4),
            "latency": st.just(0.1),
            "quality": st.sampled_from([0, 0.1]),
            "prediction_shift": st.sampled_from([0, 0.1]),
        },
    ),
    "quality": st.sampled_from([None, {}]),
    "prediction_shift": st.sampled_from([None, {}]),
    "on_inconclusive": st.sampled_from(["hold", "advance"]),
    "automatic": st.booleans(),
    "preview_s": st.sampled_from([0, 60, -1]),
    "ends_at": st.sampled_from([None, "2026-12-01T00:00:00Z"]),
    "shadow_ppm": st.sampled_from([0, 1000]),
    "shadow_s": st.sampled_from([0, 60]),
    "shadow_pairs": st.sampled_from([1, 5]),
    "goal": st.sampled_from(["errors", "latency", "quality"]),
    "versions": st.lists(
        st.fixed_dictionaries({"version": st.just("1.0.0"), "weight_ppm": st.just(1000)}), max_size=1
    ),
    "promote_winner": st.booleans(),
    "phases": st.just(1),
}


def some_of(fields: dict[str, st.SearchStrategy[Any]], most: int) -> st.SearchStrategy[dict[str, Any]]:
    """Documents with a few of these fields: those with many are refused for one reason or another."""
    names = st.sets(st.sampled_from(sorted(fields)), max_size=most)
    return names.flatmap(lambda own: st.fixed_dictionaries({name: fields[name] for name in sorted(own)}))


def is_read(document: dict[str, Any], reader: Any) -> bool:
    """Whether the reader takes it."""
    try:
        reader(codec.encode(document))
    except errors.ModelkeepError:
        return False
    return True


@pytest.mark.req("S3")
@given(document=some_of(PLAN, 5))
def test_what_the_schema_of_plans_refuses_the_reader_refuses(document: dict[str, Any]) -> None:
    """Whatever fields stand together."""
    assert PLANS.is_valid(document) or not is_read(document, read_plan)


@pytest.mark.req("S3")
@pytest.mark.parametrize(
    "document",
    [
        {"strategy": "shadow", "steps": [{"weight_ppm": 1}]},
        {"strategy": "shadow", "shadow_ppm": 0},
        {"strategy": "shadow", "automatic": False},
        {"strategy": "ab_test", "steps": [{"weight_ppm": WHOLE}]},
        {"strategy": "ab_test", "steps": []},
        {"strategy": "blue_green", "steps": [{"weight_ppm": 1}, {"weight_ppm": WHOLE}]},
        {"steps": [{"weight_ppm": 1}]},
        {"steps": []},
        {"preview_s": 10},
        {"goal": "latency"},
        {"promote_winner": True},
        {"ends_at": "2026-12-01T00:00:00Z"},
        {"versions": [{"version": "1.0.0", "weight_ppm": 1}]},
        {"strategy": "rolling", "on_inconclusive": "advance"},
        {"strategy": "rolling", "shadow_ppm": 5, "shadow_s": 5},
        {"strategy": "rolling", "quality": {}},
        {"strategy": "ab_test", "prediction_shift": {}},
        {"strategy": "ab_test", "goal": "quality"},
        {"strategy": "ab_test", "goal": "quality", "quality": None},
        {"quality": {}, "metrics": {"errors": 0.5}},
        {"metrics": {"errors": 0.1, "prediction_shift": 0.1}},
    ],
    ids=json.dumps,
)
def test_what_fields_of_a_plan_may_be_together_is_in_its_schema(document: dict[str, Any]) -> None:
    """Each of these is refused by both."""
    assert not PLANS.is_valid(document)
    assert not is_read(document, read_plan)


GATE = st.sampled_from(
    [
        {"gate": "files_verified"},
        {"gate": "signature", "mode": "warn"},
        {"gate": "signature", "mode": "sometimes"},
        {"gate": "metadata", "fields": ["business.owner"]},
        {"gate": "metadata", "fields": []},
        {"gate": "metadata"},
        {"gate": "metric", "name": "auc", "min": 0.8},
        {"gate": "metric", "name": "auc"},
        {"gate": "metric", "name": "", "max": 1},
        {"gate": "metric", "name": "auc", "min": None, "max": None},
        {"gate": "better_than", "metric": "auc", "by": 0.1},
        {"gate": "better_than", "metric": "auc", "by": 0.1, "tolerance": 0.1},
        {"gate": "better_than", "metric": "auc", "tolerance": -1},
        {"gate": "checklist", "items": ["bias reviewed", "a = b"]},
        {"gate": "checklist", "items": ["runbook"]},
        {"gate": "checklist", "items": ["runbook", "runbook"]},
        {"gate": "checklist", "items": [" "]},
        {"gate": "unheard"},
    ]
)
PLAN_OF_A_POLICY = some_of(PLAN, 2)
APPROVALS = st.fixed_dictionaries(
    {},
    optional={
        "count": st.sampled_from([-1, 0, 2, 21, "two"]),
        "roles": st.sampled_from([[], ["approver"], ["viewer"], ["admin", "owner"]]),
        "expires_s": st.sampled_from([1, 60, 86_400.0, 1e9]),
    },
)
RULES = some_of(
    {"gates": st.lists(GATE, max_size=2), "approvals": APPROVALS, "rollout": PLAN_OF_A_POLICY | st.none()}, 2
)
NUMBERING = st.fixed_dictionaries(
    {},
    optional={
        "extends": st.sampled_from(["default", "nothing", "all"]),
        "metric_tolerance": st.sampled_from([0, 0.5, 1, -0.1]),
        "rules": st.lists(
            st.fixed_dictionaries(
                {
                    "name": st.sampled_from(["same", "Same", ""]),
                    "any_of": st.sampled_from([["weights.changed"], []]),
                    "bump": st.sampled_from(["minor", "small"]),
                },
                optional={"reason": st.sampled_from(["{what}", ""])},
            ),
            max_size=1,
        ),
    },
)
POLICY: dict[str, st.SearchStrategy[Any]] = {
    "schema": st.sampled_from(["modelkeep.policy/v1", "modelkeep.policy/v2"]),
    "description": st.sampled_from(["for all", 7]),
    "stages": st.dictionaries(st.sampled_from(["production", "Production", "-"]), RULES, max_size=2),
    "aliases": st.dictionaries(
        st.sampled_from(["champion", "no name"]),
        st.fixed_dictionaries({}, optional={"rollout": PLAN_OF_A_POLICY}),
        max_size=1,
    ),
    "rollout": PLAN_OF_A_POLICY | st.none(),
    "drills": st.fixed_dictionaries(
        {}, optional={"windows": st.sampled_from([["Mon 10:00-11:00"], [], [""], ["x" * 101]])}
    ),
    "versioning": NUMBERING,
    "unheard": st.just(1),
}


@pytest.mark.req("G3")
@given(
    name=st.sampled_from(["credit", "credit", "credit", "no name", ""]),
    document=some_of(POLICY, 3),
)
def test_what_the_schema_of_policies_refuses_the_reader_refuses(name: str, document: dict[str, Any]) -> None:
    """In gates, approvals, plans, windows and rules of numbering, wherever they stand."""
    whole = {"name": name, **document}
    assert POLICIES.is_valid(whole) or not is_read(whole, read_policy)


@pytest.mark.req("G3")
@pytest.mark.parametrize(
    "rules",
    [
        {"gates": [{"gate": "metric", "name": "auc"}]},
        {"gates": [{"gate": "better_than", "metric": "auc", "by": 0.1, "tolerance": 0.1}]},
        {"gates": [{"gate": "checklist", "items": ["a", "a"]}]},
        {"gates": [{"gate": "checklist", "items": ["a=b"]}]},
        {"gates": [{"gate": "metadata", "fields": []}]},
        {"approvals": {"count": 1, "roles": []}},
        {"approvals": {"roles": ["viewer"]}},
        {"approvals": {"expires_s": 1}},
        {"rollout": {"strategy": "rolling", "quality": {}}},
        {"rollout": {"strategy": "ab_test", "versions": [{"version": "1.0.0", "weight_ppm": 1}]}},
    ],
    ids=json.dumps,
)
def test_what_a_policy_may_not_say_is_in_its_schema(rules: dict[str, Any]) -> None:
    """Each of these is refused by both."""
    document = {"name": "credit", "stages": {"production": rules}}
    assert not POLICIES.is_valid(document)
    assert not is_read(document, read_policy)


@pytest.mark.req("G3")
def test_policies_that_hold_fit_their_schema() -> None:
    """Those that Modelkeep begins with, and the example of the reference."""
    for policy in (ALONE, TEAM):
        POLICIES.validate(json.loads(codec.encode(policy)))
    fences = REFERENCE.read_text(encoding="utf-8").split("```yaml\n")[1:]
    assert fences
    for fence in fences:
        text = fence.partition("```")[0]
        read_policy(text)
        POLICIES.validate(codec.parse_yaml(text))


def test_every_field_of_a_policy_has_a_meaning() -> None:
    """For the line that an editor shows beside it."""
    made = policy_schema.json_schema()
    for shape in (made, *made["$defs"].values()):
        for name, field in shape.get("properties", {}).items():
            assert name == "gate" or field["description"].endswith("."), (shape["title"], name)
