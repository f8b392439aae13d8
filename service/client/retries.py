"""When a request is sent again: the server asks for it, or was not there; within a deadline."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field

import httpx

from service.client.results import ServiceUnreachable
from service.errors import shown_url

__all__ = ["Attempts", "unreachable"]

AGAIN = (429, 503)  # overloaded, shutting down
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

    def wait(self, outcome: httpx.Response | httpx.HTTPError) -> float | None:
        """Seconds until the next attempt; None where there is none."""
        self.made += 1
        if self.made > self.retries or not _is_passing(outcome):
            return None
        wait = FIRST_WAIT_SECONDS * 2 ** (self.made - 1) * random.uniform(1, 2)  # noqa: S311
        if isinstance(outcome, httpx.Response):
            wait = max(wait, _retry_after(outcome))
        return wait if wait < self.left else None


def _is_passing(outcome: httpx.Response | httpx.HTTPError) -> bool:
    if isinstance(outcome, httpx.Response):
        return outcome.status_code in AGAIN
    return isinstance(
        outcome, (httpx.NetworkError, httpx.ConnectTimeout, httpx.RemoteProtocolError)
    )


def _retry_after(answer: httpx.Response) -> float:
    """Seconds; 0 where the header is absent, or a date, which this server never sends."""
    try:
        return max(0.0, float(answer.headers.get("retry-after", "0")))
    except ValueError:
        return 0.0


def unreachable(base_url: object, error: httpx.HTTPError) -> ServiceUnreachable:
    """What to say of an answer that did not come."""
    place = shown_url(str(base_url))
    if isinstance(error, httpx.RemoteProtocolError):
        return ServiceUnreachable(f"{place} broke its answer off ({error}): its log says why")
    return ServiceUnreachable(f"no answer from {place} ({error}): is `iafvae serve` running there?")
