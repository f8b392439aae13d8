"""`iafvae-train fit-prior`: a run whose model has a flow for its prior, made of a trained run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from model import build_model
from model.config import CouplingPrior, PriorConfig
from model.contract import DensityModel
from training.config import RunConfig, Runtime
from training.errors import TrainingError
from training.fit.device import prepare
from training.fit.distributed import World
from training.fit.fit import run_images
from training.fit.optim import PRIOR
from training.fit.prior import SILENT, PriorObserver, PriorPlan, fit_flow
from training.fit.validate import validate
from training.runs.checkpoint import load_run, run_directory
from training.runs.derive import write_derived
from training.runs.directory import known_data_dir, read_config, refuse_taken

__all__ = ["PriorResult", "fit_prior"]


@dataclass(frozen=True)
class PriorResult:
    """Why the fit ended ("done", "SIGINT" or "SIGTERM"), what it is worth, and where it is.

    `before` and `after`: the averaged model's figures on the validation split, one draw an image.
    """

    reason: str
    before: Mapping[str, float]
    after: Mapping[str, float]
    path: Path


def fit_prior(
    run: Path,
    out: Path,
    plan: PriorPlan,
    *,
    prior: CouplingPrior | None = None,
    runtime: Runtime,
    data_dir: Path | None = None,
    tell: Callable[[str], None],
    observer: PriorObserver = SILENT,
) -> PriorResult:
    """Fit a flow to the averaged model of `run` and write it, whole, as the new run `out`.

    `out` is evaluated, exported and gone on with as any run; its optimiser starts afresh. `tell`
    hears what a folder of images holds. A run that has a flow already goes on from it, unless
    `prior` asks for one of another shape. Raises `TrainingError` where `run` is none or was trained
    with its validation images, or `out` is taken.
    """
    run_dir = run_directory(run)
    before = read_config(run_dir)
    refuse_taken(out)
    if before.data.with_validation:
        raise TrainingError(
            "fit-prior keeps what is best on validation images, and this run was trained with "
            "them: fit the prior before `fit --with-validation`"
        )
    data_dir = known_data_dir(run_dir, data_dir)
    train, validation = run_images(before, data_dir, tell)
    _, trained, checkpoint = load_run(run)
    has = before.model.prior
    wanted = prior or (has if isinstance(has, CouplingPrior) else CouplingPrior())
    config = replace(before, model=replace(before.model, prior=wanted))
    backend = prepare(replace(runtime, compile="off", bf16="off"))
    torch.manual_seed(plan.seed)
    model = backend.place(_grown(trained, config)).eval()

    def figures(of: DensityModel) -> dict[str, float]:
        return validate(of, validation, backend, World())

    bare = figures(backend.place(trained))
    reason = fit_flow(
        model,
        train,
        validation,
        plan,
        backend,
        flips=config.data.horizontal_flips,
        observer=observer,
    )
    kept = {n: t for n, t in checkpoint.model.items() if not n.startswith(PRIOR)}
    flow = {n: t for n, t in model.state_dict().items() if n.startswith(PRIOR)}
    path = write_derived(
        checkpoint,
        out,
        config,
        command=_command(config.model.prior, plan),
        model_state={**kept, **flow},
        ema_state=dict(model.named_parameters()) if checkpoint.ema else {},
        data_dir=data_dir,
    )
    return PriorResult(reason, bare, figures(model), path)


def _grown(trained: DensityModel, config: RunConfig) -> DensityModel:
    """The model of `config` with all weights of `trained`, but for those of another flow."""
    model = build_model(config.model)
    same = trained.config.prior == config.model.prior
    weights = {n: t for n, t in trained.state_dict().items() if same or not n.startswith(PRIOR)}
    model.load_state_dict({**model.state_dict(), **weights})
    return model


def _command(prior: PriorConfig, plan: PriorPlan) -> str:
    """What makes this of a run, for those who read its history."""
    shape = ""
    if isinstance(prior, CouplingPrior) and prior != CouplingPrior():
        shape = f"--couplings {prior.couplings} --width {prior.hidden[0]} "
    return (
        f"iafvae-train fit-prior RUN {shape}--minutes {plan.minutes:g} --seed {plan.seed} --out RUN"
    )
