"""Small files on their way to the store: who waits for whom, and who hears of what."""

import asyncio
from collections.abc import Callable, Sequence

import pytest

from modelkeep.core import errors
from modelkeep.ports import BlobInfo
from modelkeep.ports import SmallFiles as WayIn
from modelkeep.web import small_files
from modelkeep.web.small_files import SmallFiles
from tests.fakes import MemoryBlobs, digest_of


class _Groups(MemoryBlobs):
    """A store that notes in which groups files came, and can be broken."""

    def __init__(self) -> None:
        super().__init__()
        self.groups: list[int] = []
        self.broken = False

    @property
    def small(self) -> WayIn:
        return self

    def put(self, files: Sequence[bytes]) -> tuple[BlobInfo, ...]:
        self.groups.append(len(files))
        if self.broken:
            raise errors.StorageFull("There is no room; make some.")
        return tuple(BlobInfo(digest=digest_of(data), size_bytes=len(data)) for data in files)


async def _in_thread(work: Callable[[], Sequence[BlobInfo] | None]) -> Sequence[BlobInfo] | None:
    return await asyncio.to_thread(work)


def files(count: int) -> list[bytes]:
    """Different files."""
    return [b"%d" % number for number in range(count)]


async def kept(way: SmallFiles, sent: list[bytes]) -> list[BlobInfo | BaseException | None]:
    """Send files at once."""
    return await asyncio.gather(*map(way.keep, sent), return_exceptions=True)


def test_who_comes_meanwhile_is_the_next_group() -> None:
    """The first file waits for nobody, and those that come while it is written are one group; each hears what
    its own became."""
    store, sent = _Groups(), files(20)

    async def run() -> list[BlobInfo | BaseException | None]:
        return await kept(SmallFiles(store, _in_thread), sent)

    found = asyncio.run(run())
    assert found == [BlobInfo(digest=digest_of(data), size_bytes=len(data)) for data in sent]
    assert sum(store.groups) == 20
    assert len(store.groups) <= 2


def test_a_group_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """With many bytes waiting, the first are written before the last."""
    monkeypatch.setattr(small_files, "GROUP_BYTES", 4)
    store = _Groups()
    asyncio.run(kept(SmallFiles(store, _in_thread), [b"ab"] * 6))
    assert store.groups == [2, 2, 2]


def test_everyone_hears_of_an_error_and_the_next_are_stored() -> None:
    """A group that fails fails for all in it, and only for them."""
    store = _Groups()

    async def run() -> None:
        way = SmallFiles(store, _in_thread)
        store.broken = True
        found = await kept(way, files(5))
        assert [type(each) for each in found] == [errors.StorageFull] * 5
        store.broken = False
        assert await way.keep(b"after") == BlobInfo(digest=digest_of(b"after"), size_bytes=5)

    asyncio.run(run())


def test_who_leaves_holds_nobody_up() -> None:
    """A sender who is cancelled while its group is written takes nothing from the others."""
    store = _Groups()

    async def run() -> None:
        way = SmallFiles(store, _in_thread)
        leaving, staying = (asyncio.ensure_future(way.keep(data)) for data in (b"leaving", b"staying"))
        await asyncio.sleep(0)
        leaving.cancel()
        found = await staying
        assert found is not None
        assert found.digest == digest_of(b"staying")

    asyncio.run(run())


def test_a_store_without_a_way_in_says_so() -> None:
    """Files are then uploaded like others."""

    async def run() -> None:
        assert await SmallFiles(MemoryBlobs(), _in_thread).keep(b"x") is None

    asyncio.run(run())
