"""Small checkpoints of the baselines' architectures, made here for where the published ones cannot be downloaded.

    have = Systems(train)      # name → System, every row of the tables
    have["mT5-base"]           # its checkpoint is made when the row is first asked for

All are trained on what ColBERT-XM is trained on: the text of all languages without labels, then English triples. The
architectures, recipes and code are those of the published checkpoints; size and training are in miniature, and so is
what they reach. In the paper mT5, mMiniLM and mColBERT saw labels in 9 languages, DPR-X in 4, mE5 in 16.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, MT5Config, MT5ForConditionalGeneration, XLMRobertaConfig, XLMRobertaForMaskedLM

from xmlib import crossencoders, pretraining, training
from xmlib.languages import TRAINING_LANGUAGE
from xmlib.crossencoders import Classifier, CrossEncoder, MonoT5, MonoXM
from xmlib.models import BiEncoder, Colbert, Plain
from xmlib.paths import RUNS
from xmlib.pipeline import CHECKPOINT, Training, _device, _digest, _finish, _identity
from xmlib.stages import fingerprint, stage
from xmlib.systems import PAPER, System
from xmlib.training import Loop, Recipe

PAIR_LENGTH = 160  # tokens of a query and a passage together


class Systems(Mapping[str, System]):
    """The rows of the tables by name, in their order. Reading one makes its checkpoint, where that does not exist yet.

    `checkpoints` maps names to folders or hub ids to use instead; `depth` is how much of BM25's ranking the
    cross-encoders re-rank.
    """

    def __init__(self, train: Training, checkpoints: Mapping[str, str | Path] | None = None, depth: int = 10):
        self.train, self.checkpoints, self.depth = train, dict(checkpoints or {}), depth
        have = [name for name, row in PAPER.items() if row.model]
        for name in self.checkpoints:
            if name not in have:
                raise ValueError(f"a checkpoint for {name!r}; rows that have one: {', '.join(have)}")

    def __iter__(self) -> Iterator[str]:
        return iter(PAPER)

    def __len__(self) -> int:
        return len(PAPER)

    def __getitem__(self, name: str) -> System:
        row = replace(PAPER[name], depth=self.depth)
        if name in self.checkpoints:
            return replace(row, model=self.checkpoints[name])
        return replace(row, **_MADE[row.name](self.train)) if row.model else row


def encoder(train: Training) -> Path:
    """An XLM-R of half the width of the X-MOD, with its tokenizer, trained by masked-LM on the same text."""
    shape = _shape(train)
    recipe = Recipe(max(1, train.pretrain_steps // 3), train.pretrain_batch, train.pretrain_rate, seed=train.seed)

    def build(folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(train.encoder)
        torch.manual_seed(recipe.seed)
        config = XLMRobertaConfig(**shape, **_tokens_of(tokenizer), **_UNREGULARISED)
        model = XLMRobertaForMaskedLM(config).to(_device())
        _finish(pretrain(model, tokenizer, train.texts, recipe, folder / CHECKPOINT, train.progress), folder)
        pretraining.save(model, tokenizer, folder)

    inputs = {"texts": fingerprint(train.encoder), "shape": shape, "recipe": _identity(recipe)}
    return stage(RUNS / "models", "xlm-r", 1, inputs, build)


def pretrain(model: XLMRobertaForMaskedLM, tokenizer, texts, recipe: Recipe, checkpoint: Path, progress: bool) -> Loop:
    """The loop of masked-LM training for an encoder without adapters. A batch mixes texts of all languages."""
    streams = [pretraining.examples_of_texts(tokenizer, lines, 64) for lines in texts.values()]
    examples = concatenate(*streams)
    encoder = Plain(model.roberta, tokenizer)
    specials = len(pretraining.MARKERS) + 4

    def loss_of(step: int) -> torch.Tensor:
        rng = np.random.default_rng([recipe.seed, step])
        part = examples.take(rng.integers(len(examples), size=recipe.batch_size))
        inputs_T, chosen = pretraining.mask_tokens(part.ids_T, tokenizer.mask_token_id, specials, rng)
        hidden_TH = encoder.hidden(replace(part, ids_T=inputs_T), "")
        logits = model.lm_head(hidden_TH[torch.from_numpy(chosen).to(encoder.device)])
        return F.cross_entropy(logits, torch.from_numpy(part.ids_T[chosen]).to(encoder.device))

    return Loop(model, loss_of, recipe, checkpoint, title="pre-train XLM-R", progress=progress)


def mt5(train: Training) -> Path:
    """An mT5 of that size; nothing is pre-trained, its word vectors start as those of `encoder`."""
    raise NotImplementedError


def retriever(train: Training, cls: type[Plain], scale: float, **settings) -> Path:
    """A `BiEncoder` or `Colbert` over `encoder`, fine-tuned on the English triples."""
    start, examples = encoder(train), train.examples
    recipe = Recipe(train.steps, train.batch_size, train.rate, seed=train.seed)

    def build(folder: Path) -> None:
        torch.manual_seed(recipe.seed)
        model = cls.from_encoder(start, **settings).to(_device())
        _finish(training.finetune(model, examples, recipe, folder / CHECKPOINT, True, scale, train.progress), folder)
        model.save(folder)

    inputs = _inputs(start, examples, recipe) | {"scale": scale, "settings": settings}
    return stage(RUNS / "models", cls.kind, 1, inputs, build)


def cross_encoder(train: Training, cls: type[CrossEncoder], start: Path, **config) -> Path:
    """A cross-encoder over `start`, fine-tuned on the English triples."""
    examples = train.examples
    recipe = Recipe(train.steps, train.batch_size, train.rate, seed=train.seed)

    def build(folder: Path) -> None:
        torch.manual_seed(recipe.seed)  # the head starts at random
        model = cls.from_encoder(start, PAIR_LENGTH, **config).to(_device())
        _finish(crossencoders.finetune(model, examples, recipe, folder / CHECKPOINT, train.progress), folder)
        model.save(folder)

    return stage(RUNS / "models", cls.kind, 1, _inputs(start, examples, recipe) | {"length": PAIR_LENGTH}, build)
