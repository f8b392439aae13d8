"""What `inspect` makes of a folder before it trains, and what it says afterwards."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from service.verdicts.conformal import certified_alpha, expected_rate
from training.config import Runtime
from training.errors import DataError, TrainingError
from training.inspect import plan as module
from training.inspect.photos import find_photos
from training.inspect.plan import (
    certified_images,
    configured,
    counts,
    crossed,
    divided,
    least_images,
    plan_for,
    scaled,
)
from training.inspect.run import _plant, _prepare, inspect_folder
from training.inspect.words import Facts, learned, words
from training.runs.directory import locked


def fill(folder, n, *, colour=False, seed=0):
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for i in range(n):
        pixels = generator.integers(0, 256, (8, 12, 3) if colour else (8, 12), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


def test_a_plain_folder_and_one_with_tests(tmp_path):
    fill(tmp_path / "good", 41, colour=True)
    (tmp_path / "good" / "copy.png").write_bytes((tmp_path / "good" / "3.png").read_bytes())
    (tmp_path / "good" / "broken.jpg").write_bytes(b"?")
    fill(tmp_path / "back" / "scratch", 2, seed=1)
    fill(tmp_path / "back" / "good", 3, seed=2)
    photos = find_photos(tmp_path / "good", tmp_path / "back")
    assert (len(photos.usual), photos.size, photos.channels) == (41, (8, 12), 3)
    assert (len(photos.usual_test), len(photos.usual_more)) == (0, 3)
    assert {kind: len(files) for kind, files in photos.classes.items()} == {"scratch": 2}
    told = "\n".join(photos.lines())
    assert "left out, 1 file that cannot be read: " in told
    assert "left out as copies of other images: 1" in told


def test_images_that_are_named_good_and_others_are_not_learned_alike(tmp_path):
    fill(tmp_path / "all" / "good" / "line 2", 41)
    fill(tmp_path / "all" / "bad", 3, seed=1)
    with pytest.raises(DataError, match=r"good images \(good\) and others \(bad\).* --test"):
        find_photos(tmp_path / "all")
    fill(tmp_path / "set" / "train" / "red", 41)
    fill(tmp_path / "set" / "train" / "blue", 41, seed=2)
    fill(tmp_path / "set" / "test" / "bad", 3, seed=1)
    fill(tmp_path / "set" / "val" / "good", 3, seed=3)
    photos = find_photos(tmp_path / "set")
    assert len(photos.usual) == 82
    assert "neither train nor test, passed over: val" in photos.notes


def test_sub_folders_that_are_learned_from_are_told(tmp_path):
    fill(tmp_path / "all" / "red", 41)
    fill(tmp_path / "all" / "back" / "late", 41, seed=2)
    assert (
        "taken as usual images too, by sub-folder: back, red" in find_photos(tmp_path / "all").notes
    )
    fill(tmp_path / "good" / "good", 41, seed=3)
    assert not find_photos(tmp_path / "good").notes


def test_images_elsewhere_are_more_of_them_and_none_that_were_learned(tmp_path):
    place, back = tmp_path / "bottle", tmp_path / "back"
    fill(place / "train" / "good", 45)
    fill(place / "test" / "good", 10, seed=1)
    fill(place / "test" / "scratch", 6, seed=2)
    fill(back / "Usual", 9, seed=3)
    fill(back / "scratch", 2, seed=4)
    (back / "Usual" / "learned.png").write_bytes((place / "train/good/7.png").read_bytes())
    photos = find_photos(place, back)
    assert (len(photos.usual), len(photos.usual_test), len(photos.usual_more)) == (45, 10, 9)
    assert {kind: len(files) for kind, files in photos.classes.items()} == {"scratch": 8}
    assert "19 good, 8 scratch" in "\n".join(photos.lines())


def test_what_lies_deeper_is_good_where_a_folder_around_it_is(tmp_path):
    fill(tmp_path / "good", 41)
    fill(tmp_path / "back" / "good" / "monday", 3, seed=1)
    fill(tmp_path / "back" / "bad" / "monday", 2, seed=2)
    fill(tmp_path / "back" / "bad" / "friday", 2, seed=3)
    mask = tmp_path / "back" / "ground_truth" / "bad" / "monday"
    fill(mask, 1, seed=4)
    photos = find_photos(tmp_path / "good", tmp_path / "back")
    assert len(photos.usual_more) == 3
    counts = {kind: len(files) for kind, files in photos.classes.items()}
    assert counts == {"bad/monday": 2, "bad/friday": 2}
    (tmp_path / "back").rename(tmp_path / "normal")
    renamed = find_photos(tmp_path / "good", tmp_path / "normal")
    assert renamed.classes.keys() == photos.classes.keys()  # the folder's own name says nothing
    (tmp_path / "normal").rename(tmp_path / "back")
    assert photos.masks == {tmp_path / "back/bad/monday/0.png": mask / "0.png"}


def test_what_is_written_among_the_images_is_refused(tmp_path):
    fill(tmp_path / "good", 45)
    with pytest.raises(DataError, match="whose images it would become"):
        inspect_folder(
            tmp_path / "good", tmp_path / "good" / "out", runtime=Runtime(), console=Console()
        )
    assert len(list((tmp_path / "good").iterdir())) == 45


def test_images_among_what_is_written_are_kept(tmp_path):
    """What lies in OUT is removed and made anew."""
    out, looked = tmp_path / "out", tmp_path / "out" / "test" / "returned"
    fill(tmp_path / "good", 45)
    fill(looked, 3)
    (out / "inspect.json").write_text("{}")
    for folder, test in ((tmp_path / "good", looked), (looked, None)):
        with pytest.raises(DataError, match="move the images elsewhere"):
            inspect_folder(folder, out, test=test, runtime=Runtime(), console=Console())
    (out / "test" / "good").mkdir()
    (out / "test" / "good" / "0.png").symlink_to(tmp_path / "good" / "0.png")
    with pytest.raises(DataError, match=r"returned/\d\.png would be lost"):
        inspect_folder(tmp_path / "good", out, runtime=Runtime(), console=Console())
    assert len(list(looked.iterdir())) == 3


def test_what_cannot_be_read_is_counted_nowhere(tmp_path):
    fill(tmp_path / "good", 41)
    photos = find_photos(tmp_path / "good", None)
    names = list(photos.usual)
    photos.usual[names[1]].write_bytes(b"\x89PNG")
    sets = {"train": {n: photos.usual[n] for n in names[:3]}, "calibration": {}}
    plan = SimpleNamespace(size=photos.size)
    sound, faults = _prepare(tmp_path / "out", sets, photos, plan, Console(quiet=True))
    assert list(sound["train"]) == [names[0], names[2]]
    assert sound["calibration"] == {}
    assert len(faults) == 1
    assert len(json.loads((tmp_path / "out" / "inspect.json").read_text())["train"]) == 3


def test_one_call_at_a_time_writes_an_inspection(tmp_path):
    fill(tmp_path / "good", 45)
    with locked(tmp_path / "out"), pytest.raises(TrainingError, match="another process"):
        inspect_folder(
            tmp_path / "good", tmp_path / "out", runtime=Runtime(), console=Console(quiet=True)
        )
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


def test_what_ends_before_the_training_can_be_called_again(tmp_path, monkeypatch):
    fill(tmp_path / "good", 45)

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("training.inspect.run.read_fitted", stop)
    for _ in range(2):  # not: exists and is no inspection
        with pytest.raises(KeyboardInterrupt):
            inspect_folder(
                tmp_path / "good",
                tmp_path / "out",
                runtime=Runtime(device="cpu", compile="off", threads=1),
                console=Console(),
            )


def test_grey_in_three_colours_is_grey(tmp_path):
    fill(tmp_path / "good", 40)
    for path in (tmp_path / "good").iterdir():
        Image.open(path).convert("RGB").save(path)
    assert find_photos(tmp_path / "good").channels == 1


@pytest.mark.parametrize("n", [1, 39])
def test_too_few_images_are_one_clear_error(tmp_path, n):
    fill(tmp_path / "good", n)
    with pytest.raises(DataError, match=f"{n} different usual images .* too few"):
        find_photos(tmp_path / "good")


def test_one_image_again_and_again_is_one_image(tmp_path):
    fill(tmp_path / "good", 1)
    for i in range(1, 60):
        (tmp_path / "good" / f"{i}.png").write_bytes((tmp_path / "good" / "0.png").read_bytes())
    with pytest.raises(DataError, match="1 different"):
        find_photos(tmp_path / "good")


@pytest.mark.parametrize(("rate", "least", "certified"), [(0.01, 99, 299), (0.05, 19, 59)])
def test_how_many_images_a_rate_takes(rate, least, certified):
    assert (least_images(rate), certified_images(rate)) == (least, certified)
    assert 1 / (1 + least) <= rate < 1 / least
    assert (1 - rate) ** certified <= 0.05 < (1 - rate) ** (certified - 1)


@pytest.mark.parametrize("rate", [0.01, 0.05])
def test_images_are_halved_where_half_of_them_certify_the_rate(rate):
    for n in range(2, 700):
        assert crossed(n, rate) == (certified_alpha(rate, n // 2) is None)


@pytest.mark.parametrize("n", [40, 300, 600, 1500, 100_000])
def test_every_image_has_one_purpose(n):
    share = counts(n, 0.01, given_test=False)
    files = {f"{i}.png": i for i in range(n)}
    sets = divided(files, share)
    assert sorted(i for each in sets.values() for i in each.values()) == list(range(n))
    assert len(sets["train"]) >= 0.45 * n
    assert min(map(len, sets.values())) >= 4
    if n >= 300:
        assert len(sets["calibration"]) >= least_images(0.01)
    for rate in (0.05, 0.01, 0.002):  # as many as `inspect` says would do, and no fewer
        enough = 3 * least_images(rate)
        shares = [counts(k, rate, given_test=False) for k in (enough - 1, enough)]
        assert [s["calibration"] >= least_images(rate) for s in shares] == [False, True]
    if n >= 600:
        assert expected_rate(0.01, len(sets["calibration"])) > 0.0095


@pytest.mark.parametrize(
    ("size", "side", "wanted"), [((64, 96), 48, (32, 48)), ((900, 1200), 64, (48, 64))]
)
def test_the_model_has_the_photos_shape(size, side, wanted):
    assert scaled(size, side) == wanted
    config = configured(wanted, 3, 40)
    assert config.model.image_shape == (3, *wanted)
    assert config.optim.batch_size <= 40


@pytest.mark.parametrize(("minutes", "size"), [(0.01, (16, 24)), (2.0, (40, 64)), (1e6, (64, 96))])
def test_the_size_is_what_the_machine_can_train(monkeypatch, minutes, size):
    pixels_a_second = 1e6
    monkeypatch.setattr(
        module,
        "_seconds_an_image",
        lambda config, _: np.prod(config.model.image_shape) / pixels_a_second,
    )
    plan = plan_for((64, 96), 1, 900, minutes=minutes, runtime=Runtime())
    assert plan.size == size


def bits(run, values):
    run.mkdir(exist_ok=True)
    lines = [
        json.dumps({"step": 10 * i, "kind": "validation", "bits_per_dim": value})
        for i, value in enumerate(values, 1)
    ]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return learned(run)


@pytest.mark.parametrize(
    ("asked", "minutes", "wanted"),
    [("auto", 29, "off"), ("auto", 31, "auto"), ("on", 29, "on"), ("off", 31, "off")],
)
def test_a_long_training_is_compiled_where_nothing_else_is_asked(asked, minutes, wanted):
    assert module._for_minutes(Runtime(compile=asked), minutes).compile == wanted


def test_what_the_validation_says(tmp_path):
    assert bits(tmp_path, [5, 4]) is None
    falling, done, over = (
        bits(tmp_path, values)
        for values in ([5, 4, 3, 2.5, 2.2, 2.0], [5, 4, 3, 3, 3, 3], [5, 3, 3, 3.2, 3.3, 3.4])
    )
    assert (falling.falling, falling.overfitted) == (True, False)
    assert (done.falling, done.overfitted) == (False, False)
    assert (over.falling, over.overfitted) == (False, True)


def test_words_follow_from_the_facts(tmp_path):
    fill(tmp_path / "good", 50)
    photos = find_photos(tmp_path / "good")
    generator = np.random.default_rng(0)
    images = generator.integers(100, 110, (9, 1, 8, 8), np.uint8)
    noise = generator.integers(0, 256, images.shape, np.uint8)
    planted = {
        "classes": [
            {"class": "good", "images": 9, "anomalous": 0},
            {"class": "planted 4x4", "images": 10, "anomalous": 2},
            {"class": "planted 8x8", "images": 10, "anomalous": 10},
        ]
    }
    facts = {
        "photos": photos,
        "size": (4, 6),
        "calibration": 20,
        "crossed": True,
        "false_alarms": 0.01,
        "alpha": 1 / 21,
        "planted": planted,
        "training": None,
        "again": (images, noise),
        "drawn": noise,
        "pixels": None,
    }
    told = "\n".join(words(Facts(**facts)))
    for part in (
        "is out of reach; verdicts here are at 0.048",
        "--alpha 0.048",
        "Few images: 50",
        "Undertrained",
        "noise",
        "20% of 8x8",
    ):
        assert part in told
    assert "defects of 16 pixels and more; not with ones of 8" in told
    planted["classes"].append({"class": "planted 16x16", "images": 10, "anomalous": 1})
    told = "\n".join(words(Facts(**facts)))
    assert "Trust it" not in told, "where larger ones are missed, a small size is luck"
    planted["classes"].pop()
    facts |= {"calibration": 400, "again": (images, images), "drawn": images}
    assert "on the average" in "\n".join(words(Facts(**facts)))
    told = "\n".join(words(Facts(**facts | {"crossed": False})))
    assert "cut off" not in told
    assert "on the average" not in told
    assert "noise" not in told
    assert "out of reach" not in told


def test_what_is_cut_off_is_told_and_no_part_of_the_scale(tmp_path):
    fill(tmp_path / "good", 40)
    photos = replace(find_photos(tmp_path / "good"), sizes=[(480, 640)] * 39 + [(480, 1440)])
    images = np.zeros((2, 1, 16, 24), np.uint8)
    facts = Facts(
        photos=photos,
        size=(16, 24),
        calibration=400,
        crossed=True,
        false_alarms=0.01,
        alpha=0.01,
        planted={"classes": []},
        training=None,
        again=(images, images),
        drawn=images,
        pixels=None,
    )
    # 640 of 24: scaled by 26.7, of the 480 rows 427 are seen; or 30, and 720 of 1440 columns.
    seen = next(words(facts))
    assert "is 26.7 of yours" in seen
    assert "cut off around the middle: 11% of a photo, 50% at the most" in seen


def test_defects_are_planted_in_the_photos_between_the_model_s_pixels(tmp_path):
    plain = np.full((60, 1, 16, 16), 100, np.uint8)
    _plant(tmp_path, plain, np.full((60, 1, 64, 64), 100, np.uint8))
    files = sorted((tmp_path / "planted" / "planted 4x4").iterdir())
    changed = np.stack([np.asarray(Image.open(file)) for file in files]).astype(float) - 100
    assert (changed.sum(axis=(1, 2)) / (16 * 128)).round(1).tolist() == [1.0] * 60
    whole = (np.abs(changed) > 120).sum(axis=(1, 2))
    assert (whole < 12).mean() > 0.5, "most cover three whole pixels a side, not four"


def test_why_images_are_too_few_and_that_sizes_differ(tmp_path):
    deep = tmp_path / "deep"
    deep.mkdir()
    for i in range(41):
        Image.fromarray(np.full((8, 8), 900 + i, np.uint16)).save(deep / f"{i}.png")
    with pytest.raises(DataError, match=r"too few .*41 files that cannot be read.* 16 bits"):
        find_photos(deep)
    for i in range(41):
        Image.fromarray(np.full((8, 8 + i // 40), 100 + i, np.uint8)).save(deep / f"{i}.png")
    assert find_photos(deep).lines()[0] == (
        "41 usual images, of 2 sizes, most often 8x8 (height x width), grey"
    )
