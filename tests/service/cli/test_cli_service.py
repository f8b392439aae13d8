"""The command line: what it prints, writes and exits with."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.progress import Progress
from typer.testing import CliRunner

from service.cli import files
from service.cli.inputs import Fit, in_chunks, mapped, read_all, score_files
from service.cli.local import LocalClient
from service.cli.main import app
from service.cli.report import ReportOptions, write_report
from service.client import Client
from service.noise import Purpose, image_keys, uniform


@pytest.fixture
def cli(tiny_bundle, monkeypatch):
    monkeypatch.setenv("IAFVAE_MODELS", str(tiny_bundle))
    monkeypatch.setenv("COLUMNS", "200")
    runner = CliRunner()

    def run(*arguments, code=0):
        result = runner.invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == code, result.output + repr(result.exception)
        return result

    return run


@pytest.fixture
def folder(tmp_path, digits):
    path = tmp_path / "digits"
    (path / "more").mkdir(parents=True)
    for index, digit in enumerate(digits):
        where = path if index < 4 else path / "more"
        Image.fromarray(digit[0]).save(where / f"{index}.png")
    return path


def test_help_teaches(cli):
    text = cli("--help").output
    for word in ("serve", "sample", "score", "bundle", "iafvae sample -n 64 --seed 0 -o sheet.png"):
        assert word in text
    assert "SIGTERM" in cli("serve", "--help").output
    assert cli("--version").output.startswith("iafvae ")


def test_help_imports_nothing_heavy():
    code = (
        "import sys, service.cli.main;"
        "heavy = {'numpy', 'onnxruntime', 'fastapi', 'uvicorn', 'httpx', 'PIL'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_application_loads_neither_torch_nor_pillow():
    code = (
        "import sys, service.app;"
        "heavy = {'torch', 'PIL', 'rich', 'typer', 'httpx'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sample_writes_a_sheet_an_array_or_files(cli, tmp_path):
    cli("sample", "-n", 9, "--seed", 0, "-o", tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.size == (20, 20)
    result = cli("sample", "-n", 3, "--seed", 0, "-o", tmp_path / "a.npy")
    assert "seed 0" in result.output
    array = np.load(tmp_path / "a.npy")
    assert array.shape == (3, 1, 4, 4)
    cli("sample", "-n", 3, "--seed", 0, "-o", tmp_path / "files")
    files = sorted((tmp_path / "files").iterdir())
    assert [np.asarray(Image.open(f)).tolist() for f in files] == array[:, 0].tolist()


def test_a_folder_holds_the_pictures_of_one_call(cli, folder, tmp_path):
    """Those of a larger call before would stay, and be taken for the new ones'."""
    out = tmp_path / "pictures"
    cli("sample", "-n", 4, "--seed", 0, "-o", out)
    (out / "mine.png").write_bytes(b"")
    old = {file.name: file.read_bytes() for file in out.iterdir()}
    for command in (
        ("sample", "-n", 2),
        ("reconstruct", folder / "0.png"),
        ("interpolate", "--from-seed", 1, "--from-seed", 2, "-n", 3),
    ):
        said = cli(*command, "-o", out, code=1).stderr
        assert "00003.png" in said
        assert "remove" in said
    assert {file.name: file.read_bytes() for file in out.iterdir()} == old
    cli("sample", "-n", 5, "--seed", 1, "-o", out)
    assert sorted(file.name for file in out.iterdir())[4:] == ["00004.png", "mine.png"]
    assert (out / "00000.png").read_bytes() != old["00000.png"]


def test_names_of_pictures_sort_as_they_are_numbered(tmp_path):
    assert files.picture_names(3) == ["00000.png", "00001.png", "00002.png"]
    many = files.picture_names(100_001)
    assert many == sorted(many)
    assert many[-1] == "100000.png"


def test_temperatures(cli, tmp_path):
    cli("sample", "-n", 2, "-t", 0, "-o", tmp_path / "a.npy")
    array = np.load(tmp_path / "a.npy")
    assert np.array_equal(array[0], array[1])
    text = cli("sample", "-t", 1, "-t", 1, "-o", tmp_path / "b.npy", code=1).output
    assert "one for each latent group (z)" in text


def test_score_as_a_table_json_and_csv(cli, folder):
    table = cli("score", folder).output
    assert "5.png" in table
    assert "K = 16" in table
    rows = json.loads(cli("score", folder, "--json").stdout)
    assert [row["file"][-5:] for row in rows] == [f"{i}.png" for i in range(6)]
    listed = list(csv.DictReader(io.StringIO(cli("score", folder, "--csv").output)))
    assert [float(row["log_likelihood_nats"]) for row in listed] == [
        row["log_likelihood_nats"] for row in rows
    ]


def test_local_and_remote_scores_are_the_same(cli, folder, running, monkeypatch):
    local = cli("score", folder, "--json", "-k", 3, "--seed", 2).output
    remote = cli("score", folder, "--json", "-k", 3, "--seed", 2, "--url", running.url).output
    assert local == remote


@pytest.fixture
def twenty(tmp_path, tiny_model):
    """A folder of 20 pictures of 16 bytes each."""
    path = tmp_path / "twenty"
    path.mkdir()
    for index, image in enumerate(tiny_model.images(20, seed=0)):
        Image.fromarray(image[0]).save(path / f"{index:02d}.png")
    return path


def test_files_are_scored_in_as_many_requests_as_their_k_needs(server, twenty):
    rows = score_files(Client(http=server), [twenty], Fit(), importance_samples=1024)
    assert [row["importance_samples"] for row in rows] == [1024] * 20
    assert server.app.state.shared.settings.max_rows < 20 * 1024


@pytest.mark.parametrize(
    "limits",
    [
        {"max_body_bytes": 200},  # an npy file of four images has 192 bytes
        {"max_images": 7},
        {"max_total_pixels": 100, "max_image_pixels": 100},
        {"max_rows": 31, "max_importance_samples": 16},  # the bundle's own K is 16
    ],
)
def test_images_go_in_requests_that_a_servers_limits_let_in(serve, twenty, tmp_path, limits):
    client = Client(http=serve(**limits))
    assert len(score_files(client, [twenty], Fit())) == 20
    images = read_all(client, [twenty], Fit())
    assert len(in_chunks(client, images, lambda part: client.encode(part).latents)) == 20
    assert len(mapped(client, images, None)[0]) == 20
    out, options = tmp_path / "r.html", ReportOptions()
    report = write_report(client, twenty, out, options, progress=Progress(disable=True))
    assert (report["images"], report["unreadable"]) == (20, [])


def test_too_many_importance_samples_are_refused(cli, folder, running):
    told = "importance_samples: 99999999999 is above the limit of"
    remote = cli("score", folder, "-k", 99999999999, "--url", running.url, code=1).stderr
    assert f"{told} 1024" in remote
    local = cli("score", folder, "-k", 99999999999, code=1).stderr
    assert f"{told} 10000" in local


def test_ten_thousand_importance_samples_are_taken_here(cli, folder):
    row = json.loads(cli("score", folder / "0.png", "-k", 10_000, "--json").stdout)[0]
    assert row["importance_samples"] == 10_000
    assert 1 < row["effective_sample_size"] <= 10_000
    assert row["log_likelihood_nats"] >= row["elbo_nats"], "Jensen's inequality"


@pytest.mark.parametrize(
    "arguments",
    [
        ("sample", "-n", 1, "-o", ""),
        ("sample", "--out="),
        ("sample", "--prior-eps", ""),
        ("sample", "--bundle", ""),
        ("score", ""),
        ("score", "0.png", ""),
        ("interpolate", "", ""),
        ("report", ""),
        ("doctor", "--models", ""),
        ("bundle", "show", ""),
        ("bundle", "verify", ""),
        ("sample", "-n", 1, "-o", "-"),
        ("score", "-"),
    ],
)
def test_an_empty_name_or_a_dash_is_no_file(cli, folder, monkeypatch, arguments):
    """Neither the current directory nor a file that is named so."""
    monkeypatch.chdir(folder)
    before = set(folder.iterdir())
    said = "standard input or output" if "-" in arguments else "empty"
    assert f"it is {said}: name a file or folder" in cli(*arguments, code=2).output
    assert set(folder.iterdir()) == before


def test_altered_files_are_judged_as_such_by_a_server_too(cli, folder, running):
    Image.new("L", (9, 9)).save(folder / "2.png")
    local = cli("score", folder, "--json", "--resize").stdout
    assert [row["status"] for row in json.loads(local)].count("altered") == 1
    assert local == cli("score", folder, "--json", "--resize", "--url", running.url).stdout


def test_a_verdict_has_its_evidence_and_its_calibration(cli, folder):
    row = json.loads(cli("score", folder / "0.png", "--json").stdout)[0]
    assert 0 < row["evidence"]["log_likelihood"] <= 1
    assert row["calibration"].keys() == {"name", "images", "date"}
    assert (row["alpha"], row["note"]) == (0.01, None)
    listed = next(csv.DictReader(io.StringIO(cli("score", folder / "0.png", "--csv").stdout)))
    assert float(listed["evidence/log_likelihood"]) == row["evidence"]["log_likelihood"]
    assert listed["calibration/images"] == str(row["calibration"]["images"])
    assert f"among {row['calibration']['images']} images" in cli("score", folder).stdout


def test_a_folder_is_no_stream_that_drifts(tiny_bundle, caplog):
    noise = np.random.default_rng(0).integers(0, 256, (300, 1, 4, 4), dtype=np.uint8)
    with LocalClient.open(tiny_bundle, None, "cpu") as client:
        client.score(noise)
    assert "no longer like" not in caplog.text


def test_discoveries_that_cannot_be_are_told(cli, folder):
    told = cli("score", folder, "--json", "--fdr", 1e-6)
    assert "discovers nothing among 6 images" in told.stderr
    assert all(row["discovery"] is False for row in json.loads(told.stdout))


def test_what_is_alike_of_many_files_is_told_once(cli, tmp_path):
    for name in ("a", "b", "c"):
        canvas = Image.new("LA", (4, 4), (255, 255))
        canvas.putpixel((0, 0), (255, 0))
        canvas.save(tmp_path / f"{name}.png")
    told = cli("score", tmp_path).output
    first = tmp_path / "a.png"
    assert f"{first} (and 2 more) is partly transparent and was put on black" in told
    assert told.count("transparent") == 1


def test_what_was_done_to_an_image_is_told(cli, folder, tmp_path):
    canvas = Image.new("LA", (4, 4), (255, 255))
    canvas.putpixel((0, 0), (255, 0))
    canvas.save(folder / "clear.png")
    Image.new("L", (9, 9)).save(folder / "large.png")
    told = "clear.png is partly transparent and was put on black"
    assert told in cli("score", folder, "--resize").output
    rows = json.loads(cli("score", folder, "--resize", "--json").stdout)
    notes = {row["file"][-9:]: row["note"] for row in rows if row["note"]}
    assert notes == {"clear.png": told}
    page = tmp_path / "page.html"
    cli("report", folder, "--resize", "-o", page)
    assert told in page.read_text()
    for command in ("anomaly-map", "reconstruct", "encode"):
        out = tmp_path / "out.npy"
        said = cli(command, folder, "--resize", "-o", out).stderr
        assert told in said
        assert "large.png was resized or converted" in said
        assert said.count("note: ") == 2 + (command == "anomaly-map")


def test_what_was_passed_over_and_why_nothing_is_decided_are_told(cli, folder, tmp_path):
    (folder / "notes.txt").write_text("x")
    for name in ("a.gif", "more/b.GIF"):
        (folder / name).write_bytes(b"GIF89a")
    Image.new("L", (9, 9), 255).save(folder / "large.png")
    passed = f"note: {folder}: other files, passed over: 2 .gif, 1 .txt"
    told = cli("score", folder, "--resize", "-k", 16).stderr.splitlines()
    assert told[0] == passed
    assert told[-1].startswith("note: no decision on 1: the image was resized or converted")
    told = cli("score", folder, "--resize", "-k", 3, "--json").stderr
    assert (
        "no decision on 7: the model, or this number of importance samples, has no calibration"
        in told
    )
    for command in ("anomaly-map", "report"):
        out = tmp_path / ("x.html" if command == "report" else "x.png")
        assert cli(command, folder, "--resize", "-o", out).stderr.count(passed) == 1
    (folder / "wide.png").write_bytes((folder / "large.png").read_bytes())
    assert "set resize=true or --resize (" in cli("score", folder, code=1).output


def test_a_standard_error_that_means_nothing_is_told_as_the_service_does(cli, folder, server):
    """Of two draws one has most of the weight."""
    files = {"files": (folder / "0.png").read_bytes()}
    served = server.post("/v1/score?importance_samples=2", files=files).json()["notes"]
    assert "means nothing" in served[0]
    assert cli("score", folder / "0.png", "-k", 2).stderr.startswith(f"note: {served[0]}\n")


def test_an_anomaly_map_tells_the_largest_boxes(cli, folder, tmp_path):
    out = tmp_path / "map.png"
    said = cli("anomaly-map", folder, "-o", out).stderr
    assert said.count("the largest box, ") == 6
    assert "one latent group" in said
    cli("report", folder, "-o", tmp_path / "page.html")
    assert "one latent group" in (tmp_path / "page.html").read_text()
    found = json.loads(cli("anomaly-map", folder, "-o", out, "--json").stdout)["results"]
    assert [row["file"][-5:] for row in found] == [f"{i}.png" for i in range(6)]
    assert all(0 < box["p_value"] <= 1 for row in found for box in row["boxes"])


@pytest.mark.skipif(sys.platform == "win32", reason="no such device")
def test_what_has_no_end_is_not_read_to_it(cli, folder, monkeypatch):
    monkeypatch.setattr("service.codecs.folders.MAX_FILE_BYTES", 2**12)
    rows = json.loads(cli("score", "/dev/zero", folder / "2.png", "--json", code=1).stdout)
    assert "too large" in rows[0]["error"]
    assert "error" not in rows[1]


def test_files_that_cannot_be_scored_are_listed(cli, folder):
    (folder / "2.png").write_bytes(b"no image")
    Image.new("L", (9, 9)).save(folder / "3.png")
    rows = json.loads(cli("score", folder, "--json", code=1).stdout)
    assert "PNG" in rows[2]["error"]
    assert "resize" in rows[3]["error"]
    assert rows[4]["p_value"] is not None
    resized = json.loads(cli("score", folder / "3.png", "--resize", "--json").stdout)
    assert resized[0]["altered"] is True


def test_folders_are_read_as_training_reads_them(cli, folder, tmp_path):
    """Hidden copies and what never ends are passed over, links followed, or named as errors."""
    before = {row["file"] for row in json.loads(cli("score", folder, "--json").stdout)}
    hidden = folder / ".ipynb_checkpoints"
    hidden.mkdir()
    Image.new("L", (4, 4)).save(hidden / "0-checkpoint.png")
    (folder / ".0.png").write_bytes(b"junk")
    os.mkfifo(folder / "pipe.png")
    (folder / "dir.png").mkdir()
    told = cli("score", folder, "--json")
    assert {row["file"] for row in json.loads(told.stdout)} == before
    assert f"note: {folder}: pipes and devices, passed over: pipe.png" in told.stderr
    more = tmp_path / "more"
    more.mkdir()
    Image.new("L", (4, 4)).save(more / "one.png")
    (folder / "linked").symlink_to(more)
    (folder / "gone.png").symlink_to("nowhere")
    rows = json.loads(cli("score", folder, "--json", code=1).stdout)
    new = {row["file"]: "error" in row for row in rows if row["file"] not in before}
    assert new == {f"{folder}/linked/one.png": False, f"{folder}/gone.png": True}
    assert {row["error"] for row in rows if "error" in row} == {"No such file or directory"}


@pytest.mark.skipif(sys.platform == "win32", reason="no such names")
def test_names_are_no_commands_for_a_terminal(cli, folder):
    (folder / "a\x1b[31m\nb.png").write_bytes((folder / "2.png").read_bytes())
    (folder / "c\x1b]0;d\x07.png").write_bytes(b"no image")
    said = cli("score", folder, code=1)
    assert "\x1b" not in said.stdout + said.stderr
    text = "".join(re.sub(r"[│\s]", "", said.stdout))
    assert "a\\x1b[31m\\nb.png" in text
    assert "c\\x1b]0;d\\x07.png" in text


def test_brackets_in_names_are_no_markup(cli, tmp_path, digits):
    Image.fromarray(digits[0][0]).save(tmp_path / "[red]a[.png")
    (tmp_path / "b[").mkdir()
    (tmp_path / "b[" / "bold]c.png").write_bytes(b"no image")
    table = cli("score", tmp_path, code=1).output
    assert "[red]a[.png" in table
    assert "b[/bold]c.png" in table


def test_anomalies_may_fail(cli, folder):
    cli("score", folder, "--alpha", 0.999, "--fail-on-anomalous", code=3)
    cli("score", folder, "-k", 3, "--fail-on-anomalous", code=4)  # nobody knows
    for index in range(6):
        (folder / f"{index}.png").write_bytes(b"no image")
        (folder / "more" / f"{index}.png").write_bytes(b"no image")
    cli("score", folder, "--fail-on-anomalous", code=1)


def test_encode_and_reconstruct(cli, folder, digits, tiny_model, tmp_path):
    cli("encode", folder, "-o", tmp_path / "z.npy")
    seen = uniform(0, image_keys(digits), 0, 16, Purpose.PIXELS)  # grey pixels, black or white
    exact = tiny_model.posterior_mean(digits, seen)
    assert np.allclose(np.load(tmp_path / "z.npy"), exact, atol=1e-5)
    cli("reconstruct", folder, "-o", tmp_path / "r.npy")
    assert np.load(tmp_path / "r.npy").shape == (6, 1, 4, 4)
    cli("reconstruct", folder, "-o", tmp_path / "r.png")
    with Image.open(tmp_path / "r.png") as image:
        assert np.array_equal(np.asarray(image)[2:6, 2:6], digits[0, 0])


def test_bundles_are_verified_and_shown(cli, tiny_bundle, tmp_path):
    assert "is sound" in cli("bundle", "verify", tiny_bundle).output
    shown = cli("bundle", "show", tiny_bundle).output
    assert "-9.50" in shown
    manifest = json.loads(cli("bundle", "show", tiny_bundle, "--json").output)
    assert manifest["name"] == "tiny"
    assert str(tmp_path) in cli("bundle", "verify", tmp_path, code=1).output


def test_many_bundles_are_verified_with_their_whole_hashes(cli, root, edition, put):
    bad = put(edition("1.10.0"), root / "b")
    (bad / "calibration.npz").write_bytes(b"")
    text = cli("bundle", "verify", root, edition("1.9.0"), code=1).output
    known = hashlib.sha256((root / "a" / "manifest.json").read_bytes()).hexdigest()
    assert text.count(f"sha256 {known}") == 2
    assert f"{bad}: NOT SOUND" in text
    checks = json.loads(cli("bundle", "verify", root, "--json", "--no-canaries", code=1).output)
    assert [check["sha256"] for check in checks] == [known, None]
    assert "calibration.npz" in checks[1]["error"]


def test_a_bundle_that_cannot_be_read_keeps_no_other_from_being_verified(
    cli, root, edition, put, monkeypatch
):
    put(edition("1.10.0"), root / "b")
    read = Path.read_bytes

    def fails(path):
        if path.parent.name == "a":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", fails)
    text = cli("bundle", "verify", root, "--no-canaries", code=1).output
    assert f"{root / 'a'}: NOT SOUND" in text
    assert "Permission denied" in text
    assert "1.10.0 is sound" in text


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("score", "nowhere.png"), 1, "nowhere.png does not exist"),
        (("score", "."), 1, "holds no"),
        (("score",), 2, "PATH"),
        (("score", "a.png", "--json", "--csv"), 2, "exclude"),
        (("score", ".", "--fdr", 0), 1, "fdr must be between 0 and 1, not 0.0"),
        (("score", ".", "--fdr", "nan"), 1, "fdr must be between 0 and 1, not nan"),
        (("report", ".", "--fdr", 1), 1, "fdr must be between 0 and 1, not 1.0"),
        (("sample", "-n", 0), 2, "n"),
        (("sample", "-o", "a.gif"), 1, ".png or .npy"),
        (("sample", "-o", "v1.2/"), 1, ".png or .npy, or for a directory one without a dot"),
        (("sample", "--prior-eps", "no.npy"), 1, "error: no.npy: No such file or directory"),
        (("sample", "--bundle", "nowhere"), 1, "no bundle at nowhere"),
        (("sample", "--model", "other"), 1, "'other'"),
        (("sample", "--url", "http://127.0.0.1:9"), 1, "no answer"),
        (("sample", "--url", "http://127.0.0.1:9", "--provider", "cpu"), 1, "excludes"),
        (("nonsense",), 2, "nonsense"),
    ],
)
def test_errors_are_one_line(cli, tmp_path, monkeypatch, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    output = cli(*arguments, code=code).output
    assert words in output
    assert "Traceback" not in output


def ran(cli, root, *arguments, code=0):
    return cli("sample", "-n", 1, "--bundle", root, "-o", root / "a.npy", *arguments, code=code)


def test_a_model_is_chosen_as_a_server_chooses(cli, root, edition, put):
    """By the manifest's name, whatever the directory is called; the newest release."""
    for folder, version in (("z", "1.10.0"), ("b", "1.2.0"), ("c", "2.0.0-rc.1")):
        put(edition(version), root / folder)
    (root / "0").mkdir()
    (root / "0" / "manifest.json").write_text("{")  # a server leaves it aside, too
    assert "tiny 1.10.0" in ran(cli, root).output
    assert "tiny 1.10.0" in ran(cli, root, "--model", "tiny").output
    assert "tiny 1.2.0" in ran(cli, root, "--model", "tiny@1.2.0").output
    assert "tiny 2.0.0-rc.1" in ran(cli, root, "--model", "tiny@2.0.0-rc.1").output
    for wrong in ("z", "tiny@3", "tiny@"):
        text = ran(cli, root, "--model", wrong, code=1).output
        assert f"there is no model {wrong!r}" in text
        assert "there are tiny@1.9.0, tiny@1.2.0, tiny@2.0.0-rc.1, tiny@1.10.0" in text


def test_where_no_manifest_can_be_read_the_first_says_why(cli, root):
    (root / "a" / "manifest.json").write_text("{")
    assert "manifest.json" in ran(cli, root, code=1).output


def test_verification_computes_where_the_settings_say(cli, tiny_bundle, monkeypatch):
    monkeypatch.setenv("IAFVAE_PROVIDER", "cuda")
    monkeypatch.setenv("IAFVAE_DEVICE", "99")  # no machine has so many
    assert "NOT SOUND" in cli("bundle", "verify", tiny_bundle, code=1).output
    cli("bundle", "verify", tiny_bundle, "--no-canaries")
    assert "agree on cpu" in cli("bundle", "verify", tiny_bundle, "--provider", "cpu").output


@pytest.mark.parametrize("command", ["sample", "encode", "reconstruct", "interpolate"])
@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("a.gif", "a.gif: use a name that ends in"),
        ("nowhere/a.npy", "nowhere/a.npy: there is no directory nowhere"),
        ("folder.npy", "folder.npy is a directory"),
    ],
)
def test_where_nothing_can_be_written_nothing_is_computed(
    cli, folder, tmp_path, monkeypatch, command, out, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.npy").mkdir()
    monkeypatch.setattr("service.cli.inputs.open_backend", None)  # would fail, were it called
    paths = [] if command == "sample" else [folder]
    assert words in cli(command, *paths, "-o", out, code=1).output


def test_a_file_is_no_directory_of_images(cli, tmp_path):
    (tmp_path / "files").touch()
    assert "files is a file" in cli("sample", "-o", tmp_path / "files", code=1).output


def test_what_is_wrong_is_said_without_a_web_server():
    code = (
        "import sys; from typer.testing import CliRunner; from service.cli.main import app;"
        "run = lambda *given: CliRunner().invoke(app, given).exit_code;"
        "assert run('settings') == 1 and run('--version') == 0;"
        "assert not {'uvicorn', 'fastapi', 'starlette'} & set(sys.modules)"
    )
    environment = {**os.environ, "IAFVAE_PROT": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


@pytest.mark.parametrize(
    ("url", "key", "words"),
    [
        ("http://[::1", "", "--url 'http://[::1' is not a URL"),
        ("http://a..b", "", "--url 'http://a..b' is not a URL"),
        ("127.0.0.1:8000", "", "'127.0.0.1:8000' begins with neither http:// nor https://"),
        ("http://127.0.0.1:9", "schlüssel", "IAFVAE_KEY is not a key"),
    ],
)
def test_what_is_no_url_or_key_is_told(cli, monkeypatch, url, key, words):
    monkeypatch.setenv("IAFVAE_KEY", key)
    assert words in cli("sample", "--url", url, code=1).output


def test_what_was_made_is_told_as_json(cli, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def told(*arguments):
        return json.loads(cli(*arguments, "--json").stdout)

    drawn = told("sample", "-n", 3, "--seed", 0, "-o", "a.npy")
    assert (drawn["file"], drawn["images"], drawn["seed"]) == ("a.npy", 3, 0)
    assert (drawn["model"], drawn["version"]) == ("tiny", "1.2.3")
    assert told("encode", folder)["shape"] == [6, 3]
    for command in ("anomaly-map", "reconstruct", "report"):
        assert told(command, folder)["images"] == 6
    assert told("interpolate", "--from-seed", 1, "--from-seed", 2)["images"] == 8
    made = told("key", "ada")
    assert hashlib.sha256(made["key"].encode()).hexdigest() in made["line"]


def test_every_command_that_makes_something_can_tell_it_as_json():
    import typer

    def leaves(command):
        below = getattr(command, "commands", None)
        return [command] if below is None else [leaf for c in below.values() for leaf in leaves(c)]

    commands = {
        c.name: {o for p in c.params for o in p.opts} for c in leaves(typer.main.get_command(app))
    }
    assert {name for name, options in commands.items() if "--json" not in options} == {"serve"}
