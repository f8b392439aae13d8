"""Which version is newer: the order that semver.org gives as an example, and what people write."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidInput
from service.repository.versions import is_release, newest_first, split_reference, version_key

SEMVER_11 = (
    "1.0.0-alpha 1.0.0-alpha.1 1.0.0-alpha.beta 1.0.0-beta 1.0.0-beta.2 1.0.0-beta.11 "
    "1.0.0-rc.1 1.0.0"
)
ORDERS = [
    SEMVER_11,  # section 11 of the specification
    "1.0.0 2.0.0 2.1.0 2.1.1",  # the same section
    "1.9.0 1.10.0 1.11.0",
    "0.9 1 1.0.1 1.1",
    "1.9.9 2.0.0-rc.1 2.0.0-rc.2 2.0.0-rc.10 2.0.0",
    "2.0.0a1 2.0.0b1 2.0.0rc9 2.0.0rc10 2.0.0",
    "v1.9 v1.10",
    "2024-01-02 2024-01-10 2024-02-01",
    "20240102 20241231",
    "draft latest 0.0.1",
]


@pytest.mark.parametrize("order", ORDERS)
def test_order(order):
    wanted = order.split()
    for one, other in itertools.pairwise(wanted):
        assert version_key(one) < version_key(other), f"{one} is older than {other}"
    assert newest_first([*wanted[1::2], *wanted[::2]]) == wanted[::-1]


@pytest.mark.parametrize(
    ("one", "other"), [("1.0", "1.0.0"), ("1.2.0+a", "1.2.0+b"), ("v1.2", "1.2")]
)
def test_versions_of_equal_rank_still_have_an_order(one, other):
    assert version_key(one)[:-1] == version_key(other)[:-1]
    assert version_key(one) != version_key(other)


GRAMMAR = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}", fullmatch=True)  # the manifest's


@given(GRAMMAR, GRAMMAR)
def test_every_version_of_the_manifests_grammar_has_its_place(one, other):
    assert (version_key(one) == version_key(other)) == (one == other)
    assert isinstance(is_release(one), bool)


def test_releases():
    assert all(is_release(v) for v in ("1", "1.2.3", "v2.0", "1.0+build.7"))
    assert not any(is_release(v) for v in ("1.0-rc.1", "1.0rc1", "latest", "1.0_2"))


def test_references():
    assert split_reference("mnist", None) == ("mnist", None)
    assert split_reference("mnist@1.2-rc.1", None) == ("mnist", "1.2-rc.1")
    assert split_reference("mnist@1", "1") == ("mnist", "1")
    assert split_reference(None, "1") == (None, "1")
    with pytest.raises(InvalidInput, match="give one"):
        split_reference("mnist@1", "2")
