"""What a gateway's processes have to agree on before they speak: the protocol's number, and how a child is
called.

A child is started with these words and looks at them first (`child.py`). It knows no message; names, order of
the words and exit code stay as they are in all releases.
"""

from modelkeep import __version__

PROTOCOL = 5
"""Of `messages.py`, `frames.py` and the prefix in `upstream.py`. Whoever changes what goes over a channel
raises it; a test holds them against it."""
FRONT = "front"
WORKER = "worker"
RECORDER = "recorder"
OTHER_RELEASE = 78
"""The exit code of a child that does not understand its parent."""


def words(part: str) -> list[str]:
    """What Python is started with for a front, a worker or a recorder, before that one's own arguments."""
    return ["-P", "-m", "modelkeep.serving.child", str(PROTOCOL), __version__, part]


def objection(protocol: str, release: str) -> str | None:
    """What a child has to say to a parent of this protocol and release; None when they understand each
    other."""
    if protocol == str(PROTOCOL):
        return None
    return (
        f"The gateway that runs is of release {release}, and its files are now of release {__version__}: "
        "no process of it can be started. Restart the gateway."
    )
