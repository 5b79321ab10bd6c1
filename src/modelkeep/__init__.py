"""Modelkeep: a model registry and deployment platform in one package.

This file is the public face and nothing more: it names the version, the client and the errors, and loads them
when they are first asked for. It starts nothing.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from modelkeep.core import errors as errors
    from modelkeep.core.errors import (
        Conflict as Conflict,
    )
    from modelkeep.core.errors import (
        Corrupt as Corrupt,
    )
    from modelkeep.core.errors import (
        Denied as Denied,
    )
    from modelkeep.core.errors import (
        GateFailed as GateFailed,
    )
    from modelkeep.core.errors import (
        Invalid as Invalid,
    )
    from modelkeep.core.errors import (
        ModelkeepError as ModelkeepError,
    )
    from modelkeep.core.errors import (
        NotAuthenticated as NotAuthenticated,
    )
    from modelkeep.core.errors import (
        NotFound as NotFound,
    )
    from modelkeep.core.errors import (
        Pending as Pending,
    )
    from modelkeep.core.errors import (
        Unavailable as Unavailable,
    )
    from modelkeep.sdk import Client as Client

_ERRORS = frozenset(
    {
        "Conflict",
        "Corrupt",
        "Denied",
        "GateFailed",
        "Invalid",
        "ModelkeepError",
        "NotAuthenticated",
        "NotFound",
        "Pending",
        "Unavailable",
    }
)
__all__ = [
    "Client",
    "Conflict",
    "Corrupt",
    "Denied",
    "GateFailed",
    "Invalid",
    "ModelkeepError",
    "NotAuthenticated",
    "NotFound",
    "Pending",
    "Unavailable",
    "__version__",
    "errors",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used."""
    found: Any
    if name == "Client":
        from modelkeep import sdk

        found = sdk.Client
    elif name == "errors" or name in _ERRORS:
        from modelkeep.core import errors as tree

        found = tree if name == "errors" else getattr(tree, name)
    else:
        raise AttributeError(f"module 'modelkeep' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
