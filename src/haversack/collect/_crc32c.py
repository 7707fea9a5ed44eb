"""CRC-32C (Castagnoli) of bytes, in numpy: 256 steps over all rows of 256 bytes at once, then rows joined.

A CRC is linear: that of two pieces together is that of the first, moved on by the second's length, xor that
of the second. Moving on by 2^k rows is a 32 x 32 matrix over bits, kept as four tables of bytes.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

U32 = npt.NDArray[np.uint32]
_POLYNOMIAL = 0x82F63B78
_ROW = 256


@functools.cache
def _bytes_table() -> U32:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1).astype(np.uint32)
    return table


@functools.cache
def _moved_on(rows_log2: int) -> U32:
    """Tables [4, 256] that move a CRC on by 2^rows_log2 rows of zeros."""
    if rows_log2:
        half = _moved_on(rows_log2 - 1)
        return _apply(half, _apply(half, _units()).reshape(4, 256)).reshape(4, 256)
    state = _units()
    for _ in range(_ROW):
        state = _bytes_table()[state & 0xFF] ^ (state >> 8)
    return state.reshape(4, 256)


def _units() -> U32:
    """Every value of each of the four bytes, [1024]."""
    values = np.arange(256, dtype=np.uint32)
    return np.concatenate([values << np.uint32(8 * at) for at in range(4)]).astype(np.uint32)


def _apply(tables: U32, crc: U32) -> U32:
    moved: U32 = tables[0][crc & 0xFF]
    for at in (1, 2, 3):
        moved = moved ^ tables[at][(crc >> np.uint32(8 * at)) & 0xFF]
    return moved


def crc32c(data: bytes) -> int:
    """The CRC-32C of `data`; 0 of nothing.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    if len(data) < 4:
        crc = 0xFFFFFFFF
        for byte in data:
            crc = int(_bytes_table()[(crc ^ byte) & 0xFF]) ^ (crc >> 8)
        return crc ^ 0xFFFFFFFF
    rows = 1 << max(0, (-(-len(data) // _ROW) - 1).bit_length())
    padded = np.zeros(rows * _ROW, np.uint8)  # zeros before the first byte leave a CRC of 0 alone
    padded[-len(data) :] = np.frombuffer(data, np.uint8)
    padded[len(padded) - len(data) :][:4] ^= 0xFF  # the start value
    columns = np.ascontiguousarray(padded.reshape(rows, _ROW).T).astype(np.uint32)
    table = _bytes_table()
    state = np.zeros(rows, np.uint32)
    for column in columns:
        state = table[(state ^ column) & 0xFF] ^ (state >> 8)
    level = 0
    while len(state) > 1:
        state = _apply(_moved_on(level), state[0::2]) ^ state[1::2]
        level += 1
    return int(state[0]) ^ 0xFFFFFFFF
