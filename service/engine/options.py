"""What an operator can choose among, by name; imports nothing, so that `--help` answers at once."""

from __future__ import annotations

from typing import Literal

__all__ = ["BackendName", "Precision", "Provider"]

BackendName = Literal["onnxruntime", "openvino"]
Provider = Literal["auto", "cpu", "cuda", "tensorrt"]
Precision = Literal["float32", "tf32", "float16", "bfloat16"]
