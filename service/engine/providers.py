"""What ONNX Runtime is told about a GPU: plain dictionaries, shares of memory, shape profiles.

The names are those that ONNX Runtime 1.31's providers take; nothing here imports it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.bundle.graphs import GraphSpec
from service.engine.base import SAMPLING, EngineOptions, Precision

__all__ = [
    "DEVICE_PRECISIONS",
    "SessionPlan",
    "Shape",
    "computes_with_tensorrt",
    "device_providers",
    "memory_shares",
    "shape_key",
    "shape_profile",
]

Shape = tuple[int, ...]  # sizes of a graph's dynamic dimensions, in the order N, R

# In which precisions each provider can sample. TensorRT computes in TF32 unless the driver forbids
# it to the whole process (`NVIDIA_TF32_OVERRIDE`), so densities are left to CUDA beside it.
DEVICE_PRECISIONS: dict[str, tuple[Precision, ...]] = {
    "cpu": ("float32",),
    "cuda": ("float32", "tf32"),
    "tensorrt": ("float32", "tf32", "float16", "bfloat16"),
}
# A session's own needs (plans, workspaces) beside what grows with its rows, counted in rows.
FIXED_ROWS = 32


@dataclass(frozen=True, kw_only=True)
class SessionPlan:
    """One session on a GPU: the only shape it meets, and its share of the memory.

    exact: float32 whatever `EngineOptions.sampling_precision`; memory_bytes: its arena may have,
    None for no limit; profile: its inputs' shapes, as `shape_profile` writes them; name: of its
    files in TensorRT's cache.
    """

    operation: str
    exact: bool
    memory_bytes: int | None
    profile: str
    name: str


def device_providers(provider: str, options: EngineOptions, plan: SessionPlan) -> list[Any]:
    """ONNX Runtime's `providers` for a session on "cuda" or "tensorrt"."""
    sampling = plan.operation in SAMPLING and not plan.exact
    precision = options.sampling_precision if sampling else "float32"
    cuda = {
        "use_tf32": "1" if precision == "tf32" else "0",  # ONNX Runtime has it on by default
        # A plan is found in milliseconds, and again whenever a session's shape changes: with one
        # shape a session, once.
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
        "enable_cuda_graph": "1" if options.cuda_graphs else "0",
    }
    if plan.memory_bytes is not None:
        cuda["gpu_mem_limit"] = str(plan.memory_bytes)
    providers: list[Any] = [("CUDAExecutionProvider", cuda), "CPUExecutionProvider"]
    if computes_with_tensorrt(provider, plan.operation):
        cuda["enable_cuda_graph"] = "0"  # TensorRT has its own
        providers.insert(0, ("TensorrtExecutionProvider", _tensorrt(options, precision, plan)))
    return providers


def computes_with_tensorrt(provider: str, operation: str) -> bool:
    """Whether `operation` is one that the provider leaves to TensorRT."""
    return provider == "tensorrt" and operation in SAMPLING


def _tensorrt(options: EngineOptions, precision: Precision, plan: SessionPlan) -> dict[str, str]:
    chosen = {
        "trt_fp16_enable": _flag(precision == "float16"),
        "trt_bf16_enable": _flag(precision == "bfloat16"),
        "trt_cuda_graph_enable": _flag(options.cuda_graphs),
        "trt_load_user_initializer": "True",  # weights come from memory
    }
    chosen |= {f"trt_profile_{which}_shapes": plan.profile for which in ("min", "opt", "max")}
    if plan.memory_bytes is not None:
        chosen["trt_max_workspace_size"] = str(plan.memory_bytes)
    if options.engine_cache is not None:
        chosen |= {
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": str(options.engine_cache),
            "trt_engine_cache_prefix": f"{plan.name}-{precision}",
            "trt_timing_cache_enable": "True",
            "trt_timing_cache_path": str(options.engine_cache),
        }
    return chosen


def _flag(on: bool) -> str:
    return "True" if on else "False"


def shape_profile(graph: GraphSpec, shape: Mapping[str, int]) -> str:
    """TensorRT's ``name:1x2x3,...`` of all inputs: a session meets this one shape only."""
    return ",".join(
        f"{t.name}:" + "x".join(str(shape[d] if isinstance(d, str) else d) for d in t.shape)
        for t in graph.inputs
    )


def shape_key(shape: Mapping[str, int]) -> Shape:
    """A session's key: the sizes alone."""
    return tuple(shape[name] for name in sorted(shape))


def memory_shares(
    budget: int, sessions: Sequence[tuple[str, Shape]]
) -> dict[tuple[str, Shape], int]:
    """Bytes of `budget` for each session's arena, by the rows it computes; they add up to it."""
    weights = {key: FIXED_ROWS + max(key[1]) for key in sessions}
    total = sum(weights.values())
    return {key: budget * weight // total for key, weight in weights.items()}
