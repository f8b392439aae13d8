"""Weights found in a graph by walking the protocol buffer, against the onnx package."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bundle import load_bundle
from service.engine.initializers import external_tensors


def test_against_the_onnx_package(tiny_bundle):
    bundle = load_bundle(tiny_bundle)
    blob = bundle.read(bundle.manifest.weights_file)
    for graph in bundle.manifest.graphs.values():
        model = onnx.load(tiny_bundle / graph.file)  # with the external data
        plain = onnx.load(tiny_bundle / graph.file, load_external_data=False)
        external = {t.name for t in plain.graph.initializer if t.data_location == t.EXTERNAL}
        expected = {
            t.name: onnx.numpy_helper.to_array(t)
            for t in model.graph.initializer
            if t.name in external
        }
        found = {t.name: t.read(blob) for t in external_tensors(bundle.read(graph.file))}
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            assert np.array_equal(found[name], values)


def test_dimensions_one_by_one_and_packed():
    """Both encodings of repeated numbers: writers may choose."""
    entries = b"".join(
        _bytes(13, _bytes(1, key) + _bytes(2, value))
        for key, value in ((b"location", b"w"), (b"offset", b"4"), (b"length", b"24"))
    )
    rest = b"\x10\x01" + _bytes(8, b"name") + entries
    for dims in (b"\x08\x02\x08\x03", _bytes(1, b"\x02\x03")):
        model = _bytes(7, _bytes(5, dims + rest))
        (tensor,) = external_tensors(model)
        assert (tensor.name, tensor.shape, tensor.offset, tensor.length) == ("name", (2, 3), 4, 24)


def _bytes(field, data):
    return bytes([field << 3 | 2, len(data)]) + data


def test_what_is_inside_the_graph_is_left_alone(tiny_bundle):
    """Constants of the graph itself, and weights of other types, are no business of ours."""
    bundle = load_bundle(tiny_bundle)
    names = {t.name for t in external_tensors(bundle.read("decode.onnx"))}
    assert names == {"W", "b"}


@given(st.binary(max_size=60))
def test_rubbish_is_refused_or_empty(data):
    try:
        found = external_tensors(data)
    except ValueError:
        return
    assert found == []


@pytest.mark.parametrize("data", [b"\x3a\x05abc", b"\xff" * 12, b"\x3a", b"\x0b"])
def test_broken_messages_are_named(data):
    with pytest.raises(ValueError, match="no protocol buffer"):
        external_tensors(data)
