"""Training on a few digits: exact resume, stops, skipped steps, and every step's own noise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from model.config import ConvVaeConfig, IafPosterior
from training.config import OptimConfig, RunConfig, Runtime, TrainConfig
from training.data import ImageData
from training.errors import TrainingError
from training.fit import trainer as module
from training.fit.averages import Step
from training.fit.batches import presented, step_generator
from training.fit.progress import Budget
from training.fit.session import Session
from training.fit.trainer import Trainer
from training.runs.checkpoint import load_checkpoint
from training.runs.metrics import Recorder

MODEL = ConvVaeConfig(
    image_shape=(1, 12, 12),
    channels=(4, 6),
    hidden=24,
    latent_dim=4,
    posterior=IafPosterior(steps=2, hidden=(16, 16)),
)
CONFIG = RunConfig(
    model=MODEL,
    optim=OptimConfig(batch_size=8, warmup_steps=2),
    train=TrainConfig(epochs=3, kl_warmup_epochs=1.0, seed=5),
)
EAGER = Runtime(device="cpu", compile="off", bf16="off", threads=1)


@pytest.fixture
def digits() -> ImageData:
    generator = np.random.default_rng(0)
    blobs = generator.random((40, 1, 3, 3)).repeat(4, axis=2).repeat(4, axis=3)
    return ImageData((blobs * 255).astype(np.uint8), "blobs", "train")


class Silent:
    def __init__(self) -> None:
        self.skips: list[int] = []
        self.validations: list[dict[str, float]] = []

    def train(self, step: int, figures: dict[str, float]) -> None: ...

    def skipped(self, step: int, loss: float, norm: float) -> None:
        self.skips.append(step)

    def validation(self, step: int, epoch: int, figures: dict[str, float]) -> None:
        self.validations.append(figures)


def state_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {
        **{f"model.{k}": v for k, v in trainer.model.state_dict().items()},
        **{f"average.{k}": v for k, v in trainer.average.state_dict().items()},
    }


def assert_identical(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert different == []


@pytest.mark.parametrize("kind", ["adamax", "adam"])
@pytest.mark.parametrize("cut", [1, 5, 7])
def test_resuming_continues_bit_for_bit(
    tmp_path: Path, digits: ImageData, kind: str, cut: int
) -> None:
    config = replace(CONFIG, optim=replace(CONFIG.optim, kind=kind))
    straight = Trainer(config, EAGER, digits)
    for _ in range(9):
        straight.train_step()

    first = Trainer(config, EAGER, digits)
    for _ in range(cut):
        first.train_step()
    first.save(tmp_path)
    second = Trainer(config, EAGER, digits)
    second.restore(load_checkpoint(tmp_path))
    assert_identical(state_of(first), state_of(second))
    for _ in range(9 - cut):
        second.train_step()

    assert second.step == straight.step == 9
    assert_identical(state_of(straight), state_of(second))
    assert second.guard.state() == straight.guard.state()


def test_a_restored_optimiser_lies_in_memory_as_the_model_does(
    tmp_path: Path, digits: ImageData
) -> None:
    """Else every later step of a resumed run computes over mixed layouts, which is slower."""
    first = Trainer(CONFIG, EAGER, digits)
    first.train_step()
    first.save(tmp_path)
    second = Trainer(CONFIG, EAGER, digits)
    second.restore(load_checkpoint(tmp_path))
    for trainer in (first, second):
        for parameter in trainer.model.parameters():
            state = trainer.optimizer.state[parameter]
            assert state["exp_avg"].stride() == parameter.stride()
            assert not state["exp_avg"].requires_grad


def test_other_images_are_no_resumed_run(tmp_path: Path, digits: ImageData) -> None:
    trainer = Trainer(CONFIG, EAGER, digits)
    trainer.save(tmp_path)
    fewer = ImageData(digits.pixels[:-1], "blobs", "train")
    with pytest.raises(TrainingError, match="40 then, 39 now"):
        Trainer(CONFIG, EAGER, fewer).restore(load_checkpoint(tmp_path))


def test_a_long_epoch_offers_checkpoints_within_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.fit.trainer.LOG_EVERY_STEPS", 2)
    grey = ImageData(np.full((40, 1, 12, 12), 64, np.uint8), "grey", "train")
    config = replace(CONFIG, train=replace(CONFIG.train, epochs=1))
    trainer = Trainer(config, EAGER, grey)
    steps = [(trainer.step, reason) for reason in trainer.run(Silent(), lambda: "", grey)]
    assert steps == [(2, "step"), (4, "step"), (5, "done")]


def test_a_step_that_a_wish_to_stop_broke_is_a_stop(
    digits: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C reaches the compiler that torch started, too; torch then raises."""
    trainer, wishes = Trainer(CONFIG, EAGER, digits), []

    def broken(wish: str) -> None:
        wishes.append("SIGINT")
        raise RuntimeError("C++ compile error")

    monkeypatch.setattr(trainer, "train_step", broken)
    assert list(trainer.run(Silent(), lambda: "".join(wishes), digits)) == ["SIGINT"]
    with pytest.raises(RuntimeError, match="compile error"):
        list(trainer.run(Silent(), lambda: "", digits))


class Clock:
    """Time that passes only when somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def wait(self, seconds: float) -> None:
        self.now += seconds


def test_speed_is_of_the_steps_and_skipped_ones_have_no_figures(
    digits: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, told, observer = Clock(), [], Silent()
    monkeypatch.setattr("training.fit.averages.time.perf_counter", lambda: clock.now)
    trainer = Trainer(CONFIG, EAGER, digits)
    take = trainer.train_step

    def step(wish: str) -> Step:
        clock.wait(0.5)
        return take(wish)

    monkeypatch.setattr(trainer, "train_step", step)
    monkeypatch.setattr(observer, "train", lambda step, figures: told.append(figures))
    monkeypatch.setattr(trainer, "validate", lambda data: clock.wait(60) or {})
    for _ in trainer.run(observer, lambda: "", digits):
        clock.wait(60)  # a checkpoint
    rates = [figures["images_per_second"] for figures in told]
    assert rates == pytest.approx([8 / 0.5] * 3)  # neither pause is in it
    monkeypatch.setattr(trainer.guard, "allows", lambda loss, norm: False)
    trainer.step = 0
    next(trainer.run(observer, lambda: "", digits))
    assert np.isnan(told[-1]["elbo_nats"])


@pytest.mark.parametrize(("side", "count"), [(12, 40), (512, 8), (128, 32)])
def test_the_first_weights_are_of_as_many_images_as_memory_is_like_a_steps(
    monkeypatch: pytest.MonkeyPatch, digits: ImageData, side: int, count: int
) -> None:
    """512 photos at once took three times what any step did."""
    large = np.broadcast_to(digits.pixels[:, :, :1, :1], (40, 1, side, side))
    shown: list[int] = []
    monkeypatch.setattr(module, "presented", lambda _, x, *given: shown.append(len(x)) or _stop())
    with pytest.raises(InterruptedError):
        Trainer(CONFIG, EAGER, ImageData(np.ascontiguousarray(large), "large", "train"))
    assert shown == [count]


def _stop() -> None:
    raise InterruptedError


def test_a_run_reaches_its_end_and_improves(digits: ImageData) -> None:
    config = replace(CONFIG, train=replace(CONFIG.train, epochs=30))
    trainer, observer = Trainer(config, EAGER, digits), Silent()
    reasons = list(trainer.run(observer, lambda: "", digits))
    assert reasons == ["epoch"] * 29 + ["done"]
    assert trainer.step == trainer.total_steps == 30 * 5
    first, last = observer.validations[0], observer.validations[-1]
    assert last["elbo_nats"] > first["elbo_nats"] + 5
    assert last["bits_per_dim"] == pytest.approx(-last["elbo_nats"] / (144 * np.log(2)))


def test_it_is_the_averaged_weights_that_are_validated(digits: ImageData) -> None:
    trainer = Trainer(CONFIG, EAGER, digits)
    wanted = trainer.validate(digits)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.fill_(float("nan"))
    assert trainer.validate(digits) == wanted
    assert np.isfinite(wanted["elbo_nats"])


def test_every_part_of_the_validation_images_has_noise_of_its_own(
    digits: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.fit.validate.ROWS", 4)
    trainer = Trainer(CONFIG, EAGER, digits)
    four = replace(digits, pixels=digits.pixels[:4])
    twice = replace(digits, pixels=np.concatenate([four.pixels, four.pixels]))
    assert trainer.validate(four)["elbo_nats"] != trainer.validate(twice)["elbo_nats"]


def test_a_stop_is_obeyed_before_the_next_step(digits: ImageData) -> None:
    trainer = Trainer(CONFIG, EAGER, digits)
    reasons = trainer.run(Silent(), lambda: "SIGTERM" if trainer.step == 3 else "", digits)
    assert list(reasons) == ["SIGTERM"]
    assert trainer.step == 3


def test_a_step_without_a_finite_gradient_changes_nothing(
    digits: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(CONFIG, EAGER, digits)
    trainer.train_step()
    before = {k: v.clone() for k, v in state_of(trainer).items()}
    forward = trainer.forward
    monkeypatch.setattr(
        trainer, "forward", lambda x, eps: tuple(t * float("nan") for t in forward(x, eps))
    )
    assert not trainer.train_step().taken
    assert_identical(before, state_of(trainer))
    assert trainer.guard.skipped_nonfinite == 1
    monkeypatch.setattr(trainer, "forward", forward)
    assert trainer.train_step().taken


def test_a_run_whose_steps_were_all_skipped_goes_on_as_if_it_had_not_stopped(
    tmp_path: Path, digits: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = Trainer(CONFIG, EAGER, digits)
    forward = straight.forward
    nothing = lambda x, eps: tuple(t * float("nan") for t in forward(x, eps))  # noqa: E731
    monkeypatch.setattr(straight, "forward", nothing)
    for _ in range(3):
        assert not straight.train_step().taken
    monkeypatch.setattr(straight, "forward", forward)
    straight.save(tmp_path)
    resumed = Trainer(CONFIG, EAGER, digits)
    resumed.restore(load_checkpoint(tmp_path))
    for trainer in (straight, resumed):
        for _ in range(3):
            trainer.train_step()
    assert_identical(state_of(straight), state_of(resumed))


@pytest.mark.parametrize(("seconds", "saves"), [(0.0, 1), (20.0, 2), (70.0, 4)])
def test_a_checkpoint_a_minute_is_kept_at_the_ends_of_epochs(
    tmp_path: Path,
    digits: ImageData,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    saves: int,
) -> None:
    """Four epochs, each as long as the clock says; the end is kept always."""
    config = replace(CONFIG, train=replace(CONFIG.train, epochs=4))
    trainer, kept, now = Trainer(config, EAGER, digits), [], [0.0]
    validate, save = trainer.validate, trainer.save

    def validated(data: ImageData) -> dict[str, float]:
        now[0] += seconds
        return validate(data)

    def saved(run_dir: Path, *, optimizer: bool = True) -> Path:
        kept.append(trainer.step)
        return save(run_dir, optimizer=optimizer)

    monkeypatch.setattr(trainer, "validate", validated)
    monkeypatch.setattr(trainer, "save", saved)
    monkeypatch.setattr("training.fit.session.time.monotonic", lambda: now[0])
    recorder = Recorder(tmp_path, 0)
    session = Session(trainer, tmp_path, digits, recorder, Console(quiet=True), True)
    assert session.train(Budget(None)) == "done"
    recorder.close()
    assert len(kept) == saves
    assert kept[-1] == trainer.total_steps


def test_every_step_binarises_anew_with_the_grey_value_as_probability() -> None:
    trainer = Trainer(CONFIG, EAGER, ImageData(np.full((8, 1, 12, 12), 64, np.uint8), "g", "train"))
    device = torch.device("cpu")
    draws = [
        presented(trainer.model, trainer.pixels, step_generator(device, 5, 0, step))
        for step in range(200)
    ]
    assert not torch.equal(draws[0], draws[1])
    share = torch.stack(draws).mean().item()
    assert share == pytest.approx(64 / 255, abs=0.003)
    assert set(draws[0].unique().tolist()) == {0.0, 1.0}


def test_generators_differ_by_seed_stream_and_step() -> None:
    device = torch.device("cpu")
    keys = [(s, t, n) for s in (0, 1) for t in (0, 1) for n in range(50)]
    firsts = {torch.rand(1, generator=step_generator(device, *key)).item() for key in keys}
    assert len(firsts) == len(keys)
