"""Files from the Hugging Face hub: raw files at a pinned revision, in the cache that every library shares.

The settings are the hub's own: `HF_ENDPOINT`, `HF_TOKEN` (or `hf auth login`), `HF_HUB_OFFLINE`, `HF_HUB_CACHE`. What
is in the cache is used without a question. Of the rest it is said how large it is, from where and under which licence,
and it is checked that the disk holds it, before the first byte is fetched. A download that was cut off goes on where it
stopped, even in another process, which `hf_hub_download` alone does not do; and the checksum of every file is compared
with the one that the hub states.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock

from xmlib.paths import DATA


@dataclass(frozen=True)
class HubFile:
    """One file of a repository. `revision`: a commit, which never changes, or a branch, which may."""

    repo: str
    path: str
    revision: str = "main"
    kind: str = "dataset"  # or "model"

    def __str__(self) -> str:
        return f"{self.path} of the {self.kind} {self.repo} (revision {self.revision[:12]})"


@dataclass(frozen=True)
class Fetched:
    """A file in the cache. `checksum`: its SHA-256, or the git SHA-1 of a small file that the hub keeps in git."""

    file: HubFile
    path: Path
    commit: str
    checksum: str

    def record(self) -> dict:
        """What the record of anything made from this file should say."""
        return {"repo": self.file.repo, "path": self.file.path, "commit": self.commit, "checksum": self.checksum}


class DownloadError(RuntimeError):
    """A file could not be had; the message says what to do."""


def fetch(
    files: Sequence[HubFile], name: str, licence: str, makes: float = 0.0, say: Callable = print
) -> list[Fetched]:
    """The files, downloaded where the cache does not hold them. `name` and `licence` are told before a download.

    `makes`: the size of what will be made of it in the data folder, in multiples of the download, for the disk's sake.
    """
    missing = plan(files)
    if missing:
        size = sum(size for _, size in missing)
        repos = ", ".join(dict.fromkeys(file.repo for file, _ in missing))
        count = f"{len(missing)} file{'s' * (len(missing) > 1)}"
        say(f"downloading {name}: {count}, {human(size)}, from {repos} (licence: {licence})")
        _check_disks(name, size, size * makes)
    return [_fetch(file) for file in files]


def plan(files: Iterable[HubFile]) -> list[tuple[HubFile, int]]:
    """The files that a `fetch` would download, with their sizes in bytes. Asks the hub, and downloads nothing."""
    return [(file, _ask(file).size) for file in files if cached(file) is None]


def human(size: float) -> str:
    """A number of bytes as people say it."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def cached(file: HubFile) -> Path | None:
    """Where the file lies, if it was fetched before."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(file.repo, file.path, revision=file.revision, repo_type=file.kind)
    return Path(found) if isinstance(found, str) else None


def _fetch(file: HubFile) -> Fetched:
    path = cached(file) or _download(file)
    # …/snapshots/<commit>/<path> is a link to …/blobs/<checksum>; a copy of it where the disk knows no links.
    checksum = path.resolve().name if path.is_symlink() else _digest(path, hashlib.sha256())
    return Fetched(file, path, path.parents[len(Path(file.path).parents) - 1].name, checksum)


def _ask(file: HubFile):
    """What the hub says about the file: size, etag, commit_hash, location."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    try:
        url = hf_hub_url(file.repo, file.path, repo_type=file.kind, revision=file.revision)
        return get_hf_file_metadata(url, retry_on_errors=True)
    except Exception as error:  # whatever the network and the hub come up with
        raise DownloadError(_advice(error, file)) from error


def _download(file: HubFile) -> Path:
    """Complete the file's blob, then let the hub's library link it from where every other library looks for it."""
    from huggingface_hub import constants, hf_hub_download, hf_hub_url
    from huggingface_hub.file_download import http_get, repo_folder_name
    from huggingface_hub.utils import build_hf_headers

    remote = _ask(file)
    blob = (
        Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=file.repo, repo_type=file.kind) / "blobs" / remote.etag
    )
    blob.parent.mkdir(parents=True, exist_ok=True)
    part = blob.with_name(f"{blob.name}.part")
    headers = build_hf_headers()
    asked = hf_hub_url(file.repo, file.path, repo_type=file.kind, revision=file.revision)
    if urlsplit(asked).netloc != urlsplit(remote.location).netloc:
        headers.pop("authorization", None)  # a signed address of a storage host: the token is none of its business
    try:
        with FileLock(blob.with_name(f".{blob.name[:16]}.lock")):
            if not blob.exists():
                with part.open("ab") as file_part:
                    got = file_part.tell()
                    http_get(
                        remote.location,
                        file_part,
                        resume_size=got,
                        headers=headers,
                        expected_size=remote.size,
                        displayed_filename=Path(file.path).name,
                    )
                _verify(part, remote.etag, file)
                os.replace(part, blob)
        return Path(hf_hub_download(file.repo, file.path, repo_type=file.kind, revision=file.revision))
    except DownloadError:
        raise
    except Exception as error:
        raise DownloadError(_advice(error, file)) from error


def _verify(part: Path, etag: str, file: HubFile) -> None:
    """Compare a whole download with the hub's checksum: SHA-256 for large files, git's SHA-1 for those in git."""
    if len(etag) == 64:
        found = _digest(part, hashlib.sha256())
    elif len(etag) == 40:
        found = _digest(part, hashlib.sha1(b"blob %d\0" % part.stat().st_size))
    else:
        raise DownloadError(f"{file}: the server states no checksum (ETag {etag!r}); is HF_ENDPOINT a hub?")
    if found != etag:
        part.unlink()
        sums = f"checksum {found[:12]}…, expected {etag[:12]}…"
        raise DownloadError(f"{file} arrived damaged ({sums}) and was removed; try again")


def _digest(path: Path, digest) -> str:
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _check_disks(name: str, download: float, made: float) -> None:
    """OSError where the cache's disk cannot hold the download, or the data folder's what is made of it."""
    from huggingface_hub import constants

    cache, data = (existing(Path(folder)) for folder in (constants.HF_HUB_CACHE, DATA))
    needs = {cache: download, data: made}
    if cache.stat().st_dev == data.stat().st_dev:
        needs = {cache: download + made}
    for folder, need in needs.items():
        free = shutil.disk_usage(folder).free
        if need > free:
            moved = "HF_HUB_CACHE moves the downloads, XMLIB_DATA what is made of them"
            raise OSError(f"{name} needs {human(need)} below {folder}, where {human(free)} are free; {moved}")


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists: its disk is the one that will be written to."""
    return next(path for path in [folder, *folder.parents] if path.exists())


def _advice(error: Exception, file: HubFile) -> str:
    """What went wrong, and what to do about it."""
    from huggingface_hub import constants, errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    hub, page = constants.ENDPOINT, f"{constants.ENDPOINT}/{file.kind}s/{file.repo}".replace("/models/", "/")
    sign_in = "sign in with `hf auth login`, or set HF_TOKEN"
    if constants.is_offline_mode():
        return f"{file} is not in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to fetch it"
    if isinstance(error, errors.GatedRepoError):
        return f"{file} is given only to users who accepted its conditions: accept them at {page}, then {sign_in}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{file}: there is no such revision; see {page} for those that there are"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return f"{file}: there is no such file; see {page} for where it went"
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
        return f"{file}: no such repository, or it is private, or the token is refused; see {page}, and {sign_in}"
    if status == 429:
        return f"{file}: {hub} has had too many requests; wait some minutes, or {sign_in}. What came is kept"
    if status:
        return f"{file}: {hub} answered {status}; try again later. What came is kept"
    cause = f"{type(error).__name__}: {error}".splitlines()[0]
    do = "check connection, proxy and HF_ENDPOINT, and run it again: what came is kept"
    return f"{file} did not come through from {hub} ({cause}); {do}"
