"""Where the weights of an ONNX graph lie in its weights file, read without the onnx package.

A model is a protocol buffer. Of all of it only ``ModelProto.graph.initializer`` is looked into, and
of those only tensors whose data is external. The numbers of the fields are those of ``onnx.proto``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.engine.wire import fields, packed

__all__ = ["ExternalTensor", "external_tensors"]

GRAPH, INITIALIZER = 7, 5  # of ModelProto, of GraphProto
DIMS, DATA_TYPE, NAME, EXTERNAL_DATA = 1, 2, 8, 13  # of TensorProto
KEY, VALUE = 1, 2  # of StringStringEntryProto
FLOAT = 1  # TensorProto.DataType


@dataclass(frozen=True, kw_only=True)
class ExternalTensor:
    """A float32 weight: its name in the graph, shape, and bytes of the weights file."""

    name: str
    shape: tuple[int, ...]
    location: str
    offset: int
    length: int

    def read(self, blob: bytes) -> NDArray[np.float32]:
        """Its values, a view of the weights file's bytes; raises ValueError where they do not
        fit."""
        values = np.frombuffer(blob, dtype="<f4", count=self.length // 4, offset=self.offset)
        return values.reshape(self.shape)


def external_tensors(model: bytes) -> list[ExternalTensor]:
    """All float32 initialisers with external data; raises ValueError where `model` is no model."""
    found = []
    for number, graph, _ in fields(memoryview(model)):
        if number == GRAPH and isinstance(graph, memoryview):
            for inner, tensor, _ in fields(graph):
                if inner == INITIALIZER and isinstance(tensor, memoryview):
                    found += _external(tensor)
    return found


def _external(tensor: memoryview) -> list[ExternalTensor]:
    shape: list[int] = []
    name, data_type, entries = "", 0, {}
    for number, value, _ in fields(tensor):
        if number == DIMS:
            shape += [value] if isinstance(value, int) else packed(value)
        elif number == DATA_TYPE and isinstance(value, int):
            data_type = value
        elif number == NAME and isinstance(value, memoryview):
            name = str(value, "utf-8")
        elif number == EXTERNAL_DATA and isinstance(value, memoryview):
            entry = {n: str(v, "utf-8") for n, v, _ in fields(value) if isinstance(v, memoryview)}
            entries[entry.get(KEY, "")] = entry.get(VALUE, "")
    if data_type != FLOAT or not {"location", "offset", "length"} <= set(entries):
        return []
    place = {"offset": int(entries["offset"]), "length": int(entries["length"])}
    return [ExternalTensor(name=name, shape=tuple(shape), location=entries["location"], **place)]
