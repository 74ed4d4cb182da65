"""The two retrievers on X-MOD: ColBERT-XM, one vector per token (Eq. 3, 4), and DPR-XM, one per text (Eq. 9).

A model folder holds what `transformers` saves (`config.json`, `model.safetensors`, tokenizer) and `xmlib.json`: kind,
layout of the input, sizes, and the record of the training. The weights are named as in the released checkpoints:
`roberta.*` and `linear.weight`.

Axes:  A queries · B passages · S query tokens · T tokens · H embedding
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import AutoTokenizer, XmodConfig, XmodForMaskedLM, XmodModel
from transformers.models.xmod.modeling_xmod import XmodPreTrainedModel

from xmlib import xmod
from xmlib.index.vectors import TokenVectors
from xmlib.tokens import SINGLE_VECTOR, Layout, Tokens, tokenize_passages, tokenize_queries

POOLING = ("mean", "max", "cls")
METADATA = "xmlib.json"


class Retriever(XmodPreTrainedModel):
    """What both models share: an encoder, a tokenizer, a layout, and a folder to live in. Not used by itself."""

    kind: str

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
    def from_encoder(cls, folder: str | Path, **arguments) -> "Retriever":
        """A retriever to be fine-tuned, over a pre-trained X-MOD (its masked-LM head is left behind)."""
        model = cls(XmodConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder), **arguments)
        model.roberta = XmodForMaskedLM.from_pretrained(folder).roberta
        return model

    @classmethod
    def open(cls, folder: str | Path) -> "Retriever":
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

    def prepare_for_finetuning(self) -> "Retriever":
        """Freeze embeddings and adapters, as in the paper (§3.2, Figure 1b)."""
        self.requires_grad_(True)
        xmod.freeze_for_finetuning(self.roberta)
        return self.train()

    def hidden(self, tokens: Tokens, langs: str | Sequence[str]) -> torch.Tensor:
        """Last hidden states of a packed stream. Returns (T, hidden), with gradients where they are enabled."""
        attended_T = None if tokens.attended_T is None else torch.from_numpy(tokens.attended_T)
        return xmod.encode(self.roberta, torch.from_numpy(tokens.ids_T), tokens.lengths_B.tolist(), langs, attended_T)

    def vectors(self, tokens: Tokens, langs: str | Sequence[str]) -> torch.Tensor:
        """What is scored: a vector per token (ColBERT-XM) or per text (DPR-XM), with gradients where enabled."""
        raise NotImplementedError

    def _batches(self, tokens: Tokens, batch_tokens: int, progress: str | None) -> Iterator[np.ndarray]:
        """Texts in batches of at most `batch_tokens` tokens, each sorted by length so that attention pads little."""
        order = np.argsort(tokens.lengths_B, kind="stable")
        batch_of = tokens.lengths_B[order].cumsum() // batch_tokens
        batches = np.split(order, np.flatnonzero(np.diff(batch_of)) + 1)
        with tqdm(total=len(order), desc=progress, unit="text", disable=progress is None, leave=False) as bar:
            for batch in batches:
                yield batch
                bar.update(len(batch))

    def _compute(self):
        """The context in which texts are encoded: bfloat16 matrix products where the device is fast at them."""
        dtype = compute_dtype(self.device)
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)


class ColbertXM(Retriever):
    """ColBERT-XM: every token a unit vector of `dim` numbers, scored by MaxSim."""

    kind = "colbert-xm"

    def __init__(self, config: XmodConfig, tokenizer=None, layout=None, record=None, dim: int = 128):
        super().__init__(config, tokenizer, layout, record)
        self.linear = torch.nn.Linear(config.hidden_size, dim, bias=False)
        self.post_init()

    @property
    def sizes(self) -> dict:
        return {"dim": self.linear.out_features}

    def vectors(self, tokens: Tokens, langs: str | Sequence[str]) -> torch.Tensor:
        """One unit vector per token, Eq. 3. Returns (T, H), float32."""
        return F.normalize(self.linear(self.hidden(tokens, langs)).float(), dim=-1)

    @torch.no_grad()
    def encode_passages(
        self, texts: Sequence[str], lang: str, batch_tokens: int = 4096, progress: str | None = None
    ) -> TokenVectors:
        """Vectors of the passage tokens that take part in MaxSim, packed in the order of `texts`, float16."""
        tokens = tokenize_passages(self.tokenizer, texts, self.layout)
        scored_B = np.add.reduceat(tokens.scored_T, tokens.offsets_B1[:-1]) if len(tokens) else np.zeros(0, np.int64)
        offsets_B1 = np.concatenate([[0], scored_B.cumsum()]).astype(np.int64)
        vectors_TH = np.empty((offsets_B1[-1], self.linear.out_features), dtype=np.float16)
        with self._compute():
            for batch in self._batches(tokens, batch_tokens, progress):
                part = tokens.take(batch)
                out = self.vectors(part, lang)[torch.from_numpy(part.scored_T)].half().cpu().numpy()
                stops = scored_B[batch].cumsum()
                rows = np.arange(len(out)) + np.repeat(offsets_B1[batch] - (stops - scored_B[batch]), scored_B[batch])
                vectors_TH[rows] = out
        return TokenVectors(vectors_TH, offsets_B1)

    @torch.no_grad()
    def encode_queries(
        self, texts: Sequence[str], lang: str, batch_tokens: int = 4096, progress: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Query token vectors, padded with zeros. Returns (A, S, H) float32 and the mask (A, S) of real tokens."""
        tokens = tokenize_queries(self.tokenizer, texts, self.layout)
        longest = int(tokens.lengths_B.max(initial=0))
        mask_AS = np.arange(longest) < tokens.lengths_B[:, None]
        vectors_ASH = np.zeros((len(tokens), longest, self.linear.out_features), dtype=np.float32)
        with self._compute():
            for batch in self._batches(tokens, batch_tokens, progress):
                rows = np.zeros_like(vectors_ASH[batch])
                rows[mask_AS[batch]] = self.vectors(tokens.take(batch), lang).cpu().numpy()
                vectors_ASH[batch] = rows
        return vectors_ASH, mask_AS


class DprXM(Retriever):
    """DPR-XM: every text one unit vector, pooled from its tokens by their mean, their maximum or [CLS]; cosine."""

    kind = "dpr-xm"

    def __init__(self, config: XmodConfig, tokenizer=None, layout=None, record=None, pooling: str = "mean"):
        if pooling not in POOLING:
            raise ValueError(f"pooling is {pooling!r}; have: {', '.join(POOLING)}")
        super().__init__(config, tokenizer, layout or SINGLE_VECTOR, record)
        self.pooling = pooling
        self.post_init()

    @property
    def sizes(self) -> dict:
        return {"pooling": self.pooling}

    def vectors(self, tokens: Tokens, langs: str | Sequence[str]) -> torch.Tensor:
        """One unit vector per text, Eq. 9. Returns (B, H), float32."""
        hidden_TH = self.hidden(tokens, langs).float()
        lengths_B = torch.from_numpy(tokens.lengths_B).to(hidden_TH.device)
        if self.pooling == "cls":
            pooled_BH = hidden_TH[lengths_B.cumsum(0) - lengths_B]
        else:
            pooled_BH = torch.segment_reduce(hidden_TH, self.pooling, lengths=lengths_B, axis=0)
        return F.normalize(pooled_BH, dim=-1)

    def encode_passages(
        self, texts: Sequence[str], lang: str, batch_tokens: int = 4096, progress: str | None = None
    ) -> np.ndarray:
        """One vector per passage. Returns (B, H), float32."""
        return self._encode(tokenize_passages(self.tokenizer, texts, self.layout), lang, batch_tokens, progress)

    def encode_queries(
        self, texts: Sequence[str], lang: str, batch_tokens: int = 4096, progress: str | None = None
    ) -> np.ndarray:
        """One vector per query. Returns (A, H), float32."""
        return self._encode(tokenize_queries(self.tokenizer, texts, self.layout), lang, batch_tokens, progress)

    @torch.no_grad()
    def _encode(self, tokens: Tokens, lang: str, batch_tokens: int, progress: str | None) -> np.ndarray:
        vectors_BH = np.empty((len(tokens), self.config.hidden_size), dtype=np.float32)
        with self._compute():
            for batch in self._batches(tokens, batch_tokens, progress):
                vectors_BH[batch] = self.vectors(tokens.take(batch), lang).cpu().numpy()
        return vectors_BH


def compute_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """bfloat16 where `device` has matrix units for it (CUDA from Ampere on; AMX or AVX512-BF16), else float32."""
    if torch.device(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32
