"""Wheels that tests make for themselves, so that environments are built of something without any index."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


def make_wheel(folder: Path, name: str, version: str, source: str, *, module: str | None = None) -> str:
    """Put a wheel of one module into a folder; its line of a lock, with its hash."""
    module, info = module or name, f"{name}-{version}.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    files = {
        f"{module}/__init__.py": source,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{each},,\n" for each in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(path, "w") as wheel:
        for each, text in files.items():
            wheel.writestr(zipfile.ZipInfo(each), text)
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def only_from(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have uv take packages from this folder, and ask nobody."""
    monkeypatch.setenv("UV_FIND_LINKS", str(folder))
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_OFFLINE", "1")


def as_pip_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have uv ask the index that pip is set to: it does not read pip's settings itself."""
    settings = {"index-url": "UV_DEFAULT_INDEX", "find-links": "UV_FIND_LINKS", "cert": "SSL_CERT_FILE"}
    for setting, variable in settings.items():
        for place in (f":env:.{setting}", f"global.{setting}"):
            words = [sys.executable, "-m", "pip", "config", "get", place]
            said = subprocess.run(words, capture_output=True, text=True, check=False)
            if said.returncode == 0 and said.stdout.strip():
                monkeypatch.setenv(variable, said.stdout.strip())
                break
