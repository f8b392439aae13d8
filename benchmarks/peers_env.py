"""The peers' environments: one for each, with the versions pinned in `peers/NAME.txt`."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "peers"
INSTALL_SECONDS = 1800
DEBIAN_PYTHON = "/usr/bin/python3"


class CannotInstall(Exception):  # noqa: N818 - read as a sentence
    """Why a peer is not among the results."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment; python: what makes it, by default what runs this."""

    name: str
    python: str | None = None

    @property
    def requirements(self) -> Path:
        """Its pinned versions."""
        return FOLDER / f"{self.name}.txt"

    def version(self) -> str:
        """Of the peer itself: the first line that pins."""
        lines = self.requirements.read_text().splitlines()
        return next(line for line in lines if "==" in line).split()[0]

    def make(self, envs: Path) -> Path:
        """Its interpreter, after everything was installed. Raises CannotInstall."""
        home = envs / self.name
        python, stamp = home / "bin" / "python", home / "complete"
        wanted = hashlib.sha256(self.requirements.read_bytes()).hexdigest()
        if stamp.is_file() and stamp.read_text() == wanted:
            return python
        maker = self.python or str(getattr(sys, "_base_executable", sys.executable))
        if shutil.which(maker) is None:
            raise CannotInstall(f"there is no {maker}, which {self.name} needs")
        print(f"installing {self.name} in {home}", file=sys.stderr, flush=True)
        shutil.rmtree(home, ignore_errors=True)
        envs.mkdir(parents=True, exist_ok=True)
        _run([maker, "-m", "venv", str(home)])
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*install, "--requirement", str(self.requirements)])
        stamp.write_text(wanted)
        return python


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise CannotInstall(f"not installed after {INSTALL_SECONDS} s") from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or [done.stderr]
        raise CannotInstall(lines[-1].strip()[-300:] or f"exit {done.returncode}")


def quiet_variables(home: Path) -> dict[str, str]:
    """What a peer's process gets: no reports to its makers, nothing written into our home."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TZ") if name in os.environ}
    return kept | {
        "HOME": str(home),
        "TMPDIR": str(home),
        "PYTHONDONTWRITEBYTECODE": "1",
        "DO_NOT_TRACK": "1",
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": str(home / "bentoml"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "ORT_DISABLE_TELEMETRY": "1",
        "OTEL_SDK_DISABLED": "true",
    }
