"""One batch of an import under way: what has become of its items so far, and the rules that all kinds share.

It takes items one by one, knows which were there already, and answers for each. What a kind of item means is
`imports`' and `import_models`' part.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from modelkeep.core import errors, values
from modelkeep.core.access import Verb
from modelkeep.core.imports import SOURCE_MAX, Imported, Item, Kind, State
from modelkeep.core.tracking import INT64_MAX, INT64_MIN
from modelkeep.service.act import Act
from modelkeep.store import imports as store
from modelkeep.store.imports import Known, SourceRow

I = TypeVar("I", bound=Item)  # noqa: E741  (an item)


class Made(NamedTuple):
    """What an item became: its name here, and whether nothing more of it is to come."""

    ours: str
    done: bool = False


class Moving:
    """One batch under way: its act, where it comes from, and what has become of its items so far."""

    def __init__(self, act: Act, source: SourceRow) -> None:
        self.act = act
        self.source = source
        self.answers: list[Imported] = []

    def take(self, kind: Kind, items: Sequence[I], make: Callable[["Moving", I], Made]) -> None:
        """Make each item that is not there yet. `make` refuses before it writes."""
        known = store.known(self.act.tx, self.source.serial, kind, (item.id for item in items))
        for item in items:
            there = known.get(item.id)
            if there is not None:
                self.say(kind, item.id, there.ours, State.DONE if there.done else State.OPEN)
                continue
            try:
                made = make(self, item)
            except errors.ModelkeepError as refused:
                self.refuse(kind, item.id, refused)
                continue
            store.note(self.act.tx, self.source.serial, kind, item.id, made.ours, done=made.done)
            self.say(kind, item.id, made.ours, State.NEW)

    def close(self, kind: Kind, items: Sequence[I], close: Callable[["Moving", I, Known], None]) -> None:
        """Close each item that waits for it, and compare what was closed before. `close` refuses before it
        writes."""
        known = store.known(self.act.tx, self.source.serial, kind, (item.id for item in items))
        for item in items:
            there = known.get(item.id)
            try:
                if there is None:
                    raise _never_came(kind, item.id)
                close(self, item, there)
            except errors.ModelkeepError as refused:
                self.refuse(kind, item.id, refused)
                continue
            if not there.done:
                store.note(self.act.tx, self.source.serial, kind, item.id, there.ours, done=True)
            self.say(kind, item.id, there.ours, State.DONE)

    def each(self, kind: Kind, item: I, write: Callable[["Moving", I], str]) -> None:
        """Write a part of something that came before; it may come twice. `write` refuses before it writes."""
        try:
            self.say(kind, item.id, write(self, item), State.DONE)
        except errors.ModelkeepError as refused:
            self.refuse(kind, item.id, refused)

    def ours(self, kind: Kind, foreign: str) -> str:
        """What something that came before is called here.

        Raises:
            Conflict: it did not come.
        """
        found = store.known(self.act.tx, self.source.serial, kind, [foreign]).get(foreign)
        if found is None:
            raise _never_came(kind, foreign)
        return found.ours

    def say(self, kind: Kind, foreign: str, ours: str, state: State) -> None:
        """Answer that an item is there."""
        self.answers.append(Imported(kind=kind, id=foreign, ours=ours, state=state))

    def refuse(self, kind: Kind, foreign: str, why: errors.ModelkeepError) -> None:
        """Answer that an item cannot be kept."""
        self.answers.append(
            Imported(kind=kind, id=foreign, state=State.REFUSED, code=why.code, message=why.message)
        )

    def past(self, foreign: str, **stated: Any) -> dict[str, Any]:
        """What an event says of where something comes from, and of what is said of it there."""
        told = {name: value for name, value in stated.items() if value not in (None, "")}
        return {"source": self.source.address, "id": foreign, **told}


def begin(act: Act, address: str, project: str) -> Moving:
    """Begin a batch.

    Raises:
        NotAllowed: the caller is no admin. InvalidParameter, InvalidName: address or project cannot be.
        Conflict: what came from there before went to another project.
    """
    act.authorise(Verb.ADMINISTER, None)
    values.check_name(project, "project")
    try:
        address = values.check_text(address, "source", maximum=SOURCE_MAX, required=True)
    except errors.Invalid as problem:
        raise errors.InvalidParameter(problem.message, field="source") from problem
    row = store.find_source(act.tx, address)
    if row is None:
        row = store.add_source(act.tx, address, project, act.now, act.by)
    if row.project != project:
        raise errors.Conflict(
            f"What came from {address} is in the project {row.project}; import into that one, or name the "
            "source by another address.",
            project=row.project,
        )
    return Moving(act, row)


def may_import(act: Act) -> None:
    """Go on only for an admin. Raises NotAllowed."""
    act.authorise(Verb.ADMINISTER, None)


def check_moment(time_ms: int, what: str) -> int:
    """A time in ms since 1970 that can be kept. Raises InvalidParameter."""
    if not INT64_MIN <= time_ms <= INT64_MAX:
        raise errors.InvalidParameter(f"The {what} has to be a whole number of 64 bits.", field=what)
    return time_ms


def _never_came(kind: Kind, foreign: str) -> errors.Conflict:
    word = kind.replace("_", " ")
    return errors.Conflict(f"The {word} {values.quoted(foreign, 60)} that it belongs to did not come.")
