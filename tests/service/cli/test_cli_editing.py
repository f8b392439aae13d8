"""The commands that change images and go between them, here and on a server."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from service.cli import files
from service.cli.main import app
from service.codecs.npy import encode_npy


@pytest.fixture(scope="module")
def two_groups(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("ladders") / "tiny"
    tiny.write_tiny_bundle(path, latent=tiny.TWO_GROUPS)
    return path


@pytest.fixture
def cli(two_groups, monkeypatch, tmp_path):
    monkeypatch.setenv("IAFVAE_MODELS", str(two_groups))
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()

    def run(*arguments, code=0):
        result = runner.invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == code, result.output + repr(result.exception)
        return result.output

    return run


@pytest.fixture
def digit(tmp_path, digits):
    Image.fromarray(digits[0, 0]).save(tmp_path / "digit.png")
    return tmp_path / "digit.png"


def test_variations_keep_what_they_are_told_to(cli, digit):
    cli("encode", digit, "--prior-eps", "-o", "eps.npy")
    cli("encode", digit, "-o", "z.npy")
    eps, z = np.load("eps.npy"), np.load("z.npy")
    assert eps.shape == z.shape == (1, 3)
    assert not np.allclose(eps, z)
    cli("sample", "--prior-eps", "eps.npy", "-o", "same.npy")
    cli("reconstruct", digit, "-o", "again.npy")
    assert np.abs(np.load("same.npy").astype(int) - np.load("again.npy")).max() <= 1
    options = ("sample", "-n", 5, "--seed", 2, "--prior-eps", "eps.npy")
    cli(*options, "--keep", "top", "-o", "kept.npy")
    cli(*options, "--resample", "low", "-o", "resampled.npy")
    assert np.array_equal(np.load("kept.npy"), np.load("resampled.npy"))
    cli(*options, "--resample", "low", "--resample", "top", "-o", "all.npy")
    cli("sample", "-n", 5, "--seed", 2, "-o", "plain.npy")
    assert np.array_equal(np.load("all.npy"), np.load("plain.npy"))


def test_a_way_between_files_and_seeds(cli, digit):
    cli("interpolate", digit, "--from-seed", 3, "-n", 4, "-o", "way.npy")
    way = np.load("way.npy")
    cli("sample", "-n", 1, "--seed", 3, "-o", "end.npy")
    assert np.array_equal(way[-1:], np.load("end.npy"))
    cli("interpolate", "--from-seed", 1, "--from-seed", 2, "-n", 6, "-o", "strip.png")
    with Image.open("strip.png") as strip:
        assert strip.size == (6 * 6 + 2, 6 + 2), "one row"


def test_the_server_gives_the_same(cli, digit, start_server, two_groups, monkeypatch):
    url = start_server(IAFVAE_MODELS=str(two_groups)).url
    for name, where in (("here", ()), ("there", ("--url", url))):
        cli("encode", digit, "--prior-eps", "-o", f"{name}.npy", *where)
        options = ("--prior-eps", "here.npy", "--keep", "top", "-n", 3, "--seed", 1)
        cli("sample", *options, "-o", f"{name}-edited.npy", *where)
        cli("interpolate", digit, "--from-seed", 3, "-o", f"{name}-way.npy", *where)
        cli("sample", "-n", 1500, "--seed", 1, "-o", f"{name}-many.npy", *where)
    for name in ("", "-edited", "-way", "-many"):
        assert np.array_equal(np.load(f"here{name}.npy"), np.load(f"there{name}.npy")), name
    assert len(np.load("there-many.npy")) == 1500


def test_a_key_is_sent(cli, start_server, two_groups, monkeypatch, tmp_path):
    made = CliRunner().invoke(app, ["key", "ada", "--file", str(tmp_path / "keys.txt")])
    file = str(tmp_path / "keys.txt")
    url = start_server(IAFVAE_MODELS=str(two_groups), IAFVAE_KEYS_FILE=file).url
    assert "key is needed" in cli("sample", "-n", 1, "--url", url, code=1)
    monkeypatch.setenv("IAFVAE_KEY", made.stdout.strip())
    cli("sample", "-n", 1, "--url", url)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("sample", "--keep", "top"), "send it as well"),
        (("sample", "--keep", "top", "-n", 2000, "-o", "many.npy"), "send it as well"),
        (("sample", "--prior-eps", "eps.npy", "--keep", "z9"), "there are top, low"),
        (("sample", "--prior-eps", "zero.npy"), "must have the shape [n, 3], not []"),
        (("sample", "--prior-eps", "none.npy"), "none.npy"),
        (("anomaly-map", "eps.npy", "-o", "map.jpg"), "ends in .png or .npy"),
        (("anomaly-map", "eps.npy", "-o", "maps"), "ends in .png or .npy"),
        (("sample", "--prior-eps", "text.npy"), "text.npy: the body is not npy"),
        (("score", "image.png", "--alpha", 0), "alpha must be between 0 and 1, not 0.0"),
        (("score", "image.png", "--alpha", 1), "alpha must be between 0 and 1, not 1.0"),
        (("interpolate", "--from-seed", 1), "0 images and 1 seeds"),
        (("interpolate",), "0 images and 0 seeds"),
    ],
)
def test_errors_are_one_line(cli, tmp_path, arguments, words):
    (tmp_path / "eps.npy").write_bytes(encode_npy(np.zeros((1, 3), np.float32)))
    Image.new("L", (4, 4)).save(tmp_path / "image.png")
    np.save(tmp_path / "zero.npy", np.zeros((), np.float32))
    (tmp_path / "text.npy").write_text("text")
    output = cli(*arguments, code=1)
    assert words in output
    assert "Traceback" not in output


def test_what_is_interrupted_leaves_the_old_file(tmp_path):
    out = tmp_path / "a.npy"
    out.write_bytes(b"old")

    def pieces():
        yield np.zeros((2, 1, 4, 4), np.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_stream(pieces(), 4, out)
    assert out.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [out]


def test_programs_are_told_who_computed(cli, digit):
    names = {"model", "version", "bundle", "provider", "seed"}
    told = []
    for command in (
        ("sample", "-n", 3, "-o", "few.npy"),
        ("sample", "-n", 1025, "-o", "many.npy"),
        ("encode", digit, "-o", "z.npy"),
        ("reconstruct", digit, "-o", "again.npy"),
        ("anomaly-map", digit, "-o", "map.npy"),
        ("interpolate", digit, "--from-seed", 1, "-o", "way.npy"),
    ):
        found = json.loads(cli(*command, "--json"))
        assert names <= set(found), command
        told.append({name: found[name] for name in names - {"seed"}})
    assert all(each == told[0] for each in told)
    assert "1025 images by tiny 1.2.3, seed" in cli("sample", "-n", 1025, "-o", "many.npy")


def test_more_than_memory_holds_is_said_in_a_line(cli, monkeypatch):
    assert "less than or equal to 2147483647" in cli("sample", "-n", 2**63, "-o", "x.npy", code=2)
    from service.cli.local import LocalClient

    def full(*_, **__):
        raise MemoryError("Unable to allocate 745. GiB")

    monkeypatch.setattr(LocalClient, "interpolate", full)
    way = ("interpolate", "--from-seed", 1, "--from-seed", 2, "-n", 10**9, "-o", "x.npy")
    assert "error: there is not enough memory" in cli(*way, code=1)
