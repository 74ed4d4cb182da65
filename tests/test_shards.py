"""Shards: built apart, searched as one; what is missing or foreign is named."""

import shutil

import numpy as np
import pytest
from test_plaid import ORIGIN, names, overlap, realistic

from xmlib.index import exact, plaid, shards
from xmlib.index.store import IndexFolderError


@pytest.fixture(scope="module")
def case():
    return realistic(B=150, A=20, group=10)


@pytest.fixture(scope="module")
def three(case, tmp_path_factory):
    """In three shards, built out of order. Not to be changed."""
    folder = tmp_path_factory.mktemp("shards") / "index"
    for number in (2, 0, 1):
        shards.build(folder, number, 3, case[0].slice, names(150), ORIGIN)
    return folder


def test_shards_find_what_exact_search_finds_in_the_whole_collection(case, three):
    vectors, q_ASH, q_mask_AS = case
    index = shards.open(three)
    assert index.ids == names(150)
    scores, positions = index.search(q_ASH, q_mask_AS, 10)
    wanted_scores, wanted = exact.search(vectors, q_ASH, q_mask_AS, 10)
    assert overlap(positions, wanted) >= 0.98
    np.testing.assert_allclose(scores, wanted_scores, atol=0.1)
    assert {position // 50 for position in positions.ravel()} == {0, 1, 2}


def test_one_shard_is_an_ordinary_index(case, tmp_path):
    vectors, q_ASH, q_mask_AS = case
    shards.build(tmp_path / "one", 0, 1, vectors.slice, names(150), ORIGIN)
    plaid.build(tmp_path / "plain", vectors.slice, names(150), ORIGIN)
    found = shards.open(tmp_path / "one").search(q_ASH, q_mask_AS, 10)
    for ours, theirs in zip(found, plaid.open(tmp_path / "plain").search(q_ASH, q_mask_AS, 10), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_rows_end_in_nothing_where_all_shards_together_have_too_little(case, three):
    _, q_ASH, q_mask_AS = case
    scores, positions = shards.open(three).search(q_ASH[:2], q_mask_AS[:2], 160)
    assert (np.sort(positions[:, :150], axis=1) == np.arange(150)).all()
    assert (positions[:, 150:] == -1).all() and np.isneginf(scores[:, 150:]).all()


def test_a_missing_shard_is_named(three, tmp_path):
    shutil.copytree(three, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "shard-0001-of-0003")
    with pytest.raises(IndexFolderError, match="shard-0001-of-0003 is missing"):
        shards.open(tmp_path / "copy")
    with pytest.raises(IndexFolderError, match="holds no shard"):
        shards.open(tmp_path)


def test_a_shard_of_another_division_or_model_is_refused(case, three, tmp_path):
    vectors = case[0]
    shutil.copytree(three, tmp_path / "copy")
    shards.build(tmp_path / "copy", 1, 2, vectors.slice, names(150), ORIGIN)
    with pytest.raises(IndexFolderError, match="shard-0001-of-0002 is of another division"):
        shards.open(tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "shard-0001-of-0002")
    shutil.rmtree(tmp_path / "copy" / "shard-0001-of-0003")
    shards.build(tmp_path / "copy", 1, 3, vectors.slice, names(150), ORIGIN | {"model": "other"})
    with pytest.raises(IndexFolderError, match="model 'other'; expected 'm'"):
        shards.open(tmp_path / "copy")


def test_numbers_that_make_no_shard_are_refused(case, tmp_path):
    with pytest.raises(ValueError, match="shard 3 of 3"):
        shards.build(tmp_path, 3, 3, case[0].slice, names(150), ORIGIN)
