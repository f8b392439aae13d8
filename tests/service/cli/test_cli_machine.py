"""`iafvae settings` and `iafvae doctor`: what is in force, and what this machine has."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli.main import app
from service.settings import Settings

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def cli(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("IAFVAE_PORT", "0")

    def run(*arguments, code=0):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == code, result.output + repr(result.exception)
        return result.output

    return run


def as_json(cli, *arguments, code=0):
    return json.loads(cli(*arguments, "--json", code=code))


def test_every_setting_is_shown_with_its_value_in_force(cli, monkeypatch):
    monkeypatch.setenv("IAFVAE_MAX_QUEUE_ROWS", "20000")
    monkeypatch.setenv("IAFVAE_CORS_ORIGINS", "https://a.example, https://b.example")
    found = {one["variable"]: one for one in as_json(cli, "settings")}
    assert list(found) == [f"IAFVAE_{name.upper()}" for name in Settings.model_fields]
    assert found["IAFVAE_MAX_QUEUE_ROWS"]["value"] == "20000"
    assert found["IAFVAE_MAX_QUEUE_ROWS"]["default"] == "32768"
    assert found["IAFVAE_CORS_ORIGINS"]["value"] == "https://a.example,https://b.example"
    assert all(len(one["meaning"]) > 5 for one in found.values())
    shown = cli("settings")
    assert re.search(r"IAFVAE_MAX_QUEUE_ROWS +20000 \(default: 32768\) +rows", shown)


def test_what_is_printed_can_be_set(cli, monkeypatch):
    """Values are written as a variable would be: read again, they are the same settings."""
    before = as_json(cli, "settings")
    for one in before:
        monkeypatch.setenv(one["variable"], one["value"])
    assert as_json(cli, "settings") == before


def test_a_full_disk_is_told_with_the_file(cli, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    said = cli("sample", "-n", 1, "-o", tmp_path / "one.png", code=1)
    assert f"{tmp_path / 'one.png'} cannot be written: No space left on device" in said
    assert not list(tmp_path.iterdir())


def test_a_wrong_setting_is_named(cli, monkeypatch):
    monkeypatch.setenv("IAFVAE_PROT", "1")
    assert "did you mean IAFVAE_PORT" in cli("settings", code=1)


def test_the_page_of_settings_is_the_table(cli, monkeypatch):
    monkeypatch.setenv("IAFVAE_MAX_N", "7")  # the page has defaults, whatever is in force
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert cli("settings", "--markdown") == page, "make docs"


def found(cli, *arguments, code=0):
    lines = as_json(cli, "doctor", *arguments, code=code)
    return {line["subject"]: (line["state"], line["text"]) for line in lines}


def test_a_machine_that_will_serve(cli, tiny_bundle):
    lines = found(cli, "--models", tiny_bundle, "--provider", "cpu")
    digest = hashlib.sha256((tiny_bundle / "manifest.json").read_bytes()).hexdigest()
    assert lines["model"] == ("ok", f"tiny 1.2.3 in {tiny_bundle}, sha256 {digest}")
    assert lines["computes"] == ("ok", "cpu: IAFVAE_PROVIDER=cpu")
    assert lines["keys"][0] == "note"
    assert "ok" in cli("doctor", "--models", tiny_bundle)


def test_why_it_computes_on_the_cpu(cli, tiny_bundle, monkeypatch):
    from service.engine import choice
    from service.engine import onnxruntime_engine as engine

    for module in (engine, choice):
        monkeypatch.setattr(module, "gpu_problem", lambda _device=0: "there is no driver")
    lines = found(cli, "--models", tiny_bundle)
    assert lines["computes"] == ("ok", "cpu: IAFVAE_PROVIDER=auto, and there is no driver")
    state, text = found(cli, "--models", tiny_bundle, "--provider", "cuda", code=1)["model"]
    assert state == "missing"
    assert "there is no driver" in text


def test_what_is_missing(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("IAFVAE_KEYS_FILE", str(tmp_path / "keys"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("IAFVAE_PORT", str(taken.getsockname()[1]))
        lines = found(cli, "--models", tmp_path, code=1)
    assert lines["models"][0] == lines["address"][0] == lines["keys"][0] == "missing"
    assert "IAFVAE_MODELS" in lines["models"][1]
    assert "IAFVAE_PORT" in lines["address"][1]


def test_a_host_that_is_none_is_missing(cli, tiny_bundle, monkeypatch):
    monkeypatch.setenv("IAFVAE_HOST", "..")
    lines = found(cli, "--models", tiny_bundle, "--provider", "cpu", code=1)
    assert lines["address"][0] == "missing"


def test_training_is_not_needed(cli, tiny_bundle, monkeypatch):
    from importlib.metadata import PackageNotFoundError

    from service.cli import doctor

    def version(name):
        if name == "torch":
            raise PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(doctor, "version", version)
    state, text = found(cli, "--models", tiny_bundle)["training"]
    assert state == "note"
    assert "pip install -e '.[train]' -c constraints.txt" in text
