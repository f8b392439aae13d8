"""`iafvae-train`: fit a model, evaluate it, export it as a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from model.config import ConfigError, preset_names
from training.config import Runtime, overridden, run_preset
from training.errors import TrainingError

app = typer.Typer(
    name="iafvae-train",
    help="Train variational autoencoders with inverse autoregressive flow, measure their "
    "likelihood, and export them for the service.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
console = Console()
errors = Console(stderr=True)

DataDir = Annotated[
    Path | None,
    typer.Option(
        help="Where data sets lie (MNIST/raw/*.gz, ...) or are downloaded to; default: the "
        "user's cache.",
    ),
]


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    numbers = text.lower().split("x")
    if not all(n.isdigit() for n in numbers) or len(numbers) not in (1, 2):
        raise ConfigError(f"--size is a number or HEIGHTxWIDTH, not {text!r}")
    return int(numbers[0]), int(numbers[-1])


@app.command()
def fit(
    out: Annotated[Path, typer.Option(help="The run directory to write.")],
    preset: Annotated[
        str | None,
        typer.Option(
            help=f"Architecture and settings: {', '.join(preset_names())}. Default: mnist."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="mnist, fashion-mnist, or folder:PATH of your own images."),
    ] = None,
    data_dir: DataDir = None,
    size: Annotated[
        str | None, typer.Option(help="With folder: resize images to N or HEIGHTxWIDTH.")
    ] = None,
    channels: Annotated[int | None, typer.Option(help="With folder: 1 (grey) or 3 (RGB).")] = None,
    likelihood: Annotated[
        str | None, typer.Option(help="bernoulli (binary) or discretized_logistic (8-bit).")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="How many epochs in all.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step (128).")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Its highest value, after the warm-up (0.002).")
    ] = None,
    warmup_steps: Annotated[
        int | None,
        typer.Option(help="Steps over which the learning rate rises (400, or a tenth of the run)."),
    ] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamax or adam.")] = None,
    schedule: Annotated[str | None, typer.Option(help="trapezoid, cosine or constant.")] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="L2 penalty of the optimiser (0).")
    ] = None,
    ema_decay: Annotated[
        float | None, typer.Option(help="Polyak averaging of the weights (0.999).")
    ] = None,
    free_bits: Annotated[
        float | None, typer.Option(help="Minimum nats of each latent part (paper, C.8).")
    ] = None,
    kl_warmup_epochs: Annotated[
        float | None, typer.Option(help="Epochs over which the KL's weight rises to 1 (5).")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the weights, the order, the binarisation, the noise (0).")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the run in --out, as it was configured; only --epochs may differ.",
        ),
    ] = False,
    budget_minutes: Annotated[
        float | None, typer.Option(help="Stop cleanly after so many minutes of steps.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    compile: Annotated[str, typer.Option(help="auto, on or off: torch.compile.")] = "auto",  # noqa: A002
    bf16: Annotated[str, typer.Option(help="auto, on or off: bfloat16 products.")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves it to torch.")] = 0,
) -> None:
    """Train a model; Ctrl-C saves and stops, --resume goes on exactly.

    [bold]Examples[/bold]

      iafvae-train fit --preset mnist --out runs/mnist

      iafvae-train fit --resume --out runs/mnist

      iafvae-train fit --preset fashion-mnist --data folder:photos --size 32 --out runs/photos
    """
    from training.fit import fit as run_fit  # torch takes seconds to import
    from training.rundir import read_config

    overrides: dict[str, dict[str, Any]] = {
        "data": {"name": data, "size": _size(size), "channels": channels},
        "optim": {
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "warmup_steps": warmup_steps,
            "weight_decay": weight_decay,
            "kind": optimizer,
            "schedule": schedule,
            "ema_decay": ema_decay,
        },
        "train": {
            "epochs": epochs,
            "seed": seed,
            "free_bits_nats": free_bits,
            "kl_warmup_epochs": kl_warmup_epochs,
        },
        "model": {"likelihood": likelihood},
    }
    base = read_config(out) if resume and preset is None else run_preset(preset or "mnist")
    config = overridden(base, overrides)
    runtime = Runtime(device=device, compile=compile, bf16=bf16, threads=threads)  # type: ignore[arg-type]
    result = run_fit(
        config,
        out,
        runtime=runtime,
        data_dir=data_dir,
        resume=resume,
        budget_minutes=budget_minutes,
        console=console,
    )
    console.print(
        f"{result.reason}: step {result.step} of {result.total_steps}, validation ELBO "
        f"{result.elbo_nats:.2f} nats, {result.bits_per_dim:.4f} bits/dim, "
        f"{result.skipped} steps skipped",
        soft_wrap=True,
        highlight=False,
    )
    if result.reason != "done":
        again = f" --data-dir {data_dir}" if data_dir else ""
        console.print(
            f"saved; go on with: iafvae-train fit --resume --out {out}{again}",
            soft_wrap=True,
            highlight=False,
        )
    raise typer.Exit({"SIGINT": 130, "SIGTERM": 143}.get(result.reason, 0))


Run = Annotated[Path, typer.Argument(help="A run directory, or one checkpoint in it.")]
Weights = Annotated[str, typer.Option(help="ema (the average) or raw (the last).")]


@app.command()
def evaluate(
    run: Run,
    split: Annotated[str, typer.Option(help="train, validation, calibration or test.")] = "test",
    importance_samples: Annotated[
        int, typer.Option(help="K of the importance-weighted bound.", min=1)
    ] = 128,
    seed: Annotated[int, typer.Option(help="Of the binarisation and of the latents.", min=0)] = 0,
    weights: Weights = "ema",
    limit: Annotated[int | None, typer.Option(help="Only the first N images.", min=1)] = None,
    data_dir: DataDir = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not a table.")] = False,
) -> None:
    """Measure a run's likelihood: ELBO, IW-K bound, KL per group, active units.

    Writes the figures as JSON into the run directory too, where `export` finds them. Choose
    models on the validation split; the test split is for final figures.

    [bold]Example[/bold]

      iafvae-train evaluate runs/mnist --split test --importance-samples 128
    """
    from training.data import SPLITS
    from training.device import choose_device
    from training.runs import evaluate_run

    with Progress(console=errors, disable=not errors.is_terminal) as progress:
        report, path = evaluate_run(
            run,
            split=one_of("--split", split, SPLITS),
            importance_samples=importance_samples,
            seed=seed,
            weights=one_of("--weights", weights, ("ema", "raw")),
            limit=limit,
            data_dir=data_dir,
            device=str(choose_device(device)),
            progress=progress,
        )
    if as_json:
        console.print_json(data=report.to_dict())
    else:
        console.print(report.table())
    errors.print(f"written to {path}", highlight=False, soft_wrap=True)


@app.command()
def export(
    run: Run,
    out: Annotated[Path, typer.Option(help="The bundle directory to write.")],
    name: Annotated[
        str | None,
        typer.Option(
            help="The model's name in the service; default: the preset's, of a folder's images "
            "the run directory's."
        ),
    ] = None,
    version: Annotated[str, typer.Option(help="The bundle's version.")] = "1.0.0",
    description: Annotated[
        str | None, typer.Option(help="A sentence on what the model is, for the service's pages.")
    ] = None,
    license_name: Annotated[
        str, typer.Option("--license", help="Under which the model may be used.")
    ] = "MIT",
    weights: Weights = "ema",
    data_dir: DataDir = None,
    calibration: Annotated[
        bool, typer.Option(help="Without it no images are needed, and there are no p-values.")
    ] = True,
) -> None:
    """Write a run as a bundle of ONNX graphs for `iafvae serve`.

    The graphs are compared with the model through the service's own engine first; nothing is
    published unless they agree. Figures of earlier `evaluate` calls go into the bundle.

    [bold]Example[/bold]

      iafvae-train export runs/mnist --out bundles/mnist
    """
    from training.runs import export_run

    with Progress(console=errors, disable=not errors.is_terminal) as progress:
        bundle = export_run(
            run,
            out,
            name=name,
            version=version,
            description=description,
            license_name=license_name,
            weights=one_of("--weights", weights, ("ema", "raw")),
            data_dir=data_dir,
            calibrate=calibration,
            progress=progress,
        )
    console.print(
        f"{bundle.path}  {bundle.manifest.name} {bundle.manifest.version}\n"
        f"serve it with: iafvae serve --models {bundle.path}",
        highlight=False,
        soft_wrap=True,
    )


def one_of(option: str, value: str, choices: tuple[str, ...]) -> Any:
    """Check a choice; raises `ConfigError` listing what there is."""
    if value not in choices:
        raise ConfigError(f"{option} is one of {', '.join(choices)}, not {value!r}")
    return value


def main() -> None:
    """Run the command line; faults that people can mend are one line, not a traceback."""
    try:
        app()
    except (TrainingError, ConfigError, OSError) as error:  # OSError: a disk, a permission
        errors.print(f"error: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        raise SystemExit(1) from None


__all__ = ["app", "main"]
