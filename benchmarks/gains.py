"""How a ladder's gains are stored: g itself, exp(g), or exp(g) begun at a third of log g.

    python benchmarks/gains.py --data-dir DIR [--steps 300] [--seeds 2] [--batch-size 16]

The authors' code initialises a log gain with log(s) / 3 where data-dependent initialisation asks
for s, and multiplies by its exponential. Here the same model (`--preset`, free bits as it has
them) takes the same number of steps from the same seeds each way, on the same batches, and is
measured on the same validation images, by the ELBO of the averaged weights in bits/dim: lower is
better. The learning rate is constant after 50 steps.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

if not __package__:  # run as a file: this folder's names would hide the packages'
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.harness import machine, machine_line, table
from model.config import Gain, ResnetVaeConfig
from training.config import ConfigError, RunConfig, Runtime, run_preset
from training.data import ImageData, load_dataset
from training.errors import DataError, TrainingError
from training.fit.device import choose_device
from training.fit.trainer import Trainer

GAINS: tuple[Gain, ...] = get_args(Gain)
WARMUP_STEPS = 50
EMA_DECAY = 0.98  # an average over the last fifty of a few hundred steps


def run_config(options: argparse.Namespace, gain: Gain, seed: int) -> RunConfig:
    """The preset's run with its gains stored as `gain` says."""
    config = run_preset(options.preset)
    if not isinstance(config.model, ResnetVaeConfig):
        raise ConfigError(f"--preset is a ladder, not {options.preset!r}")
    optim = replace(
        config.optim,
        batch_size=options.batch_size,
        warmup_steps=WARMUP_STEPS,
        schedule="constant",
        ema_decay=EMA_DECAY,
    )
    train = replace(config.train, epochs=1000, seed=seed)
    return replace(config, model=replace(config.model, gain=gain), optim=optim, train=train)


def trained(config: RunConfig, steps: int, train: ImageData, validation: ImageData) -> float:
    """Bits/dim on the validation images after so many steps."""
    trainer = Trainer(config, Runtime(compile="off"), train)
    for _ in range(steps):
        trainer.train_step()
    return trainer.validate(validation)["bits_per_dim"]


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, required=True, help="where the data set lies")
    parser.add_argument("--preset", default="cifar10-small")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--images", type=int, default=500, help="validation images (500)")
    parser.add_argument("--gains", nargs="+", choices=GAINS, default=list(GAINS))
    return parser.parse_args()


def main() -> None:
    """Train every way from every seed and print the table."""
    options = parsed()
    try:
        config = run_config(options, GAINS[0], 0)
        train, validation = (
            load_dataset(config.data.name, split, options.data_dir, download=False)
            for split in ("train", "validation")
        )
        print(machine_line(machine(choose_device("auto"))))
        rows = []
        for gain in options.gains:
            bits = []
            for seed in range(options.seeds):
                config = run_config(options, gain, seed)
                held_out = validation.first(options.images)
                bits.append(trained(config, options.steps, train, held_out))
                print(f"{gain}, seed {seed}: {bits[-1]:.3f} bits/dim", flush=True)
            rows.append([gain, f"{statistics.mean(bits):.3f}", ", ".join(f"{b:.3f}" for b in bits)])
    except (ConfigError, DataError, TrainingError) as error:
        raise SystemExit(f"gains: error: {error}") from None
    print("\n" + table(["gain", "bits/dim", "each seed"], rows))


if __name__ == "__main__":
    main()
