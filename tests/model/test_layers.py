"""Weight normalisation, its masks, its initialisation from data, and the fold."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from model.blocks import down_block, same_block, up_block
from model.layers import (
    Conv,
    ConvTranspose,
    Linear,
    WeightNormLayer,
    data_dependent_init,
    fold_weight_norm,
)

IMAGES = (6, 3, 9, 8)


def rows_hidden(out: int, inputs: int, rows: list[int]) -> Tensor:
    """A mask of a 3x3 convolution that shuts whole rows of the kernel, and some entries more."""
    mask = (torch.rand(out, inputs, 3, 3) < 0.8).float()
    mask[:, :, rows] = 0
    return mask


LAYERS = {
    "linear": (lambda: Linear(10, 7), (6, 10)),
    "masked-linear": (lambda: Linear(10, 7, mask=(torch.rand(7, 10) < 0.5).float()), (6, 10)),
    "conv": (lambda: Conv(3, 5), IMAGES),
    "conv-stride-2": (lambda: Conv(3, 5, stride=2), IMAGES),
    "conv-5x5": (lambda: Conv(3, 5, kernel_size=5, stride=2), IMAGES),
    "conv-masked-above": (lambda: Conv(3, 5, mask=rows_hidden(5, 3, [0])), IMAGES),
    "conv-masked-below": (lambda: Conv(3, 5, mask=rows_hidden(5, 3, [2])), IMAGES),
    "conv-one-row": (lambda: Conv(3, 5, mask=rows_hidden(5, 3, [0, 1])), IMAGES),
    "conv-log-gain": (lambda: Conv(3, 5, gain="exp"), IMAGES),
    "transposed": (lambda: ConvTranspose(3, 5, output_padding=(1, 0)), IMAGES),
    "transposed-5x5": (
        lambda: ConvTranspose(3, 5, output_padding=(0, 1), kernel_size=5, gain="exp"),
        IMAGES,
    ),
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def randomised(layer: WeightNormLayer) -> WeightNormLayer:
    layer.g.data.normal_()
    layer.bias.data.normal_()
    return layer


@pytest.mark.parametrize("name", LAYERS)
def test_folded_layer_is_the_same_function(name: str) -> None:
    make, shape = LAYERS[name]
    layer = randomised(make())
    x = torch.randn(shape)
    torch.testing.assert_close(layer.folded()(x), layer(x), rtol=1e-6, atol=1e-6)


def test_agrees_with_torchs_own_weight_norm() -> None:
    layer = randomised(Linear(10, 7))
    theirs = weight_norm(nn.Linear(10, 7), dim=0)
    theirs.parametrizations.weight.original0.data = layer.g.data[:, None]
    theirs.parametrizations.weight.original1.data = layer.v.data
    theirs.bias.data = layer.bias.data
    x = torch.randn(4, 10)
    torch.testing.assert_close(layer(x), theirs(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LAYERS)
def test_initialisation_centres_and_scales_each_unit(name: str) -> None:
    make, shape = LAYERS[name]
    layer = make()
    x = torch.randn(200, *shape[1:]) * 3 + 1
    with torch.no_grad(), data_dependent_init(layer):
        layer(x)
    out = layer(x).transpose(0, 1).flatten(1)
    torch.testing.assert_close(out.mean(dim=1), torch.zeros(len(out)), atol=1e-4, rtol=0)
    torch.testing.assert_close(out.std(dim=1), torch.ones(len(out)), atol=1e-3, rtol=0)


def test_later_layers_see_initialised_earlier_ones() -> None:
    net = nn.Sequential(Linear(10, 8), nn.Tanh(), Linear(8, 4, init_scale=0.1))
    x = torch.randn(500, 10) * 100
    with torch.no_grad(), data_dependent_init(net):
        within = net(x)
    after = net(x)
    torch.testing.assert_close(within, after)
    torch.testing.assert_close(after.std(dim=0), torch.full((4,), 0.1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("rows", [[], [0], [2], [0, 1], [1, 2], [1], [0, 2], [0, 1, 2]])
def test_kernel_rows_that_a_mask_hides_are_left_out_not_changed(rows: list[int]) -> None:
    layer = randomised(Conv(3, 5, mask=rows_hidden(5, 3, rows)))
    x = torch.randn(IMAGES, requires_grad=True)
    out = layer(x)
    whole = F.conv2d(x, layer.weight(), layer.bias, padding=1)
    torch.testing.assert_close(out, whole)
    torch.testing.assert_close(layer.folded()(x), whole)
    (got,) = torch.autograd.grad(out.square().sum(), x, retain_graph=True)
    (wanted,) = torch.autograd.grad(whole.square().sum(), x)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("gain", "share"), [("linear", 1.0), ("exp", 1.0), ("exp_third", 1 / 3)])
def test_gains_begin_where_the_initialisation_wants_them(gain: str, share: float) -> None:
    """The authors' exp(log(s) / 3) starts at the cube root of the gain that was asked for."""
    layer = Conv(3, 5, init_scale=0.1, gain=gain)
    x = torch.randn(20, 3, 9, 8) * 4
    with torch.no_grad(), data_dependent_init(layer):
        layer(x)
    asked = 0.1 / F.conv2d(x, layer.direction(), padding=1).std(dim=(0, 2, 3))
    effective = layer.weight().flatten(1).norm(dim=1)
    torch.testing.assert_close(effective, asked**share, rtol=1e-4, atol=1e-5)


def test_a_layer_that_reads_no_data_is_left_alone() -> None:
    layer = Conv(3, 5, init_scale=None)
    with torch.no_grad(), data_dependent_init(layer):
        layer(torch.randn(IMAGES))
    assert (layer.g == 1).all()
    assert (layer.bias == 0).all()


def test_a_single_number_sets_no_scale() -> None:
    layer = Conv(3, 5)
    with torch.no_grad(), data_dependent_init(layer):
        layer(torch.randn(1, 3, 1, 1))
    assert (layer.g == 1).all()
    assert torch.isfinite(layer.bias).all()


def test_hooks_are_gone_afterwards() -> None:
    layer = Linear(10, 7)
    with torch.no_grad(), data_dependent_init(layer):
        layer(torch.randn(50, 10))
    g = layer.g.clone()
    layer(torch.randn(50, 10) * 9)
    torch.testing.assert_close(layer.g, g)


def test_bias_start_is_left_alone() -> None:
    layer = Linear(10, 7, bias_start=1.5)
    with torch.no_grad(), data_dependent_init(layer):
        layer(torch.randn(50, 10) + 4)
    assert (layer.bias == 1.5).all()


def test_a_wholly_masked_unit_is_its_bias_alone() -> None:
    mask = torch.ones(3, 4)
    mask[1] = 0
    layer = randomised(Linear(4, 3, mask=mask))
    x = torch.randn(5, 4, requires_grad=True)
    out = layer(x)
    assert (out[:, 1] == layer.bias[1]).all()
    out.square().sum().backward()
    for tensor in (layer.v.grad, layer.g.grad, layer.bias.grad, x.grad):
        assert torch.isfinite(tensor).all()
    assert not layer.v.grad[1].any()


def test_masked_entries_do_not_dilute_the_gain() -> None:
    mask = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    layer = Linear(4, 1, mask=mask)
    layer.v.data = torch.tensor([[3.0, 4.0, 100.0, 100.0]])
    torch.testing.assert_close(layer.weight(), torch.tensor([[0.6, 0.8, 0.0, 0.0]]))


def test_constant_inputs_do_not_blow_up_the_gain() -> None:
    layer = Linear(4, 3)
    with torch.no_grad(), data_dependent_init(layer):
        layer(torch.ones(10, 4))
    assert (layer.g == 1).all()


@pytest.mark.parametrize("size", [(28, 28), (7, 9), (4, 5), (1, 2)])
def test_up_block_restores_what_down_block_halved(size: tuple[int, int]) -> None:
    x = torch.randn(2, 4, *size)
    small = down_block(4, 6)(x)
    assert small.shape[2:] == ((size[0] + 1) // 2, (size[1] + 1) // 2)
    padding = (size[0] - 2 * small.shape[2] + 1, size[1] - 2 * small.shape[3] + 1)
    assert up_block(6, 4, padding)(small).shape == x.shape
    assert same_block(4)(x).shape == x.shape


def test_fold_reaches_every_depth() -> None:
    net = nn.Sequential(same_block(3), nn.Sequential(down_block(3, 4)))
    x: Tensor = torch.randn(IMAGES)
    before = net(x)
    fold_weight_norm(net)
    assert not any(isinstance(m, WeightNormLayer) for m in net.modules())
    torch.testing.assert_close(net(x), before, rtol=1e-5, atol=1e-5)
