"""How the centroid index grows: passages generated after real ones, 10 thousand to millions, built, opened, searched.

    python -m benchmarks.scale runs/vectors.npz                                  # 10,000 and 100,000; real ones first
    python -m benchmarks.scale runs/vectors.npz --passages 10000 100000 1000000 --tokens 64    # an hour on two cores
    python -m benchmarks.scale runs/vectors.npz --passages 60000 --write runs/generated.npz    # for benchmarks/engines

The file is what `benchmarks.vectors` writes. A passage is generated from the words of two real ones, half of each: a
word is one of the centroids of the real vectors, of PER_WORD each, to which a shift of the whole passage and one of the
token are added, with the variances along the real residuals' principal axes. TOPIC passages have a topic: they take
their words from POOL real ones and share half of their shift, so that a question has near misses. A question takes
tokens of a passage, as far away from them as a real question is from the passage that answers it. The first row is of
as many real passages, so that one can see how much the generated ones resemble them.

Every size is built in a process of its own. Generating, and scoring every passage exactly for the recall, happen while
the index is built and are left out of its time. Peak memory counts pages of files that happen to be mapped. What was
cut off goes on when called again.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from benchmarks.engines import peak_gib
from xmlib.index import exact, plaid, residual, shards
from xmlib.index.segment import Run
from xmlib.index.vectors import TokenVectors
from xmlib.paths import ROOT, RUNS
from xmlib.ragged import offsets_of

STUDIED = 2_000_000  # real tokens from which words and variances are taken
PER_WORD = 30  # of them to a word: so generated tokens lie about centroids about as closely as real ones
BLOCK = 1000  # passages generated together, always the same ones
TOPIC, POOL = 20, 6
CHANGED = 100  # passages, added and taken out again
MMARCO = 8_841_823  # passages


class Generator:
    """Passages and questions without end, the same every time. Axes: see `xmlib.index.plaid`, W words."""

    def __init__(self, data: dict[str, np.ndarray], tokens: float | None = None, seed: int = 0) -> None:
        real = np.diff(data["offsets"]).mean()
        if tokens and not 2 <= tokens <= real:
            raise ValueError(f"tokens is {tokens:g}; a generated passage has 2 to {real:.0f}, which real ones have")
        self.share = tokens / real if tokens else 1  # of the words of a passage
        self.seed, self.closeness, self.query_lengths = seed, _closeness(data), data["query_lengths"]
        studied = np.searchsorted(data["offsets"], STUDIED, side="right") - 1
        self.offsets_B1 = data["offsets"][: studied + 1]
        vectors_TH = data["vectors"][: self.offsets_B1[-1]].astype(np.float32)
        n_words = len(vectors_TH) // PER_WORD
        if "types" in data:
            self.types_T = data["types"][: len(vectors_TH)]
            self.words_WH, types_W = residual.kmeans_by_type(vectors_TH, self.types_T, n_words, seed)
            others = partial(residual.nearest, centroids_CH=self.words_WH)
            self.word_T = residual.assigned_by_type(vectors_TH, self.types_T, self.words_WH, types_W, others)
        else:
            self.types_T = None
            self.words_WH = residual.kmeans(vectors_TH, n_words, seed)
            self.word_T = residual.nearly_nearest(vectors_TH, self.words_WH)
        # Shortened, so that what is added to a word is on average at right angles to it and takes it as far as it was.
        self.words_WH *= (vectors_TH * self.words_WH[self.word_T]).sum(axis=1).mean()
        rest_TH = vectors_TH - self.words_WH[self.word_T]
        del vectors_TH  # a gigabyte, as is each of these
        variance_H, self.axes_HH = np.linalg.eigh(rest_TH.T @ rest_TH / len(rest_TH))
        along_TH = rest_TH @ self.axes_HH
        lengths_B = np.maximum(np.diff(self.offsets_B1), 1)
        mean_BH = np.add.reduceat(along_TH, self.offsets_B1[:-1]) / lengths_B[:, None]
        shared_H = np.clip(mean_BH.var(axis=0) - variance_H / lengths_B.mean(), 0, variance_H)  # by all of a passage
        self.passage_H, self.token_H = np.sqrt(shared_H), np.sqrt(np.maximum(variance_H - shared_H, 0))

    def chunks(self, start: int, stop: int) -> TokenVectors:
        first = start // BLOCK
        blocks = TokenVectors.concatenate(self._block(i) for i in range(first, -(-stop // BLOCK)))
        return blocks.slice(start - first * BLOCK, stop - first * BLOCK)

    @lru_cache(maxsize=1)  # noqa: B019, there is one generator
    def _block(self, i: int) -> TokenVectors:
        rng = np.random.default_rng([self.seed, i])
        topic_B = np.arange(BLOCK) // TOPIC
        pool = rng.integers(0, len(self.offsets_B1) - 1, (BLOCK // TOPIC, POOL))
        pairs_B2 = pool[topic_B[:, None], rng.integers(0, POOL, (BLOCK, 2))]
        offsets_B1, lengths_B = self.offsets_B1, np.diff(self.offsets_B1)
        one_B, two_B = lengths_B[pairs_B2].T // 2
        halves = np.stack([one_B, lengths_B[pairs_B2[:, 1]] - two_B], 1)
        halves = offsets_of(np.ceil(self.share * halves).astype(np.int64).ravel())
        starts = np.stack([offsets_B1[pairs_B2[:, 0]], offsets_B1[pairs_B2[:, 1]] + two_B], 1)
        rows_T = np.arange(halves[-1]) + np.repeat(starts.ravel() - halves[:-1], np.diff(halves))
        lengths_B = np.diff(halves[::2])
        H = len(self.axes_HH)
        along_TH = rng.standard_normal((len(rows_T), H), np.float32) * self.token_H.astype(np.float32)
        shift_BH = rng.standard_normal((BLOCK, H), np.float32) + rng.standard_normal((BLOCK // TOPIC, H))[topic_B]
        shift_BH *= np.sqrt(0.5) * self.passage_H
        along_TH += np.repeat(shift_BH.astype(np.float32), lengths_B, axis=0)
        x_TH = along_TH @ self.axes_HH.T.astype(np.float32) + self.words_WH[self.word_T[rows_T]]
        vectors_TH = (x_TH / np.linalg.norm(x_TH, axis=1)[:, None]).astype(np.float16)
        return TokenVectors(vectors_TH, offsets_of(lengths_B), None if self.types_T is None else self.types_T[rows_T])

    def queries(self, A: int, B: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Questions to passages below B: q_ASH, q_mask_AS and the passages asked for."""
        rng = np.random.default_rng([self.seed, 1 << 40])
        length_A = rng.choice(self.query_lengths, A)
        away = np.sqrt(1 / self.closeness**2 - 1)
        q_ASH, relevant_A = np.zeros((A, length_A.max(), len(self.axes_HH)), np.float32), rng.integers(0, B, A)
        for a, b in enumerate(relevant_A):
            x_TH = self.chunks(b, b + 1).vectors_TH.astype(np.float32)
            x_SH = x_TH[rng.choice(len(x_TH), length_A[a], replace=len(x_TH) < length_A[a])]
            noise_SH = (rng.standard_normal(x_SH.shape) * np.hypot(self.token_H, self.passage_H)) @ self.axes_HH.T
            x_SH = x_SH + away * noise_SH / np.linalg.norm(noise_SH, axis=1)[:, None]
            q_ASH[a, : length_A[a]] = x_SH / np.linalg.norm(x_SH, axis=1)[:, None]
        return q_ASH, np.arange(q_ASH.shape[1]) < length_A[:, None], relevant_A


def _closeness(data: dict[str, np.ndarray]) -> float:
    """The mean cosine of a real question's token and the nearest token of the passage that answers it."""
    best = []
    for q_SH, S, b in zip(data["queries"], data["query_lengths"], data["relevant"], strict=True):
        answer_TH = data["vectors"][data["offsets"][b] : data["offsets"][b + 1]].astype(np.float32)
        best.extend((q_SH[:S] @ answer_TH.T).max(axis=1))
    return float(np.mean(best))


class Counted:
    """`chunks` that keeps the time it takes, and what exact search finds in what it gives out."""

    def __init__(self, chunks, q_ASH: np.ndarray, q_mask_AS: np.ndarray, k: int, n_passages: int) -> None:
        self.chunks, self.query, self.wall, self.cpu = chunks, (q_ASH, q_mask_AS, k), 0.0, 0.0
        self.n_passages, self.seen = n_passages, set()
        self.scores_Ak, self.positions_Ak = np.full((len(q_ASH), k), -np.inf, np.float32), np.full((len(q_ASH), k), -1)

    def __call__(self, start: int, stop: int) -> TokenVectors:
        wall, cpu = time.perf_counter(), time.process_time()
        chunk = self.chunks(start, stop)
        scores, positions = exact.search(chunk, *self.query)
        self.scores_Ak, self.positions_Ak = exact.merge(self.scores_Ak, self.positions_Ak, scores, positions + start)
        self.seen.update(range(start, stop))
        self.wall, self.cpu = self.wall + time.perf_counter() - wall, self.cpu + time.process_time() - cpu
        return chunk

    def truth(self) -> np.ndarray:
        """Positions of the exact top k. What a build that went on after a cut did not ask for is asked for now."""
        for start in range(0, self.n_passages, BLOCK):
            if start not in self.seen:
                self(start, min(start + BLOCK, self.n_passages))
        return self.positions_Ak


def measure(file: Path, B: int, n_shards: int, A: int, real: bool, tokens: float | None, folder: Path) -> dict:
    data = dict(np.load(file))
    source = Generator(data, tokens)
    real_passages = TokenVectors(data.pop("vectors"), data["offsets"], data.get("types")) if real else None
    data.pop("vectors", None)  # as large as they are
    if real:
        keep = np.flatnonzero(data["relevant"] < B)[:A]
        length_A = data["query_lengths"][keep]
        q_ASH, q_mask_AS = data["queries"][keep], np.arange(data["queries"].shape[1]) < length_A[:, None]
        relevant_A, chunks = data["relevant"][keep], real_passages.slice
    else:
        (q_ASH, q_mask_AS, relevant_A), chunks = source.queries(A, B), source.chunks
    k = min(1000, B)
    counted = Counted(chunks, q_ASH, q_mask_AS, k, B)
    ids = [f"p{b}" for b in range(B)]
    origin = {"model": file.name, "lang": "en", "collection": f"{'real' if real else 'generated'} {B}"}
    _forget_peak()
    before, wall, cpu = peak_gib(), time.perf_counter(), time.process_time()
    for number in range(n_shards):
        if not (folder / shards._name(number, n_shards)).exists():
            shards.build(folder, number, n_shards, counted, ids, origin, rescore=False)
    wall, cpu = time.perf_counter() - wall - counted.wall, time.process_time() - cpu - counted.cpu
    built = peak_gib()
    truth = counted.truth()
    start = time.perf_counter()
    index = shards.open(folder)
    opened = time.perf_counter() - start
    start = time.perf_counter()
    index.search(q_ASH[:1], q_mask_AS[:1], 10, threads=1)
    first = time.perf_counter() - start
    size = index.size_report()
    row = {
        "passages": f"{B:,}{' real' if real else ''}",
        "tokens": size["tokens"],
        "shards": n_shards,
        "centroids": len(index.shards[0].codec.centroids_CH),
        "build, CPU s": round(cpu),
        "build, s": round(wall),
        "GiB at peak": built,
        "GiB before": before,
        "bytes/token": size["total_bytes"] / size["tokens"],
        "GB": size["total_bytes"] / 1e9,
        "open, ms": 1000 * opened,
        "first, ms": 1000 * first,
    }
    for k, effort in ((10, 1), (10, 2), (10, 3), (1000, 2)):
        k = min(k, B)
        used, found = [], []
        for a in range(len(q_ASH)):
            start = time.process_time()
            found.append(index.search(q_ASH[a : a + 1], q_mask_AS[a : a + 1], k, effort=effort, threads=1)[1][0])
            used.append(time.process_time() - start)
        shared = [len(set(f) & set(t)) / k for f, t in zip(found, truth[:, :k], strict=True)]
        row |= {f"k={k} e{effort}, CPU ms": 1000 * float(np.median(used)), f"k={k} e{effort}, recall": np.mean(shared)}
    row["asked for is first, exact"] = float(np.mean(truth[:, 0] == relevant_A))
    row |= _changing(index.shards[-1], chunks(0, CHANGED))
    return {name: float(value) if isinstance(value, np.floating) else value for name, value in row.items()} | _shape(
        index.shards[0], chunks, min(B, BLOCK)
    )


def _forget_peak() -> None:
    """Making the generator takes more memory than a build, and is no part of it."""
    if (counted := Path("/proc/self/clear_refs")).exists():
        counted.write_text("5")


def write(file: Path, source: Generator, B: int, A: int) -> None:
    """The first B passages and A questions, as `benchmarks.vectors` writes them."""
    q_ASH, q_mask_AS, relevant_A = source.queries(A, B)
    made = source.chunks(0, B)
    types = {} if made.types_T is None else {"types": made.types_T}
    np.savez(
        file,
        vectors=made.vectors_TH,
        offsets=made.offsets_B1,
        queries=q_ASH,
        query_lengths=q_mask_AS.sum(axis=1),
        relevant=relevant_A,
        **types,
    )
    print(f"{file}: {B:,} passages, {len(made.vectors_TH):,} token vectors, {A} questions")


def _changing(index: plaid.PlaidIndex, vectors: TokenVectors) -> dict:
    """Seconds that adding passages takes, and taking them out again, which leaves the index as it was."""
    ids = [f"new{b}" for b in range(len(vectors))]
    start = time.perf_counter()
    index.add(ids, vectors)
    added = time.perf_counter()
    index.remove(ids)
    removed = time.perf_counter()
    return {f"add {len(ids)}, s": added - start, f"remove {len(ids)}, s": removed - added}


def _shape(index: plaid.PlaidIndex, chunks, B: int) -> dict:
    """How vectors lie about their centroids, and how evenly."""
    part = Run(index.segments[0], np.arange(B))
    codes_T = part["codes"]
    rotated_TH = index.codec.rotate(chunks(0, B).vectors_TH)
    centroid_TH = index.codec.centroids_CH[codes_T]
    cosine_T = (rotated_TH * centroid_TH).sum(axis=1) / np.linalg.norm(centroid_TH, axis=1)
    counts_C = np.sort(np.bincount(codes_T, minlength=len(index.codec.centroids_CH)))[::-1]
    decoded_TH = index.codec.decode(codes_T, part["gains"], part["residuals"])
    return {
        "cosine to centroid": float(cosine_T.mean()),
        "tokens at the fullest 5 % of centroids": float(counts_C[: len(counts_C) // 20].sum() / len(codes_T)),
        "cosine to decoded": float(
            np.mean((decoded_TH @ index.codec.rotation_HH * rotated_TH).sum(1) / np.linalg.norm(decoded_TH, axis=1))
        ),
    }


def extrapolated(one: dict, two: dict, B: int) -> dict:
    """The larger of two rows carried on to B passages, each measure by the power with which it grew between them."""
    n_one, n_two = (int(row["passages"].replace(",", "")) for row in (one, two))
    row = {"passages": f"{B:,} on paper"}
    for name, value in two.items():
        if any(mark in name for mark in ("token", " s", "GiB at", "GB", "ms")) and "centroid" not in name:
            power = np.log(value / one[name]) / np.log(n_two / n_one)
            row[name] = float(value * (B / n_two) ** power)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path, help="what benchmarks.vectors wrote")
    parser.add_argument("--passages", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--tokens", type=float, help="of a generated passage, on average (default: as real ones have)")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument(
        "--folder", type=Path, default=RUNS / "scale", help="of the indexes, which are removed at the end"
    )
    parser.add_argument("--out", type=Path, default=RUNS / "benchmarks" / "scale.json")
    parser.add_argument("--write", type=Path, metavar="FILE", help="only write the passages generated, in one file")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args.file, folder=args.folder, A=args.queries, **args.child)))
        return
    if args.write:
        write(args.write, Generator(dict(np.load(args.file)), args.tokens), max(args.passages), args.queries)
        return
    rows = []
    sizes = [(min(args.passages), True), *((B, False) for B in sorted(args.passages))]
    for B, real in sizes:
        folder = args.folder / f"{'real' if real else 'generated'}-{B}-{args.shards}"
        child = {"B": B, "real": real, "n_shards": 1 if real else args.shards, "tokens": args.tokens}
        command = [sys.executable, "-m", "benchmarks.scale", args.file.resolve(), "--folder", folder.resolve()]
        command += ["--queries", str(args.queries), "--child", json.dumps(child)]
        said = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
        rows.append(json.loads(said.splitlines()[-1]))
        print(json.dumps(rows[-1]), flush=True)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(rows, indent=1))
        shutil.rmtree(folder)
    if len(args.passages) > 1:
        rows.append(extrapolated(rows[-2], rows[-1], MMARCO))

    from benchmarks.common import markdown  # after the work: it brings PyTorch along

    columns = dict.fromkeys(name for row in rows for name in row)
    print(markdown([{"": name} | {row["passages"]: row.get(name) for row in rows} for name in columns][1:]))


if __name__ == "__main__":
    main()
