"""Who may ask a gateway anything: those who show one of its callers' tokens, where it has any.

The tokens stand in a file, one a line, so that a new one can be handed out before the former is taken away.
What callers may never do, with or without a token, is command: that is the local door's (`control.py`).
"""

import hashlib
import ipaddress
from pathlib import Path

from modelkeep import telemetry
from modelkeep.core import errors
from modelkeep.serving.options import GatewayOptions
from modelkeep.serving.origins import check_origins

TOKENS_MAX = 64
"""In one file: each request is held against them all."""
FILE_MAX_BYTES = 64 * 1024
TOKEN_MIN_BYTES = 16
"""A shorter one could be guessed by trying."""

log = telemetry.Log("gateway.guard")


class Guard:
    """The tokens of one file as they were when it was last read. They are kept as digests, so that how long a
    comparison takes says nothing about them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: frozenset[bytes] = frozenset()
        self._read_ns = -1

    def refresh(self) -> None:
        """Read the file if it has changed. What cannot be read or used leaves the former tokens as they
        are."""
        try:
            changed_ns = self._path.stat().st_mtime_ns
            if changed_ns != self._read_ns:
                self._read_ns = changed_ns
                self._known = read_tokens(self._path)
        except (OSError, errors.InvalidSetting) as problem:
            if self._read_ns != 0:
                log.error("The callers' tokens cannot be read; the former ones stand.", error=str(problem))
            self._read_ns = 0

    def admits(self, headers: dict[bytes, bytes]) -> bool:
        """Whether a request carries one of the tokens."""
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        return scheme.lower() == b"bearer" and _digest(token.strip()) in self._known


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def read_tokens(path: Path) -> frozenset[bytes]:
    """The digests of a file's tokens, one a line; empty lines and those that begin with # are passed over.

    Raises:
        InvalidSetting: it cannot be read, has none, has too many, or one that is too short.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(FILE_MAX_BYTES + 1)
    except OSError as problem:
        raise errors.InvalidSetting(
            f"The callers' tokens in {path} cannot be read: {problem.strerror}."
        ) from problem
    lines = [line.strip() for line in data.splitlines()]
    tokens = [line for line in lines if line and not line.startswith(b"#")]
    if not 1 <= len(tokens) <= TOKENS_MAX or len(data) > FILE_MAX_BYTES:
        raise errors.InvalidSetting(f"Write 1 to {TOKENS_MAX} tokens into {path}, one a line.")
    if min(len(token) for token in tokens) < TOKEN_MIN_BYTES:
        raise errors.InvalidSetting(
            f"A token in {path} has fewer than {TOKEN_MIN_BYTES} characters; make longer ones."
        )
    return frozenset(_digest(token) for token in tokens)


def check_openness(options: GatewayOptions) -> None:
    """Refuse an address beyond this machine that nobody guards, and say who may ask where somebody chose it.

    Raises:
        InvalidSetting: anybody who reaches the address could ask, and nobody said that this is meant; or the
            tokens cannot be used, or what is named is no origin.
    """
    check_origins(options.cors_origins)
    if options.callers_token_file is not None:
        read_tokens(options.callers_token_file)
        return
    if is_loopback(options.host):
        return
    if not options.open:
        raise errors.InvalidSetting(
            f"Listening on {options.host} would let anybody ask for predictions and read what is served; add "
            "--callers-token FILE, or --open where the network lets in your callers alone.",
            field="gateway_host",
        )
    log.warning(
        "Anybody who reaches the gateway may ask for predictions and read its pages; commands are taken from "
        "this machine alone.",
        host=options.host,
    )


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone. A name is none, but for localhost."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
