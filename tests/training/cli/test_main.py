"""The console command where the training extra is not installed."""

from __future__ import annotations

import subprocess
import sys

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # what an import finds where torch is not installed
from training.__main__ import main
main()
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_TORCH, *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_help_needs_no_torch() -> None:
    """So it comes at once, and where only the service is installed."""
    result = run("fit", "--help")
    assert result.returncode == 0, result.stderr
    assert "--resume" in result.stdout


def test_without_torch_it_says_what_to_install() -> None:
    result = run("evaluate", "somewhere")
    assert result.returncode == 1
    assert "make install-train" in result.stderr
    assert "pip install -e '.[train]' -c constraints.txt" in result.stderr
    assert "Traceback" not in result.stderr
