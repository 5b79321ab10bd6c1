"""The client as people import it: one that finds its server by the settings, as the command line does."""

from modelkeep import client, settings


class Client(client.Client):
    """Speaks with the Modelkeep server that MODELKEEP_URL names, unless told otherwise."""

    def __init__(
        self, url: str | None = None, token: str | None = None, timeout_s: float | None = None
    ) -> None:
        """
        Args:
            url: `http://HOST:PORT`; MODELKEEP_URL when left out, and this machine when that is not set
            either. token: MODELKEEP_TOKEN when left out; a local server needs none. timeout_s: how long to
            wait for an answer; MODELKEEP_TIMEOUT_S when left out.

        Raises:
            InvalidSetting: the address, the token or another setting cannot be one.
        """
        found = settings.load({"url": url, "token": token, "timeout_s": timeout_s})
        super().__init__(found.url, found.token, found.timeout_s, agent="modelkeep-python")
