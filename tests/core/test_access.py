"""Who may do what: deny wins, order does not matter, a token narrows and never widens."""

from datetime import UTC, datetime
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from modelkeep.core.access import ROLE_VERBS, Caller, Effect, Grant, Role, Verb, allowed, roles_on
from modelkeep.core.values import Actor, ModelName

NOW = datetime(2026, 1, 25, 14, 3, tzinfo=UTC)
CHURN, SCORE, OTHER = ModelName("risk", "churn"), ModelName("risk", "score"), ModelName("ads", "churn")
SCOPES = [None, "risk", "ads", CHURN, SCORE, OTHER]


def grant(
    role: Role = Role.VIEWER,
    project: str | None = None,
    model: str | None = None,
    effect: Effect = Effect.ALLOW,
) -> Grant:
    """A grant of somebody."""
    return Grant(
        id="grt_1",
        principal="ann",
        role=role,
        project=project,
        model=model,
        effect=effect,
        created_at=NOW,
        created_by="dan",
    )


def caller(*grants: Grant, **more: object) -> Caller:
    """Somebody who holds these."""
    return Caller(actor=Actor(name="ann"), grants=grants, **more)


places = st.sampled_from([(None, None), ("risk", None), ("ads", None), ("risk", "churn"), ("ads", "churn")])
grants = st.builds(
    lambda role, place, effect: grant(role, place[0], place[1], effect),
    st.sampled_from(Role),
    places,
    st.sampled_from(Effect),
)
scopes = st.sampled_from(SCOPES)
verbs = st.sampled_from(Verb)
projects = st.sampled_from([None, "risk", "ads"])
Scope = ModelName | str | None


@pytest.mark.req("G10")
@given(st.lists(grants, max_size=4), verbs, scopes)
def test_the_order_of_grants_does_not_matter(held: list[Grant], verb: Verb, scope: Scope) -> None:
    """All orders of the same grants say the same."""
    answers = {allowed(caller(*order), verb, scope) for order in permutations(held)}
    assert len(answers) == 1


@pytest.mark.req("G10")
@given(st.lists(grants, max_size=5), grants, verbs, scopes)
def test_more_allows_only_add_and_more_denies_only_take(
    held: list[Grant], one: Grant, verb: Verb, scope: Scope
) -> None:
    """Whatever is granted besides cannot be a way around a denial."""
    before = allowed(caller(*held), verb, scope)
    wider = allowed(caller(*held, structs.replace(one, effect=Effect.ALLOW)), verb, scope)
    narrower = allowed(caller(*held, structs.replace(one, effect=Effect.DENY)), verb, scope)
    assert narrower <= before <= wider


@pytest.mark.req("G10")
@given(st.lists(grants, max_size=5), grants, verbs, scopes)
def test_deny_wins(held: list[Grant], one: Grant, verb: Verb, scope: Scope) -> None:
    """A denial that reaches the place and has the verb ends it, whoever else allows it."""
    denial = structs.replace(one, effect=Effect.DENY)
    if denial.covers(scope) and verb in ROLE_VERBS[denial.role]:
        assert not allowed(caller(*held, denial), verb, scope)
        assert not allowed(caller(denial, *held), verb, scope)


@pytest.mark.req("G10")
@given(
    st.lists(grants, max_size=5), st.frozensets(verbs), st.sampled_from([None, "risk", "ads"]), verbs, scopes
)
def test_a_token_narrows_and_never_widens(
    held: list[Grant], to: frozenset[Verb], project: str | None, verb: Verb, scope: Scope
) -> None:
    """With a token one may do what one may, within its verbs and its project."""
    narrowed = allowed(caller(*held, verbs=to, project=project), verb, scope)
    inside = project is None or project == (scope.project if isinstance(scope, ModelName) else scope)
    assert narrowed == (allowed(caller(*held), verb, scope) and verb in to and inside)


@pytest.mark.req("G10")
def test_nothing_granted_means_no() -> None:
    """Nobody may anything by being there, anywhere."""
    assert not any(allowed(caller(), verb, scope) for verb in Verb for scope in SCOPES)


@pytest.mark.req("G10")
def test_an_owners_narrowed_token_is_narrow_too() -> None:
    """The owner of local mode may everything, through a token no more than it says."""
    assert all(allowed(caller(owner=True), verb, scope) for verb in Verb for scope in SCOPES)
    narrow = caller(owner=True, verbs=frozenset({Verb.READ}), project="risk")
    may = {(verb, scope) for verb in Verb for scope in SCOPES if allowed(narrow, verb, scope)}
    assert may == {(Verb.READ, "risk"), (Verb.READ, CHURN), (Verb.READ, SCORE)}


@pytest.mark.req("G10")
@pytest.mark.parametrize(
    ("project", "model", "reached"),
    [
        (None, None, SCOPES),
        ("risk", None, ["risk", CHURN, SCORE]),
        ("risk", "churn", [CHURN]),
    ],
)
def test_how_far_a_grant_reaches(project: str | None, model: str | None, reached: list[object]) -> None:
    """Everywhere, a project with its models, or one model; a model's grant says nothing of its project."""
    assert [scope for scope in SCOPES if grant(project=project, model=model).covers(scope)] == reached


@pytest.mark.req("G10")
def test_what_each_role_may() -> None:
    """The lines that people rely on: who sees, who asks, who decides, who runs the installation."""
    may = {verb: {role for role in Role if verb in ROLE_VERBS[role]} for verb in Verb}
    assert may[Verb.READ] == set(Role) - {Role.GATEWAY}
    assert may[Verb.PULL] == set(Role) - {Role.GATEWAY, Role.AUDITOR}
    assert may[Verb.REQUEST] == {Role.CONTRIBUTOR, Role.MAINTAINER, Role.ADMIN}
    assert may[Verb.TRACK] == {Role.CONTRIBUTOR, Role.MAINTAINER, Role.ADMIN}
    assert may[Verb.REVIEW] == {Role.APPROVER, Role.MAINTAINER, Role.ADMIN}
    assert may[Verb.PROMOTE] == may[Verb.ROLLBACK] == {Role.MAINTAINER, Role.ADMIN}
    assert may[Verb.ADMINISTER] == {Role.ADMIN}
    assert may[Verb.SERVE] == {Role.GATEWAY}
    assert may[Verb.READ_AUDIT] == {Role.AUDITOR, Role.APPROVER, Role.MAINTAINER, Role.ADMIN}


@pytest.mark.req("G2", "G10")
def test_roles_that_count_for_an_approval() -> None:
    """Those that reach the model and are not denied there; the owner of local mode holds all."""
    held = (
        grant(Role.APPROVER, "risk"),
        grant(Role.MAINTAINER, "ads"),
        grant(Role.ADMIN, "risk", "score"),
        grant(Role.APPROVER, "risk", "score", Effect.DENY),
    )
    assert roles_on(caller(*held), CHURN) == {Role.APPROVER}
    assert roles_on(caller(*held), SCORE) == {Role.ADMIN}
    assert roles_on(caller(*held), OTHER) == {Role.MAINTAINER}
    assert roles_on(caller(owner=True), CHURN) == set(Role)
