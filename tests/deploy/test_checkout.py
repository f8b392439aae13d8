"""A checkout as Git for Windows makes it by default has the same bytes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from service.bundle import load_bundle

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(
    shutil.which("git") is None or not (ROOT / ".git").exists(), reason="needs git and its history"
)
def test_line_ends_are_kept_where_git_would_convert_them(tmp_path):
    clone = tmp_path / "clone"
    convert = ["-c", "core.autocrlf=true", "-c", "core.eol=crlf"]
    subprocess.run(
        ["git", "clone", "--quiet", "--depth", "1", *convert, ROOT.as_uri(), str(clone)],
        check=True,
        capture_output=True,
    )
    bundles = [file.parent for file in (clone / "service" / "bundles").glob("*/manifest.json")]
    assert bundles
    for bundle in bundles:
        load_bundle(bundle)  # every file has its hash
    for script in (*clone.rglob("*.sh"), *clone.rglob("*.py"), clone / "Makefile"):
        assert b"\r\n" not in script.read_bytes(), script
