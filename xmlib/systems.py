"""The rows of the tables: what each system is, and how it ranks a collection.

    run = rank(PAPER["mE5-base"], collection, k=100)                           # the published checkpoint
    run = rank(replace(PAPER["mE5-base"], model="folder"), collection, k=100)  # another one, same recipe

`PAPER` is the table: in the paper's order, with the checkpoints that were published and the recipe of each. Where they
cannot be downloaded, `xmlib.baselines` makes small ones of the same architecture.

Building an index, searching it and re-ranking are stages: done once for a system and a collection, and found again
afterwards.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from xmlib import reported
from xmlib.carbon import Meter
from xmlib.data.collection import Collection
from xmlib.evaluation import Run
from xmlib.index import analysis, store
from xmlib.languages import TRAINING_LANGUAGE
from xmlib.paths import RUNS
from xmlib.stages import RECORD, fingerprint, stage
from xmlib.tokens import Pieces, open_pieces, tokenizer_identity, write_pieces

KINDS = {  # what runs a system → how it is called in the paper's tables
    "bm25": "lexical",
    "mono-t5": "cross-encoder",
    "classifier": "cross-encoder",
    "mono-xm": "cross-encoder",
    "bi-encoder": "single-vector",
    "dpr-xm": "single-vector",
    "colbert": "multi-vector",
    "colbert-xm": "multi-vector",
}
ENGINES = ("plaid", "exact")  # how token vectors are searched; pooled vectors and words have one engine each
OUT_OF_DOMAIN = ("mrtydi", "sample-ood")  # collections of Table 2, which has fewer rows than Table 1
RUN_FILE = "run.trec"


@dataclass(frozen=True)
class System:
    """One row of a table. `model` is a folder or a hub id; BM25 has none."""

    name: str
    kind: str
    model: Path | str | None = None
    adapters: str | None = None  # the language whose adapters all text is routed through; None: its own
    engine: str = "plaid"
    depth: int = 1000  # results of BM25 that a cross-encoder re-ranks
    # Arguments with which the class of this kind opens the checkpoint; with "int8": true a retriever over X-MOD encodes
    # in bytes, on a CPU: `Modular.in_int8`.
    settings: dict = field(default_factory=dict)
    made: str = ""  # how the checkpoint was made, if that was here and in miniature; empty for a published one

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"{self.name}: kind {self.kind!r}; have: {', '.join(KINDS)}")
        if self.engine not in ENGINES:
            raise ValueError(f"{self.name}: engine {self.engine!r}; have: {', '.join(ENGINES)}")
        if self.depth < 1:
            raise ValueError(f"{self.name}: depth {self.depth}; at least one result has to be re-ranked")
        if (self.model is None) != (self.kind == "bm25"):
            raise ValueError(f"{self.name}: a {self.kind} system {'takes no' if self.model else 'needs a'} model")

    @property
    def group(self) -> str:
        """lexical, cross-encoder, single-vector or multi-vector."""
        return KINDS[self.kind]

    def route(self, lang: str) -> str:
        """The language whose adapters encode texts in `lang`."""
        return self.adapters or lang


BM25 = System("BM25", "bm25")  # also what cross-encoders re-rank

# What a row does not say is the default of its class in `models` or `crossencoders`.
_ROWS = (
    BM25,
    System("mT5-base", "mono-t5", "unicamp-dl/mt5-base-mmarco-v2"),
    System("mMiniLM-L6", "classifier", "unicamp-dl/mMiniLM-L6-v2-mmarco-v2"),
    System("mono-XM", "mono-xm", "antoinelouis/mono-xm"),
    # Which of this author's checkpoints, and how texts are pooled, is not said: [CLS] and dot product are DPR's.
    System(
        "DPR-X", "bi-encoder", "eugene-yang/dpr-xlmr-large-mtt-neuclir", settings=dict(pooling="cls", similarity="dot")
    ),
    System(
        "mE5-base",
        "bi-encoder",
        "intfloat/multilingual-e5-base",
        settings=dict(query_prefix="query: ", passage_prefix="passage: "),  # the mean, and cosine
    ),
    System("DPR-XM", "dpr-xm", "antoinelouis/dpr-xm"),
    System("mColBERT", "colbert", "vjeronymo2/mColBERT"),  # of ColBERT's first version; its settings are in the file
    System("ColBERT-XM with English adapters", "colbert-xm", "antoinelouis/colbert-xm", adapters=TRAINING_LANGUAGE),
    System("ColBERT-XM", "colbert-xm", "antoinelouis/colbert-xm"),
)
# k1 and b of BM25: Anserini's defaults, as in the paper's row for Mr. TyDi, or those that a collection's makers set.
ANSERINI = dict(k1=0.9, b=0.4)
TUNED = {"mmarco": dict(k1=0.82, b=0.68)}
PAPER = {system.name: system for system in _ROWS}


def pick(names: str | Sequence[str], have: Iterable[str], source: str = "") -> list[str]:
    """Names of systems: `"BM25,mT5"`, "all", "table" or a list → those of `have`, in its order. ValueError for others.

    "table" are the rows of the paper's table for the collection `source`: of Table 2 for Mr. TyDi and its stand-in,
    else all. What stands before a hyphen is enough where only one system begins so: "mT5" is mT5-base.
    """
    have = list(have)
    wanted = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    if wanted == ["table"] and source in OUT_OF_DOMAIN:
        wanted = {row["system"] for row in reported.rows(2)}
    elif wanted in (["table"], ["all"]):
        return have
    chosen = set()
    for name in wanted:
        found = [name] if name in have else [full for full in have if full.startswith(f"{name}-")]
        if len(found) != 1:
            raise ValueError(f"unknown system {name!r}; have: {', '.join(have)} (or 'all', or 'table')")
        chosen.add(found[0])
    return [name for name in have if name in chosen]


def some_queries(collection: Collection, n: int) -> Collection:
    """The same collection with `n` of its judged queries, evenly spaced; with all where n is 0 or there are no more."""
    judged = list(collection.qrels)
    if not 0 < n < len(judged):
        return collection
    qids = [judged[i * len(judged) // n] for i in range(n)]
    queries, qrels = ({qid: of[qid] for qid in qids} for of in (collection.queries, collection.qrels))
    return replace(collection, queries=queries, qrels=qrels)


def checkpoints_of(text: str) -> dict[str, str]:
    """`"mE5-base=intfloat/multilingual-e5-base, mT5-base=folder"` → name → folder or hub id; nothing for nothing."""
    pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
    for name, _, where in pairs:
        if not where.strip():
            raise ValueError(f"checkpoint {name.strip()!r} has no place: write name=folder or name=hub id")
    return {pick(name.strip(), PAPER)[0]: where.strip() for name, _, where in pairs}


def bm25_settings(collection: Collection) -> dict[str, float]:
    """k1 and b with which BM25 indexes a collection."""
    return ANSERINI | TUNED.get(collection.source, {})


def version(system: System) -> str:
    """What a result row says of the model: `bm25`, a hub id with its commit, or 12 digits of a folder's identity."""
    found = identity(system.model)
    if found is None:
        return system.kind
    return (found if "@" in found else found[:12]) + (" (made here)" if system.made else "")


def rank(system: System, collection: Collection, k: int = 100, progress: bool = True) -> Run:
    """The k best passages for every query of `collection`. Index and ranking are built where they are missing.

    A cross-encoder re-ranks the first `system.depth` results of BM25; where that is less than k, the others follow
    behind them in BM25's order.
    """
    return Run.load(ranking(system, collection, k, progress) / RUN_FILE)


def ranking(system: System, collection: Collection, k: int = 100, progress: bool = True) -> Path:
    """The folder of the stage that holds the run."""
    if system.group == "cross-encoder":
        first = ranking(BM25, collection, max(k, system.depth), progress)
        inputs = {
            "kind": system.kind,
            "model": identity(system.model),
            "settings": system.settings,
            "adapters": system.adapters,
            "first": fingerprint(first),
            "depth": system.depth,
        } | precision(system)

        def run_of(into: Path) -> Run:
            return _rerank(system, collection, Run.load(first / RUN_FILE), k, into, progress)
    else:
        folder = index(system, collection, progress)
        inputs = {"index": fingerprint(folder)}
        if system.group == "multi-vector" and system.engine == "plaid":
            # 2: fewer tokens read at lower effort; 3: products of 16 bits; 4: fewer candidates; 5: less of lists
            inputs["search"] = 5

        def run_of(into: Path) -> Run:
            return search(system, collection, k, progress=False)

    inputs |= {"name": system.name, "queries": collection.fingerprint, "k": k}

    def build(into: Path) -> None:
        with Meter() as meter:
            run_of(into).save(into / RUN_FILE)
        meter.save(into)

    return stage(RUNS / "rankings", f"run-{collection.lang}", 2, inputs, build, print if progress else _silent)


def search(system: System, collection: Collection, k: int = 100, progress: bool = True) -> Run:
    """As `rank`, of a system that searches an index, without keeping the ranking."""
    if system.group == "cross-encoder":
        raise ValueError(f"{system.name} re-ranks and has no index of its own: rank with it")
    found = _search(system, index(system, collection, progress) / "index", collection, min(k, len(collection.passages)))
    return Run.from_search(system.name, list(collection.queries), collection.passages.ids, *found)


def index(system: System, collection: Collection, progress: bool = True) -> Path:
    """The folder of the stage that holds the system's index of the collection's passages, built if it is missing.

    Cross-encoders have BM25's.
    """
    if system.group == "cross-encoder":
        system = BM25
    if system.kind == "bm25":
        system = replace(system, settings=TUNED.get(collection.source, {}) | system.settings)
    inputs = (
        {
            "kind": system.kind,
            "passages": collection.passages.fingerprint,
            "lang": collection.lang,
            "model": identity(system.model),
            "adapters": system.route(collection.lang),
            # 2: product-quantised residuals; 3: centroids by types of tokens.
            "engine": f"{system.engine} 3" if system.group == "multi-vector" else None,
            "analysis": analysis.VERSION if system.kind == "bm25" else None,
        }
        | precision(system)
        | ({"settings": system.settings} if system.settings else {})
    )

    def build(into: Path) -> None:
        _build_index(system, collection, into / "index", progress)

    return stage(RUNS / "indexes", f"{system.kind}-{collection.lang}", 1, inputs, build, print if progress else _silent)


def pieces_of(tokenizer, texts: Sequence[str], key: str, lang: str, progress: bool = True) -> Pieces:
    """`texts`, whose fingerprint is `key`, cut by a tokenizer: the stage of a memory-mapped file.

    One file serves every model with the same tokenizer.
    """

    def build(folder: Path) -> None:
        write_pieces(folder, tokenizer, texts, f"tokenize {lang}" if progress else None)

    inputs = {"texts": key, "tokenizer": tokenizer_identity(tokenizer)}
    return open_pieces(stage(RUNS / "tokens", f"tokens-{lang}", 1, inputs, build, print if progress else _silent))


def open_index(system: System, folder: Path):
    """The index below a stage's folder, ready to search."""
    if system.kind == "bm25":
        from xmlib.index.bm25 import BM25

        return BM25.open(folder)
    return _vector_index(system).open(folder)


def open_model(kind: str, checkpoint: Path | str, **settings):
    """The model in a folder or of a hub id, on the GPU if there is one. The last two stay open."""
    return _open(kind, checkpoint, identity(checkpoint), tuple(settings.items()))


@lru_cache(maxsize=2)
def _open(kind: str, checkpoint: Path | str, identity: str, settings: tuple):
    from xmlib import crossencoders, models

    retrievers = (models.BiEncoder, models.DprXM, models.Colbert, models.ColbertXM)
    classes = crossencoders.KINDS | {cls.kind: cls for cls in retrievers}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = dict(settings)
    int8 = settings.pop("int8", False)
    model = classes[kind].open(checkpoint, **settings).to(device)
    return model.in_int8() if int8 else model


def precision(system: System | None = None) -> dict[str, str]:
    """What the key of a stage holds besides where XMLIB_PRECISION says how its model computes; none is in BM25."""
    asked = os.environ.get("XMLIB_PRECISION")
    return {"precision": asked} if asked and (system is None or system.model) else {}


def identity(checkpoint: Path | str | None) -> str | None:
    """What a stage's key holds of a checkpoint: the key of the stage that made it, a folder's hash, or a commit."""
    if checkpoint is None:
        return None
    folder = Path(checkpoint)
    if (folder / RECORD).is_file():
        return fingerprint(folder)
    if not folder.is_dir():
        return _hub_identity(str(checkpoint))
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return _folder_identity(folder, tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files))


@lru_cache
def _hub_identity(checkpoint: str) -> str:
    from xmlib import formats

    return f"{checkpoint.partition('@')[0]}@{formats.commit(checkpoint)}"


@lru_cache
def _folder_identity(folder: Path, files: tuple[tuple[Path, int, int], ...]) -> str:
    """Of its files, which are read again where one has another size or time."""
    digest = hashlib.sha256()
    for path, _, _ in files:
        with path.open("rb") as file:
            digest.update(f"{path.relative_to(folder)} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _build_index(system: System, collection: Collection, folder: Path, progress: bool) -> None:
    if system.kind == "bm25":
        from xmlib.index.bm25 import BM25

        BM25.build(folder, collection, **system.settings)
        return
    model, lang = open_model(system.kind, system.model, **system.settings), system.route(collection.lang)
    texts = collection.passages.texts
    if model.layout and not model.passage_prefix and model.tokenizer.is_fast:  # else it reads texts alone
        texts = pieces_of(model.tokenizer, texts, collection.passages.fingerprint, collection.lang, progress)

    def chunks(start: int, stop: int):
        return model.encode_passages(
            texts[start:stop], lang, progress=f"encode {collection.lang}" if progress else None
        )

    gpu = system.group == "multi-vector" and system.engine == "plaid" and model.device.type == "cuda"
    more = {"device": model.device} if gpu else {}
    _vector_index(system).build(folder, chunks, list(collection.passages.ids), _origin(system, collection), **more)


def _origin(system: System, collection: Collection) -> dict:
    """What the vectors in an index were made with, and of."""
    lang = system.route(collection.lang)
    return {"model": identity(system.model), "lang": lang, "collection": collection.passages.fingerprint}


def _vector_index(system: System):
    """The module whose `build` and `open` serve the system's vectors."""
    from xmlib.index import dense, exact, plaid

    return dense if system.group == "single-vector" else {"plaid": plaid, "exact": exact}[system.engine]


def _search(system: System, folder: Path, collection: Collection, k: int) -> tuple[np.ndarray, np.ndarray]:
    texts, opened = list(collection.queries.values()), open_index(system, folder)
    if system.kind == "bm25":
        return opened.search(texts, k)
    store.check_same(opened.stored, _origin(system, collection))
    model, lang = open_model(system.kind, system.model, **system.settings), system.route(collection.lang)
    if system.group == "single-vector":
        return opened.search(model.encode_queries(texts, lang), k)
    return opened.search(*model.encode_queries(texts, lang), k)


def _rerank(system: System, collection: Collection, first: Run, k: int, folder: Path, progress: bool) -> Run:
    from xmlib.crossencoders import rerank

    model = open_model(system.kind, system.model, **system.settings)
    found = {qid: list(first.rankings.get(qid, ())) for qid in collection.queries}
    best = {qid: pids[: system.depth] for qid, pids in found.items()}
    title = f"{system.name} {collection.lang}" if progress else None
    scores = rerank(model, collection, best, system.route(collection.lang), folder / "scores.npy", title)
    rankings = {}
    for qid, pids in found.items():
        rankings[qid] = dict(zip(best[qid], scores[qid], strict=True))
        behind = min(scores[qid], default=0.0)
        rankings[qid] |= {pid: behind - place for place, pid in enumerate(pids[system.depth : k], start=1)}
    return Run(system.name, {qid: dict(list(ranked.items())[:k]) for qid, ranked in Run("", rankings).rankings.items()})


def _silent(line: str) -> None:
    """In place of `print`, where a caller's own progress bar says enough."""
