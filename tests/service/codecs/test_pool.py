"""The decoder pool against plain decoding, and processes that really end."""

from __future__ import annotations

import asyncio
import base64
import errno
import io
import json
import os
import signal
import struct
import zlib
from contextlib import asynccontextmanager

import numpy as np
import pytest
from PIL import Image

from service.codecs import pool as pool_module
from service.codecs.images import Fit, PixelLimits, fit_array, fit_files
from service.codecs.json_body import json_images
from service.codecs.pool import DecoderPool, Turns
from service.errors import (
    DeadlineExceeded,
    InvalidInput,
    Overloaded,
    PayloadTooLarge,
    ShuttingDown,
    UndecodableImage,
    WrongShape,
)

SHAPE = (1, 28, 28)
FIT = Fit(resize=True, convert=True)
LIMITS = PixelLimits()
RNG = np.random.default_rng(0)


def png(height, width) -> bytes:
    file = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (height, width), np.uint8)).save(file, "PNG")
    return file.getvalue()


def dear_png(side=4096) -> bytes:
    """Sixteen million pixels of one level in some kilobytes."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(bytes((side + 1) * side), 9))
    return b"\x89PNG\r\n\x1a\n" + head + rows + chunk(b"IEND", b"")


SMALL, MIDDLE, LARGE, DEAR = png(28, 28), png(200, 300), png(400, 400), dear_png()


@asynccontextmanager
async def opened(cores=1):
    pool = DecoderPool(cores)
    try:
        yield pool
    finally:
        await pool.close()


def soon(seconds):
    return asyncio.get_running_loop().time() + seconds


def run(work):
    return asyncio.run(asyncio.wait_for(work, 60))


def test_files_are_what_they_are_without_a_pool():
    files = [SMALL, MIDDLE] * 20  # three jobs

    async def work():
        async with opened() as pool:
            return await pool.decode(files, SHAPE, FIT, LIMITS)

    got, expected = run(work()), fit_files(files, SHAPE, FIT, LIMITS)
    assert np.array_equal(got.images, expected.images)
    assert np.array_equal(got.altered, expected.altered)
    assert got.decoded == expected.decoded == 20 * (28 * 28 + 200 * 300)


def test_json_is_what_it_is_without_a_pool():
    body = json.dumps(
        {"images": [base64.b64encode(file).decode() for file in (SMALL, MIDDLE)], "model": "\ud800"}
    ).encode()

    async def main():
        async with opened() as pool:
            found = await pool.parse_json(body, 2)
            with pytest.raises(PayloadTooLarge, match="at most 1 are taken"):
                await pool.parse_json(body, 1)
            with pytest.raises(InvalidInput, match="beside the images"):
                await pool.parse_json(b'{"images": [], "x": "", "%b": 1}' % (b"y" * 20_000), 2)
            return found

    assert asyncio.run(main()) == ({"model": "\ud800"}, [SMALL, MIDDLE]) == json_images(body, 2)


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_what_they_are_without_a_pool(order):
    array = np.require(RNG.integers(0, 256, (2, 3, 300, 200), np.uint8), None, order)

    async def work():
        async with opened() as pool:
            return await pool.fit(array, SHAPE, FIT)

    assert np.array_equal(run(work()).images, fit_array(array, SHAPE, FIT).images)


def test_a_process_is_kept_for_the_next():
    async def work():
        async with opened() as pool:
            await pool.decode([MIDDLE], SHAPE, FIT, LIMITS)
            first = pool._idle[0]
            for _ in range(3):
                await pool.decode([MIDDLE], SHAPE, FIT, LIMITS)
            assert pool._idle == [first]

    run(work())


def test_errors_are_those_of_plain_decoding_and_keep_the_process():
    cases = [
        ([LARGE], Fit(), LIMITS, WrongShape, "image 0"),
        ([MIDDLE[:20_000]], FIT, LIMITS, UndecodableImage, "complete"),
        (
            [MIDDLE] * 40,
            FIT,
            PixelLimits(image=60_000, total=1_500_000),
            PayloadTooLarge,
            "image 25",
        ),
    ]

    async def work():
        async with opened() as pool:
            for files, fit, limits, error, words in cases:
                with pytest.raises(error, match=words):
                    await pool.decode(files, SHAPE, fit, limits)
                assert pool.processes == 1

    run(work())


@pytest.mark.parametrize(
    ("files", "fit", "limits", "error", "words"),
    [
        ([MIDDLE, b"GIF89a"], FIT, LIMITS, UndecodableImage, "image 1 is not a PNG"),
        ([b"x" * 2**24], FIT, LIMITS, UndecodableImage, "image 0 is not a PNG"),
        ([MIDDLE[:33]], FIT, LIMITS, UndecodableImage, "before its pixels"),
        ([MIDDLE], Fit(), LIMITS, WrongShape, "image 0 has 200x300"),
        ([DEAR], FIT, PixelLimits(image=2**23), PayloadTooLarge, "image 0 has 4096x4096"),
    ],
)
def test_what_is_told_by_headers_is_refused_without_a_process(files, fit, limits, error, words):
    async def work():
        async with opened() as pool:
            with pytest.raises(error, match=words):
                await pool.decode(files, SHAPE, fit, limits)
            assert pool.processes == 0

    run(work())


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def one_at_work(pool, count=1):
    while len(pool._busy) < count:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return [worker.pid for worker in pool._busy]


def test_the_deadline_ends_the_process_and_the_next_is_served():
    async def work():
        async with opened() as pool:
            slow = asyncio.create_task(
                pool.decode([DEAR] * 4, SHAPE, FIT, LIMITS, deadline=soon(0.3))
            )
            (pid,) = await one_at_work(pool)
            with pytest.raises(DeadlineExceeded):
                await slow
            assert not alive(pid)
            assert len((await pool.decode([MIDDLE], SHAPE, FIT, LIMITS)).images) == 1

    run(work())


def test_a_caller_who_has_gone_ends_the_process():
    async def work():
        async with opened() as pool:
            slow = asyncio.create_task(pool.decode([DEAR] * 4, SHAPE, FIT, LIMITS))
            (pid,) = await one_at_work(pool)
            slow.cancel()
            with pytest.raises(asyncio.CancelledError):
                await slow
            assert not alive(pid)
            assert pool.processes == 0

    run(work())


def test_closing_waits_for_nothing():
    async def work():
        pool = DecoderPool(1)
        jobs = [asyncio.create_task(pool.decode([DEAR] * 4, SHAPE, FIT, LIMITS)) for _ in range(3)]
        (pid,) = await one_at_work(pool)
        await pool.close()
        assert not alive(pid)
        for job in jobs:
            with pytest.raises(ShuttingDown):
                await job
        with pytest.raises(ShuttingDown):
            await pool.decode([MIDDLE], SHAPE, FIT, LIMITS)

    run(work())


def test_a_process_that_starts_while_the_pool_is_closed_ends():
    async def work():
        pool = DecoderPool(1)
        job = asyncio.create_task(pool.decode([MIDDLE], SHAPE, FIT, LIMITS))
        await asyncio.sleep(0)  # it has its turn, and starts a process
        await asyncio.sleep(0)
        await pool.close()
        with pytest.raises(ShuttingDown):
            await job
        assert pool.processes == 0

    run(work())


def test_a_process_that_dies_is_the_fault_of_its_images_alone():
    async def work():
        async with opened() as pool:
            job = asyncio.create_task(pool.decode([DEAR] * 4, SHAPE, FIT, LIMITS))
            (pid,) = await one_at_work(pool)
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(UndecodableImage, match="died"):
                await job
            await pool.decode([MIDDLE], SHAPE, FIT, LIMITS)
            (idle,) = pool._idle
            os.kill(idle.pid, signal.SIGKILL)  # while it had nothing to do
            await idle.kill()  # waits for its end
            assert len((await pool.decode([MIDDLE], SHAPE, FIT, LIMITS)).images) == 1

    run(work())


def test_memory_of_a_process_is_bounded(monkeypatch):
    async def work():
        async with opened() as pool:
            monkeypatch.setattr(pool_module, "MAX_BYTES", 2**23)
            with pytest.raises(PayloadTooLarge, match="memory"):
                await pool.decode([DEAR], SHAPE, FIT, LIMITS)

    run(work())


def test_what_is_dear_holds_up_nothing_else():
    """With every process for dear images taken, others are still decoded."""

    async def work():
        async with opened() as pool:
            flood = [
                asyncio.create_task(pool.decode([DEAR] * 4, SHAPE, FIT, LIMITS, caller=f"{i}"))
                for i in range(6)
            ]
            await one_at_work(pool)
            for _ in range(3):
                await pool.decode([MIDDLE], SHAPE, FIT, LIMITS, caller="polite")
            assert not any(job.done() for job in flood)

    run(work())


def test_processes_that_are_idle_end_but_for_one(monkeypatch):
    monkeypatch.setattr(pool_module, "IDLE_SECONDS", 0.5)

    async def work():
        async with opened(3) as pool:
            await asyncio.gather(*(pool.decode([MIDDLE], SHAPE, FIT, LIMITS) for _ in range(3)))
            assert pool.processes == 3
            while pool.processes > 1:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.6)
            assert pool.processes == 1

    run(work())


def test_without_descriptors_the_pool_is_overloaded_and_recovers(monkeypatch):
    async def refused(*_, **__):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def work():
        async with opened() as pool:
            with monkeypatch.context() as without:
                without.setattr(asyncio, "create_subprocess_exec", refused)
                for _ in range(2):
                    with pytest.raises(Overloaded, match="Too many open files"):
                        await pool.decode([MIDDLE], SHAPE, FIT, LIMITS)
            await pool.decode([MIDDLE], SHAPE, FIT, LIMITS)

    run(work())


# ------------------------------------------------------------------ turns


def order_of(callers, slots=1):
    """Who was served when, where all `callers` asked while one slot was held by another."""
    served = []

    async def one(turns, caller):
        async with turns.turn(caller):
            served.append(caller)
            await asyncio.sleep(0)

    async def work():
        turns = Turns(slots)
        async with turns.turn("first"):
            jobs = [asyncio.create_task(one(turns, caller)) for caller in callers]
            await asyncio.sleep(0)
        await asyncio.gather(*jobs)

    run(work())
    return "".join(served)


def test_callers_have_turns():
    assert order_of("aaaabbc") == "abcabaa"
    assert order_of("aaab") == "abaa"


def test_no_more_than_the_slots_at_once():
    held = most = 0

    async def one(turns, caller):
        nonlocal held, most
        async with turns.turn(caller):
            held += 1
            most = max(most, held)
            await asyncio.sleep(0.001)
            held -= 1

    async def work():
        turns = Turns(3)
        await asyncio.gather(*(one(turns, caller) for caller in "abcabcaaaa"))

    run(work())
    assert (most, held) == (3, 0)


def test_no_caller_has_more_than_its_share():
    async def work():
        turns, got = Turns(3, 2), []

        async def take(caller):
            await turns.take(caller)
            got.append(caller)

        jobs = [asyncio.create_task(take(caller)) for caller in "aaaab"]
        await asyncio.sleep(0.01)
        assert got == list("aab")
        assert turns.waiting == 2
        turns.give("b")
        await asyncio.sleep(0.01)
        assert got == list("aab"), "a slot is free for others"
        turns.give("a")
        await asyncio.sleep(0.01)
        assert got == list("aaba")
        turns.give("a")
        await asyncio.gather(*jobs)

    run(work())


def test_who_gives_up_costs_no_slot():
    async def hold(turns):
        async with turns.turn("b"):
            await asyncio.sleep(60)

    async def work():
        turns = Turns(1)
        async with turns.turn("a"):
            waiting = asyncio.create_task(hold(turns))
            await asyncio.sleep(0)
            assert turns.waiting == 1
            waiting.cancel()
            await asyncio.sleep(0)
            assert turns.waiting == 0
        granted = asyncio.create_task(hold(turns))  # cancelled in the moment that it has the slot
        await asyncio.sleep(0)
        granted.cancel()
        await asyncio.sleep(0)
        async with asyncio.timeout(5), turns.turn("c"):
            pass

    run(work())


def test_a_worker_loads_decoders_alone():
    """Its memory is that of NumPy and Pillow."""

    async def work():
        async with opened() as pool:
            await pool.decode([MIDDLE], SHAPE, FIT, LIMITS)
            pid = pool._idle[0].pid
            assert os.getpriority(os.PRIO_PROCESS, pid) > os.getpriority(os.PRIO_PROCESS, 0)
            with open(f"/proc/{pid}/maps") as maps:  # noqa: ASYNC230, PTH123
                return maps.read()

    loaded = run(work())
    assert "_imaging" in loaded
    for heavy in ("onnxruntime", "pydantic_core", "uvloop", "httptools"):
        assert heavy not in loaded
