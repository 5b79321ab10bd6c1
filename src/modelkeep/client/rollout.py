"""The client's verbs of rollouts: endpoints, how their traffic stands, and a person's word in it.

Every verb about a rollout takes the endpoint, which means its current or last one, or the rollout's id.
Predictions go to the gateway and not through here.
"""

from typing import Any

from modelkeep.client.answers import Listing, Page
from modelkeep.client.transport import V1, Wire, given, segment
from modelkeep.core import codec
from modelkeep.core.answers import Done, Explanation, RolloutForecast, RolloutStatus
from modelkeep.core.recording import Privacy
from modelkeep.core.rollout import Endpoint, Plan, Rollout
from modelkeep.core.routing import Loading, Strictness


class RolloutVerbs(Wire):
    """How traffic moves."""

    def list_endpoints(self, *, limit: int | None = None) -> Listing[Endpoint]:
        """Endpoints by name."""
        return self.listing(Page[Endpoint], f"{V1}/endpoints", limit)

    def get_endpoint(self, name: str) -> Endpoint:
        """One endpoint. Raises EndpointNotFound."""
        return self.get(Endpoint, _endpoint(name))

    def put_endpoint(
        self,
        name: str,
        model: str,
        *,
        stage: str | None = None,
        alias: str | None = None,
        key_header: str | None = None,
        key_cookie: str | None = None,
        key_field: str | None = None,
        slow_ms: float | None = None,
        lease_s: float | None = None,
        workers: int | None = None,
        log_ppm: int | None = None,
        privacy: Privacy | None = None,
        load: Loading | None = None,
        schema: Strictness | None = None,
        plan: Plan | None = None,
    ) -> Endpoint:
        """Create an endpoint that follows a stage of a model (production, when nothing is said) or an alias,
        or change its settings; what is left out is the default.

        Raises:
            EndpointExists: the name belongs to another model, stage or alias.
            InvalidPlan: a step or a bound does not fit.
        """
        body: dict[str, Any] = {"model": model} | given(stage=stage, alias=alias)
        body |= given(key_header=key_header, slow_ms=slow_ms, lease_s=lease_s, workers=workers, plan=plan)
        body |= given(load=load, log_ppm=log_ppm, privacy=privacy, key_cookie=key_cookie, key_field=key_field)
        body |= given(schema=schema)
        return self.send(Endpoint, "PUT", _endpoint(name), body)

    def delete_endpoint(self, name: str) -> Done:
        """Delete an endpoint. Raises RolloutActive while a rollout is under way."""
        return self.send(Done, "DELETE", _endpoint(name))

    def rollout_status(self, endpoint: str) -> RolloutStatus:
        """How an endpoint's traffic stands, with the evidence so far; a rollout's id shows that rollout."""
        return self.get(RolloutStatus, f"{_endpoint(endpoint)}/rollout")

    def rollout_abort(self, endpoint: str, reason: str) -> Rollout:
        """Give the candidate's traffic back to stable. Raises RolloutNotFound, RolloutFinished."""
        return self._say(endpoint, "abort", reason)

    def rollout_pause(self, endpoint: str, reason: str) -> Rollout:
        """Stay at this step; a rollback verdict still acts. Raises RolloutNotFound, RolloutFinished."""
        return self._say(endpoint, "pause", reason)

    def rollout_resume(self, endpoint: str, reason: str) -> Rollout:
        """Go on after a pause. Raises RolloutNotFound, RolloutFinished."""
        return self._say(endpoint, "resume", reason)

    def rollout_step(self, endpoint: str, reason: str) -> Rollout:
        """Go to the next step now, whatever the evidence for it. Raises RolloutNotFound, RolloutFinished."""
        return self._say(endpoint, "step", reason)

    def _say(self, endpoint: str, word: str, reason: str) -> Rollout:
        return self.send(Rollout, "POST", f"{_endpoint(endpoint)}/rollout/{word}", {"reason": reason})

    def rollout_forecast(
        self,
        ref: str | None = None,
        *,
        endpoint: str | None = None,
        to: str = "production",
        traffic_per_s: float | None = None,
        requests_per_caller: float | None = None,
        error_rate: float | None = None,
        plan: Plan | None = None,
        seed: int | None = None,
        runs: int | None = None,
    ) -> RolloutForecast:
        """What moving a stage's endpoint to a version may be expected to look like; changes nothing.

        Args:
            endpoint: in the place of a version: what moving this one to any other may be expected to.
            traffic_per_s: requests a second, where the endpoint's own are not meant or not known.
            error_rate: the share of stable's callers who have an error.
            plan: another plan than the endpoint's.
            seed: of the simulated rollouts; the same one gives the same answer.

        Raises:
            EndpointNotFound: no endpoint follows the stage.
            Conflict: it serves the version already, or nothing yet.
            Invalid, InvalidPlan: no traffic is known and none was said, or a figure does not fit.
        """
        query = given(
            ref=ref,
            endpoint=endpoint,
            to=to if ref is not None else None,
            traffic_per_s=traffic_per_s,
            requests_per_caller=requests_per_caller,
            error_rate=error_rate,
            plan=codec.encode(plan).decode() if plan is not None else None,
            seed=seed,
            runs=runs,
        )
        return self.send(RolloutForecast, "GET", f"{V1}/forecast", query=query, patient=True)

    def list_rollouts(
        self, *, endpoint: str | None = None, model: str | None = None, limit: int | None = None
    ) -> Listing[Rollout]:
        """Rollouts, newest first."""
        return self.listing(Page[Rollout], f"{V1}/rollouts", limit, endpoint=endpoint, model=model)

    def get_rollout(self, rollout: str) -> Rollout:
        """One rollout: by its id, or the current or last one of an endpoint. Raises RolloutNotFound."""
        return self.get(Rollout, f"{V1}/rollouts/{segment(rollout)}")

    def explain_rollout(self, rollout: str) -> Explanation:
        """Recompute a rollout's evidence from the counts that were stored, and compare; named by its id or by
        its endpoint. Raises RolloutNotFound.
        """
        return self.get(Explanation, f"{V1}/rollouts/{segment(rollout)}/explanation")


def _endpoint(name: str) -> str:
    return f"{V1}/endpoints/{segment(name)}"
