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


def test_without_torch_it_says_what_to_install() -> None:
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, "--help"], capture_output=True, text=True
    )
    assert result.returncode == 1
    assert "iafvae[train]" in result.stderr
    assert "Traceback" not in result.stderr
