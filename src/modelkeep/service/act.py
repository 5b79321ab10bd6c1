"""An act: one unit of work, from authorisation to commit, and the desk that opens acts.

A service method takes an `Act` first and does everything through it: reads and writes go to `act.tx`, the one
`now` is `act.now`, and a change is only a change together with its event (`act.record`). The desk runs a
method inside the store's writer (many waiting acts share one fsync, each in its own savepoint) or inside a
read snapshot. Nothing here knows what the methods do.
"""

import secrets
from collections.abc import Callable
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import Any, Concatenate, ParamSpec, TypeVar

from msgspec import Struct

from modelkeep.core import access, errors, values
from modelkeep.core.access import Caller, Verb
from modelkeep.core.events import Event, EventKind
from modelkeep.core.values import SYSTEM, ModelName
from modelkeep.store import renames
from modelkeep.store.database import Database, Kept, Outcome, Transaction

T = TypeVar("T")
P = ParamSpec("P")
Clock = Callable[[], datetime]

SYSTEM_CALLER = Caller(actor=SYSTEM, owner=True)
"""The controller's own caller: it may do everything, and each thing it does bears its name."""


def utc_now() -> datetime:
    """The wall clock, aware."""
    return datetime.now(UTC)


class Context(Struct, frozen=True, kw_only=True):
    """Who asks, and the id under which the request is found again in logs and in the audit log."""

    caller: Caller
    request_id: str | None = None


SYSTEM_CONTEXT = Context(caller=SYSTEM_CALLER)


class Act:
    """One unit of work, made by the desk for one service method and whatever that calls."""

    def __init__(self, tx: Transaction, context: Context, now: datetime) -> None:
        self.tx = tx
        self.caller = context.caller
        self.request_id = context.request_id
        self.now = now

    @property
    def by(self) -> str:
        """The acting person's or program's name."""
        return self.caller.actor.name

    def may(self, verb: Verb, scope: ModelName | str | None) -> bool:
        """Whether the caller may do this there."""
        return access.allowed(self.caller, verb, scope)

    def authorise(self, verb: Verb, scope: ModelName | str | None) -> None:
        """Go on only when the caller may do this there. Hiding what may not be seen is done before, by
        `readable`.

        Raises:
            NotAllowed: names the permission that is missing.
        """
        if not self.may(verb, scope):
            where = f" on {scope}" if scope is not None else ""
            raise errors.NotAllowed(
                f"{self.by} lacks the permission '{verb}'{where}; ask an admin for a role that has it.",
                verb=verb,
                scope=str(scope) if scope is not None else None,
            )

    def readable(self, model: ModelName) -> None:
        """Go on only when the caller may know that the model exists.

        Raises:
            ModelNotFound: with the same words as for a model that does not exist.
        """
        if not self.may(Verb.READ, model):
            raise no_model(model)

    def record(
        self,
        kind: EventKind,
        subject: str,
        *,
        model: ModelName | None = None,
        number: int | None = None,
        reason: str | None = None,
        **body: Any,
    ) -> Event:
        """Append the event of a change in the same transaction as the change."""
        return self.tx.events.append(
            kind=kind,
            at=self.now,
            actor=self.caller.actor,
            subject=subject,
            model=str(model) if model is not None else None,
            number=number,
            reason=reason,
            request_id=self.request_id,
            body=body,
        )

    def new_id(self, prefix: str, behind: str | None = None) -> str:
        """A fresh prefixed id; in order behind another of its kind, whatever the clock says."""
        if behind is not None:
            return values.id_behind(behind, prefix, self.now, secrets.token_bytes(10))
        return values.new_id(prefix, self.now, secrets.token_bytes(10))

    def keep(self, error: errors.ModelkeepError, *, passing: bool = False) -> Kept:
        """An exception to raise when what was recorded so far must stay although the caller gets an error.

        Args:
            passing: the same request may succeed later, so the error is no answer to remember it by.
        """
        return Kept(error, passing=passing)


def no_model(model: ModelName) -> errors.ModelNotFound:
    """The one sentence for a model that is not there or not to be seen."""
    return errors.ModelNotFound(
        f"There is no model {model}; 'modelkeep ls' lists those you can see.", model=str(model)
    )


def _missing(act: Act, model: ModelName) -> errors.ModelNotFound:
    """The error about a model that is not there: it says what the model is called now that had this name
    last, to whoever may see that one."""
    now = renames.last_given_up(act.tx, str(model))
    if now is None or not act.may(Verb.READ, values.parse_model_name(now)):
        return no_model(model)
    return errors.ModelNotFound(
        f"The model {model} is called {now} now; ask for that.", model=str(model), renamed=now
    )


def _led(
    method: Callable[Concatenate[Act, P], T],
    act: Act,
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """Run a method. Whichever way it found that a model is not there, the caller learns its new name."""
    try:
        return method(act, *args, **kwargs)
    except errors.ModelNotFound as missing:
        if "model" not in missing.details:
            raise
        told = _missing(act, values.parse_model_name(missing.details["model"]))
        if "renamed" not in told.details:
            raise
        raise told from missing


class Desk:
    """Opens acts on the store."""

    def __init__(self, database: Database, clock: Clock = utc_now) -> None:
        self.database = database
        self.clock = clock

    def write(
        self,
        context: Context,
        method: Callable[Concatenate[Act, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Future[T]:
        """Run a method as one durable transaction; the future is done after the commit.

        The future raises whatever the method raised, with nothing changed, or StoreUnavailable, StorageFull,
        Overloaded.
        """

        future: Future[T] = Future()
        self.post(context, future, method, *args, **kwargs)
        return future

    def post(
        self,
        context: Context,
        outcome: Outcome,
        method: Callable[Concatenate[Act, P], Any],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        """`write` for an event loop: what comes of it is told to `outcome`, on the writer's thread.

        Raises:
            Overloaded, StoreUnavailable: here and now; everything else goes to `outcome`.
        """

        def job(tx: Transaction) -> Any:
            return _led(method, Act(tx, context, self.clock()), *args, **kwargs)

        self.database.post(job, outcome)

    def do(
        self,
        context: Context,
        method: Callable[Concatenate[Act, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """`write`, waiting for the commit: for threads that may wait (the controller, tools, tests)."""
        return self.write(context, method, *args, **kwargs).result()

    def read(
        self,
        context: Context,
        method: Callable[Concatenate[Act, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run a method in a read snapshot, here and now."""

        def job(tx: Transaction) -> T:
            return _led(method, Act(tx, context, self.clock()), *args, **kwargs)

        return self.database.read(job)
