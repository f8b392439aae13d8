"""What the benchmark programs share, and what they count."""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.harness import read_json, table, write_json
from benchmarks.synthesis import CACHED, NAIVE, TORCH, build_peers, measure, verdicts
from benchmarks.timing import Timing, alternated, measured_peak, median_ratio, training_flops
from benchmarks.training import kind_of
from model import build_model
from model.config import ConvVaeConfig, IafPosterior
from training.data import ImageData

CPU = torch.device("cpu")


def test_measurements_alternate_and_ratios_are_of_the_same_round():
    order: list[str] = []

    def run(name: str, *cpu: float):
        times = iter(cpu)

        def one() -> Timing:
            order.append(name)
            return Timing(wall=100.0, cpu=next(times))

        return one

    found = alternated({"slow": run("slow", 2, 30, 8), "fast": run("fast", 1, 10, 1)}, rounds=3)
    assert order == ["slow", "fast"] * 3
    assert median_ratio(found["slow"], found["fast"], CPU) == 3.0  # of 2, 3 and 8


def test_files_are_whole_and_a_broken_one_is_named(tmp_path):
    path = tmp_path / "new" / "results.json"
    assert read_json(path) is None
    write_json(path, {"a": 1})
    assert read_json(path) == {"a": 1}
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]
    path.write_text("{")
    with pytest.raises(SystemExit, match=r"results\.json"):
        read_json(path)


def test_tables_are_markdown():
    assert table(["", "n"], [["a", "10"], ["long", "2"]]).splitlines() == [
        "|      |  n |",
        "|------|---:|",
        "| a    | 10 |",
        "| long |  2 |",
    ]


def test_training_flops_count_products_forward_and_backward():
    """One more IAF step costs 6 FLOP for each of its weights: 2 forward, 4 backward."""
    small = ConvVaeConfig(
        image_shape=(1, 8, 8),
        channels=(4,),
        hidden=12,
        latent_dim=4,
        posterior=IafPosterior(steps=1, hidden=(8,)),
    )
    more = replace(small, posterior=IafPosterior(steps=2, hidden=(8,)))
    data = ImageData(np.zeros((2, 1, 8, 8), np.uint8), "blank", "train")
    one, two = (training_flops(build_model(c), data) for c in (small, more))
    weights = 12 * 8 + 4 * 8 + 2 * 8 * 4  # context, z, and two heads
    assert two - one == 6 * weights


def test_the_peak_is_a_plausible_number_of_flops():
    peak = measured_peak(CPU, torch.float32, seconds=0.01)
    assert 1e8 < peak < 1e14


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::convolution_backward", "convolutions, backward"),
        ("aten::mkldnn_convolution", "convolutions, forward"),
        ("aten::addmm", "matrix products"),
        ("aten::_foreach_lerp_", "optimiser and average"),
        ("graph_0_cpp_fused_elu_view_3", "compiled element-wise kernels"),
        ("aten::copy_", "everything else"),
    ],
)
def test_operations_have_kinds(name: str, kind: str):
    assert kind_of(name) == kind


def test_synthesis_measures_both_models_and_judges_them():
    peers = build_peers("mnist", 3000, CPU)
    options = argparse.Namespace(batches=[2], rounds=1, seconds=0.0, passes=2, rows=1, bundle=None)
    rows = measure(peers, options)
    assert [row["name"] for row in rows] == [TORCH, CACHED, NAIVE]
    assert all(row["seconds_a_batch"] > 0 for row in rows)
    ratio = {"name": CACHED, "batch": 64, f"times_{TORCH}": 60.0}
    graph = {"name": NAIVE, "batch": 64, f"times_{TORCH}": 999.0}
    assert [(v["name"], v["met"]) for v in verdicts([ratio, graph])] == [
        (NAIVE, False),
        (CACHED, True),
    ]
