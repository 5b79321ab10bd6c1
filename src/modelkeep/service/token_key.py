"""Which key an installation hashes its tokens with. The store knows the key by its fingerprint only, so that
a server which was given another one says so at its start instead of refusing everybody's token.

The key itself, and the file it lies in, are the caller's business.
"""

import hashlib
import hmac

from modelkeep.core import errors
from modelkeep.service.act import Act
from modelkeep.store import access as store

_SETTING = "token_key"
_PURPOSE = b"modelkeep.token_key.v1"


def is_bound(act: Act) -> bool:
    """Whether the installation has a key already."""
    return store.get_setting(act.tx, _SETTING) is not None


def bind(act: Act, key: bytes) -> None:
    """Take this key as the installation's, for good, or see that it is the one.

    Args:
        key: at least 32 random bytes; what is kept of them tells nothing about them.

    Raises:
        InvalidSetting: the installation has another key.
    """
    mine = hmac.new(key, _PURPOSE, hashlib.sha256).hexdigest()
    known = store.get_setting(act.tx, _SETTING)
    if known is None:
        store.set_setting(act.tx, _SETTING, mine, act.now)
    elif not hmac.compare_digest(known, mine):
        raise errors.InvalidSetting(
            "The tokens of this database were made with another key; give this server the key file of one "
            "that uses the database already (token_key_file names it).",
            field="token_key_file",
        )
