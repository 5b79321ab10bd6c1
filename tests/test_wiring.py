"""The house as it is put together: what it makes in its folder, who may look, and what it refuses."""

import os
import stat
from pathlib import Path

import pytest

from modelkeep import settings, wiring
from modelkeep.adapters.blobs_folder import FolderBlobs
from modelkeep.core import errors, policy
from modelkeep.core.access import AuthMode
from modelkeep.service.act import SYSTEM_CONTEXT
from modelkeep.settings import Settings
from tests.contracts.blobs import content
from tests.fakes import digest_of

pytestmark = pytest.mark.req("G10")


def of(folder: Path, **more: object) -> Settings:
    """Settings over a folder."""
    return settings.load({"data": str(folder), **more}, {})


def test_only_the_owner_looks_into_it(tmp_path: Path) -> None:
    """Folders are 0700 and files 0600: the key above all."""
    folder = tmp_path / "data"
    with wiring.open_house(of(folder)):
        found = {path: stat.S_IMODE(path.lstat().st_mode) for path in (folder, *folder.rglob("*"))}
    loose = {path.name for path, mode in found.items() if mode & 0o077}
    assert loose <= {"modelkeep.db", "modelkeep.db-wal", "modelkeep.db-shm"}
    assert found[folder] == 0o700, "the folder itself keeps everybody else out"


def test_the_key_stays(tmp_path: Path) -> None:
    """A token made before a restart is good after it; without the key, or with another, there is no start."""
    with wiring.open_house(of(tmp_path, auth="token")) as house:
        first = house.access.first_start()
        assert first is not None
    with wiring.open_house(of(tmp_path, auth="token")) as house:
        assert house.access.authenticate(f"Bearer {first.secret}").actor.name == "admin"
        assert house.access.first_start() is None
    key = of(tmp_path).token_key_path
    key.unlink()
    with pytest.raises(errors.InvalidSetting, match="backup"), wiring.open_house(of(tmp_path)):
        pass
    key.write_bytes(bytes(32))
    with pytest.raises(errors.InvalidSetting, match="another key"), wiring.open_house(of(tmp_path)):
        pass


def test_a_damaged_key_is_named(tmp_path: Path) -> None:
    """A key that is too short is no key, and is not silently replaced."""
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "token.key").write_bytes(b"short")
    with pytest.raises(errors.InvalidSetting, match=r"token\.key"), wiring.open_house(of(tmp_path)):
        pass


def test_one_server_for_one_folder(tmp_path: Path) -> None:
    """A second house on the same folder is refused while the first stands, and no longer."""
    with wiring.open_house(of(tmp_path)), pytest.raises(errors.FolderInUse), wiring.open_house(of(tmp_path)):
        pass
    with wiring.open_house(of(tmp_path)):
        pass


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """The message names the folder and the way out."""
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(errors.InvalidSetting, match="--data"),
        wiring.open_house(of(tmp_path / "file" / "data")),
    ):
        pass


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    """A link planted in the folder does not make us write elsewhere."""
    os.symlink(tmp_path / "elsewhere", tmp_path / "server.lock")
    with pytest.raises(errors.InvalidSetting), wiring.open_house(of(tmp_path)):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_the_default_policy_follows_the_mode(tmp_path: Path) -> None:
    """Alone nobody else can be asked; with users somebody must."""
    for auth, expected in (("local", policy.ALONE), ("token", policy.TEAM)):
        with wiring.open_house(of(tmp_path / auth, auth=auth)) as house:
            assert house.access.mode is AuthMode(auth)
            found = house.desk.read(SYSTEM_CONTEXT, house.promotions.get_policy, None)
            assert found.policy == expected


def test_blobs_lie_where_the_settings_say(tmp_path: Path) -> None:
    """A folder by default or by name; a bucket by its address."""
    with wiring.open_house(of(tmp_path / "a", blobs=str(tmp_path / "b"))) as house:
        assert isinstance(house.blobs, FolderBlobs)
    assert (tmp_path / "b" / "sha256").is_dir()


@pytest.mark.req("V3")
def test_small_files_are_put_back_when_the_house_is_opened(tmp_path: Path) -> None:
    """What a loss of power took is there before anybody asks; an orderly end leaves nothing to put back."""
    digest = digest_of(b"small")
    with pytest.raises(KeyboardInterrupt), wiring.open_house(of(tmp_path)) as house:
        house.desk.do(SYSTEM_CONTEXT, house.artifacts.small.keep, digest, b"small")
        assert house.blobs.delete(digest)
        raise KeyboardInterrupt
    with wiring.open_house(of(tmp_path)) as house:
        assert content(house.blobs, digest) == b"small"
        house.desk.do(SYSTEM_CONTEXT, house.artifacts.small.keep, digest, b"small")
    with wiring.open_house(of(tmp_path)) as house:
        assert house.blobs.delete(digest)
    with wiring.open_house(of(tmp_path)) as house:
        assert house.blobs.stat(digest) is None


def test_a_small_secret_is_written_whole(tmp_path: Path) -> None:
    """It is private, replaces what was there, and leaves nothing beside it."""
    place = tmp_path / "made" / "secret"
    for text in ("one", "two"):
        wiring.write_private(place, text)
        assert place.read_text() == text
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert os.listdir(place.parent) == ["secret"]
