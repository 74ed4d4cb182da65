"""Index folders under attack: killed at random points, cut short, with flipped bits, from a newer version, from others.

Each is survived, with nothing lost, or refused with an error that names the file.
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_plaid import ORIGIN, names, realistic

from xmlib.index import plaid, store
from xmlib.index.store import IndexFolderError

PASSAGES = 120
PROGRAM = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parent.parent)]!r}
from pathlib import Path
from test_plaid import ORIGIN, names, realistic
from xmlib.index import plaid

vectors, _, _ = realistic(B={PASSAGES}, A=1)
task, folder = sys.argv[1:]
if task == "build":
    print("begin", flush=True)
    plaid.build(folder, vectors.slice, names({PASSAGES}), ORIGIN, chunk_passages=10)
else:
    index = plaid.open(folder)
    print("begin", flush=True)
    for i in range(1000):
        index.add([f"new{{i}}"], vectors.slice(i % 50, i % 50 + 1))
        index.remove([f"new{{i}}"])
"""


@pytest.fixture(scope="module")
def vectors():
    return realistic(B=PASSAGES, A=1)[0]


@pytest.fixture(scope="module")
def whole(vectors, tmp_path_factory):
    """An index nobody disturbed. Not to be changed."""
    folder = tmp_path_factory.mktemp("whole") / "index"
    plaid.build(folder, vectors.slice, names(PASSAGES), ORIGIN, chunk_passages=10)
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in whole.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def killed(task, folder, after):
    """Run the task in a process and kill it so many seconds after it began. Returns whether it was still at work."""
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, task, str(folder)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"begin\n"
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    process.stdout.close()
    return process.wait() == -signal.SIGKILL


def test_a_build_killed_again_and_again_ends_as_if_undisturbed(whole, vectors, tmp_path):
    rng = np.random.default_rng(0)
    for _ in range(4):
        if not killed("build", tmp_path / "index", rng.uniform(0, 0.6)):
            break
        with pytest.raises(IndexFolderError, match=r"meta\.json is missing"):
            plaid.open(tmp_path / "index")
    if not (tmp_path / "index").exists():
        plaid.build(tmp_path / "index", vectors.slice, names(PASSAGES), ORIGIN, chunk_passages=10)
    store.verify(tmp_path / "index")
    assert not (tmp_path / "index.partial").exists()
    for path in whole.iterdir():
        assert path.read_bytes() == (tmp_path / "index" / path.name).read_bytes(), path.name


def test_an_index_survives_being_killed_while_it_changes(whole, copy):
    rng = np.random.default_rng(1)
    before = plaid.open(whole).decoded.vectors_TH
    for _ in range(3):
        assert killed("change", copy, rng.uniform(0.05, 0.5))
        store.verify(copy)
        index = plaid.open(copy)
        assert index.ids[:PASSAGES] == names(PASSAGES)
        assert len(index.ids) <= PASSAGES + 1  # the change in hand happened, or it did not
        np.testing.assert_allclose(index.decoded.vectors_TH[: len(before)], before, atol=1e-6)
        if len(index.ids) > PASSAGES:
            index.remove(index.ids[PASSAGES:])
    index.add(["last"], realistic(B=PASSAGES, A=1)[0].slice(0, 1))
    store.verify(copy)
    files = {file["file"] for file in json.loads((copy / "meta.json").read_text())["files"].values()}
    assert {path.name for path in copy.iterdir()} == files | {"meta.json"}  # what the kills left over is gone


def test_every_file_cut_short_is_refused_by_name(whole, copy):
    for path in sorted(copy.iterdir()):
        data = path.read_bytes()
        for length in (0, len(data) // 2, len(data) - 1):
            path.write_bytes(data[:length])
            with pytest.raises(IndexFolderError, match=path.name.replace(".", r"\.")):
                plaid.open(copy)
        path.unlink()
        with pytest.raises(IndexFolderError, match=path.name.replace(".", r"\.")):
            plaid.open(copy)
        path.write_bytes(data)
    plaid.open(copy)


def test_a_flipped_bit_in_any_file_is_refused_by_name(whole, copy):
    rng = np.random.default_rng(2)
    for path in sorted(copy.iterdir()):
        data = path.read_bytes()
        for _ in range(5):
            at, bit = rng.integers(len(data)), rng.integers(8)
            path.write_bytes(data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :])
            if path.name == "meta.json" and _same_json(path.read_bytes(), data):
                continue
            with pytest.raises(IndexFolderError, match=path.name.replace(".", r"\.")):
                store.verify(copy)
            with pytest.raises(IndexFolderError):  # files this small are checked on opening as well
                plaid.open(copy)
        path.write_bytes(data)


def _same_json(one, other):
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


def test_an_index_of_a_newer_format_is_refused(copy):
    meta = json.loads((copy / "meta.json").read_text())
    (copy / "meta.json").write_text(json.dumps(meta | {"version": store.VERSION + 1}))
    with pytest.raises(IndexFolderError, match=f"version {store.VERSION + 1} is newer than {store.VERSION}"):
        plaid.open(copy)


def test_an_index_of_the_first_codec_is_refused_not_misread(copy):
    meta = json.loads((copy / "meta.json").read_text()) | {"kind": "plaid"}
    meta["sha256"] = store._meta_sha256(meta)
    (copy / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(IndexFolderError, match="expected an index of kind 'plaid-pq', found 'plaid'"):
        plaid.open(copy)


@pytest.mark.parametrize("changed", ["model", "lang", "collection"])
def test_a_build_for_another_model_language_or_collection_takes_nothing_over(vectors, tmp_path, monkeypatch, changed):
    def cut(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store, "create", cut)
        plaid.build(tmp_path / "index", vectors.slice(0, 20).slice, names(20), ORIGIN)
    asked = []

    def chunks(start, stop):
        asked.append(start)
        return vectors.slice(20 + start, 20 + stop)

    index = plaid.build(tmp_path / "index", chunks, names(20), ORIGIN | {changed: "other"})
    assert asked == [0]
    assert index.stored.meta["origin"][changed] == "other"
    with pytest.raises(IndexFolderError, match=rf"{changed} 'other'; expected '{ORIGIN[changed]}'"):
        store.check_same(index.stored, ORIGIN)
    store.check_same(index.stored, ORIGIN | {changed: "other"})


def test_readers_go_on_while_another_process_adds(copy):
    """What is open stays as it was, files and all; who opens afterwards sees the change."""
    reader = plaid.open(copy)
    _, q_ASH, q_mask_AS = realistic(B=PASSAGES, A=3)
    before = reader.search(q_ASH, q_mask_AS, 10)
    writer = plaid.open(copy)
    writer.add(["new"], realistic(B=PASSAGES, A=1)[0].slice(0, 1))
    writer.remove(["p0"])
    for ours, theirs in zip(reader.search(q_ASH, q_mask_AS, 10), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert plaid.open(copy).ids == [*names(PASSAGES)[1:], "new"]


def test_an_index_can_be_opened_at_any_moment_while_another_process_changes_it(copy):
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, "change", str(copy)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"begin\n"
    seen, patience = [], time.monotonic() + 60
    while len(seen) < 150 or (len(set(seen)) < 2 and time.monotonic() < patience):
        seen.append(len(plaid.open(copy).ids))
    process.kill()
    process.stdout.close()
    process.wait()
    assert set(seen) == {PASSAGES, PASSAGES + 1}
