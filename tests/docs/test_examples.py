"""What README, docs and deploy print is what happens: every command, every output, every link.

With WRITE_OUTPUTS=1 in the environment, what is shown and was not printed is written anew.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from service.cli.main import app as iafvae
from training.cli.main import app as iafvae_train

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "deploy" / "README.md"]
PAGES.append(ROOT / "benchmarks" / "README.md")
KINDS = {"run", "output", "serve", "parse", "not run"}
APPS = {"iafvae": iafvae, "iafvae-train": iafvae_train}
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)|(?:src|href)=\"([^\"]+)\"")

names = [str(page.relative_to(ROOT)) for page in PAGES]
every_page = pytest.mark.parametrize("page", PAGES, ids=names)


@every_page
def test_every_block_says_how_it_is_run(page, pages):
    for block in pages.blocks(page):
        if block.language in pages.CODE:
            assert block.kind in KINDS, block.where
        if block.kind == "not run":
            assert len(block.how) > len("not run: why"), block.where
        if block.kind == "parse":
            assert any(map(invocation, pages.commands(block.text))), block.where


@every_page
@pytest.mark.timeout(600)
def test_examples_run_and_print_what_is_shown(page, pages, place):
    for block in pages.blocks(page):
        if block.kind == "run":
            done = place.run(block.language, block.text)
            code = int(block.how.rpartition("exit ")[2]) if "exit" in block.how else 0
            assert done.returncode == code, f"{block.where}\n{done.stdout}\n{done.stderr}"
        elif block.kind == "serve":
            place.serve(block.text)
        elif block.kind == "output" and not pages.agree(place.printed, block.text):
            shown = f"{block.where} shows\n{block.text}\nprinted was\n{place.printed}"
            assert "WRITE_OUTPUTS" in os.environ, shown
            text, anew = page.read_text(encoding="utf-8"), pages.abridged(place.printed, block.text)
            page.write_text(text.replace(block.text, anew, 1), encoding="utf-8")


def invocation(command: str) -> tuple[str, list[str]] | None:
    """The program of ours that a command line starts, and its arguments."""
    words = shlex.split(re.split(r"\s(?:\|\|?|&&|>>?|2>|&)(?:\s|$)", command)[0])
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if "-m" in words and "training" in words:
        return "iafvae-train", words[words.index("training") + 1 :]
    name = words[0].rpartition("/")[2] if words else ""
    return (name, words[1:]) if name in APPS else None


@every_page
def test_commands_and_options_exist(page, pages):
    """An unknown command or option is an error before `--help` answers."""
    for block in pages.blocks(page):
        if block.language != "sh":
            continue
        checked = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True)
        assert checked.returncode == 0, f"{block.where}: {checked.stderr}"
        for command in pages.commands(block.text):
            if (found := invocation(command)) is not None:
                name, arguments = found
                result = CliRunner().invoke(APPS[name], [*arguments, "--help"])
                assert result.exit_code == 0, f"{block.where}: {command}\n{result.output}"
                for option in demanded(name, arguments):
                    given = [argument.partition("=")[0] for argument in arguments]
                    assert set(option.opts) & set(given), f"{block.where}: {command}: {option.name}"


def demanded(name, arguments):
    """The options without which the command does not run; `--help` asks for none."""
    command = typer.main.get_command(APPS[name])
    for word in arguments:
        command = getattr(command, "commands", {}).get(word, command)
    if "--help" in arguments or "-h" in arguments:
        return []
    return [p for p in command.params if p.required and p.param_type_name == "option"]


@every_page
def test_programs_and_targets_exist(page, monkeypatch):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"^make ([a-z-]+)", text, re.MULTILINE):
        assert target in targets, target
    for program, line in re.findall(r"python -m benchmarks\.(\w+)([^`#]*)", text):
        words = shlex.split(line.partition("\n\n")[0].split("\n    python")[0])
        monkeypatch.setattr("sys.argv", [program, *words])
        importlib.import_module(f"benchmarks.{program}").arguments()  # else it exits


@every_page
def test_variables_are_settings(page):
    from service.settings import Settings

    others = {"IAFVAE_KEY", "IAFVAE_DATA_DIR"}
    known = others | {f"IAFVAE_{name.upper()}" for name in Settings.model_fields}
    named = set(re.findall(r"\bIAFVAE_[A-Z_]*[A-Z]\b(?!\*)", page.read_text(encoding="utf-8")))
    assert named <= known, named - known


@every_page
def test_links_lead_somewhere(page):
    for match in LINK.finditer(page.read_text(encoding="utf-8")):
        target = match[1] or match[3]
        if target and not re.match(r"https?://|mailto:", target):
            assert (page.parent / target).exists(), target
            if target.endswith(".md") and match[2]:
                text = (page.parent / target).read_text(encoding="utf-8")
                assert match[2][1:] in map(slug, re.findall(r"^#+ (.+)$", text, re.MULTILINE))


def test_the_picture_in_the_readme_is_that_of_its_request(tmp_path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert """-d '{"n": 64, "seed": 0}' -o sheet.png""" in text
    shown = ROOT / re.search(r'<img src="([^"]+)"[^>]* alt="64 digits', text)[1]
    sheet = tmp_path / "sheet.png"
    result = CliRunner().invoke(iafvae, ["sample", "-n", "64", "--seed", "0", "-o", str(sheet)])
    assert result.exit_code == 0, result.output
    ours, theirs = (np.asarray(Image.open(file).convert("L"), float) for file in (sheet, shown))
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).mean() < 1  # machines round differently


def slug(heading):
    """What a heading is linked by."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_outputs_agree_by_numbers(pages):
    assert pages.agree("log p -83.52 nats\n", "log p  -83.521 nats")
    assert not pages.agree("log p -83.52 nats\n", "log p -84.1 nats")
    assert pages.agree("[ -47.99 -65.05049]\n", "[-47.99  -65.0505 ]")
    assert not pages.agree("a.png 0.4\n", "b.png 0.4")
    assert pages.agree("a\nb\nc 1.0\nd\n", "a\n...\nc 1.0\nd\n")
    assert not pages.agree("a\nb\nc 1.0\n", "a\n...\nc 2.0\n")
    assert not pages.agree("sha256 12ab", "sha256 12ac")
