"""A density model as the five ONNX graphs of a bundle in two forms, over one file of weights.

Each graph holds only what its operation needs: torch's exporter drops what no output depends on.
Weights that several graphs share are written once, at offsets aligned to pages so that they can be
mapped. Whatever the exporter notes of the machine it ran on (stack traces with paths) is removed.
"""

import hashlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import onnx
import torch
from numpy.typing import NDArray
from onnxscript import opset20 as op
from torch import Tensor, nn

from model.config import BINARY_LIKELIHOODS
from model.contract import DensityModel, Inference
from model.densities import binarised
from model.objective import ElboTerms
from service.bundle import WeightSpec
from training.export.evidence import evidence
from training.export.passes import for_any_device, for_cpu
from training.export.passes.widths import row_block

__all__ = ["OPSET", "WEIGHTS_FILE", "GraphModule", "Graphs", "build_graphs", "graph_modules"]

OPSET = 20
WEIGHTS = "weights.bin"
WEIGHTS_FILE = f"cpu/{WEIGHTS}"
ALIGNMENT = 4096  # bytes: a page, so that weights can be mapped
SMALL = 256  # bytes: scalars and shapes stay in the graph, where shape inference sees them

Rendered = tuple[Tensor, Tensor]


class GraphModule(nn.Module):
    """One operation of a model as a function of arrays; the graph's inputs are `forward`'s."""

    outputs: ClassVar[tuple[str, ...]]
    inputs: ClassVar[Mapping[str, str]]  # input -> name of its first dimension

    def __init__(self, model: DensityModel) -> None:
        super().__init__()
        self.model = model

    @property
    def dynamic(self) -> dict[str, str]:
        """The first dimension's name of every input, with what a binary model takes besides."""
        grey = "image" in self.inputs and self.model.likelihood.kind in BINARY_LIKELIHOODS
        return {**self.inputs, **({"u_image": "N"} if grey else {})}

    def example(self) -> tuple[Tensor, ...]:
        """Inputs of the right shapes, with N = 2 images and R = 3 rows."""
        model = self.model
        made = {
            "image": torch.zeros(2, *model.config.image_shape, dtype=torch.uint8),
            "owner": torch.tensor([0, 1, 1]),
            "eps": torch.zeros(3 if "owner" in self.inputs else 2, model.layout.dim),
            "z": torch.zeros(2, model.layout.dim),
            "temperature": torch.ones(2, len(model.layout.groups)),
            "u": torch.zeros(2, model.likelihood.uniforms),
            "u_image": torch.zeros(2, model.dims),
        }
        return tuple(made[name] for name in self.dynamic)

    def _x(self, image: Tensor, u_image: Tensor | None) -> Tensor:
        """What the likelihood reads: the levels, or for binary pixels draws of them."""
        likelihood = self.model.likelihood
        if u_image is not None:
            return binarised(image, u_image)
        return likelihood.from_pixels(image)

    def _render(self, params: Tensor, u: Tensor) -> Rendered:
        likelihood = self.model.likelihood
        return likelihood.mean(params), likelihood.draw(params, u)


class SampleGraph(GraphModule):
    """eps [N, D], temperature [N, G], u [N, U] -> mean f32 and draw u8 [N, C, H, W]."""

    outputs = ("mean", "draw")
    inputs: ClassVar = {"eps": "N", "temperature": "N", "u": "N"}

    def forward(self, eps: Tensor, temperature: Tensor, u: Tensor) -> Rendered:
        """Draw images from the prior."""
        return self._render(self.model.generate(eps, temperature), u)


class DecodeGraph(GraphModule):
    """z [N, D], u [N, U] -> mean f32 and draw u8 [N, C, H, W]."""

    outputs = ("mean", "draw")
    inputs: ClassVar = {"z": "N", "u": "N"}

    def forward(self, z: Tensor, u: Tensor) -> Rendered:
        """Images at given latents."""
        return self._render(self.model.decode(z), u)


class EncodeGraph(GraphModule):
    """image u8 [N, C, H, W], eps [N, D] (u_image [N, CHW]) -> z and prior_eps, both [N, D]."""

    outputs = ("z", "prior_eps")
    inputs: ClassVar = {"image": "N", "eps": "N"}

    def forward(
        self, image: Tensor, eps: Tensor, u_image: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw latents from the posterior."""
        x = self._x(image, u_image)
        inference = self.model.infer(self.model.bottom_up(x), eps)
        return inference.z, inference.prior_eps


class ScoreGraph(GraphModule):
    """image u8 [N, C, H, W], owner i64 [R], eps [R, D] (u_image [N, CHW])
    -> log_weight, log_px_z [R], kl [R, G].

    Row r is one importance sample of image owner[r]; the bottom-up network runs once per image.
    """

    outputs = ("log_weight", "log_px_z", "kl")
    inputs: ClassVar = {"image": "N", "owner": "R", "eps": "R"}

    def forward(
        self, image: Tensor, owner: Tensor, eps: Tensor, u_image: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Importance weights in nats and their parts."""
        x = self._x(image, u_image)
        features = self.model.bottom_up(x)
        rows = tuple(feature.index_select(0, owner) for feature in features)
        terms = self.model.elbo_terms(x.index_select(0, owner), rows, eps)
        return terms.log_weight, terms.log_px_z, self.model.group_kl(terms.kl)


class EvidenceGraph(GraphModule):
    """`ScoreGraph`'s inputs -> log_weight [R], kl [R, G], residual [N, H, W], statistics [N, S].

    A row of each image at eps = 0 goes before the importance samples, see
    `training.export.evidence`.
    """

    outputs = ("log_weight", "kl", "residual", "statistics")
    inputs: ClassVar = ScoreGraph.inputs

    def forward(
        self, image: Tensor, owner: Tensor, eps: Tensor, u_image: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Importance weights, and where images are unlike what the model expects, and how."""
        x = self._x(image, u_image)
        n = x.shape[0]
        features = self.model.bottom_up(x)
        rows = tuple(_before(feature, feature.index_select(0, owner)) for feature in features)
        centre = torch.zeros(n, eps.shape[1], dtype=eps.dtype, device=eps.device)
        found = self.model.infer(rows, _before(centre, eps))
        log_px_z = self.model.likelihood.log_prob(
            found.params, _before(x, x.index_select(0, owner))
        )
        # Of a Slice whose end is not known before nothing is known of its rows' widths either.
        centres = torch.arange(n, device=eps.device)
        samples = torch.arange(eps.shape[0], device=eps.device) + n
        terms = ElboTerms(*(t.index_select(0, samples) for t in (log_px_z, found.kl)))
        at_zero = (getattr(found, f.name).index_select(0, centres) for f in fields(Inference))
        shown = x if u_image is not None else image.float() / 255
        return (
            terms.log_weight,
            self.model.group_kl(terms.kl),
            *evidence(self.model, Inference(*at_zero), log_px_z.index_select(0, centres), shown),
        )


def _before(first: Tensor, rest: Tensor) -> Tensor:
    return torch.cat([first, rest], dim=0)


def graph_modules(folded: DensityModel) -> dict[str, GraphModule]:
    """The operations of a folded model, as modules in evaluation mode."""
    kinds: dict[str, Callable[[DensityModel], GraphModule]] = {
        "sample": SampleGraph,
        "decode": DecodeGraph,
        "encode": EncodeGraph,
        "score": ScoreGraph,
        "evidence": EvidenceGraph,
    }
    return {operation: kind(folded).eval() for operation, kind in kinds.items()}


@dataclass(frozen=True)
class Graphs:
    """The files' contents: operation -> serialised graph in either form, and their weights.

    tensors: what lies where in the weights, as the manifest lists it; `row_block`: batches of a
    multiple of so many rows keep rows independent on a CPU, see `widths`.
    """

    portable: dict[str, bytes]
    cpu: dict[str, bytes]
    weights: bytes
    tensors: tuple[WeightSpec, ...]
    row_block: int


def build_graphs(modules: Mapping[str, GraphModule]) -> Graphs:
    """Export every module; D, G and U are fixed, N and R dynamic."""
    store = _WeightStore()
    portable, cpu = {}, {}
    blocks = []
    for operation, module in modules.items():
        proto = _export(module)
        _strip(proto, operation)
        fast = onnx.ModelProto()
        fast.CopyFrom(proto)
        for_any_device(proto)
        portable[operation] = store.serialised(proto)
        for_cpu(fast)
        blocks.append(row_block(fast))
        cpu[operation] = store.serialised(fast)
    return Graphs(portable, cpu, bytes(store.data), tuple(store.tensors.values()), max(blocks))


class _WeightStore:
    """The contents of the weights file, each distinct tensor once and under one name."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.tensors: dict[bytes, WeightSpec] = {}

    def serialised(self, proto: onnx.ModelProto) -> bytes:
        """The graph with references into the file in place of its weights, unless they are few."""
        kept: dict[str, onnx.TensorProto] = {}
        renamed: dict[str, str] = {}
        for tensor in proto.graph.initializer:
            array = onnx.numpy_helper.to_array(tensor)
            if array.nbytes < SMALL:
                kept[tensor.name] = tensor
            else:
                weight = self._placed(tensor.name, array)
                renamed[tensor.name] = weight.name
                kept[weight.name] = _reference(weight, tensor.data_type)
        for node in proto.graph.node:
            node.input[:] = [renamed.get(name, name) for name in node.input]
        made = onnx.ModelProto()
        made.CopyFrom(proto)
        del made.graph.initializer[:]
        made.graph.initializer.extend(kept.values())
        serialised: bytes = made.SerializeToString(deterministic=True)
        return serialised

    def _placed(self, name: str, array: NDArray[Any]) -> WeightSpec:
        """Where `array` lies, appended where it is new; another of the same name gets a new one."""
        values = array.tobytes()
        key = hashlib.sha256(f"{array.dtype}{array.shape}".encode() + values).digest()
        if key not in self.tensors:
            # Two graphs' constants, unlike parameters, have the same names by chance.
            taken = any(weight.name == name for weight in self.tensors.values())
            self.data.extend(bytes(-len(self.data) % ALIGNMENT))
            self.tensors[key] = WeightSpec(
                name=f"{name}/{key.hex()[:8]}" if taken or "." not in name else name,
                dtype=str(array.dtype),  # type: ignore[arg-type]
                shape=array.shape,
                offset=len(self.data),
                length=len(values),
            )
            self.data.extend(values)
        return self.tensors[key]


def _reference(weight: WeightSpec, data_type: int) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=weight.name, data_type=data_type, dims=weight.shape)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    # The name beside a graph: whoever opens a file of `cpu/` finds it there.
    where = {"location": WEIGHTS, "offset": weight.offset, "length": weight.length}
    for key, value in where.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _export(module: GraphModule) -> onnx.ModelProto:
    shapes = {name: {0: dimension} for name, dimension in module.dynamic.items()}
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            module.example(),
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=list(module.dynamic),
            output_names=list(module.outputs),
            opset_version=OPSET,
            custom_translation_table=_translations(),
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    proto: onnx.ModelProto = program.model_proto
    return proto


def _translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Where torch's own translation would lose what the model computes.

    It writes log sigmoid(x) as Log(Sigmoid(x)), which is -inf from x = -88 down and turns the
    discretised logistic's tails into it; and softplus with a threshold, three operations for one.
    ONNX's Softplus is exact in both tails, log sigmoid(x) = -softplus(-x).
    """

    def log_sigmoid(x: Any) -> Any:
        return op.Neg(op.Softplus(op.Neg(x)))

    def softplus(x: Any, beta: float = 1.0, threshold: float = 20.0) -> Any:
        del threshold  # beyond which torch returns x: a shortcut, the function is the same
        return op.Softplus(x) if beta == 1.0 else op.Div(op.Softplus(op.Mul(x, beta)), beta)

    aten = torch.ops.aten
    return {aten.log_sigmoid.default: log_sigmoid, aten.softplus.default: softplus}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes (of operators nobody uses, of deprecations in it) to itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _strip(proto: onnx.ModelProto, operation: str) -> None:
    """Leave names, operators and weights, and nothing of the machine that exported them."""
    proto.graph.name = operation
    proto.doc_string = ""
    for part in (proto, proto.graph, *proto.graph.node, *proto.graph.input, *proto.graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    for tensor in proto.graph.initializer:
        del tensor.metadata_props[:]
        tensor.doc_string = ""
    del proto.graph.value_info[:]  # intermediate shapes: the runtime infers them
