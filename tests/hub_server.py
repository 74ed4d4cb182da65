"""A small Hugging Face hub on loopback: as much of its protocol as the real client needs to fetch a file.

Files are served at /datasets/<repo>/resolve/<revision>/<path>, those of models without /datasets; what a model has
is listed at /api/models/<repo>/revision/<revision>. A file of LFS (`lfs=True`) states its SHA-256, and
redirects to /storage/…, as the hub redirects to its storage host; the others state their git SHA-1. `faults` are played
once each, in their order, for requests of a path; `requests` is what was asked.
"""

import hashlib
import json
import threading
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "c0ffee" + "0" * 34
CHUNK = 1000  # bytes that the client writes at a time; 10 MB in earnest: what a broken connection may cost


@contextmanager
def serving(monkeypatch, folder):
    """A `Hub` that the client of this process talks to, with an empty cache below `folder` and no token."""
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with Hub() as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's own tries
        point_at(monkeypatch, hub.url)
        yield hub


def point_at(monkeypatch, url: str) -> None:
    """What HF_ENDPOINT does when the client is imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


@dataclass
class Hub:
    files: dict[str, bytes] = field(default_factory=dict)  # "<repo>/<path>" → content
    git: set[str] = field(default_factory=set)  # those that are in git itself, not in LFS
    faults: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, Range
    tokens: list[str | None] = field(default_factory=list)
    revisions: set[str] = field(default_factory=lambda: {"main", COMMIT})

    def add(self, repo: str, path: str, content: bytes, git: bool = False) -> None:
        self.files[f"{repo}/{path}"] = content
        if git:
            self.git.add(f"{repo}/{path}")

    def __enter__(self) -> "Hub":
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()

    def gets(self, path: str) -> list[str | None]:
        """The Range headers of the downloads of `path` so far."""
        return [span for method, asked, span in self.requests if method == "GET" and asked.endswith(path)]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def log_message(self, *_):
        pass

    def _answer(self, body: bool) -> None:
        path = unquote(self.path)
        if path.startswith("/api/models/") and "/revision/" in path:
            return self._list(path.removeprefix("/api/models/").partition("/revision/")[0])
        if path.startswith("/api/"):  # what the clients ask by the way, and do without
            return self._refuse(404, "EntryNotFound")
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        self.hub.tokens.append(self.headers.get("Authorization"))
        stored = path.startswith("/storage/")
        if stored:
            repo_path = path.removeprefix("/storage/")
        else:
            repo, _, rest = path.removeprefix("/datasets").lstrip("/").partition("/resolve/")
            revision, _, file_path = rest.partition("/")
            repo_path = f"{repo}/{file_path}"
            self.commit = COMMIT if revision == "main" else revision
        queue = self.hub.faults[repo_path]
        # cut and corrupt are about the content, so they wait for a GET of it
        fault = queue.pop(0) if queue and (body or queue[0] not in ("cut", "corrupt")) else None
        if fault == "gated":
            return self._refuse(403, "GatedRepo")
        if fault in ("401", "429", "503"):
            return self._refuse(int(fault), None)
        if not stored and not any(name.startswith(f"{repo}/") for name in self.hub.files):
            return self._refuse(401, "RepoNotFound")
        if not stored and revision not in self.hub.revisions:
            return self._refuse(404, "RevisionNotFound")
        if repo_path not in self.hub.files:
            return self._refuse(404, "EntryNotFound")
        content = self.hub.files[repo_path]
        if not stored:
            return self._resolve(repo_path, content, body, fault)
        self._send(content, body, fault)

    def _list(self, repo: str) -> None:
        files = [name.removeprefix(f"{repo}/") for name in self.hub.files if name.startswith(f"{repo}/")]
        if not files:
            return self._refuse(401, "RepoNotFound")
        siblings = [{"rfilename": name} for name in files]
        info = {"id": repo, "sha": COMMIT, "siblings": siblings, "tags": ["license:mit"], "private": False}
        self._send(json.dumps(info | {"downloads": 0, "likes": 0}).encode(), True, None)

    def _refuse(self, status: int, code: str | None) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if status == 429:
            self.send_header("Retry-After", "0")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _resolve(self, repo_path: str, content: bytes, body: bool, fault: str | None) -> None:
        if repo_path in self.hub.git:
            etag = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            return self._send(content, body, fault, {"ETag": f'"{etag}"', "X-Repo-Commit": self.commit})
        self.send_response(302)
        # another name of the same machine: another host, to which the token must not go
        self.send_header("Location", f"http://localhost:{self.server.server_port}/storage/{repo_path}")
        self.send_header("X-Repo-Commit", self.commit)
        self.send_header("X-Linked-Etag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, content: bytes, body: bool, fault: str | None, headers: dict | None = None) -> None:
        start, span = 0, self.headers.get("Range")
        if span:
            start = int(span.removeprefix("bytes=").partition("-")[0])
        piece = content[start:]
        self.send_response(206 if span else 200)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if span:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(piece)))
        self.end_headers()
        if not body:
            return
        if fault == "corrupt":
            piece = bytes(255 - byte for byte in piece)
        if fault == "cut":
            self.wfile.write(piece[: len(piece) // 2])
            self.close_connection = True
            return
        self.wfile.write(piece)
