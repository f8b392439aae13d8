"""`fit-prior`: a trained run gets a flow, and is trained on, evaluated and exported with it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model import build_model
from model.config import ConvVaeConfig, CouplingPrior, DiagonalPosterior
from model.densities import standard_normal_log_prob
from tests.training.fit.conftest import Call
from training.config import Runtime
from training.data import ImageData
from training.errors import TrainingError
from training.fit import prior
from training.fit.device import prepare
from training.fit.prior import PriorObserver, PriorPlan, fit_flow, log_density
from training.fit.progress import Budget
from training.runs.checkpoint import load_checkpoint, load_run
from training.runs.metrics import read_metrics

FLOW = CouplingPrior(couplings=4, hidden=(16, 16))
MODEL = ConvVaeConfig(
    image_shape=(1, 8, 8),
    channels=(4,),
    hidden=12,
    latent_dim=3,
    posterior=DiagonalPosterior(),
    prior=FLOW,
)
EAGER = Runtime(device="cpu", compile="off", bf16="off", threads=1)


class Watched(PriorObserver):
    """Ends a fit after so many steps, and keeps what it heard."""

    def __init__(self, steps: int) -> None:
        self.steps, self.done = steps, 0
        self.gains: list[float] = []

    def stop(self) -> str:
        return "SIGINT" if self.done >= self.steps else ""

    def step(self, step: int, spent_minutes: float) -> None:
        self.done = step

    def checked(self, gain_nats: float) -> None:
        self.gains.append(gain_nats)


def noise_images(n: int, seed: int) -> ImageData:
    pixels = np.random.default_rng(seed).integers(0, 256, (n, 1, 8, 8), np.uint8)
    return ImageData(pixels, "noise", "train")


def test_a_flow_learns_an_aggregate_posterior_that_is_known() -> None:
    """q(z|x) = N((2, 0, -1), 0.5^2 I) whatever x: its entropy is what log p(z) can reach."""
    torch.manual_seed(0)
    model = build_model(MODEL)
    with torch.no_grad():
        model.mean.g.zero_()
        model.mean.bias.copy_(torch.tensor([2.0, 0.0, -1.0]))
        model.log_scale.g.zero_()
        model.log_scale.bias.fill_(np.log(0.5))
    before = {n: t.clone() for n, t in model.state_dict().items() if not n.startswith("prior.")}
    watched = Watched(600)
    plan = PriorPlan(minutes=5, batch_size=64)
    train, held_out = noise_images(200, 0), noise_images(400, 1)
    reason = fit_flow(model, train, held_out, plan, prepare(EAGER), observer=watched)
    assert reason == "SIGINT"
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in before.items())
    z = torch.tensor([2.0, 0.0, -1.0]) + 0.5 * torch.randn(20_000, 3)
    with torch.no_grad():
        found = log_density(model.prior, z).mean().item()
    entropy = 3 * 0.5 * (1 + np.log(2 * np.pi)) + 3 * np.log(0.5)
    assert -entropy - 0.08 < found < -entropy + 0.03
    gain = found - standard_normal_log_prob(z).sum(1).mean().item()
    assert watched.gains[-1] == pytest.approx(gain, abs=0.25)


def test_the_best_weights_of_all_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rate at which every step harms: the flow stays as it was."""
    monkeypatch.setattr("training.fit.prior.CHECK_EVERY_STEPS", 1)
    torch.manual_seed(0)
    model = build_model(MODEL)
    before = {n: t.clone() for n, t in model.prior.state_dict().items()}
    plan = PriorPlan(minutes=5, learning_rate=30.0, batch_size=8)
    watched = Watched(5)
    fit_flow(
        model, noise_images(20, 0), noise_images(20, 1), plan, prepare(EAGER), observer=watched
    )
    assert all(not gain > -0.5 for gain in watched.gains)  # nan too
    assert all(torch.equal(t, before[n]) for n, t in model.prior.state_dict().items())


def test_a_pool_of_latents_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of large latents not even one draw of each image has room."""
    monkeypatch.setattr(prior, "CHUNK", 10)
    monkeypatch.setattr(prior, "POOL_BYTES", 25 * 4 * MODEL.latent_dim)
    encoder = prior._Encoder(build_model(MODEL), prepare(EAGER), 0, flips=False)
    plan, budget = PriorPlan(batch_size=1000), Budget(5.0)
    pools = prior._batches(encoder, noise_images(100, 0), plan, budget, lambda: "")
    assert [len(next(pools)) for _ in range(2)] == [30, 30]


def test_there_must_be_something_to_fit() -> None:
    bare = build_model(replace(MODEL, prior=ConvVaeConfig().prior))
    images = noise_images(8, 0)
    with pytest.raises(TrainingError, match="standard normal"):
        fit_flow(bare, images, images, PriorPlan(), prepare(EAGER))
    with pytest.raises(TrainingError, match="--minutes"):
        PriorPlan(minutes=float("nan"))
    with pytest.raises(TrainingError, match="before its first step: give it more --minutes"):
        fit_flow(build_model(MODEL), images, images, PriorPlan(minutes=1e-9), prepare(EAGER))


def test_a_run_gets_a_flow_and_goes_on_with_it(tmp_path: Path, call: Call) -> None:
    photos, run, out = tmp_path / "photos", tmp_path / "run", tmp_path / "flow"
    photos.mkdir()
    generator = np.random.default_rng(0)
    for i in range(120):
        pixels = generator.integers(0, 256, (2, 2), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        Image.fromarray(pixels).save(photos / f"{i:03d}.png")
    fitted = call(
        *("fit", "--data", f"folder:{photos}", "--batch-size", "16", "--epochs", "2"),
        *("--kl-warmup-epochs", "0", "--compile", "off", "--out", str(run)),
        *("--set", "model.latent_dim=4", "--set", "model.hidden=16"),
        *("--set", 'model.posterior={"kind":"diagonal"}'),
    )
    assert fitted[0] == 0, fitted[1]
    records = read_metrics(run)
    with (run / "metrics.jsonl").open("a") as file:  # of steps after its checkpoint
        file.write(json.dumps({"step": 10**6, "kind": "train"}) + "\n")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    size = ("--couplings", "2", "--width", "8")
    code, said = call("fit-prior", str(run), "--minutes", "0.05", *size, "--out", str(out))
    assert code == 0, said
    assert "done: validation ELBO" in said
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before

    config = json.loads((out / "config.json").read_text())
    assert config["model"]["prior"] == {"kind": "coupling", "couplings": 2, "hidden": [8, 8]}
    assert "fit-prior RUN --couplings 2 --width 8" in config["environment"]["command"]
    _, old, _ = load_run(run)
    _, new, checkpoint = load_run(out)
    assert all(torch.equal(t, new.state_dict()[n]) for n, t in old.state_dict().items())
    assert not checkpoint.optim
    assert read_metrics(out) == records

    taken = call("fit-prior", str(run), "--out", str(out))
    assert taken[0] == 1
    assert "not empty" in taken[1]
    resumed = call("fit", "--resume", "--epochs", "3", "--compile", "off", "--out", str(out))
    assert resumed[0] == 0, resumed[1]
    moved = load_checkpoint(out).model
    flow = [n for n in moved if n.startswith("prior.") and not n.endswith("kept")]
    assert flow
    assert all(not torch.equal(moved[n], checkpoint.model[n]) for n in flow)
    again = tmp_path / "again"
    more = call("fit-prior", str(out), "--minutes", "0.02", "--out", str(again))
    assert more[0] == 0, more[1]
    assert load_run(again)[0].model == load_run(out)[0].model
    measured = call("evaluate", str(again), "--importance-samples", "2", "--limit", "4")
    assert measured[0] == 0, measured[1]
