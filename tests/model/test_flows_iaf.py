"""Inverse autoregressive flow: its updates, its order by exact zeros, vectors and maps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from model.config import ConvIafPosterior, IafPosterior
from model.flows.flow import build_conv_flow, build_flow
from model.flows.iaf import IafStep
from model.flows.made import ConvMade, Made
from model.flows.updates import Affine, Gated, Location, Update
from model.layers import data_dependent_init

DIM, CONTEXT, BATCH = 5, 7, 4
UPDATES: dict[str, Update] = {"gated": Gated(1.5), "affine": Affine(), "location": Location()}
MAPS = (3, 4, 5)  # C, H, W


def awake(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return module.double()


def inputs(*shape: int, context: tuple[int, ...] = (CONTEXT,)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(BATCH, *(shape or (DIM,)), generator=generator, dtype=torch.float64)
    return z, torch.randn(BATCH, *context, generator=generator, dtype=torch.float64)


def jacobian(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """The largest |d function / d z| over the rows of z, `[D', D]`."""
    full = torch.autograd.functional.jacobian(lambda t: function(t).flatten(1).sum(dim=0), z)
    return full.flatten(2).abs().amax(dim=1)


@pytest.mark.parametrize("update", UPDATES.values(), ids=UPDATES)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("hidden", [(), (11,), (16, 13), (2, 3)])
def test_made_is_autoregressive_by_exact_zeros(hidden, reverse: bool, update: Update) -> None:
    made = awake(Made(DIM, CONTEXT, hidden, update, reverse=reverse))
    z, h = inputs()
    condition = made.condition(h)
    heads = made(z, condition)
    assert len(heads) == update.heads
    forbidden = torch.ones(DIM, DIM, dtype=torch.bool)
    forbidden = forbidden.tril() if reverse else forbidden.triu()
    for i in range(len(heads)):
        reads = jacobian(lambda t, i=i: made(t, condition)[i], z)
        assert not reads[forbidden].any()
        if min(hidden, default=DIM) >= DIM:  # wide enough: every allowed dependence exists
            assert reads[~forbidden].all()


@pytest.mark.parametrize("hidden", [(), (16, 13), (2, 3)])
def test_every_element_reads_the_context(hidden: tuple[int, ...]) -> None:
    made = awake(Made(DIM, CONTEXT, hidden, Gated(), reverse=False))
    z, h = inputs()
    assert jacobian(lambda t: made(z, made.condition(t))[0], h).any(dim=1).all()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("hidden_layers", "channels"), [(0, 7), (1, 3), (2, 7), (2, 6), (2, 2)])
def test_maps_are_autoregressive_by_exact_zeros(
    hidden_layers: int, channels: int, reverse: bool
) -> None:
    """Raster order over pixels, channels in turn inside a pixel, turned round by `reverse`."""
    step = IafStep(
        awake(ConvMade(MAPS[0], channels, hidden_layers, Affine(), reverse=reverse)), Affine()
    )
    count = channels if hidden_layers else 2 * MAPS[0]
    z, h = inputs(*MAPS, context=(count, *MAPS[1:]))
    reads = jacobian(lambda t: step(t, step.condition(h))[0], z)
    place = torch.arange(z[0].numel()).view(*MAPS[1:], MAPS[0]).permute(2, 0, 1).flatten()
    place = -place if reverse else place
    later = place[None, :] > place[:, None]
    assert not reads[later].any()
    assert reads.diagonal().all()
    if channels >= MAPS[0]:  # enough maps: each element reads those before it in its own pixel
        pixels = torch.arange(reads.shape[0]) % (MAPS[1] * MAPS[2])
        same_pixel = pixels[:, None] == pixels[None, :]
        assert reads[same_pixel & ~later].all()


def test_the_context_of_maps_is_added_without_a_layer() -> None:
    made = awake(ConvMade(2, 4, 1, Affine(), reverse=False))
    z, h = inputs(2, 3, 3, context=(4, 3, 3))
    hidden = torch.nn.functional.elu(made.hidden[0](z) + h)
    m, s = made(z, made.condition(h))
    torch.testing.assert_close(m, made.m(hidden))
    torch.testing.assert_close(s, made.s(hidden))


@pytest.mark.parametrize("shape", [(DIM,), MAPS], ids=["vector", "maps"])
def test_updates_are_the_papers_and_the_authors(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    z, m, s = (torch.randn(BATCH, *shape, generator=generator) for _ in range(3))
    sigma = 1 / (1 + torch.exp(-s))
    wanted = {
        "gated": (sigma * z + (1 - sigma) * m, torch.log(sigma)),
        "affine": ((z - 0.1 * m) / torch.exp(0.1 * s), -0.1 * s),
        "location": (z + m, torch.zeros_like(z)),
    }
    for name, update in UPDATES.items():
        heads = (m, s)[: update.heads]
        z_next, log_scale = update.forward(z, heads)
        torch.testing.assert_close(z_next, wanted[name][0])
        torch.testing.assert_close(log_scale, wanted[name][1])
        torch.testing.assert_close(update.inverse(z_next, heads), z)


def test_location_has_no_scale_at_all() -> None:
    for flow in (
        build_flow(IafPosterior(update="location"), DIM, CONTEXT),
        build_conv_flow(ConvIafPosterior(update="location"), 3, 7),
    ):
        assert not any(".s." in name for name, _ in flow.named_parameters())


def test_the_gates_bias_survives_data_dependent_initialisation() -> None:
    flow = build_flow(IafPosterior(steps=2, hidden=(16, 16), gate_bias=1.7), DIM, CONTEXT)
    z, h = (t.float() for t in inputs())
    with torch.no_grad(), data_dependent_init(flow):
        flow(z.repeat(50, 1), flow.condition(h.repeat(50, 1)))
    for step, condition in zip(flow.steps, flow.condition(h), strict=True):
        torch.testing.assert_close(step.made.s.bias, torch.full((DIM,), 1.7))
        _, s = step.made(z, condition)
        assert (s - 1.7).abs().max() < 1.0  # each step starts by changing z only slightly


@pytest.mark.parametrize("reverse", [True, False])
def test_consecutive_steps_reverse_the_order_where_asked(reverse: bool) -> None:
    flow = awake(build_flow(IafPosterior(steps=2, hidden=(16, 16), reverse=reverse), DIM, CONTEXT))
    z, h = inputs()
    first, second = (
        jacobian(lambda t, s=s, c=c: s(t, c)[0], z)
        for s, c in zip(flow.steps, flow.condition(h), strict=True)
    )
    assert not first.triu(diagonal=1).any()
    second = second.T if reverse else second
    assert not second.triu(diagonal=1).any()
    assert second.tril(diagonal=-1).any()


def test_every_step_over_maps_takes_the_same_context() -> None:
    flow = build_conv_flow(ConvIafPosterior(steps=3), 3, 7)
    h = torch.randn(2, 7, 4, 4)
    assert all(condition is h for condition in flow.condition(h))


def test_the_inverse_of_maps_takes_a_wavefront_of_passes() -> None:
    made = ConvMade(3, 7, 2, Affine(), reverse=False)
    ranks = made.ranks(torch.zeros(1, 3, 6, 8))
    assert ranks.shape == (3, 6, 8)
    assert int(ranks.max()) + 1 == 3 * (8 + 2 * 5)
