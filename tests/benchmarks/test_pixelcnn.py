"""The gated PixelCNN: causal, normalised, and sampled alike with and without a cache."""

from __future__ import annotations

import itertools

import pytest
import torch

from benchmarks.pixelcnn import PixelCnn, PixelCnnConfig, draw, of_size, parameter_count
from benchmarks.pixelcnn_sampling import CachedSampler, naive_sample

SHAPES = {
    "binary": PixelCnnConfig(image_shape=(1, 5, 4), levels=2, width=6, layers=3, first_kernel=5),
    "colour": PixelCnnConfig(image_shape=(3, 4, 5), levels=8, width=4, layers=2, first_kernel=3),
    "wide": PixelCnnConfig(image_shape=(3, 4, 4), levels=4, width=5, layers=2, kernel=5),
}


@pytest.fixture(params=SHAPES.values(), ids=SHAPES)
def model(request) -> PixelCnn:
    torch.manual_seed(0)
    model = PixelCnn(request.param).double()
    with torch.no_grad():  # far from uniform: an error anywhere changes what is drawn
        for p in model.parameters():
            p.mul_(2.0)
    return model


def order(config: PixelCnnConfig) -> list[tuple[int, int, int]]:
    """(colour, row, column) in the order of generation."""
    c, h, w = config.image_shape
    return [(k, i, j) for i, j, k in itertools.product(range(h), range(w), range(c))]


def test_a_subpixel_reads_all_before_it_and_nothing_else(model: PixelCnn):
    """The Jacobian of every subpixel's logits: zeros from itself on, somewhere not zero before."""
    config = model.config
    x = torch.rand(1, *config.image_shape, dtype=torch.float64) * (config.levels - 1)
    jacobian = torch.autograd.functional.jacobian(lambda t: model(t).sum(dim=2)[0], x)[:, :, :, 0]
    places = order(config)
    seen = 0
    for n, at in enumerate(places):
        later = [jacobian[at][place].item() for place in places[n:]]
        assert later == [0.0] * len(later)
        seen += sum(jacobian[at][place].item() != 0.0 for place in places[:n])
    # The receptive field of these depths reaches over most of so small an image.
    assert seen > 0.7 * len(places) * (len(places) - 1) / 2


def test_colours_of_the_same_pixel_are_read_in_order():
    """G reads R, B reads both: the conditioning that the strict first mask must let through."""
    torch.manual_seed(1)
    model = PixelCnn(SHAPES["colour"]).double()
    x = torch.rand(1, 3, 4, 5, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda t: model(t).sum(dim=2)[0, :, 2, 3], x)
    here = jacobian[:, 0, :, 2, 3]  # [colour that reads, colour that is read]
    assert torch.equal(here != 0, torch.ones(3, 3, dtype=torch.float64).tril(-1) != 0)


def test_the_cache_gives_what_full_passes_give(model: PixelCnn):
    torch.manual_seed(2)
    u = torch.rand(3, *model.config.image_shape, dtype=torch.float64)
    drawn = CachedSampler(model).sample(u)
    assert torch.equal(drawn, naive_sample(model, u))
    assert len(drawn.unique()) == model.config.levels
    assert torch.equal(CachedSampler(model).sample(u), drawn)  # nothing is left from before


def test_stopping_early_gives_the_beginning(model: PixelCnn):
    c, _, w = model.config.image_shape
    u = torch.rand(2, *model.config.image_shape, dtype=torch.float64)
    whole = naive_sample(model, u)
    assert torch.equal(CachedSampler(model).sample(u, rows=2)[:, :, :2], whole[:, :, :2])
    begun = naive_sample(model, u, subpixels=2 * w * c)
    assert torch.equal(begun[:, :, :2], whole[:, :, :2])
    assert not begun[:, :, 2:].any()


def test_probabilities_of_all_images_sum_to_one():
    torch.manual_seed(3)
    config = PixelCnnConfig(image_shape=(3, 1, 2), levels=3, width=3, layers=1, first_kernel=3)
    model = PixelCnn(config).double()
    images = torch.tensor(list(itertools.product(range(3), repeat=6))).view(-1, 3, 1, 2)
    log_p = torch.log_softmax(model(images), dim=2).gather(2, images[:, :, None])
    total = log_p.flatten(1).sum(dim=1).exp().sum()
    assert total.item() == pytest.approx(1.0, abs=1e-12)


def test_draws_have_the_probabilities():
    """Levels of a fine grid of uniforms, counted, against the softmax."""
    logits = torch.tensor([[0.3, -1.0, 2.0, 0.0]], dtype=torch.float64)
    n = 10_000
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    counts = torch.bincount(draw(logits.expand(n, 4), u), minlength=4) / n
    assert torch.allclose(counts.double(), logits.softmax(1)[0], atol=1.01 / n)
    ones = draw(torch.full((n, 1), 0.7), u).double().mean()
    assert ones.item() == pytest.approx(torch.sigmoid(torch.tensor(0.7)).item(), abs=1.01 / n)


@pytest.mark.parametrize("wanted", [20_000, 300_000])
def test_a_size_is_met_closely(wanted: int):
    config = of_size(wanted, (3, 32, 32), 256, layers=4)
    assert abs(parameter_count(PixelCnn(config)) / wanted - 1) < 0.2
