"""The shipped weights keep their names and their numbers, whatever becomes of the flow's code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from model import build_model
from model.config import config_from_dict
from model.contract import DensityModel

ROOT = Path(__file__).parents[2]
RUN = ROOT / "training/checkpoints/mnist-wide"


@pytest.fixture(scope="module")
def shipped() -> DensityModel:
    model = build_model(config_from_dict(json.loads((RUN / "config.json").read_text())["model"]))
    step = RUN / "checkpoints" / "step-00338052"
    whole = load_file(step / "model.safetensors")
    averaged = load_file(step / "ema.safetensors")  # parameters alone, without buffers
    model.load_state_dict(whole | averaged, strict=True)
    return model.eval()


@torch.inference_mode()
def test_posterior_draws_are_those_of_the_bundle_that_ships(shipped: DensityModel) -> None:
    """The bundle's canaries: what torch computed when the weights were exported."""
    canaries = np.load(ROOT / "service/bundles/mnist/canaries.npz")
    tensors = {name: torch.from_numpy(canaries[name]) for name in canaries.files}
    x = shipped.likelihood.from_pixels(tensors["encode/in/image"])
    inference = shipped.infer(shipped.bottom_up(x), tensors["encode/in/eps"])
    torch.testing.assert_close(inference.z, tensors["encode/out/z"], rtol=1e-5, atol=1e-5)

    x = shipped.likelihood.from_pixels(tensors["score/in/image"])
    owner = tensors["score/in/owner"]
    features = tuple(feature[owner] for feature in shipped.bottom_up(x))
    terms = shipped.elbo_terms(x[owner], features, tensors["score/in/eps"])
    torch.testing.assert_close(terms.kl, tensors["score/out/kl"], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(
        terms.log_weight, tensors["score/out/log_weight"], rtol=1e-5, atol=1e-3
    )


def test_parameters_are_named_by_step(shipped: DensityModel) -> None:
    names = {name.rpartition(".")[0] for name, _ in shipped.flow.named_parameters()}
    layers = ("hidden.0", "hidden.1", "context", "m", "s")
    assert names == {f"steps.{t}.made.{layer}" for t in (0, 1) for layer in layers}
