"""Who may do what: roles are names for sets of verbs, grants give a role on a scope, deny wins.

Pure: `allowed` looks at the grants it is handed. Finding the caller behind a token, and hiding what a caller
may not read, is the service's part.
"""

from datetime import datetime
from enum import StrEnum

from msgspec import Struct

from modelkeep.core.values import Actor, ModelName


class Verb(StrEnum):
    """What a request does; every route names exactly one."""

    READ = "read"
    READ_AUDIT = "read_audit"
    PULL = "pull"
    TRACK = "track"  # create experiments and runs, log to them, delete and restore them
    CREATE_MODEL = "create_model"
    REGISTER = "register"
    EDIT = "edit"
    SET_ALIAS = "set_alias"
    PROTECT = "protect"
    DELETE = "delete"
    REQUEST = "request"
    REVIEW = "review"
    PROMOTE = "promote"
    ROLLBACK = "rollback"
    OPERATE = "operate"
    CONFIGURE = "configure"
    ADMINISTER = "administer"
    SERVE = "serve"


class Role(StrEnum):
    """What people are, on a scope."""

    VIEWER = "viewer"
    CONTRIBUTOR = "contributor"
    MAINTAINER = "maintainer"
    APPROVER = "approver"
    ADMIN = "admin"
    AUDITOR = "auditor"
    GATEWAY = "gateway"


_VIEW = frozenset({Verb.READ, Verb.PULL})
_CONTRIBUTE = _VIEW | {Verb.TRACK, Verb.CREATE_MODEL, Verb.REGISTER, Verb.EDIT, Verb.SET_ALIAS, Verb.REQUEST}

ROLE_VERBS: dict[Role, frozenset[Verb]] = {
    Role.VIEWER: _VIEW,
    Role.AUDITOR: frozenset({Verb.READ, Verb.READ_AUDIT}),
    Role.CONTRIBUTOR: _CONTRIBUTE,
    Role.APPROVER: _VIEW | {Verb.REVIEW, Verb.READ_AUDIT},
    Role.MAINTAINER: _CONTRIBUTE
    | {
        Verb.PROTECT,
        Verb.DELETE,
        Verb.PROMOTE,
        Verb.ROLLBACK,
        Verb.OPERATE,
        Verb.REVIEW,
        Verb.CONFIGURE,
        Verb.READ_AUDIT,
    },
    Role.ADMIN: frozenset(Verb) - {Verb.SERVE},
    Role.GATEWAY: frozenset({Verb.SERVE}),
}
"""The whole meaning of each role, on one page."""


class AuthMode(StrEnum):
    """Whom the server believes."""

    LOCAL = "local"
    TOKEN = "token"


class Effect(StrEnum):
    """What a grant does."""

    ALLOW = "allow"
    DENY = "deny"


class Grant(Struct, frozen=True, kw_only=True):
    """A role on a scope. `project` None is everywhere; `model` None is every model of the project."""

    id: str
    principal: str
    role: Role
    project: str | None = None
    model: str | None = None
    effect: Effect = Effect.ALLOW
    created_at: datetime
    created_by: str

    def covers(self, scope: ModelName | str | None) -> bool:
        """Whether the grant reaches a model, a whole project (text), or the installation (None)."""
        if self.project is None:
            return True
        match scope:
            case None:
                return False
            case str():
                return self.project == scope and self.model is None
            case _:
                return self.project == scope.project and self.model in (None, scope.name)


class PrincipalKind(StrEnum):
    """People and programs."""

    USER = "user"
    SERVICE = "service"


class Principal(Struct, frozen=True, kw_only=True):
    """Somebody who can hold tokens and grants."""

    name: str
    kind: PrincipalKind
    disabled: bool = False
    created_at: datetime
    created_by: str


class TokenInfo(Struct, frozen=True, kw_only=True):
    """A token as it may be shown: never the secret."""

    id: str
    principal: str
    label: str
    verbs: tuple[Verb, ...] | None
    project: str | None
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None = None
    last_used_on: str | None = None


class Caller(Struct, frozen=True, kw_only=True):
    """Who stands behind a request, and what they hold. A token may narrow its owner's rights, never widen
    them.
    """

    actor: Actor
    grants: tuple[Grant, ...] = ()
    verbs: frozenset[Verb] | None = None
    project: str | None = None
    owner: bool = False
    token: str | None = None


def allowed(caller: Caller, verb: Verb, scope: ModelName | str | None) -> bool:
    """Whether the caller may do this there. Deny wins over allow, whatever their order; nothing granted means
    no.

    Args:
        scope: a model, a project's name, or None for the installation itself.
    """
    if caller.verbs is not None and verb not in caller.verbs:
        return False
    if caller.project is not None and caller.project != (
        scope.project if isinstance(scope, ModelName) else scope
    ):
        return False
    if caller.owner:
        return True
    effects = {
        grant.effect for grant in caller.grants if grant.covers(scope) and verb in ROLE_VERBS[grant.role]
    }
    return Effect.ALLOW in effects and Effect.DENY not in effects


def roles_on(caller: Caller, scope: ModelName | None) -> frozenset[Role]:
    """The roles that count when a policy asks for approvals by role."""
    if caller.owner:
        return frozenset(Role)
    denied = {g.role for g in caller.grants if g.covers(scope) and g.effect is Effect.DENY}
    return frozenset(g.role for g in caller.grants if g.covers(scope) and g.effect is Effect.ALLOW) - denied
