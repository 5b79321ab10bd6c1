"""Environments of versions: Python environments that hold what the versions' own locks list, built by uv and
shared by versions of equal locks.

A version asks for one by the list of packages among its files. What is built is named by the digest of the
list, the Python and the platform, is made beside its place and moved there whole, and goes when no version
uses it. Only wheels are installed, so that nothing of a package runs before a worker runs it. The gateway's
own serving code is put behind the environment's packages, where it hides none of them. What the packages do
is the worker's affair, and from where uv takes them that of whoever sets uv.
"""

import contextlib
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

from modelkeep import telemetry
from modelkeep.core import codec, environment_lock, errors, values
from modelkeep.core.mlmodel import MLMODEL
from modelkeep.core.provenance import without_userinfo
from modelkeep.core.routing import VersionSpec
from modelkeep.serving import runtimes

LOCKED = "locked"
"""What the gateway is told to have environments at all."""
LOCK_NAMES = ("requirements.lock", "requirements.txt")
"""The files of a version that list its packages, the telling one first."""
PYTHON_NAME = "python_env.yaml"
"""Where MLflow states the Python that a model was made with."""
UNUSED_KEPT = 3
"""Environments that no version uses any more which stay: a rollback often follows."""
LOG_SHOWN = 1_200
"""Characters of uv's last words that an error repeats."""
_DOMAIN = b"modelkeep.serving.environment.v1\n"
_PARTS = ("modelkeep", "msgspec", "yaml", "_yaml", "numpy")
"""What a worker imports before it imports a model's library."""
_PINNED = re.compile(
    r"[a-z0-9-]+(\[[a-z0-9._,-]*\])?={2,3}[A-Za-z0-9.!+_-]+(; [^#\\]*?)?((?: --hash=\w+:\w+)*)"
)
_FLOATING = re.compile(r"(pip|setuptools|wheel)\b")
_BEGINNING_BYTES = 64
"""Of a file, as much as tells what kind of model it is."""

log = telemetry.Log("gateway.environments")


class Lock(NamedTuple):
    """What a version's environment has to hold. `key`: equal ones are one environment."""

    key: str
    entries: tuple[str, ...]
    hashed: bool


class _Files(Mapping[str, bytes]):
    """The files of a version by path, as much of each as tells which runtime loads it."""

    def __init__(self, spec: VersionSpec, folder: Path) -> None:
        self._paths = {entry.path for entry in spec.files}
        self._folder = folder

    def __getitem__(self, path: str) -> bytes:
        if path not in self._paths:
            raise KeyError(path)
        try:
            with open(self._folder / path, "rb") as file:
                return file.read(environment_lock.LOCK_MAX_BYTES if path == MLMODEL else _BEGINNING_BYTES)
        except OSError:
            return b""

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


def lock_of(spec: VersionSpec, folder: Path) -> Lock | None:
    """The environment that a version asks for; None where the gateway's own does: it lists no packages, or
    its model is data that does not depend on them.

    Raises:
        Invalid: the list leaves something open, or names another Python than this gateway's.
        DigestMismatch: the list is not what was registered.
    """
    try:
        if runtimes.choose(spec, _Files(spec, folder))[1] in runtimes.SELF_CONTAINED:
            return None
    except errors.ModelkeepError:
        return None  # the worker says it better
    paths = {entry.path for entry in spec.files}
    name = next((name for name in LOCK_NAMES if name in paths), None)
    if name is None:
        return None
    _check_python(spec, folder)
    listed = environment_lock.read_requirements(_checked(spec, folder, name))
    entries = []
    for entry in listed.entries:
        match = _PINNED.fullmatch(entry)
        if match is None or "--" in (match[2] or ""):
            if _FLOATING.match(entry):
                continue
            raise errors.Invalid(
                f"{name!r} of {spec.label} leaves {values.quoted(entry, 60)} open; list exact versions "
                "(name==1.2.3), of which the index that uv is set to has wheels."
            )
        entries.append(entry)
    if not entries:
        return None
    told = [entries, platform.python_implementation(), platform.python_version(), sysconfig.get_platform()]
    key = hashlib.sha256(_DOMAIN + codec.canonical(told)).hexdigest()
    return Lock(key=key, entries=tuple(entries), hashed=all("--hash=" in entry for entry in entries))


def _checked(spec: VersionSpec, folder: Path, name: str) -> bytes:
    entry = next(entry for entry in spec.files if entry.path == name)
    try:
        data = (folder / name).read_bytes()
    except OSError as problem:
        raise errors.DigestMismatch(f"The file {name!r} cannot be read: {problem.strerror}.") from problem
    if "sha256:" + hashlib.sha256(data).hexdigest() != entry.digest:
        raise errors.DigestMismatch(
            f"The file {name!r} of {spec.label} was changed on this machine; nothing is built from it.",
            path=name,
        )
    return data


def _check_python(spec: VersionSpec, folder: Path) -> None:
    """Refuse a version of another Python: what was compiled for one does not load in another."""
    if all(entry.path != PYTHON_NAME for entry in spec.files):
        return
    document = codec.parse_yaml(_checked(spec, folder, PYTHON_NAME))
    stated = str(document.get("python", "")) if isinstance(document, dict) else ""
    mine = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if stated and ".".join(stated.split(".")[:2]) != mine:
        raise errors.Invalid(
            f"{spec.label} was made with Python {values.printable(stated)[:20]}, and this gateway runs "
            f"{mine}; serve it from a gateway of its Python."
        )


def find_uv() -> str | None:
    """The program uv: beside this Python, else on the way of programs."""
    beside = Path(sys.executable).with_name("uv")
    return str(beside) if beside.is_file() else shutil.which("uv")


class Environments:
    """A folder of environments. Blocking; the supervisor calls it in threads."""

    def __init__(self, folder: Path, *, build_timeout_s: float) -> None:
        """
        Raises:
            InvalidSetting: uv is not there.
        """
        uv = find_uv()
        if uv is None:
            raise errors.InvalidSetting(
                "Building environments needs the program uv; install uv, or leave out --environments.",
                field="gateway_environments",
            )
        self._uv = uv
        self._folder = folder
        self._timeout_s = build_timeout_s
        self._parts = folder / "parts"
        self._incoming = folder / "incoming"
        self._cache = folder / "cache"
        self._guard = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._running: set[subprocess.Popen[bytes]] = set()
        self._closed = False
        shutil.rmtree(self._incoming, ignore_errors=True)  # of a start that was cut short
        self._incoming.mkdir(parents=True, mode=0o700)
        self._lay_out_parts()

    def _lay_out_parts(self) -> None:
        """A folder that holds the serving code and what it imports, and nothing else of this gateway's."""
        shutil.rmtree(self._parts, ignore_errors=True)
        self._parts.mkdir(mode=0o700)
        for name in _PARTS:
            found = importlib.util.find_spec(name)
            for place in (found.submodule_search_locations or ()) if found is not None else ():
                (self._parts / name).symlink_to(Path(place).resolve(), target_is_directory=True)
                libraries = Path(place).resolve().with_name(f"{name}.libs")
                if libraries.is_dir():
                    (self._parts / libraries.name).symlink_to(libraries, target_is_directory=True)
                break

    def is_built(self, lock: Lock) -> bool:
        """Whether there is nothing to wait for."""
        return (self._folder / lock.key / "bin" / "python").exists()

    def python(self, lock: Lock) -> Path:
        """The interpreter of an environment, which is built where it is not there.

        Raises:
            Unavailable: it cannot be built; with uv's last words.
            TimedOut: not in time.
            StorageFull: there is no room for it.
        """
        folder = self._folder / lock.key
        with self._guard:
            guard = self._locks.setdefault(lock.key, threading.Lock())
        try:
            with guard:
                if not self.is_built(lock):
                    self._build(lock, folder)
                os.utime(folder)
                self._reach_parts(folder)
        except OSError as problem:
            raise errors.StorageFull(f"An environment cannot be kept: {problem.strerror}.") from problem
        return folder / "bin" / "python"

    def _reach_parts(self, folder: Path) -> None:
        """Have the environment find the serving code, behind all that it has itself."""
        for packages in folder.glob("lib/python3*/site-packages"):
            path, line = packages / "modelkeep-parts.pth", f"{self._parts}\n"
            if not path.exists() or path.read_text() != line:
                path.write_text(line)

    def _build(self, lock: Lock, folder: Path) -> None:
        beside = self._incoming / lock.key
        shutil.rmtree(beside, ignore_errors=True)
        listed = self._incoming / f"{lock.key}.txt"
        listed.write_text("".join(f"{entry}\n" for entry in lock.entries))
        log.info("An environment is built.", environment=lock.key, packages=len(lock.entries))
        common = ["--cache-dir", str(self._cache), "--no-python-downloads", "--color", "never"]
        try:
            self._run([self._uv, "venv", *common, "--no-project", "--relocatable",
                       "--python", sys.executable, str(beside)])  # fmt: skip
            hashes = ["--require-hashes"] if lock.hashed else []
            self._run([self._uv, "pip", "install", *common, "--only-binary", ":all:", *hashes, "--python",
                       str(beside / "bin" / "python"), "--requirement", str(listed)])  # fmt: skip
            os.rename(beside, folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
            listed.unlink(missing_ok=True)

    def _run(self, words: list[str]) -> None:
        """Run uv to its end. It gets this process's variables: they say which index it asks."""
        output = self._incoming / f"log-{threading.get_ident()}"
        with open(output, "w+b") as file:
            output.unlink()
            process = subprocess.Popen(
                words,
                cwd=self._incoming,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
            with self._guard:
                self._running.add(process)
                if self._closed:
                    _kill(process)
            try:
                code = process.wait(self._timeout_s)
            except subprocess.TimeoutExpired:
                _kill(process)
                raise errors.TimedOut(
                    f"The environment was not built within {self._timeout_s:g} s. {_last_words(file)}"
                ) from None
            finally:
                with self._guard:
                    self._running.discard(process)
            if code:
                raise errors.Unavailable(f"The environment cannot be built. {_last_words(file)}")

    def sweep(self, keep: Collection[str]) -> int:
        """Drop environments that no version uses, but for the most recently used ones. Returns how many
        went."""
        fixed = {self._parts.name, self._incoming.name, self._cache.name}
        unused = [path for path in self._folder.iterdir() if path.name not in fixed | set(keep)]
        unused.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        gone = unused[UNUSED_KEPT:]
        for path in gone:
            shutil.rmtree(path, ignore_errors=True)
        if gone:  # what the others share with it they keep: the files are linked
            shutil.rmtree(self._cache, ignore_errors=True)
        return len(gone)

    def close(self) -> None:
        """End what is being built, and begin nothing more."""
        with self._guard:
            self._closed = True
            for process in self._running:
                _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_words(file: BinaryIO) -> str:
    file.seek(0)
    text = file.read().decode("utf-8", "replace").strip()
    return without_userinfo(" ".join(text.split()))[-LOG_SHOWN:]
