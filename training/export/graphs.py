"""A density model as the four ONNX graphs of a bundle, over one file of weights.

Each graph holds only what its operation needs: torch's exporter drops what no output depends on.
Weights that several graphs share are written once, at offsets aligned to pages so that they can be
mapped. Whatever the exporter notes of the machine it ran on (stack traces with paths) is removed.
"""

import hashlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx
import torch
from onnxscript import opset20 as op
from torch import Tensor, nn

from model.contract import DensityModel
from training.export.passes.blocks import in_blocks
from training.export.passes.widths import row_block, steady_sums, widen

__all__ = ["OPSET", "WEIGHTS_FILE", "GraphModule", "Graphs", "build_graphs", "graph_modules"]

OPSET = 20
WEIGHTS_FILE = "weights.bin"
ALIGNMENT = 4096  # bytes: a page, so that weights can be mapped
SMALL = 256  # bytes: scalars and shapes stay in the graph, where shape inference sees them

Rendered = tuple[Tensor, Tensor]


class GraphModule(nn.Module):
    """One operation of a model as a function of arrays; the graph's inputs are `forward`'s."""

    outputs: ClassVar[tuple[str, ...]]
    dynamic: ClassVar[Mapping[str, str]]  # input -> name of its first dimension

    def __init__(self, model: DensityModel) -> None:
        super().__init__()
        self.model = model

    def example(self) -> tuple[Tensor, ...]:
        """Inputs of the right shapes, with N = 2 images and R = 3 rows."""
        raise NotImplementedError

    def _render(self, params: Tensor, u: Tensor) -> Rendered:
        likelihood = self.model.likelihood
        return likelihood.mean(params), likelihood.draw(params, u)

    def _eps(self, rows: int) -> Tensor:
        return torch.zeros(rows, self.model.layout.dim)

    def _u(self) -> Tensor:
        return torch.zeros(2, self.model.likelihood.uniforms)

    def _image(self) -> Tensor:
        return torch.zeros(2, *self.model.config.image_shape, dtype=torch.uint8)


class SampleGraph(GraphModule):
    """eps [N, D], temperature [N, G], u [N, U] -> mean f32 and draw u8 [N, C, H, W]."""

    outputs = ("mean", "draw")
    dynamic: ClassVar = {"eps": "N", "temperature": "N", "u": "N"}

    def example(self) -> tuple[Tensor, ...]:
        """See `GraphModule`."""
        return self._eps(2), torch.ones(2, len(self.model.layout.groups)), self._u()

    def forward(self, eps: Tensor, temperature: Tensor, u: Tensor) -> Rendered:
        """Draw images from the prior."""
        return self._render(self.model.generate(eps, temperature), u)


class DecodeGraph(GraphModule):
    """z [N, D], u [N, U] -> mean f32 and draw u8 [N, C, H, W]."""

    outputs = ("mean", "draw")
    dynamic: ClassVar = {"z": "N", "u": "N"}

    def example(self) -> tuple[Tensor, ...]:
        """See `GraphModule`."""
        return self._eps(2), self._u()

    def forward(self, z: Tensor, u: Tensor) -> Rendered:
        """Images at given latents."""
        return self._render(self.model.decode(z), u)


class EncodeGraph(GraphModule):
    """image u8 [N, C, H, W], eps [N, D] -> z and prior_eps, both [N, D]."""

    outputs = ("z", "prior_eps")
    dynamic: ClassVar = {"image": "N", "eps": "N"}

    def example(self) -> tuple[Tensor, ...]:
        """See `GraphModule`."""
        return self._image(), self._eps(2)

    def forward(self, image: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Draw latents from the posterior."""
        x = self.model.likelihood.from_pixels(image)
        inference = self.model.infer(self.model.bottom_up(x), eps)
        return inference.z, inference.prior_eps


class ScoreGraph(GraphModule):
    """image u8 [N, C, H, W], owner i64 [R], eps [R, D] -> log_weight, log_px_z [R], kl [R, G].

    Row r is one importance sample of image owner[r]; the bottom-up network runs once per image.
    """

    outputs = ("log_weight", "log_px_z", "kl")
    dynamic: ClassVar = {"image": "N", "owner": "R", "eps": "R"}

    def example(self) -> tuple[Tensor, ...]:
        """See `GraphModule`."""
        return self._image(), torch.tensor([0, 1, 1]), self._eps(3)

    def forward(self, image: Tensor, owner: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Importance weights in nats and their parts."""
        x = self.model.likelihood.from_pixels(image)
        features = self.model.bottom_up(x)
        rows = tuple(feature.index_select(0, owner) for feature in features)
        terms = self.model.elbo_terms(x.index_select(0, owner), rows, eps)
        return terms.log_weight, terms.log_px_z, self.model.group_kl(terms.kl)


def graph_modules(folded: DensityModel) -> dict[str, GraphModule]:
    """The operations of a folded model, as modules in evaluation mode."""
    kinds: dict[str, Callable[[DensityModel], GraphModule]] = {
        "sample": SampleGraph,
        "decode": DecodeGraph,
        "encode": EncodeGraph,
        "score": ScoreGraph,
    }
    return {operation: kind(folded).eval() for operation, kind in kinds.items()}


@dataclass(frozen=True)
class Graphs:
    """The files' contents: operation -> serialised graph, and the weights they all point into.

    `row_block`: batches of a multiple of so many rows keep rows independent, see `widths`.
    """

    graphs: dict[str, bytes]
    weights: bytes
    row_block: int


def build_graphs(modules: Mapping[str, GraphModule]) -> Graphs:
    """Export every module; D, G and U are fixed, N and R dynamic."""
    store = _WeightStore()
    serialised = {}
    blocks = []
    for operation, module in modules.items():
        proto = _export(module)
        _strip(proto, operation)
        widen(proto)
        steady_sums(proto)
        in_blocks(proto)
        blocks.append(row_block(proto))
        for tensor in proto.graph.initializer:
            store.move(tensor)
        serialised[operation] = proto.SerializeToString(deterministic=True)
    return Graphs(serialised, bytes(store.data), max(blocks))


class _WeightStore:
    """The contents of the weights file, each distinct tensor once."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._offsets: dict[bytes, int] = {}

    def move(self, tensor: onnx.TensorProto) -> None:
        """Replace the tensor's values by a reference into the file, unless they are few."""
        values = onnx.numpy_helper.to_array(tensor).tobytes()
        if len(values) < SMALL:
            return
        key = hashlib.sha256(values).digest()
        if key not in self._offsets:
            self.data.extend(bytes(-len(self.data) % ALIGNMENT))
            self._offsets[key] = len(self.data)
            self.data.extend(values)
        for field in ("raw_data", "float_data", "int32_data", "int64_data"):
            tensor.ClearField(field)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        where = {"location": WEIGHTS_FILE, "offset": self._offsets[key], "length": len(values)}
        for name, value in where.items():
            tensor.external_data.add(key=name, value=str(value))


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
