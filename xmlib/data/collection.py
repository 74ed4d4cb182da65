"""A collection: passages to search, queries to ask, and judgements that say which passage answers which query.

Passages are held as UTF-8 bytes with offsets, not as Python strings: the 8.8 million of MS MARCO then take little more
memory than their files take on disk, and none at all where they are mapped from there (`xmlib.data.packed`). All ids
are strings. Where collections come from: `xmlib.data.sources`.
"""

import hashlib
import json
import mmap
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from xmlib import languages

REDUCED = "-REDUCED-"  # in the name of a collection that lacks passages, wherever it is shown


class Strings(Sequence):
    """A list of strings in one blob of UTF-8: string i is bytes offsets[i] : offsets[i + 1]. It only grows."""

    def __init__(self, strings: Iterable[str] = ()):
        self._blob = bytearray()
        self._offsets = array("q", [0])
        for string in strings:
            self.append(string)

    @classmethod
    def mapped(cls, blob: Path, offsets: Path) -> "Strings":
        """Strings that stay in their two files: UTF-8, and int64 offsets, little-endian. They cannot grow."""
        strings = cls()
        if blob.stat().st_size:  # an empty file cannot be mapped
            with blob.open("rb") as file:
                strings._blob = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        strings._offsets = np.memmap(offsets, dtype="<i8", mode="r")
        return strings

    def append(self, string: str) -> None:
        self._blob += string.encode()
        self._offsets.append(len(self._blob))

    def raw(self, position: int) -> bytes:
        """The bytes of one string; `position` is not checked."""
        return bytes(self._blob[self._offsets[position] : self._offsets[position + 1]])

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, position):
        """The string at `position`, counted from the end if negative; for a slice, a plain list."""
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(len(self)))]
        i = position + len(self) if position < 0 else position
        if not 0 <= i < len(self):
            raise IndexError(f"no position {position}; there are {len(self)} strings")
        return self.raw(i).decode()

    def __iter__(self) -> Iterator[str]:
        return (self.raw(i).decode() for i in range(len(self)))

    def __eq__(self, other) -> bool:
        if isinstance(other, Strings):
            return np.array_equal(self._offsets, other._offsets) and self._blob[:] == other._blob[:]
        if isinstance(other, list | tuple):
            return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))
        return NotImplemented

    def __repr__(self) -> str:
        return f"<{len(self)} strings, {len(self._blob)} bytes>"

    def feed(self, digest) -> None:
        """Add everything to a hashlib digest. The offsets tell ("ab", "c") from ("a", "bc")."""
        digest.update(len(self).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(self._offsets, dtype="<i8"))
        digest.update(self._blob)


class DuplicateId(ValueError):
    """One passage id used twice; `id` and the two `positions` say where."""

    def __init__(self, id: str, positions: tuple[int, int]):
        super().__init__(f"passage id {id!r} is used twice, at positions {positions[0]} and {positions[1]}")
        self.id, self.positions = id, positions


class Passages(Mapping):
    """pid -> text, in file order. `ids[i]` and `texts[i]` belong together; an index speaks of positions i.

    Ids are found through a sorted array of their checksums, 12 bytes a passage where a dict would take over 100.
    """

    def __init__(self, ids: Strings, texts: Strings):
        if len(ids) != len(texts):
            raise ValueError(f"{len(ids)} passage ids for {len(texts)} texts")
        self.ids, self.texts = ids, texts
        sums_B = np.fromiter((zlib.crc32(ids.raw(i)) for i in range(len(ids))), dtype=np.uint32, count=len(ids))
        self._order_B = np.argsort(sums_B, kind="stable")
        self._sums_B = sums_B[self._order_B]
        self.refuse_duplicates()

    @classmethod
    def packed(cls, ids: Strings, texts: Strings, sums_B: np.ndarray, order_B: np.ndarray, fingerprint=None):
        """From parts that were computed, and checked for duplicates, when they were written to disk."""
        passages = cls.__new__(cls)
        passages.ids, passages.texts, passages._sums_B, passages._order_B = ids, texts, sums_B, order_B
        if fingerprint:
            passages.fingerprint = fingerprint
        return passages

    @classmethod
    def from_pairs(cls, pairs: Iterable[tuple[str, str]]) -> "Passages":
        """Pack (pid, text) pairs, read one at a time. Raises DuplicateId for a pid that comes twice."""
        ids, texts = Strings(), Strings()
        for pid, text in pairs:
            if not isinstance(pid, str) or not isinstance(text, str):
                raise TypeError(f"a passage is a pair of strings (pid, text), not ({pid!r}, {text!r:.60})")
            ids.append(pid)
            texts.append(text)
        return cls(ids, texts)

    def text(self, position: int) -> str:
        return self.texts[position]

    def position(self, pid: str) -> int:
        """Where `pid` stands in file order. Raises KeyError if it is not there."""
        i = self._find(pid)
        if i < 0:
            raise KeyError(f"no passage {pid!r} among {len(self)}")
        return i

    def items(self) -> Iterator[tuple[str, str]]:
        """Stream (pid, text), without a list of either."""
        return zip(self.ids, self.texts, strict=True)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over ids and texts in their order: what an index over these passages depends on."""
        digest = hashlib.sha256()
        self.ids.feed(digest)
        self.texts.feed(digest)
        return digest.hexdigest()

    def refuse_duplicates(self) -> None:
        """Raise DuplicateId if a pid comes twice."""
        # Only ids whose checksums meet can be equal: a few thousand by chance among millions.
        same_B = np.zeros(len(self) + 1, dtype=bool)
        same_B[1:-1] = self._sums_B[1:] == self._sums_B[:-1]
        seen: dict[str, int] = {}
        for i in np.sort(self._order_B[same_B[1:] | same_B[:-1]]).tolist():
            first = seen.setdefault(self.ids[i], i)
            if first != i:
                raise DuplicateId(self.ids[i], (first, i))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, pid: str) -> str:
        return self.texts[self.position(pid)]

    def __contains__(self, pid) -> bool:
        return isinstance(pid, str) and self._find(pid) >= 0

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __eq__(self, other) -> bool:
        if not isinstance(other, Passages):
            return NotImplemented
        return self.ids == other.ids and self.texts == other.texts

    def __repr__(self) -> str:
        return f"<{len(self)} passages>"

    def _find(self, pid: str) -> int:
        key = pid.encode()
        checksum = np.uint32(zlib.crc32(key))
        at = int(self._sums_B.searchsorted(checksum))
        while at < len(self) and self._sums_B[at] == checksum:
            i = int(self._order_B[at])
            if self.ids.raw(i) == key:
                return i
            at += 1
        return -1


@dataclass(frozen=True)
class Collection:
    """Passages, queries and judgements of one language and split.

    `qrels` is qid -> pid -> grade, 0 for judged irrelevant, and holds judged queries only; queries without judgement
    may be searched, but do not count in evaluation. `skipped` is reason -> number of lines left out on purpose.
    """

    name: str
    lang: str
    split: str
    passages: Passages
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    skipped: dict[str, int] = field(default_factory=dict)

    def __post_init__(self):
        languages.language(self.lang)
        for qid in self.qrels:
            if qid not in self.queries:
                raise ValueError(f"{self.name} ({self.lang}): judgements of an unknown query {qid!r}")
        for pid in dict.fromkeys(pid for judged in self.qrels.values() for pid in judged):
            if pid not in self.passages:
                raise ValueError(f"{self.name} ({self.lang}): judgement of an unknown passage {pid!r}")

    @property
    def source(self) -> str:
        """The name of the whole collection, where this one was reduced."""
        return self.name.partition(REDUCED)[0]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over language, passages, queries and judgements, in their order; not over name and split."""
        digest = hashlib.sha256(self.lang.encode() + b"\n" + self.passages.fingerprint.encode() + b"\n")
        digest.update(json.dumps([list(self.queries.items()), list(self.qrels.items())]).encode())
        return digest.hexdigest()

    def reduced(self, max_passages: int, seed: int = 42) -> "Collection":
        """At most `max_passages`: every judged passage, filled up with a seeded sample, in their order; all queries.

        Far easier to search than the whole, so the name says REDUCED: also that of a language which has no more, for
        a table has one name. Parallel collections of equal ids keep the same.
        """
        if len(self.passages) <= max_passages:
            return replace(self, name=reduced_name(self.name, max_passages))
        judged = {self.passages.position(pid) for pids in self.qrels.values() for pid in pids}
        if len(judged) > max_passages:
            raise ValueError(
                f"{self.name} ({self.lang}) has {len(judged)} judged passages, over the {max_passages} asked"
            )
        # A permutation and not a choice without the judged ones: the sample then hardly depends on what is judged.
        order = np.random.default_rng(seed).permutation(len(self.passages))
        others = [position for position in order[:max_passages].tolist() if position not in judged]
        kept = sorted([*judged, *others[: max_passages - len(judged)]])
        passages = Passages.from_pairs((self.passages.ids[i], self.passages.texts[i]) for i in kept)
        return replace(self, name=reduced_name(self.name, max_passages), passages=passages)


def reduced_name(name: str, max_passages: int) -> str:
    """The name of a collection reduced to `max_passages`; 0 is none."""
    return f"{name}{REDUCED}{max_passages}" if max_passages else name
