"""The client's verbs of figures and drills: how well versions get into production, and how fast out again."""

from datetime import datetime

from modelkeep.client.transport import V1, Wire, segment
from modelkeep.core import codec
from modelkeep.core.delivery import DeliveryReport
from modelkeep.core.drill import Drill, DrillPlan, Measured


class DeliveryVerbs(Wire):
    """What the events say of deployments, and rehearsals of a rollback."""

    def prepare_drill(self, endpoint: str) -> DrillPlan:
        """What a drill of an endpoint would do now, and what speaks against it; changes nothing.

        Raises:
            EndpointNotFound, NotAllowed.
        """
        return self.get(DrillPlan, f"{V1}/endpoints/{segment(endpoint)}/drill")

    def begin_drill(self, endpoint: str, reason: str, *, anyway: str | None = None) -> DrillPlan:
        """Begin a drill, which a gateway then does and `record_drill` tells of. One that is refused is
        recorded as well.

        Args:
            anyway: why it is to be although something speaks against it; for who administers the model.

        Raises:
            EndpointNotFound, NotAllowed (also to say `anyway`).
            RolloutActive, NoRollbackTarget, GatewayUnavailable: nobody can drill it now.
            DrillRefused: it is outside of the policy's windows, the endpoint is not well, nobody asks it, or
                another drill is on; the details say when the next window opens.
        """
        body = {"reason": reason, "anyway": anyway}
        return self.send(DrillPlan, "POST", f"{V1}/endpoints/{segment(endpoint)}/drill", body)

    def record_drill(self, endpoint: str, measured: Measured, reason: str) -> Drill:
        """Keep what a gateway measured in a drill that has begun.

        Raises:
            EndpointNotFound, NotAllowed.
            Conflict: no drill has begun that was not told of. Invalid: what was measured cannot be.
        """
        body = {"measured": measured, "reason": reason}
        return self.send(Drill, "POST", f"{V1}/endpoints/{segment(endpoint)}/drills", body)

    def report_delivery(
        self,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        model: str | None = None,
        project: str | None = None,
        stage: str | None = None,
        alias: str | None = None,
    ) -> DeliveryReport:
        """Deployment figures of a span, by default the thirty days up to now: of a model, of a project, or of
        everything that one may read; to a stage, behind an alias, or to production and behind every alias
        that an endpoint follows.

        Raises:
            ModelNotFound: there is no such model, or it may not be read.
            Invalid: the span ends before it begins, or both a model and a project are named, or both a stage
                and an alias.
            LimitExceeded: too much happened in the span.
        """
        return self.get(
            DeliveryReport,
            f"{V1}/reports/delivery",
            since=codec.format_time(since) if since is not None else None,
            until=codec.format_time(until) if until is not None else None,
            model=model,
            project=project,
            stage=stage,
            alias=alias,
        )
