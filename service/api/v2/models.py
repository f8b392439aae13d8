"""The models of the Open Inference Protocol: every operation of a bundle is one, ``mnist.score``.

What each takes and gives, and how it is computed. No function here knows HTTP.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from service.api.request.inputs import check_count
from service.api.v2.codec import InferRequest, InferResponse
from service.api.v2.tensors import TensorInfo
from service.bundle import Manifest
from service.errors import InvalidInput, UnknownModel
from service.operations.model import ModelRuntime
from service.operations.results import Call, Timing
from service.repository.registry import Registry
from service.settings import Settings

__all__ = ["INFER_OPERATIONS", "InferModel", "find_model", "infer_model", "model_names"]

MAX_SEED = 2**63 - 1
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A request that is ready to run."""

    runtime: ModelRuntime
    request: InferRequest
    call: Call
    settings: Settings

    def integer(self, name: str, default: int, least: int = 0) -> int:
        """A parameter. Raises InvalidInput."""
        value = self.request.parameters.get(name, default)
        if type(value) is not int or not least <= value <= MAX_SEED:
            raise InvalidInput(f"{name} must be a whole number of at least {least}")
        return value


Run = Callable[[Task], Awaitable[tuple[InferResponse, Timing]]]


@dataclass(frozen=True, kw_only=True)
class InferModel:
    """A model as the protocol sees it; `parameters` are those that a request may have."""

    name: str
    operation: str
    version: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    parameters: frozenset[str]
    run: Run


async def _score(task: Task) -> tuple[InferResponse, Timing]:
    scoring, images = task.runtime.bundle.manifest.scoring, task.request.inputs["image"]
    samples = task.integer("importance_samples", scoring.default_importance_samples, least=1)
    check_count("importance_samples", samples, task.settings.max_importance_samples)
    check_count("images", len(images), task.settings.max_images)
    check_count("images times importance_samples", len(images) * samples, task.settings.max_rows)
    scores = await task.runtime.score(
        images,
        importance_samples=samples,
        seed=task.integer("seed", scoring.default_seed),
        alpha=scoring.alpha,
        call=task.call,
    )
    parameters = {
        "estimator": scores.estimator,
        "importance_samples": samples,
        "seed": scores.seed,
    }
    names = ("log_likelihood_nats", "elbo_nats", "bits_per_dim", "p_value")
    outputs = {name: getattr(scores, name).astype(np.float32) for name in names}
    return InferResponse(outputs=outputs, parameters=parameters), scores.timing


async def _sample(task: Task) -> tuple[InferResponse, Timing]:
    seeds = task.request.inputs["seed"]
    check_count("seeds", len(seeds), task.settings.max_n)
    warmth = task.request.inputs.get("temperature", np.ones(len(seeds), np.float32))
    groups = len(task.runtime.bundle.manifest.latent.groups)
    if len(warmth) != len(seeds):
        raise InvalidInput(f"temperature has {len(warmth)} numbers for {len(seeds)} seeds")
    drawn = await task.runtime.sample_each(
        seeds.tolist(), temperature=np.repeat(warmth[:, None], groups, axis=1), call=task.call
    )
    outputs: Arrays = {"image": drawn.images, "draw": drawn.draw, "mean": drawn.mean}
    return InferResponse(outputs=outputs, parameters={}), drawn.timing


async def _encode(task: Task) -> tuple[InferResponse, Timing]:
    images = task.request.inputs["image"]
    check_count("images", len(images), task.settings.max_images)
    seeded = "seed" in task.request.parameters
    seed = task.integer("seed", 0) if seeded else None
    coded = await task.runtime.encode(images, seed=seed, call=task.call)
    parameters = {"seed": seed} if seeded else {}
    return InferResponse(outputs={"z": coded.latents}, parameters=parameters), coded.timing


async def _decode(task: Task) -> tuple[InferResponse, Timing]:
    latents = task.request.inputs["z"]
    check_count("latents", len(latents), task.settings.max_images)
    decoded = await task.runtime.decode_each(latents, call=task.call)
    return InferResponse(outputs={"mean": decoded.mean}, parameters={}), decoded.timing


def _tensor(name: str, datatype: str, *shape: int, optional: bool = False) -> TensorInfo:
    return TensorInfo(name=name, datatype=datatype, shape=(-1, *shape), optional=optional)


_Signature = tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...], frozenset[str], Run]


def _signatures(manifest: Manifest) -> dict[str, _Signature]:
    pixels, dim = manifest.image.shape, manifest.latent.dim
    image, z = _tensor("image", "UINT8", *pixels), _tensor("z", "FP32", dim)
    mean = _tensor("mean", "FP32", *pixels)
    names = ("log_likelihood_nats", "elbo_nats", "bits_per_dim", "p_value")
    numbers = tuple(_tensor(name, "FP32") for name in names)
    drawn = (image, _tensor("draw", "UINT8", *pixels), mean)
    noise = (_tensor("seed", "INT64"), _tensor("temperature", "FP32", optional=True))
    none: frozenset[str] = frozenset()
    return {
        "score": ((image,), numbers, frozenset({"seed", "importance_samples"}), _score),
        "sample": (noise, drawn, none, _sample),
        "encode": ((image,), (z,), frozenset({"seed"}), _encode),
        "decode": ((z,), (mean,), none, _decode),
    }


INFER_OPERATIONS = ("score", "sample", "encode", "decode")
_known: WeakKeyDictionary[ModelRuntime, dict[str, InferModel]] = WeakKeyDictionary()


def infer_model(runtime: ModelRuntime, operation: str) -> InferModel:
    """`operation` of a loaded bundle as a model."""
    models = _known.get(runtime)
    if models is None:
        manifest = runtime.bundle.manifest
        models = _known[runtime] = {
            name: InferModel(
                name=f"{runtime.name}.{name}",
                operation=name,
                version=manifest.version,
                inputs=inputs,
                outputs=outputs,
                parameters=parameters,
                run=run,
            )
            for name, (inputs, outputs, parameters, run) in _signatures(manifest).items()
        }
    return models[operation]


def find_model(
    registry: Registry, name: str, version: str | None
) -> tuple[ModelRuntime, InferModel]:
    """The model `name`, such as ``mnist.score``, in `version` (None: the one that answers).

    Raises UnknownModel, ShuttingDown.
    """
    bundle, _, operation = name.rpartition(".")
    if operation not in INFER_OPERATIONS:
        raise UnknownModel(
            f"there is no model {name[:80]!r}; there are {', '.join(model_names(registry))}"
        )
    runtime = registry.get(bundle, version)
    return runtime, infer_model(runtime, operation)


def model_names(registry: Registry) -> list[str]:
    """Every model that is loaded, once whatever its versions."""
    bundles = dict.fromkeys(runtime.name for runtime in registry)
    return [f"{bundle}.{name}" for bundle in bundles for name in INFER_OPERATIONS]
