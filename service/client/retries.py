"""When a request is sent again: the server asks for it, or was not there; within a deadline."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime

import httpx

from service.client.results import ProblemError, ServiceUnreachable
from service.errors import shown_url

__all__ = ["LATE", "Attempts", "InTime", "no_service", "unreachable"]

AGAIN = (429, 502, 503)  # overloaded, a proxy whose server has gone, shutting down
PASSING = (httpx.NetworkError, httpx.ConnectTimeout, httpx.RemoteProtocolError)
LATE = "the answer is not whole at the deadline"
FIRST_WAIT_SECONDS = 0.1  # then twice as long each time, where the server names no time


@dataclass
class Attempts:
    """Of one request: at most `retries` after the first, all within `seconds`.

    Every operation is a function of its request, so that one more of the same does no harm.
    """

    retries: int
    seconds: float
    made: int = 0
    _start: float = field(default_factory=lambda: time.monotonic())

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return max(0.0, self._start + self.seconds - time.monotonic())

    def wait(self, outcome: httpx.Response | httpx.HTTPError, base_url: httpx.URL) -> float:
        """Seconds until the next attempt. Raises what a caller is told where there is none."""
        self.made += 1
        wait: float = FIRST_WAIT_SECONDS * 2 ** (self.made - 1) * random.uniform(1, 2)  # noqa: S311
        if isinstance(outcome, httpx.Response):
            passes = outcome.status_code in AGAIN
            wait = max(wait, _retry_after(outcome))
        else:
            passes = isinstance(outcome, PASSING)
        if self.made <= self.retries and passes and wait < self.left:
            return wait
        if isinstance(outcome, httpx.Response):
            raise _refusal(outcome)
        raise unreachable(base_url, outcome) from outcome


class InTime(httpx.SyncByteStream):
    """The body of an answer, as long as there is time for it: httpx bounds each piece alone."""

    def __init__(self, pieces: httpx.SyncByteStream, attempts: Attempts) -> None:
        self._pieces, self._attempts = pieces, attempts

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            if not self._attempts.left:
                raise httpx.ReadTimeout(LATE)
            yield piece

    def close(self) -> None:
        """As httpx asks."""
        self._pieces.close()


def _retry_after(answer: httpx.Response) -> float:
    """The seconds that the header names, or those until its date (a proxy's); else 0."""
    text = answer.headers.get("retry-after", "")
    with suppress(ValueError):
        return float(text)
    with suppress(ValueError, OverflowError):
        return parsedate_to_datetime(text).timestamp() - time.time()
    return 0.0


def _refusal(answer: httpx.Response) -> ProblemError:
    try:
        document = answer.json()
    except (ValueError, RecursionError):
        document = {"detail": answer.text[:500]}
    return ProblemError(document if isinstance(document, dict) else {}, answer.status_code)


def unreachable(base_url: object, error: httpx.HTTPError) -> ServiceUnreachable:
    """What to say of an answer that did not come."""
    place = shown_url(str(base_url))
    if isinstance(error, httpx.RemoteProtocolError):
        return ServiceUnreachable(f"{place} broke its answer off ({error}): its log says why")
    if isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout):  # connected, so it runs there
        return ServiceUnreachable(f"no answer from {place} in time: ask for less, or wait longer")
    why = str(error) or type(error).__name__
    return ServiceUnreachable(f"no answer from {place} ({why}): is `iafvae serve` running there?")


def no_service(
    base_url: object, answer: httpx.Response, error: Exception | None = None
) -> ServiceUnreachable:
    """What to say of an answer that this service does not give; `error`: met in reading it."""
    media_type = answer.headers.get("content-type", "no content type")
    said = f"it answered {answer.status_code} with {media_type}"
    if error is not None:
        said += f" that cannot be read ({type(error).__name__}: {error})"
    return ServiceUnreachable(f"{shown_url(str(base_url))} is no iafvae service ({said})")
