"""Late-interaction engines side by side: the same vectors, questions and threads, asked in turns in one run.

    python -m benchmarks.vectors --model … --data … --out runs/vectors.npz     # token vectors of real passages
    python benchmarks/engines.py runs/vectors.npz                              # ours and brute force
    python benchmarks/engines.py runs/vectors.npz --peers .peers/*/bin/python  # and what these have of peers.txt
    python benchmarks/engines.py --generate 20000 --dim 128                    # without an encoder

`--generate` draws vectors: words with Zipf's frequencies, bent by topic and context.

Every engine builds in a process of its own, so peak memory is its own, on one thread. Then, with one thread and with
two, each opens its index in a process that stays, and they are asked in turns, TURNS times a part of the questions, so
that other work on the machine meets all of them. Latency is the median over questions asked one at a time, in
milliseconds of CPU time summed over threads, which other work disturbs least, and of wall time beside it; "batch" is
questions per second of CPU time when all are given at once.

Three qualities: R@k, the share of exact search's top k over the uncompressed vectors; R@k of codes, the share of what
the engine finds when it scores everything (asked of SPARED questions, where it can); MRR@10.
"""

import argparse
import contextlib
import hashlib
import json
import os
import platform
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
DEPTHS = (10, 100, 1000)
TURNS = 4
SPARED = 20
EXHAUSTIVE = "everything"  # the setting that shows what an engine's codes can find at best

# --- engines. Each builds in a folder, and opens it: a function (list of queries (S, H), k) -> positions, by setting.


def build_ours(data, folder, **choices):
    from xmlib.index import plaid
    from xmlib.index.vectors import TokenVectors

    vectors = TokenVectors(data["vectors"], data["offsets"], data.get("types"))
    ids = [str(b) for b in range(len(vectors))]
    origin = {"model": "benchmark", "lang": "en", "collection": "benchmark"}
    plaid.build(folder / "index", vectors.slice, ids, origin, **choices)


def open_ours(data, folder, threads):
    from xmlib.index import plaid

    index, whole = plaid.open(folder / "index"), plaid.open(folder / "index")
    for segment in whole.segments:
        segment.lists = None  # so that it looks at every passage
    settings = {f"effort {effort}": (index, {"effort": effort}) for effort in plaid.EFFORTS}
    everything = {"effort": max(plaid.EFFORTS), "n_candidates": len(index.stored), "n_rescored": len(index.stored)}
    settings[EXHAUSTIVE] = whole, everything

    def setting(index, wanted):
        def search(queries, k):
            q_ASH, q_mask_AS = _padded(queries)
            return index.search(q_ASH, q_mask_AS, k, threads=threads, **wanted)[1].tolist()

        return search

    return {name: setting(*of) for name, of in settings.items()}


def open_brute_force(data, folder, threads):
    from xmlib.index import exact
    from xmlib.index.vectors import TokenVectors

    vectors = TokenVectors(data["vectors"].astype(np.float32), data["offsets"])
    return {"float32": lambda queries, k: exact.search(vectors, *_padded(queries), k)[1].tolist()}


def build_fast_plaid(data, folder):
    from fast_plaid.search import FastPlaid

    FastPlaid(str(folder), device="cpu").create(documents_embeddings=_documents(data))


def open_fast_plaid(data, folder, threads):
    import torch
    from fast_plaid.search import FastPlaid

    index, B = FastPlaid(str(folder), device="cpu"), len(data["offsets"]) - 1

    def setting(n_ivf_probe, n_full_scores):
        def search(queries, k):
            wanted = {"n_ivf_probe": n_ivf_probe, "n_full_scores": max(n_full_scores, k), "n_processes": 1}
            found = index.search([torch.from_numpy(q) for q in queries], top_k=k, show_progress=False, **wanted)
            return [[position for position, _ in row] for row in found]

        return search

    cheap = setting(4, 512)
    return {"4 bits, defaults": setting(8, 4096), "4 probes, 512 full": cheap, EXHAUSTIVE: setting(256, B)}


def build_pylate(data, folder):
    from pylate import indexes

    documents = _documents(data)
    index = indexes.PLAID(str(folder), "index", override=True, show_progress=False, device="cpu")
    index.add_documents([str(b) for b in range(len(documents))], documents)


def open_pylate(data, folder, threads):
    import torch
    from pylate import indexes

    index = indexes.PLAID(str(folder), "index", show_progress=False, device="cpu", num_threads=1)

    def search(queries, k):
        found = index([torch.from_numpy(q) for q in queries], k=k)
        return [[int(result["id"]) for result in row] for row in found]

    return {"4 bits, defaults": search}


def build_colbert_ai(data, folder):
    import colbert.indexing.collection_indexer as indexing
    import torch
    from colbert.infra import Run, RunConfig

    vectors, offsets = torch.from_numpy(data["vectors"]).float(), data["offsets"]

    class Encoder:
        """In place of the model: a passage's text is its position."""

        def __init__(self, config, checkpoint):
            pass

        def encode_passages(self, passages):
            spans = [(offsets[int(p)], offsets[int(p) + 1]) for p in passages]
            if not spans:
                return None, None
            return torch.cat([vectors[a:b] for a, b in spans]), [int(b - a) for a, b in spans]

    indexing.Checkpoint, indexing.CollectionEncoder = lambda *_, **__: None, Encoder
    (folder / "index").mkdir()
    with Run().context(RunConfig(nranks=1, root=str(folder), experiment="e")):
        indexing.encode(_colbert_config(data, folder), [str(b) for b in range(len(offsets) - 1)], [[]], [], verbose=0)


def open_colbert_ai(data, folder, threads):
    import torch
    from colbert.modeling.colbert import ColBERT
    from colbert.search.index_storage import IndexScorer

    config, B = _colbert_config(data, folder), len(data["offsets"]) - 1
    ColBERT.try_load_torch_extensions(use_gpu=False)
    scorer = IndexScorer(str(folder / "index"), use_gpu=False)

    def defaults(k):
        return (1, 0.5, 256) if k <= 10 else (2, 0.45, 1024) if k <= 100 else (4, 0.4, 4096)

    def setting(choose):
        def search(queries, k):
            ncells, threshold, ndocs = choose(k)
            config.configure(ncells=ncells, centroid_score_threshold=threshold, ndocs=ndocs)
            found = []
            for q in queries:
                config.configure(query_maxlen=len(q))
                found.append(scorer.rank(config, torch.from_numpy(q)[None])[0][:k])
            return found

        return search

    return {"2 bits, defaults": setting(defaults), EXHAUSTIVE: setting(lambda k: (256, -1.0, 4 * B))}


def _colbert_config(data, folder):
    from colbert.infra import ColBERTConfig, Run, RunConfig

    where = {"root": str(folder), "index_path": str(folder / "index"), "overwrite": True}
    with Run().context(RunConfig(nranks=1, root=str(folder), experiment="e")):
        return ColBERTConfig.from_existing(ColBERTConfig(dim=data["vectors"].shape[1], nbits=2, **where), Run().config)


def build_xtr_warp(data, folder):
    from xtr_warp.search import XTRWarp

    XTRWarp(str(folder), device="cpu").create(_documents(data), device="cpu", show_progress=False)


def open_xtr_warp(data, folder, threads):
    import torch
    from xtr_warp.search import XTRWarp

    index = XTRWarp(str(folder), device="cpu")
    index.load("cpu")

    def setting(**wanted):
        def search(queries, k):
            given = [torch.from_numpy(q) for q in queries]
            found = index.search(given, top_k=k, num_threads=threads, show_progress=False, **wanted)
            return [[position for position, _ in row] for row in found]

        return search

    return {"4 bits, defaults": setting(), "64 probes": setting(nprobe=64)}


def _documents(data):
    import torch

    vectors = torch.from_numpy(data["vectors"]).float()
    return [vectors[a:b] for a, b in zip(data["offsets"][:-1], data["offsets"][1:], strict=True)]


def _padded(queries):
    mask_AS = np.arange(max(map(len, queries))) < np.array([len(q) for q in queries])[:, None]
    q_ASH = np.zeros((*mask_AS.shape, queries[0].shape[1]), np.float32)
    q_ASH[mask_AS] = np.concatenate(queries)
    return q_ASH, mask_AS


ENGINES = {  # name: how to build and to open it, and the module that says whether it is installed
    "ours, 2 bits": (partial(build_ours, rescore=False), open_ours, "xmlib"),
    "ours, 2 bits + 8 to rescore": (partial(build_ours, rescore=True), open_ours, "xmlib"),
    "ours, 2 bits, pooled by 2": (partial(build_ours, rescore=False, pool=2), open_ours, "xmlib"),
    "brute force": (lambda *_: None, open_brute_force, "xmlib"),
    "colbert-ai": (build_colbert_ai, open_colbert_ai, "colbert"),
    "fast-plaid": (build_fast_plaid, open_fast_plaid, "fast_plaid"),
    "pylate": (build_pylate, open_pylate, "pylate"),
    "xtr-warp-rs": (build_xtr_warp, open_xtr_warp, "xtr_warp"),
}

# --- one engine, in a process of its own


def _load(work: Path) -> dict[str, np.ndarray]:
    data = {path.stem: np.load(path, mmap_mode="r") for path in work.glob("*.npy")}
    data["offsets"] = np.array(data["offsets"])
    data["queries"] = [np.array(q[:S]) for q, S in zip(data["queries"], data["query_lengths"], strict=True)]
    return data


def build(name: str, work: Path, folder: Path) -> dict:
    data = _load(work)
    data["vectors"] = np.load(work / "vectors.npy")  # not a copy of the mapped ones, whose pages would count as well
    before, start, cpu = peak_gib(), time.perf_counter(), time.process_time()
    ENGINES[name][0](data, folder)
    return {
        "build, s": time.perf_counter() - start,
        "build, CPU s": time.process_time() - cpu,
        "GiB at peak": peak_gib() - before,
        "bytes/token": sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / len(data["vectors"]),
    }


def serve(name: str, work: Path, folder: Path, threads: int) -> None:
    """Answer lines of standard input: a setting, k and a span of questions, one at a time or as a batch."""
    out = os.fdopen(os.dup(1), "w")  # whatever else an engine prints goes elsewhere
    os.dup2(2, 1)
    data = _load(work)
    settings = ENGINES[name][1](data, folder, threads)
    print(json.dumps(list(settings)), file=out, flush=True)
    for line in sys.stdin:
        setting, k, start, stop, batch = json.loads(line)
        queries = data["queries"][start:stop]
        answer = {"wall": [], "cpu": [], "found": []}
        for asked in [queries] if batch else [[q] for q in queries]:
            wall, cpu = time.perf_counter(), time.process_time()
            answer["found"] += settings[setting](asked, k)
            answer["cpu"].append(time.process_time() - cpu)
            answer["wall"].append(time.perf_counter() - wall)
        answer["found"] = [[int(position) for position in row] for row in answer["found"]]
        print(json.dumps(answer), file=out, flush=True)


def peak_gib() -> float:
    """Of this process since it began. getrusage would count what the process was forked from."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30  # bytes on macOS
    return int(status.read_text().split("VmHWM:")[1].split()[0]) / 2**20


class Engine:
    """The process that serves an index."""

    def __init__(self, name: str, python: str, work: Path, folder: Path, threads: int) -> None:
        self.name, self.threads = name, threads
        command = _command(python, "serve", name, work, folder, threads)
        self.log = (work / f"{name}.log").open("w")
        self.process = subprocess.Popen(
            command, env=_environment(python, threads), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
            text=True,
        )  # fmt: skip
        self.settings = json.loads(self.process.stdout.readline())

    def ask(self, setting: str, k: int, start: int, stop: int, batch: bool = False) -> dict:
        self.process.stdin.write(json.dumps([setting, k, start, stop, batch]) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.log.close()


def _command(python: str, task: str, *args) -> list[str]:
    return [python, __file__, "--child", task, *map(str, args)]


def _environment(python: str, threads: int) -> dict[str, str]:
    """Threads; and what each Python compiles for PyTorch stays with it, as another PyTorch could not load it."""
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), str(threads))
    if python == sys.executable:
        return os.environ | counts | {"PYTHONPATH": str(ROOT)}
    compiled = Path(python).absolute().parent.parent / "torch_extensions"
    return os.environ | counts | {"PYTHONPATH": "", "CUDA_VISIBLE_DEVICES": "", "TORCH_EXTENSIONS_DIR": str(compiled)}


# --- all of them


def generate(B: int, H: int, A: int, S: int = 32, seed: int = 0) -> dict[str, np.ndarray]:
    """Vectors as a trained model's are: few directions carry most variance, words recur, contexts bend them."""
    rng = np.random.default_rng(seed)
    strength = (1 + np.arange(H)) ** -0.5
    strength /= np.linalg.norm(strength)
    words = rng.standard_normal((30_000, H)) * strength
    topics = rng.standard_normal((B // 12 + 1, H)) * strength
    lengths = rng.integers(40, 180, B)
    frequency = 1 / np.arange(5, 30_005)
    document = np.repeat(np.arange(B), lengths)
    vectors = np.empty((len(document), H), np.float16)
    for t in range(0, len(vectors), 100_000):
        d = document[t : t + 100_000]
        word = rng.choice(30_000, len(d), p=frequency / frequency.sum())
        x = words[word] + 0.4 * topics[d // 12] + 0.35 * rng.standard_normal((len(d), H)) * strength
        vectors[t : t + 100_000] = x / np.linalg.norm(x, axis=1, keepdims=True)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    relevant = rng.integers(0, B, A)
    rows = offsets[relevant][:, None] + rng.integers(0, lengths[relevant][:, None], (A, S))
    queries = vectors[rows].astype(np.float32) + 0.4 * rng.standard_normal((A, S, H)) * strength
    queries /= np.linalg.norm(queries, axis=-1, keepdims=True)
    return {"vectors": vectors, "offsets": offsets, "queries": queries.astype(np.float32), "relevant": relevant}


def reduced(data: dict, B: int) -> dict[str, np.ndarray]:
    """B passages, or the relevant ones if these are more: they, and others evenly spaced."""
    relevant = np.unique(data.get("relevant", np.zeros(0, np.int64)))
    others = np.setdiff1d(np.arange(len(data["offsets"]) - 1), relevant)
    n = max(min(B - len(relevant), len(others)), 0)
    kept = np.sort(np.concatenate([relevant, others[np.arange(n) * len(others) // max(n, 1)]]))
    rows = np.concatenate([np.arange(data["offsets"][b], data["offsets"][b + 1]) for b in kept])
    tokens = {name: data[name][rows] for name in ("vectors", "types") if name in data}
    offsets = np.concatenate([[0], np.cumsum(np.diff(data["offsets"])[kept])])
    there = {"relevant": np.searchsorted(kept, data["relevant"])} if "relevant" in data else {}
    return tokens | {"offsets": offsets} | there


def compare(engines: list[Engine], data: dict, B: int, everything: dict[tuple[str, int], list]) -> list[dict]:
    """Every setting of every engine at every depth, in turns.

    `everything`: what engines find that score all, by name and depth; what is missing is asked for and kept there, as
    it takes long and does not depend on threads.
    """
    A = len(data["queries"])
    spans = [(A * turn // TURNS, A * (turn + 1) // TURNS) for turn in range(TURNS)]
    rows = []
    for k in sorted({min(k, B) for k in DEPTHS}):
        asked = [(engine, setting) for engine in engines for setting in engine.settings if setting != EXHAUSTIVE]
        for engine, setting in asked:
            engine.ask(setting, k, 0, 3)  # warm up
        answers = {key: {"cpu": [], "wall": [], "found": []} for key in asked}
        for span in spans:
            for engine, setting in asked:
                for name, values in engine.ask(setting, k, *span).items():
                    answers[engine, setting][name] += values
        batches = {key: key[0].ask(key[1], k, 0, A, batch=True) for key in asked}
        for engine in engines:
            if EXHAUSTIVE in engine.settings and (engine.name, k) not in everything:
                everything[engine.name, k] = engine.ask(EXHAUSTIVE, k, 0, SPARED)["found"]
        for (engine, setting), answer in answers.items():
            found, batch = answer["found"], batches[engine, setting]
            row = {"engine": engine.name, "setting": setting, "threads": engine.threads, "k": k}
            row["CPU ms"], row["ms"] = 1000 * np.median(answer["cpu"]), 1000 * np.median(answer["wall"])
            row["p95 CPU ms"] = 1000 * np.quantile(answer["cpu"], 0.95)
            row["batch/CPU s"], row["batch/s"] = A / sum(batch["cpu"]), A / sum(batch["wall"])
            row["R@k"] = _shared(found, data["truth"], k)
            if (best := everything.get((engine.name, k))) is not None:
                row["R@k of codes"], row["of codes at best"] = _shared(found, best, k), _shared(best, data["truth"], k)
            if "relevant" in data:
                ranks = [
                    f[:10].index(r) + 1 if r in f[:10] else 0 for f, r in zip(found, data["relevant"], strict=True)
                ]
                row["MRR@10"] = np.mean([1 / rank if rank else 0 for rank in ranks])
            rows.append({key: float(v) if isinstance(v, np.floating) else v for key, v in row.items()})
    return rows


def _shared(found, wanted, k: int) -> float:
    """The mean share of the first k wanted that are among the first k found; of as many questions as both have."""
    pairs = list(zip(found, wanted, strict=False))
    return float(np.mean([len({*map(int, f[:k])} & {*map(int, w[:k])}) / k for f, w in pairs]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", nargs="?", help="vectors.npz")
    parser.add_argument("--generate", type=int, metavar="PASSAGES")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--passages", type=int, help="only so many, the relevant ones among them")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument(
        "--threads", type=int, nargs="*", default=[1, 2], help="none: build, and search later, with --keep"
    )
    parser.add_argument("--engines", default="all", help="names, with semicolons between; or all")
    parser.add_argument("--peers", nargs="*", default=[], help="Pythons that have peers")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "engines.json")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep what is built there, and take it from there")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the tables into this page, as RECORDS.md")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        task, name, work, folder, threads = args.child
        if task == "serve":
            serve(name, Path(work), Path(folder), int(threads))
        else:
            took = build(name, Path(work), Path(folder))
            Path(folder).with_name(f"{name}.json").write_text(json.dumps(took))
        return
    if (args.file is None) == (args.generate is None):
        parser.error("give either a file of vectors or --generate PASSAGES")
    names = list(ENGINES) if args.engines == "all" else [n.strip() for n in args.engines.split(";")]
    for name in names:
        if name not in ENGINES:
            parser.error(f"no engine {name!r}; have: {'; '.join(ENGINES)}")
    data = dict(np.load(args.file)) if args.file else generate(args.generate, args.dim, args.queries)
    data.setdefault("query_lengths", np.full(len(data["queries"]), data["queries"].shape[1]))
    data["query_lengths"], data["queries"] = data["query_lengths"][: args.queries], data["queries"][: args.queries]
    if "relevant" in data:
        data["relevant"] = data["relevant"][: args.queries]
    if args.passages:
        data |= reduced(data, args.passages)
    B = len(data["offsets"]) - 1
    data["vectors"], data["queries"] = data["vectors"].astype(np.float16), data["queries"].astype(np.float32)

    sys.path.insert(0, str(ROOT))
    from benchmarks import records
    from xmlib import stages
    from xmlib.index import exact
    from xmlib.index.vectors import TokenVectors

    A, S, H = data["queries"].shape
    words = f"{A} queries of {data['query_lengths'].mean():.0f} tokens"
    about = {
        "data": f"{B:,} passages, {len(data['vectors']):,} tokens x {H}, {words}",
        "processor": _processor(),
        "date": time.strftime("%Y-%m-%d"),
        "commit": stages.commit(),
        "spared": SPARED,
        "command": shlex.join(["python", "benchmarks/engines.py", *sys.argv[1:]]),
    }
    print(f"{about['data']}, {about['processor']}", flush=True)
    mask_AS = np.arange(S) < data["query_lengths"][:, None]
    vectors = TokenVectors(data["vectors"], data["offsets"])
    data["truth"] = exact.search(vectors, data["queries"], mask_AS, min(max(DEPTHS), B))[1]
    rows, everything = [], {}
    with _workplace(args.keep) as work:
        for name in ("vectors", "offsets", "types", "queries", "query_lengths"):
            if name in data:
                np.save(work / f"{name}.npy", data[name])
        built = _build_all(names, work, args.peers, _fingerprint(data))
        about["versions"] = {name: _version(python, name) for name, (python, _, _) in built.items()}
        for threads in args.threads:
            engines = []
            for name, (python, folder, _) in built.items():
                try:
                    engines.append(Engine(name, python, work, folder, threads))
                except ValueError:  # no settings: it ended before it could say any
                    print(f"{name}: {_last_line(work / f'{name}.log')}", flush=True)
            for row in compare(engines, data, B, everything):
                rows.append(row | built[row["engine"]][2])
            for engine in engines:
                engine.close()
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1))
            _print([row for row in rows if row["threads"] == threads])
    if rows:
        text = records.described(about, rows)
        print(f"\n{text}\n\n{args.out}")
        if args.record:
            records.keep(args.record, about, text)


def _build_all(names: list[str], work: Path, peers: list[str], fingerprint: str) -> dict[str, tuple[str, Path, dict]]:
    """By name: the Python that runs it, its folder, what the build took. What was built of the same vectors stays."""
    built = {}
    for name in names:
        module = ENGINES[name][2]
        pythons = [sys.executable] if module == "xmlib" else [python for python in peers if _has(python, module)]
        if not pythons:
            print(f"{name}: not installed", flush=True)
            continue
        folder, log, done = work / fingerprint / name, work / f"{name}.log", work / fingerprint / f"{name}.json"
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            with log.open("w") as file:
                command = _command(pythons[0], "build", name, work, folder, 1)
                code = subprocess.run(command, env=_environment(pythons[0], 1), stdout=file, stderr=file).returncode
            if code:
                print(f"{name}: {_last_line(log)} (exit {code})", flush=True)
                continue
        took = json.loads(done.read_text())
        built[name] = (pythons[0], folder, took)
        print(f"{name}: " + ", ".join(f"{key} {value:.2f}" for key, value in took.items()), flush=True)
    return built


@contextlib.contextmanager
def _workplace(keep: Path | None):
    if keep is None:
        with tempfile.TemporaryDirectory() as work:
            yield Path(work)
    else:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.resolve()


def _fingerprint(data: dict) -> str:
    digest = hashlib.blake2b(data["offsets"].tobytes(), digest_size=6)
    for name in ("vectors", "types"):
        if name in data:
            digest.update(data[name][:: max(len(data[name]) // 10_000, 1)].tobytes())
    return digest.hexdigest()


def _version(python: str, distribution: str) -> str:
    """Of a peer that is installed there; empty for what is ours."""
    asked = f"import importlib.metadata as m; print(m.version({distribution!r}))"
    found = subprocess.run([python, "-c", asked], capture_output=True, text=True)
    return found.stdout.strip() if not found.returncode else ""


def _has(python: str, module: str) -> bool:
    found = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([python, "-c", found]).returncode == 0


def _last_line(path: Path) -> str:
    return ([line for line in path.read_text().splitlines() if line.strip()] or ["ended without a word"])[-1][:200]


def _print(rows: list[dict]) -> None:
    columns = dict.fromkeys(
        name for row in rows for name in row if name not in ("build, s", "build, CPU s", "GiB at peak")
    )
    lines = [list(columns), ["---"] * len(columns)]
    for row in rows:
        cells = (row.get(column, "") for column in columns)
        lines.append([f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells])
    print("\n".join("| " + " | ".join(line) + " |" for line in lines), flush=True)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
