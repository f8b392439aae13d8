"""What each of several processes does in `test_distributed.py`: run as a file, or imported.

RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=... MASTER_PORT=... python ddp_worker.py OUT all
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from model.config import ConfigError, ConvVaeConfig, IafPosterior, ResnetVaeConfig
from training.config import DataConfig, OptimConfig, RunConfig, Runtime, TrainConfig
from training.data import ImageData
from training.errors import TrainingError
from training.fit.distributed import PeerError, joined
from training.fit.trainer import Trainer
from training.runs.checkpoint import load_checkpoint

STEPS = 6
EAGER = Runtime(device="cpu", compile="off", bf16="off", threads=1)
COMPILED = replace(EAGER, compile="on")
CONV = ConvVaeConfig(
    image_shape=(1, 8, 8),
    channels=(4, 6),
    hidden=16,
    latent_dim=4,
    posterior=IafPosterior(steps=2, hidden=(12,)),
)
LADDER = ResnetVaeConfig(image_shape=(3, 8, 8), channels=8, z_channels=2, levels=(2, 1))


def run_of(model, *, free_bits=0.0, accumulate=1):
    return RunConfig(
        model=model,
        data=DataConfig(name="blobs", horizontal_flips=True),
        optim=OptimConfig(batch_size=8, warmup_steps=0, accumulate=accumulate),
        train=TrainConfig(epochs=3, seed=5, free_bits_nats=free_bits, kl_warmup_epochs=0.0),
    )


CASES = {
    "conv, free bits": (run_of(CONV, free_bits=0.7), EAGER),
    "ladder, free bits": (run_of(LADDER, free_bits=0.2), EAGER),
    "conv, micro-batches": (run_of(CONV, accumulate=2), EAGER),
    "conv, micro-batches, free bits": (run_of(CONV, accumulate=2, free_bits=0.7), EAGER),
}
SLOW_CASES = {"conv, compiled": (run_of(CONV, free_bits=0.7), COMPILED)}


def blobs(shape, seed=0, count=24):
    generator = np.random.default_rng(seed)
    channels, height, width = shape
    pixels = generator.random((count, channels, height // 4, width // 4))
    grown = pixels.repeat(4, axis=2).repeat(4, axis=3)
    return ImageData((grown * 255).astype(np.uint8), "blobs", "train")


def trainer_of(config, runtime, world):
    return Trainer(config, runtime, blobs(config.model.image_shape), world)


def train(config, runtime, world):
    """Steps of a case: figures of each, the weights at the start and the end, validation."""
    trainer = trainer_of(config, runtime, world)
    start = {name: p.detach().clone() for name, p in trainer.model.state_dict().items()}
    steps = [trainer.train_step() for _ in range(STEPS)]
    return {
        "figures": [[s.loss, s.elbo_nats, s.kl_nats, s.norm] for s in steps],
        "validation": trainer.validate(blobs(config.model.image_shape, seed=1, count=1100)),
        "start": start,
        "weights": trainer.model.fold().state_dict(),  # what the functions are made of
        "average": trainer.average.fold().state_dict(),
    }


def skip_together(world):
    """One process alone has a figure that is not finite; which steps does each take?"""
    trainer = trainer_of(CASES["conv, free bits"][0], EAGER, world)
    forward, taken = trainer.forward, []
    for step in range(4):
        broken = step == 2 and world.rank == world.size - 1
        trainer.forward = (lambda *a: tuple(t + np.inf for t in forward(*a))) if broken else forward
        taken.append(trainer.train_step().taken)
    return taken


def spread(world):
    """Weights that each process filled with its own rank, after the first's were spread."""
    model = torch.nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
    torch.manual_seed(world.rank)
    with torch.no_grad():
        model.weight.normal_()
        model.bias.fill_(float(world.rank))
    world.spread(model)
    return [model.weight.flatten().tolist(), model.bias.tolist()]


def resume_exactly(world, out):
    """Names of what differs, in any bit, between a run and one that was cut after two steps."""
    config = CASES["conv, free bits"][0]
    config = replace(config, optim=replace(config.optim, batch_size=2 * 3 * 2))
    straight, cut, resumed = (trainer_of(config, EAGER, world) for _ in range(3))
    for trainer, steps in ((straight, 5), (cut, 2)):
        for _ in range(steps):
            trainer.train_step()
    if world.first:
        cut.save(out)
    resumed.restore(world.from_first(lambda: load_checkpoint(out)))
    for _ in range(3):
        resumed.train_step()
    expected, found = straight.model.state_dict(), resumed.model.state_dict()
    return [name for name in expected if not torch.equal(expected[name], found[name])]


class Silent:
    def train(self, step, figures): ...

    def skipped(self, step, loss, norm): ...

    def validation(self, step, epoch, figures): ...


def stop_together(world):
    """The last process alone wishes to stop, before the third step."""
    trainer = trainer_of(CASES["conv, free bits"][0], EAGER, world)

    def wish():
        return "SIGTERM" if trainer.step == 2 and world.rank == world.size - 1 else ""

    data = blobs(CONV.image_shape)
    return [(trainer.step, reason) for reason in trainer.run(Silent(), wish, data)]


def refusals(world):
    """Faults that one process has, or all have, and what each process says."""

    def fails():
        raise TrainingError("no such directory")

    def said(action, *kinds):
        try:
            action()
        except kinds as error:
            return f"{type(error).__name__}: {error}"
        return ""

    odd = run_of(CONV)
    odd = replace(odd, optim=replace(odd.optim, batch_size=9))
    return {
        "first's fault": said(lambda: world.from_first(fails), TrainingError),
        "other images": said(lambda: world.check_same("the images", world.rank), PeerError),
        "same images": said(lambda: world.check_same("the images", 7), PeerError),
        "odd batch": said(lambda: trainer_of(odd, EAGER, world), ConfigError),
        "turns": world.machine_by_machine(lambda: world.local_rank),
    }


# The cases that the last argument names.
CHOICES = {"all": CASES, "slow": SLOW_CASES, "none": {}}


def main(out: Path, choice: str):
    torch.set_num_threads(1)
    with joined(1.0) as world:
        results = {name: train(*case, world) for name, case in CHOICES[choice].items()}
        plain = {"world": [world.rank, world.size]}
        if choice == "none":
            plain["resumed"] = resume_exactly(world, out / "run")
        if choice == "all":
            plain["skips"] = skip_together(world)
            plain["stops"] = stop_together(world)
            plain["refusals"] = refusals(world)
            plain["spread"] = spread(world)
            plain["resumed"] = resume_exactly(world, out / "run")
    tensors = {}
    for name, result in results.items():
        for part in ("start", "weights", "average"):
            for key, value in result.pop(part).items():
                tensors[f"{name}|{part}|{key}"] = value.detach().contiguous().clone()
    save_file(tensors, out / f"{world.rank}.safetensors")
    (out / f"{world.rank}.json").write_text(json.dumps({**plain, "cases": results}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
