"""Which choice gives how many nats: every row trained for the same minutes, from the same seeds.

    python -m benchmarks.ablations --out DIR --budget-minutes 10 [--rows base diagonal ...]

Each row changes one choice of the preset (default: `mnist`), trains for --budget-minutes, counted
from its first step, and is measured on the validation images: the ELBO of the averaged weights in
nats, higher is better. The learning rate stays constant after a short warm-up, so that the length
of a run, which equal minutes leave open, changes nothing else.

Most rows change the run's configuration. Three choices have no switch, because nobody should turn
them off: data-dependent initialisation, weight normalisation, and how a convolutional model's gains
are stored. They are changed here, from outside, in the model that the trainer builds.

DIR/results.json is rewritten after every row: interrupted, the same command goes on with the row
that it was at. DIR/ablations.md is the table. A row that is not compiled in the same way, or shares
the machine with other work, gets fewer steps: the table has them beside the nats.
"""

import argparse
import contextlib
import shutil
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

import training.fit.trainer
from benchmarks.harness import parser_of, read_json, table, write_json
from benchmarks.timing import machine, machine_line
from model.config import DiagonalPosterior, ModelConfig
from model.layers import WeightNormLayer
from training.config import UNENDING_EPOCHS, ConfigError, RunConfig, Runtime, overridden, run_preset
from training.errors import TrainingError
from training.files import write_text
from training.fit.device import prepare
from training.fit.fit import fit

Result = dict[str, Any]
Configure = Callable[[RunConfig], RunConfig]
Alter = Callable[[nn.Module], None]


@dataclass(frozen=True)
class Row:
    """One line of the table. `alter` changes the model before its initialisation."""

    name: str
    what: str
    configure: Configure = lambda config: config
    alter: Alter | None = None
    data_init: bool = True

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Make trainers build the row's model inside."""
        loop: Any = training.fit.trainer
        build, initialise = loop.build_model, loop.data_dependent_init
        alter = self.alter

        def altered(config: ModelConfig) -> Any:
            model = build(config)
            if alter is not None:
                alter(model)
            return model

        loop.build_model = altered
        if not self.data_init:
            loop.data_dependent_init = contextlib.nullcontext
        try:
            yield
        finally:
            loop.build_model, loop.data_dependent_init = build, initialise


def _normalised(model: nn.Module) -> Iterator[WeightNormLayer]:
    return (layer for layer in model.modules() if isinstance(layer, WeightNormLayer))


class Unnormalised:
    """Mixed into a weight-normalised layer: w = v, masked, and no gain of its own.

    Data-dependent initialisation gives the same start: the gain that it finds goes into v.
    """

    v: nn.Parameter
    g: nn.Parameter
    mask: Tensor | None
    out_dim: int

    def direction(self) -> Tensor:
        """Give v with the mask applied, whatever its norm."""
        return self.v if self.mask is None else self.v * self.mask

    def weight(self) -> Tensor:
        """Give the weight: v."""
        return self.direction()

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Set v and bias so that pre-activations have mean 0 and the wanted deviation."""
        super().initialize(x)  # type: ignore[misc]
        shape = [1] * self.v.dim()
        shape[self.out_dim] = -1
        self.v.mul_(self.g.view(shape))
        self.g.fill_(1.0)


def without_weight_norm(model: nn.Module) -> None:
    """Make every layer's weight a parameter as it is."""
    for layer in _normalised(model):
        layer.gain = "linear"
        with torch.no_grad():
            layer.g.fill_(1.0)
        layer.g.requires_grad_(False)
        layer.__class__ = type(f"Plain{type(layer).__name__}", (Unnormalised, type(layer)), {})


def with_gain(gain: str) -> Alter:
    """Store every layer's gain as `model.layers.WeightNormLayer` describes."""

    def alter(model: nn.Module) -> None:
        for layer in _normalised(model):
            layer.gain = gain  # type: ignore[assignment]
            with torch.no_grad():
                layer.g.fill_(1.0 if gain == "linear" else 0.0)

    return alter


def _set(part: str, **changes: Any) -> Configure:
    """Change fields of one part of the configuration: model, optim, train."""
    return lambda config: overridden(config, {part: changes})


def _posterior(least_steps: int = 1, **changes: Any) -> Configure:
    """Change those fields of a flow's configuration, where it has so many steps."""

    def configure(config: RunConfig) -> RunConfig:
        posterior: Any = config.model.posterior
        if isinstance(posterior, DiagonalPosterior) or posterior.steps < least_steps:
            return config
        changed = replace(posterior, **changes)
        return overridden(config, {"model": {"posterior": changed}})

    return configure


def _rate(factor: float, batch: float = 1.0) -> Configure:
    """Multiply the learning rate and the batch."""

    def configure(config: RunConfig) -> RunConfig:
        optim = config.optim
        size = max(1, round(optim.batch_size * batch))
        rate = optim.learning_rate * factor
        return overridden(config, {"optim": {"learning_rate": rate, "batch_size": size}})

    return configure


def _adam(config: RunConfig) -> RunConfig:
    rate = config.optim.learning_rate / 2
    return overridden(config, {"optim": {"kind": "adam", "learning_rate": rate}})


def _widened(config: RunConfig) -> RunConfig:
    """Twice the feature maps, both networks' alike."""
    model: Any = config.model
    maps = model.channels
    wide = 2 * maps if isinstance(maps, int) else tuple(2 * n for n in maps)
    return overridden(config, {"model": {"channels": wide}})


ROWS = (
    Row("base", "the preset as it is"),
    Row("diagonal", "diagonal instead of IAF", _set("model", posterior=DiagonalPosterior())),
    Row("gated", "z' = sigma z + (1 - sigma) m", _posterior(update="gated")),
    Row("affine", "z' = (z - 0.1 m) / exp(0.1 s)", _posterior(update="affine")),
    Row("same-order", "the order is never reversed", _posterior(2, reverse=False)),
    Row("free-bits-0", "no free bits", _set("train", free_bits_nats=0.0)),
    Row("free-bits-0.1", "0.1 free nats a part", _set("train", free_bits_nats=0.1)),
    Row("free-bits-1", "1 free nat a part", _set("train", free_bits_nats=1.0)),
    Row("free-bits-8", "8 free nats a part", _set("train", free_bits_nats=8.0)),
    Row("no-kl-warmup", "the whole KL from the first step", _set("train", kl_warmup_epochs=0.0)),
    Row("no-data-init", "gains 1, biases 0 at the start", data_init=False),
    Row("no-weight-norm", "plain weights, the same start", alter=without_weight_norm),
    Row("rate-x3", "3 times the learning rate", _rate(3.0)),
    Row("rate-x6", "6 times the learning rate", _rate(6.0)),
    Row("rate-x3-batch-half", "3 times the rate, half the batch", _rate(3.0, batch=0.5)),
    Row("rate-x3-batch-twice", "3 times the rate, twice the batch", _rate(3.0, batch=2.0)),
    Row("adam", "Adam at half the rate instead of Adamax", _adam),
    Row("ema-0.99", "weights averaged over 100 steps", _set("optim", ema_decay=0.99)),
    Row("weight-decay", "an L2 penalty of 0.0001", _set("optim", weight_decay=1e-4)),
    Row("no-skip", "steps of large gradients are taken", _set("optim", skip_factor=0.0)),
    Row("wide", "twice the feature maps", _widened),
    Row("gain-exp", "gains exp(g)", alter=with_gain("exp")),
    Row("gain-exp-third", "exp(g), g a third at the start", alter=with_gain("exp_third")),
)


def rows_for(base: RunConfig) -> list[Row]:
    """The rows that differ from `base`, and the base itself first."""
    return [
        row
        for row in ROWS
        if row.name == "base"
        or row.alter is not None
        or not row.data_init
        or row.configure(base) != base
    ]


def base_config(options: argparse.Namespace) -> RunConfig:
    """What all rows start from."""
    config = run_preset(options.preset)
    optim = replace(config.optim, schedule="constant", warmup_steps=options.warmup_steps)
    warmup = config.train.kl_warmup_epochs and options.kl_warmup_epochs
    train = replace(config.train, epochs=UNENDING_EPOCHS, kl_warmup_epochs=warmup)
    return replace(config, optim=optim, train=train)


def train_row(row: Row, config: RunConfig, options: argparse.Namespace) -> Result:
    """Train one row from one seed; raises `KeyboardInterrupt` where it was interrupted."""
    run_dir = options.out / "runs" / f"{row.name}-{config.train.seed}"
    if run_dir.exists():  # an interrupted row's: its minutes are not known, so it starts anew
        shutil.rmtree(run_dir)
    runtime = Runtime(device=options.device, compile=options.compile, threads=options.threads)
    with row.applied():
        result = fit(
            config,
            run_dir,
            runtime=runtime,
            data_dir=options.data_dir,
            resume=False,
            budget_minutes=options.budget_minutes,
            optimizer_state=False,
            console=Console(stderr=True),
        )
    shutil.rmtree(run_dir)
    if result.reason != "budget":
        raise KeyboardInterrupt(result.reason)
    return {"elbo_nats": result.elbo_nats, "steps": result.step, "skipped": result.skipped}


def described(row: Row, config: RunConfig, options: argparse.Namespace) -> Result:
    """What tells one result from another."""
    return {
        "preset": options.preset,
        "row": row.name,
        "what": row.what,
        "seed": config.train.seed,
        "budget_minutes": options.budget_minutes,
        "compile": options.compile,
        "config": config.to_dict(),
    }


def run(rows: list[Row], base: RunConfig, options: argparse.Namespace) -> dict[str, Any]:
    """The document, with what is missing trained; seeds outside, so that rows come in turn."""
    path = options.out / "results.json"
    kept = (read_json(path) or {}).get("results", {})
    device = prepare(Runtime(device=options.device, threads=options.threads)).device
    here = machine(device)
    document = {**here, "results": kept}
    for seed in options.seeds:
        for row in rows:
            config = row.configure(replace(base, train=replace(base.train, seed=seed)))
            told = described(row, config, options) | {"machine": here["machine"]}
            found = kept.get(f"{row.name}/{seed}", {})
            if any(found.get(name) != value for name, value in told.items()):
                found = {**told, **train_row(row, config, options)}
                kept[f"{row.name}/{seed}"] = found
                write_json(path, document)
            print(f"{row.name:16} seed {seed}: {found['elbo_nats']:9.3f} nats", flush=True)
    return document


def markdown(results: list[Result]) -> str:
    """The table, best first, with the difference to the base and the spread over seeds."""
    by_row: dict[str, list[Result]] = {}
    for result in results:
        by_row.setdefault(result["row"], []).append(result)
    means = {name: statistics.mean(r["elbo_nats"] for r in own) for name, own in by_row.items()}
    lines = []
    for name in sorted(by_row, key=lambda name: -means[name]):
        own = by_row[name]
        values = [r["elbo_nats"] for r in own]
        spread = f"{statistics.stdev(values):.2f}" if len(values) > 1 else ""
        against = f"{means[name] - means['base']:+.2f}" if "base" in means else ""
        steps = f"{statistics.mean(r['steps'] for r in own):,.0f}"
        words = [name, own[0]["what"], f"{means[name]:.2f}", against, spread]
        lines.append([*words, str(len(own)), steps])
    head = ["row", "", "ELBO, nats", "against base", "deviation", "seeds", "steps"]
    return table(head, lines, left=2)


def arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    names = [row.name for row in ROWS]
    parser.add_argument("--out", type=Path, required=True, help="directory of the results")
    parser.add_argument("--budget-minutes", type=float, default=10.0, help="a row (default 10)")
    parser.add_argument("--preset", default="mnist")
    parser.add_argument(
        "--rows", nargs="+", choices=names, metavar="ROW", help=f"of {', '.join(names)}"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="default 0")
    parser.add_argument("--data-dir", type=Path, help="where the data set is")
    parser.add_argument("--warmup-steps", type=int, default=100, help="of the learning rate")
    parser.add_argument(
        "--kl-warmup-epochs", type=float, default=1.0, help="where the preset has a warm-up"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's choice")
    parser.add_argument("--compile", choices=["on", "off"], default="on", help="default on")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    try:
        base = base_config(options)
        rows = [r for r in rows_for(base) if options.rows is None or r.name in options.rows]
        document = run(rows, base, options)
    except (ConfigError, TrainingError) as error:
        raise SystemExit(str(error)) from None
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on with the row it was at") from None
    same = {"preset": options.preset, "budget_minutes": options.budget_minutes}
    results = document["results"].values()  # a directory may hold other budgets' too
    text = markdown([r for r in results if all(r[name] == v for name, v in same.items())])
    budget = f"{options.preset}, {options.budget_minutes:g} minutes a row, {machine_line(document)}"
    write_text(options.out / "ablations.md", f"{budget}\n\n{text}\n")
    print(f"\n{text}\n\n{budget}")


if __name__ == "__main__":
    main()
