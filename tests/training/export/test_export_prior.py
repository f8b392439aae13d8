"""Graphs of a model whose prior is a flow: torch's numbers, and no permutation in them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from model.config import CouplingPrior
from service.bundle import load_bundle
from service.engine.onnxruntime_engine import Engine
from training.export.export import BundleDetails, export_bundle

FLOW = CouplingPrior(couplings=2, hidden=(16, 24))


@pytest.fixture(scope="module", params=["conv", "ladder"])
def exported(request, convs, ladders, tmp_path_factory):
    """A model and its bundle; exporting compares both through the engine, in all batches."""
    if request.param == "conv":
        model = convs.conv_model(prior=FLOW)
    else:
        model = ladders.ladder(replace(ladders.CONFIG, prior=FLOW))
        with torch.no_grad():
            for parameter in model.prior.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    out = tmp_path_factory.mktemp("prior") / "bundle"
    bundle = export_bundle(
        model, out, BundleDetails(name="flow", description="For tests."), calibration=None
    )
    engine = Engine(load_bundle(bundle.path), provider="cpu", max_rows=64)
    engine.warm()
    return model, bundle, engine


def near(got, wanted, rtol=1e-4, atol=1e-3):
    np.testing.assert_allclose(got, wanted.numpy(), rtol=rtol, atol=atol)


@pytest.mark.parametrize("n", [1, 7])
@torch.no_grad()
def test_graphs_compute_what_torch_does(exported, n):
    model, _, engine = exported
    generator = torch.Generator().manual_seed(n)
    dim, groups = model.layout.dim, len(model.layout.groups)
    eps = torch.randn(n, dim, generator=generator)
    warmth = torch.rand(n, groups, generator=generator) + 0.5
    u = torch.rand(n, model.likelihood.uniforms, generator=generator)
    got = engine.run("sample", {"eps": eps.numpy(), "temperature": warmth.numpy(), "u": u.numpy()})
    near(got["mean"], model.likelihood.mean(model.generate(eps, warmth)))

    pixels = torch.randint(0, 256, (n, *model.config.image_shape), generator=generator)
    image = (255 * (pixels > 127)).to(torch.uint8)
    x = model.likelihood.from_pixels(image)
    found = model.infer(model.bottom_up(x), eps)
    given = {"image": image.numpy()}
    if model.likelihood.kind == "bernoulli":  # nothing is grey: the draw has no say
        given["u_image"] = np.full((n, model.dims), 0.5, np.float32)
    got = engine.run("encode", {**given, "eps": eps.numpy()})
    near(got["z"], found.z)
    near(got["prior_eps"], found.prior_eps)
    assert (found.prior_eps - found.z).abs().max() > 0.1
    ones = np.ones((n, groups), np.float32)
    drawn = engine.run("sample", {"eps": got["prior_eps"], "temperature": ones, "u": u.numpy()})
    decoded = engine.run("decode", {"z": got["z"], "u": u.numpy()})
    np.testing.assert_allclose(drawn["mean"], decoded["mean"], atol=1e-4)

    owner = torch.randint(n, (13,), generator=generator)
    eps = torch.randn(13, dim, generator=generator)
    log_px_z, kl = model(x[owner], eps)
    got = engine.run("score", {**given, "owner": owner.numpy(), "eps": eps.numpy()})
    near(got["kl"], model.group_kl(kl), atol=1e-2)
    near(got["log_weight"], log_px_z - kl.sum(1), atol=1e-2)


@pytest.mark.parametrize("form", ["portable", "cpu"])
def test_nothing_is_permuted_and_the_flow_is_where_it_is_needed(exported, form):
    _, bundle, _ = exported
    for operation, flows in (("sample", 1), ("decode", 0), ("encode", 1)):
        path = bundle.path / form / f"{operation}.onnx"
        nodes = onnx.load(path, load_external_data=False).graph.node
        kinds = [node.op_type for node in nodes]
        assert "Gather" not in kinds
        assert "ScatterElements" not in kinds
        assert kinds.count("Relu") == 2 * FLOW.couplings * flows
