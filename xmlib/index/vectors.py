"""The token vectors of a collection, packed: one axis for the tokens of all documents, and where each document starts.

Axes, used as suffixes:  B documents · N some of the documents · T document tokens · H embedding
The tokens of document b are rows offsets_B1[b] : offsets_B1[b + 1]. Nothing is padded.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from xmlib.ragged import offsets_of


@dataclass
class TokenVectors:
    """Unit-length token vectors of B documents. Slicing by documents gives views, so memory maps stay on disk."""

    vectors_TH: np.ndarray  # float16 or float32
    offsets_B1: np.ndarray  # int64, (B + 1,)
    types_T: np.ndarray | None = None  # int32: which piece of the vocabulary each token is, where that is known

    def __post_init__(self) -> None:
        offsets_B1, T = self.offsets_B1, len(self.vectors_TH)
        if self.vectors_TH.ndim != 2 or self.vectors_TH.dtype not in (np.float16, np.float32):
            raise ValueError(
                f"token vectors must be (T, H) in float16 or float32, "
                f"not {self.vectors_TH.shape} in {self.vectors_TH.dtype}"
            )
        if offsets_B1[0] != 0 or offsets_B1[-1] != T or (np.diff(offsets_B1) < 0).any():
            raise ValueError(f"offsets must rise from 0 to the number of token vectors, {T}; got {offsets_B1}")
        if self.types_T is not None and len(self.types_T) != T:
            raise ValueError(f"{len(self.types_T)} types of tokens for {T} token vectors")

    def __len__(self) -> int:
        return len(self.offsets_B1) - 1

    @property
    def lengths_B(self) -> np.ndarray:
        return np.diff(self.offsets_B1)

    def slice(self, start: int, stop: int) -> "TokenVectors":
        """Documents start to stop, as a view. Its shape is what every `build` takes as `chunks`."""
        offsets_N1 = self.offsets_B1[start : stop + 1]
        rows = slice(offsets_N1[0], offsets_N1[-1])
        types_T = None if self.types_T is None else self.types_T[rows]
        return TokenVectors(self.vectors_TH[rows], offsets_N1 - offsets_N1[0], types_T)

    @classmethod
    def from_lengths(cls, vectors_TH: np.ndarray, lengths_B: np.ndarray) -> "TokenVectors":
        return cls(vectors_TH, offsets_of(lengths_B))

    @classmethod
    def concatenate(cls, parts: Iterable["TokenVectors"]) -> "TokenVectors":
        parts = list(parts)
        lengths_B = np.concatenate([part.lengths_B for part in parts])
        types = [part.types_T for part in parts]
        types_T = None if any(of is None for of in types) else np.concatenate(types)
        return cls(np.concatenate([part.vectors_TH for part in parts]), offsets_of(lengths_B), types_T)
