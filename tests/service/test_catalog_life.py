"""A registry's whole life by chance, against a dict: what holds whatever is done in whatever order.

The invariants are those of the design: no change without an event and a chain that verifies, a finalized
version never changes, nothing is seen before it is finalized and no number is given twice, what is protected
is not deleted, and the past answers as it was.
"""

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec import structs

from modelkeep.core import codec, errors
from modelkeep.core.catalog import ModelChange, ModelVersion
from modelkeep.core.values import Numbered, Ref
from modelkeep.store.database import Database
from modelkeep.store.events import verify
from tests.service.catalog_world import CHURN, NARROWER, OWNER, SIGNATURE, WIDER, World

DATA = st.sampled_from([b"a", b"b", b"c", b"d"])
ALIASES = st.sampled_from(["champion", "challenger"])
TAGS = st.dictionaries(st.sampled_from("xy"), st.sampled_from("12"), max_size=2)
CHOSEN = st.integers(0, 50)
LABELS = {"description": "", "tags": {}, "stage": "", "aliases": (), "tombstone": None, "yanked": None}


def unchanging(version: ModelVersion) -> ModelVersion:
    """The part of a version that is never written again."""
    return structs.replace(version, **LABELS)


class Life(RuleBasedStateMachine):
    """A registry and the dict that it should equal."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.database = Database.open(f"sqlite:///{Path(self.folder.name) / 'store.db'}")
        self.world = World(self.database)
        self.versions: dict[int, ModelVersion] = {}
        self.tags: dict[int, dict[str, str]] = {}
        self.stages: dict[int, str] = {}
        self.aliases: dict[str, tuple[int, bool]] = {}
        self.given: list[int] = []
        self.alive = False
        self.drafts: list[tuple[Any, dict[str, bytes]]] = []
        self.past: list[tuple[str, dict[str, int], list[int], dict[int, str]]] = []

    def teardown(self) -> None:
        try:
            report = verify(self.database)
            assert report.events == self.head()
            for moment, aliases, numbers, stages in self.past:
                self.check_past(moment, aliases, numbers, stages)
        finally:
            self.database.close()
            self.folder.cleanup()

    # ------------------------------------------------------------------------------------------------ helps

    def head(self) -> int:
        return self.world.read(OWNER, lambda act: act.tx.events.head()).sequence

    def changing(self, verb: Any, *, expected: bool) -> Any:
        """Do it: a change has at least one event of its own, and what changes nothing has none."""
        before = self.head()
        try:
            return verb()
        finally:
            assert (self.head() > before) == expected

    def pick(self, place: int) -> int:
        numbers = sorted(self.versions)
        return numbers[place % len(numbers)]

    def ref(self, number: int) -> Ref:
        return Ref(model=CHURN, selector=Numbered(number))

    def guarded(self, number: int) -> bool:
        behind = any(at == number and protected for at, protected in self.aliases.values())
        return behind or self.stages.get(number) == "production"

    def remember(self) -> None:
        moment = codec.format_time(self.world.clock.now)
        aliases = {alias: number for alias, (number, _) in self.aliases.items()}
        self.past.append((moment, aliases, sorted(self.versions), dict(self.stages)))

    def check_past(
        self, moment: str, aliases: dict[str, int], numbers: list[int], stages: dict[int, str]
    ) -> None:
        for alias, number in aliases.items():
            assert self.world.get(f"churn@{alias}?at={moment}").number == number
        for number in numbers:
            then = self.world.get(f"churn:#{number}?at={moment}")
            assert then.stage == stages.get(number, "none")
            assert set(then.aliases) == {alias for alias, at in aliases.items() if at == number}
        if numbers:
            assert self.world.get(f"churn@newest?at={moment}").number == numbers[-1]

    # ------------------------------------------------------------------------------------------------ rules

    @rule(data=DATA, signature=st.sampled_from([SIGNATURE, WIDER, NARROWER]), tags=TAGS)
    def begin(self, data: bytes, signature: Any, tags: dict[str, str]) -> None:
        files = {"model.onnx": data}
        draft = self.changing(
            lambda: self.world.begin(CHURN, files, signature=signature, tags=tags), expected=False
        )
        if draft.id not in [known.id for known, _ in self.drafts]:
            self.drafts.append((draft, files))

    @precondition(lambda self: self.drafts)
    @rule(place=CHOSEN)
    def finalize(self, place: int) -> None:
        draft, files = self.drafts.pop(place % len(self.drafts))
        self.world.send(self.world.read(OWNER, self.world.catalog.get_draft, draft.id), files)
        before = self.head()
        made = self.world.do(OWNER, self.world.catalog.finalize, draft.id)
        number = made.version.number
        if number in self.versions:
            assert made.version.digest == self.versions[number].digest
            return
        assert made.created
        assert self.head() > before
        assert number > max(self.given, default=0)
        self.given.append(number)
        self.alive = True
        self.versions[number] = made.version
        self.tags[number] = draft.spec.tags

    @precondition(lambda self: self.versions)
    @rule(place=CHOSEN, alias=ALIASES, protected=st.booleans())
    def set_alias(self, place: int, alias: str, protected: bool) -> None:
        number = self.pick(place)
        known = self.aliases.get(alias)
        self.changing(
            lambda: self.world.do(
                OWNER,
                self.world.catalog.set_alias,
                CHURN,
                alias,
                self.ref(number),
                expect=known[0] if known else None,
                protected=protected,
            ),
            expected=known != (number, protected),
        )
        self.aliases[alias] = (number, protected)

    @precondition(lambda self: self.versions)
    @rule(place=CHOSEN, alias=ALIASES)
    def set_alias_from_a_wrong_place(self, place: int, alias: str) -> None:
        number = self.pick(place)
        known = self.aliases.get(alias)
        with pytest.raises(errors.AliasMoved):
            self.changing(
                lambda: self.world.do(
                    OWNER,
                    self.world.catalog.set_alias,
                    CHURN,
                    alias,
                    self.ref(number),
                    expect=None if known else 999,
                ),
                expected=False,
            )

    @precondition(lambda self: self.versions)
    @rule(alias=ALIASES)
    def delete_alias(self, alias: str) -> None:
        def verb() -> None:
            self.world.do(OWNER, self.world.catalog.delete_alias, CHURN, alias)

        if alias in self.aliases:
            self.changing(verb, expected=True)
            del self.aliases[alias]
            return
        with pytest.raises(errors.NotFound):
            self.changing(verb, expected=False)

    @precondition(lambda self: self.versions)
    @rule(place=CHOSEN, tags=TAGS)
    def change_tags(self, place: int, tags: dict[str, str]) -> None:
        number = self.pick(place)
        gone = tuple(self.tags[number].keys() - tags.keys())
        change = ModelChange(set_tags=tags, delete_tags=gone)
        self.changing(
            lambda: self.world.do(OWNER, self.world.catalog.change_version, self.ref(number), change),
            expected=tags != self.tags[number],
        )
        self.tags[number] = tags

    @precondition(lambda self: self.versions)
    @rule(place=CHOSEN, stage=st.sampled_from(["staging", "production"]))
    def move(self, place: int, stage: str) -> None:
        number = self.pick(place)
        if number not in self.stages and stage not in self.stages.values():
            self.world.place(self.world.read(OWNER, self.world.catalog.resolve, self.ref(number)), stage)
            self.stages[number] = stage

    @precondition(lambda self: self.versions)
    @rule(place=CHOSEN)
    def delete(self, place: int) -> None:
        number = self.pick(place)

        def verb() -> None:
            self.world.do(OWNER, self.world.catalog.delete_version, self.ref(number))

        if self.guarded(number):
            with pytest.raises(errors.Protected):
                self.changing(verb, expected=False)
            return
        self.changing(verb, expected=True)
        del self.versions[number], self.tags[number]
        self.stages.pop(number, None)
        self.aliases = {alias: at for alias, at in self.aliases.items() if at[0] != number}

    @precondition(lambda self: self.alive)
    @rule()
    def delete_model(self) -> None:
        def verb() -> None:
            self.world.do(OWNER, self.world.catalog.delete_model, CHURN)

        if any(self.guarded(number) for number in self.versions):
            with pytest.raises(errors.Protected):
                self.changing(verb, expected=False)
            return
        self.remember()
        self.changing(verb, expected=True)
        self.alive = False
        self.versions, self.tags, self.stages, self.aliases = {}, {}, {}, {}

    @rule()
    def look_back_later(self) -> None:
        self.world.clock.pass_by(seconds=1)
        self.remember()
        self.world.clock.pass_by(seconds=1)

    # ------------------------------------------------------------------------------------------- invariants

    @invariant()
    def what_is_seen_is_what_was_done(self) -> None:
        """Every version with the labels it was given, no other, and no draft among them."""
        found = self.world.read(OWNER, self.world.catalog.search_versions).items
        assert {version.number for version in found} == set(self.versions)
        for version in found:
            number = version.number
            assert unchanging(version) == unchanging(self.versions[number])
            assert version.tags == self.tags[number]
            assert version.stage == self.stages.get(number, "none")
            assert set(version.aliases) == {a for a, (at, _) in self.aliases.items() if at == number}
        if self.versions:
            model = self.world.read(OWNER, self.world.catalog.get_model, CHURN)
            assert model.versions == len(self.versions)
            assert {alias.alias: (alias.number, alias.protected) for alias in model.aliases} == self.aliases
            assert model.occupants == {stage: number for number, stage in self.stages.items()}
            latest = self.world.get("churn@latest")
            assert latest.semver == model.latest


@pytest.mark.req("V1", "V3", "V13")
def test_a_registrys_life_keeps_its_promises() -> None:
    """Twenty lives of thirty steps each."""
    run_state_machine_as_test(Life, settings=settings(max_examples=20, stateful_step_count=30))  # type: ignore[no-untyped-call]
