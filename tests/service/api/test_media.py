"""Accept headers, by the rules of RFC 9110."""

from __future__ import annotations

import pytest

from service.api.request.negotiation import negotiate
from service.codecs import JSON, NPY, PNG
from service.errors import NotAcceptable

OFFERS = (JSON, NPY, PNG)


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("image/png", PNG),
        ("image/*", PNG),
        ("IMAGE/PNG", PNG),
        ("application/*", JSON),
        ("application/x-npy, */*;q=0.1", NPY),
        ("application/json;q=0.5, image/png", PNG),
        ("image/png, application/json", PNG),
        ("application/json, image/png", JSON),
        ("text/html, image/png;q=0.8, */*;q=0.1", PNG),
        ("*/*, application/json;q=0", NPY),
        ("application/json; charset=utf-8", JSON),
        ("*/*, application/x-npy", NPY),  # what is named is meant
        ("image/*, application/x-npy", NPY),
        ("application/json, image/png;q=7", JSON),  # no quality is above 1
        ("application/json;q=nan, image/png;q=0.1", PNG),
    ],
)
def test_the_best_offer(accept, chosen):
    assert negotiate(accept, OFFERS) == chosen


@pytest.mark.parametrize("accept", ["text/html", "image/jpeg", "*/*;q=0", "application/json;q=no"])
def test_what_cannot_be_made(accept):
    with pytest.raises(NotAcceptable, match="application/x-npy"):
        negotiate(accept, OFFERS)
