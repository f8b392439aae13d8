"""The command as a process: whatever its standard streams can hold, and where they are closed."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
from PIL import Image

from service.cli.progress import shown

MAIN = "from service.cli.main import main; main()"
CLOSED = (
    "import os, sys; os.close(%d); os.execv(sys.executable, [sys.executable, '-c', *sys.argv[1:]])"
)
NAME = b"caf\xe9.png"  # Latin-1: no UTF-8


@pytest.fixture
def ran(tiny_bundle):
    def run(*arguments, code=0, program=MAIN, **variables):
        environment = {**os.environ, "IAFVAE_MODELS": str(tiny_bundle), "COLUMNS": "200"}
        done = subprocess.run(
            [sys.executable, "-c", program, *map(str, arguments)],
            env=environment | variables,
            capture_output=True,
            check=False,
        )
        assert done.returncode == code, done.stderr.decode()
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        return done.stdout

    return run


@pytest.fixture
def folder(tmp_path, digits):
    path = tmp_path / "digits"
    path.mkdir()
    with (path / os.fsdecode(NAME)).open("wb") as file:
        Image.fromarray(digits[0][0]).save(file, "PNG")
    return path


@pytest.mark.skipif(sys.platform == "darwin", reason="file names are UTF-8 there")
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_a_name_that_is_no_utf8_is_shown(ran, folder, encoding):
    table = ran("score", folder, PYTHONIOENCODING=encoding)
    assert rb"caf\udce9.png" in table
    listed = ran("score", folder, "--csv", PYTHONIOENCODING=encoding).decode(encoding)
    assert [row["file"] for row in csv.DictReader(io.StringIO(listed))] == [
        f"{folder}/caf\\udce9.png"
    ]


def test_names_that_command_a_terminal(ran, folder, digits, tiny_bundle, tmp_path):
    Image.fromarray(digits[0][0]).save(folder / "\x1b[31m\n.png")
    out = tmp_path / "maps.npy"
    program = "import sys; sys.stderr = sys.stdout\n" + MAIN
    told = ran("anomaly-map", folder, "-o", out, program=program).decode()
    assert "\x1b" not in told
    assert rf"{folder}/\x1b[31m\n.png: the largest box" in told
    strange = tmp_path / "strange"
    shutil.copytree(tiny_bundle, strange)
    manifest = strange / "manifest.json"
    fields = json.loads(manifest.read_text()) | {"license": "MIT\x1b]0;x\x07"}
    manifest.write_text(json.dumps(fields))
    assert r"MIT\x1b]0;x\x07" in ran("bundle", "show", strange).decode()
    strange = strange.rename(tmp_path / "\x1b[31m")
    told = ran("bundle", "verify", strange).decode()
    assert "\x1b" not in told
    assert rf"{tmp_path}/\x1b[31m: " in told


def test_a_bar_names_what_would_command_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    with shown("checking \x1b]0;x\x07"):
        pass
    told = capsys.readouterr().err
    assert r"checking \x1b]0;x\x07" in told
    assert "\x1b]0;x" not in told


def test_a_calibration_whose_name_commands_a_terminal_or_is_computed(
    ran, digits, tiny_bundle, tmp_path
):
    Image.fromarray(digits[0][0]).save(tmp_path / "a.png")
    strange = tmp_path / "strange"
    shutil.copytree(tiny_bundle, strange)
    fields = json.loads((strange / "manifest.json").read_text())
    fields["calibration"]["split"] = "=1+1\x1b[31m"
    (strange / "manifest.json").write_text(json.dumps(fields))
    told = ran("score", tmp_path / "a.png", "--bundle", strange).decode()
    assert r"=1+1\x1b[31m" in told
    assert "\x1b" not in told
    text = ran("score", tmp_path / "a.png", "--bundle", strange, "--csv").decode()
    (row,) = csv.DictReader(io.StringIO(text))
    assert row["calibration/name"] == "./=1+1\x1b[31m"


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="there is no such device")  # noqa: PTH110
def test_latents_of_a_device_without_end(ran):
    ran("sample", "--prior-eps", "/dev/zero", code=1)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_utf8(ran, tiny_bundle, encoding):
    shown = ran("bundle", "show", tiny_bundle, PYTHONIOENCODING=encoding).decode(encoding)
    assert ("±" if encoding == "latin-1" else r"\xb1") in shown


@pytest.mark.parametrize("module", ["service", "training"])
def test_the_command_line_s_module_is_the_command(module):
    program = [sys.executable, "-m", f"{module}.cli.main", "--help"]
    done = subprocess.run(program, capture_output=True, check=True)
    assert b"Usage: " in done.stdout


def test_what_is_no_terminal_gets_whole_lines(ran, tiny_bundle, tmp_path):
    """A program that reads them finds paths and hashes in one piece, and no blanks at the end."""
    deep = tmp_path / ("a folder with a long name " * 4).strip()
    deep.mkdir()
    (deep / "broken.png").write_bytes(b"nothing")
    program = "import os; del os.environ['COLUMNS']; " + MAIN
    for arguments in (["score", deep], ["bundle", "show", tiny_bundle], ["settings"]):
        code = 1 if arguments[0] == "score" else 0
        lines = ran(*arguments, program=program, code=code).decode().splitlines()
        assert [line for line in lines if line != line.rstrip()] == []
        if arguments[0] == "score":
            assert sum(f"{deep}/broken.png" in line for line in lines) == 2  # table, and reason


def test_a_narrow_terminal_gets_a_short_table(ran, folder):
    head = ran("score", folder, COLUMNS="40").decode().splitlines()[1]
    assert re.findall(r"[\w-]+", head) == ["file", "p-value", "verdict"]
    table = ran("score", folder, COLUMNS="70").decode()
    assert "ordinary" in table or "anomalous" in table  # in one piece


TERMINATED = """
import os, signal, numpy as np
from service.cli.local import LocalClient
def stream(*_, **__):
    yield np.zeros((1, 1, 4, 4), np.uint8)
    os.kill(os.getpid(), signal.SIGTERM)
    yield np.zeros((1, 1, 4, 4), np.uint8)
LocalClient.stream = stream
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM ends a process there at once")
def test_what_sigterm_ends_leaves_nothing_half_written(ran, tmp_path):
    out = tmp_path / "here"
    out.mkdir()
    ran("sample", "-n", 2000, "-o", out / "a.npy", program=TERMINATED + MAIN, code=130)
    assert not list(out.iterdir())


@pytest.mark.parametrize("number", [1, 2], ids=["output", "error"])
@pytest.mark.parametrize("form", ["--csv", "--json", None])
def test_a_stream_that_is_closed_takes_nothing(ran, folder, number, form):
    """As `>&-` leaves it."""
    arguments = ["score", folder, *([form] if form else [])]
    output = ran(MAIN, *arguments, program=CLOSED % number)
    assert (output == b"") == (number == 1)


@pytest.mark.parametrize(
    "arguments", [("settings", "--json"), ("bundle", "show", "--json"), ("bundle", "verify")]
)
def test_every_command_has_an_output_that_is_closed(ran, tiny_bundle, arguments):
    where = [tiny_bundle] if arguments[0] == "bundle" else []
    assert ran(MAIN, *arguments, *where, program=CLOSED % 1) == b""


INTERRUPTED = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
sys.meta_path.insert(0, Interrupt())
from %s.__main__ import main
main()
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT of another kind")
@pytest.mark.parametrize("package", ["service", "training"])
def test_an_interrupt_while_modules_are_imported_ends_it_silently(package):
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED % package], capture_output=True, check=False, text=True
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


FULL = (
    "import os, sys; os.dup2(os.open('/dev/full', os.O_WRONLY), 1)\n"
    "from %s import main; sys.argv[0] = 'program'; main()"
)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full device")  # noqa: PTH110
@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("service.__main__", ["--help"]),
        ("service.cli.main", ["--version"]),
        ("service.cli.main", ["bundle", "show", "--help"]),
        ("training.__main__", ["--help"]),
        ("training.__main__", ["fit", "--help"]),
    ],
)
def test_an_output_that_is_full_is_said_in_one_line(module, arguments):
    done = subprocess.run(
        [sys.executable, "-c", FULL % module, *arguments],
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 1
    assert re.fullmatch(r"(iafvae: )?error: .*No space left on device\n", done.stderr), done.stderr
