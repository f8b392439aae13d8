"""Rewriting of an exported graph, in place: as any device computes it, or as a CPU does fastest."""

import onnx

from training.export.passes.blocks import in_blocks
from training.export.passes.plain import pixels_as_floats
from training.export.passes.planes import in_planes
from training.export.passes.vectors import in_vectors
from training.export.passes.widths import steady_sums, widen

__all__ = ["for_any_device", "for_cpu"]


def for_any_device(proto: onnx.ModelProto) -> None:
    """Leave operators that every provider has for their types, and nothing that helps one alone.

    Widths are multiples of 16 here, too, which any device likes: both forms then share all weights
    but those of a convolution in blocks.
    """
    widen(proto)
    pixels_as_floats(proto)


def for_cpu(proto: onnx.ModelProto) -> None:
    """What ONNX Runtime's CPU provider computes fastest, with rows independent of their batch."""
    widen(proto)
    steady_sums(proto)
    in_planes(proto)
    in_blocks(proto)
    in_vectors(proto)
