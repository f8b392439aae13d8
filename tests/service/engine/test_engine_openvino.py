"""What is OpenVINO's own: demands that contradict, precision, silence towards its makers."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("openvino", reason="the extra `openvino` is not installed")

from service.bundle import load_bundle
from service.engine.base import SAMPLING_TOLERANCE
from service.engine.openvino_engine import CAPABILITIES, OpenVinoEngine
from service.errors import ProviderUnavailable


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_it_computes_on_the_cpu_alone(tiny_bundle, provider):
    with pytest.raises(ProviderUnavailable, match="backend openvino computes on the CPU"):
        OpenVinoEngine(load_bundle(tiny_bundle), provider=provider)


def able(engine, precision):
    words = engine._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return CAPABILITIES[precision] in words


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "tf32"])
def test_sampling_precision(tiny_bundle, model_bench, precision):
    """Taken where samples are float32's, refused where they are not; densities are never asked."""
    bundle = load_bundle(tiny_bundle)
    exact = OpenVinoEngine(bundle)
    exact.warm()
    if precision == "tf32" or not able(exact, precision):
        with pytest.raises(ProviderUnavailable, match=f"cannot sample in {precision}"):
            OpenVinoEngine(bundle, sampling_precision=precision)
        return
    reduced = OpenVinoEngine(bundle, sampling_precision=precision)
    given = model_bench.inputs(bundle, "sample", 32)
    means = [e.run("sample", given)["mean"] for e in (reduced, exact)]
    if np.abs(means[0] - means[1]).max() > SAMPLING_TOLERANCE:
        with pytest.raises(ProviderUnavailable, match="IAFVAE_SAMPLING_PRECISION"):
            reduced.warm()
    assert reduced.precision_of("sample") == reduced.precision_of("decode") == precision
    assert reduced.precision_of("score") == reduced.precision_of("encode") == "float32"
    scored = model_bench.inputs(bundle, "score", 9, 4)
    for name, array in exact.run("score", scored).items():
        assert np.array_equal(reduced.run("score", scored)[name], array)


AUDIT = """
import sys
seen = []
sys.addaudithook(lambda name, given: seen.append(name) if name.startswith("socket.") else None)
import service.engine.openvino_engine
found = [m for m in sys.modules if m.startswith("openvino_telemetry") and sys.modules[m]]
sys.exit(f"{found} {seen}" if found or seen else 0)
"""


def test_it_tells_its_makers_nothing():
    done = subprocess.run(
        [sys.executable, "-c", AUDIT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
