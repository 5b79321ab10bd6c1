"""Small files on their way to the store: who waits for whom, and who hears of what."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future

import pytest

from modelkeep.core import errors
from modelkeep.ports import BlobInfo
from modelkeep.ports import SmallFiles as WayIn
from modelkeep.web import small_files
from modelkeep.web.small_files import SmallFiles
from tests.fakes import MemoryBlobs, digest_of

DEADLINE_S = 60.0


class _Groups(MemoryBlobs):
    """A store that notes in which groups files came, waits to be let go on, and can be broken."""

    def __init__(self) -> None:
        super().__init__()
        self.groups: list[int] = []
        self.broken = False
        self.entered = threading.Event()
        self.open = threading.Event()
        self.open.set()

    @property
    def small(self) -> WayIn:
        return self

    def put(self, files: Sequence[bytes]) -> tuple[BlobInfo, ...]:
        self.groups.append(len(files))
        self.entered.set()
        assert self.open.wait(DEADLINE_S)
        if self.broken:
            raise errors.StorageFull("There is no room; make some.")
        return tuple(BlobInfo(digest=digest_of(data), size_bytes=len(data)) for data in files)


@pytest.fixture
def store() -> _Groups:
    """A store that works."""
    return _Groups()


@pytest.fixture
def way(store: _Groups) -> Iterator[SmallFiles]:
    """The way to it."""
    way = SmallFiles(store)
    yield way
    store.open.set()
    way.close()


def send(way: SmallFiles, files: Sequence[bytes]) -> list["Future[BlobInfo]"]:
    """Send files; each future is done when its file is stored."""
    told: list[Future[BlobInfo]] = []
    for data in files:
        told.append(Future())
        way.keep(data, told[-1], told[-1].set_result)
    return told


def blob(data: bytes) -> BlobInfo:
    """What a file becomes."""
    return BlobInfo(digest=digest_of(data), size_bytes=len(data))


def test_who_comes_meanwhile_is_the_next_group(way: SmallFiles, store: _Groups) -> None:
    """The first file waits for nobody, and those that come while it is written are one group; each hears what
    its own became."""
    store.open.clear()
    first = send(way, [b"first"])
    assert store.entered.wait(DEADLINE_S)
    sent = [b"%d" % number for number in range(20)]
    others = send(way, sent)
    store.open.set()
    assert [told.result(DEADLINE_S) for told in (*first, *others)] == [blob(b"first"), *map(blob, sent)]
    assert store.groups == [1, 20]


def test_a_group_has_an_end(way: SmallFiles, store: _Groups, monkeypatch: pytest.MonkeyPatch) -> None:
    """With many bytes waiting, the first are written before the last."""
    monkeypatch.setattr(small_files, "GROUP_BYTES", 4)
    store.open.clear()
    first = send(way, [b"first"])
    assert store.entered.wait(DEADLINE_S)
    others = send(way, [b"ab"] * 6)
    store.open.set()
    for told in (*first, *others):
        told.result(DEADLINE_S)
    assert store.groups == [1, 2, 2, 2]


def test_everyone_hears_of_an_error_and_the_next_are_stored(way: SmallFiles, store: _Groups) -> None:
    """A group that fails fails for all in it, and only for them."""
    store.broken = True
    for told in send(way, [b"a", b"b", b"c"]):
        assert isinstance(told.exception(DEADLINE_S), errors.StorageFull)
    store.broken = False
    assert send(way, [b"after"])[0].result(DEADLINE_S) == blob(b"after")


def test_who_cannot_go_on_holds_nobody_up(way: SmallFiles, store: _Groups) -> None:
    """Where a file cannot be handed on, its sender hears why, and the others of its group are handed on."""
    store.open.clear()
    first = send(way, [b"first"])
    assert store.entered.wait(DEADLINE_S)
    refused: Future[None] = Future()

    def refuse(found: BlobInfo) -> None:
        raise errors.Overloaded("Too many changes wait; try again.")

    way.keep(b"refused", refused, refuse)
    staying = send(way, [b"staying"])
    store.open.set()
    assert isinstance(refused.exception(DEADLINE_S), errors.Overloaded)
    assert [told.result(DEADLINE_S) for told in (*first, *staying)] == [blob(b"first"), blob(b"staying")]


def test_an_end_keeps_what_waits(way: SmallFiles, store: _Groups) -> None:
    """Who has sent before the end is answered; who comes later is told to come again."""
    told = send(way, [b"a", b"b"])
    way.close()
    assert [each.result(0) for each in told] == [blob(b"a"), blob(b"b")]
    assert isinstance(send(way, [b"late"])[0].exception(0), errors.Overloaded)


def test_a_store_without_a_way_in_says_so() -> None:
    """Files are then uploaded like others."""
    way = SmallFiles(MemoryBlobs())
    told: Future[None] = Future()
    way.keep(b"x", told, lambda found: told.set_exception(AssertionError("it was stored")))
    assert told.result(DEADLINE_S) is None
    way.close()


def test_a_thread_that_cannot_be_started_holds_nobody_up(
    way: SmallFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who came first hears of it, and is not written later; the next file tries again."""
    refused: Future[BlobInfo] = Future()

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="can't start"):
            way.keep(b"first", refused, refused.set_result)
    [told] = send(way, [b"second"])
    assert told.result(DEADLINE_S).digest == digest_of(b"second")
    assert not refused.done()
