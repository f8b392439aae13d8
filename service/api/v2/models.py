"""The models of the Open Inference Protocol: four operations of a bundle, such as ``mnist.score``.

What each takes and gives, and how it is computed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from service.api.request.limits import OperationRequest
from service.api.v2.codec import InferRequest, InferResponse
from service.api.v2.tensors import Datatype, TensorInfo
from service.bundle import Manifest
from service.errors import InvalidInput, UnknownModel
from service.operations.checks import MAX_SEED, at_most
from service.operations.model import Model
from service.repository.registry import LoadedModel, Registry
from service.verdicts.statistics import host_names

__all__ = ["INFER_OPERATIONS", "InferModel", "InferModels"]

INFER_OPERATIONS = ("score", "sample", "encode", "decode")
ESTIMATES = ("log_likelihood_nats", "elbo_nats", "bits_per_dim")
NUMBERS, DECISIONS = (*ESTIMATES, "p_value"), ("anomalous", "discovery")
VERDICT = frozenset({"p_value", *DECISIONS, "status", "evidence"})
UNDECIDED = -1  # where JSON has null; else 1 or 0
Run = Callable[[OperationRequest, Model, InferRequest], Awaitable[InferResponse]]


@dataclass(frozen=True)
class InferModel:
    """A model as the protocol sees it; `parameters` are those that a request may have."""

    name: str
    operation: str
    version: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    parameters: frozenset[str]
    run: Run


class InferModels:
    """What is in `registry` as the protocol's models."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._known: WeakKeyDictionary[Model, dict[str, InferModel]] = WeakKeyDictionary()

    def find(self, name: str, version: str | None) -> tuple[LoadedModel, InferModel]:
        """The model `name`, such as ``mnist.score``, in `version` (None: the one that answers).

        Raises UnknownModel, ShuttingDown.
        """
        bundle, _, operation = name.rpartition(".")
        if operation not in INFER_OPERATIONS:
            # Whatever its versions.
            bundles = dict.fromkeys(model.name for model in self._registry.models)
            names = (f"{bundle}.{each}" for bundle in bundles for each in INFER_OPERATIONS)
            raise UnknownModel(f"there is no model {name[:80]!r}; there are {', '.join(names)}")
        loaded = self._registry.find(bundle, version)
        return loaded, self.of(loaded.runtime)[operation]

    def of(self, model: Model) -> dict[str, InferModel]:
        """The operations of a loaded bundle, each as a model."""
        models = self._known.get(model)
        if models is None:
            models = self._known[model] = _infer_models(model.manifest)
        return models

    def __iter__(self) -> Iterator[tuple[Model, InferModel]]:
        for loaded in self._registry.models:
            for infer in self.of(loaded.runtime).values():
                yield loaded.runtime, infer


async def _score(request: OperationRequest, model: Model, infer: InferRequest) -> InferResponse:
    scoring, images, settings = model.manifest.scoring, infer.inputs["image"], request.settings
    samples = _integer(infer, "importance_samples", scoring.default_importance_samples, least=1)
    at_most("importance_samples", samples, settings.max_importance_samples)
    at_most("images", len(images), settings.max_images)
    at_most("images times importance_samples", len(images) * samples, settings.max_rows)
    asked = {info.name for info, _ in infer.outputs}
    scores = await model.score(
        images,
        importance_samples=samples,
        seed=_integer(infer, "seed", scoring.default_seed),
        alpha=_share(infer, "alpha"),
        fdr=_share(infer, "fdr"),
        verdict=not asked.isdisjoint(VERDICT),
        **request.asked,
    )
    outputs: dict[str, NDArray[Any]] = {
        name: getattr(scores, name).astype(np.float32) for name in asked.intersection(NUMBERS)
    }
    for name in asked.intersection(DECISIONS):
        decided = getattr(scores, name)
        outputs[name] = np.array([UNDECIDED if one is None else one for one in decided], np.int8)
    if "status" in asked:
        outputs["status"] = np.array(scores.status, object)
    calibration = scores.resolved["calibration"] or {}
    said = scores.resolved | {f"calibration_{key}": value for key, value in calibration.items()}
    # The protocol has no other parameters.
    parameters = {
        name: value for name, value in said.items() if isinstance(value, str | int | float)
    }
    if "evidence" in asked:
        names = _parts(model.manifest)
        nothing = np.full(len(images), np.nan)
        columns = [scores.evidence.get(name, nothing) for name in names]
        outputs["evidence"] = np.column_stack(columns).astype(np.float32)
        parameters["evidence_names"] = ",".join(names)
    if scores.notes:
        parameters["notes"] = "; ".join(scores.notes)
    finite = np.isfinite(scores.log_likelihood_nats)
    return InferResponse(outputs=outputs, parameters=parameters, result=scores, finite=finite)


async def _sample(request: OperationRequest, model: Model, infer: InferRequest) -> InferResponse:
    seeds = infer.inputs["seed"]
    at_most("seeds", len(seeds), request.settings.max_n)
    heats = infer.inputs.get("temperature", np.ones(len(seeds), np.float32))
    groups = len(model.manifest.latent.groups)
    if len(heats) != len(seeds):
        raise InvalidInput(f"temperature has {len(heats)} numbers for {len(seeds)} seeds")
    drawn = await model.sample_each(
        seeds.tolist(), temperature=np.repeat(heats[:, None], groups, axis=1), **request.asked
    )
    outputs: dict[str, NDArray[Any]]
    outputs = {"image": drawn.images, "draw": drawn.draw, "mean": drawn.mean}
    return InferResponse(outputs=outputs, result=drawn, finite=drawn.finite)


async def _encode(request: OperationRequest, model: Model, infer: InferRequest) -> InferResponse:
    images = infer.inputs["image"]
    at_most("images", len(images), request.settings.max_images)
    parameters = {}
    if "seed" in infer.parameters:
        parameters["seed"] = _integer(infer, "seed", 0)
    coded = await model.encode(images, seed=parameters.get("seed"), **request.asked)
    outputs, finite = {"z": coded.latents}, np.asarray(np.isfinite(coded.latents).all(axis=1))
    return InferResponse(outputs=outputs, parameters=parameters, result=coded, finite=finite)


async def _decode(request: OperationRequest, model: Model, infer: InferRequest) -> InferResponse:
    latents = infer.inputs["z"]
    at_most("latents", len(latents), request.settings.max_images)
    decoded = await model.decode_each(latents, **request.asked)
    outputs = {"mean": decoded.mean}
    return InferResponse(outputs=outputs, result=decoded, finite=decoded.finite)


def _parts(manifest: Manifest) -> tuple[str, ...]:
    """The columns of the output ``evidence``, whose p-values ``/v1`` has by name."""
    hosts = host_names(binary=manifest.likelihood.binary)
    return ("log_likelihood", *manifest.statistics, *hosts)


def _share(infer: InferRequest, name: str) -> float | None:
    """A parameter between 0 and 1, if it is there. Raises InvalidInput."""
    value = infer.parameters.get(name)
    if value is not None and (type(value) is not float or not 0.0 < value < 1.0):
        raise InvalidInput(f"{name} must be a number between 0 and 1")
    return value


def _integer(infer: InferRequest, name: str, default: int, least: int = 0) -> int:
    """A parameter. Raises InvalidInput."""
    value = infer.parameters.get(name, default)
    if type(value) is not int or not least <= value <= MAX_SEED:
        raise InvalidInput(f"{name} must be a whole number from {least} to {MAX_SEED}")
    return value


def _tensor(name: str, datatype: Datatype, *shape: int, optional: bool = False) -> TensorInfo:
    return TensorInfo(name=name, datatype=datatype, shape=(-1, *shape), optional=optional)


def _infer_models(manifest: Manifest) -> dict[str, InferModel]:
    pixels, dim = manifest.image.shape, manifest.latent.dim
    image, z = _tensor("image", "UINT8", *pixels), _tensor("z", "FP32", dim)
    mean = _tensor("mean", "FP32", *pixels)
    scores = (
        *(_tensor(name, "FP32") for name in NUMBERS),
        *(_tensor(name, "INT8") for name in DECISIONS),
        _tensor("status", "BYTES"),
        _tensor("evidence", "FP32", len(_parts(manifest))),
    )
    asked = frozenset({"seed", "importance_samples", "alpha", "fdr"})
    drawn = (image, _tensor("draw", "UINT8", *pixels), mean)
    noise = (_tensor("seed", "INT64"), _tensor("temperature", "FP32", optional=True))
    none: frozenset[str] = frozenset()
    signatures: dict[str, Any] = {
        "score": ((image,), scores, asked, _score),
        "sample": (noise, drawn, none, _sample),
        "encode": ((image,), (z,), frozenset({"seed"}), _encode),
        "decode": ((z,), (mean,), none, _decode),
    }
    return {
        operation: InferModel(f"{manifest.name}.{operation}", operation, manifest.version, *rest)
        for operation, rest in signatures.items()
    }
