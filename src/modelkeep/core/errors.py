"""Every error a user can meet, in one tree.

A class is a reason; its `code` is stable and is what programs compare; its message is one sentence for a
person that says what to do next; `details` are JSON facts. No HTTP status and no exit code is known here:
`web/problems.py`, the client and the CLI translate families (the second level of the tree), so a new leaf
needs no change elsewhere.

    ModelkeepError
      NotFound      ModelNotFound VersionNotFound AliasNotFound StageEmpty DraftNotFound RequestNotFound
      EndpointNotFound
                    RolloutNotFound BlobNotFound FileNotInVersion PolicyNotFound PrincipalNotFound
                    TokenNotFound MetricNotFound EventNotFound RouteNotFound ExperimentNotFound
                    RunNotFound LoggedModelNotFound TagNotFound ArtifactNotFound
                    WebhookNotFound DeliveryNotFound FilesUnreachable
      Conflict      ModelExists VersionExists AliasMoved StageMoved RequestClosed DraftClosed OffsetMismatch
      RolloutActive
                    RolloutFinished EndpointExists PrincipalExists IdempotencyMismatch FolderInUse PortInUse
                    Protected ExperimentExists InvalidState
      Invalid       InvalidName InvalidReference InvalidSemver InvalidFilter InvalidMetadata InvalidManifest
      InvalidMetric
                    InvalidSignature InvalidPolicy InvalidTransition InvalidPlan InvalidInput InvalidTime
                    InvalidSetting InvalidParameter InvalidWebhook SourceUnreadable MalformedBody
                    SemverTooLow MethodNotAllowed UnsupportedMedia RequestTooSlow
        LimitExceeded  BodyTooLarge
      Denied        NotAllowed SelfApproval Tombstoned Yanked
        NotAuthenticated  TokenExpired
        GateFailed        PolicyDenied NoRollbackTarget DrillRefused
        Pending           ApprovalRequired
      Corrupt       DigestMismatch BrokenChain SchemaTooNew JournalDamaged
      Unavailable   StoreUnavailable StorageFull BlobsUnavailable ServerUnavailable GatewayUnavailable
                    WorkerUnavailable Overloaded TimedOut ExtraMissing
"""

from collections.abc import Mapping
from typing import Any, ClassVar

Details = Mapping[str, Any]


class ModelkeepError(Exception):
    """The root. Catch this to catch everything Modelkeep raises on purpose."""

    code: ClassVar[str] = "MODELKEEP_ERROR"

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, Any] = details

    def __str__(self) -> str:
        return self.message


class NotFound(ModelkeepError):
    """The thing named does not exist, or the caller may not know that it does."""

    code = "NOT_FOUND"


class Conflict(ModelkeepError):
    """The request was fine, but the state has moved on or is taken."""

    code = "CONFLICT"


class Invalid(ModelkeepError):
    """The request itself cannot be carried out; sending it again changes nothing."""

    code = "INVALID"


class Denied(ModelkeepError):
    """Somebody or some rule said no."""

    code = "DENIED"


class NotAuthenticated(Denied):
    """No valid credential came with the request."""

    code = "NOT_AUTHENTICATED"


class GateFailed(Denied):
    """A gate or policy does not hold."""

    code = "GATE_FAILED"


class Pending(Denied):
    """Not refused: somebody else has to act first."""

    code = "PENDING"


class Corrupt(ModelkeepError):
    """Stored bytes are not what was written. Never ignored, never repaired silently."""

    code = "CORRUPT"


class Unavailable(ModelkeepError):
    """Something Modelkeep needs does not answer; the same request may succeed later."""

    code = "UNAVAILABLE"


# fmt: off
class ModelNotFound(NotFound):        code = "MODEL_NOT_FOUND"
class VersionNotFound(NotFound):      code = "VERSION_NOT_FOUND"
class AliasNotFound(NotFound):        code = "ALIAS_NOT_FOUND"
class StageEmpty(NotFound):           code = "STAGE_EMPTY"
class DraftNotFound(NotFound):        code = "DRAFT_NOT_FOUND"
class RequestNotFound(NotFound):      code = "REQUEST_NOT_FOUND"
class EndpointNotFound(NotFound):     code = "ENDPOINT_NOT_FOUND"
class RolloutNotFound(NotFound):      code = "ROLLOUT_NOT_FOUND"
class BlobNotFound(NotFound):         code = "BLOB_NOT_FOUND"
class FileNotInVersion(NotFound):     code = "FILE_NOT_IN_VERSION"
class PolicyNotFound(NotFound):       code = "POLICY_NOT_FOUND"
class PrincipalNotFound(NotFound):    code = "PRINCIPAL_NOT_FOUND"
class TokenNotFound(NotFound):        code = "TOKEN_NOT_FOUND"
class MetricNotFound(NotFound):       code = "METRIC_NOT_FOUND"
class EventNotFound(NotFound):        code = "EVENT_NOT_FOUND"
class FilesUnreachable(NotFound):     code = "FILES_UNREACHABLE"
class RouteNotFound(NotFound):        code = "ROUTE_NOT_FOUND"
class ExperimentNotFound(NotFound):   code = "EXPERIMENT_NOT_FOUND"
class RunNotFound(NotFound):          code = "RUN_NOT_FOUND"
class LoggedModelNotFound(NotFound):  code = "LOGGED_MODEL_NOT_FOUND"
class TagNotFound(NotFound):          code = "TAG_NOT_FOUND"
class ArtifactNotFound(NotFound):     code = "ARTIFACT_NOT_FOUND"
class NotProvided(NotFound):          code = "NOT_PROVIDED"
class WebhookNotFound(NotFound):      code = "WEBHOOK_NOT_FOUND"
class DeliveryNotFound(NotFound):     code = "DELIVERY_NOT_FOUND"

class ModelExists(Conflict):          code = "MODEL_EXISTS"
class VersionExists(Conflict):        code = "VERSION_EXISTS"
class AliasMoved(Conflict):           code = "ALIAS_MOVED"
class StageMoved(Conflict):           code = "STAGE_MOVED"
class RequestClosed(Conflict):        code = "REQUEST_CLOSED"
class DraftClosed(Conflict):          code = "DRAFT_CLOSED"
class OffsetMismatch(Conflict):       code = "OFFSET_MISMATCH"
class RolloutActive(Conflict):        code = "ROLLOUT_ACTIVE"
class RolloutFinished(Conflict):      code = "ROLLOUT_FINISHED"
class EndpointExists(Conflict):       code = "ENDPOINT_EXISTS"
class PrincipalExists(Conflict):      code = "PRINCIPAL_EXISTS"
class IdempotencyMismatch(Conflict):  code = "IDEMPOTENCY_MISMATCH"
class FolderInUse(Conflict):          code = "FOLDER_IN_USE"
class PortInUse(Conflict):            code = "PORT_IN_USE"
class Protected(Conflict):            code = "PROTECTED"
class ExperimentExists(Conflict):     code = "EXPERIMENT_EXISTS"
class InvalidState(Conflict):         code = "INVALID_STATE"

class InvalidName(Invalid):           code = "INVALID_NAME"
class InvalidReference(Invalid):      code = "INVALID_REFERENCE"
class InvalidSemver(Invalid):         code = "INVALID_SEMVER"
class InvalidFilter(Invalid):         code = "INVALID_FILTER"
class InvalidMetadata(Invalid):       code = "INVALID_METADATA"
class InvalidManifest(Invalid):       code = "INVALID_MANIFEST"
class InvalidMetric(Invalid):         code = "INVALID_METRIC"
class InvalidSignature(Invalid):      code = "INVALID_SIGNATURE"
class InvalidPolicy(Invalid):         code = "INVALID_POLICY"
class InvalidTransition(Invalid):     code = "INVALID_TRANSITION"
class InvalidPlan(Invalid):           code = "INVALID_PLAN"
class InvalidWebhook(Invalid):        code = "INVALID_WEBHOOK"
class InvalidInput(Invalid):          code = "INVALID_INPUT"
class InvalidTime(Invalid):           code = "INVALID_TIME"
class InvalidSetting(Invalid):        code = "INVALID_SETTING"
class InvalidParameter(Invalid):      code = "INVALID_PARAMETER"
class SourceUnreadable(Invalid):      code = "SOURCE_UNREADABLE"
class MalformedBody(Invalid):         code = "MALFORMED_BODY"
class LimitExceeded(Invalid):         code = "LIMIT_EXCEEDED"
class SemverTooLow(Invalid):          code = "SEMVER_TOO_LOW"
class MethodNotAllowed(Invalid):      code = "METHOD_NOT_ALLOWED"
class UnsupportedMedia(Invalid):      code = "UNSUPPORTED_MEDIA"
class RequestTooSlow(Invalid):        code = "REQUEST_TOO_SLOW"
class BodyTooLarge(LimitExceeded):    code = "BODY_TOO_LARGE"

class NotAllowed(Denied):             code = "NOT_ALLOWED"
class SelfApproval(Denied):           code = "SELF_APPROVAL"
class Tombstoned(Denied):             code = "TOMBSTONED"
class Yanked(Denied):                 code = "YANKED"
class TokenExpired(NotAuthenticated): code = "TOKEN_EXPIRED"
class PolicyDenied(GateFailed):       code = "POLICY_DENIED"
class NoRollbackTarget(GateFailed):   code = "NO_ROLLBACK_TARGET"
class DrillRefused(GateFailed):       code = "DRILL_REFUSED"
class ApprovalRequired(Pending):      code = "APPROVAL_REQUIRED"

class DigestMismatch(Corrupt):        code = "DIGEST_MISMATCH"
class BrokenChain(Corrupt):           code = "BROKEN_CHAIN"
class SchemaTooNew(Corrupt):          code = "SCHEMA_TOO_NEW"
class JournalDamaged(Corrupt):        code = "JOURNAL_DAMAGED"

class StoreUnavailable(Unavailable):  code = "STORE_UNAVAILABLE"
class StorageFull(Unavailable):       code = "STORAGE_FULL"
class BlobsUnavailable(Unavailable):  code = "BLOBS_UNAVAILABLE"
class ServerUnavailable(Unavailable): code = "SERVER_UNAVAILABLE"
class GatewayUnavailable(Unavailable): code = "GATEWAY_UNAVAILABLE"
class WorkerUnavailable(Unavailable): code = "WORKER_UNAVAILABLE"
class Overloaded(Unavailable):        code = "OVERLOADED"
class TimedOut(Unavailable):          code = "TIMED_OUT"
class ExtraMissing(Unavailable):      code = "EXTRA_MISSING"
# fmt: on


def _classes(root: type[ModelkeepError]) -> list[type[ModelkeepError]]:
    found = [root]
    for child in root.__subclasses__():
        found += _classes(child)
    return found


BY_CODE: Mapping[str, type[ModelkeepError]] = {cls.code: cls for cls in _classes(ModelkeepError)}
"""Code to class, so that the client can raise again what the server raised."""


def from_code(code: str, message: str, details: Details) -> ModelkeepError:
    """Rebuild an error from the wire; an unknown code (a newer server) becomes the root class."""
    error = BY_CODE.get(code, ModelkeepError)(message)
    error.details = dict(details)
    return error
