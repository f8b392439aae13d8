"""One run in several processes, on one machine or many, as `torchrun` starts them.

`World` is what a process knows of the others, and all that it does with them; alone, it does
nothing. What only one may do (files, the terminal, a decision) the first does; its answer, or its
error, is everybody's. Tensors on a GPU go through NCCL, all else through Gloo.
"""

import contextlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.config import ConfigError
from training.errors import TrainingError

__all__ = ["PeerError", "World", "joined", "leave", "size_from", "unsynchronised"]

T = TypeVar("T")

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# What Gloo says where another process has gone or is silent; NCCL's errors have a type.
PEER_WORDS = ("gloo", "connection closed", "connection reset", "broken pipe", "timed out")


class PeerError(TrainingError):
    """Another process of the run has failed, is silent, or has already told what is wrong."""


class _GlobalMean(torch.autograd.Function):
    """The mean over all processes of the mean over the rows of each.

    Every process adds the same function of this mean to its loss, and DistributedDataParallel
    averages the gradients: with the gradient handed on unchanged to each process's own mean, that
    average is the whole batch's gradient.
    """

    @staticmethod
    def forward(_ctx: Any, own: Tensor, size: int) -> Tensor:
        mean = own.detach().clone()
        dist.all_reduce(mean)
        return mean / size

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


@dataclass(frozen=True)
class World:
    """This process's place among `size`: its `rank`, and `local_rank` on its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def alone(self) -> bool:
        """Whether this is the only process."""
        return self.size == 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This process's rows of a batch of `count`; raises `ConfigError` if it does not divide."""
        if count % self.size:
            raise ConfigError(
                f"{count} images do not divide among {self.size} processes: change --batch-size, "
                "--accumulate or the number of processes"
            )
        own = count // self.size
        return slice(self.rank * own, (self.rank + 1) * own)

    def batch_mean(self, rows: Tensor) -> Tensor:
        """The mean over axis 0 of all processes' rows (as many in each); has a gradient."""
        own = rows.mean(dim=0)
        if self.alone:
            return own
        mean: Tensor = _GlobalMean.apply(own, self.size)  # type: ignore[no-untyped-call]
        return mean

    def mean(self, values: Tensor) -> Tensor:
        """The mean of everybody's `values`, the same bits for all; without a gradient."""
        return self.total(values) / self.size

    def total(self, values: Tensor) -> Tensor:
        """The sum of everybody's `values`, the same bits for all; without a gradient."""
        total = values.detach().clone()
        if not self.alone:
            dist.all_reduce(total)
        return total

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` gives in the first process, which alone calls it; its error is everybody's.

        Raises what `make` raised in the first process, `PeerError` in the others.
        """
        if self.alone:
            return make()
        answer: list[Any] = [None, ""]
        fault: Exception | None = None
        if self.first:
            try:
                answer[0] = make()
            except (TrainingError, ConfigError, OSError) as error:
                fault, answer[1] = error, str(error)
        with self.peers():
            dist.broadcast_object_list(answer, src=0, device=torch.device("cpu"))
        if fault is not None:
            raise fault
        if answer[1]:
            raise PeerError(f"the first process says: {answer[1]}")
        made: T = answer[0]
        return made

    def machine_by_machine(self, make: Callable[[], T]) -> T:
        """What `make` gives, called on each machine by one process first: it may download."""
        if self.alone:
            return make()
        made = make() if self.local_rank == 0 else None
        with self.peers():
            self.total(torch.zeros(1))  # everybody waits for everybody
        return make() if made is None else made

    def check_same(self, what: str, value: object) -> None:
        """Raise `PeerError` unless all processes have the first's `value`."""
        with self.peers():
            differs = self.from_first(lambda: value) != value
            if self.total(torch.tensor([float(differs)])).item():
                raise PeerError(
                    f"{what} are not the same in every process: make them so on all machines"
                )

    def spread(self, model: nn.Module) -> None:
        """Give everybody the first's parameters and buffers."""
        if not self.alone:
            for tensor in (*model.parameters(), *model.buffers()):
                dist.broadcast(tensor.detach(), src=0)

    def parallel(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model with gradients averaged over all processes; itself where alone."""
        if self.alone:
            return model
        # Masks are constants: nothing to send at every step. torch 2.13 renames the option.
        known = inspect.signature(DistributedDataParallel.__init__).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {"gradient_as_bucket_view": True, name: False}
        if device.type == "cuda":
            options["device_ids"] = [device.index]
        return DistributedDataParallel(model, **options)

    @contextmanager
    def peers(self) -> Iterator[None]:
        """Turn the failure of a collective operation into a `PeerError`."""
        try:
            yield
        except RuntimeError as error:  # among them torch's DistError
            if self.alone or not _is_peers(error):
                raise
            raise PeerError(
                f"lost the other {self.size - 1} process(es): one has failed (its own message "
                f"says why) or is silent for longer than --timeout-minutes ({_short(error)})"
            ) from error


def leave(code: int) -> NoReturn:
    """End this process at once, without the interpreter's own end.

    Gloo's threads would wait there for a process that is lost; and even after
    `destroy_process_group` they abort it now and then ("terminate called ...").
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def unsynchronised(model: nn.Module, *, last: bool) -> contextlib.AbstractContextManager[object]:
    """Leave gradients of all micro-batches but the last where they are: they are sent once."""
    if last or not isinstance(model, DistributedDataParallel):
        return contextlib.nullcontext()
    return model.no_sync()


def _short(error: BaseException) -> str:
    """The first sentence, without the line of torch's source that it begins with."""
    return re.sub(r"^\[\S*\]\s*", "", str(error).strip()).split("\n")[0].split(". ")[0]


def _is_peers(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in text for word in PEER_WORDS)


def size_from(environment: Mapping[str, str]) -> int:
    """How many processes a launcher started; 1 where there was none.

    Raises `ConfigError` where the environment contradicts itself.
    """
    given = [name for name in LAUNCHER if name in environment]
    size = _number(environment, "WORLD_SIZE") if "WORLD_SIZE" in environment else 1
    if not size:
        raise ConfigError("WORLD_SIZE is 0: start the processes with torchrun")
    if size > 1 and len(given) < len(LAUNCHER):
        missing = ", ".join(sorted(set(LAUNCHER) - set(given)))
        raise ConfigError(
            f"WORLD_SIZE is {size} but {missing} is not set: start the processes with torchrun"
        )
    return size


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment[name]
    if not text.isdecimal():
        raise ConfigError(f"{name} is {text!r}, not a number: start the processes with torchrun")
    return int(text)


@contextmanager
def joined(timeout_minutes: float) -> Iterator[World]:
    """Join the processes that torchrun started, for as long as the context lasts.

    A process that leaves by an exception does not wait for the others: they notice. Raises
    `PeerError` where they do not come within `timeout_minutes`.
    """
    size = size_from(os.environ)
    if size == 1:
        yield World()
        return
    world = World(_number(os.environ, "RANK"), size, _number(os.environ, "LOCAL_RANK"))
    use_cuda = torch.cuda.is_available() and dist.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if use_cuda else "cpu:gloo"
    with world.peers():
        dist.init_process_group(backend, timeout=timedelta(minutes=timeout_minutes))
    yield world
    dist.destroy_process_group()
