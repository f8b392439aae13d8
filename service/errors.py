"""Every error a caller can meet: one tree, and one table to what HTTP says about it.

The message of an exception (``str(exc)``) becomes ``detail`` of an RFC 9457 problem document, so it
says what was wrong with which value and what to do about it. What does not depend on the occasion,
the stable slug of ``type``, the title and the status, stands in `PROBLEMS` alone.
"""

# ruff: noqa: N818 - the names are nouns of the protocol ("Overloaded"), read in `except` and logs

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "PROBLEMS",
    "BadRequest",
    "BundleRefused",
    "ClientGone",
    "Conflict",
    "DeadlineExceeded",
    "DeviceFault",
    "EngineFailure",
    "Forbidden",
    "IafvaeError",
    "InvalidInput",
    "MalformedBody",
    "MethodNotAllowed",
    "ModelLimit",
    "NonFiniteInput",
    "NotAcceptable",
    "NotFound",
    "Overloaded",
    "PayloadTooLarge",
    "Problem",
    "ProviderUnavailable",
    "RequestTimeout",
    "ServerFault",
    "ShuttingDown",
    "Unauthorized",
    "UndecodableImage",
    "UnknownBundle",
    "UnknownModel",
    "UnsupportedMedia",
    "WrongDtype",
    "WrongShape",
    "problem_of",
]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What every occasion of one error shares: RFC 9457's ``type``, ``title`` and ``status``."""

    type: str
    title: str
    status: int


class IafvaeError(Exception):
    """Root of the tree. ``str(exc)`` is the detail: what was wrong, and what to do."""

    @property
    def type(self) -> str:
        """Stable slug; clients compare with this, never with a title or a detail."""
        return problem_of(self).type

    @property
    def title(self) -> str:
        """Short summary of the kind of error."""
        return problem_of(self).title

    @property
    def status(self) -> int:
        """HTTP status code."""
        return problem_of(self).status

    @property
    def detail(self) -> str:
        """What was wrong on this occasion, and what to do."""
        return str(self)


class BadRequest(IafvaeError):
    """The caller's fault: sending the same again fails again."""


class MalformedBody(BadRequest):
    """The body is not what its content type says: broken JSON, multipart or npy."""


class InvalidInput(BadRequest):
    """A value is out of range, unknown, missing or contradicts another."""


class Unauthorized(BadRequest):
    """No key, or none that is known. `challenge` becomes the header ``WWW-Authenticate``."""

    def __init__(self, detail: str, challenge: str = "Bearer") -> None:
        super().__init__(detail)
        self.challenge = challenge


class Forbidden(BadRequest):
    """The key is known, but not for this."""


class NotFound(BadRequest):
    """No such path."""


class UnknownModel(NotFound):
    """No model of that name is loaded."""


class UnknownBundle(NotFound):
    """No bundle of that name is in the directory of models."""


class MethodNotAllowed(BadRequest):
    """The path exists, but not for this method."""


class NotAcceptable(BadRequest):
    """Nothing that ``Accept`` allows can be made."""


class RequestTimeout(BadRequest):
    """The body did not arrive in time."""


class PayloadTooLarge(BadRequest):
    """Body, pixels, n or importance samples above the limit."""


class UnsupportedMedia(BadRequest):
    """The content type is none that the path takes."""


class WrongShape(BadRequest):
    """An array or image of another size or number of channels than the model's."""


class WrongDtype(BadRequest):
    """An array or image of another type of numbers than the model's."""


class UndecodableImage(BadRequest):
    """Not an image, or a broken one."""


class NonFiniteInput(BadRequest):
    """NaN or infinity where a number is needed."""


class Conflict(BadRequest):
    """What is loaded, or what is under way, does not allow it now."""


class ModelLimit(Conflict):
    """As many models are in memory as may be; there is room again when some have gone."""


class BundleRefused(BadRequest):
    """A bundle cannot be served by this process; what was loaded before stays."""


class ClientGone(IafvaeError):
    """The caller has hung up: nobody reads the answer, it is only counted."""


class Overloaded(IafvaeError):
    """The queue is full. `retry_after_seconds` becomes the header ``Retry-After``."""

    def __init__(self, detail: str, retry_after_seconds: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after_seconds = retry_after_seconds


class DeadlineExceeded(IafvaeError):
    """The deadline passed before the work was done; the rest of it was dropped."""


class ShuttingDown(IafvaeError):
    """The process drains or has not started; another replica answers."""


class ServerFault(IafvaeError):
    """Not the caller's fault."""


class EngineFailure(ServerFault):
    """A batch failed to compute; the process is healthy."""


class DeviceFault(ServerFault):
    """The device failed: liveness fails, the process is to be replaced."""


class ProviderUnavailable(ServerFault):
    """The provider that was demanded is not there; raised at start."""


PROBLEMS: dict[type[IafvaeError], Problem] = {
    kind: Problem(type=slug, title=title, status=status)
    for kind, slug, title, status in (
        (BadRequest, "bad-request", "Bad request", 400),
        (MalformedBody, "malformed-body", "The body cannot be parsed", 400),
        (Unauthorized, "unauthorized", "A key is needed", 401),
        (Forbidden, "forbidden", "The key does not allow it", 403),
        (NotFound, "not-found", "Not found", 404),
        (UnknownModel, "unknown-model", "Unknown model", 404),
        (UnknownBundle, "unknown-bundle", "Unknown bundle", 404),
        (MethodNotAllowed, "method-not-allowed", "Method not allowed", 405),
        (NotAcceptable, "not-acceptable", "No acceptable representation", 406),
        (RequestTimeout, "request-timeout", "The body did not arrive in time", 408),
        (Conflict, "conflict", "Not possible now", 409),
        (ModelLimit, "model-limit", "As many models are loaded as may be", 409),
        (PayloadTooLarge, "payload-too-large", "Over a limit", 413),
        (UnsupportedMedia, "unsupported-media-type", "Unsupported content type", 415),
        (InvalidInput, "invalid-input", "Invalid value", 422),
        (BundleRefused, "bundle-refused", "The bundle cannot be served", 422),
        (WrongShape, "wrong-shape", "Wrong shape", 422),
        (WrongDtype, "wrong-dtype", "Wrong type of numbers", 422),
        (UndecodableImage, "undecodable-image", "Undecodable image", 422),
        (NonFiniteInput, "non-finite-input", "Non-finite numbers", 422),
        (Overloaded, "overloaded", "The queue is full", 429),
        (ClientGone, "client-gone", "The client has gone", 499),
        (IafvaeError, "internal-error", "Internal error", 500),
        (ServerFault, "internal-error", "Internal error", 500),
        (EngineFailure, "engine-failure", "The computation failed", 500),
        (DeviceFault, "device-fault", "The device failed", 500),
        (ProviderUnavailable, "provider-unavailable", "The provider is unavailable", 500),
        (ShuttingDown, "shutting-down", "The service is not ready", 503),
        (DeadlineExceeded, "deadline-exceeded", "The deadline has passed", 504),
    )
}


def problem_of(error: IafvaeError) -> Problem:
    """The row of `PROBLEMS` for `error`: its class's own, else the nearest base's."""
    return next(PROBLEMS[kind] for kind in type(error).__mro__ if kind in PROBLEMS)
