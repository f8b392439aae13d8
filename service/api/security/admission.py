"""How much is worked on at once, and who may have how much of it.

Rows that wait are bounded by the scheduler; but of small requests many more come in time than the
event loop can even read, and they would all wait for it. So requests in work are bounded, and so
are the bytes of their bodies. What is bounded is shared: a holder that has some already may have
as much as is free (the dynamic thresholds of Choudhury and Hahne, 1998, *Dynamic queue length
thresholds for shared-memory packet switches*, IEEE/ACM Transactions on Networking 6(2)), so that
one that takes all it gets fills half, and the others find room.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import time
from collections import Counter
from collections.abc import Callable

from starlette.types import Scope

from service.api.response.problems import PROBLEMS, document_of, problem_headers
from service.api.security.middleware import SECURITY_HEADERS, request_id
from service.errors import BadRequest, Overloaded, QuotaExceeded
from service.metrics import Metrics

__all__ = ["Admission", "Quota", "Shares", "caller_of"]

Headers = list[tuple[bytes, bytes]]
OPERATION_PATHS = ("/v1/", "/v2/models/")
MINUTE = 60.0
FULL = PROBLEMS[Overloaded]
MAX_HOLDERS = 4096  # of quotas; then those who owe nothing are forgotten
ADMINISTRATION = "/v1/admin/"
NAME = b"{request id}"  # stands where it will


def caller_of(scope: Scope) -> tuple[str, str]:
    """Whose turn a request is counted as, "holder/connection", and whose share it takes from: the
    holder's of its key; without keys, its address, or of IPv6 its network of 64 bits.
    """
    host, port = scope.get("client") or ("", 0)
    holder = scope["state"].get("caller") or _network(host)
    return f"{holder}/{host}:{port}", holder


@functools.lru_cache(1024)
def _network(host: str) -> str:
    """What of an IPv6 address tells whose it is: one customer has 2^64 of them or more (RFC 6177,
    2)."""
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        return host
    return str(address.ipv4_mapped or ipaddress.IPv6Address(int(address) >> 64 << 64))


class Shares:
    """A capacity of which several hold a part."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.held = capacity, 0
        self._by_holder: Counter[str] = Counter()

    def take(self, holder: str, amount: int = 1, *, anyway: bool = False) -> bool:
        """Whether `holder` may have `amount` more, which it then holds; anyway: it has it already,
        so that it and others may have less more. Of nothing: whether it has no more than its share.
        """
        free, own = self.capacity - self.held, self._by_holder.get(holder, 0)
        if not anyway and (amount > free or (own and own + amount > free)):
            return False
        if not amount:
            return True
        self.held += amount
        self._by_holder[holder] = own + amount
        return True

    def give(self, holder: str, amount: int = 1) -> None:
        """`holder` has `amount` less."""
        self.held -= amount
        self._by_holder[holder] -= amount
        if not self._by_holder[holder]:
            del self._by_holder[holder]


class Quota:
    """Rows that each holder may have in a minute; None: as many as it likes.

    What was not had can be had later, as much as a minute's, and the request that exceeds it is
    still answered (the generic cell rate algorithm of ITU-T I.371, of which only the moment is kept
    when all that a holder has had will be paid for). `clock` gives seconds.
    """

    def __init__(
        self, rows_a_minute: int | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.is_bound = rows_a_minute is not None
        self._seconds_each = MINUTE / rows_a_minute if rows_a_minute else 0.0
        self._clock = clock
        self._paid: dict[str, float] = {}

    def charge(self, caller: str, rows: int) -> None:
        """`rows` more are had by the holder of `caller`."""
        if not self.is_bound:
            return
        holder, now = caller.partition("/")[0], self._clock()
        if len(self._paid) >= MAX_HOLDERS and holder not in self._paid:
            self._paid = {name: moment for name, moment in self._paid.items() if moment > now}
        self._paid[holder] = max(self._paid.get(holder, 0.0), now) + rows * self._seconds_each

    def check(self, holder: str) -> None:
        """Raises QuotaExceeded where it must wait."""
        wait = self._paid.get(holder, 0.0) - self._clock() - MINUTE
        if wait > 0:
            raise QuotaExceeded(
                f"{round(MINUTE / self._seconds_each)} rows (a scored image has one for each "
                "importance sample) may be had in a minute, and more were: send the request again "
                "later",
                wait,
            )


class Admission:
    """Requests that are worked on, the `bytes` of their bodies and of answers that their clients
    have not taken, and the `quota` of each holder.

    operations: their names, for the metrics; early: whether a refusal may pass by the application,
    and with it the access log and the headers of other origins; by_address: whether holders are
    addresses that nothing before a request's task can change, neither a key nor a proxy.

    A server may refuse a request before it is made a task: `refuses`, then `whole_refusal`.
    """

    def __init__(
        self,
        *,
        max_in_flight: int,
        max_bytes: int,
        quota: Quota | None = None,
        metrics: Metrics,
        operations: frozenset[str],
        early: bool = True,
        by_address: bool = False,
    ) -> None:
        self._slots, self.bytes = Shares(max_in_flight), Shares(max_bytes)
        self.quota = quota or Quota(None)
        self._metrics, self._operations = metrics, operations
        self._early, self._by_address = early, by_address
        self._promised: list[str] = []  # slots, to holders
        self._last, self._seconds_each = time.monotonic(), 0.0

    @property
    def in_flight(self) -> int:
        """Requests that are worked on."""
        return self._slots.held

    def check(self, holder: str) -> None:
        """Before the body is read: raises Overloaded where no slot is free, QuotaExceeded where
        `holder` has had too much."""
        if self._slots.held >= self._slots.capacity:
            raise self._full()
        if self.quota.is_bound:
            self.quota.check(holder)

    def enter(self, holder: str) -> None:
        """Take a slot for a request. Raises Overloaded."""
        if not self._slots.take(holder):
            raise self._full()

    def leave(self, holder: str) -> None:
        """Give the slot of a request back."""
        self._slots.give(holder)
        now = time.monotonic()
        self._seconds_each += 0.01 * (now - self._last - self._seconds_each)
        self._last = now

    def refuses(self, scope: Scope) -> bool:
        """Whether a request is one too many: there is no slot, and it will need one."""
        if (
            not self._early
            or scope["method"] != "POST"
            or not scope["path"].startswith(OPERATION_PATHS)
            or scope["path"].startswith(ADMINISTRATION)
        ):
            return False
        if not self._by_address:
            return self._slots.held >= self._slots.capacity
        host = (scope.get("client") or ("",))[0]
        host = _network(host)
        if not self._slots.take(host):
            return True
        # Its task enters after all that came in this turn of the event loop.
        if not self._promised:
            asyncio.get_running_loop().call_soon(self._keep_promises)
        self._promised.append(host)
        return False

    def _keep_promises(self) -> None:
        """Free the slots held for requests whose tasks begin now and take slots themselves."""
        for host in self._promised:
            self._slots.give(host)
        self._promised.clear()

    def unread(self, scope: Scope, size: int) -> Callable[[], None]:
        """`size` bytes of an answer to `scope` wait for its client, of which some may be counted
        already; what this gives says that they do no more."""
        _, holder = caller_of(scope)
        size = max(0, size - scope["state"].get("counted", 0))
        self.bytes.take(holder, size, anyway=True)
        return functools.partial(self.bytes.give, holder, size)

    def malformed(self) -> None:
        """Count a request that cannot be framed."""
        self._metrics.request("", "", PROBLEMS[BadRequest].type, seconds=0.0)

    def whole_refusal(self, scope: Scope) -> tuple[int, Headers, bytes]:
        """Status, headers and body of a refusal, which is counted."""
        error, path = self._full(), scope["path"]
        operation = path.rpartition("/")[2].replace("-", "_")
        if operation not in self._operations:  # a metric's labels are not for callers to choose
            operation = ""
        self._metrics.request(operation, "", FULL.type, seconds=0.0)
        name = request_id(scope)
        headers, parts = _prepared(str(error), path, problem_headers(error)["retry-after"])
        body = name.join(parts)
        named = [(b"content-length", b"%d" % len(body)), (b"x-request-id", name)]
        return FULL.status, named + headers, body

    def _full(self) -> Overloaded:
        return Overloaded(
            f"{self._slots.capacity} requests are taken at once, of which nobody may have more "
            "than are free: send the request again later",
            self._slots.held * self._seconds_each,
        )


@functools.lru_cache(64)
def _prepared(detail: str, path: str, retry_after: str) -> tuple[Headers, list[bytes]]:
    """Headers of a refusal, and its body before and behind the request's id: made for each, they
    would take the time of those that were taken."""
    scope = {"path": path, "state": {"request_id": NAME.decode("ascii")}}
    body, media_type = document_of(Overloaded(detail), scope)
    headers = [
        (b"content-type", media_type.encode("ascii")),
        (b"retry-after", retry_after.encode("ascii")),
        *SECURITY_HEADERS,
    ]
    return headers, body.rsplit(NAME, 1)
