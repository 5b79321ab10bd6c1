"""Policies and gates: what each rule answers, what is refused when written, what evidence is bound to."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from modelkeep.core import codec, errors, policy
from modelkeep.core.catalog import Direction, Metric, ModelVersion
from modelkeep.core.plan import PRESETS, Strategy
from modelkeep.core.policy import (
    ALONE,
    GATES,
    TEAM,
    AnyGate,
    Approvals,
    BetterThanGate,
    Check,
    ChecklistGate,
    Facts,
    FilesVerifiedGate,
    Gate,
    MetadataGate,
    MetricGate,
    Mode,
    Outcome,
    SignatureGate,
    StageRules,
    Waiver,
    evaluate,
    evidence_digest,
    policy_digest,
    read_policy,
    weaker,
)
from modelkeep.core.signature import DataType, Field, Signature
from modelkeep.core.values import Digest, ModelName

NOW = datetime(2026, 1, 25, 14, 3, tzinfo=UTC)
PASSED, FAILED, INCONCLUSIVE = Outcome.PASSED, Outcome.FAILED, Outcome.INCONCLUSIVE


def version(number: int = 2, **more: Any) -> ModelVersion:
    """A version; versions of other numbers have other content."""
    fields: dict[str, Any] = {
        "id": f"ver_{number}",
        "model": ModelName("default", "churn"),
        "number": number,
        "semver": f"1.{number}.0",
        "digest": Digest(f"sha256:{number:064x}"),
        "size_bytes": 1,
        "files": (),
        "created_at": NOW,
        "created_by": "ann",
    }
    return ModelVersion(**(fields | more))


def auc(value: float, **more: Any) -> Metric:
    """The metric most tests speak of."""
    return Metric(name="auc", value=value, **more)


def answer(gate: Gate, *, mine: Any = (), theirs: Any = None, **facts: Any) -> policy.GateResult:
    """What one gate says of a candidate with some metrics, and an incumbent with others."""
    known = {"version": version(metrics=mine)} | facts
    if theirs is not None:
        known["incumbent"] = version(1, metrics=theirs)
    (result,) = evaluate(StageRules(gates=(gate,)), Facts(**known))
    return result


# -------------------------------------------------------------------------------------------------- each gate


@pytest.mark.req("G3")
@pytest.mark.parametrize(
    ("verified", "outcome", "why"),
    [
        (True, PASSED, "every stored byte matches its digest"),
        (False, FAILED, "stored bytes do not match their digests"),
        (None, INCONCLUSIVE, "the stored bytes could not be read"),
    ],
)
def test_files_verified(verified: bool | None, outcome: Outcome, why: str) -> None:
    """Bytes that could not be read are not bytes that match."""
    result = answer(FilesVerifiedGate(), files_verified=verified)
    assert (result.outcome, result.why) == (outcome, why)
    assert bool(result.fix) == (outcome is not PASSED)


@pytest.mark.req("G3")
def test_signature() -> None:
    """A signature without inputs declares nothing."""
    field = Field(name="x", type=DataType.FLOAT64)
    for signature, outcome in (
        (None, FAILED),
        (Signature(outputs=(field,)), FAILED),
        (Signature(inputs=(field,), outputs=(field,)), PASSED),
    ):
        assert answer(SignatureGate(), version=version(signature=signature)).outcome is outcome


@pytest.mark.req("G3")
def test_metadata_names_what_is_missing() -> None:
    """Each named field must be there and say something."""
    gate = MetadataGate(fields=("business.owner", "model.framework"))
    filled = {"business": {"owner": "risk"}, "model": {"framework": "onnx"}}
    assert answer(gate, version=version(metadata=filled)).why == "filled in: business.owner, model.framework"
    result = answer(gate, version=version(metadata={"business": {"owner": "risk"}}))
    assert (result.outcome, result.why) == (FAILED, "the metadata lacks model.framework")


@pytest.mark.req("G3")
@pytest.mark.parametrize(
    ("gate", "metrics", "outcome", "why"),
    [
        (MetricGate(name="auc", min=0.8), [auc(0.8)], PASSED, "auc is 0.8; at least 0.8 is required"),
        (MetricGate(name="auc", min=0.8), [auc(0.7999)], FAILED, "auc is 0.7999; at least 0.8 is required"),
        (MetricGate(name="auc", max=0.8), [auc(0.9)], FAILED, "auc is 0.9; at most 0.8 is required"),
        (
            MetricGate(name="auc", min=0.5, max=0.8),
            [auc(0.6)],
            PASSED,
            "auc is 0.6; at least 0.5 and at most 0.8 is required",
        ),
        (MetricGate(name="auc", min=0.8), [], INCONCLUSIVE, "auc was not measured"),
        (MetricGate(name="auc", min=0.8), [auc(0.9, slice="women")], INCONCLUSIVE, "auc was not measured"),
        (
            MetricGate(name="auc", min=0.8, split="test", slice="women"),
            [auc(0.9, split="test"), auc(0.7, split="test", slice="women")],
            FAILED,
            "auc@test[women] is 0.7; at least 0.8 is required",
        ),
        (
            MetricGate(name="auc@test[women]", min=0.8),
            [auc(0.9, split="test"), auc(0.7, split="test", slice="women")],
            FAILED,
            "auc@test[women] is 0.7; at least 0.8 is required",
        ),
        (
            MetricGate(name="auc", min=0.8, split="test"),
            [auc(0.9, split="train")],
            INCONCLUSIVE,
            "auc@test was not measured",
        ),
    ],
)
def test_metric(gate: MetricGate, metrics: list[Metric], outcome: Outcome, why: str) -> None:
    """Limits belong to what passes; another split or slice is another number; absent is not zero."""
    result = answer(gate, mine=tuple(metrics))
    assert (result.outcome, result.why) == (outcome, why)


@pytest.mark.req("G3")
@pytest.mark.parametrize(
    ("gate", "mine", "theirs", "outcome", "why"),
    [
        ({}, auc(0.9), auc(0.8), PASSED, "auc is 0.9 against 0.8 of 1.1.0 (better by 0.1)"),
        ({}, auc(0.8), auc(0.8), PASSED, "auc is 0.8 against 0.8 of 1.1.0 (equal)"),
        ({}, auc(0.79), auc(0.8), FAILED, "auc is 0.79 against 0.8 of 1.1.0 (worse by 0.01)"),
        ({"tolerance": 0.01}, auc(0.79), auc(0.8), PASSED, None),
        ({"by": 0.01}, auc(0.94), auc(0.93), PASSED, None),
        ({"by": 0.01}, auc(0.939), auc(0.93), FAILED, None),
        ({}, auc(0.9), None, INCONCLUSIVE, "auc was not measured for churn:1.1.0"),
        ({}, None, auc(0.9), INCONCLUSIVE, "auc was not measured for churn:1.2.0"),
        (
            {},
            auc(0.9, dataset="2025"),
            auc(0.8, dataset="2024"),
            INCONCLUSIVE,
            "auc cannot be compared with that of 1.1.0: the data set is 2025 here, 2024 there",
        ),
        (
            {},
            auc(0.9, direction=Direction.LOWER),
            auc(0.8),
            INCONCLUSIVE,
            "auc cannot be compared with that of 1.1.0: lower is better here, higher there",
        ),
        ({}, auc(1, unit="%"), auc(1, unit="1"), INCONCLUSIVE, None),
        ({}, auc(0.9, dataset="2025"), auc(0.8), PASSED, None),
    ],
)
def test_better_than(
    gate: dict[str, float], mine: Metric | None, theirs: Metric | None, outcome: Outcome, why: str | None
) -> None:
    """Numbers are compared as people write them, and only when they are numbers of the same thing."""
    result = answer(
        BetterThanGate(metric="auc", **gate),
        mine=(mine,) if mine else (),
        theirs=(theirs,) if theirs else (),
    )
    assert (result.outcome, why or result.why) == (outcome, result.why)


@pytest.mark.req("G3")
def test_lower_is_better_for_losses() -> None:
    """The fix names the number to reach, in the direction that is better."""
    loss = [Metric(name="log_loss", value=value) for value in (0.5, 0.4)]
    result = answer(BetterThanGate(metric="log_loss", by=0.1), mine=loss[:1], theirs=loss[1:])
    assert (result.outcome, result.fix) == (FAILED, "reach log_loss at most 0.3")
    assert answer(BetterThanGate(metric="log_loss"), mine=loss[1:], theirs=loss[:1]).outcome is PASSED


@pytest.mark.req("G3")
def test_an_empty_stage_has_nobody_to_be_better_than() -> None:
    """The first version of all passes, also without the metric."""
    assert answer(BetterThanGate(metric="auc")).outcome is PASSED


@given(
    st.decimals(0, 1, places=4),
    st.decimals(0, 1, places=4),
    st.decimals(0, 1, places=4),
)
@pytest.mark.req("G3")
def test_a_gain_is_exact_in_decimals(mine: Any, theirs: Any, by: Any) -> None:
    """Whether a gain suffices is what a person finds with pencil and paper."""
    gate = BetterThanGate(metric="auc", by=float(by))
    result = answer(gate, mine=(auc(float(mine)),), theirs=(auc(float(theirs)),))
    assert (result.outcome is PASSED) == (mine - theirs >= by)


@pytest.mark.req("G4")
def test_checklist() -> None:
    """Every item needs somebody who vouches; the fix is the command that ticks the first open one."""
    gate = ChecklistGate(items=("bias reviewed", "runbook"))
    ticked = Check(item="runbook", evidence="wiki/7", by="bob")
    result = answer(gate, checks=(ticked,))
    assert (result.outcome, result.why) == (FAILED, "not ticked: bias reviewed")
    assert result.fix == "vouch for it: modelkeep review REQUEST --check 'bias reviewed=EVIDENCE'"
    both = (ticked, Check(item="bias reviewed", evidence="report", by="cat"))
    assert answer(gate, checks=both).outcome is PASSED


# --------------------------------------------------------------------------------- modes, waivers, evidence


@pytest.mark.req("G3")
def test_only_enforced_gates_block() -> None:
    """A warning is told and stops nothing."""
    assert answer(MetricGate(name="auc", min=1)).blocks
    warned = answer(MetricGate(name="auc", min=1, mode=Mode.WARN))
    assert (warned.outcome, warned.blocks) == (INCONCLUSIVE, False)


@pytest.mark.req("G3")
def test_a_waiver_takes_the_place_of_what_does_not_hold() -> None:
    """It says who and why, does nothing to a gate that passes, and never excuses damaged bytes."""
    gate = MetricGate(name="auc", min=0.8)
    waiver = Waiver(gate="metric:auc", by="cat", reason="by hand")
    result = answer(gate, waivers=(waiver,))
    assert (result.outcome, result.waived_by, result.blocks, result.fix) == (Outcome.WAIVED, "cat", False, "")
    assert answer(gate, mine=(auc(0.9),), waivers=(waiver,)).waived_by is None
    files = Waiver(gate="files_verified", by="cat", reason="trust me")
    assert answer(FilesVerifiedGate(), files_verified=False, waivers=(files,)).blocks


@pytest.mark.req("G3", "G2")
def test_evidence_changes_with_what_was_seen() -> None:
    """A number, the incumbent, a waiver, the rule or the bytes: each is another evidence; a label is not."""
    gate = BetterThanGate(metric="auc")
    base: dict[str, Any] = {"mine": (auc(0.9),), "theirs": (auc(0.8),)}
    first = answer(gate, **base).evidence
    assert answer(gate, **base).evidence == first
    others = [
        answer(gate, **(base | {"mine": (auc(0.91),)})),
        answer(gate, **(base | {"theirs": (auc(0.81),)})),
        answer(gate, mine=base["mine"], incumbent=version(7, metrics=(auc(0.8),))),
        answer(structs.replace(gate, tolerance=0.1), **base),
        answer(gate, theirs=base["theirs"], version=version(3, metrics=(auc(0.9),))),
    ]
    waiver = Waiver(gate="metric:auc", by="cat", reason="by hand")
    others += [
        answer(MetricGate(name="auc", min=0.95), mine=(auc(0.9),)),
        answer(MetricGate(name="auc", min=0.95), mine=(auc(0.9),), waivers=(waiver,)),
        answer(
            MetricGate(name="auc", min=0.95),
            mine=(auc(0.9),),
            waivers=(structs.replace(waiver, by="dan"),),
        ),
    ]
    digests = {first, *(result.evidence for result in others)}
    assert len(digests) == len(others) + 1
    described = version(metrics=(auc(0.9),), description="new words", tags={"a": "b"})
    assert answer(gate, theirs=base["theirs"], version=described).evidence == first


@pytest.mark.req("G3")
@given(st.one_of(st.none(), st.booleans()), st.floats(0, 1))
def test_the_same_facts_give_the_same_answers(verified: bool | None, value: float) -> None:
    """A decision can be asked again years later, from its stored form too."""
    facts = Facts(version=version(metrics=(auc(value),)), files_verified=verified)
    rules = StageRules(gates=(FilesVerifiedGate(), MetricGate(name="auc", min=0.5)))
    again = codec.decode(codec.encode(rules), StageRules)
    results = evaluate(rules, facts)
    assert evaluate(again, codec.decode(codec.encode(facts), Facts)) == results
    assert evidence_digest(results) == evidence_digest(evaluate(rules, facts))
    for result in results:
        if result.outcome is INCONCLUSIVE:
            assert result.blocks


# --------------------------------------------------------------------------------------- the document

WHOLE = """
name: credit
schema: modelkeep.policy/v1
description: what the risk team asks for
stages:
  staging:
    gates:
      - gate: files_verified
  production:
    approvals: {count: 2, roles: [approver, admin], expires_s: 86400}
    gates:
      - gate: files_verified
      - gate: signature
      - {gate: metadata, fields: [business.owner], mode: warn}
      - {gate: metric, name: auc, min: 0.8}
      - {gate: metric, name: auc, min: 0.75, slice: women}
      - {gate: better_than, metric: auc, tolerance: 0.005}
      - {gate: checklist, items: [bias reviewed, runbook]}
"""


@pytest.mark.req("G3")
def test_a_policy_is_read_from_yaml_and_json() -> None:
    """Both forms of one document are one policy, with one digest; it is stored and read back the same."""
    read = read_policy(WHOLE)
    assert [gate.label for gate in read.rules("production").gates] == [
        "files_verified",
        "signature",
        "metadata",
        "metric:auc",
        "metric:auc[women]",
        "better_than:auc",
        "checklist",
    ]
    assert read.rules("production").approvals.count == 2
    assert read.rules("archived") == StageRules()
    for form in (codec.encode(read), codec.render_yaml(read)):
        assert read_policy(form) == read
        assert policy_digest(read_policy(form)) == policy_digest(read)
    assert policy_digest(structs.replace(read, description="")) != policy_digest(read)


@pytest.mark.req("G3")
def test_the_built_in_policies_are_policies() -> None:
    """They pass the check that other people's pass, ask nobody in local mode and one other in a team."""
    for built in (ALONE, TEAM):
        assert read_policy(codec.encode(built)) == built
    assert ALONE.rules("production").approvals.count == 0
    assert TEAM.rules("production").approvals.count == 1


@pytest.mark.req("G3")
@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ("gates: [{gate: metric, name: auc}]", "needs 'min' or 'max'"),
        ("gates: [{gate: metric, name: '', min: 1}]", "needs the 'name' of a metric"),
        ("gates: [{gate: metric, name: auc, min: .nan}]", "finite"),
        ("gates: [{gate: metric, name: auc, max: .inf}]", "finite"),
        (
            "gates: [{gate: metric, name: auc, min: 2, max: 1}]",
            "because 'min' is above 'max'",
        ),
        ("gates: [{gate: better_than, metric: auc, tolerance: -0.1}]", "use 'by' to ask for a gain"),
        ("gates: [{gate: better_than, metric: auc, by: -0.1}]", "use 'tolerance' to allow a loss"),
        ("gates: [{gate: better_than, metric: auc, by: 0.1, tolerance: 0.1}]", "keep one of them"),
        ("gates: [{gate: better_than, metric: auc, tolerance: .nan}]", "tolerance"),
        ("gates: [{gate: checklist, items: []}]", "needs 1 to 100 different items"),
        ("gates: [{gate: checklist, items: [a, a]}]", "different items"),
        ("gates: [{gate: checklist, items: ['a=b']}]", "hold no '='"),
        ("gates: [{gate: metadata, fields: []}]", "for example business.owner"),
        ("gates: [{gate: signature}, {gate: signature}]", "stands twice for the stage 'production'"),
        ("gates: [{gate: sgnature}]", "The gates are: files_verified, signature, metadata"),
        ("gates: [{gate: metric, nam: auc, min: 1}]", "nam"),
        ("gates: [{gate: signature, mode: maybe}]", "maybe"),
        ("approvals: {count: 21}", "0 to 20 approvals"),
        ("approvals: {count: -1}", "0 to 20 approvals"),
        ("approvals: {count: 1, roles: []}", "takes approvals of admin, approver, maintainer"),
        ("approvals: {count: 1, roles: [viewer]}", "not 'viewer'"),
        ("approvals: {expires_s: 1}", "a minute up to a year"),
        ("approvals: {expires_s: .nan}", "a minute up to a year"),
        ("approvers: 2", "approvers"),
        ("gates: [{gate: checklist, items: ['\u202e']}]", "control characters"),
    ],
)
def test_a_policy_that_does_not_say_what_is_meant_is_refused(rules: str, said: str) -> None:
    """Everything is told when it is written, with the place; nothing is found out by a promotion."""
    with pytest.raises(errors.Invalid) as caught:
        read_policy(f"name: p\nstages:\n  production: {{{rules}}}\n")
    assert said in caught.value.message


@pytest.mark.req("G3")
@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("", "not a policy"),
        ("- a", "not a policy"),
        ("name: p\nstage: {}", "stage"),
        ("name: 'a b'", "cannot be the policy name"),
        ("name: p\nschema: modelkeep.policy/v9", "write 'modelkeep.policy/v1'"),
        ("name: p\nstages: {Production: {}}", "lower case: 'production'"),
        ("name: p\nstages: {a b: {}}", "stage"),
        ("name: [", "not a policy"),
    ],
)
def test_what_is_no_policy_is_refused(document: str, said: str) -> None:
    """Whatever comes is either a policy or an error of ours."""
    with pytest.raises(errors.Invalid) as caught:
        read_policy(document)
    assert said in caught.value.message


@given(st.text(max_size=60))
def test_any_text_is_a_policy_or_an_error_of_ours(text: str) -> None:
    """No text makes the reader fail in another way."""
    try:
        read = read_policy(text)
    except errors.ModelkeepError:
        return
    assert read.name


def test_the_gate_table_is_whole() -> None:
    """Every gate has a row, a docstring for its reference page, and its own tag."""
    tags = [gate.__struct_config__.tag for gate in GATES]
    assert len(set(tags)) == len(GATES) == len(Gate.__subclasses__())
    assert all(gate.__doc__ for gate in GATES)


PAGE = Path(__file__).parents[2] / "docs" / "reference" / "policy.md"


@pytest.mark.req("G3")
def test_the_reference_page_tells_every_gate() -> None:
    """Each gate has its row with each of its fields, each verdict is named, and the example is a policy."""
    page = PAGE.read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    for gate in GATES:
        row = rows[str(gate.__struct_config__.tag)]
        for name in gate.__struct_fields__:
            assert name == "mode" or f"`{name}`" in row, (gate, name)
    assert all(outcome.value in rows for outcome in Outcome)
    example = page.split("```yaml\n")[1].split("```")[0]
    assert len(read_policy(example).rules("production").gates) == 7


OUTER = read_policy(
    """
name: outer
stages:
  production:
    approvals: {count: 2, roles: [approver, admin]}
    gates:
      - {gate: signature}
      - {gate: metadata, fields: [business.owner, business.use]}
      - {gate: metric, name: auc, min: 0.8}
      - {gate: metric, name: loss, max: 0.2}
      - {gate: better_than, metric: auc, tolerance: 0.01}
      - {gate: checklist, items: [a, b], mode: warn}
"""
)


def changed(**more: Any) -> tuple[str, ...]:
    """In what OUTER would be weaker with another production."""
    rules = structs.replace(OUTER.rules("production"), **more)
    return weaker(structs.replace(OUTER, stages={"production": rules}), OUTER)


@pytest.mark.req("G3", "G7")
@pytest.mark.parametrize(
    ("gate", "reason"),
    [
        (SignatureGate(mode=Mode.WARN), "only warns of the gate signature"),
        (MetadataGate(fields=("business.owner",)), "asks for less in the gate metadata"),
        (MetadataGate(fields=("business.use", "business.owner", "business.risk")), None),
        (MetricGate(name="auc", max=0.8), "asks for less in the gate metric:auc"),
        (MetricGate(name="auc", min=0.8, max=0.99), None),
        (MetricGate(name="loss", max=0.3), "asks for less in the gate metric:loss"),
        (BetterThanGate(metric="auc", tolerance=0.02), "asks for less in the gate better_than:auc"),
        (BetterThanGate(metric="auc", by=0.0), None),
        (ChecklistGate(items=("c",)), None),
    ],
)
def test_a_gate_that_asks_for_less_is_told(gate: AnyGate, reason: str | None) -> None:
    """Each rule knows what is stricter; a gate that only warned binds nobody."""
    gates = tuple(gate if gate.label == own.label else own for own in OUTER.rules("production").gates)
    assert changed(gates=gates) == ((f"production {reason}",) if reason else ())


@pytest.mark.req("G3", "S3")
def test_a_policy_has_a_plan_for_each_stage_and_alias_and_for_the_rest() -> None:
    """The nearest holds, with what its strategy brings along; another one than the outer policy's is told,
    and one that cannot be is refused with its place."""
    moves = read_policy(
        "name: p\nstages: {production: {rollout: {strategy: rolling}}, staging: {}}\n"
        "aliases: {champion: {rollout: {strategy: blue_green}}}\nrollout: {strategy: shadow}"
    )
    strategies = [
        plan.strategy if plan is not None else None
        for plan in (
            moves.plan("production"),
            moves.plan("staging"),
            moves.plan(None, "champion"),
            moves.plan(None, "other"),
            OUTER.plan("production"),
            OUTER.plan(None, "champion"),
        )
    ]
    assert strategies == ["rolling", "shadow", "blue_green", "shadow", None, None]
    assert moves.rollout == PRESETS[Strategy.SHADOW]
    assert weaker(moves, moves) == ()
    assert weaker(structs.replace(moves, aliases={}, rollout=None), moves) == tuple(
        f"{place} moves traffic by another rollout plan"
        for place in ("staging", "@champion", "everything else")
    )
    for wrong, place in (
        ("aliases: {champion: {rollout: {strategy: canary, preview_s: 5}}}", "'@champion'"),
        ("rollout: {steps: []}", "'everything else'"),
        ("rollout: {schema: modelkeep.rollout/v0}", "'everything else'"),
    ):
        with pytest.raises(errors.InvalidPolicy, match=f"The rollout for {place}"):
            read_policy(f"name: p\n{wrong}")
    with pytest.raises(errors.InvalidName):
        read_policy("name: p\naliases: {a b: {rollout: {strategy: canary}}}")


@pytest.mark.req("G3", "G7")
def test_fewer_people_and_more_roles_are_told() -> None:
    """As many approvals of the same or fewer roles are as strict; so is a policy to itself."""
    assert weaker(OUTER, OUTER) == ()
    assert changed(approvals=Approvals(count=3, roles=("admin",))) == ()
    assert changed(approvals=Approvals(count=1, roles=("admin",))) == (
        "production asks for 1 approvals instead of 2",
    )
    assert changed(approvals=Approvals(count=2)) == ("production also takes the approval of maintainer",)
    assert len(weaker(ALONE, OUTER, ["production"])) == 6
    assert weaker(ALONE, OUTER, ["staging"]) == ()
