"""Rows of people, programs, tokens and grants, and of answers kept for idempotent writes.

Secrets never reach this file: a token is looked up by its public id, and what is stored of its secret is a
keyed hash.
"""

from datetime import datetime

from msgspec import Struct
from sqlalchemy import bindparam, delete, select, update

from modelkeep.core import codec
from modelkeep.core.access import Effect, Grant, Principal, PrincipalKind, Role, TokenInfo, Verb
from modelkeep.store.schema import grants, idempotency, principals, tokens
from modelkeep.store.schema import settings as settings_table
from modelkeep.store.statements import Row, insert, json_text
from modelkeep.store.transaction import Transaction

_PRINCIPAL = (
    principals.c.name,
    principals.c.kind,
    principals.c.disabled,
    principals.c.created_at,
    principals.c.created_by,
)
_TOKEN = (
    tokens.c.id,
    tokens.c.principal,
    tokens.c.label,
    tokens.c.verbs,
    tokens.c.project,
    tokens.c.created_at,
    tokens.c.expires_at,
    tokens.c.revoked_at,
    tokens.c.last_used_on,
)
_GRANT = (
    grants.c.id,
    grants.c.principal,
    grants.c.role,
    grants.c.project,
    grants.c.model,
    grants.c.effect,
    grants.c.created_at,
    grants.c.created_by,
)

_ADD_PRINCIPAL = insert(principals)
_GET_PRINCIPAL = select(*_PRINCIPAL).where(principals.c.name == bindparam("name"))
_PRINCIPALS = (
    select(*_PRINCIPAL)
    .where(principals.c.name > bindparam("after"))
    .order_by(principals.c.name)
    .limit(bindparam("limit"))
)
_DISABLE = update(principals).where(principals.c.name == bindparam("who")).values(disabled=1)
_ADD_TOKEN = insert(tokens)
_GET_TOKEN = select(*_TOKEN).where(tokens.c.id == bindparam("id"))
_TOKEN_SECRET = select(*_TOKEN, tokens.c.secret_hash).where(tokens.c.id == bindparam("id"))
_TOKENS = (
    select(*_TOKEN).where(tokens.c.id > bindparam("after")).order_by(tokens.c.id).limit(bindparam("limit"))
)
_TOKENS_OF = _TOKENS.where(tokens.c.principal == bindparam("principal"))
_REVOKE = update(tokens).where(tokens.c.id == bindparam("which")).values(revoked_at=bindparam("moment"))
_USED = update(tokens).where(tokens.c.id == bindparam("which")).values(last_used_on=bindparam("day"))
_ADD_GRANT = insert(grants)
_GET_GRANT = select(*_GRANT).where(grants.c.id == bindparam("id"))
_GRANTS = (
    select(*_GRANT).where(grants.c.id > bindparam("after")).order_by(grants.c.id).limit(bindparam("limit"))
)
_GRANTS_OF = select(*_GRANT).where(grants.c.principal == bindparam("principal")).order_by(grants.c.id)
_DROP_GRANT = delete(grants).where(grants.c.id == bindparam("which"))
_RECALL = select(idempotency.c.request_hash, idempotency.c.response, idempotency.c.created_at).where(
    idempotency.c.principal == bindparam("principal"), idempotency.c.key == bindparam("key")
)
_FORGET = delete(idempotency).where(idempotency.c.created_at < bindparam("before"))
_REMEMBER = insert(idempotency)
_SETTING = select(settings_table.c.value).where(settings_table.c.key == bindparam("key"))
_SET = insert(settings_table)


class StoredToken(Struct, frozen=True):
    """A token with the hash of its secret, for the one place that checks it."""

    info: TokenInfo
    secret_hash: str


def _principal(row: Row) -> Principal:
    return Principal(
        name=row[0],
        kind=PrincipalKind(row[1]),
        disabled=bool(row[2]),
        created_at=codec.parse_time(row[3]),
        created_by=row[4],
    )


def _token(row: Row) -> TokenInfo:
    return TokenInfo(
        id=row[0],
        principal=row[1],
        label=row[2],
        verbs=tuple(codec.decode(row[3], list[Verb])) if row[3] is not None else None,
        project=row[4],
        created_at=codec.parse_time(row[5]),
        expires_at=codec.parse_time(row[6]),
        revoked_at=codec.parse_time(row[7]) if row[7] is not None else None,
        last_used_on=row[8],
    )


def _grant(row: Row) -> Grant:
    return Grant(
        id=row[0],
        principal=row[1],
        role=Role(row[2]),
        project=row[3],
        model=row[4],
        effect=Effect(row[5]),
        created_at=codec.parse_time(row[6]),
        created_by=row[7],
    )


def add_principal(tx: Transaction, principal: Principal) -> None:
    """Store a new person or program."""
    tx.put(
        _ADD_PRINCIPAL,
        name=principal.name,
        kind=principal.kind.value,
        disabled=int(principal.disabled),
        created_at=codec.format_time(principal.created_at),
        created_by=principal.created_by,
    )


def get_principal(tx: Transaction, name: str) -> Principal | None:
    """One person or program, by name."""
    row = tx.one(_GET_PRINCIPAL, name=name)
    return _principal(row) if row else None


def list_principals(tx: Transaction, after: str, limit: int) -> list[Principal]:
    """People and programs by name, after a name."""
    return [_principal(row) for row in tx.all(_PRINCIPALS, after=after, limit=limit)]


def disable_principal(tx: Transaction, name: str) -> None:
    """Shut a person or program out; its rows stay, because the audit log speaks of it."""
    tx.put(_DISABLE, who=name)


def add_token(tx: Transaction, info: TokenInfo, secret_hash: str) -> None:
    """Store a new token."""
    tx.put(
        _ADD_TOKEN,
        id=info.id,
        secret_hash=secret_hash,
        principal=info.principal,
        label=info.label,
        verbs=json_text(list(info.verbs)) if info.verbs is not None else None,
        project=info.project,
        created_at=codec.format_time(info.created_at),
        expires_at=codec.format_time(info.expires_at),
        revoked_at=None,
        last_used_on=None,
    )


def get_token(tx: Transaction, token_id: str) -> TokenInfo | None:
    """One token, without its secret's hash."""
    row = tx.one(_GET_TOKEN, id=token_id)
    return _token(row) if row else None


def token_secret(tx: Transaction, token_id: str) -> StoredToken | None:
    """One token with its secret's hash."""
    row = tx.one(_TOKEN_SECRET, id=token_id)
    return StoredToken(_token(row[:-1]), row[-1]) if row else None


def list_tokens(tx: Transaction, after: str, limit: int, principal: str | None) -> list[TokenInfo]:
    """Tokens by id, after an id; of one principal, or of all."""
    if principal is None:
        return [_token(row) for row in tx.all(_TOKENS, after=after, limit=limit)]
    return [_token(row) for row in tx.all(_TOKENS_OF, after=after, limit=limit, principal=principal)]


def revoke_token(tx: Transaction, token_id: str, now: datetime) -> None:
    """Mark a token as revoked."""
    tx.put(_REVOKE, which=token_id, moment=codec.format_time(now))


def mark_used(tx: Transaction, token_id: str, day: str) -> None:
    """Note the day of a token's use."""
    tx.put(_USED, which=token_id, day=day)


def add_grant(tx: Transaction, grant: Grant) -> None:
    """Store a grant."""
    tx.put(
        _ADD_GRANT,
        id=grant.id,
        principal=grant.principal,
        role=grant.role.value,
        project=grant.project,
        model=grant.model,
        effect=grant.effect.value,
        created_at=codec.format_time(grant.created_at),
        created_by=grant.created_by,
    )


def get_grant(tx: Transaction, grant_id: str) -> Grant | None:
    """One grant."""
    row = tx.one(_GET_GRANT, id=grant_id)
    return _grant(row) if row else None


def list_grants(tx: Transaction, after: str, limit: int) -> list[Grant]:
    """Grants by id, after an id."""
    return [_grant(row) for row in tx.all(_GRANTS, after=after, limit=limit)]


def grants_of(tx: Transaction, principal: str) -> tuple[Grant, ...]:
    """Everything that one principal holds."""
    return tuple(_grant(row) for row in tx.all(_GRANTS_OF, principal=principal))


def drop_grant(tx: Transaction, grant_id: str) -> None:
    """Remove a grant."""
    tx.put(_DROP_GRANT, which=grant_id)


class Remembered(Struct, frozen=True):
    """What was answered to a write before."""

    fingerprint: str
    answer: bytes
    at: datetime


def recall(tx: Transaction, principal: str, key: str) -> Remembered | None:
    """The answer that was given under a key."""
    row = tx.one(_RECALL, principal=principal, key=key)
    return Remembered(row[0], row[1].encode(), codec.parse_time(row[2])) if row else None


def remember(
    tx: Transaction, principal: str, key: str, fingerprint: str, answer: bytes, now: datetime
) -> None:
    """Keep an answer under a key."""
    tx.put(
        _REMEMBER,
        principal=principal,
        key=key,
        request_hash=fingerprint,
        status=0,
        response=answer.decode(),
        created_at=codec.format_time(now),
    )


def forget(tx: Transaction, before: datetime) -> None:
    """Drop the answers that are older than they need to be."""
    tx.put(_FORGET, before=codec.format_time(before))


def get_setting(tx: Transaction, key: str) -> str | None:
    """A fact of the installation."""
    row = tx.one(_SETTING, key=key)
    return str(row[0]) if row else None


def set_setting(tx: Transaction, key: str, value: str, now: datetime) -> None:
    """Store a fact of the installation that is not there yet."""
    tx.put(_SET, key=key, value=value, updated_at=codec.format_time(now))
