"""The entry of every child of a gateway: it makes sure that parent and child understand each other, and
becomes a front, a worker or the recorder.

Files can be replaced while a gateway runs, and from then on each process it starts is of another release than
itself. Such a child says so in one sentence and ends, before it has opened or imported anything that may be
different: no trace, and nothing half understood.
"""

import sys

from modelkeep.serving import handshake


def main(arguments: list[str]) -> None:
    """Become a part of the gateway. Arguments: the parent's protocol and release, which part, and what
    that one takes."""
    protocol, release, part, *rest = arguments
    objection = handshake.objection(protocol, release)
    if objection is not None:
        sys.stderr.write(objection + "\n")
        sys.exit(handshake.OTHER_RELEASE)
    if part == handshake.FRONT:
        from modelkeep.serving import front

        front.main(rest)
    elif part == handshake.WORKER:
        from modelkeep.serving import worker

        worker.main(rest)
    elif part == handshake.RECORDER:
        from modelkeep.serving import recorder

        recorder.main(rest)
    else:
        sys.exit(f"There is no part {part!r} of a gateway.")


if __name__ == "__main__":
    main(sys.argv[1:])
