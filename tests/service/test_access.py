"""Finding the caller behind a credential; people, tokens and grants; answers kept for repeated writes."""

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.core import access as core
from modelkeep.core import errors
from modelkeep.core.access import AuthMode, Caller, Effect, PrincipalKind, Role, Verb
from modelkeep.core.events import EventKind
from modelkeep.core.values import Actor, ModelName
from modelkeep.service import access as module
from modelkeep.service.access import Access
from modelkeep.service.act import SYSTEM_CONTEXT, Act, Context, Desk
from modelkeep.store.database import Database

START = datetime(2026, 1, 25, 14, 3, tzinfo=UTC)
KEY = b"k" * 32
USER = PrincipalKind.USER
CHURN = ModelName("default", "churn")


class Gate:
    """A server's door in token mode, with an admin inside and a clock to set."""

    def __init__(self, database: Database, mode: AuthMode = AuthMode.TOKEN) -> None:
        self.now = START
        self.database = database
        self.desk = Desk(database, lambda: self.now)
        self.access = Access(self.desk, mode, KEY, "owner")
        self.admin = Context(caller=Caller(actor=Actor(name="admin"), owner=True))

    def do(self, method: Any, *args: Any, by: Context | None = None, **kwargs: Any) -> Any:
        """Somebody, or the admin, changes something."""
        return self.desk.do(by or self.admin, method, *args, **kwargs)

    def person(self, name: str, role: Role | None = None, kind: PrincipalKind = USER, **scope: Any) -> str:
        """Add somebody; their token."""
        self.do(self.access.create_principal, name, kind)
        if role is not None:
            self.do(self.access.add_grant, principal=name, role=role, **scope)
        return str(self.do(self.access.create_token, label="first", principal=name).secret)

    def knock(self, secret: str, scheme: str = "Bearer") -> Caller:
        """Come with a token, as if never seen before."""
        self.access._cache.clear()
        return self.access.authenticate(f"{scheme} {secret}")

    def context(self, secret: str) -> Context:
        """The context of a request with this token."""
        return Context(caller=self.knock(secret))

    def events(self, kind: EventKind) -> list[Any]:
        """The events of a kind."""
        return [stored.event for stored in self.database.read(lambda tx: tx.events.after(kind=kind))]


@pytest.fixture
def gate(database: Database) -> Gate:
    """Token mode, on each database."""
    return Gate(database)


# ---------------------------------------------------------------------------------------------- who is it


@pytest.mark.req("G10")
def test_a_token_is_its_owner_with_what_they_hold(gate: Gate) -> None:
    """Name, kind and grants come from the store, through Bearer and through Basic with any user name."""
    secret = gate.person("bob", Role.APPROVER, project="default", model="churn")
    caller = gate.knock(secret)
    assert (caller.actor.name, caller.actor.asserted, caller.owner) == ("bob", False, False)
    assert core.allowed(caller, Verb.REVIEW, CHURN)
    assert not core.allowed(caller, Verb.REVIEW, ModelName("default", "other"))
    basic = base64.b64encode(f"anything:{secret}".encode()).decode()
    assert gate.knock(basic, "Basic") == gate.knock(basic, "basic") == caller
    robot = gate.person("ci", kind=PrincipalKind.SERVICE)
    assert robot.startswith("mk_s_")
    assert gate.knock(robot).actor.kind == "service"


@pytest.mark.req("G10")
@pytest.mark.hostile("guessed-credentials")
def test_every_way_to_be_nobody_says_the_same(gate: Gate) -> None:
    """Unknown, mistyped, revoked, shut out, made under another key: a guesser learns nothing."""
    secret = gate.person("bob")
    revoked = gate.do(gate.access.create_token, label="old", principal="bob")
    gate.do(gate.access.revoke_token, revoked.info.id)
    shut_out = gate.person("cat")
    gate.do(gate.access.disable_principal, "cat")
    other = Access(gate.desk, AuthMode.TOKEN, b"x" * 32, "owner")
    said = set()
    for knock in (
        lambda: gate.knock(revoked.secret),
        lambda: gate.knock(shut_out),
        lambda: gate.knock(secret[:-1] + ("0" if secret[-1] != "0" else "1")),
        lambda: gate.knock(secret[:20]),
        lambda: gate.knock(""),
        lambda: gate.knock("%%%", "Basic"),
        lambda: gate.knock("é", "Basic"),
        lambda: gate.knock(base64.b64encode(b"a:\xff").decode(), "Basic"),
        lambda: other.authenticate(f"Bearer {secret}"),
    ):
        with pytest.raises(errors.NotAuthenticated) as caught:
            knock()
        said.add(caught.value.message)
    assert said == {"This token is not valid here; make one with 'modelkeep token create'."}
    for credential in (None, "Digest x", secret):
        with pytest.raises(errors.NotAuthenticated, match="Authorization: Bearer"):
            gate.access.authenticate(credential)


@pytest.mark.req("G10")
@given(st.text(max_size=80))
@pytest.mark.hostile("guessed-credentials")
def test_any_credential_is_refused_and_nothing_else(text: str) -> None:
    """Reading a token's text ends in an id and a secret, or in the one refusal."""
    for read in (module._parse, lambda t: module._token_text(f"Basic {t}")):
        try:
            read(text)
        except errors.NotAuthenticated:
            continue


@pytest.mark.req("G10")
def test_a_token_ends_by_itself(gate: Gate) -> None:
    """After its time it says so to whoever holds it; ninety days are usual, a year is the most."""
    secret = gate.person("bob")
    gate.now += timedelta(days=90) - timedelta(microseconds=1)
    assert gate.knock(secret).actor.name == "bob"
    gate.now += timedelta(microseconds=1)
    with pytest.raises(errors.TokenExpired, match=r"The token 'first' expired at 2026-04-25 14:03 UTC"):
        gate.knock(secret)
    for asked, days in ((3_600.0, 1 / 24), (10e9, 366)):
        made = gate.do(gate.access.create_token, label="x", principal="bob", expires_s=asked)
        assert made.info.expires_at == gate.now + timedelta(days=days)
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(errors.Invalid, match="more than 0 seconds"):
            gate.do(gate.access.create_token, label="x", principal="bob", expires_s=bad)


@pytest.mark.req("G10")
def test_a_checked_credential_is_believed_for_a_moment(gate: Gate) -> None:
    """Until the moment is over, or anybody's rights change here."""
    secret = gate.person("bob")
    credential = f"Bearer {secret}"
    assert gate.access.remembered(credential) is None
    caller = gate.access.authenticate(credential)
    assert gate.access.remembered(credential) is caller
    assert gate.access.remembered(None) is None
    gate.do(gate.access.add_grant, principal="bob", role=Role.VIEWER)
    assert gate.access.remembered(credential) is None
    assert core.allowed(gate.access.authenticate(credential), Verb.READ, CHURN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CACHE_S", -1.0)
        gate.access._cache.clear()
        gate.access.authenticate(credential)
        assert gate.access.remembered(credential) is None
        patch.setattr(module, "CACHE_MAX", 1)
        gate.access.authenticate(credential)
        assert len(gate.access._cache) == 1


@pytest.mark.req("G10")
def test_the_day_of_use_is_noted(gate: Gate) -> None:
    """Once a day, so that reading does not mean writing."""
    secret = gate.person("bob")
    gate.knock(secret)
    gate.do(lambda act: None)  # the note was in line before this
    (info,) = gate.desk.read(gate.context(secret), gate.access.list_tokens, 10, None).items
    assert info.last_used_on == "2026-01-25"
    with gate.database.statements() as seen:
        gate.knock(secret)
        gate.do(lambda act: None)
    assert not [text for text in seen if text.startswith("UPDATE")]


@pytest.mark.req("G10")
def test_local_mode_believes_the_machine(sqlite_database: Database) -> None:
    """One owner, whom nobody checked, and who may everything; what they do bears the mark."""
    gate = Gate(sqlite_database, AuthMode.LOCAL)
    for credential in (None, "Bearer nonsense"):
        caller = gate.access.authenticate(credential)
        assert gate.access.remembered(credential) is caller
        assert (caller.actor.name, caller.actor.asserted, caller.owner) == ("owner", True, True)
    me = gate.desk.read(Context(caller=caller), gate.access.whoami)
    assert (me.owner, me.mode, me.verbs) == (True, AuthMode.LOCAL, None)
    made = gate.do(gate.access.create_token, label="ci", by=Context(caller=caller))
    assert made.info.principal == "owner"


# ------------------------------------------------------------------------------------------ tokens of people


@pytest.mark.req("G10")
def test_a_secret_is_shown_once_and_kept_nowhere(gate: Gate) -> None:
    """Neither a list nor the log nor the database holds what was handed out."""
    secret = gate.person("bob")
    body = secret.split("_")[3][:32]
    listed = gate.desk.read(gate.admin, gate.access.list_tokens, 10, None)
    assert body not in str(listed)
    assert body not in str(gate.events(EventKind.TOKEN_CREATED))
    rows = gate.database.read(lambda tx: tx.all(module.store.tokens.select()))
    assert body not in str(rows)


@pytest.mark.req("G10")
def test_a_token_made_with_a_narrowed_one_is_as_narrow(gate: Gate) -> None:
    """In verbs, in project and in time; one may narrow further, never widen."""
    wide = gate.context(gate.person("bob", Role.MAINTAINER))
    make = gate.access.create_token
    hour = gate.do(make, label="ci", verbs=(Verb.READ, Verb.PULL), project="risk", expires_s=3_600.0, by=wide)
    narrow = gate.context(hour.secret)
    child = gate.do(make, label="child", by=narrow).info
    assert (child.verbs, child.project) == ((Verb.PULL, Verb.READ), "risk")
    assert child.expires_at == hour.info.expires_at
    assert gate.do(make, label="less", verbs=(Verb.READ,), by=narrow).info.verbs == (Verb.READ,)
    with pytest.raises(errors.NotAllowed, match="lacks: promote, review"):
        gate.do(make, label="more", verbs=(Verb.READ, Verb.REVIEW, Verb.PROMOTE), by=narrow)
    with pytest.raises(errors.NotAllowed, match="for the project risk only"):
        gate.do(make, label="more", project="ads", by=narrow)
    caller = gate.knock(hour.secret)
    assert core.allowed(caller, Verb.READ, ModelName("risk", "a"))
    assert not core.allowed(caller, Verb.READ, CHURN)
    assert not core.allowed(caller, Verb.PROMOTE, ModelName("risk", "a"))


@pytest.mark.req("G10")
def test_no_token_outlives_the_one_it_is_made_with(gate: Gate) -> None:
    """Not even one of all its owner's rights makes a year of its hour, nor a project's admin's; only an admin
    of the installation goes on after their first token."""
    make = gate.access.create_token
    gate.person("bob", Role.MAINTAINER)
    gate.person("ida", Role.ADMIN, project="risk")
    gate.person("cat", Role.ADMIN)
    year = 366 * 86_400.0
    for name in ("bob", "ida"):
        hour = gate.do(make, label="hour", principal=name, expires_s=3_600.0)
        by = gate.context(hour.secret)
        assert gate.do(make, label="year", expires_s=year, by=by).info.expires_at == hour.info.expires_at
        assert gate.do(make, label="less", expires_s=60.0, by=by).info.expires_at < hour.info.expires_at
    admin = gate.context(gate.do(make, label="hour", principal="cat", expires_s=3_600.0).secret)
    assert gate.do(make, label="year", expires_s=year, by=admin).info.expires_at == gate.now + timedelta(
        days=366
    )
    narrow = gate.do(make, label="ci", principal="cat", expires_s=3_600.0, project="risk")
    child = gate.do(make, label="year", expires_s=year, by=gate.context(narrow.secret))
    assert child.info.expires_at == narrow.info.expires_at


@pytest.mark.req("G10")
def test_tokens_of_others_are_the_admins_business(gate: Gate) -> None:
    """Making, seeing and revoking; what is not one's own is not there."""
    bob, cat = gate.context(gate.person("bob")), gate.context(gate.person("cat"))
    mine = gate.do(gate.access.create_token, label="mine", by=bob).info
    with pytest.raises(errors.NotAllowed):
        gate.do(gate.access.create_token, label="x", principal="cat", by=bob)
    with pytest.raises(errors.TokenNotFound):
        gate.do(gate.access.revoke_token, mine.id, by=cat)
    with pytest.raises(errors.TokenNotFound):
        gate.do(gate.access.revoke_token, "nothing")
    with pytest.raises(errors.PrincipalNotFound):
        gate.do(gate.access.create_token, label="x", principal="nobody")
    assert {t.principal for t in gate.desk.read(bob, gate.access.list_tokens, 10, None).items} == {"bob"}
    seen, token = [], None
    while True:
        page = gate.desk.read(gate.admin, gate.access.list_tokens, 1, token)
        seen += [info.id for info in page.items]
        token = page.next_page_token
        if token is None:
            break
    assert len(seen) == len(set(seen)) == 3
    gone = gate.do(gate.access.revoke_token, mine.id, by=bob)
    assert gone.revoked_at == gate.now
    gate.do(gate.access.revoke_token, mine.id, by=bob)
    assert len(gate.events(EventKind.TOKEN_REVOKED)) == 1


@pytest.mark.req("G10")
@pytest.mark.parametrize(
    ("label", "project"), [("", None), ("a\x00b", None), ("x" * 201, None), ("ok", "a/b")]
)
def test_bad_labels_and_projects_are_refused(gate: Gate, label: str, project: str | None) -> None:
    """People read them in lists and in the log."""
    gate.person("bob")
    with pytest.raises(errors.Invalid):
        gate.do(gate.access.create_token, label=label, principal="bob", project=project)


# --------------------------------------------------------------------------------------- people and grants


@pytest.mark.req("G10")
def test_people_are_added_and_shut_out_by_admins(gate: Gate) -> None:
    """A name is taken once and for ever, some from the beginning, and nobody locks themselves out."""
    bob = gate.context(gate.person("bob", Role.MAINTAINER))
    for name in ("bob", "modelkeep", "anonymous"):
        with pytest.raises(errors.PrincipalExists, match="is taken"):
            gate.do(gate.access.create_principal, name, PrincipalKind.USER)
    for verb, args in (
        (gate.access.create_principal, ("x", PrincipalKind.USER)),
        (gate.access.disable_principal, ("bob",)),
        (gate.access.list_principals, (10, None)),
        (gate.access.list_grants, (10, None)),
    ):
        with pytest.raises(errors.NotAllowed, match="'administer'"):
            gate.do(verb, *args, by=bob)
    assert gate.do(gate.access.disable_principal, "bob").disabled
    with pytest.raises(errors.PrincipalExists):
        gate.do(gate.access.create_principal, "bob", PrincipalKind.USER)
    with pytest.raises(errors.PrincipalNotFound):
        gate.do(gate.access.disable_principal, "nobody")
    gate.do(gate.access.create_principal, "admin", PrincipalKind.USER)
    with pytest.raises(errors.Conflict, match="cannot shut yourself out"):
        gate.do(gate.access.disable_principal, "admin")
    page = gate.desk.read(gate.admin, gate.access.list_principals, 1, None)
    assert (page.items[0].name, page.next_page_token) == ("admin", "admin")
    assert gate.desk.read(gate.admin, gate.access.list_principals, 1, "admin").items[0].name == "bob"


@pytest.mark.req("G10")
def test_an_admin_of_a_project_grants_within_it(gate: Gate) -> None:
    """There and on its models, not elsewhere, and takes away only what lies there."""
    boss = gate.context(gate.person("boss", Role.ADMIN, project="risk"))
    gate.person("bob")
    give = gate.access.add_grant
    grant = gate.do(give, principal="bob", role=Role.VIEWER, project="risk", model="churn", by=boss)
    denial = gate.do(give, principal="bob", role=Role.ADMIN, project="ads", effect=Effect.DENY)
    for scope in ({}, {"project": "ads"}, {"project": "ads", "model": "churn"}):
        with pytest.raises(errors.NotAllowed):
            gate.do(give, principal="bob", role=Role.VIEWER, by=boss, **scope)
    with pytest.raises(errors.NotAllowed):
        gate.do(gate.access.remove_grant, denial.id, by=boss)
    with pytest.raises(errors.NotAllowed):
        gate.do(gate.access.remove_grant, "grt_nothing", by=boss)
    with pytest.raises(errors.NotFound):
        gate.do(gate.access.remove_grant, "grt_nothing")
    gate.do(gate.access.remove_grant, grant.id, by=boss)
    with pytest.raises(errors.Invalid, match="Name the project"):
        gate.do(give, principal="bob", role=Role.VIEWER, model="churn")
    with pytest.raises(errors.PrincipalNotFound):
        gate.do(give, principal="nobody", role=Role.VIEWER)
    left = gate.desk.read(gate.admin, gate.access.list_grants, 10, None).items
    assert denial in left
    assert grant not in left
    (event,) = gate.events(EventKind.GRANT_REMOVED)
    assert (event.subject, event.body["grant"]) == ("principal/bob", grant.id)


# -------------------------------------------------------------------------- first start, gateways, refusals


@pytest.mark.req("G10")
def test_the_first_admin_is_made_once(gate: Gate) -> None:
    """The first start hands out a token, no later one does, and the token administers."""
    first = gate.access.first_start()
    assert first is not None
    assert gate.access.first_start() is None
    assert core.allowed(gate.knock(first.secret), Verb.ADMINISTER, None)


@pytest.mark.req("G10")
def test_a_gateways_token_only_serves(gate: Gate) -> None:
    """Each start gives a fresh one and ends this server's former one; nothing else may be done with it."""
    beside = gate.access.gateway_token(None)
    former = gate.access.gateway_token("what was never a token")
    fresh = gate.access.gateway_token(former)
    with pytest.raises(errors.NotAuthenticated):
        gate.knock(former)
    assert gate.knock(beside).actor == gate.knock(fresh).actor
    caller = gate.knock(fresh)
    assert {verb for verb in Verb if core.allowed(caller, verb, None)} == {Verb.SERVE}


@pytest.mark.req("G8", "G10")
def test_refusals_are_noted_and_a_flood_is_not(gate: Gate) -> None:
    """The log says who tried what; one caller cannot fill it."""
    bob = gate.context(gate.person("bob"))
    with pytest.raises(errors.NotAllowed) as caught:
        gate.do(gate.access.list_grants, 10, None, by=bob)
    gate.do(gate.access.note_refusal, "list_grants", caught.value, by=bob)
    (event,) = gate.events(EventKind.ACCESS_REFUSED)
    assert (event.actor.name, event.subject) == ("bob", "operation/list_grants")
    assert event.body["details"]["verb"] == "administer"
    noted = [gate.access.worth_noting(bob.caller) for _ in range(module.REFUSALS_PER_HOUR + 5)]
    assert noted.count(True) == module.REFUSALS_PER_HOUR
    assert gate.access.worth_noting(gate.admin.caller)


# ------------------------------------------------------------------------------------------ repeated writes


@pytest.mark.req("G10")
def test_an_answer_is_kept_for_its_key_and_its_person(gate: Gate) -> None:
    """The same request gets the same answer for a day; another request under the key is a mistake."""
    bob, cat = gate.context(gate.person("bob")), gate.context(gate.person("cat"))

    def keep(act: Act) -> None:
        gate.access.remember(act, "key-1", "fingerprint", b'{"a": 1}')

    gate.do(keep, by=bob)
    recall = gate.access.recall
    assert gate.desk.read(bob, recall, "key-1", "fingerprint") == b'{"a": 1}'
    assert gate.desk.read(cat, recall, "key-1", "fingerprint") is None
    assert gate.desk.read(bob, recall, "key-2", "fingerprint") is None
    with pytest.raises(errors.IdempotencyMismatch):
        gate.desk.read(bob, recall, "key-1", "another")
    gate.now += timedelta(seconds=module.REMEMBER_S + 1)
    assert gate.desk.read(bob, recall, "key-1", "another") is None
    gate.do(keep, by=bob)
    assert gate.desk.read(bob, recall, "key-1", "fingerprint") == b'{"a": 1}'


def test_the_system_may_everything(gate: Gate) -> None:
    """The controller acts under its own name."""
    assert gate.desk.read(SYSTEM_CONTEXT, gate.access.whoami).actor.name == "modelkeep"
