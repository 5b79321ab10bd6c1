"""Who is asking: tokens, people, grants, and the answers kept for repeated writes.

Local mode has one owner, the operating system's user, whom nobody checks; everything done then bears the mark
`asserted`. Token mode believes nobody without a token. A token's text is

    mk_<kind>_<id: 12 base62>_<secret: 32 base62><checksum: 6 base62>

The prefix and the CRC-32 serve programs that look for leaked secrets. Stored are the id and HMAC-SHA256 of
the secret under the installation's key; a fast hash suffices because the secret has 190 random bits.
"""

import base64
import contextlib
import hashlib
import hmac
import secrets
import time
import zlib
from datetime import datetime, timedelta

from msgspec import Struct, structs

from modelkeep.core import errors, values
from modelkeep.core.access import (
    AuthMode,
    Caller,
    Effect,
    Grant,
    Principal,
    PrincipalKind,
    Role,
    TokenInfo,
    Verb,
)
from modelkeep.core.answers import NewToken, WhoAmI
from modelkeep.core.events import EventKind
from modelkeep.core.values import Actor, ActorKind, ModelName
from modelkeep.service.act import SYSTEM_CONTEXT, Act, Desk
from modelkeep.store import access as store
from modelkeep.store.transaction import Transaction

TOKEN_DEFAULT_S = 90 * 86_400.0
"""How long a token lives when nobody says."""
TOKEN_MAX_S = 366 * 86_400.0
"""The longest life of a token: a forgotten one must end by itself."""
CACHE_S = 5.0
"""A credential that was checked is believed for so long; a revocation reaches other replicas within it."""
CACHE_MAX = 10_000
"""Credentials remembered; past that all are forgotten and checked anew."""
REMEMBER_S = 24 * 3_600.0
"""How long the answer to a write with an idempotency key is kept."""
REFUSALS_PER_HOUR = 20
"""Refused attempts per caller that become audit events; the rest are only logged."""

_GATEWAY_LABEL = "local gateway"
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class PrincipalPage(Struct, frozen=True, kw_only=True):
    """A page of people and programs."""

    items: tuple[Principal, ...]
    next_page_token: str | None = None


class TokenPage(Struct, frozen=True, kw_only=True):
    """A page of tokens."""

    items: tuple[TokenInfo, ...]
    next_page_token: str | None = None


class GrantPage(Struct, frozen=True, kw_only=True):
    """A page of grants."""

    items: tuple[Grant, ...]
    next_page_token: str | None = None


class Access:
    """Finds the caller behind a credential, and keeps people, tokens and grants."""

    def __init__(self, desk: Desk, mode: AuthMode, key: bytes, owner: str) -> None:
        """
        Args:
            key: the installation's secret, at least 32 bytes; with another key all tokens are void.
            owner: who acts in local mode.
        """
        self.desk = desk
        self.mode = mode
        self.anonymous = Caller(actor=Actor(name="anonymous", asserted=True))
        self._owner = Caller(actor=Actor(name=owner, asserted=True), owner=True)
        self._key = key
        self._cache: dict[bytes, tuple[float, Caller]] = {}
        self._refusals: dict[str, tuple[float, int]] = {}

    # ------------------------------------------------------------------------------------------- finding the
    # caller

    def remembered(self, credential: str | None) -> Caller | None:
        """The caller, when that needs no look into the store: local mode, or a credential checked moments
        ago.
        """
        if self.mode is AuthMode.LOCAL:
            return self._owner
        if credential is None:
            return None
        known = self._cache.get(_fingerprint(credential))
        return known[1] if known is not None and time.monotonic() < known[0] else None

    def authenticate(self, credential: str | None) -> Caller:
        """The caller behind an Authorization header's text.

        Raises:
            NotAuthenticated: none given, unknown, revoked, or its owner was shut out; always the same words.
            TokenExpired: it was good once.
        """
        if self.mode is AuthMode.LOCAL:
            return self._owner
        if credential is None:
            raise errors.NotAuthenticated(
                "This server asks for a token; set MODELKEEP_TOKEN, or send 'Authorization: Bearer TOKEN'."
            )
        text = _token_text(credential)
        caller = self.desk.database.read(lambda tx: self._caller(tx, text, self.desk.clock()))
        if len(self._cache) >= CACHE_MAX:
            self._cache.clear()
        self._cache[_fingerprint(credential)] = (time.monotonic() + CACHE_S, caller)
        return caller

    def _caller(self, tx: Transaction, text: str, now: datetime) -> Caller:
        token_id, secret = _parse(text)
        stored = store.token_secret(tx, token_id)
        expected = stored.secret_hash if stored is not None else "0" * 64
        matches = hmac.compare_digest(self._hash(secret), expected)
        if stored is None or not matches or stored.info.revoked_at is not None:
            raise _unknown()
        info = stored.info
        principal = store.get_principal(tx, info.principal)
        if principal is None or principal.disabled:
            raise _unknown()
        if now >= info.expires_at:
            raise errors.TokenExpired(
                f"The token {info.label!r} expired at {info.expires_at:%Y-%m-%d %H:%M} UTC; "
                "make a new one with 'modelkeep token create'."
            )
        today = f"{now:%Y-%m-%d}"
        if info.last_used_on != today:
            with contextlib.suppress(errors.Unavailable):  # a note; who it is does not depend on it
                self.desk.database.write(lambda writing: store.mark_used(writing, info.id, today))
        kind = ActorKind.USER if principal.kind is PrincipalKind.USER else ActorKind.SERVICE
        return Caller(
            actor=Actor(name=principal.name, kind=kind),
            grants=store.grants_of(tx, principal.name),
            verbs=frozenset(info.verbs) if info.verbs is not None else None,
            project=info.project,
            token=info.id,
        )

    def _hash(self, secret: str) -> str:
        return hmac.new(self._key, secret.encode(), hashlib.sha256).hexdigest()

    def note_refusal(self, act: Act, operation: str, error: errors.NotAllowed) -> None:
        """Record that somebody tried what they may not."""
        act.record(
            EventKind.ACCESS_REFUSED, f"operation/{operation}", reason=error.message, details=error.details
        )

    def worth_noting(self, caller: Caller) -> bool:
        """Whether a refusal still goes into the audit log; a flood of them must not fill it."""
        hour, name = time.monotonic() // 3_600, caller.actor.name
        since, count = self._refusals.get(name, (hour, 0))
        count = count + 1 if since == hour else 1
        if len(self._refusals) >= CACHE_MAX:
            self._refusals.clear()
        self._refusals[name] = (hour, count)
        return count <= REFUSALS_PER_HOUR

    # ----------------------------------------------------------------------------------------------- people
    # and tokens

    def whoami(self, act: Act) -> WhoAmI:
        """Who the caller is, and what they hold."""
        caller = act.caller
        return WhoAmI(
            actor=caller.actor,
            mode=self.mode,
            owner=caller.owner,
            grants=caller.grants,
            verbs=tuple(sorted(caller.verbs)) if caller.verbs is not None else None,
            project=caller.project,
        )

    def create_principal(self, act: Act, name: str, kind: PrincipalKind) -> Principal:
        """Add a person or a program, who then holds nothing yet.

        Raises:
            PrincipalExists: the name is taken, also by somebody who was shut out.
        """
        act.authorise(Verb.ADMINISTER, None)
        values.check_name(name, kind.value)
        if store.get_principal(act.tx, name) is not None or name in (values.SYSTEM.name, "anonymous"):
            raise errors.PrincipalExists(f"The name {name} is taken; choose another.", name=name)
        return self._add_principal(act, name, kind)

    def _add_principal(self, act: Act, name: str, kind: PrincipalKind) -> Principal:
        principal = Principal(name=name, kind=kind, created_at=act.now, created_by=act.by)
        store.add_principal(act.tx, principal)
        act.record(EventKind.PRINCIPAL_CREATED, f"principal/{name}", principal_kind=kind)
        return principal

    def list_principals(self, act: Act, limit: int, page_token: str | None) -> PrincipalPage:
        """People and programs by name."""
        act.authorise(Verb.ADMINISTER, None)
        rows = store.list_principals(act.tx, _after(page_token), limit + 1)
        return PrincipalPage(items=tuple(rows[:limit]), next_page_token=_next(rows, limit, "name"))

    def forget_callers(self) -> None:
        """Look everybody's rights up anew: a grant has changed elsewhere."""
        self._cache.clear()

    def disable_principal(self, act: Act, name: str) -> Principal:
        """Shut a person or program out; all their tokens stop working.

        Raises:
            PrincipalNotFound: there is nobody of that name.
            Conflict: it is the caller.
        """
        act.authorise(Verb.ADMINISTER, None)
        principal = self._principal(act, name)
        if name == act.by:
            raise errors.Conflict("You cannot shut yourself out; ask another admin.")
        store.disable_principal(act.tx, name)
        act.record(EventKind.PRINCIPAL_DISABLED, f"principal/{name}")
        self._cache.clear()
        return structs.replace(principal, disabled=True)

    def _principal(self, act: Act, name: str) -> Principal:
        principal = store.get_principal(act.tx, name)
        if principal is None:
            raise errors.PrincipalNotFound(
                f"There is nobody called {values.quoted(name, 60)}; add them with 'modelkeep user create'."
            )
        return principal

    def create_token(
        self,
        act: Act,
        *,
        label: str,
        principal: str | None = None,
        expires_s: float | None = None,
        verbs: tuple[Verb, ...] | None = None,
        project: str | None = None,
    ) -> NewToken:
        """Make a token for oneself, or, as an admin, for somebody else. It may narrow its owner's rights,
        never widen them, and one made with a narrowed token is at least as narrow. None outlives the token
        it is made with, but for that of an admin of the installation.

        Raises:
            PrincipalNotFound: there is nobody of that name.
            NotAllowed: it is for somebody else, or would be wider than the token it is made with.
            Invalid, InvalidName: the label, the project or the life is unfit.
        """
        name = principal or act.by
        values.check_text(label, "label", maximum=200, required=True)
        if name != act.by:
            act.authorise(Verb.ADMINISTER, None)
        if store.get_principal(act.tx, name) is None and name == act.by and self.mode is AuthMode.LOCAL:
            self._add_principal(act, name, PrincipalKind.USER)
            self._give(act, name, Role.ADMIN)
        owner = self._principal(act, name)
        if project is not None:
            values.check_name(project, "project")
        expires_at = self._end_of(act, expires_s)
        verbs, project = _narrowed(act.caller, verbs, project)
        return self._new_token(act, owner, label, expires_at, verbs, project)

    def _end_of(self, act: Act, expires_s: float | None) -> datetime:
        """When a token made now ends. None outlives the token it is made with, else a leaked hour would be
        good for a year; but for that of an admin of the installation, who could add a person just as well,
        and without whom nobody could come in once the first token has ended.
        """
        if expires_s is not None and not expires_s > 0:
            raise errors.Invalid("A token lives for more than 0 seconds.", field="expires_s")
        life = TOKEN_DEFAULT_S if expires_s is None else min(expires_s, TOKEN_MAX_S)
        end = act.now + timedelta(seconds=life)
        token = act.caller.token
        if token is None or act.may(Verb.ADMINISTER, None):
            return end
        made_with = store.get_token(act.tx, token)
        return min(end, made_with.expires_at) if made_with is not None else end

    def _new_token(
        self,
        act: Act,
        owner: Principal,
        label: str,
        expires_at: datetime,
        verbs: tuple[Verb, ...] | None,
        project: str | None,
    ) -> NewToken:
        token_id, secret = _base62(12), _base62(32)
        info = TokenInfo(
            id=token_id,
            principal=owner.name,
            label=label,
            verbs=verbs,
            project=project,
            created_at=act.now,
            expires_at=expires_at,
        )
        store.add_token(act.tx, info, self._hash(secret))
        act.record(
            EventKind.TOKEN_CREATED,
            f"token/{token_id}",
            principal=owner.name,
            label=label,
            expires_at=expires_at,
            verbs=verbs,
            project=project,
        )
        body = f"mk_{'u' if owner.kind is PrincipalKind.USER else 's'}_{token_id}_{secret}"
        return NewToken(info=info, secret=body + _checksum(body))

    def list_tokens(self, act: Act, limit: int, page_token: str | None) -> TokenPage:
        """One's own tokens; an admin sees all."""
        everyone = act.may(Verb.ADMINISTER, None)
        rows = store.list_tokens(act.tx, _after(page_token), limit + 1, None if everyone else act.by)
        return TokenPage(items=tuple(rows[:limit]), next_page_token=_next(rows, limit, "id"))

    def revoke_token(self, act: Act, token_id: str) -> TokenInfo:
        """End a token now: one's own, or as an admin anybody's.

        Raises:
            TokenNotFound: there is none, or it is somebody else's.
        """
        info = store.get_token(act.tx, token_id)
        if info is None or (info.principal != act.by and not act.may(Verb.ADMINISTER, None)):
            raise errors.TokenNotFound(
                f"You have no token {values.quoted(token_id, 40)}; 'modelkeep token list' shows them."
            )
        if info.revoked_at is None:
            store.revoke_token(act.tx, info.id, act.now)
            act.record(EventKind.TOKEN_REVOKED, f"token/{info.id}", principal=info.principal)
            self._cache.clear()
        revoked = store.get_token(act.tx, token_id)
        assert revoked is not None
        return revoked

    # -------------------------------------------------------------------------------------------------------
    # grants

    def add_grant(
        self,
        act: Act,
        *,
        principal: str,
        role: Role,
        project: str | None = None,
        model: str | None = None,
        effect: Effect = Effect.ALLOW,
    ) -> Grant:
        """Give or deny a role on a model, a project, or everywhere. It takes an admin of that scope.

        Raises:
            PrincipalNotFound: there is nobody of that name.
            Invalid: a model without its project.
        """
        if project is None and model is not None:
            raise errors.Invalid("Name the project of the model as well.", field="project")
        if project is not None:
            values.check_name(project, "project")
        scope = ModelName(project, values.check_model_name(model)) if project and model else project
        act.authorise(Verb.ADMINISTER, scope)
        owner = self._principal(act, principal)
        return self._give(act, owner.name, role, project, model, effect)

    def _give(
        self,
        act: Act,
        principal: str,
        role: Role,
        project: str | None = None,
        model: str | None = None,
        effect: Effect = Effect.ALLOW,
    ) -> Grant:
        grant = Grant(
            id=act.new_id("grt"),
            principal=principal,
            role=role,
            project=project,
            model=model,
            effect=effect,
            created_at=act.now,
            created_by=act.by,
        )
        store.add_grant(act.tx, grant)
        act.record(
            EventKind.GRANT_ADDED,
            f"principal/{principal}",
            grant=grant.id,
            role=role,
            project=project,
            on_model=model,
            effect=effect,
        )
        self._cache.clear()
        return grant

    def list_grants(self, act: Act, limit: int, page_token: str | None) -> GrantPage:
        """Who holds which role where."""
        act.authorise(Verb.ADMINISTER, None)
        rows = store.list_grants(act.tx, _after(page_token), limit + 1)
        return GrantPage(items=tuple(rows[:limit]), next_page_token=_next(rows, limit, "id"))

    def remove_grant(self, act: Act, grant_id: str) -> None:
        """Take a grant away.

        Raises:
            NotFound: there is none with this id.
        """
        grant = store.get_grant(act.tx, grant_id)
        if grant is None:
            act.authorise(Verb.ADMINISTER, None)
            raise errors.NotFound(f"There is no grant {values.quoted(grant_id, 60)}.")
        scope = ModelName(grant.project, grant.model) if grant.project and grant.model else grant.project
        act.authorise(Verb.ADMINISTER, scope)
        store.drop_grant(act.tx, grant_id)
        act.record(EventKind.GRANT_REMOVED, f"principal/{grant.principal}", grant=grant_id, role=grant.role)
        self._cache.clear()

    # --------------------------------------------------------------------------------- idempotent writes,
    # first start

    def recall(self, act: Act, key: str, fingerprint: str) -> bytes | None:
        """What was answered under this key before.

        Raises:
            IdempotencyMismatch: the key was used for another request.
        """
        known = store.recall(act.tx, act.by, key)
        if known is None or (act.now - known.at).total_seconds() > REMEMBER_S:
            return None
        if not hmac.compare_digest(known.fingerprint, fingerprint):
            raise errors.IdempotencyMismatch(
                "This Idempotency-Key was used for another request; use a new key for each request."
            )
        return known.answer

    def remember(self, act: Act, key: str, fingerprint: str, answer: bytes) -> None:
        """Keep the answer to a write under its key, and let go of old ones."""
        store.forget(act.tx, act.now - timedelta(seconds=REMEMBER_S))
        store.remember(act.tx, act.by, key, fingerprint, answer, act.now)

    def first_start(self) -> NewToken | None:
        """Make the first admin with a token, once in the life of an installation; None ever after."""

        def begin(act: Act) -> NewToken | None:
            if store.get_setting(act.tx, "first_admin") is not None:
                return None
            store.set_setting(act.tx, "first_admin", "admin", act.now)
            known = store.get_principal(act.tx, "admin")
            admin = known or self._add_principal(act, "admin", PrincipalKind.USER)
            if known is None:
                self._give(act, "admin", Role.ADMIN)
            return self._new_token(
                act, admin, "first start", act.now + timedelta(seconds=TOKEN_DEFAULT_S), None, None
            )

        return self.desk.do(SYSTEM_CONTEXT, begin)

    def gateway_token(self, former: str | None) -> str:
        """A fresh token for the gateway that is started beside this server.

        Args:
            former: the text of the one it had, which is revoked; those of other servers stay good.
        """

        def begin(act: Act) -> str:
            known = store.get_principal(act.tx, "gateway")
            gateway = known or self._add_principal(act, "gateway", PrincipalKind.SERVICE)
            if known is None:
                self._give(act, "gateway", Role.GATEWAY)
            old = store.get_token(act.tx, _parse(former)[0]) if former and _has_form(former) else None
            if old is not None and old.label == _GATEWAY_LABEL:
                self.revoke_token(act, old.id)
            life = timedelta(seconds=TOKEN_MAX_S)
            return self._new_token(act, gateway, _GATEWAY_LABEL, act.now + life, None, None).secret

        return self.desk.do(SYSTEM_CONTEXT, begin)


def _narrowed(
    caller: Caller, verbs: tuple[Verb, ...] | None, project: str | None
) -> tuple[tuple[Verb, ...] | None, str | None]:
    """What a new token may be used for, given what the caller's own token may."""
    if caller.verbs is not None:
        asked = caller.verbs if verbs is None else frozenset(verbs)
        if not asked <= caller.verbs:
            raise errors.NotAllowed(
                "A token cannot give what its maker's token lacks: "
                f"{', '.join(sorted(asked - caller.verbs))}."
            )
        verbs = tuple(sorted(asked))
    if caller.project is not None and project not in (None, caller.project):
        raise errors.NotAllowed(f"This token is for the project {caller.project} only.")
    return verbs, project or caller.project


def _unknown() -> errors.NotAuthenticated:
    return errors.NotAuthenticated("This token is not valid here; make one with 'modelkeep token create'.")


def _fingerprint(credential: str) -> bytes:
    return hashlib.sha256(credential.encode("utf-8", "replace")).digest()


def _token_text(credential: str) -> str:
    """The token in an Authorization header: Bearer, or Basic with the token as the password."""
    scheme, _, rest = credential.partition(" ")
    match scheme.lower():
        case "bearer":
            return rest.strip()
        case "basic":
            try:
                return base64.b64decode(rest.strip(), validate=True).decode("utf-8").partition(":")[2]
            except ValueError:  # not base64, or not text
                raise _unknown() from None
        case _:
            raise errors.NotAuthenticated("Send 'Authorization: Bearer TOKEN'.")


def _parse(text: str) -> tuple[str, str]:
    """Id and secret of a token's text; whatever has not its form is unknown."""
    if not _has_form(text):
        raise _unknown()
    _, _, token_id, rest = text.split("_")
    return token_id, rest[:32]


def _has_form(text: str) -> bool:
    parts = text.split("_")
    if len(parts) != 4 or parts[0] != "mk" or len(parts[2]) != 12 or len(parts[3]) != 38:
        return False
    return text.isascii() and _checksum(text[:-6]) == text[-6:]


def _base62(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _checksum(text: str) -> str:
    value = zlib.crc32(text.encode())
    digits = []
    for _ in range(6):
        value, digit = divmod(value, 62)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))


def _after(page_token: str | None) -> str:
    """Where the next page begins; the tokens of these lists are names and ids, which are no secret."""
    return values.check_text(page_token, "page token", maximum=300) if page_token else ""


def _next(rows: list[Principal] | list[TokenInfo] | list[Grant], limit: int, field: str) -> str | None:
    return str(getattr(rows[limit - 1], field)) if len(rows) > limit else None
