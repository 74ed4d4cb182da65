"""Index folders: arrays that open as memory maps, and a meta.json that says what each file must be.

    <folder>/meta.json      format, version, kind, origin, settings, count; bytes and sha256 of every file and of itself
    <folder>/ids.txt        passage ids, one per line, in position order
    <folder>/<array>.npy    whatever the kind of index needs

A folder is written beside its final place, in `<folder>.partial`, and renamed, so a folder that exists is whole. A
later change writes new files into the folder and then replaces meta.json, which is the moment the change happens: cut
off before it, the old index still stands; after it, the new one does.

A build that takes long keeps its finished chunks in `<folder>.partial` (class Parts) and goes on from there.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from filelock import FileLock

FORMAT = "xmlib-index"
VERSION = 2  # 1 had no segments
META = "meta.json"
ORIGIN = ("model", "lang", "collection")  # fingerprint of the model, language code, fingerprint of the collection
CHEAP_BYTES = 4 << 20  # files up to this size are checked against their sha256 whenever the folder is opened


class IndexFolderError(ValueError):
    """An index folder that cannot be trusted: names the file and what was expected."""


@dataclass(frozen=True)
class Stored:
    """An open index folder. Arrays are read-only memory maps."""

    path: Path
    meta: dict
    arrays: dict[str, np.ndarray]
    id_bytes: np.ndarray  # mapped as the arrays are: millions of Python strings are made when somebody asks

    def __len__(self) -> int:
        """The number of passages."""
        return self.meta["passages"]

    @cached_property
    def ids(self) -> list[str]:
        return self.id_bytes.tobytes().decode().split("\n")[:-1]

    @property
    def settings(self) -> dict:
        return self.meta["settings"]

    @property
    def file_bytes(self) -> dict[str, int]:
        """Bytes on disk by what they hold: "ids", "meta", and every array's name."""
        sizes = {name: file["bytes"] for name, file in self.meta["files"].items()}
        return sizes | {"meta": (self.path / META).stat().st_size}


def create(folder, kind: str, origin: dict, settings: dict, ids: list[str], arrays: dict) -> None:
    """Write a whole index folder. An array may be given as parts to be joined along the first axis, in any iterable."""
    folder = Path(folder)
    check_absent(folder)
    check_origin(origin)
    check_ids(ids)
    whole = _partial(folder) / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    whole.mkdir(parents=True)
    files = _write_files(whole, generation=0, ids=ids, arrays=arrays)
    head = {"format": FORMAT, "version": VERSION, "kind": kind, "origin": origin, "settings": settings}
    _write_meta(whole, head | {"generation": 0, "passages": len(ids), "files": files})
    os.rename(whole, folder)
    _sync(folder.parent)
    shutil.rmtree(_partial(folder))


def update(stored: Stored, ids: list[str], arrays: dict, drop: Collection[str] = ()) -> None:
    """Write ids and arrays, new or in place of old ones, and drop others, all in one step; the rest stays as it is.

    The ids are such as `check_new` and `kept_without` let pass. One process at a time: IndexFolderError if the index
    was changed since it was opened.
    """
    path, old = stored.path, stored.meta
    with FileLock(path.with_name(f".{path.name}.lock")):
        if _read_meta(path) != old:
            raise IndexFolderError(f"{path} was changed since it was opened; open it again and repeat the change")
        generation = old["generation"] + 1
        try:
            files = {name: file for name, file in old["files"].items() if name not in drop}
            files |= _write_files(path, generation, ids, arrays)
            head = {"version": VERSION, "generation": generation, "passages": len(ids)}
            _write_meta(path, old | head | {"files": files})
        finally:
            # Old files go last; after a failure, say of a full disk, the new ones do, whose space is needed. A search
            # that has files mapped keeps them until it lets go.
            wanted = {META} | {file["file"] for file in _read_meta(path)["files"].values()}
            for left in path.iterdir():
                if left.name not in wanted:
                    left.unlink()


def open(folder, kind: str) -> Stored:
    """Open a folder of this kind after checking that it is whole. Sizes always, checksums of small files only."""
    folder = Path(folder)
    meta = _read_meta(folder)
    try:
        return _open(folder, meta, kind)
    except (IndexFolderError, FileNotFoundError):
        if _read_meta(folder) == meta:
            raise
        return open(folder, kind)  # another process changed the index between the reading of meta.json and of the rest


def _open(folder: Path, meta: dict, kind: str) -> Stored:
    if meta["kind"] != kind:
        raise IndexFolderError(f"{folder / META}: expected an index of kind {kind!r}, found {meta['kind']!r}")
    for file in meta["files"].values():
        _check_file(folder, file, checksum=file["bytes"] <= CHEAP_BYTES)
    arrays = {name: _map(folder, file) for name, file in meta["files"].items() if name != "ids"}
    return Stored(folder, meta, arrays, np.memmap(folder / meta["files"]["ids"]["file"], np.uint8, mode="r"))


def verify(folder) -> None:
    """Read every byte and compare checksums. Raises IndexFolderError at the first file that differs."""
    folder = Path(folder)
    for file in _read_meta(folder)["files"].values():
        _check_file(folder, file, checksum=True)


def check_same(stored: Stored, origin: dict) -> None:
    """The index is of this model, language and collection. A query of another model would get scores, and nonsense."""
    for name in ORIGIN:
        if stored.meta["origin"][name] != origin[name]:
            raise IndexFolderError(
                f"{stored.path / META}: {name} {stored.meta['origin'][name]!r}; expected {origin[name]!r}"
            )


class Parts:
    """Finished pieces of a build that may be cut off, kept in `<folder>.partial`.

    `key` holds all that shapes the pieces, beside the ids. Pieces left by a build with another key are thrown away.
    """

    def __init__(self, folder, ids: list[str], **key) -> None:
        folder = Path(folder)
        check_absent(folder)
        check_ids(ids)
        self.path = _partial(folder)
        key_path = self.path / "key.json"
        text = json.dumps(
            key | {"version": VERSION, "ids": hashlib.sha256("\n".join(ids).encode()).hexdigest()}, indent=1
        )
        if not key_path.exists() or key_path.read_text() != text:
            shutil.rmtree(self.path, ignore_errors=True)
            self.path.mkdir(parents=True)
            _write_text(key_path, text)

    def once(self, name: str, make: Callable[[], dict[str, np.ndarray]]) -> "Piece":
        """The arrays of the piece of this name; first made and kept, all or none, if not there yet."""
        piece = self.path / name
        if not piece.exists():
            beside = piece.with_name(f"{name}.writing")
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir()
            for key, array in make().items():
                _write_array(beside / f"{key}.npy", [array])
            os.rename(beside, piece)
        return Piece(piece)


class Piece(Mapping):
    """Arrays by name, each mapped for as long as it is used: a large build has more pieces than files may be open."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __getitem__(self, name: str) -> np.ndarray:
        path = self.path / f"{name}.npy"
        if not path.exists():
            raise KeyError(name)
        return np.load(path, mmap_mode="r")

    def __iter__(self) -> Iterator[str]:
        return (path.stem for path in sorted(self.path.iterdir()))

    def __len__(self) -> int:
        return len(list(self.path.iterdir()))


def chunks_of(n: int, size: int) -> list[tuple[int, int]]:
    """Positions 0 to n in runs of `size`: their starts and stops."""
    return [(start, min(start + size, n)) for start in range(0, n, size)]


def encode(chunks: Callable, start: int, stop: int):
    """What `chunks` makes of the passages at these positions, counted."""
    chunk = chunks(start, stop)
    if len(chunk) != stop - start:
        raise ValueError(f"chunks({start}, {stop}) returned {len(chunk)} passages; expected {stop - start}")
    return chunk


def join(parts: list[Mapping[str, np.ndarray]]) -> dict[str, "Column"]:
    """Arrays by name, each in its parts, the form that `create` writes."""
    return {name: Column(parts, name) for name in parts[0]}


@dataclass(frozen=True)
class Column:
    """The parts of one array, opened one at a time, and as often as asked."""

    parts: list[Mapping[str, np.ndarray]]
    name: str

    def __iter__(self) -> Iterator[np.ndarray]:
        return (part[self.name] for part in self.parts)


def check_absent(folder: Path) -> None:
    if folder.exists():
        raise FileExistsError(f"{folder} exists already: open it, or remove it to build anew")


def check_origin(origin: dict) -> None:
    missing = [name for name in ORIGIN if name not in origin]
    if missing:
        raise ValueError(f"origin lacks {', '.join(missing)}; it must say {', '.join(ORIGIN)}; got {origin}")


def check_ids(ids: list[str]) -> None:
    """There are ids, and they are distinct strings that fit on a line."""
    if not ids:
        raise ValueError("an index needs at least one passage; got no ids")
    if len(set(ids)) < len(ids):
        seen = set()
        raise ValueError(f"duplicate passage id {next(i for i in ids if i in seen or seen.add(i))!r}")
    for pid in ids:
        if not isinstance(pid, str) or not pid or "\n" in pid:
            raise ValueError(f"a passage id must be a non-empty string without a line break, not {pid!r}")


def check_new(known: list[str], ids: list[str], n_passages: int) -> None:
    """These ids can be added to those an index has, one for each of n_passages."""
    if len(ids) != n_passages:
        raise ValueError(f"{len(ids)} ids for {n_passages} passages")
    check_ids(ids)
    present = set(ids).intersection(known)
    if present:
        raise ValueError(f"passage id {min(present)!r} is in the index already")


def kept_without(known: list[str], ids: list[str]) -> np.ndarray:
    """The positions that stay when the passages of these ids are taken out of an index."""
    gone = set(ids)
    unknown = gone - set(known)
    if unknown:
        raise ValueError(f"passage id {min(unknown)!r} is not in the index")
    if len(gone) < len(ids):
        raise ValueError("an id to remove is given twice")
    kept = np.flatnonzero(np.fromiter((pid not in gone for pid in known), bool, len(known)))
    if not len(kept):
        check_ids([])
    return kept


def _partial(folder: Path) -> Path:
    return folder.with_name(folder.name + ".partial")


def _write_files(folder: Path, generation: int, ids: list[str], arrays: dict) -> dict[str, dict]:
    """Write ids and arrays under names of this generation. Returns what meta.json says about them."""
    mark = f".{generation}" if generation else ""
    files = {}
    ids_path = folder / f"ids{mark}.txt"
    _write_text(ids_path, "\n".join([*ids, ""]))
    files["ids"] = _describe(ids_path)
    for name, parts in arrays.items():
        path = folder / f"{name}{mark}.npy"
        _write_array(path, [parts] if isinstance(parts, np.ndarray) else parts)
        files[name] = _describe(path)
    return files


def _describe(path: Path) -> dict:
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": _sha256(path)}


def _write_array(path: Path, parts: Iterable[np.ndarray]) -> None:
    """One .npy file from parts, of which one at a time is in memory. How many rows there are is known at the end."""
    with path.open("wb") as file:
        rows = 0
        for i, part in enumerate(parts):
            if i == 0:
                _write_header(file, part, 0)
            file.write(memoryview(np.ascontiguousarray(part)).cast("B") if part.size else b"")
            rows += len(part)
        file.seek(0)
        _write_header(file, part, rows)
        file.flush()
        os.fsync(file.fileno())


def _write_header(file, part: np.ndarray, rows: int) -> None:
    """Of the same length for any number of rows: the format leaves room for the first axis to grow."""
    shape = (rows, *part.shape[1:])
    header = {"descr": np.lib.format.dtype_to_descr(part.dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _write_text(path: Path, text: str) -> None:
    beside = path.with_name(path.name + ".writing")
    with beside.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    _sync(path.parent)


def _write_meta(folder: Path, meta: dict) -> None:
    _write_text(folder / META, json.dumps(meta | {"sha256": _meta_sha256(meta)}, indent=1, ensure_ascii=False))


def _read_meta(folder: Path) -> dict:
    path = folder / META
    if not path.exists():
        raise IndexFolderError(f"{path} is missing: {folder} is not an index folder of {FORMAT}")
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise IndexFolderError(f"{path} is damaged: expected JSON ({error})") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise IndexFolderError(f'{path}: expected "format": "{FORMAT}"')
    if meta.get("version", 0) > VERSION:
        raise IndexFolderError(f"{path}: format version {meta['version']} is newer than {VERSION}, all this code reads")
    if meta.get("sha256") != _meta_sha256(meta):
        raise IndexFolderError(f"{path} is damaged: expected the sha256 {meta.get('sha256')} that it states for itself")
    return meta


def _meta_sha256(meta: dict) -> str:
    rest = {name: value for name, value in meta.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _check_file(folder: Path, file: dict, checksum: bool) -> None:
    path = folder / file["file"]
    if not path.exists():
        raise IndexFolderError(f"{path} is missing; expected {file['bytes']} bytes")
    if path.stat().st_size != file["bytes"]:
        raise IndexFolderError(f"{path} has {path.stat().st_size} bytes; expected {file['bytes']}")
    if checksum and _sha256(path) != file["sha256"]:
        raise IndexFolderError(f"{path} is damaged; expected sha256 {file['sha256']}")


def _map(folder: Path, file: dict) -> np.ndarray:
    path = folder / file["file"]
    try:
        return np.load(path, mmap_mode="r")
    except ValueError as error:
        raise IndexFolderError(f"{path} is damaged; expected an array in .npy format ({error})") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(folder: Path) -> None:
    """Make renames in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
