"""The inferred version number: labelled diffs, the rules as data, and the number that is given in the end.

What changes between two signatures is tested in test_signature.py.
"""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from modelkeep.core import bump, codec, errors, semver
from modelkeep.core.bump import DEFAULT_RULES, Bump, BumpVerdict, Facts, infer, next_version, parse_rules
from modelkeep.core.differences import KINDS, NEUTRAL, Difference
from modelkeep.core.semver import SemVer
from modelkeep.core.signature import BREAKS_CALLERS, Side, Signature, check_signature

pytestmark = pytest.mark.req("V2")


def signature(**changes: Any) -> Signature:
    """The signature of the parent, with fields changed, added, or removed by None."""
    fields: dict[str, dict[str, Any]] = {
        "inputs": {
            "age": {"type": "int64", "minimum": 0, "maximum": 120},
            "plan": {"type": "string", "categories": ["basic", "pro"]},
            "note": {"type": "string", "required": False, "nullable": True},
        },
        "outputs": {
            "score": {
                "type": "float64",
                "minimum": 0,
                "maximum": 1,
                "meaning": "probability of leaving in 30 days",
            },
            "label": {"type": "string", "categories": ["stays", "leaves"]},
        },
    }
    for name, change in changes.items():
        side = "outputs" if name in ("score", "label", "margin") else "inputs"
        if change is None:
            del fields[side][name]
        else:
            fields[side][name] = {**fields[side].get(name, {}), **change}
    return check_signature(fields)


PARENT = Facts(
    content="files-1",
    signature=signature(),
    preprocessing="scaler-1",
    features=("age", "plan"),
    labels=("leaves", "stays"),
    architecture_family="gradient boosting",
    architecture="trees-300",
    weights=("weights-1",),
    data="data-1",
    environment="lock-1",
    metrics={"auc": 0.9, "f1": 0.8},
    metadata="card-1",
)
RETRAINED = {"content": "files-2", "weights": ("weights-2",)}


def new(**changes: Any) -> Facts:
    """The parent's facts with some changed; keyword `fields` changes the signature."""
    if "fields" in changes:
        changes["signature"] = signature(**changes.pop("fields"))
    return replace(PARENT, **changes)


REORDERED = replace(signature(), inputs=signature().inputs[::-1])
UNSIGNED = replace(PARENT, signature=None)
BARE = Facts(content="files-1")

DIFFS: list[tuple[str, Facts, Facts, str, str]] = [
    # what happened, parent, new, bump, part of the first reason
    ("nothing", PARENT, PARENT, "none", "everything stated about them are the same"),
    ("nothing, bytes alone known", BARE, BARE, "none", "the same"),
    ("input removed", PARENT, new(**RETRAINED, fields={"age": None}), "major", "Input 'age' was removed"),
    (
        "optional input removed",
        PARENT,
        new(**RETRAINED, fields={"note": None}),
        "major",
        "Input 'note' was removed",
    ),
    (
        "output removed",
        PARENT,
        new(**RETRAINED, fields={"label": None}),
        "major",
        "Output 'label' was removed",
    ),
    (
        "input narrowed",
        PARENT,
        new(fields={"age": {"type": "int32"}}),
        "major",
        "narrowed from int64 to int32",
    ),
    (
        "output narrowed",
        PARENT,
        new(fields={"score": {"type": "float32"}}),
        "major",
        "from float64 to float32",
    ),
    ("input retyped", PARENT, new(fields={"note": {"type": "int64"}}), "major", "from string to int64"),
    ("output retyped", PARENT, new(fields={"score": {"type": "int64"}}), "major", "from float64 to int64"),
    ("input widened", new(fields={"age": {"type": "int32"}}), PARENT, "minor", "widened from int32 to int64"),
    (
        "output widened",
        new(fields={"score": {"type": "float32"}}),
        PARENT,
        "major",
        "Output 'score' was widened",
    ),
    ("input range narrowed", PARENT, new(fields={"age": {"minimum": 18}}), "major", "from 0..120 to 18..120"),
    ("input range widened", PARENT, new(fields={"age": {"maximum": 130}}), "minor", "from 0..120 to 0..130"),
    ("output rescaled", PARENT, new(fields={"score": {"maximum": 100}}), "major", "from 0..1 to 0..100"),
    ("output scale shrunk", PARENT, new(fields={"score": {"maximum": 0.5}}), "major", "from 0..1 to 0..0.5"),
    (
        "input category lost",
        PARENT,
        new(fields={"plan": {"categories": ["pro"]}}),
        "major",
        "lost the category 'basic'",
    ),
    (
        "input category gained",
        PARENT,
        new(fields={"plan": {"categories": ["basic", "pro", "team"]}}),
        "minor",
        "gained the category 'team'",
    ),
    (
        "output category gained",
        PARENT,
        new(fields={"label": {"categories": ["stays", "leaves", "unsure"]}}),
        "major",
        "Output 'label' gained the category 'unsure'",
    ),
    (
        "output category lost",
        PARENT,
        new(fields={"label": {"categories": ["stays"]}}),
        "major",
        "lost the category",
    ),
    ("input made required", PARENT, new(fields={"note": {"required": True}}), "major", "is now required"),
    ("input made optional", PARENT, new(fields={"age": {"required": False}}), "minor", "is now optional"),
    ("output made optional", PARENT, new(fields={"score": {"required": False}}), "major", "is now optional"),
    ("input no longer null", PARENT, new(fields={"note": {"nullable": False}}), "major", "no longer be null"),
    ("input may be null", PARENT, new(fields={"age": {"nullable": True}}), "minor", "may now be null"),
    ("output may be null", PARENT, new(fields={"score": {"nullable": True}}), "major", "may now be null"),
    (
        "required input added",
        PARENT,
        new(fields={"city": {"type": "string"}}),
        "major",
        "Input 'city' was added",
    ),
    (
        "optional input added",
        PARENT,
        new(fields={"city": {"type": "string", "required": False}}),
        "minor",
        "was added (string, optional)",
    ),
    (
        "output added",
        PARENT,
        new(fields={"margin": {"type": "float64"}}),
        "minor",
        "Output 'margin' was added",
    ),
    (
        "input shape fixed",
        new(fields={"age": {"shape": [-1]}}),
        new(fields={"age": {"shape": [3]}}),
        "major",
        "fixed",
    ),
    (
        "input shape freed",
        new(fields={"age": {"shape": [3]}}),
        new(fields={"age": {"shape": [-1]}}),
        "minor",
        "freed",
    ),
    ("output shape changed", PARENT, new(fields={"score": {"shape": [2]}}), "major", "from one value to 2"),
    (
        "output means another thing",
        PARENT,
        new(fields={"score": {"meaning": "probability of leaving in 90 days"}}),
        "major",
        "changed its meaning from 'probability of leaving in 30 days' to 'probability of leaving in 90 days'",
    ),
    (
        "input means another thing",
        new(fields={"age": {"meaning": "years"}}),
        new(fields={"age": {"meaning": "months"}}),
        "major",
        "from 'years' to 'months'",
    ),
    ("input explained", PARENT, new(fields={"age": {"meaning": "years"}}), "patch", "now states its meaning"),
    ("inputs reordered", PARENT, new(signature=REORDERED), "major", "The order of inputs changed"),
    (
        "signature withdrawn",
        PARENT,
        new(**RETRAINED, signature=None),
        "major",
        "The new version states no signature",
    ),
    ("signature stated for the first time", UNSIGNED, new(**RETRAINED), "minor", "is unknown"),
    ("no signature on either side", UNSIGNED, replace(UNSIGNED, **RETRAINED), "minor", "is unknown"),
    ("preprocessing changed", PARENT, new(preprocessing="scaler-2"), "major", "The preprocessing changed"),
    (
        "new architecture family",
        PARENT,
        new(**RETRAINED, architecture_family="transformer"),
        "major",
        "from 'gradient boosting' to 'transformer'",
    ),
    (
        "same family, other network",
        PARENT,
        new(**RETRAINED, architecture="trees-500"),
        "minor",
        "The architecture changed",
    ),
    ("retrained", PARENT, new(**RETRAINED), "minor", "The weights changed"),
    (
        "retrained on other data",
        PARENT,
        new(**RETRAINED, data="data-2"),
        "minor",
        "The training data changed",
    ),
    (
        "retrained, better",
        PARENT,
        new(**RETRAINED, metrics={"auc": 0.95, "f1": 0.8}),
        "minor",
        "The weights changed",
    ),
    (
        "label added",
        PARENT,
        new(labels=("leaves", "stays", "unsure")),
        "major",
        "The label 'unsure' was added",
    ),
    ("label removed", PARENT, new(labels=("leaves",)), "major", "The label 'stays' was removed"),
    ("features inside", PARENT, new(**RETRAINED, features=("age",)), "minor", "Callers do not notice"),
    (
        "features without a signature",
        UNSIGNED,
        replace(UNSIGNED, **RETRAINED, features=("age", "plan", "city", "zip")),
        "major",
        "The features 'city', 'zip' were added",
    ),
    ("environment only", PARENT, new(environment="lock-2"), "patch", "The environment changed"),
    (
        "environment and its lock file",
        PARENT,
        new(content="files-2", environment="lock-2"),
        "patch",
        "environment",
    ),
    ("metadata only", PARENT, new(metadata="card-2"), "patch", "The metadata changed"),
    ("metrics only", PARENT, new(metrics={"auc": 0.91, "f1": 0.8}), "patch", "auc 0.9 to 0.91"),
    ("a metric more", PARENT, new(metrics={"auc": 0.9, "f1": 0.8, "mcc": 0.7}), "patch", "mcc measured anew"),
    ("metrics withdrawn", PARENT, new(metrics=None), "patch", "Only the parent states the set of metrics"),
    (
        "a file beside the weights",
        PARENT,
        new(content="files-2"),
        "patch",
        "Files beside the weights changed",
    ),
    ("files, nothing else known", BARE, Facts(content="files-2"), "minor", "which of them hold the weights"),
    ("nothing known", Facts(), Facts(), "minor", "unknown"),
    (
        "preprocessing no longer stated",
        PARENT,
        new(preprocessing=None),
        "minor",
        "unknown whether it changed",
    ),
    ("family stated at last", new(architecture_family=None), PARENT, "minor", "Only the new version states"),
    ("weights no longer stated", PARENT, new(content="files-2", weights=None), "minor", "unknown"),
    (
        "a column renamed",
        PARENT,
        new(**RETRAINED, fields={"age": None, "years": {"type": "int64"}}),
        "major",
        "Input 'age' was removed",
    ),
    (
        "retrained on one feature less and new data, same callers",
        PARENT,
        new(**RETRAINED, data="data-2", features=("plan",)),
        "minor",
        "Callers do not notice",
    ),
    (
        "scaler refitted with the retraining",
        PARENT,
        new(**RETRAINED, data="data-2", preprocessing="scaler-2"),
        "major",
        "preprocessing",
    ),
    (
        "larger trees and a wider input",
        PARENT,
        new(**RETRAINED, architecture="trees-900", fields={"age": {"maximum": 130}}),
        "minor",
        "from 0..120 to 0..130",
    ),
    (
        "library upgraded, card rewritten",
        PARENT,
        new(content="files-2", environment="lock-2", metadata="card-2"),
        "patch",
        "The environment changed.",
    ),
    (
        "measured again on another split",
        PARENT,
        new(metrics={"auc": 0.9, "f1": 0.8, "auc@2026": 0.87}, metadata="card-2"),
        "patch",
        "auc@2026",
    ),
    (
        "score turned into a margin",
        PARENT,
        new(**RETRAINED, fields={"score": None, "margin": {"type": "float64"}}),
        "major",
        "Output 'score' was removed",
    ),
    (
        "everything at once",
        PARENT,
        new(**RETRAINED, environment="lock-2", metadata="card-2", fields={"age": None}),
        "major",
        "Input 'age' was removed",
    ),
]


@pytest.mark.parametrize(
    ("parent", "facts", "expected", "reason"), [d[1:] for d in DIFFS], ids=[d[0] for d in DIFFS]
)
def test_labelled_diffs(parent: Facts, facts: Facts, expected: str, reason: str) -> None:
    """Each labelled diff gets its bump, and a reason of that bump says why."""
    verdict = infer(parent, facts)
    assert verdict.bump == expected
    decisive = [text for text in verdict.reasons if text.startswith(f"{expected}: ")]
    assert any(reason in text for text in decisive), verdict.reasons
    assert verdict.same_bytes == (parent.content is not None and parent.content == facts.content)
    assert all(text.isprintable() and text.endswith(".") for text in verdict.reasons)


def test_there_are_enough_labelled_diffs() -> None:
    """Sixty labelled diffs, each under its own name."""
    assert len({d[0] for d in DIFFS}) == len(DIFFS) >= 60


def test_the_first_version_says_so() -> None:
    """Without a parent there is nothing to compare with."""
    verdict = infer(None, PARENT)
    assert (verdict.bump, verdict.rules_applied) == (Bump.MAJOR, ("first-version",))
    assert "first version" in verdict.reasons[0]


def test_the_labelled_diffs_are_many_and_distinct() -> None:
    """At least sixty different pairs of versions are labelled, under different names, with every bump."""
    assert len({name for name, *_ in DIFFS}) == len(DIFFS) >= 60
    pairs = [(codec.encode(parent), codec.encode(fresh)) for _, parent, fresh, *_ in DIFFS]
    assert len(set(pairs)) == len(pairs)
    assert {by for *_, by, _ in DIFFS} == set(Bump)


def test_what_could_not_be_compared_is_named() -> None:
    """Facts that one version does not state are listed, in a fixed order."""
    verdict = infer(PARENT, new(**RETRAINED, data=None, labels=None))
    assert verdict.unknown == ("labels", "data")
    assert infer(BARE, BARE).unknown[0] == "signature"


def test_reasons_come_gravest_first_and_are_bounded() -> None:
    """A model that changed in a thousand places gets fifty reasons and a count."""
    many = check_signature({"inputs": {f"f{n}": "int64" for n in range(1_000)}})
    few = check_signature({"inputs": {"f0": "int64", "extra": {"type": "int64", "required": False}}})
    verdict = infer(Facts(content="a", signature=many), Facts(content="b", signature=few))
    assert len(verdict.reasons) == 51
    assert verdict.reasons[-1] == "And 951 more differences of at most major."
    levels = [text.partition(":")[0] for text in infer(PARENT, DIFFS[-1][2]).reasons]
    assert levels == sorted(levels, key=lambda level: -Bump(level).rank)


def test_not_a_number_is_no_change() -> None:
    """A metric that is NaN on both sides did not move."""
    facts = replace(PARENT, metrics={"auc": float("nan")})
    assert infer(facts, facts).bump is Bump.NONE


# ------------------------------------------------------------ properties

digests = st.one_of(st.none(), st.sampled_from(["a", "b"]))
name_sets = st.one_of(st.none(), st.sets(st.sampled_from("pqr")).map(sorted).map(tuple))
field_specs = st.fixed_dictionaries(
    {"type": st.sampled_from(["int32", "int64", "float64", "string"])},
    optional={"required": st.booleans(), "nullable": st.booleans(), "meaning": st.sampled_from(["m", "n"])},
)
sides = st.dictionaries(st.sampled_from("uvw"), field_specs, min_size=1)
stated_signatures = st.builds(lambda i, o: check_signature({"inputs": i, "outputs": o}), sides, sides)
facts_of_versions = st.builds(
    Facts,
    content=digests,
    signature=st.one_of(st.none(), stated_signatures),
    preprocessing=digests,
    features=name_sets,
    labels=name_sets,
    architecture_family=digests,
    architecture=digests,
    weights=st.one_of(st.none(), st.sampled_from([("a",), ("b",)])),
    data=digests,
    environment=digests,
    metrics=st.one_of(st.none(), st.dictionaries(st.sampled_from(["auc", "f1"]), st.floats(0, 1))),
    metadata=digests,
)
judged_kinds = st.sampled_from(sorted(KINDS - NEUTRAL))


@given(facts_of_versions)
def test_a_version_is_the_same_as_itself(facts: Facts) -> None:
    """With known bytes nothing differs; without them it is never claimed that nothing does."""
    known = replace(facts, content="bytes")
    assert infer(known, known).bump is Bump.NONE
    assert infer(known, known).same_bytes
    assert infer(replace(facts, content=None), replace(facts, content=None)).bump is not Bump.NONE


@given(facts_of_versions, facts_of_versions)
def test_every_bump_has_its_reason_and_rule(old: Facts, fresh: Facts) -> None:
    """The bump is that of the gravest reason, a rule is named, and the same facts judge the same."""
    verdict = infer(old, fresh)
    assert verdict.reasons[0].startswith(f"{verdict.bump}: ")
    assert bool(verdict.rules_applied) == (verdict.bump is not Bump.NONE)
    assert bump.UNNAMED not in verdict.rules_applied
    assert infer(old, fresh) == verdict
    assert codec.decode(codec.encode(verdict), BumpVerdict) == verdict


@given(stated_signatures)
def test_adding_then_removing_is_never_patch(base: Signature) -> None:
    """A new optional input is minor, and taking it away again is major."""
    extra = check_signature({"inputs": {"zz": {"type": "string", "required": False}}}).inputs
    old = Facts(content="a", signature=base)
    wider = Facts(content="b", signature=replace(base, inputs=base.inputs + extra))
    assert infer(old, wider).bump is Bump.MINOR
    assert infer(wider, old).bump is Bump.MAJOR


@given(facts_of_versions, facts_of_versions, st.sampled_from(["preprocessing", "architecture_family"]))
def test_one_more_break_never_lowers_the_bump(old: Facts, fresh: Facts, fact: str) -> None:
    """A change that is major stays major, whatever else changed or is unknown."""
    before = infer(replace(old, **{fact: "x"}), replace(fresh, **{fact: "x"}))
    after = infer(replace(old, **{fact: "x"}), replace(fresh, **{fact: "y"}))
    assert after.bump is Bump.MAJOR
    assert after.bump.rank >= before.bump.rank


@given(st.lists(judged_kinds, max_size=5), st.lists(judged_kinds, max_size=5))
def test_more_differences_never_lower_the_bump(some: list[str], more: list[str]) -> None:
    """Under the default rules the verdict grows with the set of differences."""

    def highest(kinds: list[str]) -> int:
        found = [Difference(kind=kind, subject="s", sentence="S.") for kind in kinds]
        return max((by.rank for by, _, _ in bump.judge(found, DEFAULT_RULES)), default=0)

    assert highest(some + more) == max(highest(some), highest(more))


@pytest.mark.parametrize("side", list(Side))
@pytest.mark.parametrize("kind", list(BREAKS_CALLERS))
def test_what_breaks_callers_is_major_and_nothing_else_is(side: Side, kind: str) -> None:
    """The default rules agree with the table of what breaks callers, kind by kind."""
    found = [Difference(kind=f"{side}.{kind}", subject="x", sentence="X changed.")]
    ((by, _, _),) = bump.judge(found, DEFAULT_RULES)
    breaks = BREAKS_CALLERS[kind][0 if side is Side.INPUT else 1]
    assert (by is Bump.MAJOR) == breaks
    assert by is not Bump.NONE


@pytest.mark.parametrize("kind", sorted(KINDS - NEUTRAL))
def test_every_difference_has_a_default_rule(kind: str) -> None:
    """No difference falls through the default list."""
    ((_, name, reason),) = bump.judge(
        [Difference(kind=kind, subject="x", sentence="X changed.")], DEFAULT_RULES
    )
    assert name != bump.UNNAMED
    assert "X changed." in reason


# ------------------------------------------------------------ rules as data

PRUDENT = """
metric_tolerance: 0.01
rules:
  - name: same-answers
    any_of: [weights.changed]
    all_of: [metrics.same, signature.same]
    none_of: ["architecture*.changed"]
    bump: patch
    reason: "{what} No metric moved by more than one percent."
  - name: our-environment
    any_of: ["environment.*"]
    bump: minor
    reason: "We pin everything, so {subject} is worth a minor version."
"""


def test_a_models_own_rules_stand_first() -> None:
    """Rules from YAML judge before the default ones, under their conditions, in their words."""
    rules = parse_rules(codec.parse_yaml(PRUDENT))
    steady = infer(PARENT, new(**RETRAINED, metrics={"auc": 0.903, "f1": 0.8}), rules)
    assert (steady.bump, steady.rules_applied) == (Bump.PATCH, ("same-answers",))
    assert steady.reasons == ("patch: The weights changed. No metric moved by more than one percent.",)
    moved = infer(PARENT, new(**RETRAINED, metrics={"auc": 0.95, "f1": 0.8}), rules)
    assert moved.rules_applied == ("new-weights", "about-the-version")
    rebuilt = infer(PARENT, new(**RETRAINED, architecture="trees-9"), rules)
    assert rebuilt.bump is Bump.MINOR
    pinned = infer(PARENT, new(environment="lock-2"), rules)
    assert pinned.reasons == ("minor: We pin everything, so environment is worth a minor version.",)


def test_a_rule_of_the_same_name_replaces_the_default_one() -> None:
    """A model that calls preprocessing minor says so under the default rule's name."""
    rules = parse_rules(
        {"rules": [{"name": "preprocessing-changed", "any_of": ["preprocessing.changed"], "bump": "minor"}]}
    )
    assert infer(PARENT, new(preprocessing="scaler-2"), rules).bump is Bump.MINOR
    assert len(rules.rules) == len(DEFAULT_RULES.rules)


def test_without_default_rules_the_unnamed_is_major() -> None:
    """A difference that no rule names counts as major, and the reason says that none does."""
    rules = parse_rules(
        {"extends": "nothing", "rules": [{"name": "w", "any_of": ["weights.*"], "bump": "patch"}]}
    )
    assert infer(PARENT, new(**RETRAINED), rules).bump is Bump.PATCH
    verdict = infer(PARENT, new(metadata="card-2"), rules)
    assert (verdict.bump, verdict.rules_applied) == (Bump.MAJOR, (bump.UNNAMED,))
    assert "No rule names the difference metadata.changed" in verdict.reasons[0]


def test_rules_cannot_call_other_bytes_the_same() -> None:
    """Rules may wave metadata through on equal bytes; other bytes are a new version in any case."""
    rules = parse_rules({"rules": [{"name": "all", "any_of": ["*"], "bump": "none"}]})
    assert infer(PARENT, new(metadata="card-2"), rules).bump is Bump.NONE
    verdict = infer(PARENT, new(**RETRAINED), rules)
    assert (verdict.bump, verdict.rules_applied) == (Bump.PATCH, (bump.UNPROVEN, "all"))


def test_default_rules_can_be_written_down_and_read_back() -> None:
    """The default rules are data: as YAML and back they are the same rules."""
    text = codec.render_yaml(bump.plain_rules(DEFAULT_RULES))
    assert parse_rules(codec.parse_yaml(text)) == DEFAULT_RULES
    assert parse_rules({}) == DEFAULT_RULES


def rule(**rest: Any) -> dict[str, Any]:
    """One rule in a list, as YAML gives it."""
    return {"rules": [{"name": "r", "any_of": ["weights.changed"], "bump": "minor", **rest}]}


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (3, "Expected `object`"),
        ({"rule": []}, "unknown field `rule`"),
        ({"extends": "parent"}, "extend 'default' or 'nothing'"),
        ({"metric_tolerance": -0.1}, "a share between 0 and 1"),
        ({"metric_tolerance": float("nan")}, "a share between 0 and 1"),
        ({"rules": [{"name": "r"}]}, "missing required field"),
        (rule(bump="huge"), "Invalid enum value 'huge'"),
        (rule(typo=1), "unknown field `typo`"),
        (rule(name="R 1"), "'R 1' cannot be the name"),
        (rule(name=""), "cannot be the name"),
        (rule(any_of=[]), "names no difference"),
        (rule(any_of=["weights.chnged"]), "did you mean 'weights.changed'?"),
        (rule(all_of=["zzz"]), "'zzz' in the version rule 'r' is no kind of difference"),
        (rule(none_of=["inputs.*"]), "is no kind of difference"),
        (rule(any_of=["*" * 65]), "is no kind of difference"),
        (rule(any_of=["weights.changed"] * 101), "more than 100 patterns"),
        (rule(reason=" "), "needs a reason"),
        (rule(reason="r" * 501), "needs a reason"),
        (rule(reason="a\x1b[0m"), "needs a reason"),
        (rule(reason="{what.__class__}"), "may use {what} and {subject}, not {what.__class__}"),
        (rule(reason="{}"), "may use {what} and {subject}"),
        ({"rules": [rule()["rules"][0]] * 2}, "'r' stands twice"),
        ({"rules": [{**rule()["rules"][0], "name": f"r{n}"} for n in range(201)]}, "at most 200"),
    ],
)
def test_bad_rules(value: object, why: str) -> None:
    """Nonsense in a rule is refused by a sentence that names the rule and the place."""
    with pytest.raises(errors.InvalidPolicy) as caught:
        parse_rules(value)
    assert why in caught.value.message


def test_sentences_cannot_carry_placeholders() -> None:
    """A field named like a placeholder is shown as it is, not filled in again."""
    strange = check_signature({"inputs": {"{subject}": "int64", "b": "int64"}})
    plain = check_signature({"inputs": {"b": "int64"}})
    verdict = infer(Facts(content="a", signature=strange), Facts(content="b", signature=plain))
    assert "Input '{subject}' was removed." in verdict.reasons[0]


# ------------------------------------------------------------ the number

v = semver.parse


def verdict_of(by: str, *reasons: str) -> BumpVerdict:
    """A verdict as `infer` gives it."""
    return BumpVerdict(
        bump=Bump(by), reasons=reasons or (f"{by}: Something changed.",), same_bytes=by == "none"
    )


@pytest.mark.parametrize(
    ("existing", "parent", "by", "expected"),
    [
        ("", None, "major", "1.0.0"),
        ("1.0.0", None, "major", "2.0.0"),
        ("1.0.0", "1.0.0", "major", "2.0.0"),
        ("1.0.0", "1.0.0", "minor", "1.1.0"),
        ("1.0.0", "1.0.0", "patch", "1.0.1"),
        ("1.0.0", "1.0.0", "none", "1.0.0"),
        ("1.0.0 1.1.0 1.2.0", "1.0.0", "minor", "1.3.0"),
        ("1.0.0 1.1.0 1.1.7", "1.0.0", "minor", "1.2.0"),
        ("1.0.0 1.0.1 1.1.0", "1.0.0", "patch", "1.0.2"),
        ("1.0.0 2.0.0", "1.0.0", "minor", "1.1.0"),
        ("1.0.0 2.0.0", "1.0.0", "major", "3.0.0"),
        ("1.9.0 1.10.0", "1.9.0", "minor", "1.11.0"),
        ("1.0.0 1.1.0 1.2.0-rc.1", "1.0.0", "minor", "1.2.0"),
        ("1.0.0 2.0.0-rc.1", "2.0.0-rc.1", "major", "2.0.0"),
        ("1.0.0 2.0.0-rc.1", "2.0.0-rc.1", "patch", "2.0.0"),
        ("0.3.1", "0.3.1", "major", "1.0.0"),
        ("0.3.1", "0.3.1", "minor", "0.4.0"),
    ],
)
def test_the_inferred_number(existing: str, parent: str | None, by: str, expected: str) -> None:
    """Without a wish the number follows the verdict, and steps over what exists."""
    given, reasons = next_version(map(v, existing.split()), v(parent) if parent else None, verdict_of(by))
    assert str(given) == expected
    assert reasons[0].startswith(f"{by}: ")


def test_stepping_over_is_said() -> None:
    """Where the inferred number is taken, the reasons say so."""
    _, reasons = next_version([v("1.0.0"), v("1.1.0")], v("1.0.0"), verdict_of("minor"))
    assert reasons[-1] == "1.1.0 exists already, so 1.2.0 is the next free minor version."


@pytest.mark.parametrize(
    ("by", "wish", "note"),
    [
        ("minor", {"explicit": "1.1.0"}, None),
        ("minor", {"explicit": "1.1.0-rc.1"}, None),
        ("minor", {"explicit": "1.1.0+build.5"}, None),
        ("minor", {"explicit": "2.0.0"}, "2.0.0 was asked for; 1.1.0 would do."),
        ("patch", {"explicit": "7.0.0-alpha"}, "7.0.0-alpha was asked for; 1.0.1 would do."),
        ("patch", {"bump": "major"}, "A major version was asked for; patch would do."),
        ("minor", {"bump": "minor"}, None),
    ],
)
def test_upward_is_free(by: str, wish: dict[str, str], note: str | None) -> None:
    """As much as was inferred, or more, needs no reason; a pre-release counts as its release."""
    given, reasons = next_version([v("1.0.0")], v("1.0.0"), verdict_of(by), **wishes(wish))
    assert str(given) == wish.get("explicit", str(semver.bump(v("1.0.0"), Bump(wish.get("bump", by)))))
    assert reasons[1:] == ((note,) if note else ())


def wishes(wish: dict[str, str]) -> dict[str, Any]:
    """What a person asked for, in the types of `next_version`."""
    typed: dict[str, Any] = {}
    if "explicit" in wish:
        typed["explicit"] = v(wish["explicit"])
    if "bump" in wish:
        typed["bump"] = Bump(wish["bump"])
    return typed


LOWER: list[tuple[str, dict[str, str]]] = [
    ("major", {"explicit": "1.1.0"}),
    ("major", {"explicit": "1.9.9"}),
    ("minor", {"explicit": "1.0.1"}),
    ("minor", {"explicit": "1.0.1-rc.1"}),
    ("patch", {"explicit": "0.9.0"}),
    ("patch", {"explicit": "1.0.0-rc.1"}),
    ("major", {"bump": "minor"}),
    ("minor", {"bump": "patch"}),
    ("patch", {"bump": "none"}),
]


@pytest.mark.parametrize(("by", "wish"), LOWER)
def test_downward_needs_a_reason(by: str, wish: dict[str, str]) -> None:
    """Less than was inferred is refused with the reasons; with a reason it is given and recorded."""
    verdict = verdict_of(by, f"{by}: Input 'age' was removed.", "patch: The metadata changed.")
    with pytest.raises(errors.SemverTooLow) as caught:
        next_version([v("1.0.0")], v("1.0.0"), verdict, **wishes(wish))
    inferred = str(semver.bump(v("1.0.0"), Bump(by)))
    assert f"it has to be {inferred} or higher: Input 'age' was removed (and 1 more)." in caught.value.message
    assert caught.value.details == {"inferred": inferred, "reasons": list(verdict.reasons)}
    with pytest.raises(errors.SemverTooLow):
        next_version([v("1.0.0")], v("1.0.0"), verdict, **wishes(wish), override_reason="  ")
    given, reasons = next_version(
        [v("1.0.0")], v("1.0.0"), verdict, **wishes(wish), override_reason="nobody uses age"
    )
    assert str(given) not in ("1.0.0", inferred) or wish.get("bump") == "none"
    assert reasons[-1].endswith("because: nobody uses age")


def test_a_taken_version_names_the_next_free_one() -> None:
    """Versions never change, so a taken one is refused; build metadata does not make it another."""
    existing = [v("1.0.0"), v("1.1.0"), v("1.2.0")]
    for text in ("1.1.0", "1.1.0+other"):
        with pytest.raises(errors.VersionExists, match=r"the next free version is 1\.3\.0") as caught:
            next_version(
                existing, v("1.0.0"), verdict_of("minor"), explicit=v(text), override_reason="please"
            )
        assert caught.value.details == {"semver": "1.1.0", "next_free": "1.3.0"}


@pytest.mark.parametrize("wish", [{"explicit": "1.0.1"}, {"explicit": "2.0.0"}, {"bump": "minor"}])
def test_the_same_version_gets_no_second_number(wish: dict[str, str]) -> None:
    """Equal bytes are pointed out; only a reason gives them a number of their own."""
    with pytest.raises(errors.VersionExists, match=r"This is 1\.0\.0 again"):
        next_version([v("1.0.0")], v("1.0.0"), verdict_of("none"), **wishes(wish))
    given, _ = next_version(
        [v("1.0.0")], v("1.0.0"), verdict_of("none"), **wishes(wish), override_reason="a rehearsal"
    )
    assert given > v("1.0.0")


def test_the_first_version_may_be_any() -> None:
    """Whoever starts at 0.1.0 or 3.0.0 may."""
    for text in ("0.1.0", "3.0.0", "1.0.0-alpha"):
        given, _ = next_version([], None, infer(None, PARENT), explicit=v(text))
        assert str(given) == text
    assert next_version([], None, infer(None, PARENT), bump=Bump.PATCH)[0] == SemVer(1, 0, 0)


triples = st.builds(SemVer, st.integers(0, 3), st.integers(0, 3), st.integers(0, 3))
real_bumps = st.sampled_from([Bump.PATCH, Bump.MINOR, Bump.MAJOR])


@given(st.sets(triples, min_size=1), st.data(), real_bumps)
def test_the_given_number_is_free_and_high_enough(
    existing: set[SemVer], data: st.DataObject, by: Bump
) -> None:
    """The inferred number is new, at least the parent's bump, and in the line of that bump."""
    parent = data.draw(st.sampled_from(sorted(existing)))
    given, _ = next_version(existing, parent, verdict_of(by))
    assert given not in existing
    assert given >= semver.bump(parent, by)
    if by is not Bump.MAJOR:
        assert given.major == parent.major
    if by is Bump.PATCH:
        assert given.minor == parent.minor


@given(st.sets(triples, min_size=1), st.data(), real_bumps, triples)
def test_an_explicit_number_is_given_exactly_or_refused(
    existing: set[SemVer], data: st.DataObject, by: Bump, wish: SemVer
) -> None:
    """An explicit number is given as it stands when it is free and high enough; else it is refused."""
    parent = data.draw(st.sampled_from(sorted(existing)))
    if wish in existing:
        with pytest.raises(errors.VersionExists):
            next_version(existing, parent, verdict_of(by), explicit=wish)
    elif wish < semver.bump(parent, by):
        with pytest.raises(errors.SemverTooLow):
            next_version(existing, parent, verdict_of(by), explicit=wish)
    else:
        assert next_version(existing, parent, verdict_of(by), explicit=wish)[0] == wish
