"""Where and how tensors are computed: device, precision, memory layout, compilation."""

import contextlib
import re
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from training.config import Runtime
from training.errors import TrainingError
from training.fit.distributed import World

# Compilation takes a minute or so: shorter runs are done sooner without it.
COMPILE_PAYS_AFTER_STEPS = 3000

M = TypeVar("M", bound=nn.Module)


def choose_device(name: str, world: World = World()) -> torch.device:  # noqa: B008  frozen
    """The device that `name` stands for; "auto" is a GPU where there is one.

    Of several processes each takes the GPU of its own number on its machine. Raises
    `TrainingError` where CUDA is asked for and there is none, and for any other device.
    """
    available = torch.cuda.is_available()
    if name == "auto":
        name = "cuda" if available else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise TrainingError(f"--device is auto, cpu, cuda or cuda:N, not {name!r}")
    if name.startswith("cuda") and not available:
        raise TrainingError("no CUDA device is available to torch; use --device cpu")
    device = torch.device(name)
    if not world.alone:
        return _own_device(name, world)
    if device.index is not None and device.index >= torch.cuda.device_count():
        raise TrainingError(f"there is no {name}: torch sees {torch.cuda.device_count()} devices")
    return device


def _own_device(name: str, world: World) -> torch.device:
    if name == "cpu":
        return torch.device(name)
    if name != "cuda":
        raise TrainingError(
            f"of {world.size} processes each takes a GPU of its own: use --device cuda, not "
            f"{name}; CUDA_VISIBLE_DEVICES says which there are"
        )
    count = torch.cuda.device_count()
    if world.local_rank >= count:
        raise TrainingError(
            f"there are more processes on this machine than GPUs ({count}): start torchrun with "
            f"--nproc-per-node {count}, or use --device cpu"
        )
    own = torch.device("cuda", world.local_rank)
    torch.cuda.set_device(own)
    return own


def bf16_pays(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices faster than float32 ones."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capability: str = torch.backends.cpu.get_cpu_capability()
    return capability.startswith("AVX512") and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@dataclass(frozen=True)
class Backend:
    """The decisions, and what applies them."""

    device: torch.device
    bf16: bool
    runtime: Runtime

    def place(self, model: M) -> M:
        """Move a model to the device and the memory layout."""
        if self.runtime.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model.to(self.device)

    def layout(self, x: Tensor) -> Tensor:
        """Give images the layout that the model has."""
        if not self.runtime.channels_last:
            return x
        return x.contiguous(memory_format=torch.channels_last)

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """bfloat16 products; densities stay float32 by their own hand."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)

    def compile(self, model: nn.Module, steps: int) -> nn.Module:
        """Compile the forward and backward pass where asked for, or where it pays."""
        wanted = self.runtime.compile
        missing = "" if self.device.type == "cuda" else _missing_for_compile()
        pays = not missing and steps >= COMPILE_PAYS_AFTER_STEPS
        if wanted == "off" or (wanted == "auto" and not pays):
            return model
        if missing:
            raise TrainingError(f"--compile on needs {missing}: install it, or use off")
        mode = "reduce-overhead" if self.cuda_graphs else "default"
        compiled: nn.Module = torch.compile(model, dynamic=False, mode=mode)  # type: ignore[assignment]
        return compiled

    @property
    def cuda_graphs(self) -> bool:
        """Whether a compiled step is replayed as CUDA graphs."""
        return self.runtime.cuda_graphs == "on" and self.device.type == "cuda"

    def begin_step(self) -> None:
        """Say that nothing computed so far is needed any more: CUDA graphs reuse its memory."""
        if self.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]


def _missing_for_compile() -> str:
    """What torch needs and this machine lacks to compile for a CPU, "" where nothing is missing."""
    if shutil.which("g++") is None:
        return "a C++ compiler (g++)"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python's headers (python3-dev, python3-devel)"
    return ""


def prepare(runtime: Runtime, world: World = World(), accumulate: int = 1) -> Backend:  # noqa: B008
    """Decide on the backend; sets torch's number of threads where `runtime` names one.

    Raises `TrainingError` where CUDA graphs are asked for and the step is not one of fixed shape
    on one GPU.
    """
    if runtime.threads > 0:
        torch.set_num_threads(runtime.threads)
    device = choose_device(runtime.device, world)
    if runtime.cuda_graphs == "on" and not (
        device.type == "cuda" and world.alone and accumulate == 1
    ):
        raise TrainingError(
            "--cuda-graphs on needs a GPU, one process and no --accumulate: leave it out"
        )
    bf16 = runtime.bf16 == "on" or (runtime.bf16 == "auto" and bf16_pays(device))
    return Backend(device, bf16, runtime)
