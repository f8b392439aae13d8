"""Do the exported graphs compute what the torch model computes? Asked before they are published."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from service.bundle import Manifest
from service.bundle.graphs import GraphSpec
from service.engine.arrays import in_halves
from service.engine.base import EngineBase
from service.noise import normal, uniform
from training.errors import ExportError
from training.export.graphs import GraphModule

__all__ = ["PARITY_ROWS", "check_parity", "graph_inputs", "torch_outputs"]

Arrays = dict[str, NDArray[Any]]

PARITY_ROWS = (1, 7, 64)
RAGGED = (3, 1, 5, 0, 2)  # importance samples of images 0, 1, 2, ..., over again
RTOL = 1e-4  # float32 through some tens of layers, summed in another order
ATOL = 1e-4
LOG_DENSITY_RTOL = 2e-5  # of sums over all pixels: relative, their size is hundreds of nats
LOG_DENSITY_ATOL = 2e-3
# Of drawn pixels: the share that may be another level, and that may be more than one level off.
DRAW_TOLERANCE, DRAW_TOLERANCE_FAR = 1e-2, 1e-3
LOG_DENSITIES = frozenset({"log_weight", "log_px_z", "kl"})


def graph_inputs(manifest: Manifest, images: NDArray[np.uint8], seed: int) -> dict[str, Arrays]:
    """Inputs for every graph: images uint8 [N, C, H, W], ragged owners, noise from `seed`.

    Owners are neither sorted nor evenly spread, and some images may have no row at all.
    """
    n, latent, uniforms = len(images), manifest.latent.dim, manifest.likelihood.uniforms
    owner = np.repeat(np.arange(n), np.resize(RAGGED, n)).astype(np.int64)
    owner = np.random.default_rng(seed).permutation(owner)[: max(PARITY_ROWS)]

    def eps(rows: int, draw: int) -> NDArray[np.float32]:
        return normal(seed, np.arange(rows, dtype=np.uint64), draw, latent)

    u = uniform(seed, np.arange(n, dtype=np.uint64), 0, uniforms)
    grey = {}
    if manifest.likelihood.binary:
        grey["u_image"] = uniform(seed, np.arange(n, dtype=np.uint64), 1, manifest.image.dims)
    temperature = np.linspace(0, 1.5, n * len(manifest.kl_groups), dtype=np.float32)
    return {
        "sample": {"eps": eps(n, 0), "temperature": temperature.reshape(n, -1), "u": u},
        "decode": {"z": eps(n, 1), "u": u},
        "encode": {"image": images, "eps": eps(n, 2), **grey},
        "score": {"image": images, "owner": owner, "eps": eps(len(owner), 3), **grey},
        "evidence": {"image": images, "owner": owner, "eps": eps(len(owner), 4), **grey},
    }


def torch_outputs(module: GraphModule, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
    """What torch computes for the same arrays."""
    with torch.inference_mode():
        tensors = [torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in module.dynamic]
        return dict(zip(module.outputs, (out.numpy() for out in module(*tensors)), strict=True))


def check_parity(
    engine: EngineBase,
    manifest: Manifest,
    modules: Mapping[str, GraphModule],
    images: NDArray[np.uint8],
) -> dict[str, float]:
    """Compare every graph with torch for N in `PARITY_ROWS` and ragged K.

    `images` uint8 [N, C, H, W], at least 64. Returns the largest absolute difference of each
    output, "graph.output" -> value; raises `ExportError` naming what disagrees.
    """
    worst: dict[str, float] = {}
    for rows in PARITY_ROWS:
        for operation, arrays in graph_inputs(manifest, images[:rows], rows).items():
            got = _run(engine, operation, manifest.graphs[operation], arrays)
            for name, wanted in torch_outputs(modules[operation], arrays).items():
                key = f"{operation}.{name}"
                difference = _difference(key, rows, got[name], wanted)
                worst[key] = max(worst.get(key, 0.0), difference)
    _check_prior_eps(engine, manifest, images[:7])
    return worst


def _run(engine: EngineBase, operation: str, graph: GraphSpec, arrays: Arrays) -> Arrays:
    """One run, or as many as the engine's largest batch needs."""
    if max(len(array) for array in arrays.values()) <= engine.max_rows:
        return engine.run(operation, arrays)
    return in_halves(graph, arrays, partial(_run, engine, operation, graph))


def _difference(key: str, rows: int, got: NDArray[Any], wanted: NDArray[Any]) -> float:
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        raise _fault(key, rows, f"{got.dtype}{got.shape} for {wanted.dtype}{wanted.shape}")
    if not np.isfinite(wanted).all() or not np.isfinite(got).all():
        raise _fault(key, rows, "values that are not finite")
    difference = np.abs(got.astype(np.float64) - wanted.astype(np.float64))
    if got.dtype == np.uint8:
        for levels, allowed in ((0, DRAW_TOLERANCE), (1, DRAW_TOLERANCE_FAR)):
            if (share := float((difference > levels).mean())) > allowed:
                raise _fault(
                    key, rows, f"{share:.1%} of its pixels differ by more than {levels} levels"
                )
        return float(difference.max())
    densities = key.partition(".")[2] in LOG_DENSITIES
    rtol, atol = (LOG_DENSITY_RTOL, LOG_DENSITY_ATOL) if densities else (RTOL, ATOL)
    if (difference > atol + rtol * np.abs(wanted)).any():
        raise _fault(
            key, rows, f"a difference of {difference.max():.3g} (rtol {rtol}, atol {atol})"
        )
    return float(difference.max())


def _check_prior_eps(engine: EngineBase, manifest: Manifest, images: NDArray[np.uint8]) -> None:
    """sample(prior_eps, T = 1) is decode(z): both name the same latents."""
    inputs = graph_inputs(manifest, images, seed=0)
    latents = engine.run("encode", inputs["encode"])
    u = inputs["decode"]["u"]
    ones = np.ones_like(inputs["sample"]["temperature"])
    sample = {"eps": latents["prior_eps"], "temperature": ones, "u": u}
    decoded = engine.run("decode", {"z": latents["z"], "u": u})["mean"]
    drawn = engine.run("sample", sample)["mean"]
    _difference("sample(prior_eps) against decode(z).mean", len(images), drawn, decoded)


def _fault(key: str, rows: int, what: str) -> ExportError:
    return ExportError(
        f"The exported graph and the torch model disagree in {key} at N = {rows}: {what}. "
        "Nothing was published."
    )
