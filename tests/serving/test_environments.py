"""Environments of versions: which one a version asks for, and how it is built, shared, kept and swept."""

import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.core import errors
from modelkeep.core.routing import VersionSpec
from modelkeep.serving import environments
from modelkeep.serving.environments import UNUSED_KEPT, Environments, Lock, lock_of
from tests.serving import models
from tests.serving.wheels import make_wheel, only_from

pytestmark = pytest.mark.skipif(environments.find_uv() is None, reason="uv is not installed")

MINE = f"{sys.version_info[0]}.{sys.version_info[1]}"


def version(folder: Path, **files: str) -> VersionSpec:
    """A version with a pickled model and these files, as a gateway has it on its disk."""
    contents = {"model.joblib": b"x", **{name: text.encode() for name, text in files.items()}}
    for path, data in contents.items():
        (folder / path).write_bytes(data)
    return models.spec(contents, "1.0.0")


def lock(folder: Path, requirements: str, **files: str) -> Lock | None:
    """What a version of this list asks for."""
    return lock_of(version(folder, **{"requirements.txt": requirements}, **files), folder)


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels, from which alone uv takes packages."""
    only_from(tmp_path / "wheels", monkeypatch)
    return tmp_path / "wheels"


@pytest.fixture
def made(tmp_path: Path) -> Environments:
    """No environment yet."""
    return Environments(tmp_path / "environments", build_timeout_s=60)


def run(python: Path, program: str) -> str:
    """What a program prints there, without this process's variables."""
    done = subprocess.run([python, "-P", "-c", program], capture_output=True, text=True, env={}, check=False)
    return done.stdout.strip() or done.stderr


# ---------------------------------------------------------------------------------------------- what is asked


@pytest.mark.req("S2")
def test_a_version_asks_for_what_it_lists(tmp_path: Path) -> None:
    """Exact versions make a lock; what installs packages, comments and where they come from do not count."""
    found = lock(
        tmp_path, "--index-url https://x.example\nB_b==2.0 # why\na==1.0; python_version > '3'\npip>20\n"
    )
    assert found is not None
    assert found.entries == ("a==1.0; python_version > '3'", "b-b==2.0")
    assert not found.hashed
    assert lock(tmp_path, "pip\nsetuptools>60\n") is None
    assert lock_of(models.spec({"model.joblib": b"x"}, "1.0.0"), tmp_path) is None


@pytest.mark.req("S2")
def test_a_model_that_is_data_needs_none(tmp_path: Path) -> None:
    """An ONNX model answers the same in the gateway's own environment, whatever it was trained with."""
    files = {"model.joblib": b"x", "model.onnx": b"y", "requirements.txt": b"a>=1"}
    assert lock_of(models.spec(files, "1.0.0"), tmp_path) is None
    assert lock_of(models.spec({"requirements.txt": b"a==1"}, "1.0.0"), tmp_path) is None


@pytest.mark.req("S2")
@given(st.lists(st.sampled_from("abcdef"), unique=True, min_size=1), st.randoms())
def test_equal_lists_are_one_environment(names: list[str], random: random.Random) -> None:
    """The order of the entries counts as little as in the registry."""
    import tempfile

    with tempfile.TemporaryDirectory() as there:
        first = lock(Path(there), "".join(f"{name}==1\n" for name in names))
        random.shuffle(names)
        second = lock(Path(there), "".join(f"{name.upper()} == 1\n" for name in names))
        more = lock(Path(there), "".join(f"{name}==1\n" for name in [*names, "g"]))
    assert first == second
    assert first is not None
    assert more is not None
    assert first.key != more.key


OPEN = [
    "a>=1",
    "a",
    "a==1.*",
    "a @ https://x.example/a.whl",
    "-r other.txt",
    "-e .",
    "./a.whl",
    "a==1 --config-settings=x",
]


@pytest.mark.req("S2")
@pytest.mark.parametrize("entry", OPEN)
def test_a_list_that_leaves_something_open_is_refused(tmp_path: Path, entry: str) -> None:
    """Ranges, addresses, files and options: none says what would be installed."""
    with pytest.raises(errors.Invalid, match="list exact versions"):
        lock(tmp_path, f"b==1\n{entry}\n")


@pytest.mark.req("S2")
def test_another_python_is_refused(tmp_path: Path) -> None:
    """What was compiled for one Python does not load in another; the same minor version does."""
    assert lock(tmp_path, "a==1", **{"python_env.yaml": f"python: {MINE}.0"}) is not None
    with pytest.raises(errors.Invalid, match=r"Python 3\.1\.2"):
        lock(tmp_path, "a==1", **{"python_env.yaml": "python: 3.1.2"})


@pytest.mark.req("S2")
def test_a_list_that_was_changed_on_the_disk_is_not_built(tmp_path: Path) -> None:
    """What is installed is what was registered."""
    spec = version(tmp_path, **{"requirements.txt": "a==1"})
    (tmp_path / "requirements.txt").write_text("b==1")
    with pytest.raises(errors.DigestMismatch, match="changed on this machine"):
        lock_of(spec, tmp_path)


# ---------------------------------------------------------------------------------------------- what is built


def wanted(*entries: str) -> Lock:
    """A lock of these."""
    return Lock(key=f"{abs(hash(entries)):064x}", entries=entries, hashed=all("--hash" in e for e in entries))


@pytest.mark.req("S2")
def test_an_environment_has_its_packages_and_the_serving_code(made: Environments, wheels: Path) -> None:
    """What it lists comes first, before the gateway's own; of the gateway it sees what a worker needs."""
    lines = [
        make_wheel(wheels, "tiny", "1.0", "WHO = 'tiny'"),
        make_wheel(wheels, "yaml", "9.9", "WHO = 'its own'"),
    ]
    python = made.python(wanted(*lines))
    assert run(python, "import tiny, yaml; print(tiny.WHO, yaml.WHO)") == "tiny its own"
    assert run(python, "import modelkeep, msgspec, numpy; print(modelkeep.__version__ != '')") == "True"
    assert "No module named 'pytest'" in run(python, "import pytest")
    plain = made.python(wanted(lines[0]))
    assert run(plain, "import modelkeep.serving.worker, yaml; print(yaml.safe_load('1'))") == "1"


@pytest.mark.req("S2")
def test_equal_locks_are_built_once(made: Environments, wheels: Path) -> None:
    """Who comes while it is built waits, and gets the same."""
    asked, found = wanted(make_wheel(wheels, "tiny", "1.0", "")), list[Path]()
    threads = [threading.Thread(target=lambda: found.append(made.python(asked))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    built = found[0].lstat().st_ctime_ns
    assert made.python(asked).lstat().st_ctime_ns == built


@pytest.mark.req("S2")
def test_what_cannot_be_built_says_why_and_leaves_nothing(made: Environments, wheels: Path) -> None:
    """A package that is not there, and one whose bytes are others than the lock names."""
    line = make_wheel(wheels, "tiny", "1.0", "")
    with pytest.raises(errors.Unavailable, match="absent"):
        made.python(wanted("absent==1.0"))
    with pytest.raises(errors.Unavailable, match=r"(?i)hash"):
        made.python(wanted(line[:-8] + "00000000"))
    folder = wheels.with_name("environments")
    assert {path.name for path in folder.iterdir()} <= {"parts", "incoming", "cache"}
    assert not list((folder / "incoming").iterdir())
    assert made.python(wanted(line)).exists()


def slow_uv(tmp_path: Path) -> str:
    """A program that takes its time."""
    path = tmp_path / "slow-uv"
    path.write_text("#!/bin/sh\necho busy fetching\nexec sleep 60\n")
    path.chmod(0o700)
    return str(path)


@pytest.mark.req("S2")
def test_building_has_a_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is over the process is ended, and its last words are told."""
    monkeypatch.setattr(environments, "find_uv", lambda: slow_uv(tmp_path))
    made = Environments(tmp_path / "environments", build_timeout_s=2.5)
    with pytest.raises(errors.TimedOut, match=r"within 2\.5 s\. busy fetching"):
        made.python(wanted("a==1"))


@pytest.mark.req("S2")
def test_a_gateway_that_stops_waits_for_no_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is being built is ended, and nothing is begun any more."""
    monkeypatch.setattr(environments, "find_uv", lambda: slow_uv(tmp_path))
    made, ended = Environments(tmp_path / "environments", build_timeout_s=60), list[str]()

    def build() -> None:
        try:
            made.python(wanted("a==1"))
        except errors.Unavailable as problem:
            ended.append(problem.message)

    thread = threading.Thread(target=build)
    thread.start()
    until = time.monotonic() + 60
    while not made._running and time.monotonic() < until:
        time.sleep(0.01)
    made.close()
    thread.join(60)
    build()
    assert len(ended) == 2


def test_without_uv_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What to install, or to leave out."""
    monkeypatch.setattr(environments, "find_uv", lambda: None)
    with pytest.raises(errors.InvalidSetting, match="install uv"):
        Environments(tmp_path, build_timeout_s=1)


@pytest.mark.req("S2")
def test_what_no_version_uses_goes(tmp_path: Path, made: Environments) -> None:
    """Environments in use stay, and so do the last few that were."""
    folder = tmp_path / "environments"
    for number in range(UNUSED_KEPT + 3):
        (folder / f"{number:064x}").mkdir()
        os.utime(folder / f"{number:064x}", (number, number))
    assert made.sweep([f"{0:064x}"]) == 2
    left = {path.name for path in folder.iterdir()} - {"parts", "incoming", "cache"}
    assert left == {f"{number:064x}" for number in (0, *range(3, UNUSED_KEPT + 3))}
    assert made.sweep([]) == 1


@pytest.mark.req("S2")
def test_a_folder_that_was_moved_still_serves(tmp_path: Path, made: Environments, wheels: Path) -> None:
    """The serving code is found again, and what a start left unfinished is thrown out."""
    asked = wanted(make_wheel(wheels, "tiny", "1.0", ""))
    made.python(asked)
    (tmp_path / "environments" / "incoming" / "left").mkdir()
    (tmp_path / "environments").rename(tmp_path / "elsewhere")
    again = Environments(tmp_path / "elsewhere", build_timeout_s=60)
    assert not (tmp_path / "elsewhere" / "incoming" / "left").exists()
    assert again.is_built(asked)
    assert run(again.python(asked), "import tiny, modelkeep; print('found')") == "found"
