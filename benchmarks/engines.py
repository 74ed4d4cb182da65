"""Late-interaction engines side by side: the same vectors, the same queries, the same number of threads, one run.

    python benchmarks/engines.py vectors.npz                                   # ours and brute force
    python benchmarks/engines.py vectors.npz --peers .peers/bin/python         # and what peers.txt installs
    python benchmarks/engines.py --generate 20000 --dim 128                    # without an encoder

vectors.npz holds `vectors` (T, H), `offsets` (B + 1,), `queries` (A, S, H), and, for MRR, `relevant` (A,), the
position of the passage that answers each query. `--generate` draws them: words with Zipf's frequencies, bent by topic
and context.

Every engine builds and searches in a process of its own, so peak memory is its own. Latency is the median over queries
asked one at a time, in milliseconds of CPU time summed over threads, which other work on the machine disturbs least,
and of wall time beside it. R@k is the share of exact search's top k over the uncompressed vectors.
"""

import argparse
import importlib.util
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
DEPTHS = (10, 100, 1000)


# --- engines: each builds in `folder` and returns, by setting, a function (queries (A, S, H), k) -> positions per query


def ours(data, folder, threads):
    yield from _ours(data, folder, threads, "2 bits", rescore=False)


def ours_rescored(data, folder, threads):
    yield from _ours(data, folder, threads, "2 bits + 8 to rescore", rescore=True)


def _ours(data, folder, threads, name, rescore):
    from xmlib.index import plaid
    from xmlib.index.vectors import TokenVectors

    vectors = TokenVectors(data["vectors"], data["offsets"])
    ids = [str(b) for b in range(len(vectors))]
    origin = {"model": "benchmark", "lang": "en", "collection": "benchmark"}
    index = plaid.build(folder / "index", vectors.slice, ids, origin, rescore=rescore)
    yield "built"
    for effort in plaid.EFFORTS:
        yield f"{name}, effort {effort}", _search(index, effort, threads)


def _search(index, effort, threads):
    def search(queries, k):
        return index.search(queries, np.ones(queries.shape[:2], bool), k, effort=effort, threads=threads)[1].tolist()

    return search


def brute_force(data, folder, threads):
    from xmlib.index import exact
    from xmlib.index.vectors import TokenVectors

    vectors = TokenVectors(data["vectors"].astype(np.float32), data["offsets"])
    yield "built"
    yield "float32", lambda queries, k: exact.search(vectors, queries, np.ones(queries.shape[:2], bool), k)[1].tolist()


def fast_plaid(data, folder, threads):
    import torch
    from fast_plaid.search import FastPlaid

    vectors = torch.from_numpy(data["vectors"])
    documents = [vectors[a:b] for a, b in zip(data["offsets"][:-1], data["offsets"][1:], strict=True)]
    index = FastPlaid(str(folder), device="cpu")
    index.create(documents_embeddings=documents)
    yield "built"

    def setting(n_ivf_probe, n_full_scores):
        def search(queries, k):
            wanted = dict(n_ivf_probe=n_ivf_probe, n_full_scores=max(n_full_scores, k), n_processes=1)
            found = index.search(torch.from_numpy(queries), top_k=k, show_progress=False, **wanted)
            return [[position for position, _ in row] for row in found]

        return search

    yield "4 bits, defaults", setting(8, 4096)
    yield "4 bits, 4 probes, 512 full scores", setting(4, 512)


def colbert_ai(data, folder, threads):
    import colbert.indexing.collection_indexer as indexing
    import torch
    from colbert.infra import ColBERTConfig, Run, RunConfig
    from colbert.modeling.colbert import ColBERT
    from colbert.search.index_storage import IndexScorer

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
    path = folder / "index"
    path.mkdir()
    config = ColBERTConfig(dim=vectors.shape[1], nbits=2, root=str(folder), index_path=str(path), overwrite=True)
    with Run().context(RunConfig(nranks=1, root=str(folder), experiment="e")):
        config = ColBERTConfig.from_existing(config, Run().config)
        indexing.encode(config, [str(b) for b in range(len(offsets) - 1)], [[]], [], verbose=0)
        yield "built"
        ColBERT.try_load_torch_extensions(use_gpu=False)
        scorer = IndexScorer(str(path), use_gpu=False)

        def search(queries, k):
            ncells, threshold, ndocs = (1, 0.5, 256) if k <= 10 else (2, 0.45, 1024) if k <= 100 else (4, 0.4, 4096)
            config.configure(ncells=ncells, centroid_score_threshold=threshold, ndocs=ndocs)
            config.configure(query_maxlen=queries.shape[1])
            return [scorer.rank(config, torch.from_numpy(q)[None])[0][:k] for q in queries]

        yield "2 bits, defaults", search


def xtr_warp(data, folder, threads):
    import torch
    from xtr_warp.search import XTRWarp

    vectors = torch.from_numpy(data["vectors"]).float()
    documents = [vectors[a:b] for a, b in zip(data["offsets"][:-1], data["offsets"][1:], strict=True)]
    index = XTRWarp(str(folder), device="cpu")
    index.create(documents_embeddings=documents)
    yield "built"

    def search(queries, k):
        found = index.search(torch.from_numpy(queries), top_k=k)
        return [[position for position, _ in row] for row in found]

    yield "4 bits, defaults", search


ENGINES = {  # name: its generator, and the module that says whether it is installed
    "ours": (ours, "xmlib"),
    "ours, rescored": (ours_rescored, "xmlib"),
    "brute force": (brute_force, "xmlib"),
    "colbert-ai": (colbert_ai, "colbert"),
    "fast-plaid": (fast_plaid, "fast_plaid"),
    "xtr-warp-rs": (xtr_warp, "xtr_warp"),
}


# --- one engine, in a process of its own


def measure(name: str, work: Path, threads: int) -> list[dict]:
    data = {path.stem: np.load(path, mmap_mode="r") for path in work.glob("*.npy")}
    queries, truth = np.array(data["queries"], np.float32), data["truth"]
    data["vectors"], data["offsets"] = np.array(data["vectors"]), np.array(data["offsets"])
    folder = Path(tempfile.mkdtemp(dir=work))
    engine, _ = ENGINES[name]
    before, start, cpu = _peak(), time.perf_counter(), time.process_time()
    settings = engine(data, folder, threads)
    next(settings)
    built = {
        "build_s": time.perf_counter() - start,
        "build_cpu_s": time.process_time() - cpu,
        "build_gib": _peak() - before,
        "bytes_per_token": sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / len(data["vectors"]),
    }
    rows = []
    for setting, search in settings:
        for k in DEPTHS:
            k = min(k, len(data["offsets"]) - 1)
            for q in queries[:3]:
                search(q[None], k)
            wall, used, found = [], [], []
            for q in queries:
                start, cpu = time.perf_counter(), time.process_time()
                found += search(q[None], k)
                wall.append(time.perf_counter() - start)
                used.append(time.process_time() - cpu)
            start, cpu = time.perf_counter(), time.process_time()
            search(queries, k)
            row = {"engine": name, "setting": setting, "k": k} | built
            row["cpu_ms"], row["wall_ms"] = 1000 * np.median(used), 1000 * np.median(wall)
            row["p95_cpu_ms"] = 1000 * np.quantile(used, 0.95)
            row["queries_per_cpu_s"] = len(queries) / (time.process_time() - cpu)
            row["queries_per_s"] = len(queries) / (time.perf_counter() - start)
            row["recall"] = np.mean([len(set(f) & set(t[:k].tolist())) / k for f, t in zip(found, truth, strict=True)])
            if "relevant" in data:
                ranks = [
                    f[:10].index(r) + 1 if r in f[:10] else 0 for f, r in zip(found, data["relevant"], strict=True)
                ]
                row["mrr_10"] = np.mean([1 / r if r else 0 for r in ranks])
            rows.append({key: float(v) if isinstance(v, np.floating) else v for key, v in row.items()})
    shutil.rmtree(folder)
    return rows


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", nargs="?", help="vectors.npz")
    parser.add_argument("--generate", type=int, metavar="PASSAGES")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--passages", type=int, help="only the first so many")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--engines", default="all", help="names, with semicolons between; or all")
    parser.add_argument("--peers", default=sys.executable, help="the Python that has the peers")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "engines.json")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        name, work = args.child
        if importlib.util.find_spec(ENGINES[name][1]) is None:
            raise SystemExit("not installed")
        Path(work, "rows.json").write_text(json.dumps(measure(name, Path(work), args.threads)))
        return
    if (args.file is None) == (args.generate is None):
        parser.error("give either a file of vectors or --generate PASSAGES")
    data = dict(np.load(args.file)) if args.file else generate(args.generate, args.dim, args.queries)
    B = min(args.passages or len(data["offsets"]), len(data["offsets"]) - 1)
    keep = slice(args.queries)
    if "relevant" in data:
        keep = np.flatnonzero(data["relevant"] < B)[: args.queries]
        data["relevant"] = data["relevant"][keep]
    data["queries"] = data["queries"][keep].astype(np.float32)
    data["offsets"] = data["offsets"][: B + 1].astype(np.int64)
    data["vectors"] = data["vectors"][: data["offsets"][-1]].astype(np.float16)

    from xmlib.index import exact
    from xmlib.index.vectors import TokenVectors

    A, S, H = data["queries"].shape
    shape = f"{B:,} passages, {len(data['vectors']):,} tokens x {H}, {A} queries of {S}"
    print(f"{shape}, {args.threads} thread(s), {_processor()}", flush=True)
    real = np.ones(data["queries"].shape[:2], bool)
    vectors = TokenVectors(data["vectors"], data["offsets"])
    data["truth"] = exact.search(vectors, data["queries"], real, min(max(DEPTHS), B))[1]
    names = list(ENGINES) if args.engines == "all" else [n.strip() for n in args.engines.split(";")]
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for name in ("vectors", "offsets", "queries", "truth", "relevant"):
            if name in data:
                np.save(Path(work, f"{name}.npy"), data[name])
        for name in names:
            rows += _run(name, work, args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(rows, indent=1))
    print(f"\n{args.out}")


def _run(name: str, work: str, args) -> list[dict]:
    python = sys.executable if ENGINES[name][1] == "xmlib" else args.peers
    threads = {v: str(args.threads) for v in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")}
    env = os.environ | threads | {"PYTHONPATH": str(ROOT) if python == sys.executable else ""}
    command = [python, __file__, "--child", name, work, "--threads", str(args.threads)]
    child = subprocess.run(command, env=env, capture_output=True, text=True)
    if child.returncode:
        last = (child.stderr.strip() or "ended without a word").splitlines()[-1][:200]
        print(f"{name}: {last} (exit {child.returncode})", flush=True)
        return []
    rows = json.loads(Path(work, "rows.json").read_text())
    built = rows[0]
    print(
        f"\n{name}: built in {built['build_s']:.0f} s ({built['build_cpu_s']:.0f} s CPU), "
        f"{built['build_gib']:.2f} GiB more at peak, {built['bytes_per_token']:.1f} bytes/token"
    )
    for row in rows:
        mrr = f"  MRR@10 {row['mrr_10']:.4f}" if "mrr_10" in row else ""
        print(
            f"  {row['setting']:34} k={row['k']:<5} {row['cpu_ms']:8.2f} ms CPU {row['wall_ms']:8.2f} ms"
            f"  {row['queries_per_cpu_s']:7.0f}/CPU s batch  R@k {row['recall']:.4f}{mrr}"
        )
    return rows


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
