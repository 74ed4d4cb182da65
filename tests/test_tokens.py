"""What the encoder sees: the clean layout, the released checkpoint's, and three ways to leave punctuation out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import toys
from xmlib.tokens import (
    RELEASED,
    SINGLE_VECTOR,
    Layout,
    concatenate,
    punctuation_ids,
    tokenize_passages,
    tokenize_queries,
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
