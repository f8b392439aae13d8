"""Configurations round-trip through JSON and refuse by name what they do not know."""

from __future__ import annotations

import json

import pytest

from model import build_model
from model.config import (
    ConfigError,
    ConvVaeConfig,
    IafPosterior,
    config_from_dict,
    preset,
    preset_names,
)


@pytest.mark.parametrize("name", preset_names())
def test_presets_round_trip_through_json(name: str) -> None:
    config = preset(name)
    assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"kind": "gan"}, "gan"),
        ({"latent_dims": 3}, "latent_dims"),
        ({"likelihood": "gaussian"}, "gaussian"),
        ({"latent_dim": 0}, "latent_dim"),
        ({"image_shape": [1, 4, 4]}, "4x4"),
        ({"posterior": {"kind": "radial"}}, "radial"),
        ({"posterior": {"kind": "conv_iaf"}}, "conv_iaf"),
        ({"posterior": {"kind": "planar", "steps": 0}}, "steps"),
        ({"posterior": {"kind": "coupling", "hidden": []}}, "hidden"),
        ({"posterior": {"kind": "coupling", "update": "gated"}}, "update"),
        ({"posterior": {"kind": "iaf", "update": "additive"}}, "update"),
        ({"posterior": {"kind": "iaf", "hidden": [16, 0]}}, "hidden"),
        ({"posterior": {"kind": "iaf", "depth": 3}}, "depth"),
        ({"posterior": {"kind": "iaf", "steps": 0}}, "steps"),
        ({"posterior": None}, "posterior"),
        ({"latent_dim": "32"}, "wrong type"),
        ({"image_shape": 28}, "wrong type"),
        ({"hidden": 450.0}, r"model\.hidden must be a whole number, not 450\.0"),
        ({"hidden": True}, "whole number"),
        ({"channels": [16, 32.0]}, r"model\.channels must be a list of whole numbers"),
        ({"image_shape": [1, 28]}, "a list of 3 whole numbers"),
        ({"likelihood": 1}, "one of bernoulli, "),
        ({"posterior": {"kind": "iaf", "gate_bias": "1"}}, r"gate_bias must be a number"),
        ({"posterior": {"kind": "iaf", "reverse": 1}}, "true or false"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        config_from_dict({**ConvVaeConfig().to_dict(), **change})


def test_whole_numbers_are_numbers() -> None:
    config = config_from_dict(
        {**ConvVaeConfig().to_dict(), "posterior": {"kind": "iaf", "gate_bias": 2}}
    )
    assert isinstance(config.posterior.gate_bias, float)
    build_model(config)
    with pytest.raises(ConfigError, match="too large"):
        config_from_dict(
            {**ConvVaeConfig().to_dict(), "posterior": {"kind": "iaf", "gate_bias": 10**400}}
        )


def test_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"mnits.*mnist-diagonal"):
        preset("mnits")


def test_configs_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        IafPosterior().steps = 3  # type: ignore[misc]
