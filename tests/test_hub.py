"""Downloads from a hub on loopback, by the real client: what arrives, what is resumed, and what each failure says."""

import hashlib
import os
import subprocess
import sys

import pytest
from hub_server import CHUNK, COMMIT, point_at, serving

from xmlib.data import hub
from xmlib.data.hub import DownloadError, HubFile
from xmlib.paths import ROOT

REPO, PATH = "owner/set", "data/deep/passages.tsv"
CONTENT = "".join(f"{i}\tpassage {i} « „ ”\n" for i in range(4000)).encode()
FILE = HubFile(REPO, PATH)
HALF = len(CONTENT) // 2 // CHUNK * CHUNK  # what has been written when the connection breaks half-way


@pytest.fixture
def server(tmp_path, monkeypatch):
    with serving(monkeypatch, tmp_path) as hub:
        hub.add(REPO, PATH, CONTENT)
        hub.add(REPO, "qrels.tsv", b"q1\t0\tp1\t1\n", git=True)
        yield hub


def fetch(*files, **options):
    said = []
    return hub.fetch(files, "set (en)", "MIT", say=said.append, **options), said


def test_a_file_arrives_whole_with_commit_and_checksum_and_is_announced_once(server):
    (got,), said = fetch(FILE)
    assert got.path.read_bytes() == CONTENT
    assert got.record() == {
        "repo": REPO, "path": PATH, "commit": COMMIT, "checksum": hashlib.sha256(CONTENT).hexdigest(),
    }  # fmt: skip
    assert said == [f"downloading set (en): 1 file, {len(CONTENT) / 1000:.0f} kB, from owner/set (licence: MIT)"]
    asked = len(server.requests)
    assert fetch(FILE) == ([got], [])
    assert len(server.requests) == asked  # what is in the cache needs no hub


def test_other_libraries_find_the_file_in_the_shared_cache(server):
    from huggingface_hub import hf_hub_download

    (got,), _ = fetch(FILE)
    assert hf_hub_download(REPO, PATH, repo_type="dataset", local_files_only=True) == str(got.path)
    assert hf_hub_download(REPO, PATH, repo_type="dataset", revision=COMMIT) == str(got.path)


def test_what_another_library_downloaded_is_used(server):
    from huggingface_hub import hf_hub_download

    path = hf_hub_download(REPO, PATH, repo_type="dataset")
    asked = len(server.requests)
    (got,), said = fetch(FILE)
    assert (str(got.path), said, len(server.requests)) == (path, [], asked)


def test_a_small_file_in_git_is_checked_by_its_git_checksum(server):
    (got,), _ = fetch(HubFile(REPO, "qrels.tsv", COMMIT))
    assert got.path.read_bytes() == b"q1\t0\tp1\t1\n"
    assert got.checksum == hashlib.sha1(b"blob 10\0q1\t0\tp1\t1\n").hexdigest()
    server.add(REPO, "other.tsv", b"abc", git=True)
    server.faults[f"{REPO}/other.tsv"] = ["corrupt"]
    with pytest.raises(DownloadError, match=r"other.tsv .* arrived damaged"):
        fetch(HubFile(REPO, "other.tsv"))


def test_a_connection_cut_half_way_is_taken_up_where_it_broke(server):
    server.faults[f"{REPO}/{PATH}"] = ["cut"]
    (got,), _ = fetch(FILE)
    assert got.path.read_bytes() == CONTENT
    assert server.gets(PATH) == [None, f"bytes={HALF}-"]


def test_a_download_that_was_given_up_goes_on_in_the_next_call(server):
    server.faults[f"{REPO}/{PATH}"] = ["cut", *["503"] * 20]
    with pytest.raises(DownloadError, match=r"answered 503; try again later. What came is kept"):
        fetch(FILE)
    server.faults.clear()
    server.requests.clear()
    (got,), _ = fetch(FILE)
    assert got.path.read_bytes() == CONTENT
    assert server.gets(PATH) == [f"bytes={HALF}-"]


def test_a_damaged_body_is_removed_and_the_next_call_starts_anew(server):
    server.faults[f"{REPO}/{PATH}"] = ["corrupt"]
    with pytest.raises(DownloadError, match=r"passages.tsv of the dataset owner/set .* arrived damaged .* try again"):
        fetch(FILE)
    (got,), _ = fetch(FILE)
    assert got.path.read_bytes() == CONTENT
    assert server.gets(PATH) == [None, None]


def test_a_few_too_many_requests_are_waited_for(server):
    server.faults[f"{REPO}/{PATH}"] = ["429", "429"]
    (got,), _ = fetch(FILE)
    assert got.path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("429", "has had too many requests; wait some minutes, or sign in with `hf auth login`"),
        ("503", "answered 503; try again later"),
        ("401", "no such repository, or it is private, or the token is refused; .* set HF_TOKEN"),
        (
            "gated",
            r"accept them at http://127.*/datasets/owner/set, then sign in with `hf auth login`, or set HF_TOKEN",
        ),
    ],
)
def test_a_refusal_says_what_to_do(server, fault, message):
    server.faults[f"{REPO}/{PATH}"] = [fault] * 20
    with pytest.raises(DownloadError, match=message):
        fetch(FILE)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (HubFile("owner/other", PATH), "owner/other .*: no such repository, or it is private"),
        (HubFile(REPO, "gone.tsv"), "gone.tsv of the dataset owner/set .*: there is no such file; see http://"),
        (HubFile(REPO, PATH, "f" * 40), r"\(revision ffffffffffff\): there is no such revision"),
    ],
)
def test_what_is_not_there_is_named(server, file, message):
    with pytest.raises(DownloadError, match=message):
        fetch(file)


def test_without_a_connection_the_cache_still_serves_and_the_rest_says_so(server, monkeypatch):
    (got,), _ = fetch(FILE)
    point_at(monkeypatch, "http://127.0.0.1:9")
    assert fetch(FILE) == ([got], [])
    with pytest.raises(DownloadError, match=r"did not come through from http://127.0.0.1:9 .*check connection, proxy"):
        fetch(HubFile(REPO, "qrels.tsv"))


def test_offline_only_the_cache_is_asked(server, monkeypatch):
    from huggingface_hub import constants

    (got,), _ = fetch(FILE)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    server.requests.clear()
    assert fetch(FILE) == ([got], [])
    with pytest.raises(DownloadError, match=r"qrels.tsv .* is not in the cache .*, and HF_HUB_OFFLINE forbids"):
        fetch(HubFile(REPO, "qrels.tsv"))
    assert server.requests == []


def test_a_full_disk_is_noticed_before_the_download(server, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": len(CONTENT)}))
    with pytest.raises(OSError, match=r"set \(en\) needs .* kB below .*HF_HUB_CACHE moves the downloads, XMLIB_DATA"):
        fetch(FILE, makes=1.2)
    assert server.gets(PATH) == []
    assert fetch(FILE)[0][0].path.read_bytes() == CONTENT  # without anything made of it, it fits


def test_the_token_goes_to_the_hub_and_not_to_its_storage(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch(FILE)
    sent = {
        (path.startswith("/storage/"), token)
        for (_, path, _), token in zip(server.requests, server.tokens, strict=True)
    }
    assert sent == {(False, "Bearer hf_secret"), (True, None)}


def test_the_plan_names_sizes_and_downloads_nothing(server):
    assert hub.plan([FILE, HubFile(REPO, "qrels.tsv")]) == [(FILE, len(CONTENT)), (HubFile(REPO, "qrels.tsv"), 10)]
    assert [method for method, _, _ in server.requests] == ["HEAD"] * 2


def test_the_hubs_environment_variables_are_respected(server, tmp_path):
    code = f"""
from xmlib.data import hub
file = hub.HubFile({REPO!r}, {PATH!r})
print(hub.fetch([file], "set", "MIT", say=lambda line: None)[0].path)
"""

    def run(**changes):
        places = {"HF_ENDPOINT": server.url, "HF_HUB_CACHE": str(tmp_path / "moved"), "HF_TOKEN": "hf_secret"}
        return subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
            env=os.environ | {"HF_HUB_OFFLINE": "0"} | places | changes,
        )  # fmt: skip

    assert "HF_HUB_OFFLINE forbids" in run(HF_HUB_OFFLINE="1").stderr
    assert server.requests == []
    path = run().stdout.strip()
    assert path.startswith(str(tmp_path / "moved")) and path.endswith(PATH)
    assert "Bearer hf_secret" in server.tokens
    assert run(HF_HUB_OFFLINE="1").stdout.strip() == path
