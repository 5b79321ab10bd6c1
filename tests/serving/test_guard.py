"""Who may ask a gateway, and which addresses it takes without being told so."""

import os
from pathlib import Path

import pytest

from modelkeep.core import errors
from modelkeep.serving.guard import TOKENS_MAX, Guard, check_openness, is_loopback, read_tokens
from modelkeep.serving.options import GatewayOptions

pytestmark = pytest.mark.req("S1", "G10")

TOKEN = "a-token-of-some-length"


def asked(token: str, scheme: str = "Bearer") -> dict[bytes, bytes]:
    """The headers of a caller."""
    return {b"authorization": f"{scheme} {token}".encode()}


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False),
        ("::", False), ("10.0.0.7", False), ("gateway.example", False), ("", False),
    ],
)  # fmt: skip
def test_only_this_machines_addresses_need_no_guard(tmp_path: Path, host: str, own: bool) -> None:
    """Every other address is refused with both ways on, unless it is guarded or meant to be open."""
    assert is_loopback(host) is own
    options = GatewayOptions(data=tmp_path, host=host)
    if own:
        check_openness(options)
    else:
        with pytest.raises(errors.InvalidSetting, match=r"--callers-token FILE, or --open"):
            check_openness(options)
    (tmp_path / "tokens").write_text(TOKEN)
    check_openness(GatewayOptions(data=tmp_path, host=host, open=True))
    check_openness(GatewayOptions(data=tmp_path, host=host, callers_token_file=tmp_path / "tokens"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "cannot be read"), ("", "Write 1 to"), ("# nothing\n\n", "Write 1 to"),
        ("short\n", "fewer than"), (f"{TOKEN}\n" * (TOKENS_MAX + 1), "Write 1 to"),
        (f"{TOKEN}\n#{'x' * 70_000}", "Write 1 to"),
    ],
)  # fmt: skip
def test_tokens_that_guard_nothing_are_refused(tmp_path: Path, text: str | None, told: str) -> None:
    """A file that is missing, empty, too long or easily guessed does not start a gateway."""
    path = tmp_path / "tokens"
    if text is not None:
        path.write_text(text)
    with pytest.raises(errors.InvalidSetting, match=told):
        check_openness(GatewayOptions(data=tmp_path, host="0.0.0.0", callers_token_file=path))


def test_tokens_can_be_exchanged_while_it_runs(tmp_path: Path) -> None:
    """A new token counts beside the former, then alone; a file that is gone or broken changes nothing; before
    the first reading nobody is let in."""
    path, other = tmp_path / "tokens", "another-token-as-long"
    guard = Guard(path)
    guard.refresh()
    assert not guard.admits(asked(TOKEN))
    for number, (text, one, two) in enumerate(
        [
            (TOKEN, True, False),
            (f"{TOKEN}\r\n {other} \n", True, True),
            (other, False, True),
            ("x", False, True),
        ]
    ):
        path.write_text(text)
        os.utime(path, ns=(number, number + 1))
        guard.refresh()
        assert (guard.admits(asked(TOKEN)), guard.admits(asked(other))) == (one, two)
    path.unlink()
    guard.refresh()
    assert guard.admits(asked(other, "bearer"))
    for headers in ({}, asked(""), asked(other, "Basic"), {b"authorization": other.encode()}):
        assert not guard.admits(headers)
    path.write_text(TOKEN)
    guard.refresh()
    assert guard.admits(asked(TOKEN))
    assert len(read_tokens(path)) == 1
