"""The retrievers: one vector per token, scored by MaxSim, or one per text; over X-MOD or over any other encoder.

|                    | over X-MOD, routed per language | over any BERT-like encoder |
| ------------------ | ------------------------------- | -------------------------- |
| one per token      | `ColbertXM` (Eq. 3, 4)          | `Colbert`                  |
| one per text       | `DprXM` (Eq. 9)                 | `BiEncoder`                |

A row of this table is `MultiVector` or `SingleVector`: how vectors come out of hidden states. A column is `Modular` or
`Plain`: how hidden states come out of tokens, and what the folder looks like. Nothing runs code from a checkpoint.

A model opens from folders and hub ids of many layouts, see `formats`: `load` takes what comes, `open` of a class only
its own kind. A folder that is written here holds what `transformers` saves (`config.json`, `model.safetensors`,
tokenizer) and what sentence-transformers, PyLate and colbert-ai read beside it; a modular model's also `xmlib.json`:
kind, layout of the input, sizes, and the record of the training, which those have no place for. The weights are named
as in the released checkpoints: `roberta.*` and `linear.weight`.

Axes:  A queries · B passages · S query tokens · T tokens · H embedding
"""

import copy
import inspect
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import MODEL_MAPPING, AutoConfig, AutoTokenizer, XmodConfig, XmodModel
from transformers.models.xmod.modeling_xmod import XmodPreTrainedModel

from xmlib import xmod
from xmlib.index.vectors import TokenVectors
from xmlib.languages import adapter_of
from xmlib.ragged import offsets_of, rows_of
from xmlib.tokens import SINGLE_VECTOR, Layout, Pieces, Tokens, stream, tokenize_passages, tokenize_queries

POOLING = ("mean", "max", "cls")
SIMILARITIES = ("cosine", "dot")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WIDE = 256  # hidden size from which a CPU gains by bfloat16, whose kernels oneDNN compiles for every new shape
METADATA = "xmlib.json"
BATCH_TOKENS = {"cpu": 2048, "cuda": 1 << 16}  # at once, unless told: little for a cache, much for a GPU


class Retriever:
    """What all share. Not used by itself: a model is one of `MultiVector`, `SingleVector` over one of the encoders."""

    kind: str
    layout: Layout | None = None  # None: the model has an input of its own, and takes texts alone
    query_prefix: str = ""  # text in front of every query
    passage_prefix: str = ""

    @classmethod
    def open(cls, checkpoint: str | Path, **settings) -> "Retriever":
        """From a folder or hub id of any layout that `formats` knows. ValueError if another kind of model lies there.

        `settings` win over what the checkpoint says, see `formats.load`.
        """
        from xmlib import formats  # which knows these classes

        return formats.load(checkpoint, cls.kind, **settings)

    def save(self, folder: str | Path, lang: str | None = None) -> None:
        """Write the folder that `open` and other libraries read. These take no language along with a text: of an X-MOD
        they use the adapters of `lang`, or have to be told."""
        raise NotImplementedError

    @property
    def lengths(self) -> tuple[int, int]:
        """Tokens of a query and of a passage, at most."""
        return self.layout.query_length, self.layout.passage_length

    def tokenize_queries(self, texts: Sequence[str] | Pieces) -> Tokens:
        """Queries as the encoder sees them."""
        return tokenize_queries(self.tokenizer, _after(self.query_prefix, texts), self.layout)

    def tokenize_passages(self, texts: Sequence[str] | Pieces) -> Tokens:
        """Passages as the encoder sees them."""
        return tokenize_passages(self.tokenizer, _after(self.passage_prefix, texts), self.layout)

    def hidden(self, tokens: Tokens, langs: str | Sequence[str], wanted_T: np.ndarray | None = None) -> torch.Tensor:
        """Last hidden states of a packed stream, with gradients where they are enabled. Returns (T, hidden).

        With `wanted_T` (bool) those of some tokens alone.
        """
        raise NotImplementedError

    def vectors(self, tokens: Tokens, langs: str | Sequence[str]) -> torch.Tensor:
        """What is scored: a vector per token or per text, with gradients where they are enabled."""
        raise NotImplementedError

    @torch.no_grad()
    def _in_batches(
        self,
        compute: Callable[[Tokens], torch.Tensor],
        put: Callable[[np.ndarray, np.ndarray], None],
        tokens: Tokens,
        batch_tokens: int | None,
        progress: str | None,
    ) -> None:
        """`put(texts, compute(their tokens))` for batches of texts of similar length, until all were there.

        A GPU computes the next batch while the host puts the last one away.
        """
        waiting = deque()

        def take() -> None:
            batch, out, copied = waiting.popleft()
            if copied is not None:
                copied.synchronize()
            put(batch, out.numpy())

        with computing(self):
            for batch in batches(tokens.lengths_B, batch_tokens or BATCH_TOKENS[self.device.type], progress):
                out = compute(tokens.take(batch)).to("cpu", non_blocking=True)
                copied = None
                if self.device.type == "cuda":
                    copied = torch.cuda.Event()
                    copied.record()
                waiting.append((batch, out, copied))
                if copied is None or len(waiting) > 1:
                    take()
            while waiting:
                take()

    def prepare_for_finetuning(self) -> "Retriever":
        """Say which parameters are trained, and switch to training mode."""
        raise NotImplementedError


class Modular(Retriever, XmodPreTrainedModel):
    """An X-MOD, a tokenizer, a layout, and a folder to live in."""

    def __init__(
        self,
        config: XmodConfig,
        tokenizer=None,
        layout: Layout | None = None,
        record: dict | None = None,
        query_prefix: str = "",
        passage_prefix: str = "",
    ):
        super().__init__(config)
        self.roberta = XmodModel(config, add_pooling_layer=False)
        self.tokenizer = tokenizer
        self.layout = layout or Layout()
        self.record = record or {}  # how it was trained; empty if it was not
        self.query_prefix, self.passage_prefix = query_prefix, passage_prefix

    @property
    def languages(self) -> list[str]:
        """Adapters of the encoder, in the order of its configuration."""
        return list(self.config.languages)

    @classmethod
    def from_encoder(cls, folder: str | Path, languages: Sequence[str] | None = None, **arguments) -> "Modular":
        """A retriever to be fine-tuned, over a pre-trained X-MOD (its masked-LM head is left behind).

        `languages`: keep these adapters only. What is new in it depends on the random state alone, not on how many
        adapters there are.
        """
        from xmlib import formats

        folder = formats.locate(folder)
        config = formats.pruned(XmodConfig.from_pretrained(folder), languages)
        model = cls(formats.pruned(config, []), open_tokenizer(folder), **arguments)
        model.roberta = open_encoder(folder, config)
        model.config = model.roberta.config
        return model

    @classmethod
    def of(cls, parts, config: XmodConfig) -> "Modular":
        """The model that `formats` found the parts of, with the adapters that the configuration has."""
        sizes = {"query_prefix": parts.query_prefix, "passage_prefix": parts.passage_prefix} | cls._sizes_of(parts)
        with quietly():  # about heads that are left behind
            model, found = cls.from_pretrained(
                parts.encoder,
                config=config,
                tokenizer=parts.tokenizer,
                layout=parts.layout or replace(SINGLE_VECTOR, query_length=parts.length, passage_length=parts.length),
                record=parts.record,
                dtype=torch.float32,
                output_loading_info=True,
                **sizes,
            )
        _check_whole(parts.encoder, [name for name in found["missing_keys"] if name.startswith("roberta.")])
        model._copy_maps(parts)
        return model

    def save(self, folder: str | Path, lang: str | None = None) -> None:
        """Write the model folder; `xmlib.json` goes last, so that a folder that has it is whole."""
        from xmlib import formats

        folder = Path(folder)
        default = None if lang is None else adapter_of(lang, self.languages)
        self.save_pretrained(folder)
        formats.describe(self, folder, default)
        metadata = {"kind": self.kind, "layout": asdict(self.layout), "sizes": self.sizes, "record": self.record}
        beside = folder / f"{METADATA}.partial"
        beside.write_text(json.dumps(metadata, indent=2, ensure_ascii=False) + "\n")
        os.replace(beside, folder / METADATA)

    @classmethod
    def _sizes_of(cls, parts) -> dict:
        """Arguments that give a new model the shape of the parts."""
        raise NotImplementedError

    def _copy_maps(self, parts) -> None:
        """Take over the maps behind the encoder, which may lie elsewhere than its weights."""
        raise NotImplementedError

    @property
    def sizes(self) -> dict:
        """Arguments that give a new model the same shape and prefixes."""
        return {"query_prefix": self.query_prefix, "passage_prefix": self.passage_prefix}

    def prepare_for_finetuning(self) -> "Modular":
        """Freeze embeddings and adapters, as in the paper (§3.2, Figure 1b)."""
        self.requires_grad_(True)
        xmod.freeze_for_finetuning(self.roberta)
        return self.train()

    def in_int8(self) -> "Modular":
        """A twin for encoding on a CPU, whose encoder computes in bytes: see `xmod.in_int8`.

        Faster and near, not the same: over the demo's passages it takes 8 to 31 % less time by language than float32
        and finds 94 % of the same ten best passages, at the same MRR. So nothing uses it unasked.
        """
        twin = copy.copy(self)
        twin._modules = self._modules | {"roberta": xmod.in_int8(self.roberta)}
        return twin

    def hidden(self, tokens: Tokens, langs: str | Sequence[str], wanted_T: np.ndarray | None = None) -> torch.Tensor:
        masks = (None if mask is None else torch.from_numpy(mask) for mask in (tokens.attended_T, wanted_T))
        return xmod.encode(self.roberta, torch.from_numpy(tokens.ids_T), tokens.lengths_B.tolist(), langs, *masks)


class Plain(Retriever, torch.nn.Module):
    """Any BERT-like encoder of `transformers` and its tokenizer; one set of weights for all languages."""

    def __init__(self, encoder, tokenizer):
        super().__init__()
        self.encoder, self.tokenizer = encoder, tokenizer

    @property
    def config(self):
        return self.encoder.config

    @property
    def device(self) -> torch.device:
        return self.encoder.device

    @classmethod
    def from_encoder(cls, checkpoint: str | Path, **arguments) -> "Plain":
        """A retriever to be fine-tuned, over a pre-trained encoder."""
        from xmlib import formats

        folder = formats.locate(checkpoint)
        return cls(open_encoder(folder), open_tokenizer(folder), **arguments)

    def save(self, folder: str | Path, lang: str | None = None) -> None:
        """Write the folder that `open` and other libraries read."""
        from xmlib import formats

        folder = Path(folder)
        self.encoder.save_pretrained(folder, state_dict=self._state())
        formats.describe(self, folder, None)

    def _state(self) -> dict[str, torch.Tensor]:
        """What goes into the folder's weights."""
        return self.encoder.state_dict()

    def prepare_for_finetuning(self) -> "Plain":
        """Everything is trained."""
        return self.requires_grad_(True).train()

    def hidden(self, tokens: Tokens, langs: str | Sequence[str], wanted_T: np.ndarray | None = None) -> torch.Tensor:
        """As everywhere; `langs` changes nothing. Texts of similar length are padded to the longest of them."""
        states_TH = self._states(tokens)
        return states_TH if wanted_T is None else states_TH[torch.from_numpy(wanted_T).to(states_TH.device)]

    def _states(self, tokens: Tokens) -> torch.Tensor:
        size_B = np.ceil(np.log2(tokens.lengths_B))
        groups = [np.flatnonzero(size_B == size) for size in np.unique(size_B)]
        states = torch.cat([self._padded(tokens.take(texts)) for texts in groups])
        if len(groups) == 1:
            return states
        rows_T, _ = rows_of(tokens.offsets_B1, np.concatenate(groups))
        return states[torch.from_numpy(np.argsort(rows_T)).to(states.device)]

    def _padded(self, tokens: Tokens) -> torch.Tensor:
        real_BT = np.arange(tokens.lengths_B.max()) < tokens.lengths_B[:, None]
        ids_BT = np.full(real_BT.shape, self.tokenizer.pad_token_id)
        ids_BT[real_BT] = tokens.ids_T
        attended_BT = real_BT.copy()
        if tokens.attended_T is not None:
            attended_BT[real_BT] = tokens.attended_T
        real_BT, ids_BT, attended_BT = (torch.from_numpy(a).to(self.device) for a in (real_BT, ids_BT, attended_BT))
        return self.encoder(input_ids=ids_BT, attention_mask=attended_BT.long()).last_hidden_state[real_BT]


class MultiVector(Retriever):
    """Every token a unit vector of `dim` numbers, scored by MaxSim. Needs `linear`, hidden size → dim."""

    def vectors(self, tokens: Tokens, langs: str | Sequence[str], wanted_T: np.ndarray | None = None) -> torch.Tensor:
        """One unit vector per token, or per token wanted, Eq. 3. Returns (T, H), float32."""
        return F.normalize(self.linear(self.hidden(tokens, langs, wanted_T)).float(), dim=-1)

    def encode_passages(
        self,
        texts: Sequence[str] | Pieces,
        lang: str,
        batch_tokens: int | None = None,
        progress: str | None = None,
    ) -> TokenVectors:
        """Vectors of the passage tokens that take part in MaxSim, packed in the order of `texts`, float16."""
        tokens = self.tokenize_passages(texts)
        scored_B = np.add.reduceat(tokens.scored_T, tokens.offsets_B1[:-1]) if len(tokens) else np.zeros(0, np.int64)
        offsets_B1 = offsets_of(scored_B)
        vectors_TH = np.empty((offsets_B1[-1], self.linear.out_features), dtype=np.float16)

        def put(batch: np.ndarray, out_KH: np.ndarray) -> None:
            rows_K, _ = rows_of(offsets_B1, batch)
            vectors_TH[rows_K] = out_KH

        def compute(part: Tokens) -> torch.Tensor:
            return self.vectors(part, lang, part.scored_T).half()

        self._in_batches(compute, put, tokens, batch_tokens, progress)
        return TokenVectors(vectors_TH, offsets_B1, tokens.ids_T[tokens.scored_T].astype(np.int32))

    def encode_queries(
        self,
        texts: Sequence[str] | Pieces,
        lang: str,
        batch_tokens: int | None = None,
        progress: str | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Query token vectors, padded with zeros. Returns (A, S, H) float32 and the mask (A, S) of real tokens."""
        tokens = self.tokenize_queries(texts)
        longest = int(tokens.lengths_B.max(initial=0))
        mask_AS = np.arange(longest) < tokens.lengths_B[:, None]
        vectors_ASH = np.zeros((len(tokens), longest, self.linear.out_features), dtype=np.float32)

        def put(batch: np.ndarray, out_TH: np.ndarray) -> None:
            rows = np.zeros_like(vectors_ASH[batch])
            rows[mask_AS[batch]] = out_TH
            vectors_ASH[batch] = rows

        self._in_batches(lambda part: self.vectors(part, lang), put, tokens, batch_tokens, progress)
        return vectors_ASH, mask_AS


class ColbertXM(MultiVector, Modular):
    """ColBERT-XM: token vectors over X-MOD."""

    kind = "colbert-xm"

    def __init__(
        self,
        config: XmodConfig,
        tokenizer=None,
        layout=None,
        record=None,
        dim: int = 128,
        bias: bool = False,
        **prefixes,
    ):
        super().__init__(config, tokenizer, layout, record, **prefixes)
        self.linear = torch.nn.Linear(config.hidden_size, dim, bias=bias)
        self.post_init()

    @property
    def sizes(self) -> dict:
        return {"dim": self.linear.out_features, "bias": self.linear.bias is not None} | super().sizes

    @classmethod
    def _sizes_of(cls, parts) -> dict:
        return {"dim": parts.projection.out_features, "bias": parts.projection.bias is not None}

    def _copy_maps(self, parts) -> None:
        self.linear.load_state_dict(parts.projection.state_dict())


class Colbert(MultiVector, Plain):
    """ColBERT over any BERT-like encoder: mColBERT."""

    kind = "colbert"

    def __init__(
        self,
        encoder,
        tokenizer,
        dim: int = 128,
        bias: bool = False,
        query_prefix: str = "",
        passage_prefix: str = "",
        **layout,
    ):
        super().__init__(encoder, tokenizer)
        self.layout = Layout(**layout)
        self.linear = torch.nn.Linear(encoder.config.hidden_size, dim, bias=bias)
        self.query_prefix, self.passage_prefix = query_prefix, passage_prefix

    @classmethod
    def of(cls, parts, config=None) -> "Colbert":
        """The model that `formats` found the parts of."""
        size = {"dim": parts.projection.out_features, "bias": parts.projection.bias is not None}
        prefixes = {"query_prefix": parts.query_prefix, "passage_prefix": parts.passage_prefix}
        model = cls(open_encoder(parts.encoder), parts.tokenizer, **size, **prefixes, **asdict(parts.layout))
        model.linear.load_state_dict(parts.projection.state_dict())
        return model

    def _state(self) -> dict[str, torch.Tensor]:
        prefix = self.encoder.base_model_prefix
        encoder = {f"{prefix}.{name}": tensor for name, tensor in self.encoder.state_dict().items()}
        return encoder | {f"linear.{name}": tensor for name, tensor in self.linear.state_dict().items()}


class SingleVector(Retriever):
    """One vector per text, pooled from its tokens: mean, maximum or [CLS]. Compared by cosine or dot product.

    `head`: maps of the pooled vector, each (inputs, outputs, bias, activation of torch.nn); most models have none.
    """

    def _pool_by(self, pooling: str, similarity: str, head: Sequence[tuple[int, int, bool, str]]) -> None:
        """For the constructors: how a vector is made of a text's."""
        self.pooling = _one_of("pooling", pooling, POOLING)
        self.similarity = _one_of("similarity", similarity, SIMILARITIES)
        self.head = torch.nn.Sequential()
        for inputs, outputs, bias, activation in head:
            self.head.extend([torch.nn.Linear(inputs, outputs, bias), getattr(torch.nn, activation)()])

    @property
    def dim(self) -> int:
        """Numbers of a vector."""
        return self.head[-2].out_features if len(self.head) else self.config.hidden_size

    def head_layers(self) -> list[tuple[torch.nn.Linear, str]]:
        """The maps of the pooled vector, each with the name of the activation behind it."""
        maps = list(self.head)
        return [(map_, type(act).__name__) for map_, act in zip(maps[::2], maps[1::2], strict=True)]

    @staticmethod
    def _recipe(pooling: str, similarity: str, layers: Sequence[tuple[torch.nn.Linear, str]]) -> dict:
        """Arguments that make a vector in the same way."""
        head = [(map_.in_features, map_.out_features, map_.bias is not None, act) for map_, act in layers]
        return {"pooling": pooling, "similarity": similarity, "head": head}

    def _copy_maps(self, parts) -> None:
        for (own, _), (found, _) in zip(self.head_layers(), parts.head, strict=True):
            own.load_state_dict(found.state_dict())

    def vectors(self, tokens: Tokens, langs: str | Sequence[str]) -> torch.Tensor:
        """One vector per text, Eq. 9, of unit length where cosines are wanted. Returns (B, H), float32."""
        if self.pooling == "cls":
            first_T = np.zeros(len(tokens.ids_T), dtype=bool)
            first_T[tokens.offsets_B1[:-1]] = True
            pooled_BH = self.hidden(tokens, langs, first_T).float()
        else:
            hidden_TH = self.hidden(tokens, langs).float()
            lengths_B = torch.from_numpy(tokens.lengths_B).to(hidden_TH.device)
            pooled_BH = torch.segment_reduce(hidden_TH, self.pooling, lengths=lengths_B, axis=0)
        pooled_BH = self.head(pooled_BH).float()
        return F.normalize(pooled_BH, dim=-1) if self.similarity == "cosine" else pooled_BH

    def encode_passages(
        self,
        texts: Sequence[str] | Pieces,
        lang: str,
        batch_tokens: int | None = None,
        progress: str | None = None,
    ) -> np.ndarray:
        """One vector per passage. Returns (B, H), float32."""
        return self._encode(self.tokenize_passages(texts), lang, batch_tokens, progress)

    def encode_queries(
        self,
        texts: Sequence[str] | Pieces,
        lang: str,
        batch_tokens: int | None = None,
        progress: str | None = None,
    ) -> np.ndarray:
        """One vector per query. Returns (A, H), float32."""
        return self._encode(self.tokenize_queries(texts), lang, batch_tokens, progress)

    def _encode(self, tokens: Tokens, lang: str, batch_tokens: int | None, progress: str | None) -> np.ndarray:
        vectors_BH = np.empty((len(tokens), self.dim), dtype=np.float32)

        def put(batch: np.ndarray, out_NH: np.ndarray) -> None:
            vectors_BH[batch] = out_NH

        self._in_batches(lambda part: self.vectors(part, lang), put, tokens, batch_tokens, progress)
        return vectors_BH


class DprXM(SingleVector, Modular):
    """DPR-XM: a unit vector per text over X-MOD; cosine."""

    kind = "dpr-xm"

    def __init__(
        self,
        config: XmodConfig,
        tokenizer=None,
        layout=None,
        record=None,
        pooling: str = "mean",
        similarity: str = "cosine",
        head: Sequence[tuple[int, int, bool, str]] = (),
        **prefixes,
    ):
        super().__init__(config, tokenizer, layout or SINGLE_VECTOR, record, **prefixes)
        self._pool_by(pooling, similarity, head)
        self.post_init()

    @property
    def sizes(self) -> dict:
        return self._recipe(self.pooling, self.similarity, self.head_layers()) | super().sizes

    @classmethod
    def _sizes_of(cls, parts) -> dict:
        return cls._recipe(parts.pooling, parts.similarity, parts.head)


class BiEncoder(SingleVector, Plain):
    """A vector per text over any encoder, with a checkpoint's own pooling, prefixes and similarity: DPR-X, mE5."""

    kind = "bi-encoder"

    def __init__(
        self,
        encoder,
        tokenizer,
        pooling: str = "mean",
        similarity: str = "cosine",
        query_prefix: str = "",
        passage_prefix: str = "",
        length: int | tuple[int, int] = 512,
        head: Sequence[tuple[int, int, bool, str]] = (),
    ):
        super().__init__(encoder, tokenizer)
        self._pool_by(pooling, similarity, head)
        self.query_prefix, self.passage_prefix = query_prefix, passage_prefix
        self.length = length  # of a text in tokens; or of a query, and of a passage

    @classmethod
    def of(cls, parts, config=None) -> "BiEncoder":
        """The model that `formats` found the parts of."""
        layout, length = parts.layout, parts.length
        if layout is not None:
            length = (layout.query_length, layout.passage_length)
        prefixes = {"query_prefix": parts.query_prefix, "passage_prefix": parts.passage_prefix}
        recipe = cls._recipe(parts.pooling, parts.similarity, parts.head)
        model = cls(open_encoder(parts.encoder), parts.tokenizer, length=length, **prefixes, **recipe)
        model._copy_maps(parts)
        return model

    @property
    def lengths(self) -> tuple[int, int]:
        return (self.length, self.length) if isinstance(self.length, int) else tuple(self.length)

    def tokenize_queries(self, texts: Sequence[str]) -> Tokens:
        return self._tokenize(self.query_prefix, texts, self.lengths[0])

    def tokenize_passages(self, texts: Sequence[str]) -> Tokens:
        return self._tokenize(self.passage_prefix, texts, self.lengths[1])

    def _tokenize(self, prefix: str, texts: Sequence[str], length: int) -> Tokens:
        texts = _after(prefix, texts)
        return stream(self.tokenizer(texts, truncation=True, max_length=length)["input_ids"] if texts else [])


def load(checkpoint: str | Path, **settings) -> Retriever:
    """Whatever retriever lies in a folder or hub repository, in evaluation mode: see `formats.load`."""
    from xmlib import formats

    return formats.load(checkpoint, **settings)


def open_encoder(checkpoint, config=None):
    """The bare encoder of a folder, without heads, in evaluation mode; one that is open already is handed back.

    ValueError where weights of it are missing. Its own code, if it brings any, is not run.
    """
    if isinstance(checkpoint, torch.nn.Module):
        return checkpoint
    config = config or AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
    architecture = MODEL_MAPPING[type(config)]
    poolerless = "add_pooling_layer" in inspect.signature(architecture.__init__).parameters
    with quietly():  # about heads that are left behind
        encoder, found = architecture.from_pretrained(
            checkpoint,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            **({"add_pooling_layer": False} if poolerless else {}),
        )
    _check_whole(checkpoint, found["missing_keys"])
    return encoder.eval()


def open_tokenizer(checkpoint: str | Path):
    return AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)


def batches(lengths_B: np.ndarray, batch_tokens: int, progress: str | None = None) -> Iterator[np.ndarray]:
    """Positions of texts in batches, sorted by length so that little is padded.

    A batch, padded to its longest text, has at most `batch_tokens` tokens, or is a single text.
    """
    order = np.argsort(lengths_B, kind="stable")
    with tqdm(total=len(order), desc=progress, unit="text", disable=progress is None, leave=False) as bar:
        start = 0
        while start < len(order):
            padded = lengths_B[order[start:]] * np.arange(1, len(order) - start + 1)
            stop = start + max(1, int(np.searchsorted(padded, batch_tokens, side="right")))
            yield order[start:stop]
            bar.update(stop - start)
            start = stop


def compute_dtype(model: torch.nn.Module) -> torch.dtype:
    """Of a model's matrix products: bfloat16 where its device has units for it, else float32.

    Units have GPUs from Ampere on, and CPUs with AMX or AVX512-BF16, where models narrower than WIDE stay in float32.
    The environment variable XMLIB_PRECISION decides instead where it is set, to "float32" or "bfloat16": for numbers
    that another kind of machine should repeat. ValueError if it says anything else.
    """
    asked = os.environ.get("XMLIB_PRECISION")
    if asked:
        return PRECISIONS[_one_of("XMLIB_PRECISION", asked, tuple(PRECISIONS))]
    if next(model.parameters()).is_cuda:
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        fast = fast and getattr(getattr(model, "config", None), "hidden_size", WIDE) >= WIDE
    return torch.bfloat16 if fast else torch.float32


def computing(model: torch.nn.Module):
    """The context of the model's forward passes: matrix products in `compute_dtype`."""
    dtype = compute_dtype(model)
    return torch.autocast(next(model.parameters()).device.type, dtype, enabled=dtype != torch.float32)


@contextmanager
def quietly() -> Iterator[None]:
    """Without transformers' report of the weights that a checkpoint has too many or too few."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _after(prefix: str, texts: Sequence[str]) -> Sequence[str]:
    if prefix and isinstance(texts, Pieces):
        raise ValueError(f"texts that are cut into pieces already cannot get the prefix {prefix!r}: give the texts")
    return [prefix + text for text in texts] if prefix else texts


def _check_whole(checkpoint, missing: Sequence[str]) -> None:
    """ValueError where an encoder would be left with random weights."""
    if missing:
        raise ValueError(f"{checkpoint} is not whole: its weights lack {', '.join(sorted(missing)[:3])}")


def _one_of(name: str, value: str, choices: Sequence[str]) -> str:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; have: {', '.join(choices)}")
    return value
