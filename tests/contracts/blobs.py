"""What every `BlobStore` must do, as one suite: subclass `BlobStoreContract` and give it a `backend`.

It checks the promises of `modelkeep.ports.BlobStore` and nothing that only one technology has. Its teardown
fails when a test leaves an upload or a temporary file behind.
"""

import random
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from modelkeep.core import errors
from modelkeep.core.values import Digest
from modelkeep.ports import BLOB_MAX_BYTES, SMALL_MAX_BYTES, BlobInfo, BlobStore
from tests.fakes import digest_of

MIB = 1024 * 1024
ABSENT = digest_of(b"nobody stored this")

HOSTILE_IDS = [
    "", ".", "..", "../up_1", "up/1", "up\\1", "up_1\0", "up_1\n", "UP_1", "up-1", "up.1", "%2e%2e",
    "\u0430bc", "a" * 65, "/etc/passwd", "up_1.part",
]  # fmt: skip
HOSTILE_DIGESTS = [
    "", "sha256:", "sha256:" + "0" * 63, "sha256:" + "0" * 65, "sha256:" + "A" * 64, "sha512:" + "0" * 64,
    "0" * 64, "sha256:../../../../etc/passwd" + "0" * 42, "sha256:" + "0" * 63 + "\n",
    "sha256:" + "0" * 61 + "/..", "sha256:" + "\u0660" * 64,
]  # fmt: skip


class Backend(ABC):
    """How the suite handles one kind of store."""

    @abstractmethod
    def open(self) -> BlobStore:
        """Open the store anew, as a restarted server does; what was stored is still there."""

    @abstractmethod
    def damage(self, digest: Digest, data: bytes) -> None:
        """Put other bytes in a blob's place, behind the store's back."""

    @abstractmethod
    def leftovers(self) -> list[str]:
        """Name the uploads and temporary things that are there now."""


class BrokenLine(Exception):
    """A connection that broke off in the middle."""


def breaking(*chunks: bytes) -> Iterator[bytes]:
    """Chunks of a connection that breaks after them."""
    yield from chunks
    raise BrokenLine


def noise(size: int, seed: int = 1) -> bytes:
    """Bytes that no compressor and no sparse file makes small; the same for the same seed."""
    return random.Random(seed).randbytes(size)


def pieces(data: bytes, size: int) -> list[bytes]:
    """Cut bytes into chunks."""
    return [data[at : at + size] for at in range(0, len(data), size)]


def put(store: BlobStore, data: bytes, upload_id: str = "up_put") -> Digest:
    """Store bytes in one go."""
    store.begin(upload_id, len(data))
    store.append(upload_id, 0, pieces(data, 64 * 1024))
    return store.commit(upload_id, digest_of(data)).digest


def content(store: BlobStore, digest: Digest, offset: int = 0, length: int | None = None) -> bytes:
    """Read a range in one go."""
    return b"".join(store.open(digest, offset, length))


class BlobStoreContract:
    """The suite. Every test gets a fresh, empty store."""

    @pytest.fixture
    def store(self, backend: Backend) -> Iterator[BlobStore]:
        store = backend.open()
        yield store
        store.close()
        assert backend.leftovers() == []

    # Storing and reading

    @pytest.mark.req("V3")
    @pytest.mark.parametrize("size", [0, 1, 65_535, MIB, MIB + 1, 9 * MIB + 7])
    def test_what_is_stored_is_read_back(self, store: BlobStore, size: int) -> None:
        """Bytes of any size, none included, come back the same, and are counted right."""
        data = noise(size)
        store.begin("up_1", size)
        assert store.append("up_1", 0, pieces(data, 100_000)) == size
        info = store.commit("up_1", digest_of(data))
        assert info == BlobInfo(digest=digest_of(data), size_bytes=size)
        assert store.stat(info.digest) == info == store.verify(info.digest)
        assert b"".join(store.open_verified(info.digest)) == data == content(store, info.digest)

    @pytest.mark.req("V3")
    @pytest.mark.parametrize("size", [0, 10_240, SMALL_MAX_BYTES, SMALL_MAX_BYTES + 1])
    def test_what_is_at_hand_is_whole_and_right(self, store: BlobStore, backend: Backend, size: int) -> None:
        """What can be had without waiting is the blob, or nothing: no other bytes, and no large blob."""
        data = noise(size)
        assert store.at_hand(digest_of(data)) is None
        digest = put(store, data)
        assert store.at_hand(digest) in ((data, None) if size <= SMALL_MAX_BYTES else (None,))
        backend.damage(digest, b"other bytes")
        assert store.at_hand(digest) is None

    def test_chunks_may_have_any_size(self, store: BlobStore) -> None:
        """Empty chunks, single bytes and one chunk of many MiB make the same blob as any others."""
        data = noise(5 * MIB)
        chunks = [b"", *pieces(data[:3_000], 1), b"", data[3_000:]]
        store.begin("up_1")
        assert store.append("up_1", 0, chunks) == len(data)
        assert store.commit("up_1", digest_of(data)).size_bytes == len(data)

    def test_an_upload_may_come_in_many_appends(self, store: BlobStore) -> None:
        """Appends follow each other, each from the offset the last one gave; an empty one changes nothing."""
        data = noise(6 * MIB)
        offset = store.begin("up_1")
        for piece in pieces(data, 700_001):
            assert store.status("up_1") == offset
            offset = store.append("up_1", offset, [piece])
        assert store.append("up_1", offset, []) == len(data)
        assert store.verify(store.commit("up_1", digest_of(data)).digest).size_bytes == len(data)

    @pytest.mark.parametrize(
        ("offset", "length"),
        [(0, 0), (0, 1), (0, None), (1, None), (2_999_999, 1), (2_999_999, 5), (3_000_000, None),
         (3_000_000, 9), (1_048_575, 2), (1_048_576, 1_048_576), (5, 2_999_995), (0, 3_000_000), (0, 10**15)],
    )  # fmt: skip
    def test_ranges_are_exact_at_their_edges(self, store: BlobStore, offset: int, length: int | None) -> None:
        """A range has exactly its bytes, is cut off at the blob's end, and is empty at the end itself."""
        data = noise(3_000_000)
        end = None if length is None else offset + length
        assert content(store, put(store, data), offset, length) == data[offset:end]

    @pytest.mark.parametrize(("offset", "length"), [(-1, None), (0, -1), (11, None), (11, 0)])
    def test_a_range_outside_the_blob_is_refused(
        self, store: BlobStore, offset: int, length: int | None
    ) -> None:
        """A negative number, or an offset behind the end, is an error of the call itself."""
        digest = put(store, b"ten bytes.")
        with pytest.raises(errors.InvalidInput):
            store.open(digest, offset, length)

    def test_a_reader_may_stop_early(self, store: BlobStore) -> None:
        """An iterator that is dropped after one chunk, or before any, leaves the store usable."""
        data = noise(2 * MIB)
        digest = put(store, data)
        chunk = next(iter(store.open(digest)))
        assert data.startswith(chunk)
        store.open(digest)
        assert store.delete(digest)

    def test_a_missing_blob_is_missed_at_once(self, store: BlobStore) -> None:
        """`stat` says None; reading, verifying and asking for a path raise in the call, not at the first
        chunk."""
        assert store.stat(ABSENT) is None
        for ask in (store.open, store.open_verified, store.verify):
            with pytest.raises(errors.BlobNotFound):
                ask(ABSENT)
        assert store.delete(ABSENT) is False

    def test_a_local_path_leads_to_the_bytes(self, store: BlobStore) -> None:
        """Where a store gives a path, the file there has the bytes; where it gives none, that is None."""
        path = store.local_path(put(store, b"here"))
        assert path is None or path.read_bytes() == b"here"

    # Committing

    @pytest.mark.req("V3")
    def test_the_same_content_twice_is_one_blob(self, store: BlobStore) -> None:
        """Storing equal bytes again is no error, and there is still one blob."""
        first, again = put(store, b"same", "up_1"), put(store, b"same", "up_2")
        assert first == again
        assert [blob.digest for blob in store.iterate()] == [first]

    def test_a_commit_may_be_repeated(self, store: BlobStore) -> None:
        """Whoever lost the answer asks again, and gets it."""
        digest = put(store, b"once", "up_1")
        assert store.commit("up_1", digest) == BlobInfo(digest=digest, size_bytes=4)

    def test_nothing_is_visible_before_the_commit(self, store: BlobStore) -> None:
        """A whole upload that is not committed is no blob."""
        data = noise(2 * MIB)
        store.begin("up_1")
        store.append("up_1", 0, [data])
        assert store.stat(digest_of(data)) is None
        assert list(store.iterate()) == []
        store.cancel("up_1")

    @pytest.mark.req("V3")
    def test_a_wrong_digest_discards_the_upload(self, store: BlobStore) -> None:
        """Other bytes than promised are named by their true digest, and nothing of them is kept."""
        store.begin("up_1")
        store.append("up_1", 0, [b"not what was promised"])
        with pytest.raises(errors.DigestMismatch) as caught:
            store.commit("up_1", ABSENT)
        assert caught.value.details == {"expected": ABSENT, "actual": digest_of(b"not what was promised")}
        assert list(store.iterate()) == []
        with pytest.raises(errors.BlobNotFound):
            store.status("up_1")

    def test_a_commit_of_nothing_is_refused(self, store: BlobStore) -> None:
        """Without a session and without the blob there is nothing to commit."""
        with pytest.raises(errors.BlobNotFound):
            store.commit("up_never", ABSENT)

    def test_fewer_bytes_than_declared_can_be_completed(self, store: BlobStore) -> None:
        """A commit that comes too early says how far the upload is, and the upload goes on."""
        store.begin("up_1", 6)
        store.append("up_1", 0, [b"abc"])
        with pytest.raises(errors.OffsetMismatch) as caught:
            store.commit("up_1", digest_of(b"abcdef"))
        assert caught.value.details["offset"] == 3
        store.append("up_1", 3, [b"def"])
        assert store.commit("up_1", digest_of(b"abcdef")).size_bytes == 6

    def test_more_bytes_than_declared_are_refused(self, store: BlobStore) -> None:
        """The chunk that goes beyond is not taken, and what came before it is."""
        store.begin("up_1", 5)
        with pytest.raises(errors.LimitExceeded):
            store.append("up_1", 0, [b"abc", b"def"])
        assert store.status("up_1") == 3
        store.append("up_1", 3, [b"de"])
        assert store.commit("up_1", digest_of(b"abcde")).size_bytes == 5

    def test_a_damaged_blob_is_healed_by_storing_it_again(self, store: BlobStore, backend: Backend) -> None:
        """Equal content is stored anew, so an upload repairs what a disk has spoiled."""
        data = noise(MIB)
        digest = put(store, data, "up_1")
        backend.damage(digest, data[:-1] + b"!")
        put(store, data, "up_2")
        assert store.verify(digest).size_bytes == len(data)

    @pytest.mark.req("V3")
    @pytest.mark.parametrize("change", ["flipped", "shorter", "longer", "empty"])
    def test_damage_is_found(self, store: BlobStore, backend: Backend, change: str) -> None:
        """A changed blob fails the verified read, after its last chunk, and `verify`; the error has both
        digests."""
        data = noise(2 * MIB + 5)
        digest = put(store, data)
        bad = {"flipped": data[:99] + bytes([data[99] ^ 1]) + data[100:], "shorter": data[:-1],
               "longer": data + b"\0", "empty": b""}[change]  # fmt: skip
        backend.damage(digest, bad)
        received = bytearray()
        with pytest.raises(errors.DigestMismatch) as caught:
            for chunk in store.open_verified(digest):
                received += chunk
        assert received == bad
        assert caught.value.details == {"expected": digest, "actual": digest_of(bad)}
        with pytest.raises(errors.DigestMismatch):
            store.verify(digest)

    # Sessions

    def test_a_wrong_offset_says_the_right_one(self, store: BlobStore) -> None:
        """An append elsewhere than at the end takes nothing, and tells where the end is."""
        store.begin("up_1")
        store.append("up_1", 0, [b"abc"])
        for offset in (0, 2, 4, -1, 10**18):
            with pytest.raises(errors.OffsetMismatch) as caught:
                store.append("up_1", offset, breaking())
            assert caught.value.details["offset"] == 3
        store.cancel("up_1")

    def test_what_came_before_a_broken_line_is_kept(self, store: BlobStore) -> None:
        """The error of the connection passes through, and the upload goes on from the last byte that came."""
        data = noise(7 * MIB)
        store.begin("up_1", len(data))
        with pytest.raises(BrokenLine):
            store.append("up_1", 0, breaking(data[: 5 * MIB], data[5 * MIB : 5 * MIB + 123]))
        assert store.status("up_1") == 5 * MIB + 123
        store.append("up_1", 5 * MIB + 123, [data[5 * MIB + 123 :]])
        assert store.commit("up_1", digest_of(data)).size_bytes == len(data)

    def test_an_upload_outlives_the_process(self, store: BlobStore, backend: Backend) -> None:
        """A store that is opened anew knows the bytes, the declared size, and goes on."""
        data = noise(6 * MIB)
        store.begin("up_1", len(data))
        store.append("up_1", 0, [data[: 4 * MIB]])
        store.close()
        after = backend.open()
        assert after.begin("up_1", len(data)) == after.status("up_1") == 4 * MIB
        with pytest.raises(errors.LimitExceeded):
            after.append("up_1", 4 * MIB, [data])
        after.append("up_1", 4 * MIB, [data[4 * MIB :]])
        assert after.commit("up_1", digest_of(data)).size_bytes == len(data)
        assert after.verify(digest_of(data)).size_bytes == len(data)
        after.close()

    def test_a_finished_upload_can_be_committed_after_a_restart(
        self, store: BlobStore, backend: Backend
    ) -> None:
        """Nothing that `commit` needs is lost with the process."""
        store.begin("up_1")
        store.append("up_1", 0, [b"all of it"])
        store.close()
        after = backend.open()
        assert after.commit("up_1", digest_of(b"all of it")).size_bytes == 9
        after.close()

    def test_beginning_twice_is_one_session(self, store: BlobStore) -> None:
        """The same begin finds the session where it is; one with another size is refused."""
        assert store.begin("up_1", 10) == 0
        store.append("up_1", 0, [b"abc"])
        assert store.begin("up_1", 10) == 3
        for other in (11, None):
            with pytest.raises(errors.IdempotencyMismatch):
                store.begin("up_1", other)
        store.cancel("up_1")

    def test_impossible_sizes_are_refused(self, store: BlobStore) -> None:
        """A negative size, and one beyond any blob, open nothing."""
        with pytest.raises(errors.InvalidInput):
            store.begin("up_1", -1)
        with pytest.raises(errors.LimitExceeded):
            store.begin("up_1", BLOB_MAX_BYTES + 1)

    # Small files

    @pytest.mark.req("V3")
    def test_small_files_are_there_at_once(self, store: BlobStore) -> None:
        """Where there is a way in for them, small files are blobs when they are placed, equal ones one, and
        stay so when they are synced or put back; a larger file is refused."""
        small = store.small
        if small is None:
            pytest.skip("this store has no way in for small files")
        files = [b"", noise(SMALL_MAX_BYTES), b"same", b"same"]
        digests = [digest_of(data) for data in files]
        for digest, data in zip(digests, files, strict=True):
            small.place(digest, data)
        assert [content(store, digest) for digest in digests] == files
        assert len(list(store.iterate())) == 3
        small.sync(digests)
        store.delete(digests[1])
        small.put_back(list(zip(digests, files, strict=True)))
        assert [store.verify(digest).size_bytes for digest in digests] == list(map(len, files))
        small.sync([])
        small.put_back([])
        larger = bytes(SMALL_MAX_BYTES + 1)
        with pytest.raises(errors.LimitExceeded):
            small.place(digest_of(larger), larger)
        assert store.stat(digest_of(larger)) is None

    # Uploads whose digest nobody said before

    @pytest.mark.req("T1")
    @pytest.mark.parametrize("size", [0, 1, 4 * MIB, 9 * MIB + 5])
    def test_a_sealed_upload_is_found_by_what_it_hashes_to(self, store: BlobStore, size: int) -> None:
        """Sealing says the digest of what came, closes the session, and leaves a blob like any other."""
        data = noise(size)
        store.begin("up_1", size if size % 2 else None)
        store.append("up_1", 0, pieces(data, 700_001))
        assert store.seal("up_1") == BlobInfo(digest=digest_of(data), size_bytes=size)
        assert b"".join(store.open_verified(digest_of(data))) == data
        with pytest.raises(errors.BlobNotFound):
            store.seal("up_1")

    def test_an_upload_that_lacks_bytes_is_not_sealed(self, store: BlobStore) -> None:
        """A declared size holds for sealing too; the upload goes on."""
        store.begin("up_1", 5)
        store.append("up_1", 0, [b"abc"])
        with pytest.raises(errors.OffsetMismatch):
            store.seal("up_1")
        store.append("up_1", 3, [b"de"])
        assert store.seal("up_1").digest == digest_of(b"abcde")

    def test_sealing_outlives_a_restart(self, store: BlobStore, backend: Backend) -> None:
        """What came before a restart counts in the digest that is said after it."""
        store.begin("up_1")
        store.append("up_1", 0, [b"before "])
        store.close()
        after = backend.open()
        after.append("up_1", 7, [b"after"])
        assert after.seal("up_1").digest == digest_of(b"before after")
        after.close()

    def test_one_upload_is_made_of_several(self, store: BlobStore) -> None:
        """Open uploads can be read, in any order, into another one."""
        parts = [noise(3 * MIB, 1), b"", noise(5, 2)]
        for number, data in enumerate(parts):
            store.begin(f"part_{number}")
            store.append(f"part_{number}", 0, [data])
        store.begin("up_1")
        end = 0
        for number in (2, 0, 1):
            end = store.append("up_1", end, store.open_upload(f"part_{number}"))
            store.cancel(f"part_{number}")
        assert store.seal("up_1").digest == digest_of(parts[2] + parts[0])
        with pytest.raises(errors.BlobNotFound):
            store.open_upload("part_0")

    def test_cancelling_may_be_repeated(self, store: BlobStore) -> None:
        """An upload that is open, closed, committed or unknown can be cancelled; the blob stays."""
        store.begin("up_1")
        store.append("up_1", 0, [b"abc"])
        for _ in range(2):
            store.cancel("up_1")
        with pytest.raises(errors.BlobNotFound):
            store.append("up_1", 3, [b"def"])
        digest = put(store, b"kept", "up_2")
        store.cancel("up_2")
        store.cancel("up_never")
        assert store.stat(digest) is not None

    def test_a_cancelled_upload_takes_no_more(self, store: BlobStore) -> None:
        """An append that is under way when its upload is cancelled stops at once."""

        def cancelling() -> Iterator[bytes]:
            yield noise(MIB)
            store.cancel("up_1")
            yield noise(MIB)
            raise AssertionError("asked for more after the upload was cancelled")

        store.begin("up_1")
        with pytest.raises(errors.BlobNotFound):
            store.append("up_1", 0, cancelling())

    def test_an_unknown_upload_is_not_found(self, store: BlobStore) -> None:
        """Neither status nor append makes a session."""
        with pytest.raises(errors.BlobNotFound):
            store.status("up_never")
        with pytest.raises(errors.BlobNotFound):
            store.append("up_never", 0, [b"abc"])

    def test_a_sweep_takes_what_was_left(self, store: BlobStore) -> None:
        """Uploads that nobody wrote to since then go; younger ones, and blobs, stay."""
        digest = put(store, b"a blob")
        for upload_id in ("up_1", "up_2"):
            store.begin(upload_id, 10)
            store.append(upload_id, 0, [b"abc"])
        now = datetime.now(UTC)
        assert store.sweep_uploads(now - timedelta(hours=1)) == 0
        assert store.status("up_1") == 3
        assert store.sweep_uploads(now + timedelta(hours=1)) == 2
        with pytest.raises(errors.BlobNotFound):
            store.status("up_1")
        assert store.stat(digest) is not None

    def test_a_sweep_spares_what_is_being_written(self, store: BlobStore) -> None:
        """However old an upload is, it stays while somebody writes to it."""

        def sweeping() -> Iterator[bytes]:
            yield b"abc"
            assert store.sweep_uploads(datetime.now(UTC) + timedelta(hours=1)) == 0
            yield b"def"

        store.begin("up_1")
        assert store.append("up_1", 0, sweeping()) == 6
        assert store.commit("up_1", digest_of(b"abcdef")).size_bytes == 6

    # Listing and deleting

    def test_the_list_is_whole_and_in_order(self, store: BlobStore) -> None:
        """Every blob is listed once, by digest, with its size and the time it was stored."""
        before = datetime.now(UTC) - timedelta(seconds=5)
        stored = {put(store, b"x" * size): size for size in range(20)}
        listed = list(store.iterate())
        assert [blob.digest for blob in listed] == sorted(stored)
        assert {blob.digest: blob.size_bytes for blob in listed} == stored
        assert all(before <= blob.modified_at <= before + timedelta(seconds=60) for blob in listed)

    def test_a_deleted_blob_is_gone(self, store: BlobStore) -> None:
        """Deleting says whether there was something; other blobs stay; the same bytes may come again."""
        one, two = put(store, b"one"), put(store, b"two")
        assert store.delete(one) is True
        assert store.delete(one) is False
        assert store.stat(one) is None
        assert [blob.digest for blob in store.iterate()] == [two]
        assert put(store, b"one") == one

    # Many at once, and hostile words

    @pytest.mark.req("V3")
    def test_eight_threads_storing_the_same_leave_one_blob(self, store: BlobStore) -> None:
        """Equal uploads at the same moment all succeed and leave one whole blob."""
        data = noise(2 * MIB)
        start = threading.Barrier(8)

        def upload(number: int) -> Digest:
            start.wait(timeout=30)
            return put(store, data, f"up_{number}")

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(upload, range(8))) == {digest_of(data)}
        assert [blob.digest for blob in store.iterate()] == [digest_of(data)]
        assert store.verify(digest_of(data)).size_bytes == len(data)

    def test_threads_racing_for_one_session_do_not_mix(self, store: BlobStore) -> None:
        """Of several appends at the same offset one is taken; the others learn the new offset."""
        store.begin("up_1")
        start = threading.Barrier(4)
        told: list[int] = []

        def append(number: int) -> bytes | None:
            data = noise(MIB, number)
            start.wait(timeout=30)
            try:
                store.append("up_1", 0, pieces(data, 10_000))
            except errors.OffsetMismatch as problem:
                told.append(problem.details["offset"])
                return None
            return data

        with ThreadPoolExecutor(4) as pool:
            (winner,) = [data for data in pool.map(append, range(4)) if data is not None]
        assert told == [MIB] * 3
        assert store.commit("up_1", digest_of(winner)).size_bytes == MIB

    @pytest.mark.parametrize("upload_id", HOSTILE_IDS)
    def test_a_hostile_upload_id_is_refused(self, store: BlobStore, upload_id: str) -> None:
        """An id that is no plain word of the server reaches neither disk nor network."""
        for act in (
            lambda: store.begin(upload_id),
            lambda: store.append(upload_id, 0, [b"abc"]),
            lambda: store.status(upload_id),
            lambda: store.commit(upload_id, ABSENT),
            lambda: store.seal(upload_id),
            lambda: store.open_upload(upload_id),
            lambda: store.cancel(upload_id),
        ):
            with pytest.raises(errors.InvalidName):
                act()

    @pytest.mark.parametrize("text", HOSTILE_DIGESTS)
    def test_a_hostile_digest_is_refused(self, store: BlobStore, text: str) -> None:
        """A digest that is not whole and lower-case is refused before anything is looked for."""
        digest = Digest(text)
        for act in (
            store.stat,
            store.open,
            store.open_verified,
            store.at_hand,
            store.verify,
            store.delete,
            store.local_path,
        ):
            with pytest.raises(errors.InvalidReference):
                act(digest)
        store.begin("up_1")
        with pytest.raises(errors.InvalidReference):
            store.commit("up_1", digest)
        store.cancel("up_1")
