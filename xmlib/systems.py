"""The rows of the tables: what each system is, and how it ranks a collection.

    run = rank(System("ColBERT-XM", "colbert-xm", model=folder), collection, k=100)

Building an index and searching it are stages: done once for a system and a collection, and found again afterwards.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from xmlib.data.collection import Collection
from xmlib.evaluation import Run
from xmlib.index import analysis
from xmlib.paths import RUNS
from xmlib.stages import fingerprint, stage

KINDS = ("bm25", "dpr-xm", "colbert-xm")
ENGINES = ("plaid", "exact")  # how token vectors are searched; pooled vectors and words have one engine each
RUN_FILE = "run.trec"


@dataclass(frozen=True)
class System:
    """One row of a table. `model` is the folder of a finished stage; BM25 has none."""

    name: str
    kind: str
    model: Path | None = None
    adapters: str | None = None  # the language whose adapters all text is routed through; None: its own
    engine: str = "plaid"

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"{self.name}: kind {self.kind!r}; have: {', '.join(KINDS)}")
        if self.engine not in ENGINES:
            raise ValueError(f"{self.name}: engine {self.engine!r}; have: {', '.join(ENGINES)}")
        if (self.model is None) != (self.kind == "bm25"):
            raise ValueError(f"{self.name}: a {self.kind} system {'takes no' if self.model else 'needs a'} model")

    def route(self, lang: str) -> str:
        """The language whose adapters encode texts in `lang`."""
        return self.adapters or lang


def rank(system: System, collection: Collection, k: int = 100, progress: bool = True) -> Run:
    """The k best passages for every query of `collection`. Index and ranking are built where they are missing."""
    folder = index(system, collection, progress)
    inputs = {
        "index": fingerprint(folder),
        "name": system.name,
        "queries": collection.fingerprint,
        "k": k,
    }

    def build(into: Path) -> None:
        scores_Ak, positions_Ak = _search(system, folder / "index", collection, min(k, len(collection.passages)))
        Run.from_search(system.name, list(collection.queries), collection.passages.ids, scores_Ak, positions_Ak).save(
            into / RUN_FILE
        )

    say = print if progress else _silent
    return Run.load(stage(RUNS / "rankings", f"run-{collection.lang}", 1, inputs, build, say) / RUN_FILE)


def index(system: System, collection: Collection, progress: bool = True) -> Path:
    """The folder of the stage that holds the system's index of the collection's passages, built if it is missing."""
    inputs = {
        "kind": system.kind,
        "passages": collection.passages.fingerprint,
        "lang": collection.lang,
        "model": fingerprint(system.model) if system.model else None,
        "adapters": system.route(collection.lang),
        "engine": f"{system.engine} 2" if system.kind == "colbert-xm" else None,  # 2: product-quantised residuals
        "analysis": analysis.VERSION if system.kind == "bm25" else None,
    }

    def build(into: Path) -> None:
        _build_index(system, collection, into / "index", progress)

    say = print if progress else _silent
    return stage(RUNS / "indexes", f"{system.kind}-{collection.lang}", 1, inputs, build, say)


def open_index(system: System, folder: Path):
    """The index below a stage's folder, ready to search."""
    if system.kind == "bm25":
        from xmlib.index.bm25 import BM25

        return BM25.open(folder)
    return _vector_index(system).open(folder)


@lru_cache(maxsize=2)
def open_model(kind: str, folder: Path):
    """The retriever in `folder`, on the GPU if there is one. The last two stay open."""
    from xmlib.models import ColbertXM, DprXM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {"colbert-xm": ColbertXM, "dpr-xm": DprXM}[kind].open(folder).to(device)


def _build_index(system: System, collection: Collection, folder: Path, progress: bool) -> None:
    if system.kind == "bm25":
        from xmlib.index.bm25 import BM25

        BM25.build(folder, collection)
        return
    model, lang = open_model(system.kind, system.model), system.route(collection.lang)

    def chunks(start: int, stop: int):
        texts = [collection.passages.text(position) for position in range(start, stop)]
        return model.encode_passages(texts, lang, progress=f"encode {collection.lang}" if progress else None)

    origin = {"model": fingerprint(system.model), "lang": lang, "collection": collection.passages.fingerprint}
    _vector_index(system).build(folder, chunks, list(collection.passages.ids), origin)


def _vector_index(system: System):
    """The module whose `build` and `open` serve the system's vectors."""
    from xmlib.index import dense, exact, plaid

    return dense if system.kind == "dpr-xm" else {"plaid": plaid, "exact": exact}[system.engine]


def _search(system: System, folder: Path, collection: Collection, k: int) -> tuple[np.ndarray, np.ndarray]:
    texts, opened = list(collection.queries.values()), open_index(system, folder)
    if system.kind == "bm25":
        return opened.search(texts, k)
    model, lang = open_model(system.kind, system.model), system.route(collection.lang)
    if system.kind == "dpr-xm":
        return opened.search(model.encode_queries(texts, lang), k)
    return opened.search(*model.encode_queries(texts, lang), k)


def _silent(line: str) -> None:
    """In place of `print`, where a caller's own progress bar says enough."""
