"""Index folders under attack: killed at random points, on a full disk, cut short, with flipped bits, newer, of others.

Each is survived, with nothing lost, or refused with an error that names the file.
"""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_plaid import ORIGIN, names, realistic

from xmlib import systems
from xmlib.data.collection import Collection, Passages
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
    plaid.SMALL = 0 if task == "change" else 1000  # add segments and mark passages, or write all anew
    index = plaid.open(folder)
    print("begin", flush=True)
    for i in range(1000):
        index.add([f"new{{i}}"], vectors.slice(i % 50, i % 50 + 1))
        index.remove([f"new{{i}}"])
"""

ON_A_SMALL_DISK = f"""
import errno, subprocess, sys
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parent.parent)]!r}
from test_plaid import ORIGIN, names, realistic
from xmlib.index import plaid, store

disk = sys.argv[1]
def space(kib, *options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join([f"size={{kib}}k", *options]), "none", disk], check=True)

def full(task):
    try:
        task()
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
        return True

vectors, _, _ = realistic(B={PASSAGES}, A=1)
build = lambda: plaid.build(f"{{disk}}/index", vectors.slice, names({PASSAGES}), ORIGIN, chunk_passages=10)
space(4)
kib, refusals = 500, 0
while full(build):  # now in the tokens, now in the codes, at last in what is written of them all together
    refusals += 1
    kib += 500
    space(kib, "remount")
index = plaid.open(f"{{disk}}/index")
store.verify(index.stored.path)
before = index.ids
while not full(lambda: index.add([f"new{{len(index.ids)}}"], vectors.slice(0, 1))):
    used = sum(path.stat().st_blocks for path in index.stored.path.iterdir()) // 2
    before = index.ids
    space(used + 100, "remount")
store.verify(index.stored.path)
index = plaid.open(index.stored.path)
assert index.ids == before, (index.ids, before)
space(2 * kib, "remount")
index.add(["last"], vectors.slice(0, 1))
store.verify(index.stored.path)
print(refusals, "refusals")
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


@pytest.mark.parametrize("task", ["change", "write anew"])
def test_an_index_survives_being_killed_while_it_changes(whole, copy, task):
    rng = np.random.default_rng(1)
    before = plaid.open(whole).decoded.vectors_TH
    for _ in range(3):
        assert killed(task, copy, rng.uniform(0.05, 0.5))
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


def full_after(writes, monkeypatch):
    """From so many files on the disk is full, as the system says when what was written has to go there."""
    whole, left = os.fsync, iter(range(writes))

    def fsync(descriptor):
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


def test_a_build_on_a_disk_that_fills_up_goes_on_when_there_is_space(whole, vectors, tmp_path, monkeypatch):
    writes = 0
    while not (tmp_path / "index").exists():
        with monkeypatch.context() as patch:
            full_after(writes, patch)
            try:
                plaid.build(tmp_path / "index", vectors.slice, names(PASSAGES), ORIGIN, chunk_passages=10)
            except OSError as error:
                assert error.errno == errno.ENOSPC
        writes += 3
    assert writes > 9
    for path in whole.iterdir():
        assert path.read_bytes() == (tmp_path / "index" / path.name).read_bytes(), path.name


def test_a_change_that_fills_the_disk_leaves_the_index_as_it_was(copy, vectors, monkeypatch):
    before = plaid.open(copy).decoded.vectors_TH
    for writes in range(20):
        index = plaid.open(copy)
        with monkeypatch.context() as patch:
            full_after(writes, patch)
            try:
                index.add(["new"], vectors.slice(0, 1))
            except OSError as error:
                assert error.errno == errno.ENOSPC
        store.verify(copy)
        if plaid.open(copy).ids != names(PASSAGES):
            break
        np.testing.assert_array_equal(plaid.open(copy).decoded.vectors_TH, before)
    assert writes > 5 and plaid.open(copy).ids == [*names(PASSAGES), "new"]


def test_a_small_disk_that_is_really_full_loses_nothing(tmp_path):
    """A tmpfs that the kernel refuses to write to; it takes a system where users may mount one for themselves."""
    own = ["unshare", "--user", "--map-root-user", "--mount"]
    mount = [*own, "mount", "-t", "tmpfs", "none", str(tmp_path)]
    if not shutil.which("unshare") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted in a namespace of one's own here")
    child = [*own, sys.executable, "-c", ON_A_SMALL_DISK, str(tmp_path)]
    said = subprocess.run(child, check=True, capture_output=True, text=True).stdout
    assert int(said.split()[0]) >= 3


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


def test_a_system_refuses_an_index_of_another_model_language_or_collection(copy, tmp_path):
    """Before the model is opened: here there is none, only a folder that could hold one."""
    texts = [(name, f"passage {name}") for name in names(PASSAGES)]
    (tmp_path / "model").mkdir()
    system = systems.System("row", "colbert-xm", tmp_path / "model", adapters="sw")
    collection = Collection("c", "ko", "test", Passages.from_pairs(texts), {"q": "question"}, {"q": {"p0": 1}})
    of_this = {"model": systems.identity(system.model), "lang": "sw", "collection": collection.passages.fingerprint}
    meta = json.loads((copy / "meta.json").read_text())
    for name in of_this:
        changed = meta | {"origin": of_this | {name: "other"}}
        (copy / "meta.json").write_text(json.dumps(changed | {"sha256": store._meta_sha256(changed)}))
        with pytest.raises(IndexFolderError, match=f"{name} 'other'; expected '{of_this[name]}'"):
            systems._search(system, copy, collection, 5)


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


@pytest.mark.parametrize("task", ["change", "write anew"])
def test_an_index_can_be_opened_at_any_moment_while_another_process_changes_it(copy, task):
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, task, str(copy)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"begin\n"
    seen, patience = [], time.monotonic() + 60
    while len(seen) < 150 or (len(set(seen)) < 2 and time.monotonic() < patience):
        seen.append(len(plaid.open(copy).ids))
    process.kill()
    process.stdout.close()
    process.wait()
    assert set(seen) == {PASSAGES, PASSAGES + 1}
