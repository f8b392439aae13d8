"""How rows of different requests become one batch, and one batch the answers of its requests.

Noise is generated here, in the worker thread, for all rows of a batch at once: sixteen small
requests pay for one call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.engine.arrays import Arrays
from service.noise import Normal, Purpose, image_keys, uniform
from service.scheduler.work import DecodeWork, EncodeWork, Keys, SampleWork, ScoreWork, image_noise

if TYPE_CHECKING:
    from service.bundle import Manifest
    from service.bundle.graphs import GraphSpec

__all__ = ["Batcher", "batchers"]

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]
WorkT = TypeVar("WorkT")
Piece = tuple[WorkT, int, int]  # a work and the rows start to stop of it
Drawn = list[tuple[slice, Keys]]  # rows of a batch that are noise, and of what


class Batcher:
    """Joins pieces of works into a batch's inputs, and cuts its outputs into their answers.

    row_bytes: of the inputs and outputs of one row.
    """

    def __init__(self, graph: GraphSpec) -> None:
        self.row_bytes = sum(
            int(np.prod([d for d in t.shape if isinstance(d, int)])) * np.dtype(t.dtype).itemsize
            for t in (*graph.inputs, *graph.outputs)
        )

    def graph(self, operation: str, _: Sequence[Piece[Any]]) -> str:
        """Whose graph computes them: the operation's, or that of a cheaper one that will do."""
        return operation

    def assemble(self, pieces: Sequence[Piece[Any]]) -> Arrays:
        """Inputs of the graph for all pieces, in order."""
        raise NotImplementedError

    def split(self, pieces: Sequence[Piece[Any]], outputs: Arrays) -> list[Arrays]:
        """What each piece's work wants to keep of the outputs."""
        return [{name: a[rows] for name, a in outputs.items()} for rows, *_ in _placed(pieces)]


class _Render(Batcher):
    """What sample and decode share: uniforms in, means or drawn pixels out."""

    def __init__(self, graph: GraphSpec, uniforms: int) -> None:
        super().__init__(graph)
        self._uniforms = uniforms

    def split(
        self, pieces: Sequence[Piece[SampleWork | DecodeWork]], outputs: Arrays
    ) -> list[Arrays]:
        """uint8 ``images``: the mean as ``round(255 p)``, or the draw, and whether the mean was
        ``finite``; mean and draw themselves on demand.
        """
        mean, draw = outputs["mean"], outputs["draw"]
        wanted = {work.output for work, _, _ in pieces}
        pixels = draw if wanted == {"draw"} else _as_pixels(mean)
        finite = np.asarray(np.isfinite(mean).reshape(len(mean), -1).all(axis=1))
        answers: list[Arrays] = []
        for rows, work, _, _ in _placed(pieces):
            if work.output == "both":
                answer = {"images": pixels[rows], "draw": draw[rows], "mean": mean[rows]}
            else:
                answer = {"images": (pixels if work.output == "mean" else draw)[rows]}
            answers.append(answer | {"finite": finite[rows]})
        return answers

    def _u(self, pieces: Sequence[Piece[SampleWork | DecodeWork]], rows: int) -> F32:
        """Uniform noise for the rows that are drawn, zeros for those that want the mean alone."""
        drawn = [
            (place, work.keys(start, stop))
            for place, work, start, stop in _placed(pieces)
            if work.output != "mean"
        ]
        return _drawn(uniform, np.zeros((rows, self._uniforms), np.float32), drawn)


class _Sample(_Render):
    """Rows of `SampleWork`: noise of every row that does not bring its own."""

    def __init__(self, graph: GraphSpec, uniforms: int, dim: int, noise: Normal) -> None:
        super().__init__(graph, uniforms)
        self._dim, self._normal = dim, noise

    def assemble(self, pieces: Sequence[Piece[SampleWork]]) -> Arrays:
        temperature = _join([work.temperature[a:b] for work, a, b in pieces])
        eps = np.empty((len(temperature), self._dim), dtype=np.float32)
        seeded: Drawn = []
        for rows, work, start, stop in _placed(pieces):
            if work.eps is None:
                seeded.append((rows, work.keys(start, stop)))
            else:
                eps[rows] = work.eps(start, stop)
        eps = _drawn(self._normal, eps, seeded)
        return {"eps": eps, "temperature": temperature, "u": self._u(pieces, len(eps))}


class _Decode(_Render):
    """Rows of `DecodeWork`."""

    def assemble(self, pieces: Sequence[Piece[DecodeWork]]) -> Arrays:
        z = _join([work.z[a:b] for work, a, b in pieces])
        return {"z": z, "u": self._u(pieces, len(z))}


class _Reader(Batcher):
    """What encode, score and evidence share: images in, for a binary model with noise."""

    def __init__(self, graph: GraphSpec, dim: int, noise: Normal) -> None:
        super().__init__(graph)
        self._dim, self._normal = dim, noise
        self._grey = any(tensor.name == "u_image" for tensor in graph.inputs)

    def _read(self, images: U8, seeds: U64, keys: U64 | None = None) -> Arrays:
        """Inputs that are made of `images` and their `seeds` ``[N]`` alone."""
        if not self._grey:
            return {"image": images}
        noise = np.zeros((len(images), images[0].size), dtype=np.float32)
        # Black and white are what they are for any noise: 0 - 1 is 255 in eight bits.
        grey = (images - np.uint8(1) < 254).reshape(len(images), -1).any(axis=1)
        if grey.any():
            keys = image_keys(images[grey]) if keys is None else keys[grey]
            noise[grey] = uniform(seeds[grey], keys, 0, noise.shape[1], Purpose.PIXELS)
        return {"image": images, "u_image": noise}


class _Encode(_Reader):
    """Rows of `EncodeWork`: noise is an image's wherever it stands; eps = 0 without a seed."""

    def assemble(self, pieces: Sequence[Piece[EncodeWork]]) -> Arrays:
        images = _join([work.images[a:b] for work, a, b in pieces])
        seeded = [
            (rows, image_noise(work.seed, work.images)(start, stop))
            for rows, work, start, stop in _placed(pieces)
            if work.seed is not None
        ]
        eps = _drawn(self._normal, np.zeros((len(images), self._dim), np.float32), seeded)
        return {"eps": eps, **self._read(images, _seeds(pieces, [b - a for _, a, b in pieces]))}


class _Score(_Reader):
    """Rows of `ScoreWork`: an image rides once with all its rows that are in the batch, and noise
    is the image's and the sample's."""

    def assemble(self, pieces: Sequence[Piece[ScoreWork]]) -> Arrays:
        # One sample an image is what most ask for, often one image each: no arrays per piece.
        single = all(work.samples == 1 for work, _, _ in pieces)
        images, owners, (seeds, keys, draws) = (_single if single else _several)(pieces)
        eps = self._normal(seeds[owners], keys[owners], draws, self._dim, Purpose.IMAGE)
        return {"owner": owners, "eps": eps, **self._read(images, seeds, keys)}

    def split(self, pieces: Sequence[Piece[ScoreWork]], outputs: Arrays) -> list[Arrays]:
        """What estimates are made of; ``log_px_z`` is ``log_weight`` plus the sum of ``kl``."""
        return super().split(pieces, {name: outputs[name] for name in ("log_weight", "kl")})


class _Evidence(_Score):
    """Rows of `EvidenceWork`."""

    def graph(self, operation: str, pieces: Sequence[Piece[ScoreWork]]) -> str:
        """Scores alone, bytes and all, where no image's first row is among them."""
        begins = any(-start % work.samples < stop - start for work, start, stop in pieces)
        return operation if begins else "score"

    def split(self, pieces: Sequence[Piece[ScoreWork]], outputs: Arrays) -> list[Arrays]:
        """And ``residual`` and ``statistics`` of the images whose first row is in the piece."""
        answers, end = super().split(pieces, outputs), 0
        if "statistics" not in outputs:
            return answers
        for answer, (work, start, stop) in zip(answers, pieces, strict=True):
            begun, first = start // work.samples, -(-start // work.samples)
            last = -(-stop // work.samples)
            rows = slice(end + first - begun, end + last - begun)
            end = rows.stop
            answer |= {name: outputs[name][rows] for name in ("residual", "statistics")}
        return answers


Owned = tuple[U8, NDArray[np.int64], tuple[U64, U64, U64]]


def _single(pieces: Sequence[Piece[ScoreWork]]) -> Owned:
    """As `_several`, for works of one sample an image: rows are images."""
    images = _join([work.images[start:stop] for work, start, stop in pieces])
    rows = len(images)
    seeds = _seeds(pieces, [stop - start for _, start, stop in pieces])
    draws = np.zeros(rows, dtype=np.uint64)
    return images, np.arange(rows, dtype=np.int64), (seeds, image_keys(images), draws)


def _several(pieces: Sequence[Piece[ScoreWork]]) -> Owned:
    """Images ``[N, C, H, W]``, the owner of each row ``[R]``, and for their noise the images' seeds
    and keys and the rows' draws."""
    images, owners, draws = [], [], []
    offset = 0
    for work, start, stop in pieces:
        first, last = start // work.samples, (stop - 1) // work.samples + 1
        rows = np.arange(start, stop, dtype=np.int64)
        image, sample = np.divmod(rows, work.samples)
        images.append(work.images[first:last])
        owners.append(image + (offset - first))
        draws.append(sample.astype(np.uint64))
        offset += last - first
    seeds = _seeds(pieces, [len(each) for each in images])
    joined = _join(images)
    return joined, _join(owners), (seeds, image_keys(joined), _join(draws))


def batchers(manifest: Manifest, threads: int = 1) -> dict[str, Batcher]:
    """The batcher of each operation of a bundle; threads: that make the noise of one batch."""
    noise = Normal(threads)
    graphs, dim, uniforms = manifest.graphs, manifest.latent.dim, manifest.likelihood.uniforms
    return {
        "sample": _Sample(graphs["sample"], uniforms, dim, noise),
        "decode": _Decode(graphs["decode"], uniforms),
        "encode": _Encode(graphs["encode"], dim, noise),
        "score": _Score(graphs["score"], dim, noise),
        "evidence": _Evidence(graphs["evidence"], dim, noise),
    }


def _as_pixels(mean: F32) -> U8:
    """``round(255 p)``; where p is no number, 0: eight bits cannot say so, `finite` does."""
    pixels: F32 = np.rint(mean * np.float32(255.0))
    np.nan_to_num(pixels, copy=False, posinf=0.0)
    np.clip(pixels, 0, 255, out=pixels)
    return pixels.astype(np.uint8)


def _seeds(pieces: Sequence[Piece[Any]], images: Sequence[int]) -> U64:
    """The seed of every image ``[N]``, of which each piece has so many; 0 where a work has none."""
    return np.repeat(np.array([work.seed or 0 for work, _, _ in pieces], dtype=np.uint64), images)


def _placed(pieces: Sequence[Piece[WorkT]]) -> list[tuple[slice, WorkT, int, int]]:
    """The pieces, each behind the place of its rows in the batch."""
    placed, end = [], 0
    for work, start, stop in pieces:
        placed.append((slice(end, end + stop - start), work, start, stop))
        end += stop - start
    return placed


def _drawn(noise: Callable[..., F32], rows: F32, drawn: Drawn) -> F32:
    """`rows` ``[R, D]`` with `noise` in those that are `drawn`, which one call makes for all."""
    if not drawn:
        return rows
    seeds, streams, purposes = (
        _join(list(column)) for column in zip(*(keys for _, keys in drawn), strict=True)
    )
    made = noise(seeds, streams, 0, rows.shape[1], purposes)
    if len(made) == len(rows):
        return made
    rows[np.concatenate([np.arange(place.start, place.stop) for place, _ in drawn])] = made
    return rows


def _join(arrays: list[NDArray[Any]]) -> NDArray[Any]:
    return np.ascontiguousarray(arrays[0]) if len(arrays) == 1 else np.concatenate(arrays)
