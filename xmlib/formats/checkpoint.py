"""A checkpoint as files: a folder, or a repository of the Hugging Face hub, whose files are fetched into its cache.

A hub id is `owner/name`, or `owner/name@revision`. Of what lies in a repository only the model is fetched: its
configuration and tokenizer, and its weights once, as safetensors where there are any; no copies for other frameworks.

Nothing in a checkpoint is run: weights are read from safetensors, or by PyTorch's reader of tensors and plain values.
"""

import json
import pickle
import re
import zipfile
from pathlib import Path, PurePosixPath

import torch

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?")
TEXT = (".json", ".txt", ".model", ".metadata", ".jinja")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there is read
MODULE = re.compile(r"\d+_\w+")  # folders of sentence-transformers


def locate(checkpoint: str | Path, weights: bool = True) -> Path:
    """The folder that holds the checkpoint, fetched where it is a hub id; without `weights` only what is small."""
    if Path(checkpoint).exists():
        return Path(checkpoint)
    return _fetched(str(checkpoint), weights)


def commit(checkpoint: str) -> str:
    """The commit that a hub id stands for. Asks the hub, or the cache where HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    return _cached(checkpoint).name if constants.HF_HUB_OFFLINE else _info(checkpoint).sha


def read_json(folder: Path, name: str) -> dict | list | None:
    """A JSON file of the checkpoint; None where there is none."""
    path = folder / name
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def tensors(folder: Path, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Those of the named tensors that the folder's weights have, in float32. Others are not even read."""
    files = _weight_files(folder)
    found = {}
    for file in files:
        if file.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(file, "pt") as opened:
                found |= {name: opened.get_tensor(name).float() for name in set(names) & set(opened.keys())}
        else:
            opened = read_pickled(file)
            found |= {name: opened[name].float() for name in names if name in opened}
    return found


def read_pickled(file: Path) -> dict:
    """What torch.save wrote: tensors and plain values. ValueError for any other object, which is not made."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        what = re.search(r"GLOBAL (\S+)|class (\S+)", str(error))
        name = f" ({next(filter(None, what.groups())).rstrip(',')})" if what else ""
        raise ValueError(f"{file} holds more than weights{name}; nothing of it was run") from error


def _weight_files(folder: Path) -> list[Path]:
    """The files of the weights: one, or the parts that an index names."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        if index := read_json(folder, f"{name}.index.json"):
            return [folder / part for part in dict.fromkeys(index["weight_map"].values())]
    return []


def _fetched(checkpoint: str, weights: bool) -> Path:
    """The folder in the hub's cache, as whole as it has to be."""
    from huggingface_hub import constants, hf_hub_download

    from xmlib.data.hub import HubFile, fetch

    if constants.HF_HUB_OFFLINE:
        return _cached(checkpoint)
    info = _info(checkpoint)
    paths = wanted([file.rfilename for file in info.siblings], weights)
    if not paths:
        has = ", ".join(sorted(file.rfilename for file in info.siblings)[:8])
        raise ValueError(f"{checkpoint} on the hub holds no checkpoint that is known here; it has {has}")
    licence = next((tag.partition(":")[2] for tag in info.tags or () if tag.startswith("license:")), "not stated")
    repo, _, revision = checkpoint.partition("@")
    files = fetch([HubFile(repo, path, info.sha, "model") for path in paths], checkpoint, licence)
    if revision != info.sha:  # so that the cache knows, offline too, which commit the branch is
        hf_hub_download(repo, min(paths, key=len), revision=revision or "main")
    return files[0].path.parents[len(Path(files[0].file.path).parents) - 1]


def wanted(paths: list[str], weights: bool = True) -> list[str]:
    """Of the files of a repository those that make up the model. A ColBERT of the first version is one .dnn file."""
    files = [PurePosixPath(path) for path in paths]
    files = [f for f in files if f.parent == PurePosixPath() or (len(f.parts) == 2 and MODULE.fullmatch(f.parts[0]))]
    chosen = [f for f in files if f.suffix in TEXT]
    if not weights:
        return [str(f) for f in chosen]
    if not any(f.name == "config.json" for f in chosen):
        return [str(f) for f in chosen] + dnn_files(paths)
    for folder in dict.fromkeys(f.parent for f in files):
        for name in WEIGHTS:
            stem, _, suffix = name.rpartition(".")
            parts = [
                f for f in files if f.parent == folder and re.fullmatch(rf"{stem}(-\d+-of-\d+)?\.{suffix}", f.name)
            ]
            if parts:
                chosen += parts
                break
    return [str(f) for f in chosen]


def dnn_files(paths: list[str]) -> list[str]:
    """Of ColBERT's own checkpoint files the last one: `colbert.dnn`, else the one of the most steps."""

    def steps(path: str) -> float:
        found = re.search(r"(\d+)\.dnn$", path)
        return int(found[1]) if found else float("inf")

    return sorted((path for path in paths if path.endswith(".dnn")), key=steps)[-1:]


def _cached(checkpoint: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repo, revision = _split(checkpoint)
    try:
        return Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f"{checkpoint} is not in the hub's cache, and HF_HUB_OFFLINE forbids to fetch it"
        ) from error


def _info(checkpoint: str):
    """What the hub says of a repository: sha, siblings, tags."""
    from huggingface_hub import HfApi

    from xmlib.data.hub import DownloadError, HubFile, _advice

    repo, revision = _split(checkpoint)
    try:
        return HfApi().model_info(repo, revision=revision)
    except Exception as error:  # whatever the network and the hub come up with
        raise DownloadError(_advice(error, HubFile(repo, "the list of files", revision, "model"))) from error


def _split(checkpoint: str) -> tuple[str, str]:
    if not HUB_ID.fullmatch(checkpoint):
        raise FileNotFoundError(f"no folder {checkpoint!r}; and a hub id is owner/name, or owner/name@revision")
    repo, _, revision = checkpoint.partition("@")
    return repo, revision or "main"
