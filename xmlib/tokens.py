"""What the encoder sees of a text: markers, query augmentation, lengths, and which tokens take part in MaxSim (Eq. 5).

    passage:  [CLS] [P] p_1 … p_j [SEP]                    at most m tokens
    query:    [CLS] [Q] q_1 … q_i [SEP] [M] … [M]          exactly n tokens

Eq. 5 leaves out [SEP]; the released code and this one keep it. In an XLM-R vocabulary [CLS] is `<s>`, [SEP] is `</s>`
and [M] is `<mask>`. `Layout()` is the clean layout of models trained here; `RELEASED` is the one that the published
checkpoint `antoinelouis/colbert-xm` was trained with, whose two markers are both `<unk>` and are followed by a dot.

What a tokenizer makes of a text does not depend on the layout: those are its `Pieces`. They can be kept in a file
(`write_pieces`), from which training and every system with the same tokenizer read them without tokenizing again.
"""

import hashlib
import itertools
import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from tqdm import tqdm

from xmlib.ragged import offsets_of, rows_of

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
        rows, offsets = rows_of(self.offsets_B1, np.asarray(texts, dtype=np.int64))
        attended = None if self.attended_T is None else self.attended_T[rows]
        return Tokens(self.ids_T[rows], offsets, self.scored_T[rows], attended)


@dataclass(frozen=True)
class Pieces(Sequence):
    """Texts as a tokenizer cuts them, without markers and at full length. May be mapped from a file.

    Text b is `ids_T[offsets_B1[b] : offsets_B1[b + 1]]`.
    """

    ids_T: np.ndarray  # uint16 or uint32
    offsets_B1: np.ndarray  # int64
    folder: Path | None = None  # from which they are mapped: what another process gets instead of a copy

    def __len__(self) -> int:
        return len(self.offsets_B1) - 1

    def __getitem__(self, texts) -> "Pieces":
        """Those of one text or of a slice, which stay a view of the file, or of an array of positions."""
        if isinstance(texts, int | np.integer):
            texts = range(len(self))[texts]
            texts = slice(texts, texts + 1)
        if isinstance(texts, slice):
            start, stop, step = texts.indices(len(self))
            if step == 1:
                offsets_B1 = np.asarray(self.offsets_B1[start : max(start, stop) + 1])
                return Pieces(self.ids_T[offsets_B1[0] : offsets_B1[-1]], offsets_B1 - offsets_B1[0])
            texts = np.arange(start, stop, step)
        rows, offsets_B1 = rows_of(self.offsets_B1, np.asarray(texts, dtype=np.int64))
        return Pieces(self.ids_T[rows], offsets_B1)

    def __reduce__(self):
        return (Pieces, (self.ids_T, self.offsets_B1)) if self.folder is None else (open_pieces, (self.folder,))


def concatenate(*streams: Tokens) -> Tokens:
    """Streams behind one another, as one."""
    attended = None
    if any(stream.attended_T is not None for stream in streams):
        attended = np.concatenate([np.ones_like(s.scored_T) if s.attended_T is None else s.attended_T for s in streams])
    return Tokens(
        np.concatenate([s.ids_T for s in streams]),
        offsets_of(np.concatenate([s.lengths_B for s in streams])),
        np.concatenate([s.scored_T for s in streams]),
        attended,
    )


def stream(rows: list[list[int]]) -> Tokens:
    """Lists of token ids as one stream, every token scored and attended to."""
    offsets = offsets_of([len(row) for row in rows])
    ids = np.fromiter((token for row in rows for token in row), dtype=np.int64, count=int(offsets[-1]))
    return Tokens(ids, offsets, np.ones(len(ids), dtype=bool))


def tokenize_queries(tokenizer, texts: Sequence[str] | Pieces, layout: Layout) -> Tokens:
    """Queries as the encoder sees them. Every token counts in MaxSim, punctuation and [M] too, as in colbert-ai."""
    tokens = _wrap(tokenizer, texts, layout.query_marker, layout.legacy_prefix, layout.query_length)
    if not layout.augment_queries:
        return tokens
    real_AS = np.arange(layout.query_length) < tokens.lengths_B[:, None]
    ids_AS = np.full(real_AS.shape, tokenizer.mask_token_id, dtype=np.int64)
    ids_AS[real_AS] = tokens.ids_T
    return Tokens(
        ids_AS.ravel(),
        layout.query_length * np.arange(len(texts) + 1),
        np.ones(ids_AS.size, dtype=bool),
        None if layout.attend_to_mask_tokens else real_AS.ravel(),
    )


def tokenize_passages(tokenizer, texts: Sequence[str] | Pieces, layout: Layout) -> Tokens:
    """Passages as the encoder sees them, with punctuation left out of MaxSim as the layout says."""
    tokens = _wrap(tokenizer, texts, layout.passage_marker, layout.legacy_prefix, layout.passage_length)
    return replace(tokens, scored_T=_scored_V(tokenizer, len(tokenizer), layout.mask_punctuation)[tokens.ids_T])


def pieces(tokenizer, texts: Sequence[str] | Pieces) -> Pieces:
    """Texts cut by a tokenizer of `transformers`. What is cut already is not cut again."""
    if isinstance(texts, Pieces):
        return texts
    if tokenizer.is_fast:
        core = tokenizer.backend_tokenizer  # `tokenizer(…)` makes lists of masks and offsets too
        core.no_truncation(), core.no_padding()
        rows = [found.ids for found in core.encode_batch_fast(list(texts), add_special_tokens=False)]
    else:
        rows = tokenizer(list(texts), add_special_tokens=False)["input_ids"] if len(texts) else []
    offsets_B1 = offsets_of([len(row) for row in rows])
    ids = itertools.chain.from_iterable(rows)
    return Pieces(np.fromiter(ids, dtype=np.uint32, count=offsets_B1[-1]), offsets_B1)


def write_pieces(
    folder: Path, tokenizer, texts: Sequence[str], progress: str | None = None, some: int = 50_000
) -> None:
    """Cut `texts` into files in `folder`, `some` at a time; a call that was cut off is gone on with.

    `ids` holds 2 bytes a token, 4 if the vocabulary needs them, and `offsets` where each text begins. Offsets are
    written behind the ids they point at, so they say themselves how far it came: there is no other note of progress.
    """
    dtype = np.dtype("<u2" if max(tokenizer.get_vocab().values()) < 1 << 16 else "<u4")
    with open(folder / f"ids.u{dtype.itemsize}", "ab") as ids, open(folder / "offsets", "a+b") as offsets:
        offsets.seek(0)
        found = np.frombuffer(offsets.read(), dtype="<i8", count=offsets.tell() // 8)
        found = found[found * dtype.itemsize <= ids.tell()]  # a machine that lost power may have kept the offsets alone
        done, size = max(len(found) - 1, 0), int(found[-1]) if len(found) else 0
        ids.truncate(size * dtype.itemsize)
        offsets.truncate(8 * len(found))
        if not len(found):
            offsets.write(bytes(8))
        with tqdm(total=len(texts), initial=done, desc=progress, unit="text", disable=progress is None) as bar:
            for start in range(done, len(texts), some):
                cut = pieces(tokenizer, texts[start : start + some])
                ids.write(cut.ids_T.astype(dtype).tobytes())
                ids.flush()
                offsets.write((size + cut.offsets_B1[1:]).astype("<i8").tobytes())
                offsets.flush()
                size += len(cut.ids_T)
                bar.update(len(cut))


def open_pieces(folder: Path) -> Pieces:
    """What `write_pieces` wrote, mapped and not read."""
    (path,) = Path(folder).glob("ids.u?")
    offsets_B1 = np.memmap(Path(folder) / "offsets", dtype="<i8", mode="r")
    dtype = f"<{path.suffix[1:]}"
    if path.stat().st_size != int(path.suffix[-1]) * offsets_B1[-1]:
        raise ValueError(
            f"{path} is damaged: {path.stat().st_size} bytes for {offsets_B1[-1]} tokens of {path.suffix[-1]}"
        )
    ids_T = np.memmap(path, dtype=dtype, mode="r") if offsets_B1[-1] else np.zeros(0, dtype)
    return Pieces(ids_T, offsets_B1, Path(folder))


def tokenizer_identity(tokenizer) -> str:
    """SHA-256 of all that decides how a fast tokenizer cuts texts: vocabulary, model, normaliser."""
    core = tokenizer.backend_tokenizer
    core.no_truncation(), core.no_padding()
    return hashlib.sha256(core.to_str().encode()).hexdigest()


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


def _wrap(tokenizer, texts: Sequence[str] | Pieces, marker: str | None, legacy_prefix: bool, length: int) -> Tokens:
    """Each text between [CLS], its marker and [SEP], cut to `length`; every token scored."""
    head = [tokenizer.cls_token_id]
    if marker is not None:
        head.append(tokenizer.convert_tokens_to_ids(marker))  # <unk> where the vocabulary lacks it
    if legacy_prefix:
        head.append(tokenizer.convert_tokens_to_ids("."))
    cut = pieces(tokenizer, texts)
    kept_B = np.minimum(np.diff(cut.offsets_B1), length - len(head) - 1)
    kept_B1, offsets_B1 = offsets_of(kept_B), offsets_of(kept_B + len(head) + 1)
    ids_T = np.empty(offsets_B1[-1], dtype=np.int64)
    for place, token in enumerate(head):
        ids_T[offsets_B1[:-1] + place] = token
    ids_T[offsets_B1[1:] - 1] = tokenizer.sep_token_id
    source, target = (
        np.arange(kept_B1[-1]) + np.repeat(starts_B - kept_B1[:-1], kept_B)
        for starts_B in (cut.offsets_B1[:-1], offsets_B1[:-1] + len(head))
    )
    ids_T[target] = cut.ids_T[source]
    return Tokens(ids_T, offsets_B1, np.ones(len(ids_T), dtype=bool))


@lru_cache(maxsize=8)
def _scored_V(tokenizer, size: int, kind: str | tuple[str, ...]) -> np.ndarray:
    """By token id: whether it takes part in MaxSim. `size` tells a tokenizer from itself with more tokens."""
    scored_V = np.ones(max(tokenizer.get_vocab().values()) + 1, dtype=bool)
    scored_V[list(punctuation_ids(tokenizer, kind))] = False
    return scored_V
