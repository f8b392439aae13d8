"""Weight-normalised layers with data-dependent initialisation.

Weight normalisation (Salimans & Kingma 2016, arXiv:1602.07868): w = g v / ||v||, one norm for
each output unit. A mask is applied to v before the norm, so that hidden entries do not dilute
the gain. A unit whose whole mask is zero has w = 0: it is its bias alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from model.config import Gain

# Added to the squared norm, in float32: a unit that the mask hides whole gets 0, not 0 / 0.
NORM_EPS = 1e-12
# What the logarithm of a gain is divided by when it is initialised.
GAIN_ROOT: dict[Gain, float] = {"exp": 1.0, "exp_third": 3.0}


InitScale = float | None


class Foldable(nn.Module, ABC):
    """A module that `fold_weight_norm` replaces by a plain one that computes the same."""

    @abstractmethod
    def folded(self) -> nn.Module:
        """Give the plain torch module that computes the same function."""


class WeightNormLayer(Foldable):
    """What linear, convolution and transposed convolution share: `v`, `g`, `bias`, the fold.

    `init_scale` is the standard deviation that data-dependent initialisation gives to each
    unit's pre-activation; None leaves gains at 1 and biases at 0, for a layer whose input is no
    data. `bias_start`, where given, is the value at which the bias starts and that the
    initialisation leaves alone. `gain` says what `g` holds:
    the gain itself ("linear"), its logarithm ("exp"), or, as in the authors' code, a logarithm
    that starts at a third of what the initialisation asks for ("exp_third").
    """

    out_dim = 0  # the axis of `v` that counts output units

    def __init__(
        self,
        v: Tensor,
        units: int,
        *,
        mask: Tensor | None = None,
        init_scale: InitScale = 1.0,
        bias_start: float | None = None,
        gain: Gain = "linear",
    ) -> None:
        super().__init__()
        self.gain = gain
        self.v = nn.Parameter(v)
        self.g = nn.Parameter(torch.ones(units) if gain == "linear" else torch.zeros(units))
        self.bias = nn.Parameter(torch.full((units,), bias_start or 0.0))
        self.init_scale = init_scale
        self.bias_start = bias_start
        self.register_buffer("mask", mask, persistent=False)
        self.mask: Tensor | None

    def direction(self) -> Tensor:
        """Give v / ||v|| with the mask applied, zero for a unit that the mask hides whole."""
        v = self.v if self.mask is None else self.v * self.mask
        dims = [d for d in range(v.dim()) if d != self.out_dim]
        squared = v.square().sum(dim=dims, keepdim=True)
        return v * torch.rsqrt(squared + NORM_EPS)

    def weight(self) -> Tensor:
        """Give the effective weight, shaped as `v`."""
        shape = [1] * self.v.dim()
        shape[self.out_dim] = -1
        gain = self.g if self.gain == "linear" else torch.exp(self.g)
        return self.direction() * gain.view(shape)

    @abstractmethod
    def apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Compute the layer's product; subclasses say which."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the normalised weight and the bias; units are axis 1 of the result."""
        return self.apply_weight(x, self.weight(), self.bias)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Set g and bias so that pre-activations have mean 0 and deviation `init_scale` on `x`.

        Salimans & Kingma 2016, section 3. Units that do not vary on `x` keep a gain of 1.
        """
        if self.init_scale is None:
            return
        t = self.apply_weight(x, self.direction(), None)
        dims = [d for d in range(t.dim()) if d != 1]
        several = t.numel() > t.shape[1]
        std = t.std(dim=dims, correction=int(several))
        gain = torch.where(std > 1e-6, self.init_scale / std.clamp_min(1e-6), torch.ones_like(std))
        self.g.copy_(gain if self.gain == "linear" else torch.log(gain) / GAIN_ROOT[self.gain])
        if self.bias_start is None:
            self.bias.copy_(-t.mean(dim=dims) * gain)


def _plain_copy(layer: nn.Module, weight: Tensor, bias: Tensor) -> nn.Module:
    layer.weight = nn.Parameter(weight.detach().clone())
    layer.bias = nn.Parameter(bias.detach().clone())
    return layer


class Linear(WeightNormLayer):
    """A weight-normalised, optionally masked, affine map `[B, in] -> [B, out]`."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        mask: Tensor | None = None,
        init_scale: InitScale = 1.0,
        bias_start: float | None = None,
        gain: Gain = "linear",
    ) -> None:
        v = torch.randn(out_features, in_features) * 0.05
        super().__init__(
            v, out_features, mask=mask, init_scale=init_scale, bias_start=bias_start, gain=gain
        )

    def apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See the base class."""
        return F.linear(x, weight, bias)

    def folded(self) -> nn.Module:
        """See the base class."""
        plain = nn.Linear(self.v.shape[1], self.v.shape[0])
        return _plain_copy(plain, self.weight(), self.bias)


class Conv(WeightNormLayer):
    """A weight-normalised, optionally masked convolution, `[B, in, H, W] -> [B, out, H', W']`.

    The kernel is odd and square; with stride s, H' = ceil(H / s). The mask is shaped as the
    weight, `[out, in, k, k]`; rows of the kernel that it hides whole, as autoregressive masks do,
    are not computed (stride 1 only).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        mask: Tensor | None = None,
        init_scale: InitScale = 1.0,
        bias_start: float | None = None,
        gain: Gain = "linear",
    ) -> None:
        v = torch.randn(out_channels, in_channels, kernel_size, kernel_size) * 0.05
        super().__init__(
            v, out_channels, mask=mask, init_scale=init_scale, bias_start=bias_start, gain=gain
        )
        self.stride = stride
        self.padding = kernel_size // 2
        self.rows = slice(0, kernel_size)
        if mask is not None and stride == 1 and mask.any():
            used = mask.ne(0).any(dim=3).flatten(0, 1).any(dim=0).nonzero()
            self.rows = slice(int(used[0]), int(used[-1]) + 1)

    def apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See the base class."""
        kernel = weight[:, :, self.rows]
        out = F.conv2d(x, kernel, bias, stride=self.stride, padding=self.padding)
        if kernel.shape == weight.shape:
            return out
        # Padded for the whole kernel, the part of it gives rows beyond the image's.
        return out[:, :, self.rows.start : self.rows.start + x.shape[2]]

    def folded(self) -> nn.Module:
        """See the base class."""
        weight = self.weight()[:, :, self.rows]
        out_channels, in_channels, *kernel_size = weight.shape
        size = (kernel_size[0], kernel_size[1])
        if size[0] == size[1]:
            plain = nn.Conv2d(
                in_channels, out_channels, size, stride=self.stride, padding=self.padding
            )
            return _plain_copy(plain, weight, self.bias)
        bare = _plain_copy(nn.Conv2d(in_channels, out_channels, size), weight, self.bias)
        above, below = self.padding - self.rows.start, self.rows.stop - 1 - self.padding
        return nn.Sequential(nn.ZeroPad2d((self.padding, self.padding, above, below)), bare)


class ConvTranspose(WeightNormLayer):
    """A weight-normalised transposed convolution of stride 2 with an odd, square kernel.

    `output_padding` (0 or 1 an axis) picks which of the two sizes that stride 2 maps to the
    input's size is restored: H' = 2 H - 1 + output_padding.
    """

    out_dim = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        output_padding: tuple[int, int],
        kernel_size: int = 3,
        init_scale: InitScale = 1.0,
        gain: Gain = "linear",
    ) -> None:
        v = torch.randn(in_channels, out_channels, kernel_size, kernel_size) * 0.05
        super().__init__(v, out_channels, init_scale=init_scale, gain=gain)
        self.output_padding = output_padding
        self.padding = kernel_size // 2

    def apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See the base class."""
        return F.conv_transpose2d(
            x,
            weight,
            bias,
            stride=2,
            padding=self.padding,
            output_padding=self.output_padding,
        )

    def folded(self) -> nn.Module:
        """See the base class."""
        in_channels, out_channels, kernel_size, _ = self.v.shape
        plain = nn.ConvTranspose2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=2,
            padding=self.padding,
            output_padding=self.output_padding,
        )
        return _plain_copy(plain, self.weight(), self.bias)


@contextmanager
def data_dependent_init(model: nn.Module) -> Iterator[None]:
    """Initialise every weight-normalised layer from the data of the forward pass made inside.

    Layers are set in the order in which they are reached, each from inputs that the already
    initialised ones computed (Salimans & Kingma 2016, section 3). Run it in eager mode,
    before compiling or wrapping the model; the layers themselves know no mode.
    """

    def hook(layer: nn.Module, args: tuple[Tensor, ...], _output: Tensor) -> Tensor:
        if not isinstance(layer, WeightNormLayer):
            raise TypeError(f"{type(layer).__name__} is not weight-normalised")
        layer.initialize(args[0])
        return layer.forward(args[0])

    handles: list[RemovableHandle] = [
        layer.register_forward_hook(hook)
        for layer in model.modules()
        if isinstance(layer, WeightNormLayer)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def fold_weight_norm(module: nn.Module) -> None:
    """Replace, in place, every foldable layer below `module` by its plain equal."""
    for name, child in list(module.named_children()):
        if isinstance(child, Foldable):
            setattr(module, name, child.folded())
        else:
            fold_weight_norm(child)
