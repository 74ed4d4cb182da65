"""Passages on disk, as they are held in memory: opened by memory map, at once, whatever their number.

    ids.utf8, texts.utf8          all ids, all texts, one after the other
    ids.offsets, texts.offsets    int64: string i is bytes offsets[i] : offsets[i + 1]
    sums, order                   uint32: sorted CRC-32 of the ids, and whose they are: how an id is found
    meta.json                     the number of passages, and their fingerprint

Nothing but arrays: NumPy opens them in milliseconds, no text becomes a Python string before it is asked for, and an
index reads the same bytes as from a collection in memory. Arrow would hold the same arrays behind a library of its own.

Packing is one pass over the sources. It notes how far it came, and when it was cut off it goes on from there.
"""

import json
import os
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from xmlib.data.collection import Passages, Strings

BATCH = 50_000  # passages between two writes; some 20 MB of text
META, PROGRESS, UNSORTED = "meta.json", "progress.json", "sums.unsorted"
PARTS = ("ids", "texts")

Reader = Callable[[Path], Iterator[tuple[bytes, bytes]]]  # a file → (pid, text) of its records, as UTF-8


def pack(folder: Path, sources: list[Path], read: Reader, progress: str | None = None) -> None:
    """Write the passages of all `sources` into `folder`. `progress`: the label of a bar, None for no bar.

    Raises DuplicateId for a pid that comes twice, ValueError for text that is not UTF-8.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / META).exists():
        return
    done = _resume(folder)
    with tqdm(desc=progress, unit=" passages", initial=done["passages"], disable=progress is None) as bar:
        for number in range(done["source"], len(sources)):
            records = islice(read(sources[number]), done["record"], None)
            while batch := list(islice(records, BATCH)):
                _append(folder, batch, done, sources[number])
                bar.update(len(batch))
            done |= {"source": number + 1, "record": 0}
    _finish(folder, done["passages"])


def open_passages(folder: Path) -> Passages:
    """The passages in `folder`, mapped and not read."""
    meta = json.loads((folder / META).read_text())
    for part in PARTS:
        expected, found = 8 * (meta["passages"] + 1), (folder / f"{part}.offsets").stat().st_size
        if found != expected:
            raise ValueError(f"{folder / part}.offsets is damaged: {found} bytes, expected {expected}; remove {folder}")
    ids, texts = (Strings.mapped(folder / f"{part}.utf8", folder / f"{part}.offsets") for part in PARTS)
    sums_B, order_B = (_mapped(folder / name, meta["passages"]) for name in ("sums", "order"))
    return Passages.packed(ids, texts, sums_B, order_B, meta["fingerprint"])


def _resume(folder: Path) -> dict:
    """How far an earlier call came; what it wrote after its last note is cut off."""
    done = {"source": 0, "record": 0, "passages": 0, "ids": 0, "texts": 0}
    if (folder / PROGRESS).exists():
        done = json.loads((folder / PROGRESS).read_text())
    for part in PARTS:
        with (folder / f"{part}.utf8").open("ab") as file:
            file.truncate(done[part])
        with (folder / f"{part}.offsets").open("ab") as file:
            if done["passages"]:
                file.truncate(8 * (done["passages"] + 1))
            else:
                file.truncate(0)
                file.write(bytes(8))
    with (folder / UNSORTED).open("ab") as file:
        file.truncate(4 * done["passages"])
    return done


def _append(folder: Path, batch: list[tuple[bytes, bytes]], done: dict, source: Path) -> None:
    columns = dict(zip(PARTS, zip(*batch, strict=True), strict=True))
    if any(len(id.split()) != 1 or id != id.strip() for id in columns["ids"]):
        wrong = next(id for id in columns["ids"] if len(id.split()) != 1 or id != id.strip())
        raise ValueError(f"{source}: expected a pid without blanks, found {wrong!r:.80}")
    for part, strings in columns.items():
        blob = b"".join(strings)
        _check_utf8(blob, strings, columns["ids"], source)
        ends = done[part] + np.cumsum(np.fromiter(map(len, strings), dtype="<i8", count=len(strings)), dtype="<i8")
        _write(folder / f"{part}.utf8", blob)
        _write(folder / f"{part}.offsets", ends)
        done[part] += len(blob)
    sums = np.fromiter(map(zlib.crc32, columns["ids"]), dtype="<u4", count=len(batch))
    _write(folder / UNSORTED, sums)
    done["passages"] += len(batch)
    done["record"] += len(batch)
    beside = folder / f"{PROGRESS}.new"
    beside.write_text(json.dumps(done))
    os.replace(beside, folder / PROGRESS)


def _write(path: Path, data) -> None:
    with path.open("ab") as file:
        file.write(data)


def _check_utf8(blob: bytes, strings: tuple[bytes, ...], ids: tuple[bytes, ...], source: Path) -> None:
    try:
        blob.decode()
    except UnicodeDecodeError:
        for id, string in zip(ids, strings, strict=True):
            if string.decode(errors="ignore").encode() != string:
                raise ValueError(f"{source}: passage {id!r} is not UTF-8 in {string!r:.80}") from None


def _finish(folder: Path, passages: int) -> None:
    """Sort the checksums, look for duplicates, and take the fingerprint: the last pass over what was written."""
    sums_B = np.fromfile(folder / UNSORTED, dtype="<u4")
    order_B = np.argsort(sums_B, kind="stable").astype("<u4")
    sums_B = sums_B[order_B]
    ids, texts = (Strings.mapped(folder / f"{part}.utf8", folder / f"{part}.offsets") for part in PARTS)
    written = Passages.packed(ids, texts, sums_B, order_B)
    written.refuse_duplicates()
    order_B.tofile(folder / "order")
    sums_B.tofile(folder / "sums")
    (folder / META).write_text(json.dumps({"passages": passages, "fingerprint": written.fingerprint}, indent=1))
    for name in (UNSORTED, PROGRESS):
        (folder / name).unlink(missing_ok=True)


def _mapped(path: Path, count: int) -> np.ndarray:
    return np.memmap(path, dtype="<u4", mode="r", shape=(count,)) if count else np.zeros(0, dtype="<u4")
