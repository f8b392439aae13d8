"""Paddings hold their rows, change none, and grow until rows are independent of their batch."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle import load_bundle
from service.bundle.graphs import GraphSpec, TensorSpec
from service.engine.arrays import check, pad, trim
from service.engine.onnxruntime_engine import Engine
from service.engine.padding import Buckets, RowBlocks
from service.engine.self_check import invariant


def test_padding_grows_until_rows_are_independent(tiny_bundle, monkeypatch):
    """A backend whose last row of an odd batch comes out different needs blocks of two."""
    engine = Engine(load_bundle(tiny_bundle), provider="cpu")
    assert [padding.block for padding in engine.paddings()] == [16], "what the manifest leaves open"
    monkeypatch.setattr(engine, "paddings", lambda: [RowBlocks(b) for b in (1, 2, 4, 8, 16)])
    compute = engine.compute

    def odd(operation, feed, shape):
        outputs = compute(operation, feed, shape)
        if len(next(iter(feed.values()))) % 2:
            outputs[0][-1] += 1
        return outputs

    monkeypatch.setattr(engine, "compute", odd)
    engine.warm()
    assert (engine.padding, engine.invariant) == (RowBlocks(2), True)
    assert engine.padded_rows(7) == 1


def test_the_probe_sees_a_difference_at_one_place():
    """A planted violation: row 17 of a batch is off unless it stands alone."""
    x = TensorSpec(name="eps", dtype="float32", shape=("N", 2))
    graph = {"f": GraphSpec(portable="f.onnx", cpu="f.onnx", inputs=(x,), outputs=(x,))}

    def sound(operation, arrays):
        return {"eps": arrays["eps"] * 2}

    def flawed(operation, arrays):
        out = arrays["eps"] * 2
        out[17:18] += np.float32(1e-6)
        return {"eps": out}

    assert invariant(graph, sound, 32)
    assert not invariant(graph, flawed, 32)


@settings(max_examples=50)
@given(st.integers(1, 100), st.sampled_from([RowBlocks(1), RowBlocks(16), Buckets((16, 100))]))
def test_paddings_hold_their_rows(rows, padding):
    assert padding.size(rows) >= rows
    assert padding.size(padding.size(rows)) == padding.size(rows)


def test_buckets_prepare_every_shape_that_is_met():
    """Pairs of images and rows; a batch has no more images than rows, whatever is asked."""
    buckets = Buckets((4, 8, 32))
    assert buckets.shapes({"N"}) == [{"N": 32}, {"N": 8}, {"N": 4}]
    prepared = buckets.shapes({"N", "R"})
    assert prepared[0] == {"N": 32, "R": 32}
    met = [buckets.shape({"N": n, "R": r}) for n in range(1, 33) for r in range(1, 33)]
    assert all(shape in prepared for shape in met)
    assert all(shape in met for shape in prepared)
    assert buckets.shape({"N": 9, "R": 3}) == {"N": 32, "R": 32}


def test_pad_and_trim_change_no_row(tiny_bundle, model_bench):
    graph = load_bundle(tiny_bundle).manifest.graphs["score"]
    arrays = model_bench.inputs(load_bundle(tiny_bundle), "score", 5, 3)
    assert check(graph, arrays, 8) == {"N": 3, "R": 5}
    padded = pad(graph, arrays, {"N": 4, "R": 8})
    assert padded["owner"].tolist() == [*arrays["owner"].tolist(), 0, 0, 0]
    outputs = [np.arange(8.0), np.arange(8.0), np.zeros((8, 1))]
    assert trim(graph, outputs, {"N": 3, "R": 5})["log_weight"].tolist() == [0, 1, 2, 3, 4]
