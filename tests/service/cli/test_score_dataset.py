"""Bulk scoring on a real Ray cluster of two nodes: the service's numbers, each image once."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.errors import InvalidInput

ray = pytest.importorskip("ray")
pq = pytest.importorskip("pyarrow.parquet")
pa = pytest.importorskip("pyarrow")
program = importlib.import_module("service.cli.score_dataset")

PROGRAM = Path(sys.executable).with_name("iafvae-score-dataset")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 << 20},
    )
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of 40 pictures of 4x4 pixels, one of which is none."""
    folder = tmp_path_factory.mktemp("pictures")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 4, 4), np.uint8)
    for index, one in enumerate(pixels):
        Image.fromarray(one).save(folder / f"{index:03d}.png")
    (folder / "013.png").write_bytes(b"no picture")
    return folder


def start(cluster, source, bundle, out, *more):
    command = [PROGRAM, source, "--bundle", bundle, "--out", out, *more]
    command += ["--address", cluster.address, "--importance-samples", "4"]
    return subprocess.Popen([str(w) for w in command], stderr=subprocess.PIPE, text=True)


def run(*args):
    process = start(*args)
    told = process.communicate(timeout=200)[1]
    assert process.returncode == 0, told[-2000:]
    return told


def results(out):
    """Rows by the name of the picture."""
    rows = [row for file in sorted(out.glob("part-*")) for row in pq.read_table(file).to_pylist()]
    found = {row["id"].rpartition("/")[2]: row for row in rows}
    assert len(found) == len(rows) == 40
    return found


@pytest.fixture(scope="module")
def expected(tiny_bundle, pictures, model_bench):
    """What `score` of one machine says of the good ones."""
    from service.operations.model import Model

    good = [file for file in sorted(pictures.iterdir()) if file.name != "013.png"]
    images = np.array([np.asarray(Image.open(file))[None] for file in good])
    perform = model_bench.performer(Model.load(tiny_bundle, provider="cpu", workers=1))
    scores = perform(lambda model: model.score(images, importance_samples=4))
    return dict(zip([file.name for file in good], scores.log_likelihood_nats, strict=True))


@pytest.mark.slow  # Ray alone takes ten seconds to start, and minutes on a machine that is busy
def test_the_numbers_are_the_services_and_a_lost_node_loses_none(
    cluster, pictures, tiny_bundle, expected, tmp_path
):
    node = cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    out = tmp_path / "out"
    parts = ("--part-images", "2", "--workers", "2")
    process = start(cluster, pictures, tiny_bundle, out, *parts)
    while process.poll() is None and not list(out.glob("part-*")):
        time.sleep(0.05)
    cluster.remove_node(node, allow_graceful=False)
    told = process.communicate(timeout=200)[1]
    assert process.returncode == 0, told[-2000:]
    found = results(out)
    assert {
        name: row["log_likelihood_nats"] for name, row in found.items() if row["error"] is None
    } == expected
    assert "013.png" in found["013.png"]["error"]
    assert found["013.png"]["log_likelihood_nats"] is None

    files = {file: file.stat().st_mtime_ns for file in out.glob("part-*")}
    lost = sorted(files)[3]
    lost.unlink()
    told = run(cluster, pictures, tiny_bundle, out, *parts[:2])
    assert "20 parts, 19 of them done before" in told
    again = {file: file.stat().st_mtime_ns for file in out.glob("part-*")}
    assert {f for f in files if again[f] != files[f]} == {lost}
    assert results(out) == found


def test_folders_tar_shards_and_parquet_give_the_same(pictures, tiny_bundle, expected, tmp_path):
    """Read without Ray: a part is the same work wherever it runs."""
    files = sorted(pictures.iterdir())
    shards = tmp_path / "shards"
    shards.mkdir()
    with tarfile.open(shards / "a.tar", "w") as tar:
        for file in files:
            tar.add(file, file.name)
    table = {"id": [f.name for f in files], "image": [f.read_bytes() for f in files]}
    tables = tmp_path / "tables"
    tables.mkdir()
    pq.write_table(pa.table(table), tables / "a.parquet", row_group_size=16)
    options = program.Options(bundle=str(tiny_bundle), importance_samples=4)
    for source in (pictures, shards, tables):
        out = tmp_path / f"{source.name}-out"
        rows = program.unfinished(program.parts_of(str(source), 8), options, str(out))
        worker = program.Worker(options, str(source), str(out))
        assert sum(worker(row)["errors"] for row in rows) == 1
        found = results(out)
        assert {n: r["log_likelihood_nats"] for n, r in found.items() if not r["error"]} == expected
        worker.loop.run(worker.model.stop())
        worker.loop.close()
    with pytest.raises(InvalidInput, match="another job"):
        program.unfinished([{"tar": "x"}], options, str(out))
    assert not list(out.glob(".*"))  # nothing half written is left


def test_folders_and_shards_have_the_images_that_the_command_line_sees(tmp_path):
    """What is hidden is passed over, as macOS's companions of files are; the source may be."""
    root = tmp_path / ".cache"
    names = ["a.png", "b.jfif", "sub/c.JPG"]
    for name in (
        *names,
        ".d.png",
        "._a.png",
        "__MACOSX/e.png",
        "sub/.f/g.png",
        "h.txt",
        ".c/x.parquet",
        "._s.tar",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    (part,) = program.parts_of(str(root), 100)
    assert part["files"] == [f"{root}/{name}" for name in names]
    assert program.parts_of(f"{root}/a.png", 100) == [{"files": [f"{root}/a.png"]}]
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        shard.add(root, ".")
    (part,) = program.parts_of(str(tmp_path / "shard.tar"), 100)
    found = program.read_part(program.place(str(tmp_path))[0], part)
    assert {name.partition(".tar/")[2].removeprefix("./") for name, _ in found} == set(names)


def test_maps_are_those_of_one_machine(pictures, tiny_bundle, model_bench, tmp_path):
    from service.operations.model import Model

    options = program.Options(bundle=str(tiny_bundle), operation="map")
    rows = program.unfinished(program.parts_of(str(pictures), 8), options, str(tmp_path))
    worker = program.Worker(options, str(pictures), str(tmp_path))
    assert sum(worker(row)["errors"] for row in rows) == 1
    worker.loop.run(worker.model.stop())
    worker.loop.close()
    found = results(tmp_path)
    good = [file for file in sorted(pictures.iterdir()) if file.name != "013.png"]
    images = np.array([np.asarray(Image.open(file))[None] for file in good])
    perform = model_bench.performer(Model.load(tiny_bundle, provider="cpu", workers=1))
    wanted = perform(lambda model: model.anomaly_map(images, boxes=1))
    for file, each, boxes in zip(good, wanted.maps, wanted.boxes, strict=True):
        assert found[file.name]["map"] == each.ravel().tolist()
        assert found[file.name]["largest_box"]["deviations"] == boxes[0].deviations
    assert found["013.png"]["map"] is None


def test_a_shard_that_is_cut_off_is_a_row_with_an_error_after_what_it_has(
    pictures, tiny_bundle, tmp_path
):
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    shard = source / "a.tar"
    with tarfile.open(shard, "w") as tar:
        tar.add(pictures / "000.png", "000.png")
        tar.add(pictures / "001.png", "001.png")
        cut = tar.offset - 512  # within the second, of which each takes 1024 bytes
    shard.write_bytes(shard.read_bytes()[:cut])
    (source / "b.tar").write_bytes(b"no shard")
    options = program.Options(bundle=str(tiny_bundle), importance_samples=1)
    worker = program.Worker(options, str(source), str(out))
    for row in program.unfinished(program.parts_of(str(source), 8), options, str(out)):
        worker(row)
    worker.loop.run(worker.model.stop())
    worker.loop.close()
    rows = {row["id"].rpartition("/")[2]: row for row in pq.read_table(out).to_pylist()}
    assert {name for name, row in rows.items() if row["error"]} == {"a.tar", "b.tar"}
    assert "breaks off" in rows["a.tar"]["error"]
    assert rows["000.png"]["log_likelihood_nats"] is not None


def test_a_file_that_is_gone_is_a_row_that_says_why(tmp_path):
    system = program.place(str(tmp_path))[0]
    (tmp_path / "b.png").write_bytes(b"")
    found = dict(program.read_part(system, {"files": [f"{tmp_path}/{n}.png" for n in "ab"]}))
    assert "a.png cannot be read: " in str(found[f"{tmp_path}/a.png"])
    assert found[f"{tmp_path}/b.png"] == b""


def test_what_fails_on_a_node_is_said_in_one_line(monkeypatch, capsys, tmp_path):
    def fail(*_):
        raise ray.exceptions.RayTaskError("map", "Traceback:\nOSError: no space left", None)

    monkeypatch.setattr(program, "parts_of", fail)
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path), "--bundle", "b", "--out", "o"])
    with pytest.raises(SystemExit) as stopped:
        program.run()
    assert f"{stopped.value}".startswith("iafvae-score-dataset: error: OSError: no space left;")


def test_tables_without_images_are_refused_at_once(tmp_path):
    pq.write_table(pa.table({"picture": [b""]}), tmp_path / "a.parquet")
    with pytest.raises(InvalidInput, match="no column `image`"):
        program.parts_of(str(tmp_path), 8)


@pytest.mark.parametrize(
    ("operation", "column"), [("score", "p_value"), ("encode", "latent"), ("map", "largest_box")]
)
def test_a_part_of_bad_images_alone_hides_no_columns_of_the_others(
    operation, column, pictures, tiny_bundle, tmp_path
):
    """What reads a folder of Parquet takes the columns of its first file."""
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    (source / "a.png").write_bytes(b"no picture")
    (source / "b.png").write_bytes((pictures / "000.png").read_bytes())
    options = program.Options(bundle=str(tiny_bundle), operation=operation)
    worker = program.Worker(options, str(source), str(out))
    for row in program.unfinished(program.parts_of(str(source), 1), options, str(out)):
        worker(row)
    worker.loop.run(worker.model.stop())
    worker.loop.close()
    bad, good = pq.read_table(out).to_pylist()
    assert (bad["error"] is None, bad[column] is None) == (False, True)
    assert (good["error"] is None, good[column] is None) == (True, False)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (("nowhere", "--bundle", "{bundle}", "--out", "out"), "nowhere"),
        ((".", "--bundle", "{bundle}", "--out", "out"), "holds no images"),
        (("{pictures}", "--bundle", "nowhere", "--out", "out"), "nowhere is no directory"),
        (("{pictures}", "--bundle", "{bundle}", "--out", "xx://me:hunter2@out"), "xx"),
        (("{pictures}", "--bundle", "{bundle}", "--out", "out", "--workers", "4:2"), "MIN:MAX"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(wrong, said, pictures, tiny_bundle, tmp_path):
    words = [word.format(bundle=tiny_bundle, pictures=pictures) for word in wrong]
    done = subprocess.run(
        [PROGRAM, *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("iafvae-score-dataset: error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert "hunter2" not in done.stderr
    assert not list(tmp_path.iterdir())
