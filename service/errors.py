"""Every error a caller can meet, as one tree.

The message of an exception (``str(exc)``) says what was wrong with which value and what to do about
it. What HTTP makes of each kind stands in `service.api.response.problems`.
"""

# ruff: noqa: N818 - the names are nouns of the protocol ("Overloaded"), read in `except` and logs

from __future__ import annotations

import re

__all__ = [
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
    "ProviderUnavailable",
    "QuotaExceeded",
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
    "shown_url",
    "without_secrets",
]


class IafvaeError(Exception):
    """Root of the tree. ``str(exc)`` is the detail: what was wrong, and what to do."""


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


class QuotaExceeded(Overloaded):
    """The caller has had what it may have in a minute."""


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


# In a text: who calls and the password; then a query, which may be a token or a signature.
SECRETS = re.compile(r"(?<=://)[^/\s]*@|\?[\w.~%+-]+=\S*")
SECRETS_OF_URL = re.compile(r"(?:(?<=//)|^)[^/]*@|[?#].*", re.DOTALL)


def without_secrets(text: str) -> str:
    """`text`, such as another program's message, without what may be secret in its URLs."""
    return SECRETS.sub("", text)


def shown_url(url: str) -> str:
    """`url`, however wrong, without user, password, query and fragment."""
    return SECRETS_OF_URL.sub("", url)
