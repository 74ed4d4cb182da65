"""Sequences of different lengths, packed behind one another: sequence b is rows offsets_B1[b] : offsets_B1[b + 1].

Axes, used as suffixes:  B sequences · N some of them · T rows of all
"""

import numpy as np


def offsets_of(lengths_B: np.ndarray) -> np.ndarray:
    """Where sequences of these lengths start and end. Returns (B + 1,), int64."""
    return np.concatenate([[0], np.cumsum(lengths_B, dtype=np.int64)])


def rows_of(offsets_B1: np.ndarray, positions_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of some sequences, in the order asked for, and the offsets that pack them.

    Returns rows_T and offsets_N1, both int64. No loop: a run of consecutive rows is a global count plus a shift per
    sequence.
    """
    lengths_N = offsets_B1[positions_N + 1] - offsets_B1[positions_N]
    offsets_N1 = offsets_of(lengths_N)
    shift_N = offsets_B1[positions_N] - offsets_N1[:-1]
    return np.arange(offsets_N1[-1]) + np.repeat(shift_N, lengths_N), offsets_N1
