"""A front's pages that predict nothing: health, readiness, metrics, the endpoints and their descriptions,
Open Inference metadata.

They read the router and ask the supervisor for what it alone knows; they change nothing.
"""

import itertools
import time
from collections.abc import Callable
from typing import Any

from modelkeep import __version__
from modelkeep.serving.answers import Answered, Answers
from modelkeep.serving.http import STATUS_LINES, Request
from modelkeep.serving.router import Router, Target
from modelkeep.serving.upstream import ServedVersion

PAGE_TIMEOUT_S = 3.0
"""For the supervisor to add up the counts of all fronts, or to describe an endpoint."""
WAITING_SHOWN = 100
"""Endpoints that `/ready` names."""
PROBES = frozenset({b"/health", b"/ready", b"/v2/health/live", b"/v2/health/ready"})
"""Answered to everybody: what watches over processes has no token."""
_TEXT = b"text/plain; version=0.0.4; charset=utf-8"
_JSON = b"application/json"
_PLACES = frozenset({b"health", b"ready", b"metrics", b"endpoints", b"v2"})


class Pages:
    """All pages of one front. `known`: a table was obeyed, so having no route is not the same as not
    knowing."""

    def __init__(
        self,
        answers: Answers,
        router: Router[ServedVersion],
        ask: Callable[[int, str], None],
        *,
        known: bool,
    ) -> None:
        self.known = known
        self.draining = False
        self._answers = answers
        self._router = router
        self._ask = ask
        self._asked: dict[int, tuple[Answered, bytes, float, bytes]] = {}
        self._number = 0

    def page(self, connection: Answered, request: Request, parts: list[bytes]) -> None:
        """Answer a request for a page; `parts` is its path cut at the slashes."""
        answers = self._answers
        request_id = answers.request_id(request)
        if request.method not in (b"GET", b"HEAD"):
            status, code = (405, "METHOD") if parts[1:2] and parts[1] in _PLACES else (404, "NOT_FOUND")
            detail = "This is read by GET." if status == 405 else "There is nothing here."
            answers.problem(connection, status, code, detail, request_id, b"Allow: GET, HEAD\r\n")
            return
        match parts[1:]:
            case [b"health"] | [b"v2", b"health", b"live"]:
                answers.json(connection, 200, {"status": "alive", "live": True}, request_id)
            case [b"ready"] | [b"v2", b"health", b"ready"]:
                waiting = self._not_ready()
                body = {"ready": not waiting, "waiting_for": waiting, **self._loaded()}
                answers.json(connection, 503 if waiting else 200, body, request_id)
            case [b"metrics"]:
                self._ask_for(connection, request_id, _TEXT, "")
            case [b"endpoints"]:
                routes = [_described(target) for _, target in sorted(self._router.targets.items())]
                body = {"table": self._router.number, "endpoints": routes}
                answers.json(connection, 200, body, request_id)
            case [b"v2"]:
                body = {"name": "modelkeep", "version": __version__, "extensions": ["binary_tensor_data"]}
                answers.json(connection, 200, body, request_id)
            case [b"endpoints", name, b"openapi.json"] if name in self._router.targets:
                self._ask_for(connection, request_id, _JSON, name.decode())
            case [b"v2", b"models", name, *rest]:
                self._model(connection, name, rest, request_id)
            case _:
                answers.problem(connection, 404, "NOT_FOUND", "There is nothing here.", request_id)

    def _model(self, connection: Answered, name: bytes, rest: list[bytes], request_id: bytes) -> None:
        """Open Inference: a model's (our endpoint's) or one of its versions' metadata and readiness."""
        target = self._router.targets.get(name)
        version = target.stable if target is not None else None
        if target is not None and len(rest) >= 2 and rest[0] == b"versions":
            version = target.pinned(rest[1].decode("latin-1"))
            rest = rest[2:]
        if target is None or version is None or rest not in ([], [b"ready"]):
            detail = "There is no such endpoint or version here."
            self._answers.problem(connection, 404, "ENDPOINT_NOT_FOUND", detail, request_id)
            return
        endpoint, ready = target.route.endpoint, _can_answer(version)
        if rest:
            self._answers.json(
                connection, 200 if ready else 503, {"name": endpoint, "ready": ready}, request_id
            )
            return
        loaded = dict.fromkeys((target.stable, target.candidate, *target.others, target.previous))
        versions = [version.semver for version in loaded if version is not None]
        tensors = {"inputs": version.name.inputs, "outputs": version.name.outputs}
        parameters = {"devices": version.devices}
        body = {
            "name": endpoint, "versions": versions, "platform": "modelkeep", **tensors,
            "parameters": parameters,
        }  # fmt: skip
        self._answers.json(connection, 200, body, request_id)

    def _not_ready(self) -> list[str]:
        if self.draining:
            return ["the gateway is draining"]
        if not self.known:
            return ["the first routing table"]
        targets = self._router.targets.values()
        waiting = (target for target in targets if not _can_answer(target.stable))
        return [target.route.endpoint for target in itertools.islice(waiting, WAITING_SHOWN)]

    def _loaded(self) -> dict[str, int]:
        """How many endpoints' versions are loaded, and how many will be when somebody asks."""
        stable = [target.stable for target in self._router.targets.values()]
        loaded = sum(version.upstream is not None for version in stable)
        return {"loaded": loaded, "asleep": sum(version.sleeps for version in stable)}

    def _ask_for(self, connection: Answered, request_id: bytes, media: bytes, endpoint: str) -> None:
        """Have the supervisor make a page: the metrics, or the description of an endpoint."""
        self._number += 1
        self._asked[self._number] = (connection, request_id, time.monotonic() + PAGE_TIMEOUT_S, media)
        self._ask(self._number, endpoint)

    def told(self, number: int, text: str) -> None:
        """The supervisor's answer to a wish for a page."""
        asked = self._asked.pop(number, None)
        if asked is None:
            return
        connection, request_id, _, media = asked
        if not text:
            self._answers.problem(connection, 404, "NOT_FOUND", "There is nothing here.", request_id)
            return
        self._answers.count(200)
        body = text.encode()
        head = b"%bContent-Type: %b\r\nContent-Length: %d\r\nX-Request-Id: %b\r\n"
        connection.answer(head % (STATUS_LINES[200], media, len(body), request_id), body)

    def sweep(self, now: float) -> None:
        """Give up on pages that do not come."""
        for number, (connection, request_id, until, _) in list(self._asked.items()):
            if now > until:
                del self._asked[number]
                detail = "This page is not to be had just now."
                self._answers.problem(connection, 503, "TIMED_OUT", detail, request_id)


def _can_answer(version: ServedVersion) -> bool:
    """Whether a request would be answered: by a version that is loaded, or that is then loaded."""
    return version.upstream is not None or (version.sleeps and not version.failed)


def _described(target: Target[ServedVersion]) -> dict[str, Any]:
    route = target.route
    named = {v.key: v for v in (target.stable, target.candidate, *target.others) if v is not None}
    versions = [
        {
            "version": named[arm.key].label,
            "digest": named[arm.key].name.digest,
            "weight_ppm": arm.weight_ppm,
            "ready": _can_answer(named[arm.key]),
            "asleep": named[arm.key].sleeps,
        }
        for arm in route.arms
    ]
    epoch = {"term": route.epoch.term, "seq": route.epoch.seq}
    return {"endpoint": route.endpoint, "epoch": epoch, "rollout": route.rollout, "versions": versions}
