"""From text to a trained retriever, as stages: pre-train, mine negatives, fine-tune (Figure 1a, 1b).

Each function opens what exists for exactly these inputs, and otherwise builds it, going on from the last checkpoint if
an earlier build was cut off. Models lie in `runs/models/`.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from xmlib import pretraining, systems, training
from xmlib.data.collection import Collection
from xmlib.data.triples import Triples, mine
from xmlib.models import ColbertXM, DprXM
from xmlib.paths import RUNS
from xmlib.stages import fingerprint, stage
from xmlib.systems import System
from xmlib.tokens import Layout
from xmlib.training import Loop, Recipe

LOG = "log.csv"  # step, loss, rate, seconds: in every trained folder
CHECKPOINT = "checkpoint.pt"
TOKENIZER_LINES = 10_000  # the vocabulary is learnt from at most about this many texts per language, evenly spaced


@dataclass(frozen=True)
class Shape:
    """Size of an encoder that is pre-trained here. xmod-base: 250,002 · 768 · 12 · 12 · 512."""

    vocab_size: int = 8000
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    longest: int = 256  # tokens of the longest text it can ever see


def pretrained(
    texts: dict[str, Sequence[str]],
    shape: Shape,
    recipe: Recipe,
    max_length: int = 64,
    join: bool = False,
    progress: bool = True,
) -> Path:
    """An X-MOD with an adapter for every language of `texts`, trained on them from scratch, and its tokenizer."""
    inputs = {
        "texts": _digest(texts),
        "shape": asdict(shape),
        "recipe": _identity(recipe),
        "max_length": max_length,
        "join": join,
    }

    def build(folder: Path) -> None:
        from transformers import AutoTokenizer

        if not (folder / "tokenizer" / "tokenizer_config.json").exists():
            lines = (line for lang in texts for line in texts[lang][:: len(texts[lang]) // TOKENIZER_LINES + 1])
            pretraining.train_tokenizer(lines, shape.vocab_size).save_pretrained(folder / "tokenizer")
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        model = pretraining.new_xmod(
            tokenizer, list(texts), shape.hidden, shape.layers, shape.heads, longest=shape.longest, seed=recipe.seed
        ).to(_device())
        checkpoint = folder / CHECKPOINT
        loop = pretraining.pretrain(model, tokenizer, texts, recipe, checkpoint, max_length, join, progress=progress)
        _finish(loop, folder)
        pretraining.save(model, tokenizer, folder)

    return stage(RUNS / "models", "xmod", 1, inputs, build)


def triples(collection: Collection, system: System, per_query: int = 4, depth: int = 50, seed: int = 42) -> Triples:
    """Training triples of an English collection, with hard negatives out of what `system` ranks first."""
    inputs = {
        "collection": collection.fingerprint,
        "system": fingerprint(systems.index(system, collection)),
        "per_query": per_query,
        "depth": depth,
        "seed": seed,
    }

    def build(folder: Path) -> None:
        run = systems.rank(system, collection, k=depth + 10)
        np.save(folder / "rows.npy", mine(collection, run, per_query, depth, seed))

    folder = stage(RUNS / "triples", f"triples-{system.kind}", 1, inputs, build)
    passages = collection.passages.ids
    return Triples(
        list(collection.queries.values()),
        [collection.passages.text(position) for position in range(len(passages))],
        np.load(folder / "rows.npy"),
        collection.lang,
    )


def finetuned(
    kind: str,
    encoder: Path,
    examples: Triples,
    recipe: Recipe,
    layout: Layout,
    own_negatives: bool = True,
    scale: float = 1.0,
    progress: bool = True,
    **sizes,
) -> Path:
    """A retriever of `kind` ("colbert-xm" or "dpr-xm") trained on English triples, over a pre-trained encoder.

    `sizes`: `dim` of the token vectors for ColBERT-XM, `pooling` for DPR-XM.
    """
    settings = {"own_negatives": own_negatives, "scale": scale, **sizes}
    inputs = {
        "kind": kind,
        "encoder": fingerprint(encoder),
        "examples": _digest({"queries": examples.queries, "passages": examples.passages}, examples.rows_E3),
        "recipe": _identity(recipe),
        "layout": asdict(layout),
        **settings,
    }

    def build(folder: Path) -> None:
        torch.manual_seed(recipe.seed)  # the projection starts at random
        classes = {"colbert-xm": ColbertXM, "dpr-xm": DprXM}
        model = classes[kind].from_encoder(encoder, layout=layout, **sizes).to(_device())
        loop = training.finetune(model, examples, recipe, folder / CHECKPOINT, own_negatives, scale, progress)
        _finish(loop, folder)
        model.record = {"recipe": asdict(recipe), "examples": len(examples), **settings, "language": examples.lang}
        model.save(folder)

    return stage(RUNS / "models", kind, 1, inputs, build)


def read_log(folder: Path) -> pd.DataFrame:
    """The training log of a finished stage: step, loss, rate, seconds."""
    return pd.read_csv(Path(folder) / LOG)


def _finish(loop: Loop, folder: Path) -> None:
    pd.DataFrame(loop.run()).to_csv(folder / LOG, index=False)
    (folder / CHECKPOINT).unlink(missing_ok=True)


def _identity(recipe: Recipe) -> dict:
    """What of a recipe shapes the weights: all but how often they are saved."""
    return {name: value for name, value in asdict(recipe).items() if name != "checkpoint_every"}


def _digest(texts: dict[str, Sequence[str]], rows: np.ndarray | None = None) -> str:
    digest = hashlib.sha256()
    for name, lines in texts.items():
        digest.update(json.dumps([name, *lines], ensure_ascii=False).encode())
    if rows is not None:
        digest.update(np.ascontiguousarray(rows, dtype="<i8").tobytes())
    return digest.hexdigest()


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
