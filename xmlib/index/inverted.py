"""The inverted file under both BM25 engines: which passages a term occurs in and how often, in as few bits as need be.

    score(q, d) = sum over terms t of q of  idf(t) · tf / (tf + k1 · (1 - b + b · |d| / mean |d|))

is Lucene's BM25, as in `xmlib.index.bm25`, over the same terms. One term's part, `weight`, is rounded to float32, and
parts are added in float64, which has 29 bits more: enough for sums to be exact, unless a term is in nearly all of many
millions of passages. So neither the order of the terms nor how a search gets there changes a score.

Axes, used as suffixes:  V terms of the vocabulary · P postings · B documents · N terms of a query · T tokens
"""

from array import array
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xmlib.data.collection import Collection
from xmlib.index import analysis, store
from xmlib.index.bm25 import Searches
from xmlib.index.kernels import compiled
from xmlib.ragged import offsets_of


@dataclass(frozen=True)
class Postings:
    """Postings by term: those of term v are offsets_V1[v] : offsets_V1[v + 1], in order of the passages."""

    vocabulary: list[str]
    offsets_V1: np.ndarray
    document_P: np.ndarray
    count_P: np.ndarray  # how often the term is there
    length_B: np.ndarray  # of each passage, in terms


def invert(collection: Collection) -> Postings:
    """Analyse all passages and turn them around. In memory: 4 bytes a token, then 8 a posting."""
    terms = analysis.analyser(collection.lang)
    vocabulary: dict[str, int] = {}  # numbered as they come, so that equal passages give equal files
    tokens, lengths = array("i"), array("i")
    for _, text in collection.passages.items():
        found = terms(text)
        tokens.extend(vocabulary.setdefault(term, len(vocabulary)) for term in found)
        lengths.append(len(found))
    if not vocabulary:
        raise ValueError(f"{collection.name} ({collection.lang}): no term in {len(lengths)} passages")
    length_B = np.array(lengths, np.int32)
    inverted = _invert(np.frombuffer(tokens, np.int32), offsets_of(length_B), len(vocabulary))
    return Postings(list(vocabulary), *inverted, length_B)


def idf(document_frequency_V: np.ndarray, n_documents: int) -> np.ndarray:
    frequency_V = document_frequency_V.astype(np.float64)
    return np.log1p((n_documents - frequency_V + 0.5) / (frequency_V + 0.5)).astype(np.float32)


def norm(length_B: np.ndarray, k1: float, b: float) -> np.ndarray:
    """k1 · (1 - b + b · |d| / mean |d|)"""
    return (k1 * (1 - b + b * length_B / length_B.mean())).astype(np.float32)


@compiled
def weight(idf, count, norm):
    """What a term adds to the score of a passage, float32; all three are float32."""
    return idf * count / (count + norm)


@compiled
def weights(idf_V, norm_B, offsets_V1, document_P, count_P):
    """Of every posting."""
    weight_P = np.empty(len(document_P), np.float32)
    for v in range(len(idf_V)):
        for p in range(offsets_V1[v], offsets_V1[v + 1]):
            weight_P[p] = weight(idf_V[v], np.float32(count_P[p]), norm_B[document_P[p]])
    return weight_P


class Lexical(Searches):
    """What an open BM25 engine is beside its postings: the vocabulary, and how a text becomes terms of it."""

    KIND = ""

    def __init__(self, stored: store.Stored) -> None:
        version, path = stored.settings["analysis"], stored.path / store.META
        if version != analysis.VERSION:
            raise store.IndexFolderError(
                f"{path}: expected analysis {analysis.VERSION}, found {version}; build it again"
            )
        self.stored, self.ids = stored, stored.ids
        words = bytes(stored.arrays["vocabulary"]).decode().split("\n")
        self._vocabulary = {word: v for v, word in enumerate(words)}
        self._terms = analysis.analyser(stored.meta["origin"]["lang"])

    @classmethod
    def build(cls, folder: str | Path, collection: Collection, k1: float = 0.9, b: float = 0.4):
        """Index the passages of `collection` in `folder`, which must not exist, and open it."""
        settings = {"k1": k1, "b": b, "analysis": analysis.VERSION}
        origin = {"model": "bm25", "lang": collection.lang, "collection": collection.passages.fingerprint}
        store.check_absent(Path(folder))
        postings = invert(collection)
        frequency_V = np.diff(postings.offsets_V1)
        idf_V, norm_B = idf(frequency_V, len(postings.length_B)), norm(postings.length_B, k1, b)
        weight_P = weights(idf_V, norm_B, postings.offsets_V1, postings.document_P, postings.count_P)
        more, arrays = cls.pack(postings, weight_P)
        arrays["vocabulary"] = np.frombuffer("\n".join(postings.vocabulary).encode(), np.uint8)
        store.create(folder, cls.KIND, origin, settings | more, list(collection.passages.ids), arrays)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: str | Path):
        return cls(store.open(folder, cls.KIND))

    def encode(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """A query as this index sees it: the terms it knows, and how often the query has each."""
        counted = Counter(v for v in map(self._vocabulary.get, self._terms(text)) if v is not None)
        return np.array(list(counted), np.int64), np.array(list(counted.values()), np.int64)

    def size_report(self) -> dict[str, int]:
        size = self.stored.file_bytes
        parts = {f"{name}_bytes": size[name] for name in ("vocabulary", "ids", "meta")}
        return {"posting_bytes": sum(size.values()) - sum(parts.values())} | parts | {"total_bytes": sum(size.values())}


# --- bits: numbers of up to 32 bits each, one after the other in words of 32


@compiled
def put(words, bit, width, value):
    """Write a number of `width` bits at `bit`. The words must be zero there, and one more must follow."""
    at, shifted = bit >> 5, np.int64(value) << (bit & 31)
    words[at] |= np.uint32(shifted & 0xFFFFFFFF)
    words[at + 1] |= np.uint32((shifted >> 32) & 0xFFFFFFFF)


@compiled
def get(words, bit, width):
    at = bit >> 5
    return ((np.int64(words[at]) | (np.int64(words[at + 1]) << 32)) >> (bit & 31)) & ((np.int64(1) << width) - 1)


@compiled
def width_of(value):
    """Bits that a number takes; 0 for 0."""
    width = 0
    while value:
        value >>= 1
        width += 1
    return width


@compiled
def _invert(token_T, offsets_B1, V):
    """Counting sort by term. The last passage that a term was seen in tells a repetition from a new posting."""
    last_V = np.full(V, -1, np.int64)
    offsets_V1 = np.zeros(V + 1, np.int64)
    for b in range(len(offsets_B1) - 1):
        for t in range(offsets_B1[b], offsets_B1[b + 1]):
            if last_V[token_T[t]] != b:
                last_V[token_T[t]] = b
                offsets_V1[token_T[t] + 1] += 1
    offsets_V1[:] = np.cumsum(offsets_V1)
    next_V = offsets_V1[:-1].copy()
    document_P = np.empty(offsets_V1[-1], np.uint32)
    count_P = np.zeros(offsets_V1[-1], np.uint32)
    last_V[:] = -1
    for b in range(len(offsets_B1) - 1):
        for t in range(offsets_B1[b], offsets_B1[b + 1]):
            v = token_T[t]
            if last_V[v] != b:
                last_V[v] = b
                document_P[next_V[v]] = b
                next_V[v] += 1
            count_P[next_V[v] - 1] += 1
    return offsets_V1, document_P, count_P
