"""Cross-encoders: a query and a passage read together give one score; they re-rank what another system found.

| class        | recipe of           | reads                                | score                               |
| ------------ | ------------------- | ------------------------------------ | ----------------------------------- |
| `MonoT5`     | mT5                 | Query: q Document: d Relevant: </s>  | log P(▁yes) against ▁no, first step |
| `Classifier` | mMiniLM             | <s> q </s></s> d </s>                | the logit of a sequence classifier  |
| `MonoXM`     | mono-XM             | the same, routed through X-MOD       | the same                            |

Training and ranking share `logits`: the log-odds of "relevant". A model computes in bfloat16 where the device is fast
at it, its last layer always in float32: in bfloat16 many of a query's passages would tie.

Axes:  N pairs · T tokens
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, XmodForSequenceClassification

from xmlib import xmod
from xmlib.data.collection import Collection
from xmlib.data.triples import Triples
from xmlib.models import batches, computing, open_tokenizer, quietly
from xmlib.tokens import stream
from xmlib.training import Loop, Recipe, batch_rows

Pair = dict[str, list[int]]  # what a tokenizer returns for one pair: input_ids, token_type_ids where there are any, …


class CrossEncoder:
    """What the kinds share. Not used by itself."""

    kind: str
    architecture: type  # of transformers

    def __init__(self, model, tokenizer, length: int = 512):
        self.model, self.tokenizer, self.length = model, tokenizer, length
        _compute_in_float32(self._last_layer())

    @classmethod
    def open(cls, checkpoint: str | Path, length: int = 512) -> "CrossEncoder":
        """From a folder or hub id, in evaluation mode. ValueError where weights are missing: it cannot rank yet."""
        return cls._load(checkpoint, length, strict=True)

    @classmethod
    def from_encoder(cls, checkpoint: str | Path, length: int = 512, **config) -> "CrossEncoder":
        """A cross-encoder to be fine-tuned; a head that the checkpoint does not have starts at random."""
        return cls._load(checkpoint, length, strict=False, **config)

    @classmethod
    def _load(cls, checkpoint, length: int, strict: bool, **config) -> "CrossEncoder":
        from xmlib import formats

        folder = formats.locate(checkpoint)
        with quietly():
            model, found = cls.architecture.from_pretrained(
                folder, trust_remote_code=False, dtype=torch.float32, output_loading_info=True, **config
            )
        if strict and found["missing_keys"]:
            missing = ", ".join(sorted(found["missing_keys"])[:3])
            raise ValueError(f"{checkpoint} is no checkpoint of a {cls.kind} cross-encoder: it lacks {missing}")
        return cls(model.eval(), open_tokenizer(folder), length)

    def to(self, device) -> "CrossEncoder":
        self.model.to(device)
        return self

    def prepare_for_finetuning(self) -> None:
        """Everything is trained, unless a kind says otherwise."""
        self.model.requires_grad_(True).train()

    def save(self, folder: str | Path) -> None:
        """Write the folder that `open` and `transformers` read."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def tokenize(self, queries: Sequence[str], passages: Sequence[str]) -> list[Pair]:
        """What the model reads of every pair: at most `length` token ids, special ones included."""
        found = self.tokenizer(list(queries), list(passages), truncation=True, max_length=self.length)
        return [dict(zip(found, pair, strict=True)) for pair in zip(*found.values(), strict=True)]

    def logits(self, pairs: list[Pair], lang: str) -> torch.Tensor:
        """Log-odds that the passage answers the query. Returns (N,), float32, with gradients where they are enabled."""
        raise NotImplementedError

    @torch.inference_mode()
    def scores(
        self,
        queries: Sequence[str],
        passages: Sequence[str],
        lang: str,
        batch_tokens: int = 4096,
        progress: str | None = None,
    ) -> np.ndarray:
        """The score of every pair (queries[i], passages[i]). Returns (N,), float32. Read in order of length."""
        pairs = self.tokenize(queries, passages) if len(queries) else []
        lengths_N = np.array([len(pair["input_ids"]) for pair in pairs], dtype=np.int64)
        scores_N = np.empty(len(pairs), dtype=np.float32)
        with computing(self.model):
            for batch in batches(lengths_N, batch_tokens, progress):
                scores_N[batch] = self.score_of(self.logits([pairs[i] for i in batch], lang)).cpu().numpy()
        return scores_N

    @staticmethod
    def score_of(logits_N: torch.Tensor) -> torch.Tensor:
        return logits_N

    def _last_layer(self) -> torch.nn.Linear:
        raise NotImplementedError

    def _padded(self, pairs: list[Pair]) -> dict[str, torch.Tensor]:
        return self.tokenizer.pad(pairs, return_tensors="pt").to(self.model.device)


class Classifier(CrossEncoder):
    """Any sequence classifier of `transformers`, with one label, or with two of which the second is "relevant"."""

    kind = "classifier"
    architecture = AutoModelForSequenceClassification

    def logits(self, pairs: list[Pair], lang: str) -> torch.Tensor:
        """As everywhere; `lang` changes nothing."""
        return self._odds(self.model(**self._padded(pairs)).logits)

    def _last_layer(self) -> torch.nn.Linear:
        linear = [module for module in self.model.modules() if isinstance(module, torch.nn.Linear)]
        return next(module for module in reversed(linear) if module.out_features == self.model.config.num_labels)

    @staticmethod
    def _odds(logits_NL: torch.Tensor) -> torch.Tensor:
        labels = logits_NL.shape[1]
        if labels > 2:
            raise ValueError(f"a classifier of {labels} labels; to rank it needs one, or two")
        return logits_NL[:, 0] if labels == 1 else logits_NL[:, 1] - logits_NL[:, 0]


class MonoXM(Classifier):
    """mono-XM: a classifier on X-MOD. Pairs are packed into one stream and routed through the adapters of `lang`."""

    kind = "mono-xm"
    architecture = XmodForSequenceClassification

    def logits(self, pairs: list[Pair], lang: str) -> torch.Tensor:
        tokens = stream([pair["input_ids"] for pair in pairs])
        first_T = torch.zeros(len(tokens.ids_T), dtype=torch.bool)
        first_T[torch.from_numpy(tokens.offsets_B1[:-1])] = True
        ids_T, lengths = torch.from_numpy(tokens.ids_T), tokens.lengths_B.tolist()
        first_NH = xmod.encode(self.model.roberta, ids_T, lengths, lang, wanted_T=first_T)
        return self._odds(self.model.classifier(first_NH[:, None]))  # the head looks at <s> alone

    def prepare_for_finetuning(self) -> None:
        """Embeddings and adapters are frozen, as in ColBERT-XM (§3.2)."""
        super().prepare_for_finetuning()
        xmod.freeze_for_finetuning(self.model.roberta)


class MonoT5(CrossEncoder):
    """monoT5: an encoder-decoder reads a prompt; its first decoded token says yes or no."""

    kind = "mono-t5"
    architecture = AutoModelForSeq2SeqLM
    PROMPT = "Query: {query} Document: {passage} Relevant:"
    ANSWERS = ("▁no", "▁yes")

    def __init__(self, model, tokenizer, length: int = 512):
        super().__init__(model, tokenizer, length)
        vocabulary = tokenizer.get_vocab()
        if missing := [answer for answer in self.ANSWERS if answer not in vocabulary]:
            raise ValueError(f"the vocabulary lacks {' and '.join(missing)}, with which monoT5 answers")
        self._answers = [vocabulary[answer] for answer in self.ANSWERS]
        self._tail = tokenizer("Relevant:", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]

    def tokenize(self, queries: Sequence[str], passages: Sequence[str]) -> list[Pair]:
        """As everywhere. What is too long loses the end of its passage, never the question "Relevant:"."""
        prompts = [self.PROMPT.format(query=q, passage=p) for q, p in zip(queries, passages, strict=True)]
        rows = [[*row, self._tail[-1]] for row in self.tokenizer(prompts, add_special_tokens=False)["input_ids"]]
        room = self.length - len(self._tail)
        return [{"input_ids": row if len(row) <= self.length else row[:room] + self._tail} for row in rows]

    def logits(self, pairs: list[Pair], lang: str) -> torch.Tensor:
        """As everywhere; `lang` changes nothing."""
        start_N1 = torch.full((len(pairs), 1), self.model.config.decoder_start_token_id, device=self.model.device)
        logits_NV = self.model(**self._padded(pairs), decoder_input_ids=start_N1, use_cache=False).logits[:, 0]
        no_N, yes_N = logits_NV[:, self._answers].unbind(dim=1)
        return yes_N - no_N

    @staticmethod
    def score_of(logits_N: torch.Tensor) -> torch.Tensor:
        return F.logsigmoid(logits_N)  # log P(yes) where the answer is one of the two

    def _last_layer(self) -> torch.nn.Linear:
        return self.model.get_output_embeddings()


KINDS = {cls.kind: cls for cls in (MonoT5, Classifier, MonoXM)}


def _compute_in_float32(linear: torch.nn.Linear) -> None:
    """Make one layer ignore autocast. Its parameters keep their names and type."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), linear.weight.float(), None if linear.bias is None else linear.bias.float())

    linear.forward = forward


def rerank(
    model: CrossEncoder,
    collection: Collection,
    candidates: Mapping[str, Sequence[str]],
    lang: str,
    file: Path,
    progress: str | None = None,
    group_pairs: int = 2048,
) -> dict[str, list[float]]:
    """Scores of each query's candidates (qid → pids), in their order.

    What is scored is kept in `file`, every `group_pairs` pairs or so: a call that finds the file goes on from there.
    """
    counts_A = np.array([len(pids) for pids in candidates.values()], dtype=np.int64)
    offsets_A1 = np.concatenate([[0], counts_A.cumsum()])
    if not file.exists():
        beside = file.with_name(f"{file.stem}.partial.npy")
        np.save(beside, np.full(offsets_A1[-1], np.nan, dtype=np.float32))  # NaN: not scored yet
        os.replace(beside, file)
    scores_N = np.load(file, mmap_mode="r+" if offsets_A1[-1] else None)
    qids = list(candidates)
    done = int(np.isfinite(scores_N).sum())
    with tqdm(total=len(scores_N), initial=done, desc=progress, unit="pair", disable=progress is None) as bar:
        start = 0
        while start < len(qids):
            stop = max(start + 1, int(np.searchsorted(offsets_A1, offsets_A1[start] + group_pairs, side="right")) - 1)
            rows = slice(offsets_A1[start], offsets_A1[stop])
            if np.isnan(scores_N[rows]).any():
                group = [(qid, pid) for qid in qids[start:stop] for pid in candidates[qid]]
                pairs = [(collection.queries[qid], collection.passages[pid]) for qid, pid in group]
                scores_N[rows] = model.scores(*zip(*pairs, strict=True), lang)
                scores_N.flush()
                bar.update(len(pairs))
            start = stop
    return {qid: scores_N[offsets_A1[a] : offsets_A1[a + 1]].tolist() for a, qid in enumerate(qids)}


def finetune(
    model: CrossEncoder,
    triples: Triples,
    recipe: Recipe,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Loop:
    """The loop that trains a cross-encoder on triples: the positive is relevant, the hard negative is not.

    The loss is the cross-entropy of that yes or no, pair by pair, as the authors of all three trained theirs; monoT5's
    is over its two answers, not over the whole vocabulary.
    """
    model.prepare_for_finetuning()

    def loss_of(step: int) -> torch.Tensor:
        rows_A3 = triples.rows_E3[batch_rows(len(triples), recipe.batch_size, step, recipe.seed)]
        queries = [triples.queries[query] for query in rows_A3[:, 0]]
        passages = [triples.passages[passage] for passage in rows_A3[:, 1:].T.ravel()]  # all positives, all negatives
        logits_N = model.logits(model.tokenize(queries * 2, passages), triples.lang)
        relevant_N = torch.zeros_like(logits_N)
        relevant_N[: len(queries)] = 1
        return F.binary_cross_entropy_with_logits(logits_N, relevant_N)

    return Loop(model.model, loss_of, recipe, checkpoint, title=f"fine-tune {model.kind}", progress=progress)
