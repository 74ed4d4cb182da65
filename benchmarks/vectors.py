"""Token vectors of real passages and questions, from a trained ColBERT-XM: what engines.py and scale.py work on.

    python -m benchmarks.vectors --model runs/models/colbert-xm-… --data squad-en --split dev --out runs/vectors.npz
    python -m benchmarks.vectors --model … --data squad-en tydi-native --split dev …    # more passages to search among

Questions and judgements are those of the first collection; passages of the others are there to be told apart from its
own. Only questions with an answer count, and as many as asked for, evenly spaced.

The file holds `vectors` (T, H) float16, `offsets` (B + 1,), `types` (T,), which piece of the vocabulary each token is,
`queries` (A, S, H) float32, filled up with zeros behind `query_lengths` (A,), and `relevant` (A,), the position of the
first passage that answers each question.
"""

import argparse
import os
from pathlib import Path

import numpy as np

from xmlib.data import sources
from xmlib.index.vectors import TokenVectors
from xmlib.models import ColbertXM
from xmlib.paths import RUNS
from xmlib.systems import some_queries

CHUNK = 2000  # passages encoded at a time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of a ColBERT-XM")
    parser.add_argument("--data", nargs="+", required=True, help="collections; questions come from the first")
    parser.add_argument("--lang", default="en")
    parser.add_argument("--split", default="test", help="of the first collection; of the others only passages are used")
    parser.add_argument("--length", type=int, help="tokens of a passage, at most; the model's own if none is given")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--out", type=Path, default=RUNS / "vectors.npz")
    args = parser.parse_args()

    asked = some_queries(sources.open_collection(args.data[0], args.lang, args.split), args.queries)
    texts = list(asked.passages.texts)
    for source in args.data[1:]:
        texts += sources.open_collection(source, args.lang).passages.texts
    model = ColbertXM.open(args.model, **({"passage_length": args.length} if args.length else {}))
    parts = []
    for start in range(0, len(texts), CHUNK):
        parts.append(model.encode_passages(texts[start : start + CHUNK], args.lang))
        print(f"{start + len(parts[-1]):,} of {len(texts):,} passages", flush=True)
    passages = TokenVectors.concatenate(parts)
    questions = [asked.queries[qid] for qid in asked.qrels]
    queries_ASH, mask_AS = model.encode_queries(questions, args.lang)
    arrays = {
        "vectors": passages.vectors_TH,
        "offsets": passages.offsets_B1,
        "types": passages.types_T,
        "queries": queries_ASH,
        "query_lengths": mask_AS.sum(axis=1),
        "relevant": np.array([asked.passages.position(next(iter(judged))) for judged in asked.qrels.values()]),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    beside = args.out.with_name(args.out.name + ".partial")
    with beside.open("wb") as file:
        np.savez(file, **arrays)
    os.replace(beside, args.out)
    T, H = passages.vectors_TH.shape
    print(f"{args.out}: {len(passages):,} passages, {T:,} tokens x {H}, {len(questions)} questions")


if __name__ == "__main__":
    main()
