"""Lists of packages in one normal form, so that what was installed can be compared by a digest.

Read are `requirements.txt`, `conda.yaml` and MLflow's `python_env.yaml`. The order of entries, comments,
white space, the spelling of package names and the order of hashes do not count; everything else does. Nothing
is resolved or installed, and a file that a list includes by name is not followed: such a list leaves open
what was installed, and so does an entry that allows several versions.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

from modelkeep.core import codec, errors, values
from modelkeep.core.provenance import EnvironmentLock
from modelkeep.core.values import Digest

LOCK_MAX_BYTES = 1024 * 1024
"""Bytes of one list: locks with hashes of very large environments have some hundred KiB."""
ENTRIES_MAX = 10_000
"""Entries of one list."""
KEPT = 64
"""Models whose lists are remembered as they were read: those of a team are made in a few environments."""
KEPT_BYTES = 32 * 1024
"""Bytes of the lists of such a model together."""
LOCK_FILES = ("requirements.txt", "conda.yaml", "python_env.yaml")
"""Where the files of a model have their lists, the telling ones first."""
LOCK_DOMAIN = b"modelkeep.environment.v1\n"
"""Begins what the digest of a list is taken of."""

_COMMENT = re.compile(r"(^|\s)#.*$")
_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(\[[^\]]*\])?\s*(.*)", re.DOTALL)
_PINNED = re.compile(r"={2,3}\s*[^\s,;*<>=!~]+\s*(;.*)?|@\s*\S+.*", re.DOTALL)
_CONDA = re.compile(r"(?:[\w.-]+::)?[\w.-]+={1,2}[\w.!+-]+(?:=[\w.*-]+)?", re.ASCII)
_HASH = re.compile(r"--hash[=\s](\S+)")
_HARMLESS = ("--index-url", "-i ", "--extra-index-url", "--trusted-host", "--find-links", "-f ")
"""Options that say where packages are fetched from, not which: two mirrors give the same environment."""


class Listed(NamedTuple):
    """A list in its normal form, and whether each entry names exactly one version."""

    entries: tuple[str, ...]
    pinned: bool


def read_lock(files: Mapping[str, bytes]) -> EnvironmentLock | None:
    """The lock that the files of a model state: `requirements.txt` with the Python of `python_env.yaml`, else
    `conda.yaml`; None where none of them is there or nothing stands in them.

    Args:
        files: contents by name, of those in LOCK_FILES that there are.

    Raises:
        Invalid, LimitExceeded, MalformedBody: a list is too large, or cannot be read.
    """
    given = tuple(files.get(name) for name in LOCK_FILES)
    if sum(len(data) for data in given if data is not None) <= KEPT_BYTES:
        return _read_again(*given)
    return _read(*given)


@lru_cache(maxsize=KEPT)
def _read_again(*given: bytes | None) -> EnvironmentLock | None:
    return _read(*given)


def _read(
    requirements: bytes | None, conda: bytes | None, python_env: bytes | None
) -> EnvironmentLock | None:
    if requirements is not None:
        listed = read_requirements(requirements)
        python = _python_of(python_env)
        if listed.entries:
            return _lock("requirements", (*listed.entries, *python), listed.pinned)
    if conda is not None:
        listed = read_conda(conda)
        if listed.entries:
            return _lock("conda", listed.entries, listed.pinned)
    return None


def read_named(name: str, data: bytes) -> EnvironmentLock:
    """The lock in a file that somebody names: a list of requirements or of conda by its name, any other file
    (the lock of a tool) as it stands, where line ends do not count.

    Raises:
        Invalid, LimitExceeded, MalformedBody: it is empty, too large, or cannot be read.
    """
    last = name.replace("\\", "/").rpartition("/")[2].lower()
    if last.endswith((".txt", ".in")):
        listed, kind = read_requirements(data), "requirements"
    elif last.endswith((".yaml", ".yml")) and "lock" not in last:
        listed, kind = read_conda(data), "conda"
    else:
        text = _decoded(data).replace("\r\n", "\n").strip()
        listed, kind = Listed((text,) if text else (), True), "file"
    if not listed.entries:
        raise errors.Invalid(
            f"{values.quoted(name, 60)} lists no package; name the lock file of the training environment.",
            field="environment",
        )
    return _lock(kind, listed.entries, listed.pinned)


def read_requirements(data: bytes) -> Listed:
    """The entries of a requirements file.

    Raises:
        Invalid, LimitExceeded: it is no text, or too large.
    """
    text = _decoded(data).replace("\r\n", "\n").replace("\\\n", " ")
    entries: set[str] = set()
    pinned = True
    for line in text.split("\n"):
        entry = " ".join(_COMMENT.sub("", line).split())
        if not entry or entry.startswith(_HARMLESS):
            continue
        normal, exact = _requirement(entry)
        pinned = pinned and exact
        entries.add(normal)
    return Listed(_bounded(entries), pinned)


def read_conda(data: bytes) -> Listed:
    """The entries of a conda environment, those for pip among them. Its name and channels do not count.

    Raises:
        Invalid, LimitExceeded, MalformedBody: it is no such file, or too large.
    """
    document = codec.parse_yaml(_decoded(data))
    stated = document.get("dependencies") if isinstance(document, dict) else None
    if not isinstance(stated, list):
        raise errors.Invalid(
            "A conda environment has a list 'dependencies'; this has none.", field="environment"
        )
    entries: set[str] = set()
    pinned = True
    for item in stated:
        if isinstance(item, str):
            entry = "".join(item.split()).lower()
            exact = bool(_CONDA.fullmatch(entry)) or entry.partition("<")[0] in ("pip", "setuptools", "wheel")
            entries.add(f"conda {entry.replace('==', '=')}")
        elif isinstance(item, dict) and isinstance(item.get("pip"), list):
            listed = read_requirements("\n".join(str(line) for line in item["pip"]).encode())
            exact = listed.pinned
            entries.update(listed.entries)
        else:
            exact = False
            entries.add(codec.canonical(item).decode())
        pinned = pinned and exact
    return Listed(_bounded(entries), pinned)


def _requirement(entry: str) -> tuple[str, bool]:
    """One requirement in normal form, and whether it names exactly one version. What installs the packages
    (pip and its kin) may float: it leaves nothing in them."""
    hashes = sorted(_HASH.findall(entry))
    entry = _HASH.sub("", entry).strip()
    match = _NAMED.fullmatch(entry)
    if match is None:
        return entry, False  # an option that reads another file, or an editable path
    name = re.sub(r"[-_.]+", "-", match[1]).lower()
    extras = sorted(
        {part.strip().lower() for part in (match[2] or "").strip("[]").split(",") if part.strip()}
    )
    rest = match[3].strip()
    if rest.startswith("@") or "://" in rest:
        wanted = rest
    else:
        version, semicolon, marker = rest.partition(";")
        wanted = "".join(version.split()) + (f"; {marker.strip()}" if semicolon else "")
    exact = bool(_PINNED.fullmatch(rest)) or name in ("pip", "setuptools", "wheel")
    parts = [
        name + (f"[{','.join(extras)}]" if extras else "") + wanted,
        *(f"--hash={one}" for one in hashes),
    ]
    return " ".join(parts), exact


def _python_of(data: bytes | None) -> tuple[str, ...]:
    if data is None:
        return ()
    document = codec.parse_yaml(_decoded(data))
    python = document.get("python") if isinstance(document, dict) else None
    return (f"python {python}",) if isinstance(python, str) and python else ()


def _bounded(entries: Iterable[str]) -> tuple[str, ...]:
    found = tuple(sorted(entries))
    if len(found) > ENTRIES_MAX:
        raise errors.LimitExceeded(
            f"A list of packages has at most {ENTRIES_MAX:,} entries.", field="environment"
        )
    return found


def _decoded(data: bytes) -> str:
    if len(data) > LOCK_MAX_BYTES:
        raise errors.LimitExceeded(
            f"A list of packages has at most {LOCK_MAX_BYTES:,} bytes.", field="environment"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise errors.Invalid(
            "The list of packages is not UTF-8 text; save it as such.", field="environment"
        ) from problem


def _lock(kind: str, entries: Iterable[str], pinned: bool) -> EnvironmentLock:
    hashed = hashlib.sha256(LOCK_DOMAIN + codec.canonical([kind, sorted(set(entries))]))
    return EnvironmentLock(kind=kind, digest=Digest(f"sha256:{hashed.hexdigest()}"), pinned=pinned)
