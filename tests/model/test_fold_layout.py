"""Folded, what a processor computes at once is one convolution; and the numbers stay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from model.flows.made import ConvMade
from model.flows.updates import Affine, Gated, Location
from model.ladder_layers import Double, Residual
from model.layers import Conv, ConvTranspose

ROWS, Z, H, SIZE = 3, 4, 6, (5, 4)


def randomised(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


@pytest.mark.parametrize("update", [Gated(), Affine(), Location()], ids=lambda u: type(u).__name__)
@pytest.mark.parametrize("layers", [0, 1, 2])
@pytest.mark.parametrize("reverse", [False, True])
@torch.no_grad()
def test_all_heads_are_one_convolution(update, layers, reverse) -> None:
    net = randomised(ConvMade(Z, H, layers, update, reverse=reverse))
    folded = net.folded()
    convs = [m for m in folded.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == layers + 1
    assert convs[-1].out_channels == update.heads * Z == len(convs[-1].weight)
    z = torch.randn(ROWS, Z, *SIZE)
    context = torch.randn(ROWS, H if layers else update.heads * Z, *SIZE)
    given, expected = folded.condition(context), net.condition(context)
    heads = folded(z, given)
    assert len(heads) == update.heads
    for head, before in zip(heads, net(z, expected), strict=True):
        torch.testing.assert_close(head, before, rtol=1e-5, atol=1e-6)
    assert torch.equal(folded.ranks(z), net.ranks(z))


def strided() -> Residual:
    conv = ConvTranspose(Z + H, H, output_padding=(1, 1))
    return Residual(conv, (Z, H), Double((2 * SIZE[0], 2 * SIZE[1])), 0.1)


def plain() -> Residual:
    return Residual(Conv(Z + H, H), (Z, H), nn.Identity(), 0.1)


@pytest.mark.parametrize(("make", "calls"), [(strided, 1), (plain, 2)])
@torch.no_grad()
def test_maps_that_join_at_a_stride_are_one_convolution(make, calls) -> None:
    residual = randomised(make())
    folded = residual.folded()
    made = []
    for layer in folded.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(lambda *_: made.append(1))
    h, z, state = (torch.randn(ROWS, channels, *SIZE) for channels in (H, Z, H))
    expected = residual(h, z, state)
    torch.testing.assert_close(folded(h, z, state), expected, rtol=1e-5, atol=1e-6)
    assert len(made) == calls
    fixed = folded.with_constants(h[:1], state[:1])
    expected = residual(h[:1].expand_as(h), z, state[:1].expand_as(state))
    torch.testing.assert_close(fixed(h, z, state), expected, rtol=1e-5, atol=1e-6)
