"""Folders as people, and strangers, have them."""

from __future__ import annotations

import os

from service.codecs import folders
from service.codecs.folders import list_images


def test_what_lies_too_deep_is_named_and_the_rest_is_found(tmp_path):
    """Each folder costs as many steps as it lies deep, and Python goes down a thousand at most."""
    place = tmp_path.joinpath(*["d"] * (folders.MAX_DEPTH + 3))
    place.mkdir(parents=True)
    for path in (tmp_path / "a.png", place.parents[2] / "b.png", place / "c.png"):
        path.touch()
    found = list_images(tmp_path)
    assert list(found.files) == ["a.png", "d/" * folders.MAX_DEPTH + "b.png"]
    (fault,) = found.faults
    assert fault.filename == os.fspath(place.parents[1])
    assert "folders deep" in fault.strerror


def test_images_are_known_by_their_names_in_any_case(tmp_path):
    names = ["a.PNG", "b.jpg", "c.JPeG", "d.jfif", "e.webp"]
    for name in (*names, "f.bmp", "png"):
        (tmp_path / name).touch()
    found = list_images(tmp_path)
    assert list(found.files) == names
    assert found.others == {".bmp": 1, "without extension": 1}
