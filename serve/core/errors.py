"""One tree of errors: each has an HTTP status, a stable code and a sentence that names the remedy.

This is the one place where a condition becomes a status. The same codes stand in HTTP bodies, in `--json` output and
in the docs (`docs/errors.md`, held complete by a test).
"""

from __future__ import annotations

import math
from typing import Any

UNKNOWN_RETRY_S = 30.0
"""When to come back to what is not there now (503), where nobody can say how long that lasts."""


class ServeError(Exception):
    """Base. `str(error)` is the sentence a person reads."""

    status = 500
    code = "internal"

    def __init__(self, sentence: str, *, retry_after_s: float | None = None, **details: Any) -> None:
        super().__init__(sentence)
        self.retry_after_s = retry_after_s
        self.details = details
        """Further keys of the JSON body, such as `files` of `files_missing`."""

    def body(self, request_id: str | None = None) -> dict[str, Any]:
        """Return the JSON body that every refusal has."""
        body: dict[str, Any] = {"error": str(self), "code": self.code}
        if request_id is not None:
            body["request_id"] = request_id
        return body | self.details

    def headers(self) -> dict[str, str]:
        """Return `Retry-After` (whole seconds ≥ 1) and `retry-after-ms` where retrying makes sense: with every 503."""
        retry_after_s = self.retry_after_s
        if retry_after_s is None and self.status == 503:
            retry_after_s = UNKNOWN_RETRY_S
        if retry_after_s is None:
            return {}
        return {
            "retry-after": str(max(1, math.ceil(retry_after_s))),
            "retry-after-ms": str(max(1, math.ceil(retry_after_s * 1000))),
        }


# Requests that can never succeed as they are -------------------------------------------------------------------------


class BadRequest(ServeError):
    status, code = 400, "bad_request"


class Unauthorized(ServeError):
    status, code = 401, "unauthorized"


class Forbidden(ServeError):
    """Such as a Host header that is not ours (DNS rebinding)."""

    status, code = 403, "forbidden"


class UnknownModel(ServeError):
    status, code = 404, "unknown_model"


class UnknownVersion(ServeError):
    status, code = 404, "unknown_version"


class NotFound(ServeError):
    status, code = 404, "not_found"


class MethodNotAllowed(ServeError):
    status, code = 405, "method_not_allowed"

    def __init__(self, sentence: str, *, allow: tuple[str, ...]) -> None:
        super().__init__(sentence)
        self.allow = allow

    def headers(self) -> dict[str, str]:
        return {"allow": ", ".join(self.allow)}


class Conflict(ServeError):
    """The state changed under the caller, or the name means something else already."""

    status, code = 409, "conflict"


class TooLarge(ServeError):
    status, code = 413, "too_large"


class Unsupported(ServeError):
    status, code = 501, "unsupported"


# Requests that may succeed later -------------------------------------------------------------------------------------


class QueueFull(ServeError):
    status, code = 503, "queue_full"


class TooManyConnections(ServeError):
    """Of which none could be closed for another's sake."""

    status, code = 503, "too_many_connections"


class UploadTimeout(ServeError):
    """The body was not there at the deadline, or nothing of the request came for too long."""

    status, code = 408, "upload_timeout"


class QueueTimeout(ServeError):
    """The deadline, or the caller's `Prefer: wait`, passed in the queue."""

    status, code = 503, "queue_timeout"


class ModelFailed(ServeError):
    status, code = 503, "model_failed"


class Publishing(ServeError):
    status, code = 503, "publishing"


class Draining(ServeError):
    """The platform is shutting down."""

    status, code = 503, "draining"


class NoCapacity(ServeError):
    """The model does not fit beside what is busy, and could not within the deadline."""

    status, code = 503, "no_capacity"


class StorageFull(ServeError):
    """The disk, or the budget of the store, cannot hold it."""

    status, code = 507, "storage_full"


# Requests that were tried --------------------------------------------------------------------------------------------


class ExecutionTimeout(ServeError):
    status, code = 504, "execution_timeout"


class ReplicaLost(ServeError):
    """The replica died, and the request could not, or not again, be replayed."""

    status, code = 502, "replica_lost"


# Publishing a model --------------------------------------------------------------------------------------------------


class PublishError(ServeError):
    """A revision could not be made; the running one is as it was. `serve deploy` exits 5."""

    status, code = 422, "publish_failed"


class InvalidSpec(PublishError):
    status, code = 422, "invalid_spec"


class ModelInvalid(PublishError):
    status, code = 422, "model_invalid"


class ModelUnsupported(PublishError):
    status, code = 422, "model_unsupported"


class FilesMissing(PublishError):
    """`details["files"]` lists paths relative to the model's folder."""

    status, code = 422, "files_missing"


class SourceChanged(PublishError):
    """The file differs from the digest that was announced: it changed while it was read."""

    status, code = 422, "source_changed"


class SourceUnreachable(PublishError):
    status, code = 422, "source_unreachable"


class SampleFailed(PublishError):
    """The model loads but did not answer the given sample."""

    status, code = 422, "sample_failed"


class IntegrityError(ServeError):
    """Stored bytes are not what their digest says."""

    status, code = 500, "integrity"


_LOAD_FAILURES: dict[str, type[PublishError]] = {
    "model_invalid": ModelInvalid,
    "model_unsupported": ModelUnsupported,
    "model_files_missing": FilesMissing,
}


def load_failure(code: str, message: str) -> PublishError:
    """Return the error for a model that a runtime could not read or load. `code`: as `events.Failed.code`."""
    return _LOAD_FAILURES.get(code, PublishError)(message)
