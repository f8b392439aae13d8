"""A folder of one's own images: a file's name is its split, and what cannot be read is named."""

import os
import shutil
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from training.data import load_dataset
from training.data.folder import FolderOptions, decode, split_of, survey
from training.errors import DataError


def read_folder(folder, split, options):
    found = survey(folder, options)
    return decode(found, found.split(split)).images


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(1)
    for i in range(60):
        path = tmp_path / ("a" if i % 2 else "b/c") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (6, 8), np.uint8)).save(path)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_text("no image")
    return tmp_path


def test_every_file_of_a_folder_falls_into_one_split_by_its_name(folder):
    splits = ("train", "validation", "calibration", "test")
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))[1:]
    present = [split for split in splits if any(split_of(path) == split for path in paths)]
    total = 0
    for split in present:
        images = load_dataset(f"folder:{folder}", split).pixels
        mine = [path for path in paths if split_of(path) == split]
        expected = np.stack([np.asarray(Image.open(folder / path)) for path in mine])
        assert np.array_equal(images[:, 0], expected)
        total += len(images)
    assert total == 60


def test_the_shares_of_the_splits_are_eighty_five_five_ten():
    counts = {"train": 0, "validation": 0, "calibration": 0, "test": 0}
    for i in range(10_000):
        counts[split_of(f"images/{i:05d}.jpg")] += 1
    expected = [8000, 500, 500, 1000]
    assert stats.chisquare(list(counts.values()), expected).pvalue > 1e-3
    assert split_of("a/é.png") == split_of("a/é.png")  # composed or not: one file, one split


def test_a_folders_images_are_made_one_size_and_colour_on_request(folder):
    Image.new("RGB", (40, 20), (255, 0, 0)).save(folder / "wide.png")
    with pytest.raises(DataError, match=r"several sizes.*--size"):
        read_folder(folder, "train", FolderOptions())
    with pytest.raises(DataError, match=r"Some images are grey.*--channels"):
        read_folder(folder, "train", FolderOptions(size=(6, 8)))
    images = read_folder(folder, "train", FolderOptions(size=(16, 16), channels=3))
    assert images.shape[1:] == (3, 16, 16)
    name = f"folder:{folder.name}"
    grey = FolderOptions(size=(16, 16), channels=1)
    assert load_dataset(name, "train", folder.parent, grey).pixels.shape[1] == 1


def test_alpha_is_over_black_and_exif_is_applied(tmp_path):
    clear = Image.new("RGBA", (4, 4), (200, 100, 50, 0))
    turned = Image.new("RGB", (4, 2), (9, 9, 9))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter: 4 wide, 2 high becomes 2 wide, 4 high
    names = [f"{i}.png" for i in range(40) if split_of(f"{i}.png") == "train"]
    clear.save(tmp_path / names[0])
    turned.save(tmp_path / names[1], exif=exif)
    images = read_folder(tmp_path, "train", FolderOptions(size=(4, 4)))
    values = {int(image.max()) for image in images}
    assert values == {0, 9}
    (tmp_path / names[0]).unlink()
    assert read_folder(tmp_path, "train", FolderOptions()).shape == (1, 3, 4, 2)


def test_unreadable_images_are_named(folder):
    (folder / "a" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    Image.fromarray(np.zeros((6, 8), np.uint16)).save(folder / "deep.png")
    with pytest.raises(DataError, match=r"2 of 62 images .*(broken.*deep|deep.*broken)"):
        read_folder(folder, "train", FolderOptions())


def test_images_too_large_are_named_and_spoilt_metadata_is_not_looked_at(folder):
    """The first makes Pillow warn, the second makes it raise a SyntaxError."""
    Image.new("L", (8, 6)).save(folder / "exif.png", exif=b"Exif\0\0no TIFF here")
    assert "exif.png" in found(folder)[1]
    Image.new("1", (10_000, 9_500)).save(folder / "huge.png")
    with pytest.raises(DataError, match=r"1 of .*huge\.png: 10000x9500 pixels are more than"):
        read_folder(folder, "train", FolderOptions(size=(8, 8)))


def test_a_file_far_larger_than_any_image_is_named(folder, monkeypatch):
    monkeypatch.setattr("service.codecs.folders.MAX_FILE_BYTES", 2**12)
    (folder / "disk.png").write_bytes(b"\x89PNG" * 2**12)
    with pytest.raises(DataError, match=r"1 of .*disk\.png: File too large"):
        read_folder(folder, "train", FolderOptions())


def test_what_photos_hold_is_not_kept_while_a_folder_is_looked_through(folder):
    noise = np.random.default_rng(0).integers(0, 256, (500, 500, 3), np.uint8)
    for i in range(30):
        Image.fromarray(noise + np.uint8(i)).save(folder / f"{i}.png", compress_level=1)
    tracemalloc.start()
    try:
        survey(folder, FolderOptions(size=(8, 8), channels=3))
        assert tracemalloc.get_traced_memory()[1] < 8 * noise.nbytes
    finally:
        tracemalloc.stop()


def test_a_folders_path_is_no_part_of_what_is_reported(folder):
    assert load_dataset(f"folder:{folder}", "train").name == "a folder of images"


def test_an_image_cut_short_is_named(folder):
    path = next(p for p in sorted((folder / "a").iterdir()) if split_of(f"a/{p.name}") == "train")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=path.name):
        read_folder(folder, "train", FolderOptions())


def test_empty_folders_and_empty_splits_are_named(tmp_path):
    with pytest.raises(DataError, match="no folder"):
        load_dataset(f"folder:{tmp_path / 'absent'}", "train")
    with pytest.raises(DataError, match="no images"):
        load_dataset(f"folder:{tmp_path}", "train")
    name = next(f"{i}.png" for i in range(99) if split_of(f"{i}.png") == "train")
    Image.new("L", (4, 4)).save(tmp_path / name)
    with pytest.raises(DataError, match="falls into 'test'"):
        load_dataset(f"folder:{tmp_path}", "test")
    with pytest.raises(DataError, match="channels is 1"):
        FolderOptions(channels=2)
    with pytest.raises(DataError, match="at least 1"):
        FolderOptions(size=(4, 0))


def photo(path, seed, size=(6, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(100 + seed).integers(0, 256, size, np.uint8)
    Image.fromarray(pixels).save(path)


def found(folder, **options):
    looked = survey(folder, FolderOptions(**options))
    return looked, {name for files in looked.splits.values() for name in files}


def test_what_is_hidden_is_passed_over_and_named(folder):
    _, before = found(folder)
    photo(folder / ".ipynb_checkpoints" / "1-checkpoint.png", 1)
    photo(folder / "a" / ".Trash-0" / "2.png", 2)
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "._1.png").write_text("junk")
    looked, names = found(folder)
    assert names == before
    told = "\n".join(looked.lines())
    for name in (".ipynb_checkpoints", ".Trash-0", "__MACOSX", ".hidden.png"):
        assert name in told
    assert "1 .txt" in told


def test_a_folder_without_images_says_what_it_has(tmp_path):
    for name in ("1.tif", "2.TIF", "notes.txt", ".hidden.png"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"no images .*hidden.png.*2 \.tif, 1 \.txt"):
        survey(tmp_path, FolderOptions())


def test_links_are_followed_but_not_round_and_round(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    photo(elsewhere / "one.png", 1)
    (folder / "more").symlink_to(elsewhere)
    (folder / "a" / "loop").symlink_to(folder)
    (folder / "gone.png").symlink_to(elsewhere / "gone.png")
    looked, names = found(folder)
    assert "more/one.png" in names
    assert len(names) == 61
    assert any("gone.png" in note for note in looked.notes)


def test_what_has_no_end_is_no_image_and_named(folder):
    _, before = found(folder)
    os.mkfifo(folder / "pipe.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    looked, names = found(folder)
    assert names == before
    assert any("pipe.png, zero.png" in note for note in looked.notes)


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user")
def test_what_one_may_not_look_at_is_named(folder, tmp_path_factory):
    """In a process of somebody else: root may look everywhere."""
    closed = tmp_path_factory.mktemp("closed")
    photo(closed / "one.png", 1)
    closed.chmod(0o700)
    (folder / "link.png").symlink_to(closed / "one.png")
    program = [sys.executable, "-c", AS_ANOTHER, str(folder), str(closed / "below")]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert "1 of 61 images cannot be used" in done.stdout, done.stderr
    assert "link.png: Permission denied" in done.stdout
    assert "may not be looked at" in done.stdout


AS_ANOTHER = """
import os, sys
from pathlib import Path
from training.data.folder import FolderOptions, survey
from training.errors import DataError
os.chdir(sys.argv[1])
os.chmod(".", 0o755)
os.setuid(12345)
for folder in (Path("."), Path(sys.argv[2])):
    try:
        survey(folder, FolderOptions())
    except DataError as error:
        print(error)
"""


def test_names_that_are_no_text_have_a_split_and_can_be_shown(folder):
    strange = os.fsdecode(b"caf\xe9.png")
    photo(folder / strange, 1)
    photo(folder / "new\nline.png", 2)
    photo(folder / "ünï☃.PNG", 3)
    (folder / "dir.png").mkdir()
    _, names = found(folder)
    assert {strange, "new\nline.png", "ünï☃.PNG"} <= names
    (folder / strange).write_bytes(b"")
    with pytest.raises(DataError) as error:
        read_folder(folder, "train", FolderOptions())
    assert r"caf\udce9.png" in str(error.value)
    str(error.value).encode()  # it can be printed


def test_a_copy_in_another_split_is_left_out_and_named(folder):
    held = next(f"t{i}.png" for i in range(99) if split_of(f"t{i}.png") == "test")
    photo(folder / held, 7)
    assert held in survey(folder, FolderOptions()).splits["test"]
    copy = next(f"c{i}.png" for i in range(99) if split_of(f"c{i}.png") == "train")
    twin = next(f"w{i}.png" for i in range(99) if split_of(f"w{i}.png") == "train")
    shutil.copy(folder / held, folder / copy)
    shutil.copy(folder / held, folder / twin)  # twice in one split does no harm
    looked, names = found(folder)
    assert held not in names
    assert {copy, twin} <= set(looked.splits["train"])
    assert any(f"{held} (of " in note for note in looked.notes)


def test_every_file_that_cannot_be_decoded_is_named(folder):
    cut = [p for p in sorted((folder / "a").iterdir()) if split_of(f"a/{p.name}") == "train"][:2]
    for path in cut:
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"2 of \d+ images cannot be used") as error:
        read_folder(folder, "train", FolderOptions())
    assert all(path.name in str(error.value) for path in cut)


def test_large_photos_without_a_size_are_refused_with_a_proposal(tmp_path):
    for i in range(3):
        photo(tmp_path / f"{i}.png", i, (300, 400))
    with pytest.raises(DataError, match=r"300x400 .*--size 64, .*or --size 48x64"):
        survey(tmp_path, FolderOptions())
    assert survey(tmp_path, FolderOptions(size=(300, 400))).height_width == (300, 400)


def test_a_folder_tells_its_files_sizes_fit_and_splits(folder):
    photo(folder / "wide.png", 1, (12, 20))
    looked, _ = found(folder, size=(4, 4))
    first, second, *rest = looked.lines()
    counts = ", ".join(f"{len(files)} {split}" for split, files in looked.splits.items())
    assert first == f"{folder}: 61 images ({counts})"
    assert second == (
        "sizes (height x width): 6x8 to 12x20, scaled and cut around the middle to 4x4; grey"
    )
    least = 1 / (len(looked.splits["calibration"]) + 1)
    assert f"p-values of at least {least:.2g}: for a verdict at alpha 0.01" in rest[-1]


def test_a_home_that_nobody_knows_is_named(monkeypatch):
    with pytest.raises(DataError, match="write the path out"):
        load_dataset("folder:~nobody-of-this-name/photos", "train")


@pytest.mark.parametrize("train", ["train/good", "train"])
def test_a_folder_may_give_its_splits_as_mvtec_s_sets_do(tmp_path, train):
    for i in range(60):
        photo(tmp_path / train / f"{i}.png", i)
    for i in range(60, 64):
        photo(tmp_path / "test" / "good" / f"{i}.png", i)
        photo(tmp_path / "test" / "scratch" / f"{i}.png", 10 + i)
        photo(tmp_path / "ground_truth" / "scratch" / f"{i}_mask.png", 20 + i)
    photo(tmp_path / "readme.png", 99)
    looked, names = found(tmp_path)
    assert {name.rpartition("/")[0] for name in names} == {train, "test/good"}
    assert set(looked.splits["test"]) == {f"test/good/{i}.png" for i in range(60, 64)}
    rest = {split: set(looked.splits[split]) for split in ("train", "validation", "calibration")}
    assert all(len(each) for each in rest.values())
    assert len(set.union(*rest.values())) == sum(map(len, rest.values())) == 60
    for name in rest["validation"]:
        assert split_of(name) == "validation"
    told = "\n".join(looked.lines())
    for words in ("splits as the folders say: train, test", "test/scratch", "ground_truth"):
        assert words in told
    for i in range(5):
        photo(tmp_path / "calibration" / f"{i}.png", 200 + i)
    looked, _ = found(tmp_path)
    assert len(looked.splits["calibration"]) == 5
    assert looked.splits["validation"].keys() == rest["validation"]


def test_class_folders_of_given_splits_are_all_learned_from(tmp_path):
    for split in ("train", "test"):
        for kind in ("cat", "dog"):
            photo(tmp_path / split / kind / "1.png", len(split) * 10 + len(kind) + ord(kind[0]))
    assert len(found(tmp_path)[1]) == 4
