"""Shapes: what images, latents and tensors are, and what every graph takes and gives.

`graph_contract` is the table of graphs as code. The exporter builds its graphs to it; the writer
and the loader of bundles compare with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "GraphSpec",
    "ImageSpec",
    "LatentGroup",
    "LatentSpec",
    "LikelihoodSpec",
    "Positive",
    "Record",
    "TensorSpec",
    "WeightSpec",
    "graph_contract",
]

Positive = Annotated[int, Field(ge=1)]
Dimension = int | str
Dtype = Literal["float32", "uint8", "int64"]
ITEM_BYTES = {"float32": 4, "uint8": 1, "int64": 8}


class Record(BaseModel):
    """Part of a manifest. Nothing is coerced and nothing ignored: a manifest is written on one
    machine and trusted on another, so a misspelt field is an error, not a default."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class ImageSpec(Record):
    """Images are uint8 ``[channels, height, width]`` with values below `levels`."""

    channels: Positive
    height: Positive
    width: Positive
    levels: Annotated[int, Field(ge=2, le=256)]

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """``(channels, height, width)``."""
        return self.channels, self.height, self.width

    @cached_property
    def dims(self) -> int:
        """Number of dimensions that bits/dim divides by."""
        return self.channels * self.height * self.width


class LikelihoodSpec(Record):
    """The density of pixels given latents; drawing them takes `uniforms` uniform numbers (U)."""

    kind: Literal["bernoulli", "discretized_logistic", "logistic_mixture"]
    uniforms: Positive

    @property
    def binary(self) -> bool:
        """Whether pixels are black or white: a grey one is a probability."""
        return self.kind == "bernoulli"


class LatentGroup(Record):
    """One stochastic layer of the flat latent."""

    name: str
    channels: Positive
    height: Positive
    width: Positive

    @property
    def dim(self) -> int:
        """Number of latents in the group."""
        return self.channels * self.height * self.width


class LatentSpec(Record):
    """The flat latent ``[N, dim]``: named groups from the top down."""

    dim: int
    groups: tuple[LatentGroup, ...]

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if not self.groups or self.dim != sum(group.dim for group in self.groups):
            raise ValueError("dim must be the sum of the groups' channels * height * width")
        if len({group.name for group in self.groups}) != len(self.groups):
            raise ValueError("groups must have different names")
        return self


class TensorSpec(Record):
    """One input or output: an int in `shape` is fixed, a name (``N``, ``R``) is dynamic."""

    name: str
    dtype: Dtype
    shape: tuple[Dimension, ...]


class WeightSpec(Record):
    """One tensor of the weights file, by the name that it has in every graph that uses it.

    offset, length: its bytes, little-endian and row-major.
    """

    name: str
    dtype: Dtype
    shape: tuple[Positive, ...]
    offset: Annotated[int, Field(ge=0)]
    length: Positive

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.length != math.prod(self.shape) * ITEM_BYTES[self.dtype]:
            raise ValueError(f"length of {self.name} must be that of its shape and dtype")
        return self


class GraphSpec(Record):
    """One operation: its graph in two forms over the same weights, its inputs and its outputs, in
    order.

    portable: the ONNX file of operators that every device has; cpu: of those that ONNX Runtime's
    CPU provider computes fastest, with the same answers within rounding. They may be one file.
    """

    portable: str
    cpu: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @cached_property
    def input_names(self) -> frozenset[str]:
        """Names of what it takes."""
        return frozenset(tensor.name for tensor in self.inputs)

    @cached_property
    def output_names(self) -> list[str]:
        """Names of what it gives, in order."""
        return [tensor.name for tensor in self.outputs]


def graph_contract(
    image: ImageSpec, latent: LatentSpec, likelihood: LikelihoodSpec, statistics: Sequence[str]
) -> dict[str, GraphSpec]:
    """What each operation's graph takes and gives: N images, R importance-sample rows.

    D latents, G groups (columns of temperature and of ``kl``), U uniforms and the S `statistics` of
    ``evidence``, which is ``score`` and a pass at eps = 0, are fixed. A model of binary pixels
    takes uniform noise with every image: a pixel is white where ``image / 255 > u_image``.
    """
    d, g, u = latent.dim, len(latent.groups), likelihood.uniforms
    pixels = image.shape
    rendered = (_f32("mean", "N", *pixels), _tensor("draw", "uint8", "N", *pixels))
    picture = _tensor("image", "uint8", "N", *pixels)
    grey = (_f32("u_image", "N", image.dims),) if likelihood.binary else ()
    rows = (picture, _tensor("owner", "int64", "R"), _f32("eps", "R", d), *grey)
    table = {
        "sample": ((_f32("eps", "N", d), _f32("temperature", "N", g), _f32("u", "N", u)), rendered),
        "decode": ((_f32("z", "N", d), _f32("u", "N", u)), rendered),
        "encode": (
            (picture, _f32("eps", "N", d), *grey),
            (_f32("z", "N", d), _f32("prior_eps", "N", d)),
        ),
        "score": (rows, (_f32("log_weight", "R"), _f32("log_px_z", "R"), _f32("kl", "R", g))),
        "evidence": (
            rows,
            (
                _f32("log_weight", "R"),
                _f32("kl", "R", g),
                _f32("residual", "N", *pixels[1:]),
                _f32("statistics", "N", len(statistics)),
            ),
        ),
    }
    return {
        name: GraphSpec(
            portable=f"portable/{name}.onnx", cpu=f"cpu/{name}.onnx", inputs=inputs, outputs=outputs
        )
        for name, (inputs, outputs) in table.items()
    }


def _tensor(name: str, dtype: Dtype, *shape: Dimension) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def _f32(name: str, *shape: Dimension) -> TensorSpec:
    return _tensor(name, "float32", *shape)
