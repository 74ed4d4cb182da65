"""Small checkpoints of the baselines' architectures, made here for where the published ones cannot be downloaded.

    have = Systems(train)      # name → System, every row of the tables
    have["mT5-base"]           # its checkpoint is made when the row is first asked for

All are trained on what ColBERT-XM is trained on: the text of all languages without labels, then English triples. The
architectures, recipes and code are those of the published checkpoints; size and training are in miniature, and so is
what they reach. In the paper mT5, mMiniLM and mColBERT saw labels in 9 languages, DPR-X in 4, mE5 in 16.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, MT5Config, MT5ForConditionalGeneration, XLMRobertaConfig, XLMRobertaForMaskedLM

from xmlib import crossencoders, pretraining, processes, training
from xmlib.crossencoders import Classifier, CrossEncoder, MonoT5, MonoXM
from xmlib.data.triples import Triples
from xmlib.models import BiEncoder, Colbert, Plain
from xmlib.paths import RUNS
from xmlib.pipeline import CHECKPOINT, Shape, Training, device, digest, finish, identity_of, identity_of_examples
from xmlib.stages import fingerprint, is_built, stage
from xmlib.systems import PAPER, System
from xmlib.tokens import concatenate
from xmlib.training import Loop, Recipe

TRAINED = ("DPR-XM", "ColBERT-XM with English adapters", "ColBERT-XM")  # rows that 01_train makes in every profile
PAIR_LENGTH = 160  # tokens of a query and a passage together


class Systems(Mapping[str, System]):
    """The rows of the tables by name, in their order. Reading one makes its checkpoint, where that does not exist yet.

    `checkpoints` maps names to folders or hub ids to use instead; `depth` is how much of BM25's ranking the
    cross-encoders re-rank. Over a published encoder there is no text to make a small baseline from: there the other
    rows are the published ones too.
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
        return replace(row, **_row(self.train, name)) if is_made_here(self.train, row) else row

    def built(self) -> list[str]:
        """Names of the rows whose checkpoints exist already, or that need none."""
        return [name for name in self if is_built(lambda name=name: self[name])]

    def make(self, names: Sequence[str]) -> None:
        """Make the checkpoints of these rows that do not exist yet, side by side on the machine's cores."""
        have = self.built()
        missing = [name for name in names if name not in have]
        if missing:
            _ = self.train.examples, self.train.encoder  # what they stand on
            missing.sort(key="mono-XM".__ne__)  # not on the XLM-R, as all others of the demo: made beside it
            processes.each(self._silent().__getitem__, [(name,) for name in missing], "make checkpoints", "model")

    @contextmanager
    def beside_encoder(self) -> Iterator[None]:
        """While the `with` block makes the X-MOD: make rows that do without it on another core, one after the other.

        The end of the block waits for the row that is being made. With one core, or a GPU, nothing happens beside it.
        """
        have = self.built()
        missing = [name for name in self if name not in have and not PAPER[name].kind.endswith("-xm")]
        if not missing or not processes.shared() or is_built(lambda: self.train.encoder):
            yield
            return
        with processes.beside(self._silent().make_until_encoder, missing) as made:
            yield
        if made.result():
            print(f"made beside it: {', '.join(made.result())}")

    def make_until_encoder(self, names: Sequence[str]) -> list[str]:
        """Make these rows, until the X-MOD is there. Returns those that were made."""
        made = []
        for name in names:
            if is_built(lambda: self.train.encoder):
                break
            made.append(self[name].name)
        return made

    def _silent(self) -> "Systems":
        """For other processes."""
        return Systems(replace(self.train, progress=False), self.checkpoints, self.depth)


def is_made_here(train: Training, row: System) -> bool:
    """Whether a row's checkpoint is trained here rather than downloaded, where nothing else is asked for."""
    return row.model is not None and (not train.checkpoint or row.name in TRAINED)


def encoder(train: Training) -> Path:
    """An XLM-R of half the width of the X-MOD, with its tokenizer, trained by masked-LM on the same text."""
    width = _width(train)
    recipe = Recipe(max(1, train.pretrain_steps // 3), train.pretrain_batch, train.pretrain_rate, seed=train.seed)

    def build(folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(train.tokenizer)
        torch.manual_seed(recipe.seed)
        config = XLMRobertaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            num_hidden_layers=train.layers,
            num_attention_heads=_heads(width),
            intermediate_size=4 * width,
            max_position_embeddings=Shape.longest + 2,
            type_vocab_size=1,
            initializer_range=0.05,  # as pretraining.new_xmod, for the same reason
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        model = XLMRobertaForMaskedLM(config).to(device())
        finish(pretrain(model, tokenizer, train.texts, recipe, folder / CHECKPOINT, train.progress), folder)
        pretraining.save(model, tokenizer, folder)

    inputs = {"texts": digest(train.texts), "tokenizer": fingerprint(train.tokenizer), "width": width}
    inputs |= {"layers": train.layers, "recipe": identity_of(recipe)}
    return stage(RUNS / "models", "xlm-r", 2, inputs, build)  # 2: does not stand on the X-MOD


def pretrain(
    model: XLMRobertaForMaskedLM,
    tokenizer,
    texts: Mapping[str, Sequence[str]],
    recipe: Recipe,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Loop:
    """The loop of masked-LM training for an encoder without adapters; a batch mixes texts of all languages."""
    examples = concatenate(*[pretraining.examples_of_texts(tokenizer, lines, 64) for lines in texts.values()])
    plain = Plain(model.roberta, tokenizer)
    specials = len(pretraining.MARKERS) + 4

    def loss_of(step: int) -> torch.Tensor:
        rng = np.random.default_rng([recipe.seed, step])
        part = examples.take(rng.integers(len(examples), size=recipe.batch_size))
        inputs_T, chosen = pretraining.mask_tokens(part.ids_T, tokenizer.mask_token_id, specials, rng)
        hidden_TH = plain.hidden(replace(part, ids_T=inputs_T), "")
        logits = model.lm_head(hidden_TH[torch.from_numpy(chosen).to(plain.device)])
        return F.cross_entropy(logits, torch.from_numpy(part.ids_T[chosen]).to(plain.device))

    return Loop(model, loss_of, recipe, checkpoint, title="pre-train XLM-R", progress=progress)


def new_mt5(train: Training) -> Path:
    """An mT5 of that size, not pre-trained: all but its word vectors, which are those of `encoder`, is random."""
    start, width = encoder(train), _width(train)

    def build(folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(start)
        words = XLMRobertaForMaskedLM.from_pretrained(start).get_input_embeddings().weight.data
        tokenizer.add_tokens([answer for answer in MonoT5.ANSWERS if answer not in tokenizer.get_vocab()])
        torch.manual_seed(train.seed)
        config = MT5Config(
            vocab_size=len(tokenizer),
            d_model=width,
            d_kv=width // _heads(width),
            d_ff=2 * width,
            num_layers=train.layers,
            num_decoder_layers=1,  # it decodes one token
            num_heads=_heads(width),
            dropout_rate=0.0,
            tie_word_embeddings=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.pad_token_id,
        )
        model = MT5ForConditionalGeneration(config)
        model.get_input_embeddings().weight.data[: len(words)] = words
        pretraining.save(model, tokenizer, folder)

    return stage(RUNS / "models", "mt5", 1, {"words": fingerprint(start), "layers": train.layers}, build)


def retriever(train: Training, cls: type[Plain], scale: float = 1.0, **settings) -> Path:
    """A `BiEncoder` or `Colbert` over `encoder`, fine-tuned on the English triples."""
    start, examples = encoder(train), train.examples
    recipe = Recipe(train.steps, train.batch_size, train.rate, seed=train.seed)

    def build(folder: Path) -> None:
        torch.manual_seed(recipe.seed)  # the projection starts at random
        model = cls.from_encoder(start, **settings).to(device())
        finish(training.finetune(model, examples, recipe, folder / CHECKPOINT, True, scale, train.progress), folder)
        model.save(folder)

    inputs = _inputs(start, examples, recipe) | {"scale": scale, "settings": settings}
    return stage(RUNS / "models", cls.kind, 1, inputs, build)


def cross_encoder(train: Training, cls: type[CrossEncoder], start: Path, **config) -> Path:
    """A cross-encoder over `start`, fine-tuned on the English triples."""
    examples = train.examples
    recipe = Recipe(2 * train.steps, max(1, train.batch_size // 4), train.rate, seed=train.seed)

    def build(folder: Path) -> None:
        torch.manual_seed(recipe.seed)  # a head starts at random
        model = cls.from_encoder(start, PAIR_LENGTH, **config).to(device())
        finish(crossencoders.finetune(model, examples, recipe, folder / CHECKPOINT, train.progress), folder)
        model.save(folder)

    inputs = _inputs(start, examples, recipe) | {"length": PAIR_LENGTH, "config": config}
    return stage(RUNS / "models", cls.kind, 1, inputs, build)


def _row(train: Training, name: str) -> dict:
    """What a row has in place of its published checkpoint: model, settings, made."""
    xlm_r = f"XLM-R of {train.layers} x {_width(train)}, masked-LM on the same text; English triples"
    x_mod = f"{train.checkpoint or f'X-MOD of {train.layers} x {train.hidden}'}; English triples"
    pairs = {"length": PAIR_LENGTH}
    if name == "mT5-base":
        made = f"mT5 of {train.layers} x {_width(train)}, not pre-trained; English triples"
        return dict(model=cross_encoder(train, MonoT5, new_mt5(train)), settings=pairs, made=made)
    if name == "mMiniLM-L6":
        return dict(model=cross_encoder(train, Classifier, encoder(train), num_labels=1), settings=pairs, made=xlm_r)
    if name == "mono-XM":
        return dict(model=cross_encoder(train, MonoXM, train.encoder, num_labels=1), settings=pairs, made=x_mod)
    if name in ("DPR-X", "mE5-base"):
        settings = PAPER[name].settings | {"length": train.passage_length}
        scale = 1.0 if settings.get("similarity") == "dot" else train.dpr_scale
        return dict(model=retriever(train, BiEncoder, scale, **settings), settings=settings, made=xlm_r)
    if name == "mColBERT":
        layout = asdict(train.layout)
        return dict(model=retriever(train, Colbert, dim=train.dim // 2, **layout), settings=layout, made=xlm_r)
    return dict(model=train.dpr if name == "DPR-XM" else train.colbert, made=x_mod)


def _width(train: Training) -> int:
    return train.hidden // 2


def _heads(width: int) -> int:
    return max(1, width // 32)


def _inputs(start: Path, examples: Triples, recipe: Recipe) -> dict:
    return {
        "start": fingerprint(start),
        "examples": identity_of_examples(examples),
        "recipe": identity_of(recipe),
    }
