"""What a measurement of a server found: rates, latencies, refusals, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

GOOD_SECONDS = 1.0  # an answer that takes longer is not counted as goodput


class Kind(Enum):
    """What became of a request."""

    OK = "ok"
    REFUSED = "refused"  # 429 and 503: the server says that it will not
    ERROR = "error"  # another status
    WRONG = "wrong"  # 200, with another body than the one that is right
    BROKEN = "broken"  # the server hung up, or sent something that is not HTTP
    UNANSWERED = "unanswered"

    @classmethod
    def of(cls, status: int) -> Kind:
        """By the status of an answer."""
        if status == 200:
            return cls.OK
        return cls.REFUSED if status in (429, 503) else cls.ERROR


WAITED = (Kind.OK, Kind.UNANSWERED)


class Record(NamedTuple):
    """One request: when it was due, sent and done, by one clock; images that it carried."""

    due: float
    sent: float
    done: float
    images: int
    kind: Kind


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A measurement as it was made; offered: requests a second of an open loop."""

    records: list[Record] = field(repr=False)
    start: float
    seconds: float
    offered: float | None
    server_cpu_seconds: float
    client_cpu_seconds: float

    def latencies(self, kind: Kind) -> NDArray[np.float64]:
        """Seconds from due to done, of the requests of `kind`."""
        return np.array([r.done - r.due for r in self.records if r.kind is kind])

    def figures(self, good_seconds: float = GOOD_SECONDS) -> dict[str, float]:
        """Everything that is reported, in units that its name tells; absent where nobody knows.

        Rates are over the time until the last answer. An image that failed is not paid for, so the
        processor time an image is over those that succeeded. Latencies are of requests that were
        answered, and of those that nobody answered, as long as they were waited for.
        """
        answered = [r.done for r in self.records if r.kind is not Kind.UNANSWERED]
        seconds = max(answered, default=self.start + self.seconds) - self.start
        done = sum(r.images for r in self.records if r.kind is Kind.OK)
        good = sum(
            r.images for r in self.records if r.kind is Kind.OK and r.done - r.due <= good_seconds
        )
        found = {
            "requests": float(len(self.records)),
            "seconds": seconds,
            "images_per_second": done / seconds,
            "goodput": good / seconds,
            "client_share": self.client_cpu_seconds / self.seconds,
            **{kind.value: float(sum(r.kind is kind for r in self.records)) for kind in Kind},
            **_times("", np.concatenate(list(map(self.latencies, WAITED)))),
            **_times("refused_", self.latencies(Kind.REFUSED)),
        }
        if self.offered is not None:
            found["offered"] = self.offered
            found |= _times("sent_late_", np.array([r.sent - r.due for r in self.records]))
        if done:
            found["cpu_us"] = 1e6 * self.server_cpu_seconds / done
            found["client_us"] = 1e6 * self.client_cpu_seconds / len(self.records)
        return found


def _times(name: str, seconds: NDArray[np.float64]) -> dict[str, float]:
    if not len(seconds):
        return {}
    p50, p99 = np.percentile(seconds, [50, 99], method="higher")
    return {f"{name}p50_ms": float(1e3 * p50), f"{name}p99_ms": float(1e3 * p99)}
