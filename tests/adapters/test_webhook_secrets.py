"""Secrets of webhooks: what is sealed opens for its webhook alone, and a name reaches nothing else."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.adapters.webhook_secrets import WebhookSecrets
from modelkeep.core import errors

pytestmark = pytest.mark.req("G16")

KEY = b"k" * 32


def secrets(folder: Path = Path("nowhere"), key: bytes = KEY, **variables: str) -> WebhookSecrets:
    """A keeper of secrets."""
    return WebhookSecrets(key, folder, variables.get)


@given(st.text(max_size=200))
def test_what_is_sealed_comes_back(text: str) -> None:
    """Whole, never the same twice, and not to be read without the key."""
    keeper = secrets()
    sealed = keeper.seal("hook_1", text)
    assert keeper.open("hook_1", sealed) == text
    assert keeper.seal("hook_1", text) != sealed
    assert len(text) < 8 or text not in sealed


def test_a_seal_belongs_to_one_webhook_and_one_installation() -> None:
    """Moved to another row, changed by a bit, or read with another key: it does not open."""
    keeper = secrets()
    sealed = keeper.seal("hook_1", "word")
    with pytest.raises(errors.DigestMismatch):
        keeper.open("hook_2", sealed)
    with pytest.raises(errors.DigestMismatch):
        keeper.open("hook_1", sealed[:-4] + ("AAA=" if sealed[-4:] != "AAA=" else "BBB="))
    with pytest.raises(errors.DigestMismatch):
        keeper.open("hook_1", "v1:")
    with pytest.raises(errors.InvalidSetting):
        secrets(key=b"o" * 32).open("hook_1", sealed)


def test_a_named_secret_is_found_where_it_is(tmp_path: Path) -> None:
    """In the environment under its prefix, or in the one folder; a line's end is no part of it."""
    (tmp_path / "ci").write_text("from a file\n")
    keeper = secrets(tmp_path, WEBHOOK_SECRET_CI="from outside")
    assert keeper.find("env:WEBHOOK_SECRET_CI") == "from outside"
    assert keeper.find("file:ci") == "from a file"


@pytest.mark.parametrize(
    "name",
    [
        "env:PATH", "env:MODELKEEP_TOKEN", "env:WEBHOOK_SECRET_NONE", "env:WEBHOOK_SECRET_a b", "env:",
        "file:../token.key", "file:/etc/passwd", "file:", "file:.", "file:..", "file:none", "file:a/b",
        "file:link", "file:binary", "file:empty", "file:folder",
    ],
)  # fmt: skip
def test_a_name_reaches_nothing_else(name: str, tmp_path: Path) -> None:
    """No other variable, no path, no link, no folder."""
    outside = tmp_path / "token.key"
    outside.write_text("the installation's key")
    folder = tmp_path / "secrets"
    folder.mkdir()
    os.symlink(outside, folder / "link")
    (folder / "binary").write_bytes(b"\xff\xfe")
    (folder / "empty").write_bytes(b"")
    (folder / "folder").mkdir()
    keeper = secrets(folder, PATH="x", MODELKEEP_TOKEN="x")
    with pytest.raises(errors.Invalid):
        keeper.find(name)
