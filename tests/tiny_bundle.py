"""The bundle of the model in `tiny_model.py`, made by hand.

`write_tiny_bundle` writes the model's functions as ONNX graphs over one shared weights file, node
by node, without the exporter.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tiny_model import CALIBRATION_IMAGES, CHANNELS, PIXELS, SIDE, D, TinyModel

from service.bundle import (
    Bundle,
    ImageSpec,
    LatentGroup,
    LatentSpec,
    LikelihoodSpec,
    graph_contract,
    write_bundle,
)
from service.verdicts.reference import TAIL, Measured, Reference, measured_of

CALIBRATED = (1, 16, 64)
FIT_IMAGES = 150

IMAGE = ImageSpec(channels=CHANNELS, height=SIDE, width=SIDE, levels=256)
LATENT = LatentSpec(dim=D, groups=(LatentGroup(name="z", channels=D, height=1, width=1),))
TWO_GROUPS = LatentSpec(
    dim=D,
    groups=(
        LatentGroup(name="top", channels=1, height=1, width=1),
        LatentGroup(name="low", channels=D - 1, height=1, width=1),
    ),
)
LIKELIHOOD = LikelihoodSpec(kind="bernoulli", uniforms=PIXELS)
STATISTICS = ("log_px_z", "residual/all")
OPERATIONS = ("sample", "decode", "encode", "score", "evidence")


def spread(latent: LatentSpec) -> np.ndarray:
    """``[G, D]``: 1 where a latent is of a group."""
    sizes = [group.dim for group in latent.groups]
    return np.repeat(np.eye(len(sizes), dtype=np.float32), sizes, axis=1)


def tiny_manifest(latent: LatentSpec = LATENT, **changes: Any) -> dict[str, Any]:
    """The manifest of the tiny bundle without ``files``."""
    contract = graph_contract(IMAGE, latent, LIKELIHOOD, STATISTICS)
    tensors = {
        operation: {
            side: [
                {"name": t.name, "dtype": t.dtype, "shape": list(t.shape)}
                for t in getattr(graph, side)
            ]
            for side in ("inputs", "outputs")
        }
        for operation, graph in contract.items()
    }
    fields: dict[str, Any] = {
        "schema_version": 4,
        "name": "tiny",
        "version": "1.2.3",
        "description": "linear-Gaussian model for tests",
        "license": "MIT",
        "image": {"channels": CHANNELS, "height": SIDE, "width": SIDE, "levels": 256},
        "preprocessing": {"kind": "binarize"},
        "likelihood": {"kind": "bernoulli", "uniforms": PIXELS},
        "latent": {"dim": D, "groups": [vars(group) for group in latent.groups]},
        "kl_groups": [group.name for group in latent.groups],
        "statistics": list(STATISTICS),
        "graphs": {
            op: {"portable": f"{op}.onnx", "cpu": f"{op}.onnx", **sides}
            for op, sides in tensors.items()
        },
        "weights_file": "weights.bin",
        "weights": [],
        "opset": 20,
        "precision": "float32",
        "parameters": 2 * D * PIXELS + PIXELS + 4 * D,
        "noise_version": 2,
        "scoring": {
            "default_importance_samples": 16,
            "calibrated_importance_samples": list(CALIBRATED),
            "default_seed": 0,
            "alpha": 0.01,
        },
        "calibration": {
            "file": "calibration.npz",
            "images": CALIBRATION_IMAGES,
            "fit_images": FIT_IMAGES,
            "split": "calibration",
            "seed": 0,
            "date": "2026-01-31",
            "fitted": False,
            "tail_weight": TAIL * (len(STATISTICS) + 2),
        },
        "canaries": {"file": "canaries.npz", "rtol": 1e-4, "atol": 1e-4},
        "evaluation": [
            {
                "estimator": "importance_weighted",
                "importance_samples": 64,
                "split": "test",
                "images": 200,
                "seed": 0,
                "value_nats": -9.5,
                "standard_error_nats": 0.1,
                "bits_per_dim": 9.5 / (PIXELS * float(np.log(2))),
                "kl_nats": {"z": 1.5},
                "protocol": "images drawn from the model",
                "command": "none",
            }
        ],
        "training": {"git_revision": "none", "data": "the model itself", "steps": 0},
    }
    return {**fields, **changes}


def canaries(model: TinyModel, latent: LatentSpec = LATENT) -> dict[str, np.ndarray]:
    """Inputs with the oracle's outputs: three images, five rows."""
    groups = spread(latent)
    rng = np.random.default_rng(3)
    images = model.images(3, seed=4)
    owner = np.array([0, 0, 1, 2, 2])
    f32 = np.float32
    inputs: dict[str, dict[str, np.ndarray]] = {
        "sample": {
            "eps": rng.standard_normal((3, D)).astype(f32),
            "temperature": np.array([[0.0], [0.7], [1.0]], dtype=f32).repeat(len(groups), axis=1),
            "u": rng.random((3, PIXELS)).astype(f32),
        },
        "decode": {
            "z": rng.standard_normal((3, D)).astype(f32),
            "u": rng.random((3, PIXELS)).astype(f32),
        },
        "encode": {"image": images, "eps": rng.standard_normal((3, D)).astype(f32)},
        "score": {
            "image": images,
            "owner": owner,
            "eps": rng.standard_normal((5, D)).astype(f32),
        },
        "evidence": {
            "image": images,
            "owner": owner,
            "eps": rng.standard_normal((5, D)).astype(f32),
        },
    }
    for reader in ("encode", "score", "evidence"):
        inputs[reader]["u_image"] = rng.random((3, PIXELS)).astype(f32)
    arrays: dict[str, np.ndarray] = {}
    for operation, given in inputs.items():
        for name, array in given.items():
            arrays[f"{operation}/in/{name}"] = array
        oracle = {k: v @ groups if k == "temperature" else v for k, v in given.items()}
        for name, array in getattr(model, operation)(**oracle).items():
            kept = array if array.dtype == np.uint8 else array.astype(f32)
            if name == "kl":
                kept = (model.kl_terms(**given) @ groups.T).astype(f32)
            arrays[f"{operation}/out/{name}"] = kept
    return arrays


def write_tiny_bundle(
    destination: Path,
    model: TinyModel | None = None,
    latent: LatentSpec = LATENT,
    **changes: Any,
) -> Bundle:
    """Write the tiny bundle; `changes` replace fields of its manifest, ``calibration=None`` leaves
    it out."""
    model = model or TinyModel.create()
    blob, layout = _pack(model)
    contents = {
        "weights.bin": blob,
        "calibration.npz": _npz(reference(model).arrays()),
        "canaries.npz": _npz(canaries(model, latent)),
        "MODEL_CARD.md": b"# tiny\n",
    }
    for operation in OPERATIONS:
        contents[f"{operation}.onnx"] = _graph(operation, model, layout, latent).SerializeToString()
    if changes.get("calibration", ...) is None:
        del contents["calibration.npz"]
        scoring = {"default_importance_samples": 16, "default_seed": 0, "alpha": 0.01}
        changes["scoring"] = {**scoring, "calibrated_importance_samples": []}
    listed = [
        {"name": k, "dtype": "float32", "shape": list(model.weights[k].shape)}
        | {"offset": offset, "length": length}
        for k, (offset, length) in layout.items()
    ]
    return write_bundle(
        destination, tiny_manifest(latent, **{"weights": listed, **changes}), contents
    )


def _npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def reference(model: TinyModel) -> Reference:
    """What verdicts compare with, by the oracle."""
    fit, usual = (
        measured(model, model.images(count, seed=seed), seed + 1)
        for count, seed in ((FIT_IMAGES, 7), (CALIBRATION_IMAGES, 1))
    )
    return Reference.made((*STATISTICS, "largest_box"), fit, usual)


def measured(model: TinyModel, images: np.ndarray, seed: int) -> Measured:
    """What the oracle says of images, at noise of NumPy's."""
    bounds = {k: model.bound(images, k, seed) for k in CALIBRATED}
    evidence = {name: a.astype(np.float32) for name, a in model.at_zero(images).items()}
    return measured_of(bounds, evidence, images, binary=True)


def _pack(model: TinyModel) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """All weights in one file at multiples of 4096 bytes, and where each lies."""
    blob, layout = b"", {}
    for name, array in model.weights.items():
        blob += b"\0" * (-len(blob) % 4096)
        layout[name] = (len(blob), array.nbytes)
        blob += array.tobytes()
    return blob, layout


def _external(name: str, array: np.ndarray, place: tuple[int, int]) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=array.shape)
    tensor.data_location = TensorProto.EXTERNAL
    entries = {"location": "weights.bin", "offset": str(place[0]), "length": str(place[1])}
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


TYPES = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8, "int64": TensorProto.INT64}

DECODER = [
    ("MatMul", "z W", "zW"),
    ("Add", "zW b", "logits"),
]
RENDER = [
    ("Sigmoid", "logits", "flat_mean"),
    ("Reshape", "flat_mean pixel_shape", "mean"),
    ("Less", "u flat_mean", "is_on"),
    ("Where", "is_on white black", "flat_draw"),
    ("Reshape", "flat_draw pixel_shape", "draw"),
]
BOTTOM_UP = [
    ("Cast", "image", "levels"),
    ("Div", "levels full", "shares"),
    ("Reshape", "shares flat_shape", "flat_shares"),
    ("Greater", "flat_shares u_image", "on"),
    ("Cast", "on", "x"),
    ("MatMul", "x A", "xA"),
    ("Add", "xA a", "q_mean"),
]
SCORE = [
    *BOTTOM_UP,
    ("Gather", "q_mean owner", "row_mean"),
    ("Gather", "x owner", "row_x"),
    ("Mul", "eps scale", "noise"),
    ("Add", "row_mean noise", "z"),
    *DECODER,
    ("Mul", "row_x logits", "x_logits"),
    ("Softplus", "logits", "partition"),
    ("Sub", "x_logits partition", "log_px_z_parts"),
    ("ReduceSum", "log_px_z_parts axis", "log_px_z"),
    ("Sub", "z prior_mean", "centred"),
    ("Div", "centred prior_scale", "prior_eps"),
    ("Mul", "prior_eps prior_eps", "prior_square"),
    ("Mul", "eps eps", "eps_square"),
    ("Sub", "prior_square eps_square", "twice_kl_parts"),
    ("Mul", "twice_kl_parts half", "kl_parts"),
    ("Log", "scale", "log_scale"),
    ("Log", "prior_scale", "log_prior_scale"),
    ("Sub", "log_prior_scale log_scale", "log_ratio"),
    ("Add", "kl_parts log_ratio", "kl_terms"),
    ("ReduceSum", "kl_terms axis", "kl_flat"),
    ("Sub", "log_px_z kl_flat", "log_weight"),
    ("MatMul", "kl_terms gather", "kl"),
]
NODES = {
    "sample": [
        ("MatMul", "temperature spread", "warmth"),
        ("Mul", "warmth eps", "warm_eps"),
        ("Mul", "warm_eps prior_scale", "offset"),
        ("Add", "offset prior_mean", "z"),
        *DECODER,
        *RENDER,
    ],
    "decode": [*DECODER, *RENDER],
    "encode": [
        *BOTTOM_UP,
        ("Mul", "eps scale", "noise"),
        ("Add", "q_mean noise", "z"),
        ("Sub", "z prior_mean", "centred"),
        ("Div", "centred prior_scale", "prior_eps"),
    ],
    "score": SCORE,
    "evidence": [
        *SCORE,
        ("MatMul", "q_mean W", "centre_zW"),
        ("Add", "centre_zW b", "centre"),
        ("Mul", "x centre", "x_centre"),
        ("Softplus", "centre", "centre_partition"),
        ("Sub", "x_centre centre_partition", "centre_log_px_z_parts"),
        ("MatMul", "centre_log_px_z_parts ones", "centre_log_px_z"),
        ("Sigmoid", "centre", "flat_mean"),
        ("Sub", "x flat_mean", "flat_residual"),
        ("Reshape", "flat_residual map_shape", "residual"),
        ("Mul", "flat_residual flat_residual", "squares"),
        ("MatMul", "squares average", "mean_square"),
        ("Concat", "centre_log_px_z mean_square", "statistics"),
    ],
}


def _graph(
    operation: str, model: TinyModel, layout: dict[str, tuple[int, int]], latent: LatentSpec
) -> onnx.ModelProto:
    spec = graph_contract(IMAGE, latent, LIKELIHOOD, STATISTICS)[operation]
    used = {name for _, names, _ in NODES[operation] for name in names.split()}
    constants = {
        "pixel_shape": np.array([-1, CHANNELS, SIDE, SIDE]),
        "flat_shape": np.array([-1, PIXELS]),
        "axis": np.array([1]),
        "full": np.array(255.0, dtype=np.float32),
        "map_shape": np.array([-1, SIDE, SIDE]),
        "ones": np.ones((PIXELS, 1), dtype=np.float32),
        "average": np.full((PIXELS, 1), 1.0 / PIXELS, dtype=np.float32),
        "white": np.array(255, dtype=np.uint8),
        "black": np.array(0, dtype=np.uint8),
        "half": np.array(0.5, dtype=np.float32),
        "spread": spread(latent),
        "gather": np.ascontiguousarray(spread(latent).T),
    }
    weights = [_external(k, v, layout[k]) for k, v in model.weights.items() if k in used]
    small = [numpy_helper.from_array(v, k) for k, v in constants.items() if k in used]
    graph = helper.make_graph(
        [_node(*node) for node in NODES[operation]],
        operation,
        [helper.make_tensor_value_info(t.name, TYPES[t.dtype], t.shape) for t in spec.inputs],
        [helper.make_tensor_value_info(t.name, TYPES[t.dtype], t.shape) for t in spec.outputs],
        weights + small,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _node(kind: str, inputs: str, output: str) -> onnx.NodeProto:
    attributes: dict[str, Any] = {
        "Cast": {"to": TensorProto.FLOAT},
        "ReduceSum": {"keepdims": 0},
        "Concat": {"axis": 1},
    }
    return helper.make_node(kind, inputs.split(), [output], **attributes.get(kind, {}))
