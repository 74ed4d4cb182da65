"""The retrievers: one vector per token, scored by MaxSim, or one per text; over X-MOD or over any other encoder.

|                    | over X-MOD, routed per language | over any BERT-like encoder |
| ------------------ | ------------------------------- | -------------------------- |
| one per token      | `ColbertXM` (Eq. 3, 4)          | `Colbert`                  |
| one per text       | `DprXM` (Eq. 9)                 | `BiEncoder`                |

A row of this table is `MultiVector` or `SingleVector`: how vectors come out of hidden states. A column is `Modular` or
`Plain`: how hidden states come out of tokens, and what the folder looks like. Nothing runs code from a checkpoint.

The folder of a modular model holds what `transformers` saves (`config.json`, `model.safetensors`, tokenizer) and
`xmlib.json`: kind, layout of the input, sizes, and the record of the training. The weights are named as in the released
checkpoints: `roberta.*` and `linear.weight`. A plain model opens any folder or hub id of `transformers`; its recipe
(pooling, prefixes, layout, …) is not in there and comes as arguments.

Axes:  A queries · B passages · S query tokens · T tokens · H embedding
"""

import copy
import inspect
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import MODEL_MAPPING, AutoConfig, AutoTokenizer, XmodConfig, XmodForMaskedLM, XmodModel
from transformers.models.xmod.modeling_xmod import XmodPreTrainedModel

from xmlib import xmod
from xmlib.index.vectors import TokenVectors
from xmlib.tokens import SINGLE_VECTOR, Layout, Pieces, Tokens, stream, tokenize_passages, tokenize_queries

POOLING = ("mean", "max", "cls")
SIMILARITIES = ("cosine", "dot")
METADATA = "xmlib.json"
BATCH_TOKENS = {"cpu": 2048, "cuda": 1 << 16}  # at once, unless told: little for a cache, much for a GPU


class Retriever:
    """What all share. Not used by itself: a model is one of `MultiVector`, `SingleVector` over one of the encoders."""

    kind: str
    layout: Layout | None = None
    query_prefix: str = ""  # text in front of every query
    passage_prefix: str = ""

    def tokenize_queries(self, texts: Sequence[str] | Pieces) -> Tokens:
        """Queries as the encoder sees them."""
        return tokenize_queries(self.tokenizer, texts, self.layout)

    def tokenize_passages(self, texts: Sequence[str] | Pieces) -> Tokens:
        """Passages as the encoder sees them."""
        return tokenize_passages(self.tokenizer, texts, self.layout)

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

        with self._compute():
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

    def _compute(self):
        """The context in which texts are encoded: bfloat16 matrix products where the device is fast at them."""
        return computing(self.device)


class Modular(Retriever, XmodPreTrainedModel):
    """An X-MOD, a tokenizer, a layout, and a folder to live in."""

    def __init__(self, config: XmodConfig, tokenizer=None, layout: Layout | None = None, record: dict | None = None):
        super().__init__(config)
        self.roberta = XmodModel(config, add_pooling_layer=False)
        self.tokenizer = tokenizer
        self.layout = layout or Layout()
        self.record = record or {}  # how it was trained; empty if it was not

    @property
    def languages(self) -> list[str]:
        """Adapters of the encoder, in the order of its configuration."""
        return list(self.config.languages)

    @classmethod
    def from_encoder(cls, folder: str | Path, **arguments) -> "Modular":
        """A retriever to be fine-tuned, over a pre-trained X-MOD (its masked-LM head is left behind)."""
        model = cls(XmodConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder), **arguments)
        model.roberta = XmodForMaskedLM.from_pretrained(folder).roberta
        return model

    @classmethod
    def open(cls, folder: str | Path) -> "Modular":
        """The model saved in `folder`, in evaluation mode. Raises ValueError if another kind of model lies there."""
        path = Path(folder) / METADATA
        if not path.is_file():
            raise FileNotFoundError(f"{folder} is no model folder of xmlib: it has no {METADATA}")
        metadata = json.loads(path.read_text())
        if metadata["kind"] != cls.kind:
            raise ValueError(f"{folder} holds a {metadata['kind']} model, not {cls.kind}")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        arguments = dict(tokenizer=tokenizer, layout=Layout(**metadata["layout"]), record=metadata["record"])
        return cls.from_pretrained(folder, **arguments, **metadata["sizes"]).eval()

    def save(self, folder: str | Path) -> None:
        """Write the model folder; `xmlib.json` goes last, so that a folder that has it is whole."""
        folder = Path(folder)
        self.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        metadata = {"kind": self.kind, "layout": asdict(self.layout), "sizes": self.sizes, "record": self.record}
        beside = folder / f"{METADATA}.partial"
        beside.write_text(json.dumps(metadata, indent=2, ensure_ascii=False) + "\n")
        os.replace(beside, folder / METADATA)

    @property
    def sizes(self) -> dict:
        """Arguments that give a new model the same shape."""
        raise NotImplementedError

    def prepare_for_finetuning(self) -> "Modular":
        """Freeze embeddings and adapters, as in the paper (§3.2, Figure 1b)."""
        self.requires_grad_(True)
        xmod.freeze_for_finetuning(self.roberta)
        return self.train()

    def lowered(self, precision: str) -> "Modular":
        """A twin for encoding on a CPU, whose encoder computes in "bfloat16" or "int8": see `xmod.lowered`.

        Faster and near, not the same: over the demo's passages int8 takes 8 to 31 % less time by language and finds
        94 % of the same ten best passages, at the same MRR. So nothing uses it unasked.
        """
        twin = copy.copy(self)
        twin._modules = self._modules | {"roberta": xmod.lowered(self.roberta, precision)}
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

    def save(self, folder: str | Path) -> None:
        """Write the folder that `open` and `transformers` read. The recipe is not in it."""
        self.encoder.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

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
        rows = [np.arange(*tokens.offsets_B1[text : text + 2]) for texts in groups for text in texts]
        return states[torch.from_numpy(np.argsort(np.concatenate(rows))).to(states.device)]

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
        offsets_B1 = np.concatenate([[0], scored_B.cumsum()]).astype(np.int64)
        vectors_TH = np.empty((offsets_B1[-1], self.linear.out_features), dtype=np.float16)

        def put(batch: np.ndarray, out_KH: np.ndarray) -> None:
            stops = scored_B[batch].cumsum()
            rows_K = np.arange(len(out_KH)) + np.repeat(offsets_B1[batch] - (stops - scored_B[batch]), scored_B[batch])
            vectors_TH[rows_K] = out_KH

        def compute(part: Tokens) -> torch.Tensor:
            return self.vectors(part, lang, part.scored_T).half()

        self._in_batches(compute, put, tokens, batch_tokens, progress)
        return TokenVectors(vectors_TH, offsets_B1)

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

    def __init__(self, config: XmodConfig, tokenizer=None, layout=None, record=None, dim: int = 128):
        super().__init__(config, tokenizer, layout, record)
        self.linear = torch.nn.Linear(config.hidden_size, dim, bias=False)
        self.post_init()

    @property
    def sizes(self) -> dict:
        return {"dim": self.linear.out_features}


class Colbert(MultiVector, Plain):
    """ColBERT over any BERT-like encoder: mColBERT. Folders as colbert-ai writes: the encoder and `linear.weight`."""

    kind = "colbert"

    def __init__(self, encoder, tokenizer, dim: int = 128, **layout):
        super().__init__(encoder, tokenizer)
        self.layout = Layout(**layout)
        self.linear = torch.nn.Linear(encoder.config.hidden_size, dim, bias=False)

    @classmethod
    def open(cls, checkpoint: str | Path, **layout) -> "Colbert":
        """From a folder or hub id that has the projection; ValueError where it is missing."""
        weight = _projection(checkpoint)
        model = cls(open_encoder(checkpoint), open_tokenizer(checkpoint), len(weight), **layout)
        model.linear.weight.data.copy_(weight)
        return model.eval()

    @classmethod
    def from_encoder(cls, checkpoint: str | Path, **arguments) -> "Colbert":
        """A retriever to be fine-tuned, over a pre-trained encoder."""
        return cls(open_encoder(checkpoint), open_tokenizer(checkpoint), **arguments)

    def save(self, folder: str | Path) -> None:
        prefix = self.encoder.base_model_prefix
        encoder = {f"{prefix}.{name}": tensor for name, tensor in self.encoder.state_dict().items()}
        self.encoder.save_pretrained(folder, state_dict=encoder | {"linear.weight": self.linear.weight.data})
        self.tokenizer.save_pretrained(folder)


class SingleVector(Retriever):
    """One vector per text, pooled from its tokens: mean, maximum or [CLS]. Compared by cosine or dot product."""

    pooling: str = "mean"
    similarity: str = "cosine"

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
        vectors_BH = np.empty((len(tokens), self.config.hidden_size), dtype=np.float32)

        def put(batch: np.ndarray, out_NH: np.ndarray) -> None:
            vectors_BH[batch] = out_NH

        self._in_batches(lambda part: self.vectors(part, lang), put, tokens, batch_tokens, progress)
        return vectors_BH


class DprXM(SingleVector, Modular):
    """DPR-XM: a unit vector per text over X-MOD; cosine."""

    kind = "dpr-xm"

    def __init__(self, config: XmodConfig, tokenizer=None, layout=None, record=None, pooling: str = "mean"):
        super().__init__(config, tokenizer, layout or SINGLE_VECTOR, record)
        self.pooling = _one_of("pooling", pooling, POOLING)
        self.post_init()

    @property
    def sizes(self) -> dict:
        return {"pooling": self.pooling}


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
        length: int = 512,
    ):
        super().__init__(encoder, tokenizer)
        self.pooling = _one_of("pooling", pooling, POOLING)
        self.similarity = _one_of("similarity", similarity, SIMILARITIES)
        self.query_prefix, self.passage_prefix, self.length = query_prefix, passage_prefix, length

    @classmethod
    def open(cls, checkpoint: str | Path, **recipe) -> "BiEncoder":
        """From a folder or hub id."""
        return cls(open_encoder(checkpoint), open_tokenizer(checkpoint), **recipe).eval()

    from_encoder = open  # nothing is added to the encoder

    def tokenize_queries(self, texts: Sequence[str]) -> Tokens:
        return self._tokenize(self.query_prefix, texts)

    def tokenize_passages(self, texts: Sequence[str]) -> Tokens:
        return self._tokenize(self.passage_prefix, texts)

    def _tokenize(self, prefix: str, texts: Sequence[str]) -> Tokens:
        texts = [prefix + text for text in texts]
        return stream(self.tokenizer(texts, truncation=True, max_length=self.length)["input_ids"] if texts else [])


def open_encoder(checkpoint: str | Path):
    """The bare encoder of a folder or hub id, without heads, in evaluation mode. Its own code, if any, is not run."""
    config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
    architecture = MODEL_MAPPING[type(config)]
    poolerless = "add_pooling_layer" in inspect.signature(architecture.__init__).parameters
    with quietly():  # about heads that are left behind
        return architecture.from_pretrained(checkpoint, **({"add_pooling_layer": False} if poolerless else {})).eval()


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


def compute_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """bfloat16 where `device` has matrix units for it (CUDA from Ampere on; AMX or AVX512-BF16), else float32."""
    if torch.device(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def computing(device: torch.device):
    """The context of a forward pass on `device`: matrix products in `compute_dtype`."""
    dtype = compute_dtype(device)
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


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


def _projection(checkpoint: str | Path) -> torch.Tensor:
    """`linear.weight` (dim, hidden) of a ColBERT checkpoint, which transformers passes over."""
    from safetensors import safe_open
    from transformers.utils import cached_file

    quiet = dict(_raise_exceptions_for_missing_entries=False)
    name = "linear.weight"
    if path := cached_file(checkpoint, "model.safetensors", **quiet):
        with safe_open(path, "pt") as file:
            if name in file.keys():
                return file.get_tensor(name)
    elif path := cached_file(checkpoint, "pytorch_model.bin", **quiet):
        weights = torch.load(path, weights_only=True, map_location="cpu")
        if name in weights:
            return weights[name]
    raise ValueError(f"{checkpoint} is no ColBERT checkpoint: no {name} in model.safetensors or pytorch_model.bin")


def _one_of(name: str, value: str, choices: Sequence[str]) -> str:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; have: {', '.join(choices)}")
    return value
