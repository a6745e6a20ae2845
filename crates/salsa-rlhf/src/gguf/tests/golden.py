#!/usr/bin/env python3
"""Digests of blocks as the Python package `gguf` and llama.cpp's own library decode and encode them.

    pip install numpy gguf
    ./golden.py /path/to/libggml-base.so > golden.txt

The library is part of any build of llama.cpp (the npm package node-llama-cpp ships one). Blocks and numbers come from a
linear congruential generator, which blocks.rs beside this file has too. A line is `decode TYPE SHA-256` of the float32
numbers, or `encode TYPE SHA-256` of the blocks. Q8_K, which the package does not decode, is decoded by the library.
"""
import ctypes
import hashlib
import sys

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T, dequantize

BLOCKS = 64
# The bytes of a block whose second highest bit is cleared, so that its float16 or float32 scale is finite.
SCALES = {T.F32: [3], T.F16: [1], T.BF16: [1], T.Q4_0: [1], T.Q4_1: [1, 3], T.Q5_0: [1], T.Q5_1: [1, 3], T.Q8_0: [1],
          T.Q2_K: [81, 83], T.Q3_K: [109], T.Q4_K: [1, 3], T.Q5_K: [1, 3], T.Q6_K: [209], T.Q8_K: [3]}
ENCODED = [T.Q4_0, T.Q5_0, T.Q8_0, T.Q4_K, T.Q5_K, T.Q6_K]


def words(count):
    state, out = 1, []
    for _ in range(count):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        out.append(state >> 48)
    return out


def blocks(kind):
    size = GGML_QUANT_SIZES[kind][1]
    data = np.array([word & 255 for word in words(BLOCKS * size)], dtype=np.uint8).reshape(BLOCKS, size)
    data[:, SCALES[kind]] &= 0xBF
    return data


def numbers():
    """Rows of 256: sums of four uniform numbers; then with an outlier, positive only, constant, zeros, tiny."""
    quads = np.array(words(BLOCKS * 256 * 4), dtype=np.int64).reshape(BLOCKS, 256, 4).sum(axis=2)
    rows = ((quads - 2 * 65535) / 2**19).astype(np.float32)
    rows[1, 100] = 3
    rows[2] = np.abs(rows[2])
    rows[3] = -np.abs(rows[3])
    rows[4] = 0.25
    rows[5] = 0
    rows[6] *= np.float32(2**-30)
    rows[7, 32:64] = 0
    return rows


def main():
    library = ctypes.CDLL(sys.argv[1])
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    for kind in SCALES:
        data = blocks(kind)
        if kind == T.Q8_K:
            out = np.zeros(BLOCKS * 256, dtype=np.float32)
            library.dequantize_row_q8_K(data.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p),
                                        ctypes.c_int64(out.size))
        else:
            out = dequantize(data, kind)
        print("decode", kind.name, hashlib.sha256(np.ascontiguousarray(out, dtype="<f4").tobytes()).hexdigest())
    rows = numbers()
    for kind in ENCODED:
        length, size = GGML_QUANT_SIZES[kind]
        out = np.zeros(rows.size // length * size, dtype=np.uint8)
        library.ggml_quantize_chunk(
            ctypes.c_int(kind), rows.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_int64(0), ctypes.c_int64(BLOCKS), ctypes.c_int64(256), None)
        print("encode", kind.name, hashlib.sha256(out.tobytes()).hexdigest())


main()
