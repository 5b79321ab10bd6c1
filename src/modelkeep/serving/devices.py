"""On what a version's processes compute: what was wished for, which graphics cards there are, and which
process gets which.

A process sees one card at most, so that several spread over all of them and none touches another's. Cards are
counted by what the system shows; whether a runtime can compute on one it says itself, in its own process. No
library that knows a card is imported here.
"""

import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path

from msgspec import Struct

from modelkeep.core import errors

CARDS_MAX = 64
"""Of one machine; more entries than that are no list of cards."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
"""By which CUDA is told what cards there are for a process: a list of numbers, or of cards' own names."""
_ORDER = "CUDA_DEVICE_ORDER"
VARIABLES = (VISIBLE, _ORDER, "LD_LIBRARY_PATH")
"""What the gateway's own environment may say about cards and where their libraries are."""
_WISH = re.compile(r"(?P<device>auto|cpu|cuda)(:(?P<cards>[0-9]{1,2}(,[0-9]{1,2})*))?")
_CARD = re.compile(r"nvidia[0-9]+")
_NAMED = re.compile(r"[0-9]+|(GPU|MIG)-[-/0-9A-Za-z]+")
"""A card, as CUDA takes it; batch systems write other words where there is none."""


class Device(StrEnum):
    """What to compute on. AUTO: a card where there is one and the version can use it, else the processor."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Wish(Struct, frozen=True):
    """What the gateway's owner said. `cards`: the numbers of those to use; all where there are none."""

    device: Device = Device.AUTO
    cards: tuple[int, ...] = ()


class Card(Struct, frozen=True):
    """One card. `number`: its place among those there are; `name`: what CUDA knows it by."""

    number: int
    name: str

    @property
    def label(self) -> str:
        """As people read it."""
        return f"{Device.CUDA}:{self.number}"


def read_wish(text: str) -> Wish:
    """`auto`, `cpu`, `cuda`, or `cuda:0,2` with the cards to use.

    Raises:
        InvalidSetting: it is none of these.
    """
    match = _WISH.fullmatch(text)
    if match is None or (match["cards"] and match["device"] != Device.CUDA):
        raise errors.InvalidSetting(
            f"{text!r} is no device; say auto, cpu, cuda, or cuda:0,2 with the numbers of the cards to use."
        )
    numbers = dict.fromkeys(int(number) for number in (match["cards"] or "").split(",") if number)
    return Wish(Device(match["device"]), tuple(numbers))


def there(said: Mapping[str, str], folder: Path = Path("/dev")) -> tuple[Card, ...]:
    """The cards that the gateway may use: those that its own environment names, else those that the driver
    shows.

    Args:
        said: what its environment says (`VARIABLES`).
        folder: where the driver shows them.
    """
    if VISIBLE in said:
        names = []
        for name in (part.strip() for part in said[VISIBLE].split(",")):
            if not _NAMED.fullmatch(name):  # CUDA, too, reads no further; others have words for none
                break
            if name not in names:
                names.append(name)
    else:
        try:
            shown = [path.name for path in folder.iterdir()]
        except OSError:
            shown = []
        names = [str(number) for number in range(sum(_CARD.fullmatch(name) is not None for name in shown))]
    return tuple(Card(number, name) for number, name in enumerate(names[:CARDS_MAX]))


class Cards:
    """Who has which card. The next process gets one of those that the fewest have."""

    def __init__(self, wish: Wish, found: tuple[Card, ...], said: Mapping[str, str] | None = None) -> None:
        """
        Args:
            said: what the gateway's environment says of cards and their libraries.

        Raises:
            InvalidSetting: a card was named that is not there.
        """
        missing = next((number for number in wish.cards if number >= len(found)), None)
        if missing is not None:
            raise errors.InvalidSetting(
                f"There is no card {missing}: this gateway can see {len(found)}, counted from 0."
            )
        self.device = Device.CPU if wish.device is Device.AUTO and not found else wish.device
        """What processes are to be started for."""
        self._said = dict(said or {})
        chosen = [found[number] for number in wish.cards] or found
        self._holders = {card: 0 for card in chosen if self.device is not Device.CPU}

    def __iter__(self) -> Iterator[Card]:
        return iter(self._holders)

    def take(self) -> Card | None:
        """The card for one more process; None where none was counted."""
        card = min(self._holders, key=self._holders.__getitem__, default=None)
        if card is not None:
            self._holders[card] += 1
        return card

    def give_back(self, card: Card) -> None:
        """A process has ended, or does without."""
        self._holders[card] -= 1

    def environment(self, card: Card | None, *, on_card: bool) -> dict[str, str]:
        """A process's variables.

        Args:
            on_card: it may compute on a card: on that one, or on whatever CUDA finds where none was counted.
        """
        if not on_card:
            return {VISIBLE: ""}
        # Cards that were counted are numbered as the driver numbers them, not by their speed.
        order = {} if VISIBLE in self._said else {_ORDER: "PCI_BUS_ID"}
        return {**order, **self._said, **({VISIBLE: card.name} if card is not None else {})}
