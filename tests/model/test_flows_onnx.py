"""Every posterior's flow, folded and exported, computes in ONNX Runtime what it does in torch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from model.layers import fold_weight_norm

ROWS = (1, 7)
# One of each kind; all of them take the exporter some twenty seconds.
QUICK = ("iaf-affine", "linear-iaf", "planar", "coupling-affine", "conv-iaf")


class ManyFlows(nn.Module):
    """One input `x [N, ...]` that holds every flow's z and h, one graph for all: exported once."""

    def __init__(self, cases) -> None:
        super().__init__()
        self.cases = cases
        self.flows = nn.ModuleDict({name: case.initialized() for name, case in cases.items()})

    def example(self, rows: int) -> Tensor:
        parts = [t.flatten(1) for case in self.cases.values() for t in case.inputs(rows, seed=5)]
        return torch.cat(parts, dim=1).float()

    def _take(self, x: Tensor, start: int, shape: tuple[int, ...]) -> tuple[Tensor, int]:
        end = start + torch.Size(shape).numel()
        return x[:, start:end].reshape(-1, *shape), end

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        outputs: list[Tensor] = []
        start = 0
        for name, case in self.cases.items():
            z, start = self._take(x, start, case.shape)
            h, start = self._take(x, start, case.context_shape)
            flow = self.flows[name]
            outputs.extend(flow(z, flow.condition(h)))
        return tuple(outputs)


@pytest.fixture(scope="module", params=["quick", pytest.param("all", marks=pytest.mark.slow)])
def exported(
    request, flow_cases, tmp_path_factory
) -> Iterator[tuple[ManyFlows, onnxruntime.InferenceSession]]:
    # The identity over maps takes no context, and what has no elements cannot be cut out of x.
    wanted = QUICK if request.param == "quick" else flow_cases.keys() - {"maps-diagonal"}
    module = ManyFlows({name: flow_cases[name] for name in flow_cases if name in wanted}).eval()
    fold_weight_norm(module)
    path: Path = tmp_path_factory.mktemp("onnx") / "flows.onnx"
    names = [f"{name}.{output}" for name in module.cases for output in ("z", "log_det")]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        torch.onnx.export(
            module,
            (module.example(2),),
            path,
            dynamo=True,
            opset_version=20,
            optimize=False,  # its rewriting takes as long as the square of so many flows
            input_names=["x"],
            output_names=names,
            dynamic_shapes={"x": {0: "N"}},
            verbose=False,
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    yield module, onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    logging.getLogger("torch.onnx").setLevel(logging.NOTSET)


@pytest.mark.parametrize("rows", ROWS)
def test_onnx_runtime_equals_torch(exported, rows: int) -> None:
    module, session = exported
    x = module.example(rows)
    with torch.no_grad():
        wanted = module(x)
    names = [output.name for output in session.get_outputs()]
    for name, got, want in zip(names, session.run(None, {"x": x.numpy()}), wanted, strict=True):
        torch.testing.assert_close(
            torch.from_numpy(got), want, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
