"""Options: strict as JSON, lenient as text, unknown fields named."""

from __future__ import annotations

import pytest

from service.api.request.parsing import query_options
from service.api.request.schemas import (
    InterpolateOptions,
    SampleOptions,
    ScoreOptions,
    parse_options,
)
from service.errors import InvalidInput


def test_text_is_parsed():
    options = parse_options(SampleOptions, {"n": "4", "seed": "7", "temperature": "0.5"}, text=True)
    assert (options.n, options.seed, options.temperature) == (4, 7, 0.5)
    assert parse_options(ScoreOptions, {"resize": "true"}, text=True).resize is True


@pytest.mark.parametrize("given", ["0.5,1", ["0.5", "1"]])
def test_temperature_lists_as_text(given):
    assert parse_options(SampleOptions, {"temperature": given}, text=True).temperature == [0.5, 1]


@pytest.mark.parametrize(
    "fields",
    [
        {"n": "4"},
        {"n": True},
        {"n": 1.5},
        {"n": 0},
        {"n": -1},
        {"seed": -1},
        {"seed": 2**63},
        {"seed": 0.5},
        {"seed": 2.0**60},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": [1.0, float("nan")]},
        {"temperature": "1"},
        {"temperature": None},
        {"output": "median"},
        {"model": 1},
    ],
)
def test_bad_values_in_json(fields):
    with pytest.raises(InvalidInput, match=next(iter(fields))):
        parse_options(SampleOptions, fields, text=False)


def test_seeds_up_to_the_largest():
    assert parse_options(SampleOptions, {"seed": 2**63 - 1}, text=False).seed == 2**63 - 1


def test_unknown_fields_are_named_with_the_known_ones():
    with pytest.raises(InvalidInput, match=r"'temprature'; known are .*temperature"):
        parse_options(SampleOptions, {"temprature": 1.0}, text=False)


def test_all_that_is_wrong_is_said():
    with pytest.raises(InvalidInput, match=r"(?s)n=0.*seed=-1"):
        parse_options(SampleOptions, {"n": 0, "seed": -1}, text=False)


@pytest.mark.parametrize("fields", [{"alpha": 0.0}, {"alpha": 1.0}, {"importance_samples": 0}])
def test_bounds_of_scoring(fields):
    with pytest.raises(InvalidInput):
        parse_options(ScoreOptions, fields, text=False)


def test_an_interpolation_has_two_ends():
    with pytest.raises(InvalidInput, match="n=1"):
        parse_options(InterpolateOptions, {"n": 1}, text=False)


@pytest.mark.parametrize(
    ("value", "seed"), [(4.0, 4), (0.0, 0), (1e15, 10**15), (2.0**53 - 1, 2**53 - 1)]
)
def test_a_number_without_a_fraction_is_an_integer(value, seed):
    """So JSON Schema has it, and so some languages write all numbers."""
    assert parse_options(SampleOptions, {"seed": value}, text=False).seed == seed
    assert parse_options(InterpolateOptions, {"seeds": [value]}, text=False).seeds == [seed]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (SampleOptions, "n"),
        (SampleOptions, "seed"),
        (SampleOptions, "temperature"),
        (ScoreOptions, "alpha"),
        (ScoreOptions, "altered"),
        (InterpolateOptions, "n"),
        (InterpolateOptions, "seeds"),
    ],
)
@pytest.mark.parametrize("value", ["1_0", "0_1"])
def test_numbers_in_text_are_not_pythons(kind, name, value):
    with pytest.raises(InvalidInput, match=f"{name}=.*without '_'"):
        parse_options(kind, {name: value}, text=True)


def test_values_of_json_are_named_as_json():
    with pytest.raises(InvalidInput, match=r"temperature=null: .*; output=true: "):
        parse_options(SampleOptions, {"temperature": None, "output": True}, text=False)


@pytest.mark.parametrize(
    ("kind", "query", "expected"),
    [
        (ScoreOptions, "altered=0,1&altered=2", {"altered": [0, 1, 2]}),
        (SampleOptions, "resample=z1,z2&resample=z3", {"resample": ["z1", "z2", "z3"]}),
        (SampleOptions, "keep=z1&keep=z2&keep=z3,z4", {"keep": ["z1", "z2", "z3", "z4"]}),
        (SampleOptions, "temperature=1,0.5&temperature=2", {"temperature": [1, 0.5, 2]}),
        (SampleOptions, "temperature=1&temperature=2", {"temperature": [1, 2]}),
        (InterpolateOptions, "seeds=1&seeds=2", {"seeds": [1, 2]}),
        (InterpolateOptions, "seeds=1,2", {"seeds": [1, 2]}),
    ],
)
def test_a_list_of_a_query_has_commas_or_comes_several_times(kind, query, expected):
    options = parse_options(kind, query_options(query.encode()), text=True)
    assert options.model_dump(include=set(expected)) == expected
