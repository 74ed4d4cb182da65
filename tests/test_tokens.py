"""What the encoder sees: the clean layout, the released checkpoint's, and three ways to leave punctuation out."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import toys
from xmlib.tokens import (
    RELEASED,
    SINGLE_VECTOR,
    Layout,
    Pieces,
    concatenate,
    open_pieces,
    pieces,
    punctuation_ids,
    tokenize_passages,
    tokenize_queries,
    tokenizer_identity,
    write_pieces,
)


@pytest.fixture
def tokenizer():
    return toys.tokenizer()


def shown(tokenizer, tokens, text=0):
    ids = tokens.ids_T[tokens.offsets_B1[text] : tokens.offsets_B1[text + 1]]
    return tokenizer.convert_ids_to_tokens(ids.tolist())


def test_a_query_is_filled_with_mask_tokens_up_to_its_length(tokenizer):
    tokens = tokenize_queries(tokenizer, ["hello world", "a"], Layout(query_length=10))
    assert tokens.lengths_B.tolist() == [10, 10]
    assert shown(tokenizer, tokens) == ["<s>", "[Q]", "▁hello", "▁world", "</s>"] + ["<mask>"] * 5
    assert tokens.scored_T.all() and tokens.attended_T is None


def test_a_passage_has_its_own_marker_and_its_own_length(tokenizer):
    tokens = tokenize_passages(tokenizer, ["hello world", "hello"], Layout())
    assert shown(tokenizer, tokens) == ["<s>", "[P]", "▁hello", "▁world", "</s>"]
    assert tokens.lengths_B.tolist() == [5, 4]


def test_long_texts_are_cut_and_keep_their_end_marker(tokenizer):
    layout = Layout(query_length=8, passage_length=9)
    for tokens, length in (
        (tokenize_queries(tokenizer, ["hello " * 40], layout), 8),
        (tokenize_passages(tokenizer, ["hello " * 40], layout), 9),
    ):
        assert tokens.lengths_B.tolist() == [length]
        assert shown(tokenizer, tokens)[-1] == "</s>"


def test_the_released_layout_has_unknown_markers_followed_by_a_dot(tokenizer):
    query = shown(tokenizer, tokenize_queries(tokenizer, ["hello"], RELEASED))
    passage = shown(tokenizer, tokenize_passages(tokenizer, ["hello"], RELEASED))
    assert query[:5] == ["<s>", "<unk>", ".", "▁hello", "</s>"] and query[5:] == ["<mask>"] * 27
    assert passage == ["<s>", "<unk>", ".", "▁hello", "</s>"]  # the same marker for both


def test_mask_tokens_can_be_hidden_from_the_others(tokenizer):
    tokens = tokenize_queries(tokenizer, ["hello", "hello world"], Layout(query_length=8, attend_to_mask_tokens=False))
    assert tokens.attended_T.reshape(2, 8).sum(axis=1).tolist() == [4, 5]


def test_the_single_vector_layout_is_the_plain_text(tokenizer):
    assert shown(tokenizer, tokenize_queries(tokenizer, ["hello"], SINGLE_VECTOR)) == ["<s>", "▁hello", "</s>"]


def test_punctuation_of_any_script_leaves_the_passage_but_symbols_stay(tokenizer):
    skipped = {tokenizer.convert_ids_to_tokens(i) for i in punctuation_ids(tokenizer, "unicode")}
    assert {".", "▁.", "?", "。", "،", "▁"} <= skipped
    assert not skipped & {"$", "▁hello", "<s>", "</s>", "[P]", "<mask>", "<unk>"}
    tokens = tokenize_passages(tokenizer, ["hello . world"], Layout())
    hidden = [token for token, scored in zip(shown(tokenizer, tokens), tokens.scored_T, strict=True) if not scored]
    assert "".join(hidden).replace("▁", "") == "."


def test_colbert_and_pylate_leave_out_different_tokens(tokenizer):
    colbert, pylate = (punctuation_ids(tokenizer, kind) for kind in ("colbert", "pylate"))
    dot = tokenizer.convert_tokens_to_ids(".")
    assert dot in pylate and dot not in colbert
    assert tokenizer.encode("!", add_special_tokens=False)[0] in colbert
    assert punctuation_ids(tokenizer, "none") == set()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=6))
def test_taking_texts_equals_tokenizing_them(texts):
    tokenizer = toys.tokenizer()
    all_texts = ["hello", "hello world hello", "a . b", ""]
    whole = tokenize_passages(tokenizer, all_texts, Layout())
    taken, fresh = whole.take(texts), tokenize_passages(tokenizer, [all_texts[i] for i in texts], Layout())
    assert np.array_equal(taken.ids_T, fresh.ids_T) and np.array_equal(taken.offsets_B1, fresh.offsets_B1)
    assert np.array_equal(taken.scored_T, fresh.scored_T)


def test_streams_concatenate(tokenizer):
    queries = tokenize_queries(tokenizer, ["hello"], Layout(query_length=8, attend_to_mask_tokens=False))
    passages = tokenize_passages(tokenizer, ["hello world ."], Layout())
    both = concatenate(queries, passages)
    assert len(both) == 2 and both.lengths_B.tolist() == [8, int(passages.lengths_B[0])]
    assert both.attended_T.sum() == 4 + passages.lengths_B[0]


def test_bad_values_raise_with_the_choices():
    with pytest.raises(ValueError, match="mask_punctuation is 'some'; have: none, unicode, colbert, pylate"):
        Layout(mask_punctuation="some")
    with pytest.raises(ValueError, match="query_length is 3"):
        Layout(query_length=3)


# --- pieces

TEXTS = ["hello world", "", "the old bridge , north .", "a", "where is the river ? " * 9]


def same(one: Pieces, two: Pieces) -> bool:
    return np.array_equal(one.ids_T, two.ids_T) and np.array_equal(one.offsets_B1, two.offsets_B1)


def test_pieces_are_what_the_tokenizer_returns_whatever_it_was_last_called_with(tokenizer):
    tokenizer(TEXTS, truncation=True, max_length=4, padding=True)
    cut = pieces(tokenizer, TEXTS)
    rows = [cut.ids_T[first:last].tolist() for first, last in zip(cut.offsets_B1, cut.offsets_B1[1:], strict=False)]
    assert rows == tokenizer(TEXTS, add_special_tokens=False)["input_ids"]
    assert len(cut) == len(TEXTS)
    assert len(pieces(tokenizer, [])) == 0


@pytest.mark.parametrize("layout", [Layout(query_length=12, passage_length=20), RELEASED, SINGLE_VECTOR])
def test_every_layout_makes_the_same_of_pieces_as_of_texts(tokenizer, layout):
    cut = pieces(tokenizer, TEXTS)
    for tokenize in (tokenize_queries, tokenize_passages):
        one, two = tokenize(tokenizer, TEXTS, layout), tokenize(tokenizer, cut, layout)
        assert np.array_equal(one.ids_T, two.ids_T) and np.array_equal(one.scored_T, two.scored_T)
        assert np.array_equal(one.offsets_B1, two.offsets_B1)
        one, two = tokenize(tokenizer, [TEXTS[2], TEXTS[0]], layout), tokenize(tokenizer, cut[np.array([2, 0])], layout)
        assert np.array_equal(one.ids_T, two.ids_T)


def test_slices_of_pieces_are_those_of_the_texts(tokenizer):
    cut = pieces(tokenizer, TEXTS)
    assert same(cut[-1], pieces(tokenizer, TEXTS[-1:]))
    assert same(cut[np.array([2, 0])], pieces(tokenizer, [TEXTS[2], TEXTS[0]]))
    assert [text.ids_T.tolist() for text in cut] == tokenizer(TEXTS, add_special_tokens=False)["input_ids"]
    for texts in (slice(1, 4), slice(3, None), slice(0, 0), slice(4, 2), slice(None, None, 2)):
        assert same(cut[texts], pieces(tokenizer, TEXTS[texts]))


def test_a_file_of_pieces_opens_as_they_were_and_goes_to_another_process_by_name(tokenizer, tmp_path):
    write_pieces(tmp_path, tokenizer, TEXTS, some=2)
    opened = open_pieces(tmp_path)
    assert same(opened, pieces(tokenizer, TEXTS))
    assert isinstance(opened.ids_T, np.memmap) and opened.ids_T.itemsize == 2
    carried = pickle.dumps(opened)
    assert len(carried) < 500 and same(pickle.loads(carried), opened)
    assert same(pickle.loads(pickle.dumps(opened[1:3])), opened[1:3])


@pytest.mark.parametrize("lost", ["half of an offset", "half of an id", "ids that offsets point at"])
def test_a_file_of_pieces_that_was_cut_off_is_gone_on_with(tokenizer, tmp_path, lost):
    class Killed(list):
        def __getitem__(self, texts):
            if texts.start >= 4:
                raise KeyboardInterrupt
            return super().__getitem__(texts)

    with pytest.raises(KeyboardInterrupt):
        write_pieces(tmp_path, tokenizer, Killed(TEXTS), some=2)
    if lost == "half of an offset":
        (tmp_path / "offsets").write_bytes((tmp_path / "offsets").read_bytes() + b"half")
    elif lost == "half of an id":
        (tmp_path / "ids.u2").write_bytes((tmp_path / "ids.u2").read_bytes() + b"h")
    else:
        (tmp_path / "ids.u2").write_bytes((tmp_path / "ids.u2").read_bytes()[:7])
    write_pieces(tmp_path, tokenizer, TEXTS, some=2)
    assert same(open_pieces(tmp_path), pieces(tokenizer, TEXTS))
    write_pieces(tmp_path, tokenizer, TEXTS, some=2)  # there is nothing left to do
    assert same(open_pieces(tmp_path), pieces(tokenizer, TEXTS))


def test_a_damaged_file_of_pieces_says_so(tokenizer, tmp_path):
    write_pieces(tmp_path, tokenizer, TEXTS)
    (tmp_path / "ids.u2").write_bytes(b"xx")
    with pytest.raises(ValueError, match=r"ids\.u2 is damaged: 2 bytes for \d+ tokens of 2"):
        open_pieces(tmp_path)


def test_a_tokenizer_is_told_from_another_by_what_it_does_and_not_by_its_last_call(tokenizer):
    before = tokenizer_identity(tokenizer)
    tokenizer(TEXTS, truncation=True, max_length=4)
    assert tokenizer_identity(tokenizer) == before
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["▁new_word"])
    assert tokenizer_identity(other) != before
