"""From text to a trained retriever, as stages: pre-train, mine negatives, fine-tune (Figure 1a, 1b).

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

from xmlib import languages, pretraining, processes, systems, training
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
TOKENIZER_LINES = 10_000  # the vocabulary is learnt from at most about this many texts per language, evenly spaced


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
    vocab_size: int = 8000
    hidden: int = 128
    layers: int = 2
    heads: int = 4
    pretrain_steps: int = 1500
    pretrain_batch: int = 24  # texts
    pretrain_rate: float = 2e-3
    pretrain_length: int = 64  # tokens of a masked-LM example
    pretrain_join: bool = False  # lay loose sentences end to end, for text that has no passages
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
        """The languages that the encoder is pre-trained in."""
        if self.checkpoint:
            adapters = xmod_languages(self.checkpoint)
            have = [code for code in languages.LANGUAGES if languages.adapter_name(code) in adapters]
            return languages.resolve(self.languages, have)
        if self.text == "sample":
            return languages.resolve(self.languages, languages.SAMPLE)
        files = _text_files(self.text)
        return languages.resolve(self.languages, [code for code in languages.LANGUAGES if code in files])

    @cached_property
    def texts(self) -> dict[str, list[str]]:
        """Text for the masked-LM, by language. Of a collection: its passages and its training questions, unlabelled.

        None where the encoder is a checkpoint that others pre-trained.
        """
        if self.checkpoint:
            return {}
        langs = self.encoder_languages()
        if self.text == "sample":
            return {lang: _plain_text(open_collection("sample", lang, "train")) for lang in langs}
        files = _text_files(self.text)
        return {lang: pretraining.read_lines(files[lang]) for lang in langs}

    @cached_property
    def encoder(self) -> Path | str:
        """The pre-trained X-MOD: a folder, or the hub id of a checkpoint."""
        if self.checkpoint:
            return self.checkpoint
        return pretrained(
            self.texts,
            Shape(self.vocab_size, self.hidden, self.layers, self.heads),
            Recipe(self.pretrain_steps, self.pretrain_batch, self.pretrain_rate, seed=self.seed),
            self.pretrain_length,
            self.pretrain_join,
            self.progress,
        )

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
        return dict(own_negatives=self.own_negatives, progress=self.progress, dim=self.dim)

    @cached_property
    def dpr(self) -> Path:
        """DPR-XM, on the same examples."""
        recipe = Recipe(self.dpr_steps, self.batch_size, self.dpr_rate, seed=self.seed)
        layout = replace(SINGLE_VECTOR, query_length=self.dpr_length, passage_length=self.dpr_length)
        settings = dict(scale=self.dpr_scale, own_negatives=self.own_negatives, progress=self.progress)
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
    hidden: int = 128
    layers: int = 2
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
        "texts": digest(texts),
        "shape": asdict(shape),
        "recipe": identity_of(recipe),
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
        ).to(device())
        checkpoint = folder / CHECKPOINT
        loop = pretraining.pretrain(model, tokenizer, texts, recipe, checkpoint, max_length, join, progress=progress)
        finish(loop, folder)
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
    encoder: Path | str,
    examples: Triples | Tuples,
    recipe: Recipe,
    layout: Layout,
    own_negatives: bool = True,
    scale: float = 1.0,
    progress: bool = True,
    stop: int | None = None,
    after: Path | None = None,
    **sizes,
) -> Path:
    """A retriever of `kind` ("colbert-xm" or "dpr-xm") trained on English examples, over a pre-trained encoder.

    Of tuples the teacher's scores are distilled (KL divergence), of triples Eq. 6 is minimised.
    `sizes`: `dim` of the token vectors for ColBERT-XM, `pooling` for DPR-XM. With `stop` the run is broken off after
    so many of the recipe's steps and keeps its checkpoint; a later stop of the same run goes on from there, if it gets
    that folder as `after`. Where it starts from never changes the result.
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
        torch.manual_seed(recipe.seed)  # the projection starts at random
        classes = {"colbert-xm": ColbertXM, "dpr-xm": DprXM}
        model = classes[kind].from_encoder(encoder, layout=layout, **sizes).to(device())
        checkpoint = folder / CHECKPOINT
        if after is not None and (after / CHECKPOINT).exists() and not checkpoint.exists():
            shutil.copyfile(after / CHECKPOINT, checkpoint)
        loop = training.finetune(model, examples, recipe, checkpoint, own_negatives, scale, progress)
        finish(loop, folder, stop)
        model.record = {"recipe": asdict(recipe), "examples": len(examples), **settings, "language": examples.lang}
        model.record["encoder"] = inputs["encoder"]
        model.save(folder)

    return stage(RUNS / "models", kind, 1, inputs, build)


def read_log(folder: Path) -> pd.DataFrame:
    """The training log of a finished stage: step, loss, rate, seconds."""
    return pd.read_csv(Path(folder) / LOG)


def finish(loop: Loop, folder: Path, stop: int | None = None) -> None:
    """Do what is left of a training run, under the meter, and write its log beside the model."""
    with Meter() as meter:
        log = loop.run(stop)
    meter.save(folder)
    pd.DataFrame(log).to_csv(folder / LOG, index=False)
    if loop.step == loop.recipe.steps:
        (folder / CHECKPOINT).unlink(missing_ok=True)


def identity_of(recipe: Recipe) -> dict:
    """What of a recipe shapes the weights: all but how often they are saved."""
    return {name: value for name, value in asdict(recipe).items() if name != "checkpoint_every"}


def identity_of_examples(examples: Triples | Tuples) -> str:
    """What a stage's key holds of examples: the key of the stage that drew them, or else a digest of all that they are.

    So that millions of passages are neither read nor listed to find a trained model.
    """
    texts = {"queries": examples.queries, "passages": examples.passages}
    return examples.identity or digest(texts, examples.rows_EM)


def xmod_languages(checkpoint: str) -> list[str]:
    """Adapters of an X-MOD, in the order of its configuration."""
    from transformers import XmodConfig

    return list(XmodConfig.from_pretrained(checkpoint).languages)


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
