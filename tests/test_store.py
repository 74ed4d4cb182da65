"""Index folders: round trips, every kind of damage named, builds that go on after a cut, changes made at once."""

import json
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmlib.index import exact, store
from xmlib.index.store import IndexFolderError
from xmlib.index.vectors import TokenVectors

ORIGIN = {"model": "m", "lang": "te", "collection": "c"}
IDS = ["a", "ü", "c d"]


def create(folder, **changes):
    arrays = {"x": np.arange(6, dtype=np.float16).reshape(3, 2), "y": [np.arange(2), np.arange(2, 5)]}
    given = {"kind": "test", "origin": ORIGIN, "settings": {"n_bits": 2}, "ids": IDS, "arrays": arrays} | changes
    store.create(folder, **given)
    return folder


def rewrite_meta(folder, **changes):
    path = folder / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_is_written_is_read_back_as_memory_maps(tmp_path):
    stored = store.open(create(tmp_path / "index"), "test")
    assert stored.ids == IDS
    assert stored.settings == {"n_bits": 2}
    assert stored.meta["origin"] == ORIGIN
    np.testing.assert_array_equal(stored.arrays["x"], np.arange(6).reshape(3, 2))
    np.testing.assert_array_equal(stored.arrays["y"], np.arange(5))
    assert all(isinstance(array, np.memmap) for array in stored.arrays.values())
    assert sum(stored.file_bytes.values()) == sum(path.stat().st_size for path in (tmp_path / "index").iterdir())
    assert not (tmp_path / "index.partial").exists()


def test_an_array_without_rows_can_be_stored(tmp_path):
    stored = store.open(create(tmp_path / "index", arrays={"x": np.zeros((0, 4), np.uint8)}), "test")
    assert stored.arrays["x"].shape == (0, 4)


def test_a_folder_that_exists_is_not_built_over(tmp_path):
    with pytest.raises(FileExistsError, match="index exists already"):
        create(create(tmp_path / "index"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": ["a", "b", "a"]}, "duplicate passage id 'a'"),
        ({"ids": ["a", "b\n", "c"]}, r"not 'b\\n'"),
        ({"ids": ["a", "", "c"]}, "non-empty string"),
        ({"ids": []}, "at least one passage"),
        ({"origin": {"model": "m"}}, "origin lacks lang, collection"),
    ],
)
def test_ids_and_origins_that_will_not_do_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        create(tmp_path / "index", **changes)
    assert not (tmp_path / "index").exists()


def test_damage_is_named_on_opening(tmp_path):
    folder = create(tmp_path / "index")
    whole = (folder / "x.npy").read_bytes()
    (folder / "x.npy").write_bytes(whole[:-1])
    with pytest.raises(IndexFolderError, match=rf"x\.npy has {len(whole) - 1} bytes; expected {len(whole)}"):
        store.open(folder, "test")
    (folder / "x.npy").unlink()
    with pytest.raises(IndexFolderError, match=rf"x\.npy is missing; expected {len(whole)} bytes"):
        store.open(folder, "test")
    (folder / "x.npy").write_bytes(whole[:-1] + b"!")
    with pytest.raises(IndexFolderError, match=r"x\.npy is damaged; expected sha256"):
        store.open(folder, "test")


def test_foreign_newer_and_other_folders_are_named(tmp_path):
    with pytest.raises(IndexFolderError, match=r"meta\.json is missing: .*nowhere is not an index folder"):
        store.open(tmp_path / "nowhere", "test")
    folder = create(tmp_path / "index")
    with pytest.raises(IndexFolderError, match="expected an index of kind 'plaid', found 'test'"):
        store.open(folder, "plaid")
    rewrite_meta(folder, version=store.VERSION + 1)
    with pytest.raises(IndexFolderError, match="format version 3 is newer than 2"):
        store.open(folder, "test")
    rewrite_meta(folder, version=store.VERSION, settings={"n_bits": 4})
    with pytest.raises(IndexFolderError, match=r"meta\.json is damaged: expected the sha256"):
        store.open(folder, "test")
    rewrite_meta(folder, format="somebody's")
    with pytest.raises(IndexFolderError, match='expected "format": "xmlib-index"'):
        store.open(folder, "test")
    (folder / "meta.json").write_text('{"format": "xmlib-')
    with pytest.raises(IndexFolderError, match=r"meta\.json is damaged: expected JSON"):
        store.open(folder, "test")


def test_large_files_are_left_to_verify(tmp_path, monkeypatch):
    folder = create(tmp_path / "index")
    monkeypatch.setattr(store, "CHEAP_BYTES", 0)
    path = folder / "x.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    store.open(folder, "test")
    with pytest.raises(IndexFolderError, match=r"x\.npy is damaged"):
        store.verify(folder)
    path.write_bytes(b"!" * path.stat().st_size)  # not even a header
    with pytest.raises(IndexFolderError, match=r"x\.npy is damaged; expected an array"):
        store.open(folder, "test")


@settings(deadline=None)  # a busy machine is no failure
@given(st.data())
def test_no_changed_byte_in_any_file_passes_verify(tmp_path_factory, data):
    folder = create(tmp_path_factory.mktemp("changed") / "index")
    path = data.draw(st.sampled_from(sorted(folder.iterdir())))
    whole = path.read_bytes()
    at, change = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(1, 255))
    path.write_bytes(whole[:at] + bytes([whole[at] ^ change]) + whole[at + 1 :])
    if path.name == "meta.json" and reads_the_same(path.read_bytes(), whole):
        return  # one white space for another
    with pytest.raises(IndexFolderError):
        store.verify(folder)


def reads_the_same(one: bytes, other: bytes) -> bool:
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


def test_an_update_replaces_what_it_names_and_keeps_the_rest(tmp_path):
    folder = create(tmp_path / "index")
    before = store.open(folder, "test")
    store.update(before, ["z"], {"x": np.ones((1, 2))})
    after = store.open(folder, "test")
    assert after.ids == ["z"]
    np.testing.assert_array_equal(after.arrays["x"], np.ones((1, 2)))
    np.testing.assert_array_equal(after.arrays["y"], np.arange(5))
    np.testing.assert_array_equal(before.arrays["x"], np.arange(6).reshape(3, 2))  # who has it open keeps it
    assert sorted(path.name for path in folder.iterdir()) == ["ids.1.txt", "meta.json", "x.1.npy", "y.npy"]
    store.verify(folder)


def test_an_update_cut_off_leaves_the_old_index(tmp_path, monkeypatch):
    folder = create(tmp_path / "index")

    def cut(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store, "_write_meta", cut)
        store.update(store.open(folder, "test"), ["z"], {"x": np.ones((1, 2))})
    stored = store.open(folder, "test")
    assert stored.ids == IDS
    store.update(stored, ["y"], {"y": np.arange(1)})  # and the next change clears away the remains
    assert store.open(folder, "test").ids == ["y"]
    assert sorted(path.name for path in folder.iterdir()) == ["ids.1.txt", "meta.json", "x.npy", "y.1.npy"]


class Encoder:
    """Counts what it is asked for, and stops at the chunk it is told to."""

    def __init__(self, fail_at=None):
        self.asked, self.fail_at = [], fail_at

    def __call__(self, start, stop):
        self.asked.append(start)
        if start == self.fail_at:
            raise RuntimeError("out of memory")
        return TokenVectors.from_lengths(np.full((stop - start, 2), start, np.float32), np.ones(stop - start, int))


def test_a_build_cut_off_goes_on_where_it_stopped(tmp_path):
    ids = [str(i) for i in range(10)]
    with pytest.raises(RuntimeError, match="out of memory"):
        exact.build(tmp_path / "index", Encoder(fail_at=6), ids, ORIGIN, chunk_passages=3)
    assert not (tmp_path / "index").exists()
    encoder = Encoder()
    index = exact.build(tmp_path / "index", encoder, ids, ORIGIN, chunk_passages=3)
    assert encoder.asked == [6, 9]
    assert index.vectors.vectors_TH[:, 0].tolist() == [0, 0, 0, 3, 3, 3, 6, 6, 6, 9]
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


@pytest.mark.parametrize("change", [{"origin": ORIGIN | {"model": "n"}}, {"chunk_passages": 2}, {"ids": list("qrst")}])
def test_a_build_with_anything_changed_starts_anew(tmp_path, change):
    same = {"ids": list("abcd"), "origin": ORIGIN, "chunk_passages": 1}
    with pytest.raises(RuntimeError):
        exact.build(tmp_path / "index", Encoder(fail_at=2), **same)
    encoder = Encoder()
    exact.build(tmp_path / "index", encoder, **(same | change))
    assert encoder.asked[0] == 0


def test_a_chunk_of_the_wrong_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"chunks\(0, 2\) returned 1 passages; expected 2"):
        exact.build(tmp_path / "index", lambda start, stop: Encoder()(start, stop - 1), list("ab"), ORIGIN)


def test_a_killed_build_goes_on_too(tmp_path):
    program = textwrap.dedent(f"""
        import os, signal, sys
        import numpy as np
        from xmlib.index import exact
        from xmlib.index.vectors import TokenVectors

        def chunks(start, stop):
            print(start, flush=True)
            if start == int(sys.argv[1]):
                os.kill(os.getpid(), signal.SIGKILL)
            return TokenVectors.from_lengths(np.full((1, 2), start, np.float32), np.array([1]))

        exact.build({str(tmp_path / "index")!r}, chunks, list("abcd"), {ORIGIN!r}, chunk_passages=1)
    """)
    run = [sys.executable, "-c", program]
    killed = subprocess.run([*run, "2"], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL
    assert killed.stdout.split() == ["0", "1", "2"]
    finished = subprocess.run([*run, "-1"], capture_output=True, text=True, check=True)
    assert finished.stdout.split() == ["2", "3"]
    assert exact.open(tmp_path / "index").vectors.vectors_TH[:, 0].tolist() == [0, 1, 2, 3]
