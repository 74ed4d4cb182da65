"""BM25 over the terms of `xmlib.index.analysis`, scored by `bm25s` with Lucene's formula.

    score(q, d) = sum over terms t of q of  idf(t) · tf / (tf + k1 · (1 - b + b · |d| / mean |d|))
    idf(t) = ln(1 + (N - df + 0.5) / (df + 0.5))

The defaults k1 = 0.9, b = 0.4 are Anserini's. Lucene itself rounds |d| to one byte; this does not. A term that the
query repeats counts as often as it is there.
"""

import json
import logging
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

from xmlib.data.collection import Collection
from xmlib.index import analysis

FORMAT = "xmlib-bm25-1"


class Searches:
    """Search for many queries with an engine that has `encode` and, for one of them, `find`."""

    def search(self, texts: list[str], k: int, **limits) -> tuple[np.ndarray, np.ndarray]:
        """The k best passages of every query: (scores_Ak float32, positions_Ak int64), best first, ties by position.

        Only passages that share a term with the query are found; the rest of a row is -inf and -1.
        """
        scores_Ak = np.full((len(texts), k), -np.inf, dtype=np.float32)
        positions_Ak = np.full((len(texts), k), -1, dtype=np.int64)
        for a, text in enumerate(texts):
            scores, positions = self.find(self.encode(text), k, **limits)
            scores_Ak[a, : len(scores)], positions_Ak[a, : len(scores)] = scores, positions
        return scores_Ak, positions_Ak


class BM25(Searches):
    """An index on disk: what `bm25s` saves, and `meta.json` with the language and where the passages came from."""

    def __init__(self, folder: Path, meta: dict, postings):
        self.folder, self.meta, self._postings = folder, meta, postings
        self._terms = analysis.analyser(meta["lang"])

    @classmethod
    def build(cls, folder: str | Path, collection: Collection, k1: float = 0.9, b: float = 0.4) -> "BM25":
        """Index the passages of `collection`, replacing what is in `folder`. Written beside and renamed into place."""
        import bm25s

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # importing it sets DEBUG, which a notebook then prints
        terms = analysis.analyser(collection.lang)
        vocabulary: dict[str, int] = {}  # numbered as they come, so that equal passages give equal files
        ids = [
            [vocabulary.setdefault(term, len(vocabulary)) for term in terms(text)]
            for _, text in collection.passages.items()
        ]
        if not vocabulary:
            raise ValueError(f"{collection.name} ({collection.lang}): no term in {len(ids)} passages")
        postings = bm25s.BM25(k1=k1, b=b, method="lucene", auto_compile=False)
        postings.index((ids, vocabulary), create_empty_token=False, show_progress=False)
        meta = {
            "format": FORMAT, "analysis": analysis.VERSION, "lang": collection.lang, "k1": k1, "b": b,
            "collection": collection.name, "passages": len(ids),
            "passages_fingerprint": collection.passages.fingerprint,
        }  # fmt: skip

        folder = Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        replaced = beside.with_name(f"{beside.name}.replaced")
        try:
            postings.save(beside, show_progress=False)
            meta["bytes"] = {path.name: path.stat().st_size for path in sorted(beside.iterdir())}
            (beside / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
            if folder.exists():  # renamed away, not emptied: what bears this name is whole
                os.replace(folder, replaced)
            os.replace(beside, folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
            shutil.rmtree(replaced, ignore_errors=True)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: str | Path) -> "BM25":
        """Open a folder that `build` wrote, memory-mapped."""
        import bm25s

        folder = Path(folder)
        path = folder / "meta.json"
        if not path.is_file():
            raise FileNotFoundError(f"{folder} is no BM25 index: it has no meta.json")
        meta = json.loads(path.read_text())
        if meta.get("format") != FORMAT or meta.get("analysis") != analysis.VERSION:
            found = f"format {meta.get('format')!r}, analysis {meta.get('analysis')!r}"
            raise ValueError(f"{path}: expected format {FORMAT!r}, analysis {analysis.VERSION}; found {found}")
        for name, expected in meta["bytes"].items():
            found = (folder / name).stat().st_size if (folder / name).is_file() else "no file"
            if found != expected:
                raise ValueError(f"{folder / name}: expected {expected} bytes, found {found}; build the index again")
        return cls(folder, meta, bm25s.BM25.load(folder, mmap=True, auto_compile=False))

    def encode(self, text: str) -> list[int]:
        """A query as this index sees it: the numbers of those of its terms that it knows."""
        return self._postings.get_tokens_ids(self._terms(text))

    def find(self, query: list[int], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best passages of a query as `encode` makes it, or fewer: scores and positions, best first."""
        score_B = self._postings.get_scores_from_ids(query)
        found = np.flatnonzero(score_B > 0)
        if len(found) > k:
            # All that reach the k-th score, so that ties at the border are settled by position too.
            found = found[score_B[found] >= np.partition(score_B[found], -k)[-k]]
        found = found[np.argsort(-score_B[found], kind="stable")][:k]
        return score_B[found], found

    def size_report(self) -> dict[str, int]:
        return {"total_bytes": sum(path.stat().st_size for path in self.folder.iterdir())}
