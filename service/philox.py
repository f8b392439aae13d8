"""Philox-4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw (2011).

*Parallel Random Numbers: As Easy as 1, 2, 3*, SC'11, https://doi.org/10.1145/2063384.2063405. A
block of four 32-bit words is a bijection of a 128-bit counter under a 64-bit key, so any block
can be computed on its own: no state, no order, no generator object for each row.
(`numpy.random.Philox` is the 4x64 member of the family and needs one object for each key.)
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

__all__ = ["philox4x32"]

U32 = NDArray[np.uint32]

ROUNDS = 10
# The published multipliers M0, M1 and key increments ("Weyl constants") W0, W1.
MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], dtype=np.uint64)
WEYL = np.array([0x9E3779B9, 0xBB67AE85], dtype=np.uint64)
# Where the halves of a 64-bit product lie when it is seen as two 32-bit words.
LOW, HIGH = (0, 1) if sys.byteorder == "little" else (1, 0)


def philox4x32(even: U32, odd: U32, key: U32) -> U32:
    """Four random words for each counter ``(c0, c1, c2, c3)`` under the key ``(k0, k1)``.

    even, odd: uint32 ``[2, ...]`` holding the words ``(c0, c2)`` and ``(c1, c3)``; key: uint32
    ``[2, ...]``; all broadcastable to `even`. Returns uint32 ``[4, ...]``: the words in order.

    Even and odd words are kept apart so that both multiplications of a round are one operation on
    one array, and halves of products are views: calls cost as much as arithmetic where a batch is
    small.
    """
    lanes = (2,) + (1,) * (even.ndim - 1)
    multipliers = MULTIPLIERS.reshape(lanes)
    steps = np.arange(ROUNDS, dtype=np.uint64).reshape(-1, *([1] * even.ndim))
    keys = (key + steps * WEYL.reshape(lanes)).astype(np.uint32)  # [ROUNDS, 2, ...], modulo 2**32
    for round_key in keys:
        # Reversed to (M1 c2, M0 c0): the product of one multiplier feeds the other half.
        halves = (multipliers * even).view(np.uint32)[::-1]
        even = halves[..., HIGH::2] ^ odd
        even ^= round_key
        odd = halves[..., LOW::2]
    return np.stack((even[0], odd[0], even[1], odd[1]))
