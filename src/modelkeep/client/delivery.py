"""The client's verb of figures: how well versions get into production."""

from datetime import datetime

from modelkeep.client.transport import V1, Wire
from modelkeep.core import codec
from modelkeep.core.delivery import DeliveryReport


class DeliveryVerbs(Wire):
    """What the events say of deployments."""

    def report_delivery(
        self,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        model: str | None = None,
        project: str | None = None,
        stage: str | None = None,
    ) -> DeliveryReport:
        """Deployment figures of a span, by default the thirty days up to now: of a model, of a project, or of
        everything that one may read.

        Raises:
            ModelNotFound: there is no such model, or it may not be read.
            Invalid: the span ends before it begins, or both a model and a project are named.
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
        )
