"""Drawing from a PixelCNN: a full forward pass for every subpixel, or with cached activations.

Both are pure functions of the uniforms `u [B, C, H, W]`, and give the same levels for the same
uniforms: `CachedSampler` computes in every layer what the new subpixel adds and nothing twice, so
that an image costs the products of one forward pass, cut into H * W * C sequential pieces.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.pixelcnn import GatedLayer, MaskedConv, PixelCnn, draw, gate


@torch.inference_mode()
def naive_sample(model: PixelCnn, u: Tensor, subpixels: int | None = None) -> Tensor:
    """Levels `[B, C, H, W]` by one forward pass for each subpixel.

    `subpixels` stops after so many (every one costs the same); the rest stay 0.
    """
    colours, height, width = model.config.image_shape
    x = torch.zeros_like(u, dtype=torch.long)
    for i in range(height * width * colours if subpixels is None else subpixels):
        pixel, colour = divmod(i, colours)
        row, column = divmod(pixel, width)
        logits = model(x)[:, colour, :, row, column]
        x[:, colour, row, column] = draw(logits, u[:, colour, row, column])
    return x


def _by_colour(weight: Tensor, colours: int) -> Tensor:
    """Reorder a gate's outputs from (half, colour, map) to (colour, half, map), axis 0.

    What one colour adds is then one slice.
    """
    halves = weight.reshape(2, colours, -1, *weight.shape[1:])
    return halves.transpose(0, 1).flatten(0, 2).contiguous()


class _Product:
    """A product `[B, in] -> [B, out of one colour]` that reads the colours allowed to it alone.

    `weight [out, in]`, its rows and columns in groups of colours; group c reads the groups up to
    c, or below c where `strict`.
    """

    def __init__(self, weight: Tensor, colours: int, *, strict: bool = False) -> None:
        per_in, own = weight.shape[1] // colours, 0 if strict else 1
        self.weights = [
            part[:, : (c + own) * per_in].T.contiguous()
            for c, part in enumerate(weight.chunk(colours))
        ]

    def __call__(self, x: Tensor, colour: int, start: Tensor) -> Tensor:
        weight = self.weights[colour]
        return torch.addmm(start, x[:, : len(weight)], weight)


class _Pointwise:
    """A 1x1 convolution with a colour mask, one colour's outputs at a time."""

    def __init__(self, conv: MaskedConv, colours: int) -> None:
        self.product = _Product(conv.effective()[:, :, 0, 0], colours)
        self.biases = conv.bias.chunk(colours)

    def __call__(self, x: Tensor, colour: int) -> Tensor:
        """`[B, in] -> [B, out of the colour]`."""
        return self.product(x, colour, self.biases[colour])


class _Weights:
    """One layer's, as matrices."""

    def __init__(self, layer: GatedLayer, colours: int) -> None:
        taps = _by_colour(layer.horizontal.effective()[:, :, 0], colours)  # [2 p, in, reach + 1]
        self.reach = layer.reach
        self.maps_in, self.rows = layer.vertical.in_channels, layer.vertical.kernel_size[0]
        kernel = layer.vertical.weight  # [2 p, in, rows, 2 reach + 1]
        self.vertical = kernel.permute(3, 2, 1, 0).flatten(0, 2).contiguous()  # [taps in, 2 p]
        self.vertical_bias = layer.vertical.bias
        self.left = taps[:, :, :-1].permute(2, 1, 0).flatten(0, 1).contiguous()  # [reach in, 2 p]
        self.centre = _Product(taps[:, :, -1], colours, strict=layer.first)
        self.across = _by_colour(layer.across.weight[:, :, 0, 0], colours).T.contiguous()
        self.bias = _by_colour(layer.across.bias + layer.horizontal.bias, colours)
        self.residual = _Pointwise(layer.residual, colours)


@dataclass
class _Cache:
    """What the layers have computed of a batch of images so far, a tensor each."""

    above: list[Tensor]  # [reach + W + reach, B, rows, in]: the vertical stack's inputs
    row: list[Tensor]  # [W, B, 2 p]: what all but the pixel itself gives to pre-activations
    inputs: list[Tensor]  # [reach + W, B, in]: the horizontal stack's inputs in this row
    gated: list[Tensor]  # [B, p]: this pixel's, as the head's hidden maps
    hidden: Tensor  # [B, p]

    @classmethod
    def empty(cls, layers: list[_Weights], batch: int, width: int) -> _Cache:
        """Nothing yet: zeros, as the padding."""
        new, maps = layers[0].bias.new_zeros, len(layers[0].bias) // 2
        inputs = [(w.reach + width, batch, w.maps_in) for w in layers]
        return cls(
            above=[new(2 * w.reach + width, batch, w.rows, w.maps_in) for w in layers],
            row=[new(width, batch, 2 * maps) for _ in layers],
            inputs=[new(shape) for shape in [*inputs, (width, batch, maps)]],
            gated=[new(batch, maps) for _ in layers],
            hidden=new(batch, maps),
        )


class CachedSampler:
    """Draws with a model's weights as they are now; later changes to them are not seen."""

    @torch.inference_mode()
    def __init__(self, model: PixelCnn) -> None:
        self.model = model
        self.colours = model.config.image_shape[0]
        layers = [layer for layer in model.layers if isinstance(layer, GatedLayer)]
        self.layers = [_Weights(layer, self.colours) for layer in layers]
        self.hidden = _Pointwise(model.hidden, self.colours)
        self.head = _Pointwise(model.head, self.colours)

    @torch.inference_mode()
    def sample(self, u: Tensor, rows: int | None = None) -> Tensor:
        """Levels `[B, C, H, W]`; `rows` stops after so many (every row costs the same)."""
        _, height, width = self.model.config.image_shape
        x = torch.zeros_like(u, dtype=torch.long)
        cache = _Cache.empty(self.layers, len(u), width)
        for row in range(height if rows is None else rows):
            if row > 0:
                self._begin_row(cache, self.model.network_input(x[:, :, row - 1]))
            else:  # nothing is above
                self._begin_row(cache, self.model.network_input(x[:, :, 0]) * 0)
            for column in range(width):
                self._draw_pixel(cache, column, u[:, :, row, column], x[:, :, row, column])
        return x

    def _begin_row(self, cache: _Cache, v: Tensor) -> None:
        """Compute the vertical stack's row from its new input, `v [B, C, W]`."""
        v = v.permute(2, 0, 1)  # [W, B, in] from here on
        width = len(v)
        for n, weights in enumerate(self.layers):
            above = cache.above[n]
            above[:, :, :-1] = above[:, :, 1:].clone()
            above[weights.reach : weights.reach + width, :, -1] = v
            taps = [above[i : i + width].flatten(2) for i in range(2 * weights.reach + 1)]
            columns = torch.cat(taps, dim=2).flatten(0, 1)  # [W B, taps in]
            a = torch.addmm(weights.vertical_bias, columns, weights.vertical)  # [W B, 2 p]
            across = torch.addmm(weights.bias, a, weights.across)
            cache.row[n] = across.view_as(cache.row[n])
            v = gate(a).view(width, v.shape[1], -1)

    def _draw_pixel(self, cache: _Cache, column: int, u: Tensor, x: Tensor) -> None:
        """Draw the colours of one pixel of every image into `x [B, C]` with `u [B, C]`."""
        for n, weights in enumerate(self.layers):
            left = cache.inputs[n][column : column + weights.reach]  # [reach, B, in]
            cache.row[n][column].addmm_(left.transpose(0, 1).flatten(1), weights.left)
        pixel = cache.inputs[0][self.layers[0].reach + column]
        for colour in range(self.colours):
            x[:, colour] = draw(self._logits(cache, column, colour), u[:, colour])
            pixel[:, colour] = self.model.network_input(x[:, colour])

    def _logits(self, cache: _Cache, column: int, colour: int) -> Tensor:
        """Take one colour of one pixel through the horizontal stack, `[B, outputs]`."""
        width = cache.hidden.shape[1] // self.colours
        own = slice(colour * width, (colour + 1) * width)
        both = slice(2 * own.start, 2 * own.stop)
        h = cache.inputs[0][self.layers[0].reach + column]
        for n, weights in enumerate(self.layers):
            a = weights.centre(h, colour, cache.row[n][column, :, both])
            cache.gated[n][:, own] = gate(a)
            out = weights.residual(cache.gated[n], colour)
            reach = self.layers[n + 1].reach if n + 1 < len(self.layers) else 0
            following = cache.inputs[n + 1][reach + column]
            following[:, own] = out if n == 0 else out + h[:, own]
            h = following
        cache.hidden[:, own] = self.hidden(F.relu(h), colour)
        return self.head(F.relu(cache.hidden), colour)
