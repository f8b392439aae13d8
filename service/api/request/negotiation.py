"""Media types: which form of an answer an ``Accept`` header asks for (RFC 9110, section 12.5.1)."""

from __future__ import annotations

from functools import lru_cache

from service.errors import NotAcceptable

__all__ = ["MAX_ACCEPT_BYTES", "PROBLEM", "negotiate", "weighted"]

PROBLEM = "application/problem+json"
MAX_ACCEPT_BYTES = 2**11  # of a header that are looked at


@lru_cache(maxsize=256)
def negotiate(accept: str, offers: tuple[str, ...]) -> str:
    """The member of `offers` that `accept` prefers; among equals the one that stands first there.

    `offers` is in the server's order: ``*/*`` and an absent header (empty `accept`) get its first.

    Raises:
        NotAcceptable: naming what can be made.
    """
    if len(accept) > MAX_ACCEPT_BYTES:
        raise NotAcceptable(f"Accept has more than {MAX_ACCEPT_BYTES} bytes: name fewer types")
    ranges = [weighted(part) for part in accept.split(",") if part.strip()] or [("*/*", 1.0)]

    def rank(offer: str) -> tuple[float, int]:
        """Its quality, which the most specific range decides, and how early it is named itself."""
        specificity, quality, order = max(
            (_specificity(pattern, offer), quality, -index)
            for index, (pattern, quality) in enumerate(ranges)
        )
        return quality if specificity else 0.0, order if specificity == 3 else -len(ranges)

    best = max(offers, key=rank)
    if rank(best)[0] == 0.0:
        raise NotAcceptable(
            f"Accept: {accept[:200]} names nothing that can be made here; "
            f"ask for one of {', '.join(offers)}"
        )
    return best


def weighted(part: str) -> tuple[str, float]:
    """What a part of an ``Accept`` or ``Accept-Encoding`` header names, and its quality."""
    pattern, *parameters = (piece.strip().lower() for piece in part.split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return pattern, min(1.0, max(0.0, float(value)))
            except ValueError:
                return pattern, 0.0
    return pattern, 1.0


def _specificity(pattern: str, offer: str) -> int:
    if pattern == offer:
        return 3
    if pattern == f"{offer.partition('/')[0]}/*":
        return 2
    return 1 if pattern == "*/*" else 0
