"""What changes of an index leave behind: segments and passages marked as gone, which no search may be able to tell."""

import itertools
import json
import shutil

import numpy as np
import pytest
from test_plaid import ORIGIN, lists_are_used, names, realistic  # noqa: F401, the fixture is for every test here

from xmlib.index import plaid, store
from xmlib.index.store import IndexFolderError

KINDS = {"2 bits": {"rescore": False}, "rescored": {"rescore": True}, "listed": {"rescore": False, "lists": True}}


@pytest.fixture(scope="module")
def case():
    return realistic(B=200, A=20)


@pytest.fixture(scope="module", params=KINDS)
def built(request, case, tmp_path_factory):
    """An index of the first 120 passages. Not to be changed."""
    folder = tmp_path_factory.mktemp("built") / "index"
    plaid.build(folder, case[0].slice, names(120), ORIGIN, n_centroids=256, **KINDS[request.param])
    return folder


@pytest.fixture
def copy(built, tmp_path):
    shutil.copytree(built, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def small(monkeypatch):
    """Segments of any size are left as they are."""
    monkeypatch.setattr(plaid, "SMALL", 0)


def sizes(index):
    return [len(segment) for segment in index.segments]


@pytest.mark.parametrize("seed", range(3))
def test_an_index_of_many_segments_answers_as_one_written_anew(built, case, tmp_path, monkeypatch, seed):
    vectors, q_ASH, q_mask_AS = case
    rng, most, in_between = np.random.default_rng(seed), 1, 0
    indexes = {}
    for small in (0, 10**9):  # leave what there is; write all anew
        shutil.copytree(built, tmp_path / str(small))
        indexes[small] = plaid.open(tmp_path / str(small))
    for step in range(12):
        one = indexes[0]
        if rng.random() < 0.5:
            start = rng.integers(120, 190)
            n = rng.integers(1, 10)
            new = [f"{step}-{i}" for i in range(n)]
            change = lambda index, new=new, start=start, n=n: index.add(new, vectors.slice(start, start + n))  # noqa: E731
        else:
            out = rng.choice(one.ids, rng.integers(1, 12), replace=False).tolist()
            change = lambda index, out=out: index.remove(out)  # noqa: E731
        for small, index in indexes.items():
            monkeypatch.setattr(plaid, "SMALL", small)
            change(index)
        assert one.ids == indexes[10**9].ids and len(indexes[10**9].segments) == 1
        most = max(most, len(one.segments))
        in_between += any(len(segment.gone_N) for segment in one.segments)
        for opened in (one, plaid.open(tmp_path / "0")):
            for k, effort, threads in ((10, 2, 1), (200, 1, 1), (10, 4, 3)):
                chosen = dict(k=k, effort=effort, threads=threads)
                few = slice(0, 2 if threads > 1 else None)  # so that threads share a query
                ours = opened.search(q_ASH[few], q_mask_AS[few], **chosen)
                theirs = indexes[10**9].search(q_ASH[few], q_mask_AS[few], **chosen)
                for mine, yours in zip(ours, theirs, strict=True):
                    np.testing.assert_array_equal(mine, yours)
    ours, theirs = (index.decoded for index in indexes.values())
    np.testing.assert_allclose(ours.vectors_TH, theirs.vectors_TH, atol=1e-6)
    np.testing.assert_array_equal(ours.offsets_B1, theirs.offsets_B1)
    store.verify(tmp_path / "0")
    assert most > 2 and in_between > 2


def test_a_change_writes_about_as_much_as_it_changes(copy, case, small):
    before = {path.name: path.stat() for path in copy.iterdir()}
    index = plaid.open(copy)
    index.add(["new"], case[0].slice(150, 151))
    index.remove(["p7"])
    after = {path.name: path.stat() for path in copy.iterdir()}
    assert set(before) - set(after) == {"ids.txt"}
    for name in set(before) & set(after) - {"meta.json"}:
        assert after[name].st_ino == before[name].st_ino and after[name].st_mtime_ns == before[name].st_mtime_ns, name
    fresh = sum(after[name].st_size for name in set(after) - set(before))
    assert fresh < 0.2 * sum(file.st_size for file in after.values())
    assert sizes(index) == [120, 1] and index.segments[0].gone_N.tolist() == [7]


def test_one_passage_after_the_other_makes_few_segments(copy, case, small):
    index = plaid.open(copy)
    for i in range(60):
        index.add([f"new{i}"], case[0].slice(120 + i, 121 + i))
        assert all(one > 2 * other for one, other in itertools.pairwise(sizes(index)))
    assert index.ids == [*names(120), *(f"new{i}" for i in range(60))]
    assert sum(sizes(index)) == 180 and len(sizes(index)) <= 1 + np.log2(180)


def test_small_segments_are_joined(copy, case, monkeypatch):
    monkeypatch.setattr(plaid, "SMALL", 50)
    index = plaid.open(copy)
    for i in range(50):
        index.add([f"new{i}"], case[0].slice(120 + i, 121 + i))
    assert sizes(index) == [120, 50]
    index.remove(["new3"])
    assert sizes(index) == [120, 49]


def test_the_space_of_many_removed_passages_is_given_back(copy, case, small):
    index = plaid.open(copy)
    index.add([f"new{i}" for i in range(40)], case[0].slice(120, 160))
    tokens = index.size_report()["tokens"]
    index.remove(names(30))
    assert sizes(index) == [120, 40] and index.size_report()["tokens"] == tokens
    index.remove(["p50"])
    assert sizes(index) == [89, 40]
    lengths_B = np.delete(case[0].lengths_B[:160], [*range(30), 50])
    assert index.size_report()["tokens"] == lengths_B.sum()
    index.remove([f"new{i}" for i in range(40)])
    assert sizes(index) == [89]
    report = index.size_report()
    assert report["total_bytes"] == sum(path.stat().st_size for path in copy.iterdir())
    parts = ("token", "list", "rescore", "codec", "length", "id", "meta")
    assert report["total_bytes"] == sum(report[f"{part}_bytes"] for part in parts)


def test_what_was_taken_out_can_be_added_again(copy, case, small):
    index = plaid.open(copy)
    index.remove(["p7"])
    index.add(["p7"], case[0].slice(7, 8))
    assert index.ids == [*names(7), *names(120)[8:], "p7"]
    own_words = case[0].slice(7, 8).vectors_TH[None, :20]
    assert index.search(own_words, np.ones((1, 20), bool), 1)[1].tolist() == [[119]]


def test_two_who_change_the_same_index_do_not_undo_each_other(copy, case):
    one, other = plaid.open(copy), plaid.open(copy)
    one.add(["ours"], case[0].slice(120, 121))
    with pytest.raises(IndexFolderError, match="was changed since it was opened; open it again"):
        other.add(["theirs"], case[0].slice(121, 122))
    store.verify(copy)
    again = plaid.open(copy)
    again.add(["theirs"], case[0].slice(121, 122))
    assert plaid.open(copy).ids == [*names(120), "ours", "theirs"]


def test_an_index_from_before_there_were_segments_is_read_and_changed(copy, case, small):
    meta = json.loads((copy / "meta.json").read_text()) | {"version": 1}
    (copy / "meta.json").write_text(json.dumps(meta | {"sha256": store._meta_sha256(meta)}))
    index = plaid.open(copy)
    index.add(["new"], case[0].slice(150, 151))
    assert json.loads((copy / "meta.json").read_text())["version"] == store.VERSION  # which older code refuses
    assert plaid.open(copy).ids == [*names(120), "new"]
