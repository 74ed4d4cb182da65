"""BM25 by Lucene itself, through the Anserini that comes with Pyserini: the row of Table 5 that is not our own code.

It needs `pip install pyserini` and Java 21 or later, found by JAVA_HOME or the PATH; `missing()` says what is lacking.
Lucene gets the terms of `xmlib.index.analysis`, joined by blanks, so that engines differ and not their words. Its
scores are not to the digit those of `xmlib.index.bm25`: Lucene rounds the length of a passage to one byte and counts no
passage without a term; Anserini rounds scores to four digits and takes a millionth off for every tie.
"""

import importlib.util
import json
import os
import shutil
from functools import cache
from pathlib import Path

import numpy as np

from xmlib.data.collection import Collection
from xmlib.index import analysis
from xmlib.index.bm25 import Searches

FORMAT = "xmlib-lucene-1"


@cache
def missing() -> str:
    """Why Lucene cannot run here, in words; empty if it can."""
    for module, package in (("pyserini", "pyserini"), ("jnius", "pyjnius")):
        if importlib.util.find_spec(module) is None:
            return f"{package} is not installed (pip install pyserini; it needs Java 21 or later)"
    if not os.environ.get("JAVA_HOME") and shutil.which("java") is None:
        return "there is no Java: set JAVA_HOME to a JDK of version 21 or later"
    try:
        _java("io.anserini.search.SimpleSearcher")
    except Exception as error:  # pyjnius raises whatever the Java machine did, a too old one among it
        return f"Java does not load Anserini ({type(error).__name__}: {str(error).strip().splitlines()[0][:120]})"
    return ""


def _java(name: str):
    from pyserini.pyclass import autoclass  # starts the Java machine

    return autoclass(name)


class Lucene(Searches):
    """An index of Lucene's on disk, and `meta.json` with the language and where the passages came from."""

    def __init__(self, folder: Path, meta: dict) -> None:
        self.folder, self.meta = folder, meta
        self._terms = analysis.analyser(meta["lang"])
        self._searcher = _java("io.anserini.search.SimpleSearcher")(str(folder / "lucene"))
        self._searcher.set_analyzer(_java("org.apache.lucene.analysis.core.WhitespaceAnalyzer")())
        self._searcher.set_bm25(meta["k1"], meta["b"])

    @classmethod
    def build(cls, folder: str | Path, collection: Collection, k1: float = 0.9, b: float = 0.4) -> "Lucene":
        """Index the passages of `collection` in `folder`, which must not exist; written beside, then renamed."""
        folder = Path(folder)
        if missing():
            raise RuntimeError(f"no Lucene: {missing()}")
        if folder.exists():
            raise FileExistsError(f"{folder} exists already: open it, or remove it to build anew")
        beside = folder.with_name(f".{folder.name}.{os.getpid()}")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        terms, document = analysis.analyser(collection.lang), _java("io.anserini.collection.JsonCollection$Document")
        where = ["-index", str(beside / "lucene"), "-input", "", "-collection", "JsonCollection"]
        indexer = _java("io.anserini.index.SimpleIndexer")([*where, "-pretokenized", "-threads", "1"])
        for position, (_, text) in enumerate(collection.passages.items()):
            # Ten digits, because Lucene's ties go by the id's text.
            indexer.addJsonDocument(document.fromFields(f"{position:010}", " ".join(terms(text))))
        indexer.close()
        meta = {
            "format": FORMAT, "analysis": analysis.VERSION, "lang": collection.lang, "k1": k1, "b": b,
            "passages": len(collection.passages), "passages_fingerprint": collection.passages.fingerprint,
        }  # fmt: skip
        (beside / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
        os.replace(beside, folder)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: str | Path) -> "Lucene":
        path = Path(folder) / "meta.json"
        if not path.is_file():
            raise FileNotFoundError(f"{folder} is no Lucene index: it has no meta.json")
        meta = json.loads(path.read_text())
        if meta.get("format") != FORMAT or meta.get("analysis") != analysis.VERSION:
            found = f"format {meta.get('format')!r}, analysis {meta.get('analysis')!r}"
            raise ValueError(f"{path}: expected format {FORMAT!r}, analysis {analysis.VERSION}; found {found}")
        if missing():
            raise RuntimeError(f"no Lucene: {missing()}")
        return cls(Path(folder), meta)

    def encode(self, text: str) -> str:
        return " ".join(self._terms(text))

    def hits(self, query: str, k: int) -> list:
        """The k best passages of a query as `encode` makes it, as Java has them: what is timed."""
        return self._searcher.search(query, k) if query else []

    def find(self, query: str, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best passages, or fewer: scores and positions, best first."""
        hits = self.hits(query, k)
        scores = np.array([hit.score for hit in hits], np.float32)
        return scores, positions(hits)

    def size_report(self) -> dict[str, int]:
        return {"total_bytes": sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())}


def positions(hits: list) -> np.ndarray:
    """Of what `Lucene.hits` found."""
    return np.array([int(hit.docid) for hit in hits], np.int64)
