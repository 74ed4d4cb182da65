"""From text to a trained retriever, as stages: pre-train, add languages, mine negatives, fine-tune (Figure 1a, b, d).

Each function opens what exists for exactly these inputs, and otherwise builds it, going on from the last checkpoint if
an earlier build was cut off. Models lie in `runs/models/`.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from operator import attrgetter
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from xmlib import formats, languages, pretraining, processes, systems, training, xmod
from xmlib.carbon import Meter
from xmlib.data import msmarco
from xmlib.data.collection import Collection
from xmlib.data.sources import collection_languages, find_folder, open_collection
from xmlib.data.triples import Triples, Tuples, mine
from xmlib.models import ColbertXM, DprXM
from xmlib.paths import RUNS
from xmlib.stages import fingerprint, is_built, stage
from xmlib.systems import System
from xmlib.tokens import SINGLE_VECTOR, Layout
from xmlib.training import Loop, Recipe

LOG = "log.csv"  # step, loss, rate, seconds: in every trained folder
CHECKPOINT = "checkpoint.pt"
NEGATIVES = {  # where hard negatives come from → the retrievers of the published ones that are drawn from
    "mined": (),
    "msmarco": msmarco.SYSTEMS,
    "msmarco-dense": msmarco.DENSE,
}
TEXTS_PER_PIECE = 4  # the vocabulary is learnt from about so many for each of its pieces, as many of every language


@dataclass(frozen=True)
class Training:
    """All that makes the two retrievers: the parameters of `01_train`, under the same names and with its demo values.

    Its properties open what they name, and build it and all that it stands on where it is missing; so any notebook
    that has the parameters of `01_train` has its models.
    """

    collection: str = "sample"  # English training data: "sample", or a folder with splits train and dev
    checkpoint: str = ""  # a pre-trained X-MOD, hub id or folder; "": one is pre-trained here
    text: str = "sample"  # masked-LM text: "sample", or a folder of <lang>.txt[.gz] files
    languages: str = "all"  # of the encoder: codes, or "all" that `text` has
    new_languages: str = "sw"  # left out of its pre-training and added afterwards; "" for none
    vocab_size: int = 8000
    hidden: int = 96
    layers: int = 2
    heads: int = 3
    pretrain_steps: int = 1500
    pretrain_batch: int = 24  # texts
    pretrain_rate: float = 2e-3
    pretrain_length: int = 64  # tokens of a masked-LM example
    pretrain_join: bool = False  # lay loose sentences end to end, for text that has no passages
    new_steps: int = 300  # of masked-LM for each new language
    negatives: str = "mined"  # by BM25, or "msmarco": published ones of 13 retrievers; "msmarco-dense": of the 12 dense
    nway: int = 2  # passages of an example; with more than one negative, the teacher's scores are distilled
    negatives_per_query: int = 8
    negatives_depth: int = 30  # results among which a hard negative may be found
    query_length: int = 40  # n of Eq. 5
    augment_queries: bool = False  # fill queries up to n with [M], as the paper does
    passage_length: int = 128  # m
    dim: int = 64  # of a token vector
    steps: int = 200
    batch_size: int = 32  # triples
    rate: float = 1e-3
    own_negatives: bool = True  # in the denominator of Eq. 8, as printed; False as in the released code
    pooling: str = "mean"  # DPR-XM: mean, max or cls
    dpr_steps: int = 200
    dpr_length: int = 128  # tokens of a text, questions too
    dpr_rate: float = 1e-3
    dpr_scale: float = 20.0  # of the cosine inside the softmax
    seed: int = 42
    processes: int = 1  # that fine-tune a model together, each on a GPU of its own
    progress: bool = True

    def __post_init__(self):
        if self.negatives not in NEGATIVES:
            raise ValueError(f"negatives are {self.negatives!r}; have: {', '.join(NEGATIVES)}")
        if self.nway < 2 or (self.nway > 2 and self.negatives == "mined"):
            raise ValueError(
                f"nway is {self.nway}: an example has a positive and at least one negative; more than one only where "
                "negatives come with a teacher's scores: msmarco, msmarco-dense"
            )

    def languages_of(self, source: str, lang: str) -> list[str]:
        """The languages `lang` of the collection `source`: codes, or "all" that both it and the encoder have.

        A folder that holds a single collection does not say its language: there `lang` has to.
        """
        named = collection_languages(source)
        if not named and lang == "all":
            raise ValueError(f"{source} does not say its language; give one of: {', '.join(self.encoder_languages())}")
        return languages.resolve(lang, [code for code in self.encoder_languages() if code in named or not named])

    def places_of(self, sources: str, lang: str) -> dict[str, list[str]]:
        """Source → languages, for collections named with commas. One that lacks a language is left out, and says so."""
        found, refused = {}, {}
        for source in (source.strip() for source in sources.split(",")):
            try:
                found[source] = self.languages_of(source, lang)
            except ValueError as error:
                refused[source] = error
        if not found:
            raise next(iter(refused.values()))
        for source, error in refused.items():
            print(f"without {source}: {error}")
        return found

    def encoder_languages(self) -> list[str]:
        """The languages that the encoder has adapters for, in the order of the tables."""
        have = languages.SAMPLE
        if self.checkpoint:
            adapters = xmod_languages(self.checkpoint)
            have = [code for code in languages.LANGUAGES if languages.adapter_name(code) in adapters]
        elif self.text != "sample":
            have = list(_text_files(self.text))
        wanted = {*languages.resolve(self.languages, have), *self.added_languages}
        return [code for code in languages.LANGUAGES if code in wanted]

    @cached_property
    def added_languages(self) -> list[str]:
        """Those of them that it was not pre-trained in. Of a `checkpoint`, those that it does not have."""
        if not self.new_languages:
            return []
        have = languages.SAMPLE if self.text == "sample" else _text_files(self.text)
        added = languages.resolve(self.new_languages, [code for code in languages.LANGUAGES if code in have])
        if languages.TRAINING_LANGUAGE in added:
            raise ValueError(f"new_languages is {self.new_languages!r}: English has to be there from the start")
        adapters = xmod_languages(self.checkpoint) if self.checkpoint else []
        return [code for code in added if languages.adapter_name(code) not in adapters]

    @cached_property
    def texts(self) -> dict[str, list[str]]:
        """Text for the masked-LM, by language, in the order in which the encoder meets them.

        Of a collection: its passages and its training questions, unlabelled. What others pre-trained needs text of the
        added languages alone.
        """
        added = self.added_languages
        before = [] if self.checkpoint else [code for code in self.encoder_languages() if code not in added]
        langs = [*before, *added]
        if self.text == "sample":
            return {lang: _plain_text(open_collection("sample", lang, "train")) for lang in langs}
        files = _text_files(self.text)
        return {lang: pretraining.read_lines(files[lang]) for lang in langs}

    @property
    def _first_texts(self) -> dict[str, list[str]]:
        """The `texts` of an encoder that is pre-trained here: without the new languages."""
        return {lang: lines for lang, lines in self.texts.items() if lang not in self.added_languages}

    @cached_property
    def tokenizer(self) -> Path | str:
        """The encoder's tokenizer: a folder, or the hub id of a checkpoint. It has not seen the new languages."""
        return self.checkpoint or vocabulary(self._first_texts, self.vocab_size)

    @cached_property
    def pretrained_encoder(self) -> Path | str:
        """The X-MOD as its pre-training left it, without the new languages: a folder, or the hub id of a checkpoint."""
        if self.checkpoint:
            return self.checkpoint
        return pretrained(
            self._first_texts,
            Shape(self.vocab_size, self.hidden, self.layers, self.heads),
            Recipe(self.pretrain_steps, self.pretrain_batch, self.pretrain_rate, seed=self.seed),
            self.pretrain_length,
            self.pretrain_join,
            self.progress,
        )

    @cached_property
    def extended_encoders(self) -> dict[str, Path]:
        """New language → the encoder once it was added, one after the other."""
        encoder, folders = self.pretrained_encoder, {}
        for lang in self.added_languages:
            encoder = folders[lang] = self.add_language(encoder, lang, self.texts[lang])
        return folders

    @property
    def encoder(self) -> Path | str:
        """The X-MOD that all retrievers stand on: with adapters for every language."""
        return [self.pretrained_encoder, *self.extended_encoders.values()][-1]

    def add_language(self, encoder: Path | str, lang: str, texts: Sequence[str]) -> Path:
        """`encoder` with adapters for the language `lang`, trained on `texts`."""
        recipe = Recipe(self.new_steps, self.pretrain_batch, self.pretrain_rate, seed=self.seed)
        return extended(encoder, lang, texts, recipe, self.pretrain_length, self.pretrain_join, self.progress)

    @property
    def examples(self) -> Triples | Tuples:
        """English training examples with hard negatives, for `steps`."""
        return self.examples_for(self.steps)

    def examples_for(self, steps: int) -> Triples | Tuples:
        """Examples for a run of `steps`. Mined ones are all that there are; of published ones as many as it takes."""
        count = 0 if self.negatives == "mined" else steps * self.batch_size
        if count not in self._examples:
            self._examples[count] = self._drawn(count)
        return self._examples[count]

    @cached_property
    def _examples(self) -> dict[int, Triples | Tuples]:
        """Those that are open, by their number."""
        return {}

    def _drawn(self, count: int) -> Triples | Tuples:
        collection = open_collection(self.collection, languages.TRAINING_LANGUAGE, "train")
        if self.negatives == "mined":
            bm25 = System("BM25", "bm25")
            return triples(collection, bm25, self.negatives_per_query, self.negatives_depth, self.seed)
        retrievers = NEGATIVES[self.negatives]
        if self.nway > 2:
            return msmarco.tuples(collection, count, self.nway, retrievers, seed=self.seed)
        return msmarco.triples(collection, count, retrievers, seed=self.seed)

    @cached_property
    def colbert(self) -> Path:
        """ColBERT-XM."""
        return self.colbert_after(self.steps)

    def colbert_after(self, steps: int) -> Path:
        """ColBERT-XM trained for `steps` with the same rates up and down, for Table 4 and Figure 3."""
        recipe = Recipe(steps, self.batch_size, self.rate, seed=self.seed)
        settings = (self.encoder, self.examples_for(steps), recipe, self.layout)
        return finetuned("colbert-xm", *settings, **self._colbert_settings)

    def colbert_snapshots(self, steps: Sequence[int]) -> list[Path]:
        """One run of ColBERT-XM over the largest of `steps`, saved after each of them."""
        recipe = Recipe(max(steps), self.batch_size, self.rate, seed=self.seed)
        settings = (self.encoder, self.examples_for(max(steps)), recipe, self.layout)
        last, folders = None, {}
        for step in sorted(steps):
            last = finetuned("colbert-xm", *settings, **self._colbert_settings, stop=step, after=last)
            folders[step] = last
        return [folders[step] for step in steps]

    @property
    def layout(self) -> Layout:
        """What ColBERT-XM sees of a text."""
        return Layout(self.query_length, self.passage_length, augment_queries=self.augment_queries)

    @property
    def _colbert_settings(self) -> dict:
        return dict(own_negatives=self.own_negatives, dim=self.dim, **self._running)

    @property
    def _running(self) -> dict:
        """How fine-tuning is run: no part of what comes out."""
        return dict(progress=self.progress, processes=self.processes)

    @cached_property
    def dpr(self) -> Path:
        """DPR-XM, on the same examples."""
        recipe = Recipe(self.dpr_steps, self.batch_size, self.dpr_rate, seed=self.seed)
        layout = replace(SINGLE_VECTOR, query_length=self.dpr_length, passage_length=self.dpr_length)
        settings = dict(scale=self.dpr_scale, own_negatives=self.own_negatives, **self._running)
        examples = self.examples_for(self.dpr_steps)
        return finetuned("dpr-xm", self.encoder, examples, recipe, layout, **settings, pooling=self.pooling)

    @cached_property
    def retrievers(self) -> tuple[Path, Path]:
        """ColBERT-XM and DPR-XM, trained side by side where there are two cores."""
        _ = self.examples  # which both need
        if is_built(lambda: self.dpr):
            return self.colbert, self.dpr
        with processes.beside(attrgetter("dpr"), replace(self, progress=False)):
            _ = self.colbert
        return self.colbert, self.dpr

    @cached_property
    def systems(self) -> Mapping[str, System]:
        """Every row of the tables, by name; the checkpoint of a row is made when it is first asked for."""
        from xmlib.baselines import Systems  # which stands on this module

        return Systems(self)


@dataclass(frozen=True)
class Shape:
    """Size of an encoder that is pre-trained here. xmod-base: 250,002 · 768 · 12 · 12 · 512."""

    vocab_size: int = 8000
    hidden: int = 96
    layers: int = 2
    heads: int = 3
    longest: int = 256  # tokens of the longest text it can ever see


def vocabulary(texts: dict[str, Sequence[str]], size: int) -> Path:
    """A Unigram tokenizer of `size` pieces, learnt from equally many texts of every language."""

    def build(folder: Path) -> None:
        most = TEXTS_PER_PIECE * size // len(texts)
        lines = (line for lang in texts for line in texts[lang][:: len(texts[lang]) // most + 1])
        pretraining.train_tokenizer(lines, size).save_pretrained(folder)

    return stage(RUNS / "models", "vocabulary", 1, {"texts": digest(texts), "size": size}, build)


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
        "texts": digest(texts),
        "shape": asdict(shape),
        "recipe": identity_of(recipe),
        "max_length": max_length,
        "join": join,
    }

    def build(folder: Path) -> None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(vocabulary(texts, shape.vocab_size))
        model = pretraining.new_xmod(
            tokenizer, list(texts), shape.hidden, shape.layers, shape.heads, longest=shape.longest, seed=recipe.seed
        ).to(device())
        checkpoint = folder / CHECKPOINT
        loop = pretraining.pretrain(model, tokenizer, texts, recipe, checkpoint, max_length, join, progress=progress)
        finish(loop, folder)
        pretraining.save(model, tokenizer, folder)

    return stage(RUNS / "models", "xmod", 3, inputs, build)  # 3: the same vocabulary every time


def extended(
    encoder: Path | str,
    lang: str,
    texts: Sequence[str],
    recipe: Recipe,
    max_length: int = 64,
    join: bool = False,
    progress: bool = True,
) -> Path:
    """The encoder with adapters for one more language, trained on `texts` while all else stays as it is."""
    inputs = {
        "encoder": systems.identity(encoder),
        "texts": digest({lang: texts}),
        "recipe": identity_of(recipe),
        "max_length": max_length,
        "join": join,
    }

    def build(folder: Path) -> None:
        from transformers import AutoTokenizer, XmodForMaskedLM

        source = formats.locate(encoder)
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = XmodForMaskedLM.from_pretrained(source).to(device())
        checkpoint = folder / CHECKPOINT
        settings = (recipe, checkpoint, max_length, join)
        finish(pretraining.add_language(model, tokenizer, lang, texts, *settings, progress=progress), folder)
        pretraining.save(model, tokenizer, folder)

    return stage(RUNS / "models", f"xmod-{lang}", 1, inputs, build)


def plugged(retriever: Path, encoder: Path, lang: str) -> Path:
    """ColBERT-XM with the adapters that `encoder` has for `lang`, in place of its own if it had any.

    They were trained beside the pre-trained layers and fit the fine-tuned ones as the other languages' do, which saw
    no fine-tuning either.
    """
    inputs = {"retriever": fingerprint(retriever), "encoder": fingerprint(encoder), "lang": lang}

    def build(folder: Path) -> None:
        from transformers import XmodForMaskedLM

        model, source = ColbertXM.open(retriever), XmodForMaskedLM.from_pretrained(encoder).roberta
        if languages.adapter_name(lang) in model.languages:
            xmod.remove_language(model.roberta, lang)
        xmod.add_language(model.roberta, lang, xmod.adapters_of(source, lang))
        model.save(folder)

    return stage(RUNS / "models", f"colbert-xm-{lang}", 1, inputs, build)


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
    encoder: Path | str,
    examples: Triples | Tuples,
    recipe: Recipe,
    layout: Layout,
    own_negatives: bool = True,
    scale: float = 1.0,
    progress: bool = True,
    processes: int = 1,
    stop: int | None = None,
    after: Path | None = None,
    **sizes,
) -> Path:
    """A retriever of `kind` ("colbert-xm" or "dpr-xm") trained on English examples, over a pre-trained encoder.

    Of tuples the teacher's scores are distilled (KL divergence), of triples Eq. 6 is minimised.
    `sizes`: `dim` of the token vectors for ColBERT-XM, `pooling` for DPR-XM. With `stop` the run is broken off after
    so many of the recipe's steps and keeps its checkpoint; a later stop of the same run goes on from there, if it gets
    that folder as `after`. Where it starts from never changes the result, nor do `processes` of this machine that
    share every batch, but for rounding.
    """
    settings = {"own_negatives": own_negatives, "scale": scale, **sizes}
    if stop is not None and stop < recipe.steps:
        settings["stop"] = stop
    inputs = {
        "kind": kind,
        "encoder": systems.identity(encoder),
        "examples": identity_of_examples(examples),
        "recipe": identity_of(recipe),
        "layout": asdict(layout),
        **settings,
    }

    def build(folder: Path) -> None:
        checkpoint = folder / CHECKPOINT
        if after is not None and (after / CHECKPOINT).exists() and not checkpoint.exists():
            shutil.copyfile(after / CHECKPOINT, checkpoint)
        losses = dict(own_negatives=own_negatives, scale=scale, progress=progress)
        record = {"recipe": asdict(recipe), "examples": len(examples), **settings, "language": examples.lang}
        start = dict(layout=layout, record=record | {"encoder": inputs["encoder"]}, **sizes)
        cut = examples if examples.identity else tokenized(examples, encoder)  # millions are cut a step ahead
        training.together(processes, _finetune, folder, kind, encoder, start, cut, recipe, losses, stop)

    return stage(RUNS / "models", kind, 2, inputs, build)  # 2: the projection starts apart from the adapters


def tokenized(examples: Triples, encoder: Path | str) -> Triples:
    """The examples with their texts cut by the encoder's tokenizer, in files that every process maps."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(formats.locate(encoder, weights=False))
    cut = {
        name: systems.pieces_of(tokenizer, texts, digest({name: texts}), examples.lang, progress=False)
        for name, texts in (("queries", examples.queries), ("passages", examples.passages))
    }
    return replace(examples, **cut)


def _finetune(
    folder: Path,
    kind: str,
    encoder: Path | str,
    start: dict,
    examples: Triples | Tuples,
    recipe: Recipe,
    losses: dict,
    stop: int | None,
) -> None:
    """What every process of a group does; the first writes the folder."""
    torch.manual_seed(recipe.seed)  # the projection starts at random
    classes = {"colbert-xm": ColbertXM, "dpr-xm": DprXM}
    model = classes[kind].from_encoder(encoder, **start).to(device())
    finish(training.finetune(model, examples, recipe, folder / CHECKPOINT, **losses), folder, stop)
    if training.is_first():
        model.save(folder)


def read_log(folder: Path) -> pd.DataFrame:
    """The training log of a finished stage: step, loss, rate, seconds."""
    return pd.read_csv(Path(folder) / LOG)


def finish(loop: Loop, folder: Path, stop: int | None = None) -> None:
    """Do what is left of a training run, under the meter, and write its log beside the model."""
    with Meter() as meter:
        log = loop.run(stop)
    if not training.is_first():
        return
    meter.save(folder)
    pd.DataFrame(log).to_csv(folder / LOG, index=False)
    if loop.step == loop.recipe.steps:
        (folder / CHECKPOINT).unlink(missing_ok=True)


def identity_of(recipe: Recipe) -> dict:
    """What of a recipe shapes the weights: all but how often they are saved, and the precision that is asked for."""
    return recipe.identity | systems.precision()


def identity_of_examples(examples: Triples | Tuples) -> str:
    """What a stage's key holds of examples: the key of the stage that drew them, or else a digest of all that they are.

    So that millions of passages are neither read nor listed to find a trained model.
    """
    texts = {"queries": examples.queries, "passages": examples.passages}
    return examples.identity or digest(texts, examples.rows_EM)


def xmod_languages(checkpoint: str) -> list[str]:
    """Adapters of an X-MOD, in the order of its configuration."""
    from transformers import XmodConfig

    return list(XmodConfig.from_pretrained(formats.locate(checkpoint, weights=False)).languages)


def _text_files(source: str) -> dict[str, Path]:
    """Language → file, for a folder of <lang>.txt or <lang>.txt.gz."""
    return {path.name.split(".")[0]: path for path in sorted(find_folder(source).glob("*.txt*"))}


def _plain_text(collection: Collection) -> list[str]:
    passages = collection.passages
    return [passages.text(position) for position in range(len(passages))] + list(collection.queries.values())


def digest(texts: dict[str, Sequence[str]], rows: np.ndarray | None = None) -> str:
    """SHA-256 of named texts, and of the rows of examples that point into them."""
    sha = hashlib.sha256()
    for name, lines in texts.items():
        sha.update(json.dumps([name, *lines], ensure_ascii=False).encode())
    if rows is not None:
        sha.update(np.ascontiguousarray(rows, dtype="<i8").tobytes())
    return sha.hexdigest()


def device() -> str:
    """Where models are trained."""
    return "cuda" if torch.cuda.is_available() else "cpu"
