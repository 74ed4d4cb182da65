"""Stages: work that is done once per set of inputs, and found again ever after.

    folder = stage(RUNS, "index", version=1, inputs={"model": fingerprint(model), "bits": 2}, build=build_index)

The key of a stage is the SHA-256 of its name, the version of its code and everything that shapes its output. The result
lies in `<parent>/<name>-<key[:12]>/`. A folder of that name is whole: the builder writes into `<folder>.partial`, which
is renamed at the end. When the builder is stopped the partial folder stays, and the next call hands the same folder to
it, so that a builder that looks at what is already there goes on where it stopped.

Two processes that want the same stage wait for each other; the second one finds what the first one made.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from xmlib import __version__
from xmlib.paths import ROOT

RECORD = "stage.json"  # what made this folder; written last

_looking = ContextVar("looking", default=False)  # see `is_built`


class _Missing(Exception):
    """A stage that does not exist, while `is_built` looks for it."""


def stage(
    parent: Path,
    name: str,
    version: int,
    inputs: dict,
    build: Callable[[Path], None],
    say: Callable[[str], None] = print,
) -> Path:
    """The folder that holds `build`'s output for these `inputs`; it is built only where it does not exist.

    `inputs` holds everything that shapes the output, as plain JSON values (str, int, float, bool, None, list, dict);
    another stage goes in as its `fingerprint`. Raise `version` whenever the code of the stage changes its output.
    `build` gets the folder to write into. `say` gets one line: building, or found.
    """
    key = stage_key(name, version, inputs)
    folder = Path(parent) / f"{name}-{key[:12]}"
    if not folder.exists():
        if _looking.get():
            raise _Missing(folder)
        with _lock(folder):
            if not folder.exists():  # otherwise another process built it while this one waited
                return _build(folder, name, version, inputs, key, build, say)
    made = record(folder)
    if made["key"] != key:
        raise ValueError(f"{folder / RECORD} was made from other inputs: key {made['key']}, expected {key}")
    say(f"found {folder.name} ({_duration(made['seconds'])} on {made['created'][:10]})")
    return folder


def is_built(make: Callable[[], object]) -> bool:
    """Whether every stage that `make()` asks for exists. None is built, and nothing is said."""
    token = _looking.set(True)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            make()
        return True
    except _Missing:
        return False
    finally:
        _looking.reset(token)


def stage_key(name: str, version: int, inputs: dict) -> str:
    """SHA-256, in hex, of the canonical JSON of a stage's identity. TypeError names an input that is not plain JSON."""
    if not name or set(name) & set('/\\:*?"<>| ') or name.startswith("."):
        raise ValueError(f"a stage's name is used as a folder name, which {name!r} cannot be")
    _check_plain(inputs, "inputs")
    identity = {"name": name, "version": version, "inputs": inputs}
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def record(folder: Path) -> dict:
    """What made a stage's folder: name, version, inputs, key, seconds, resumed, created, xmlib, commit."""
    path = Path(folder) / RECORD
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing: {folder} is not the folder of a finished stage") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}); remove {folder} to build it again") from None


def fingerprint(folder: Path) -> str:
    """The full key of a stage's folder: what a later stage puts into its inputs."""
    return record(folder)["key"]


def commit() -> str:
    """The checkout's commit, 12 digits; `unknown` outside of git.

    With `-dirty` where tracked files differ from it. Not those in figures/, which notebooks write, and RECORDS.md,
    which a benchmark writes.
    """
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", ".", ":!figures", ":!RECORDS.md"]).returncode
    return head.stdout.strip() + ("-dirty" if changed else "")


def _build(folder: Path, name: str, version: int, inputs: dict, key: str, build: Callable, say: Callable) -> Path:
    partial = folder.with_name(folder.name + ".partial")
    resumed = partial.exists()
    partial.mkdir(parents=True, exist_ok=True)
    say(f"{'continuing' if resumed else 'building'} {folder.name} …")
    start = time.perf_counter()
    build(partial)
    made = {
        "name": name,
        "version": version,
        "inputs": inputs,
        "key": key,
        "seconds": round(time.perf_counter() - start, 3),  # of this call only: see `resumed`
        "resumed": resumed,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "xmlib": __version__,
        "commit": commit(),
    }
    (partial / RECORD).write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, folder)
    say(f"built {folder.name} in {_duration(made['seconds'])}")
    return folder


def _lock(folder: Path) -> FileLock:
    """A held lock of `folder` across processes; says on stderr when it has to wait."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another process that builds {folder.name} …", file=sys.stderr, flush=True)
        lock.acquire(poll_interval=0.2)
    return lock


def _check_plain(value: object, place: str) -> None:
    """Only what JSON gives back as it was put in. A number out of NumPy or a Path would change the key by its type."""
    if type(value) is dict:
        for name, inner in value.items():
            if type(name) is not str:
                raise TypeError(f"{place}: the key {name!r} is a {type(name).__name__}, expected str")
            _check_plain(inner, f"{place}[{name!r}]")
    elif type(value) in (list, tuple):
        for i, inner in enumerate(value):
            _check_plain(inner, f"{place}[{i}]")
    elif type(value) not in (str, int, float, bool, type(None)):
        raise TypeError(
            f"{place} is a {type(value).__name__} ({value!r}); expected plain JSON: str, int, float, bool, None, list "
            "or dict. Give a file or a stage's folder by its fingerprint"
        )
    elif type(value) is float and not math.isfinite(value):
        raise TypeError(f"{place} is {value!r}, which JSON cannot hold")


def _duration(seconds: float) -> str:
    minutes = round(seconds) // 60
    return f"{seconds:.1f} s" if seconds < 60 else f"{minutes} min" if minutes < 60 else f"{minutes / 60:.1f} h"
