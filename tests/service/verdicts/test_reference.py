"""References made of few images: each ranked by what the others make."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from service.verdicts.reference import Measured, Reference

NAMES = ("a", "b", "largest_box")


def measured(generator, n, shift=0.0):
    table = generator.normal(shift, 1.0, (n, 2))
    table[:, 1] += table[:, 0]
    residual = generator.normal(0, 0.1, (n, 6, 7)).astype(np.float32)
    return Measured({1: table.sum(axis=1)}, table.astype(np.float32), residual, None)


def test_usual_images_are_called_anomalous_as_often_as_asked():
    generator = np.random.default_rng(0)
    rates = []
    for _ in range(40):
        reference = Reference.crossed(NAMES, measured(generator, 50), 10)
        p = reference.judge(1, measured(generator, 100)).p_value
        rates.append((p <= 0.1).mean())
    # The mean of 40 rates, each of a Beta law of deviation 0.042 about, and binomial on 100.
    assert 0.06 < np.mean(rates) < 0.12


def test_all_images_are_ranked_among_and_none_by_itself():
    generator = np.random.default_rng(1)
    usual = measured(generator, 40)
    crossed, naive = Reference.crossed(NAMES, usual, 10), Reference.made(NAMES, usual, usual)
    assert crossed.images == 40
    assert np.array_equal(crossed.scores[1], naive.scores[1])
    assert np.array_equal(crossed.fit, naive.fit)
    # An image is nearer to a density that it is part of than to one that it is not.
    assert crossed.distances[1].mean() > 1.1 * naive.distances[1].mean()
    assert (np.diff(crossed.distances[1]) >= 0).all()
    far = crossed.judge(1, measured(generator, 20, shift=9.0)).p_value
    assert (far <= 2 / 41).all()  # marginals end: beyond them all are as far


def test_an_impossible_image_is_far_off_and_one_beyond_all_numbers_has_no_p_value():
    generator = np.random.default_rng(3)
    usual = measured(generator, 40)
    asked = replace(measured(generator, 3), log_likelihood={1: np.array([-np.inf, np.inf, np.nan])})
    p = Reference.made(NAMES, usual, usual).judge(1, asked).p_value
    assert p[0] == 1 / 41
    assert np.isnan(p[1:]).all()


def test_boxes_of_an_image_smaller_than_a_box_are_in_it():
    generator = np.random.default_rng(4)
    table = generator.normal(size=(40, 2)).astype(np.float32)
    residual = generator.normal(0, 0.1, (40, 3, 9)).astype(np.float32)
    usual = Measured({1: table.sum(axis=1)}, table, residual, None)
    for found in Reference.made(NAMES, usual, usual).largest_boxes(residual[:5], 3):
        assert {box.side for box in found} == {3}
        assert all(box.top == 0 and box.left + 3 <= 9 for box in found)
        lefts = sorted(box.left for box in found)
        assert (np.diff(lefts) >= 3).all()


def test_boxes_are_where_they_were_planted_and_do_not_overlap():
    """A darker and a brighter square in an image that is no square, the darker one farther off."""
    generator = np.random.default_rng(2)
    usual = [generator.normal(0, 0.02, (200, 12, 20)).astype(np.float32) for _ in range(2)]
    table = [generator.normal(size=(200, 2)).astype(np.float32) for _ in range(2)]
    reference = Reference.made(
        NAMES,
        *(Measured({1: t.sum(axis=1)}, t, r, None) for t, r in zip(table, usual, strict=True)),
    )
    residual = generator.normal(0, 0.02, (1, 12, 20)).astype(np.float32)
    residual[0, 1:5, 13:17] -= 0.8
    residual[0, 6:10, 2:6] += 0.4
    (found,) = reference.largest_boxes(residual, 40)
    dark, bright = found[:2]
    assert (dark.left, dark.top, dark.side) == (13, 1, 4)
    assert (bright.left, bright.top, bright.side) == (2, 6, 4)
    assert dark.deviations < -5
    assert bright.deviations > 5
    assert dark.p_value == bright.p_value == 1 / 201
    sizes = [abs(box.deviations) for box in found]
    assert sizes == sorted(sizes, reverse=True)
    assert [box.p_value for box in found] == sorted(box.p_value for box in found)
    covered = np.zeros((12, 20), int)
    for box in found:
        covered[box.top : box.top + 4, box.left : box.left + 4] += 1
    assert covered.max() == 1, "no two overlap"
    assert 4 < len(found) < 16, "nor is there room for one more"
    assert reference.largest_boxes(residual, 2) == [found[:2]]
    # Usual images have boxes that are usual, whichever way they are off.
    boxes = reference.largest_boxes(usual[1], 1)
    p = np.array([box.p_value for (box,) in boxes])
    assert 0.4 < p.mean() < 0.6
    assert {np.sign(box.deviations) for (box,) in boxes} == {-1.0, 1.0}
