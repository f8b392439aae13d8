"""What made a run: its command, its program, its machine; for people and for the model card.

No path of a machine is among it: a folder of images is named as such, a run's directory is RUN.
"""

import platform
import shlex
import subprocess
from pathlib import Path

import torch

from model.config import ConfigError
from training.config import RunConfig, for_images, run_preset
from training.data import FOLDER_PREFIX
from training.overrides import differences

__all__ = ["OPTIONS", "fit_command", "git_revision", "machine", "processor", "resume_command"]

# The options of `iafvae-train fit` that change a run's numbers -> where its configuration has them.
OPTIONS = {
    "--likelihood": ("model", "likelihood"),
    "--size": ("data", "size"),
    "--channels": ("data", "channels"),
    "--distorted": ("data", "distorted"),
    "--epochs": ("train", "epochs"),
    "--batch-size": ("optim", "batch_size"),
    "--accumulate": ("optim", "accumulate"),
    "--learning-rate": ("optim", "learning_rate"),
    "--warmup-steps": ("optim", "warmup_steps"),
    "--optimizer": ("optim", "kind"),
    "--schedule": ("optim", "schedule"),
    "--decay-fraction": ("optim", "decay_fraction"),
    "--weight-decay": ("optim", "weight_decay"),
    "--ema-decay": ("optim", "ema_decay"),
    "--clip-norm": ("optim", "clip_norm"),
    "--free-bits": ("train", "free_bits_nats"),
    "--kl-warmup-epochs": ("train", "kl_warmup_epochs"),
    "--importance-samples": ("train", "importance_samples"),
    "--seed": ("train", "seed"),
}
# Other fields that follow from the images or have an option of another form.
ELSEWHERE = ("data.name", "data.horizontal_flips", "data.with_validation", "model.image_shape")


def fit_command(config: RunConfig) -> str:
    """The command that starts this run anew, its paths left to the reader."""
    name = config.preset or "mnist"
    base = run_preset(name)
    words = ["iafvae-train fit", f"--preset {name}"]
    if config.data.name.startswith(FOLDER_PREFIX):
        words.append(f"--data {FOLDER_PREFIX}PATH")
    elif config.data.name != base.data.name:
        words.append(f"--data {config.data.name}")
    return " ".join([*words, *_options(_shaped(base, config), config), "--out RUN"])


def resume_command(before: RunConfig, config: RunConfig) -> str:
    """The command that goes on with a run configured as `before`, as `config` says."""
    return " ".join(["iafvae-train fit --resume", *_options(before, config), "--out RUN"])


def _options(base: RunConfig, config: RunConfig) -> list[str]:
    """What makes `config` of `base`: options, and `--set` for fields that have none."""
    words = []
    for option, (part, key) in OPTIONS.items():
        value = getattr(getattr(config, part), key)
        if value != getattr(getattr(base, part), key):
            size = isinstance(value, tuple)
            words.append(f"{option} {'x'.join(map(str, value)) if size else value}")
    if config.data.horizontal_flips != base.data.horizontal_flips:
        words.append("--flips" if config.data.horizontal_flips else "--no-flips")
    if config.data.with_validation and not base.data.with_validation:
        words.append("--with-validation")
    named = {f"{part}.{key}" for part, key in OPTIONS.values()}
    settings = differences(base, config, without={*named, *ELSEWHERE})
    return words + [f"--set {shlex.quote(setting)}" for setting in settings]


def _shaped(base: RunConfig, config: RunConfig) -> RunConfig:
    """`base` as `fit` makes it for images of the run's shape."""
    try:
        return for_images(base, config.model.image_shape)
    except ConfigError:  # a model of another kind, told whole
        return base


def git_revision() -> str:
    """The commit of the program, "+" where files differ from it; "unknown" outside a checkout."""
    here = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
        return result.stdout.strip()

    try:
        if not git("ls-files", "."):  # installed inside somebody else's checkout
            return "unknown"
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def processor() -> str:
    """This machine's processor, in its maker's words where the system tells them."""
    names = [platform.processor()]
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, names), platform.machine())


def machine(device: torch.device, threads: int = 0) -> str:
    """What computes on `device`, in its maker's words; `threads` 0: as many as torch takes."""
    if device.type == "cuda":
        name: str = torch.cuda.get_device_name(device)
        return name
    threads = threads or torch.get_num_threads()
    return f"{processor()}, {threads} thread{'s' if threads > 1 else ''}"
