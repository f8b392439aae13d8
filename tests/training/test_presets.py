"""Every preset is a run that can be started and read back; contradictions are named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from model.config import ConfigError, ResnetVaeConfig, preset_names
from training.config import (
    DataConfig,
    OptimConfig,
    RunConfig,
    Runtime,
    TrainConfig,
    for_images,
    overridden,
    run_config_from_dict,
    run_preset,
)
from training.errors import TrainingError
from training.runs.directory import open_run, read_config, write_config

BUNDLES = Path(__file__).resolve().parents[2] / "service" / "bundles"
CHECKPOINTS = Path(__file__).resolve().parents[2] / "training" / "checkpoints"
SHAPES = {"mnist": (1, 28, 28), "fashion-mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
LADDERS = [name for name in preset_names() if isinstance(run_preset(name).model, ResnetVaeConfig)]


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_is_a_run_on_data_of_its_shape(name):
    config = run_preset(name)
    assert config.preset == name
    assert config.model.image_shape == SHAPES[config.data.name]
    assert run_config_from_dict(config.to_dict()) == config
    assert config.data.horizontal_flips == name.startswith("cifar10")
    assert config.data.name.startswith(name.split("-")[0])


@pytest.mark.parametrize(
    ("name", "checkpoint"),
    [("fashion-mnist", "fashion-mnist-mixture"), ("cifar10-mixture", "cifar10-mixture")],
)
def test_a_preset_trains_the_model_of_the_bundle(name, checkpoint):
    shipped = read_config(CHECKPOINTS / checkpoint)
    assert run_preset(name).model == shipped.model
    assert run_preset(name).data == shipped.data


@pytest.mark.parametrize("bundle", ["mnist", "fashion-mnist", "cifar10"])
def test_each_bundle_names_its_preset(bundle):
    manifest = json.loads((BUNDLES / bundle / "manifest.json").read_text(encoding="utf-8"))
    preset = manifest["training"]["preset"]
    assert preset in preset_names()
    assert run_preset(preset).data.name == manifest["training"]["data"]
    assert f"| preset | {preset} |" in (BUNDLES / bundle / "MODEL_CARD.md").read_text("utf-8")


@pytest.mark.parametrize("name", LADDERS)
def test_a_ladders_free_bits_take_the_place_of_the_kl_warm_up(name):
    train, optim = run_preset(name).train, run_preset(name).optim
    assert (train.free_bits_nats, train.kl_warmup_epochs) == (0.1, 0.0)
    assert optim.ema_decay == 0.999
    if name == "cifar10-mixture":
        assert (optim.kind, optim.learning_rate) == ("adam", 0.005)
    else:
        small = optim.batch_size <= 64
        assert (optim.kind, optim.learning_rate) == ("adamax", 0.01 if small else 0.002)


def test_the_authors_best_run_has_their_settings():
    assert run_preset("cifar10-paper").optim.batch_size == 256
    assert set(LADDERS) == {
        *("mnist-ladder", "fashion-mnist"),
        *("fashion-mnist-mixture", "fashion-mnist-mixture-diagonal"),
        *("cifar10-small", "cifar10-mixture", "cifar10-medium", "cifar10-paper"),
    }


def test_an_unknown_preset_lists_those_there_are():
    with pytest.raises(ConfigError, match=r"unknown preset 'cifar'.*cifar10-paper"):
        run_preset("cifar")


def test_a_ladder_takes_images_of_another_shape_or_says_why_not():
    config = run_preset("cifar10-small")
    fitted = for_images(config, (1, 28, 20))
    assert fitted.model == replace(config.model, image_shape=(1, 28, 20))
    assert for_images(config, config.model.image_shape) is config
    with pytest.raises(ConfigError, match="too small for 2 levels"):
        for_images(config, (3, 2, 2))


CONTRADICTIONS = {
    "10 images does not divide into 4": {"optim": {"batch_size": 10, "accumulate": 4}},
    "accumulate must be positive": {"optim": {"accumulate": 0}},
    "one of bernoulli": {"model": {"likelihood": "gaussian"}},
    "free_bits_nats must be finite": {"train": {"free_bits_nats": float("inf")}},
}


@pytest.mark.parametrize("named", CONTRADICTIONS)
def test_a_contradiction_is_named(named):
    with pytest.raises(ConfigError, match=named):
        overridden(run_preset("cifar10-small"), CONTRADICTIONS[named])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"cuda_graphs": "maybe"}, "on or off"),
        ({"timeout_minutes": 0.0}, "positive"),
        ({"timeout_minutes": float("nan")}, "positive"),
    ],
)
def test_a_runtime_that_cannot_be_is_named(options, named):
    with pytest.raises(ConfigError, match=named):
        Runtime(**options)


def test_configurations_of_before_are_read():
    """Runs that were started before flips and micro-batches have neither."""
    values = run_preset("mnist").to_dict()
    del values["data"]["horizontal_flips"], values["optim"]["accumulate"]
    config = run_config_from_dict(values)
    assert (config.data.horizontal_flips, config.optim.accumulate) == (False, 1)


def test_micro_batches_may_change_at_a_resume_unless_free_bits_forbid_it(tmp_path: Path):
    free = RunConfig(
        model=run_preset("mnist").model,
        data=DataConfig(),
        optim=OptimConfig(batch_size=8),
        train=TrainConfig(free_bits_nats=0.1),
    )
    plain = replace(free, train=TrainConfig())
    for name, config in (("free", free), ("plain", plain)):
        (tmp_path / name).mkdir()
        write_config(tmp_path / name, config, {})
    halved = replace(free.optim, accumulate=2)
    open_run(tmp_path / "plain", replace(plain, optim=halved), resume=True)
    with pytest.raises(TrainingError, match=r"optim\.accumulate: 1 then, 2 now"):
        open_run(tmp_path / "free", replace(free, optim=halved), resume=True)
