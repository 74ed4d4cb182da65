"""What the encoder sees of a text: markers, query augmentation, lengths, and which tokens take part in MaxSim (Eq. 5).

    passage:  [CLS] [P] p_1 … p_j [SEP]                    at most m tokens
    query:    [CLS] [Q] q_1 … q_i [SEP] [M] … [M]          exactly n tokens

Eq. 5 leaves out [SEP]; the released code and this one keep it. In an XLM-R vocabulary [CLS] is `<s>`, [SEP] is `</s>`
and [M] is `<mask>`. `Layout()` is the clean layout of models trained here; `RELEASED` is the one that the published
checkpoint `antoinelouis/colbert-xm` was trained with, whose two markers are both `<unk>` and are followed by a dot.
"""

import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

PUNCTUATION = ("none", "unicode", "colbert", "pylate")


@dataclass(frozen=True)
class Layout:
    """How texts become tokens. A marker that the vocabulary does not have becomes `<unk>`, as in the released model."""

    query_length: int = 32  # n: tokens of a query, markers and [M] included
    passage_length: int = 256  # m: longest passage in tokens, markers included
    query_marker: str | None = "[Q]"  # None: no marker, the layout of single-vector models
    passage_marker: str | None = "[P]"
    legacy_prefix: bool = False  # a "." behind the marker: colbert-ai up to 0.2.20
    augment_queries: bool = True  # fill queries up to n with [M]; without it they keep their own length
    attend_to_mask_tokens: bool = True  # whether other tokens may look at [M]
    mask_punctuation: str | tuple[str, ...] = "unicode"  # passage tokens left out of MaxSim; see `punctuation_ids`

    def __post_init__(self):
        if isinstance(self.mask_punctuation, list):  # out of JSON
            object.__setattr__(self, "mask_punctuation", tuple(self.mask_punctuation))
        if not isinstance(self.mask_punctuation, tuple) and self.mask_punctuation not in PUNCTUATION:
            raise ValueError(f"mask_punctuation is {self.mask_punctuation!r}; have: {', '.join(PUNCTUATION)}")
        for name in ("query_length", "passage_length"):
            if getattr(self, name) < 8:
                raise ValueError(f"{name} is {getattr(self, name)}; at least 8 tokens are needed")


RELEASED = Layout(query_marker="[unused0]", passage_marker="[unused1]", legacy_prefix=True, mask_punctuation="colbert")
SINGLE_VECTOR = Layout(
    query_length=128,
    passage_length=128,
    query_marker=None,
    passage_marker=None,
    augment_queries=False,
    mask_punctuation="none",
)


@dataclass(frozen=True)
class Tokens:
    """Texts as one packed stream of token ids.

    Text b is `ids_T[offsets_B1[b] : offsets_B1[b + 1]]`. `scored_T` marks the tokens that take part in MaxSim,
    `attended_T` those that others may attend to (None: all).
    """

    ids_T: np.ndarray  # int64
    offsets_B1: np.ndarray  # int64
    scored_T: np.ndarray  # bool
    attended_T: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.offsets_B1) - 1

    @property
    def lengths_B(self) -> np.ndarray:
        return np.diff(self.offsets_B1)

    def take(self, texts: Sequence[int]) -> "Tokens":
        """The stream of these texts alone, in the order given."""
        texts = np.asarray(texts, dtype=np.int64)
        lengths = self.lengths_B[texts]
        offsets = np.concatenate([[0], lengths.cumsum()])
        rows = np.arange(offsets[-1]) + np.repeat(self.offsets_B1[texts] - offsets[:-1], lengths)
        attended = None if self.attended_T is None else self.attended_T[rows]
        return Tokens(self.ids_T[rows], offsets, self.scored_T[rows], attended)


def concatenate(*streams: Tokens) -> Tokens:
    """Streams behind one another, as one."""
    attended = None
    if any(stream.attended_T is not None for stream in streams):
        attended = np.concatenate([np.ones_like(s.scored_T) if s.attended_T is None else s.attended_T for s in streams])
    return Tokens(
        np.concatenate([s.ids_T for s in streams]),
        np.concatenate([[0], *[s.lengths_B for s in streams]]).cumsum(),
        np.concatenate([s.scored_T for s in streams]),
        attended,
    )


def stream(rows: list[list[int]]) -> Tokens:
    """Lists of token ids as one stream, every token scored and attended to."""
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)]).astype(np.int64)
    ids = np.fromiter((token for row in rows for token in row), dtype=np.int64, count=int(offsets[-1]))
    return Tokens(ids, offsets, np.ones(len(ids), dtype=bool))


def tokenize_queries(tokenizer, texts: Sequence[str], layout: Layout) -> Tokens:
    """Queries as the encoder sees them. Every token counts in MaxSim, punctuation and [M] too, as in colbert-ai."""
    rows = _wrap(tokenizer, texts, layout.query_marker, layout.legacy_prefix, layout.query_length)
    real = [len(row) for row in rows]
    if layout.augment_queries:
        rows = [row + [tokenizer.mask_token_id] * (layout.query_length - len(row)) for row in rows]
    tokens = stream(rows)
    if layout.attend_to_mask_tokens or not layout.augment_queries:
        return tokens
    attended_T = (np.arange(layout.query_length) < np.array(real, dtype=np.int64)[:, None]).ravel()
    return replace(tokens, attended_T=attended_T)


def tokenize_passages(tokenizer, texts: Sequence[str], layout: Layout) -> Tokens:
    """Passages as the encoder sees them, with punctuation left out of MaxSim as the layout says."""
    rows = _wrap(tokenizer, texts, layout.passage_marker, layout.legacy_prefix, layout.passage_length)
    tokens = stream(rows)
    skipped = _skipped(tokenizer, layout.mask_punctuation, len(tokenizer))
    return replace(tokens, scored_T=~np.isin(tokens.ids_T, skipped))


def punctuation_ids(tokenizer, kind: str | tuple[str, ...]) -> set[int]:
    """Token ids that `mask_punctuation=kind` keeps out of MaxSim. Three meanings are in use for the same words:

    - `unicode`: every token made of punctuation alone, of any script, with or without the space mark `▁`, which alone
      counts as punctuation too. Symbols such as `$` and `€` carry meaning and stay.
    - `colbert`: the first piece of each ASCII symbol. In XLM-R these are `▁` and symbols after a space; those attached
      to a word stay. The released checkpoint was trained so.
    - `pylate`: the bare ASCII symbols, and `<unk>` if the vocabulary lacks one of them.

    A tuple lists the tokens themselves, for checkpoints that leave out others.
    """
    if isinstance(kind, tuple):
        return {tokenizer.convert_tokens_to_ids(token) for token in kind}
    if kind == "colbert":
        return {tokenizer.encode(symbol, add_special_tokens=False)[0] for symbol in string.punctuation}
    if kind == "pylate":
        return {tokenizer.convert_tokens_to_ids(symbol) for symbol in string.punctuation}
    if kind == "unicode":
        special = set(tokenizer.all_special_ids)
        return {
            index
            for token, index in tokenizer.get_vocab().items()
            if index not in special and all(unicodedata.category(c).startswith("P") for c in token.replace("▁", ""))
        }
    return set()


@lru_cache(maxsize=8)
def _skipped(tokenizer, kind: str, size: int) -> np.ndarray:
    """`punctuation_ids` as an array, found once: XLM-R's 250,000 pieces take a third of a second, and a batch less."""
    return np.array(sorted(punctuation_ids(tokenizer, kind)), dtype=np.int64)


def _wrap(tokenizer, texts: Sequence[str], marker: str | None, legacy_prefix: bool, length: int) -> list[list[int]]:
    """Token ids of each text between [CLS], its marker and [SEP], cut to `length`."""
    head = [tokenizer.cls_token_id]
    if marker is not None:
        head.append(tokenizer.convert_tokens_to_ids(marker))  # <unk> where the vocabulary lacks it
    if legacy_prefix:
        head.append(tokenizer.convert_tokens_to_ids("."))
    room = length - len(head) - 1
    if not len(texts):
        return []
    pieces = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)["input_ids"]
    return [[*head, *row[:room], tokenizer.sep_token_id] for row in pieces]
