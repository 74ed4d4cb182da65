"""Table 5: what the index of every engine weighs, how long a query takes, and how good the answer is.

    rows = measure([train.systems["BM25"], train.systems["ColBERT-XM"]], collection, k=1000, profile="demo")

A query is asked alone, on one thread, after a warm-up that is not counted. The clock runs from the query's vectors or
terms to its k best passages, as in the paper; encoding the query is timed by itself, and opening an index is not. On a
CPU the clock is the thread's CPU time, which is the latency on a core that has nothing else to do: other work on the
machine does not lengthen it, and waiting for a disk is not in it, so an index should fit in memory.

Beside every latency stands the share of what exact search finds that the engine found too, and MRR@10 on the same
queries. Exact search scores every passage, from the same uncompressed vectors or term weights.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from xmlib import notebook, processes, stages, systems
from xmlib.data.collection import Collection
from xmlib.evaluation import Run, evaluate
from xmlib.index import analysis
from xmlib.paths import RUNS
from xmlib.systems import System

WARM = 0.2  # seconds of queries before the clock counts: numba and Java compile, memory maps come in
QUALITY = "mrr@10"
GPU = "cuda"


def _found(found: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return np.ravel(found[1])


@dataclass(frozen=True)
class Engine:
    """An open index and the ways of searching it."""

    name: str  # the paper's, where its Table 5 has one of the kind
    index_bytes: int
    encode: Callable[[str], object]
    searches: dict[str, Callable]  # setting → function (encoded query, k) → what was found
    positions: Callable[[object], np.ndarray] = _found  # of it, best first; not timed


def measure(
    rows: Sequence[System],
    collection: Collection,
    k: int = 1000,
    n_queries: int = 100,
    *,
    profile: str,
    say: Callable[[str], None] = print,
) -> pd.DataFrame:
    """One row per system, engine, setting and metric (`tables.EFFICIENCY`), on the CPU and on a GPU if there is one."""
    asked = systems.some_queries(collection, n_queries)
    text_bytes = sum(len(collection.passages.texts.raw(i)) for i in range(len(collection.passages)))
    k, measured = min(k, len(collection.passages)), []
    about = dict(source="ours", n=len(asked.queries), k=k, collection=collection.name, split=collection.split)
    about |= dict(lang=collection.lang, commit=stages.commit(), profile=profile)
    for system in rows:
        for engine in systems.ENGINES if system.group == "multi-vector" else (system.engine,):
            systems.index(replace(system, engine=engine), collection)  # while the encoder is where it encodes fastest
        for gpu in (False, True) if torch.cuda.is_available() and system.group != "lexical" else (False,):
            where = "gpu" if gpu else "cpu"
            with _placed(system, gpu):
                for engine, setting, found in _timed(engines(system, collection, gpu, say), asked, k, gpu):
                    row = about | dict(system=system.name, model=systems.version(system), device=_device(gpu))
                    row |= dict(engine=engine.name, setting=setting)
                    named = {f"{where}_{name}" if gpu or name.endswith("_ms") else name: found[name] for name in found}
                    if not gpu:
                        named["index_gb"] = engine.index_bytes / 1e9
                        named["index_to_text_ratio"] = engine.index_bytes / text_bytes
                    measured += [row | dict(metric=name, value=value) for name, value in named.items()]
    return pd.DataFrame(measured)


# --- engines by kind of system, exact search first


def engines(system: System, collection: Collection, gpu: bool = False, say: Callable = print) -> Iterator[Engine]:
    """Every engine of a system. Indexes are stages: built once and found again."""
    kinds = {"lexical": _lexical, "single-vector": _single, "multi-vector": _multi}
    if system.group not in kinds:
        raise ValueError(f"{system.name} is a {system.group} and searches no index; have: {', '.join(kinds)}")
    return kinds[system.group](system, collection, gpu, say)


def _lexical(system: System, collection: Collection, gpu: bool, say: Callable) -> Iterator[Engine]:
    from xmlib.index import lucene
    from xmlib.index.bm25 import BM25
    from xmlib.index.document_at_a_time import DocumentAtATime
    from xmlib.index.score_at_a_time import ScoreAtATime

    index = BM25.open(systems.index(system, collection, progress=False) / "index")
    formula = {name: index.meta[name] for name in ("k1", "b")}

    def opened(cls, name):
        def build(folder):
            cls.build(folder, collection, **formula)

        return cls.open(_built(system, collection, name, build, say, **formula))

    def engine(name, index, searches, **more):
        return Engine(name, index.size_report()["total_bytes"], index.encode, searches, **more)

    yield engine("bm25s", index, {"every passage": index.find})
    index = opened(ScoreAtATime, "score-at-a-time")
    budgets = {f"ρ {share:.0%} of passages": int(share * len(collection.passages)) for share in (0.3, 0.1)}
    searches = {name: _with(index.find, rho=rho) for name, rho in ({"every posting": None} | budgets).items()}
    yield engine("JASS", index, searches)
    if lucene.missing():
        say(f"Anserini: not run, {lucene.missing()}")
    else:
        index = opened(lucene.Lucene, "lucene")
        yield engine("Anserini", index, {"Lucene": index.hits}, positions=lucene.positions)
    index = opened(DocumentAtATime, "document-at-a-time")
    yield engine("PISA", index, {"MaxScore": index.find})


def _single(system: System, collection: Collection, gpu: bool, say: Callable) -> Iterator[Engine]:
    import faiss

    from xmlib.index import dense

    if gpu and not getattr(faiss, "get_num_gpus", lambda: 0)():
        say(f"{system.name} on the GPU: not run, this faiss is built for the CPU alone")
        return
    encode = _encoder(system, collection)
    flat = dense.open(systems.index(system, collection, progress=False) / "index")
    vectors_BH, ids, origin = flat.stored.arrays["vectors"], flat.ids, flat.stored.meta["origin"]

    def engine(name, index, choices):
        index = index.to_gpu() if gpu else index
        searches = {setting: _one(index, **chosen) for setting, chosen in choices.items()}
        return Engine(name, index.size_report()["total_bytes"], encode, searches)

    def walk(index, times):
        return lambda query, k: index.search(*query, k, ef=times * k)

    def opened(kind):
        def build(folder):
            dense.build(folder, lambda start, stop: vectors_BH[start:stop], ids, origin, engine=kind)

        return dense.open(_built(system, collection, kind, build, say))

    yield engine("flat", flat, {"every passage": {}})
    if not gpu:
        graph = opened("hnsw")
        searches = {f"ef = {times} k": walk(graph, times) for times in (1, 2, 4)}
        yield Engine("HNSW", graph.size_report()["total_bytes"], encode, searches)
    index = opened("ivf-flat")
    lists = {share: max(1, round(share * index.faiss.nlist)) for share in (0.03, 0.1, 0.3)}
    yield engine("IVF-Flat", index, {f"{share:.0%} of lists": dict(n_probe=n) for share, n in lists.items()})


def _multi(system: System, collection: Collection, gpu: bool, say: Callable) -> Iterator[Engine]:
    from xmlib.index import exact, generation, lower_bounds, plaid, token_ann

    encode = _encoder(system, collection)
    whole = exact.open(systems.index(replace(system, engine="exact"), collection, progress=False) / "index")
    origin = whole.stored.meta["origin"]

    def built(name, **choices):
        def build(folder):
            generation(name).build(folder, whole.vectors.slice, whole.ids, origin, **choices)

        return _built(system, collection, name, build, say, **choices)

    def engine(name, index, choices):
        searches = {setting: _one(index, **chosen) for setting, chosen in choices.items()}
        return Engine(name, sum(index.stored.file_bytes.values()), encode, searches)

    def placed(index):
        return index.to(GPU) if gpu else index

    efforts = {f"effort {effort}": dict(effort=effort) for effort in plaid.EFFORTS}
    yield engine("exact", placed(whole), {"every passage": {}})
    folder = built("v2", rescore=False)
    if not gpu:
        yield engine("v1", token_ann.open(built("v1")), {"32 lists": {}})
        yield engine("v2", lower_bounds.open(folder), {"8 centroids": {}})
    yield engine("PLAID", placed(plaid.open(folder)), efforts)  # the same files
    halved = placed(plaid.open(built("plaid", rescore=False, pool=2)))
    yield engine("PLAID, pooled", halved, {"2 tokens to a vector": {}})
    index = plaid.open(systems.index(replace(system, engine="plaid"), collection, progress=False) / "index")
    if index.rescores:  # a large collection has no side file
        yield engine("PLAID, rescored", placed(index), efforts)


def _built(
    system: System, collection: Collection, name: str, build: Callable[[Path], object], say: Callable, **more
) -> Path:
    inputs = (
        {
            "engine": name,
            "passages": collection.passages.fingerprint,
            "lang": collection.lang,
            "model": systems.identity(system.model),
            "adapters": system.route(collection.lang),
            "settings": system.settings,
            "analysis": analysis.VERSION if system.kind == "bm25" else None,
        }
        | systems.precision(system)
        | more
    )
    name = f"{name}-{collection.lang}"
    return stages.stage(RUNS / "indexes", name, 2, inputs, lambda into: build(into / "index"), say) / "index"


def _encoder(system: System, collection: Collection) -> Callable[[str], tuple]:
    """Text → what the search of one query takes first, with an axis of one query."""
    model = systems.open_model(system.kind, system.model, **system.settings)
    lang = system.route(collection.lang)
    if system.group == "single-vector":
        return lambda text: (model.encode_queries([text], lang),)
    return lambda text: model.encode_queries([text], lang)


def _one(index, **choices) -> Callable:
    return lambda query, k: index.search(*query, k, **choices)


def _with(find: Callable, **choices) -> Callable:
    return lambda query, k: find(query, k, **choices)


# --- the clock


def _timed(found: Iterable[Engine], asked: Collection, k: int, gpu: bool) -> Iterator[tuple[Engine, str, dict]]:
    """Every setting of every engine on all queries. One engine is open at a time."""
    texts, clock = list(asked.queries.values()), time.perf_counter if gpu else time.thread_time
    encoded, exact = {}, None
    for engine in found:
        if engine.encode not in encoded:  # the engines of vectors share theirs
            encoded[engine.encode] = _clocked(engine.encode, texts, clock)
        queries, encode_ms_A = encoded[engine.encode]
        for setting, search in engine.searches.items():
            results, ms_A = _clocked(lambda query, search=search: search(query, k), queries, clock)
            answers = [engine.positions(result) for result in results]
            exact = answers if exact is None else exact
            values = {
                "latency_ms": float(np.median(ms_A)),
                "p95_ms": float(np.quantile(ms_A, 0.95)),
                "with_encoding_ms": float(np.median(ms_A + encode_ms_A)),
                "recall_of_exact": shared(answers, exact),
                QUALITY: _quality(answers, asked),
            }
            yield engine, setting, values


def _clocked(call: Callable, inputs: Sequence, clock: Callable[[], float]) -> tuple[list, np.ndarray]:
    """What the call makes of each input, and the milliseconds that took on one thread."""
    results, ms_A = [], np.empty(len(inputs))
    with processes.one_thread():
        began, warm = clock(), 0
        while clock() - began < WARM:
            call(inputs[warm % len(inputs)])
            warm += 1
        for a, one in enumerate(inputs):
            began = clock()
            results.append(call(one))
            ms_A[a] = 1e3 * (clock() - began)
    return results, ms_A


def shared(found: Sequence[np.ndarray], exact: Sequence[np.ndarray]) -> float:
    """The share of exact search's results that were found as well, averaged over the queries that have any."""
    shares = []
    for mine, truth in zip(found, exact, strict=True):
        wanted = set(truth[truth >= 0].tolist())
        if wanted:
            shares.append(len(wanted & set(mine.tolist())) / len(wanted))
    return float(np.mean(shares))


def _quality(answers: Sequence[np.ndarray], asked: Collection) -> float:
    """By rank: engines that round scores make ties, which are not to be settled anew."""
    rankings = {
        qid: {asked.passages.ids[int(position)]: -float(rank) for rank, position in enumerate(answer) if position >= 0}
        for qid, answer in zip(asked.queries, answers, strict=True)
    }
    return float(evaluate(Run("engine", rankings), asked.qrels, [QUALITY])[QUALITY].mean())


def _device(gpu: bool) -> str:
    if gpu:
        return notebook.device_name()
    with processes.one_thread():
        return notebook.processor_name()


@contextmanager
def _placed(system: System, gpu: bool) -> Iterator[None]:
    """The system's encoder on the GPU or off it, where `systems.open_model` would choose."""
    if system.model is None or not torch.cuda.is_available():
        yield
        return
    model = systems.open_model(system.kind, system.model, **system.settings).to(GPU if gpu else "cpu")
    try:
        yield
    finally:
        model.to(GPU)
