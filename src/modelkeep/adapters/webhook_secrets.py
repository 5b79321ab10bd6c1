"""Where the secrets of webhooks are: encrypted in the database, in the server's environment, or in its files.

What is kept in the database is AES-256-GCM under a key that is made of the installation's own; the webhook's
id goes into the seal, so that one cannot be moved to another webhook. A secret that is only named is looked
up each time it is needed, under names that cannot reach anything else: environment variables that begin with
`WEBHOOK_SECRET_`, and plain file names in one folder. Nothing here prints or logs a secret.
"""

import base64
import binascii
import hashlib
import hmac
import os
import re
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

from modelkeep.core import errors, values

ENVIRONMENT_PREFIX = "WEBHOOK_SECRET_"
"""What the names of variables begin with that a webhook may name."""
FILE_MAX_BYTES = 4_096
"""Bytes of a file with a secret."""
NONCE_BYTES = 12
"""Random bytes of each seal, as AES-GCM takes them."""

_FORM = "v1"
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # no link, and no waiting at a pipe
_PURPOSE = b"modelkeep.webhook_secret.v1"
_VARIABLE = re.compile(r"[A-Z0-9_]{1,100}", re.ASCII)


class WebhookSecrets:
    """Seals secrets and finds them again. May be shared by threads."""

    def __init__(self, key: bytes, folder: Path, variable: Callable[[str], str | None]) -> None:
        """
        Args:
            key: the installation's own, at least 32 bytes.
            folder: where files with secrets are.
            variable: a variable of the environment by its name.
        """
        self._key = hmac.new(key, _PURPOSE, hashlib.sha256).digest()
        self._key_id = hashlib.sha256(_PURPOSE + self._key).hexdigest()[:8]
        self._folder = folder
        self._variable = variable

    def seal(self, webhook: str, text: str) -> str:
        """A text as the database keeps it: readable with the installation's key, for this webhook alone."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce = secrets.token_bytes(NONCE_BYTES)
        sealed = AESGCM(self._key).encrypt(nonce, text.encode(), webhook.encode())
        return f"{_FORM}:{self._key_id}:{base64.b64encode(nonce + sealed).decode()}"

    def open(self, webhook: str, sealed: str) -> str:
        """What was sealed.

        Raises:
            InvalidSetting: it was sealed with another installation's key.
            DigestMismatch: it was changed, or belongs to another webhook.
        """
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        form, _, rest = sealed.partition(":")
        key_id, _, text = rest.partition(":")
        if form == _FORM and key_id and key_id != self._key_id:
            raise errors.InvalidSetting(
                "The webhooks' secrets were sealed with another key; give this server the key file that the "
                "database was used with (token_key_file names it).",
                field="token_key_file",
            )
        try:
            data = base64.b64decode(text, validate=True)
            plain = AESGCM(self._key).decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], webhook.encode())
        except (InvalidTag, binascii.Error, ValueError) as problem:
            raise errors.DigestMismatch(
                f"The secret of the webhook {webhook} was changed in the database; give it a new one with "
                f"'modelkeep webhook rotate {webhook}'."
            ) from problem
        return plain.decode()

    def find(self, name: str) -> str:
        """A secret by its name, `env:NAME` or `file:NAME`.

        Raises:
            InvalidWebhook: the name is none of a secret, or there is no such secret.
        """
        kind, _, rest = name.partition(":")
        found = self._in_environment(rest) if kind == "env" else self._in_file(rest)
        if not found:
            raise errors.InvalidWebhook(
                f"The server has no secret {values.quoted(name, 120)}; set it there first.", field="secret"
            )
        return found

    def _in_environment(self, name: str) -> str | None:
        if not name.startswith(ENVIRONMENT_PREFIX) or not _VARIABLE.fullmatch(name):
            raise errors.InvalidWebhook(
                f"A variable with a webhook's secret is called {ENVIRONMENT_PREFIX}NAME, in capitals.",
                field="secret",
            )
        return self._variable(name)

    def _in_file(self, name: str) -> str | None:
        values.check_name(name, "secret file")
        try:
            descriptor = os.open(self._folder / name, _READ)
        except OSError:
            return None
        try:
            data = os.read(descriptor, FILE_MAX_BYTES) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
        finally:
            os.close(descriptor)
        try:
            return data.decode().strip()
        except UnicodeDecodeError:
            return None
