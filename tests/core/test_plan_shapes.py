"""What is told of a rollout plan is what is kept: limits, JSON Schema, examples, the version of its form."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from msgspec import Struct, structs

from modelkeep.core import codec, errors, fields
from modelkeep.core.plan import CANARY, Guards, Metrics, Plan, Step, Strategy, Variant, read_plan
from modelkeep.core.plan_schema import json_schema
from modelkeep.core.plan_shapes import SCHEMA
from modelkeep.core.policy import read_policy
from modelkeep.core.quality import Quality
from modelkeep.core.shift import Shift

pytestmark = pytest.mark.req("S3")

EXAMPLES = Path(__file__).parents[2] / "examples" / "plans"
SHAPES: dict[str, Struct] = {
    "Plan": CANARY,
    "Step": Step(weight_ppm=1),
    "Variant": Variant(version="1.0.0", weight_ppm=1),
    "Metrics": Metrics(),
    "Guards": Guards(),
    "Quality": Quality(),
    "Shift": Shift(),
}
LIMITED = [
    (name, field)
    for name, shape in SHAPES.items()
    for field in fields.told_of(type(shape))
    if field.limits is not None
]


def numbers(field: fields.Said) -> tuple[list[float], list[float]]:
    """Numbers at the edges of a field's limits: those that may be, and those that may not."""
    limits = field.limits
    assert limits is not None
    whole = field.type is int or field.sized
    good, bad = list[float](), list[float]() if field.sized else [math.nan, math.inf]
    for edge, inside, outside in (
        (limits.least, 0, -1),
        (limits.most, 0, 1),
        (limits.above, 1, 0),
        (limits.below, -1, 0),
    ):
        if edge is not None:
            near = [edge + (way if whole else way * 1e-9 * max(1, abs(edge))) for way in (inside, outside)]
            good.append(near[0])
            bad.append(near[1])
    return good, bad


def value_of(field: fields.Said, number: float) -> Any:
    """A value that has this number, or so many items or characters."""
    if field.type is str:
        return "x" * int(number)
    if field.sized:
        item: Any = Step(weight_ppm=1) if field.name == "steps" else Variant(version="1", weight_ppm=1)
        return (item,) * int(number)
    return int(number) if field.type is int and math.isfinite(number) else number


@pytest.mark.parametrize(("name", "field"), LIMITED, ids=lambda one: getattr(one, "name", one))
def test_the_limits_that_are_told_are_kept(name: str, field: fields.Said) -> None:
    """What lies at the edge passes; one step beyond is named; and the JSON Schema says the same of both."""
    good, bad = numbers(field)
    made = json_schema()
    rule = (made if name == "Plan" else made["$defs"][name])["properties"][field.name]
    validator = Draft202012Validator({**rule, "$defs": made["$defs"]})
    for number, may_be in [(n, True) for n in good] + [(n, False) for n in bad]:
        if field.sized and number < 0:
            continue
        value = value_of(field, number)
        wrong = fields.outside(structs.replace(SHAPES[name], **{field.name: value}))
        assert (wrong is None) is may_be, (number, wrong)
        assert wrong is None or wrong.startswith(f"'{field.name}' ")
        if math.isfinite(number):
            assert validator.is_valid(json.loads(codec.encode(value))) is may_be, number


def test_every_field_is_told_of() -> None:
    """With a meaning that ends in a full stop, and with a unit where it is a number that is no count of
    its own."""
    for shape in SHAPES.values():
        told = fields.told_of(type(shape))
        assert [field.name for field in told] == list(type(shape).__struct_fields__)
        for field in told:
            assert field.meaning.endswith("."), field.name
            suffixes = {"_s": "seconds", "_ppm": "millionths of the "}
            for suffix, unit in suffixes.items():
                assert not field.name.endswith(suffix) or field.unit.startswith(unit), field.name


@pytest.mark.parametrize("strategy", Strategy)
def test_there_is_an_example_of_each_strategy(strategy: Strategy) -> None:
    """It can be carried out, fits the JSON Schema that its first line names, and bears its version."""
    text = (EXAMPLES / f"{strategy}.yaml").read_text(encoding="utf-8")
    plan = read_plan(text)
    document = codec.parse_yaml(text)
    assert plan.strategy is strategy
    assert isinstance(document, dict)
    assert document["schema"] == SCHEMA
    Draft202012Validator(json_schema()).validate(document)
    named = text.splitlines()[0].removeprefix("# yaml-language-server: $schema=")
    assert (EXAMPLES / named).exists()


def test_the_examples_show_every_field() -> None:
    """But for the day on which a test ends, which would pass."""
    shown: set[str] = set()
    for path in EXAMPLES.glob("*.yaml"):
        document = codec.parse_yaml(path.read_text(encoding="utf-8"))
        assert isinstance(document, dict)
        shown |= document.keys()
    assert shown == set(Plan.__struct_fields__) - {"ends_at"}


@pytest.mark.hostile("impossible-moves")
def test_a_plan_of_another_form_is_refused_as_such() -> None:
    """Not for the fields that it has and this release does not know; in a policy too."""
    later = "{schema: modelkeep.rollout/v2, strategy: canary, phases: [1, 2]}"
    words = "reads plans of the form 'modelkeep.rollout/v1', and not 'modelkeep.rollout/v2'"
    with pytest.raises(errors.InvalidPlan, match=words):
        read_plan(later)
    with pytest.raises(errors.InvalidPlan, match="and not '7'"):
        read_plan("schema: 7")
    with pytest.raises(errors.InvalidPolicy, match=f"'production'.*{words}"):
        read_policy(f"{{name: p, stages: {{production: {{rollout: {later}}}}}}}")
