"""Drawing images in parallel against drawing them pixel by pixel, in one run.

    python -m benchmarks.synthesis [--preset mnist] [--batches 64 1] [--json FILE]

The VAE draws a batch with one pass of its generator: in torch, weight norm folded, and as the
`sample` graph of --bundle on ONNX Runtime. The autoregressive sampler is a gated PixelCNN
(benchmarks/pixelcnn.py) with as many parameters as the whole VAE: naive, a forward pass for each
subpixel, and with cached activations (benchmarks/pixelcnn_sampling.py). Both have untrained
weights: what is in them does not change the time. All compute in float32.

Naive sampling of a batch can take days. Every subpixel costs it the same, one forward pass, and
every row of pixels costs the cached sampler the same: `--passes` and `--rows` of them are
measured, and the time of a batch is extrapolated linearly.

Measurements alternate, and ratios are medians over rounds: of processor seconds on a CPU, of
seconds on a GPU. The paper (section 5.2) says 52.0 seconds an image for a PixelCNN and 0.05
seconds for its VAE, on one Titan X.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import parser_of, table, write_json
from benchmarks.pixelcnn import PixelCnn, of_size, parameter_count
from benchmarks.pixelcnn_sampling import CachedSampler, naive_sample
from benchmarks.score_graph import graph_file, sample_inputs, session
from benchmarks.timing import (
    Timing,
    alternated,
    machine,
    machine_line,
    median_ratio,
    repeated,
    timed,
)
from model import build_model
from model.config import ConfigError, preset, preset_names
from model.contract import DensityModel
from training.errors import TrainingError
from training.fit.device import choose_device

NAIVE_TARGET, CACHED_TARGET, TARGET_BATCH = 1000.0, 50.0, 64
TORCH, GRAPH, CACHED, NAIVE = (
    "VAE, torch",
    "VAE, exported graph",
    "PixelCNN, cached",
    "PixelCNN, naive",
)


@dataclass(frozen=True)
class Peers:
    """The two models of comparable size."""

    trained: DensityModel  # as training has it, the inference network included
    vae: DensityModel  # folded, as it draws
    pixelcnn: PixelCnn
    device: torch.device


def build_peers(name: str, parameters: int | None, device: torch.device) -> Peers:
    """The preset's VAE, and a PixelCNN with as many parameters, or with `parameters`."""
    torch.manual_seed(0)
    vae = build_model(preset(name))
    levels = 2 if vae.likelihood.kind == "bernoulli" else 256
    config = of_size(parameters or parameter_count(vae), vae.config.image_shape, levels)
    pixelcnn = PixelCnn(config).eval().requires_grad_(False)
    folded = vae.fold().requires_grad_(False)
    layout: Any = {"memory_format": torch.channels_last}
    return Peers(vae, folded.to(device, **layout), pixelcnn.to(device, **layout), device)


def draw_in_torch(peers: Peers, batch: int) -> Callable[[], object]:
    """Draw a batch of images from the VAE, in torch."""
    model, device = peers.vae, peers.device
    temperature = torch.ones(batch, len(model.layout.groups), device=device)

    @torch.inference_mode()
    def draw() -> object:
        eps = torch.randn(batch, model.layout.dim, device=device)
        u = torch.rand(batch, model.likelihood.uniforms, device=device)
        return model.likelihood.draw(model.generate(eps, temperature), u)

    return draw


def draw_with_graph(bundle: Path, shape: tuple[int, int, int], batch: int) -> Callable[[], object]:
    """Draw a batch of images with the exported graph. Ends the program where it is of others."""
    opened, rng = session(graph_file(bundle, "sample")), np.random.default_rng(0)
    (mean,) = (value.shape[1:] for value in opened.get_outputs() if value.name == "mean")
    if tuple(mean) != tuple(shape):
        raise SystemExit(f"{bundle} is for images of another shape")
    return lambda: opened.run(None, sample_inputs(opened, batch, rng))


def measurements(
    peers: Peers, batch: int, options: argparse.Namespace
) -> dict[str, Callable[[], Timing]]:
    """What gives the time of one batch, by name."""
    shape, device = peers.vae.config.image_shape, peers.device
    u = torch.rand(batch, *shape, device=device)
    rows = min(options.rows or shape[1], shape[1])
    passes = min(options.passes, peers.vae.dims)
    cached, torch_draw = CachedSampler(peers.pixelcnn), draw_in_torch(peers, batch)
    runs: dict[str, Callable[[], Timing]] = {
        TORCH: lambda: repeated(torch_draw, options.seconds, device)
    }
    if options.bundle is not None:
        graph_draw = draw_with_graph(options.bundle, shape, batch)
        runs[GRAPH] = lambda: repeated(graph_draw, options.seconds, device)
    runs[CACHED] = lambda: timed(lambda: cached.sample(u, rows), device).per(rows / shape[1])
    if passes:
        runs[NAIVE] = lambda: timed(lambda: naive_sample(peers.pixelcnn, u, passes), device).per(
            passes / peers.vae.dims
        )
    torch_draw()
    cached.sample(u, rows=1)
    if passes:
        naive_sample(peers.pixelcnn, u, 1)  # what is allocated at first use is not measured
    return runs


def summary(
    batch: int, found: dict[str, list[Timing]], device: torch.device
) -> list[dict[str, Any]]:
    """A row for each measurement of one batch size."""
    rows = []
    for name, timings in found.items():
        seconds = statistics.median(t.wall for t in timings)
        row = {"name": name, "batch": batch, "seconds_a_batch": seconds}
        row["cpu_seconds_a_batch"] = statistics.median(t.cpu for t in timings)
        for vae in (TORCH, GRAPH):
            if vae in found:
                row[f"times_{vae}"] = median_ratio(timings, found[vae], device)
        rows.append(row)
    return rows


def verdicts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The promised ratios at batch 64, against the quicker of the VAE's two forms."""
    found = []
    for name, target in ((NAIVE, NAIVE_TARGET), (CACHED, CACHED_TARGET)):
        for row in rows:
            if row["name"] == name and row["batch"] == TARGET_BATCH:
                best = max(v for k, v in row.items() if k.startswith("times_"))
                found.append({"name": name, "ratio": best, "least": target, "met": best >= target})
    return found


def report(figures: dict[str, Any]) -> str:
    """The table and what it was measured with."""
    head = ["", "batch", "s a batch", "CPU s a batch", "x VAE, torch", "x VAE, graph"]
    lines = [
        [
            row["name"],
            str(row["batch"]),
            f"{row['seconds_a_batch']:.4g}",
            f"{row['cpu_seconds_a_batch']:.4g}",
            *(f"{row[k]:.4g}" if (k := f"times_{vae}") in row else "" for vae in (TORCH, GRAPH)),
        ]
        for row in figures["rows"]
    ]
    goals = [
        f"{g['name']}: {g['ratio']:.4g} times the VAE's time at batch {TARGET_BATCH}; at least "
        f"{g['least']:g} wanted: {'met' if g['met'] else 'MISSED'}"
        for g in figures["targets"]
    ]
    facts = [
        machine_line(figures),
        f"{figures['preset']}: {figures['vae_parameters']:,} parameters",
        f"PixelCNN: {figures['pixelcnn_parameters']:,} parameters, {figures['pixelcnn']}",
        f"measured: {figures['passes']} naive passes, {figures['rows_measured']} cached rows",
    ]
    return "\n".join([*facts, "", table(head, lines), "", *goals])


def arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--preset", default="mnist", help=f"{', '.join(preset_names())}")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 1], help="default 64 1")
    parser.add_argument("--rounds", type=int, default=3, help="alternations (default 3)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of the VAE a round (default 1)")
    parser.add_argument(
        "--passes", type=int, default=2, help="naive passes a round (default 2; 0: none)"
    )
    parser.add_argument("--rows", type=int, help="cached rows a round (default: all)")
    parser.add_argument("--parameters", type=int, help="of the PixelCNN (default: the VAE's)")
    parser.add_argument("--bundle", type=Path, help="whose graph to run (default: none)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=1, help="of torch; the graph has one")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser.parse_args()


def measure(peers: Peers, options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for batch in options.batches:
        found = alternated(measurements(peers, batch, options), options.rounds)
        rows += summary(batch, found, peers.device)
    return rows


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    try:
        peers = build_peers(options.preset, options.parameters, choose_device(options.device))
    except (ConfigError, TrainingError) as error:
        raise SystemExit(str(error)) from None
    rows = measure(peers, options)
    height = peers.vae.config.image_shape[1]
    figures = {
        **machine(peers.device),
        "preset": options.preset,
        "vae_parameters": parameter_count(peers.trained),
        "pixelcnn_parameters": parameter_count(peers.pixelcnn),
        "pixelcnn": str(peers.pixelcnn.config),
        "passes": min(options.passes, peers.vae.dims),
        "rows_measured": min(options.rows or height, height),
        "rows": rows,
        "targets": verdicts(rows),
    }
    print(report(figures))
    if options.json:
        write_json(options.json, figures)
    sys.exit(0 if all(goal["met"] for goal in figures["targets"]) else 1)


if __name__ == "__main__":
    main()
