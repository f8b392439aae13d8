"""Inputs that do not fit are refused by name; what fails is a run's fault or the device's."""

from __future__ import annotations

import numpy as np
import pytest

from service.bundle import load_bundle
from service.engine.onnxruntime_engine import Engine
from service.errors import (
    EngineFailure,
    InvalidInput,
    PayloadTooLarge,
    WrongDtype,
    WrongShape,
)


@pytest.fixture(scope="module")
def engine(tiny_bundle):
    made = Engine(load_bundle(tiny_bundle), provider="cpu")
    made.warm()
    return made


def spoil(name, value):
    return lambda arrays: arrays.__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (spoil("eps", np.zeros((4, 2), np.float32)), WrongShape, "eps must have the shape"),
        (spoil("eps", np.zeros((3, 3), np.float32)), WrongShape, "eps must have the shape"),
        (spoil("eps", np.float32(1.0)), WrongShape, "eps"),
        (spoil("eps", np.zeros((4, 3))), WrongDtype, "eps must be float32"),
        (spoil("image", np.zeros((0, 1, 4, 4), np.uint8)), WrongShape, "image"),
        (spoil("owner", np.array([0, 1, 2, 4])), InvalidInput, "owner must point"),
        (spoil("owner", np.array([0, 1, 2, -1])), InvalidInput, "owner must point"),
        (spoil("extra", np.zeros(4)), InvalidInput, "inputs must be image, owner, eps"),
        (lambda arrays: arrays.pop("owner"), InvalidInput, "inputs must be image, owner, eps"),
    ],
)
def test_inputs_that_do_not_fit(engine, change, error, words, model_bench):
    arrays = model_bench.inputs(engine.bundle, "score", 4)
    change(arrays)
    with pytest.raises(error, match=words):
        engine.run("score", arrays)


def test_batches_above_the_limit(engine, model_bench):
    with pytest.raises(PayloadTooLarge, match="at most 32 rows"):
        engine.run("decode", model_bench.inputs(engine.bundle, "decode", 33))


class Session:
    def __init__(self, error):
        self.error = error

    def run(self, names, feed):
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDNN failure 4"),
        RuntimeError("CUDA error 700: an illegal memory access"),
        RuntimeError("Failed to allocate memory for requested buffer"),
        MemoryError(),
        RuntimeError("indices element out of data bounds"),
    ],
)
def test_a_cpu_is_never_lost(tiny_bundle, error, model_bench):
    """Whatever an error says, the next batch may be computed: the process stays."""
    engine = Engine(load_bundle(tiny_bundle), provider="cpu")
    engine.sessions["score"] = Session(error)
    with pytest.raises(EngineFailure, match="score"):
        engine.run("score", model_bench.inputs(engine.bundle, "score", 2))


def test_a_batch_that_memory_does_not_hold_is_computed_in_halves(engine, model_bench, monkeypatch):
    given = model_bench.inputs(engine.bundle, "score", 30, 20)
    expected, compute, tried = engine.run("score", given), engine.compute, []

    def scarce(operation, feed, shape):
        tried.append(shape["R"])
        if shape["R"] > 16:
            raise MemoryError
        return compute(operation, feed, shape)

    monkeypatch.setattr(engine, "compute", scarce)
    got = engine.run("score", given)
    assert tried == [32, 16, 16]
    for name, array in expected.items():
        assert got[name].tobytes() == array.tobytes()
