"""A folder of one's own images: a file's name is its split, and what cannot be read is named."""

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from training.data import load_dataset
from training.data.folder import FolderOptions, read_folder, split_of
from training.errors import DataError


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
    images = read_folder(folder, "train", FolderOptions(size=16, channels=3))
    assert images.shape[1:] == (3, 16, 16)
    name = f"folder:{folder.name}"
    assert load_dataset(name, "train", folder.parent, size=16, channels=1).pixels.shape[1] == 1


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


def test_images_too_large_and_with_spoilt_metadata_are_named_together(folder):
    """The first makes Pillow warn, the second makes it raise a SyntaxError."""
    Image.new("1", (10_000, 9_500)).save(folder / "huge.png")
    Image.new("L", (8, 6)).save(folder / "exif.png", exif=b"Exif\0\0no TIFF here")
    with pytest.raises(DataError, match="2 of") as error:
        read_folder(folder, "train", FolderOptions(size=8))
    assert "exif.png: " in str(error.value)
    assert "10000x9500 pixels are more than" in str(error.value)


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
        load_dataset(f"folder:{tmp_path}", "train", channels=2)
    with pytest.raises(DataError, match="at least 1"):
        load_dataset(f"folder:{tmp_path}", "train", size=0)
