"""The two retrievers: unit vectors, batching that changes nothing, folders that open as they were saved, routing."""

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, XLMRobertaConfig, XLMRobertaModel, XmodConfig, XmodModel

from tests import toys
from xmlib.models import BiEncoder, Colbert, ColbertXM, DprXM, batches, compute_dtype
from xmlib.scoring import maxsim, maxsim_packed
from xmlib.tokens import Layout, tokenize_passages

TEXTS = ["the old bridge is north .", "hello", "where is the river , the city , the mill and the tower ?", "new"]
LAYOUT = Layout(query_length=12, passage_length=32)


@pytest.fixture
def colbert():
    return toys.model(ColbertXM, layout=LAYOUT, dim=16)


def test_passages_are_unit_vectors_of_the_scored_tokens(colbert):
    found = colbert.encode_passages(TEXTS, "en")
    tokens = tokenize_passages(toys.tokenizer(), TEXTS, LAYOUT)
    assert found.vectors_TH.dtype == np.float16 and len(found) == len(TEXTS)
    assert len(found.vectors_TH) == tokens.scored_T.sum() < len(tokens.ids_T)  # punctuation is left out
    np.testing.assert_array_equal(found.types_T, tokens.ids_T[tokens.scored_T])
    np.testing.assert_allclose(np.linalg.norm(found.vectors_TH.astype(np.float32), axis=1), 1, atol=2e-3)


def test_encoding_together_equals_one_at_a_time(colbert):
    together = colbert.encode_passages(TEXTS, "sw", batch_tokens=24)
    for i, text in enumerate(TEXTS):
        alone = colbert.encode_passages([text], "sw")
        np.testing.assert_allclose(together.slice(i, i + 1).vectors_TH, alone.vectors_TH, atol=2e-3)
    q_ASH, q_mask_AS = colbert.encode_queries(TEXTS, "sw", batch_tokens=24)
    assert q_ASH.shape == (4, 12, 16) and q_mask_AS.all()
    np.testing.assert_allclose(q_ASH[2], colbert.encode_queries(TEXTS[2:3], "sw")[0][0], atol=1e-5)


def test_queries_without_augmentation_keep_their_length():
    model = toys.model(ColbertXM, layout=Layout(query_length=12, augment_queries=False))
    q_ASH, q_mask_AS = model.encode_queries(["hello", "hello world"], "en")
    assert q_mask_AS.sum(axis=1).tolist() == [4, 5]
    assert not q_ASH[~q_mask_AS].any()


def test_a_text_finds_itself_even_before_training():
    model = toys.model(ColbertXM, layout=Layout(augment_queries=False))  # without [M], which means nothing yet
    q_ASH, q_mask_AS = model.encode_queries(TEXTS, "en")
    found = model.encode_passages(TEXTS, "en")
    scores = [maxsim_packed(q[m], found.vectors_TH, found.offsets_B1) for q, m in zip(q_ASH, q_mask_AS, strict=True)]
    scores = np.stack(scores) / q_mask_AS.sum(axis=1, keepdims=True)
    assert scores[:3, :3].argmax(axis=1).tolist() == [0, 1, 2]


def test_the_language_decides_the_vectors_and_unknown_ones_raise(colbert):
    english, swahili = (colbert.encode_passages(TEXTS, lang).vectors_TH for lang in ("en", "sw"))
    assert not np.allclose(english, swahili, atol=1e-2)
    with pytest.raises(ValueError, match="no language adapter for 'fi'; this model has: ar, en, sw"):
        colbert.encode_queries(TEXTS, "fi")


@pytest.mark.parametrize("pooling", ["mean", "max", "cls"])
def test_pooling_equals_its_definition(pooling):
    model = toys.model(DprXM, pooling=pooling)
    tokens = tokenize_passages(toys.tokenizer(), TEXTS, model.layout)
    with torch.no_grad():
        hidden = model.hidden(tokens, "en")
    rows = []
    for first, last in zip(tokens.offsets_B1[:-1], tokens.offsets_B1[1:], strict=True):
        text = hidden[first:last]
        row = {"mean": text.mean(0), "max": text.amax(0), "cls": text[0]}[pooling]
        rows.append(row / row.norm())
    np.testing.assert_allclose(model.encode_passages(TEXTS, "en"), torch.stack(rows).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    "kind, arguments", [(ColbertXM, {"dim": 24, "layout": LAYOUT}), (DprXM, {"pooling": "max"})], ids=["colbert", "dpr"]
)
def test_a_saved_folder_opens_as_it_was(kind, arguments, tmp_path):
    model = toys.model(kind, record={"steps": 3}, **arguments)
    model.save(tmp_path / "model")
    opened = kind.open(tmp_path / "model")
    assert opened.layout == model.layout and opened.record == {"steps": 3} and opened.sizes == model.sizes
    assert not opened.training
    state = opened.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    one, two = (m.encode_queries(TEXTS, "ar") for m in (model, opened))
    np.testing.assert_array_equal(one[0], two[0])


def test_the_encoder_in_the_folder_opens_with_transformers_alone(colbert, tmp_path):
    colbert.save(tmp_path)
    encoder = XmodModel.from_pretrained(tmp_path, add_pooling_layer=False)
    for name, tensor in colbert.roberta.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], tensor), name
    text = "Ｈello the red mill ."  # full width: the normaliser is saved too
    ids = AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"]
    assert ids == [0, *toys.tokenizer()(text)["input_ids"], 2]  # between <s> and </s>, as the encoder sees it


def test_opening_the_wrong_folder_says_so(colbert, tmp_path):
    with pytest.raises(ValueError, match=r"is no checkpoint that is known here. It has no file; known are xmlib\.json"):
        ColbertXM.open(tmp_path)
    colbert.save(tmp_path)
    with pytest.raises(ValueError, match="holds a colbert-xm model, not dpr-xm"):
        DprXM.open(tmp_path)
    with pytest.raises(ValueError, match="pooling is 'sum'; have: mean, max, cls"):
        toys.model(DprXM, pooling="sum")


def test_bfloat16_keeps_the_ranking(colbert, monkeypatch):
    texts = [f"the {a} {b} is {c} ." for a in ("red", "old", "blue") for b in ("mill", "bank") for c in ("north", "a")]
    q_ASH, _ = colbert.encode_queries(texts, "en")
    full = colbert.encode_passages(texts, "en")
    monkeypatch.setenv("XMLIB_PRECISION", "bfloat16")
    half_q_ASH, _ = colbert.encode_queries(texts, "en")
    half = colbert.encode_passages(texts, "en")
    assert not np.array_equal(half_q_ASH, q_ASH)

    def best(q, d):
        return np.stack([maxsim_packed(q_SH, d.vectors_TH, d.offsets_B1) for q_SH in q]).argmax(axis=1)

    assert (best(q_ASH, full) == best(half_q_ASH, half)).all()


@pytest.mark.parametrize("kind", [ColbertXM, DprXM])
@pytest.mark.parametrize("around", ["float32", "bfloat16"])
def test_a_twin_in_int8_encodes_nearly_the_same_and_leaves_the_model_as_it_is(kind, around, monkeypatch):
    monkeypatch.setenv("XMLIB_PRECISION", around)
    model = toys.model(kind, layout=LAYOUT)
    vectors = [getattr(m.encode_passages(TEXTS, "sw"), "vectors_TH", m.encode_passages(TEXTS, "sw")) for m in
               (model, model.in_int8(), model)]  # fmt: skip
    before, lowered, after = (np.asarray(v, dtype=np.float32) for v in vectors)
    assert (before * lowered).sum(1).min() > 0.99
    assert not np.array_equal(before, lowered) and np.array_equal(before, after)


def test_the_cpu_computes_in_bfloat16_where_that_pays_or_it_was_told_to(monkeypatch):
    wide, narrow = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    wide.config, narrow.config = XmodConfig(hidden_size=768), XmodConfig(hidden_size=96)
    for amx, avx, told, model, expected in (
        (True, False, "", wide, torch.bfloat16),
        (False, True, "", wide, torch.bfloat16),
        (True, True, "", narrow, torch.float32),
        (False, False, "", wide, torch.float32),
        (True, True, "float32", wide, torch.float32),
        (False, False, "bfloat16", narrow, torch.bfloat16),
    ):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx)
        monkeypatch.setenv("XMLIB_PRECISION", told)
        assert compute_dtype(model) == expected
    monkeypatch.setenv("XMLIB_PRECISION", "half")
    with pytest.raises(ValueError, match="XMLIB_PRECISION is 'half'; have: float32, bfloat16"):
        compute_dtype(wide)


def test_maxsim_of_padded_and_of_packed_vectors_agree(colbert):
    q_ASH, q_mask_AS = colbert.encode_queries(TEXTS, "en")
    found = colbert.encode_passages(TEXTS, "en")
    packed = np.stack([maxsim_packed(q_SH, found.vectors_TH, found.offsets_B1) for q_SH in q_ASH])
    parts = [torch.from_numpy(found.slice(b, b + 1).vectors_TH.astype(np.float32)) for b in range(len(TEXTS))]
    d_BTH = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
    d_mask_BT = torch.arange(d_BTH.shape[1]) < torch.from_numpy(found.lengths_B)[:, None]
    padded = maxsim(torch.from_numpy(q_ASH), d_BTH, torch.from_numpy(q_mask_AS), d_mask_BT)
    np.testing.assert_allclose(packed, padded.numpy(), atol=1e-4)


# --- any other encoder


def plain(cls, **arguments):
    torch.manual_seed(0)
    size = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, initializer_range=0.2)
    config = XLMRobertaConfig(vocab_size=len(toys.tokenizer()), max_position_embeddings=80, **size)
    return cls(XLMRobertaModel(config, add_pooling_layer=False).eval(), toys.tokenizer(), **arguments).eval()


def alone(model, rows):
    """Hidden states of each row of token ids by itself, through transformers."""
    with torch.no_grad():
        return [model.encoder(input_ids=torch.tensor([row])).last_hidden_state[0] for row in rows]


@pytest.mark.parametrize("pooling", ["mean", "max", "cls"])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_any_encoder_gives_one_vector_by_its_own_recipe(pooling, similarity):
    recipe = dict(pooling=pooling, similarity=similarity, query_prefix="where ", passage_prefix="the ", length=12)
    model = plain(BiEncoder, **recipe)
    for encode, prefix in ((model.encode_queries, "where "), (model.encode_passages, "the ")):
        rows = [toys.tokenizer()(prefix + text, truncation=True, max_length=12)["input_ids"] for text in TEXTS]
        pooled = [{"mean": h.mean(0), "max": h.amax(0), "cls": h[0]}[pooling] for h in alone(model, rows)]
        expected = [(v / v.norm() if similarity == "cosine" else v).numpy() for v in pooled]
        np.testing.assert_allclose(encode(TEXTS, "fi"), expected, atol=1e-5)
        np.testing.assert_allclose(encode(TEXTS, "fi", batch_tokens=14), expected, atol=1e-5)
    assert model.encode_passages([], "en").shape == (0, 32)


def test_any_encoder_gives_token_vectors(tmp_path):
    model = plain(Colbert, dim=16, query_length=12, passage_length=32, attend_to_mask_tokens=False)
    tokens = tokenize_passages(toys.tokenizer(), TEXTS, model.layout)
    rows = [tokens.take([i]) for i in range(len(TEXTS))]
    hidden = alone(model, [row.ids_T.tolist() for row in rows])
    vectors = [torch.nn.functional.normalize(h @ model.linear.weight.data.T, dim=-1) for h in hidden]
    expected = torch.cat([v[torch.from_numpy(row.scored_T)] for v, row in zip(vectors, rows, strict=True)])
    found = model.encode_passages(TEXTS, "en", batch_tokens=24)
    np.testing.assert_allclose(found.vectors_TH, expected.numpy(), atol=2e-3)

    q_ASH, q_mask_AS = model.encode_queries(TEXTS, "en")
    assert q_mask_AS.all() and q_ASH.shape == (4, 12, 16)
    short = plain(Colbert, dim=16, query_length=12, passage_length=32, augment_queries=False)
    s_ASH, s_mask_AS = short.encode_queries(TEXTS, "en")
    for q_SH, s_SH, real_S in zip(q_ASH, s_ASH, s_mask_AS, strict=True):  # unattended [M] change nothing
        np.testing.assert_allclose(q_SH[: real_S.sum()], s_SH[real_S], atol=1e-5)

    model.save(tmp_path)
    opened = Colbert.open(tmp_path, query_length=12, passage_length=32, attend_to_mask_tokens=False)
    np.testing.assert_array_equal(opened.encode_queries(TEXTS, "en")[0], q_ASH)
    bare = XLMRobertaModel.from_pretrained(tmp_path, add_pooling_layer=False)
    assert all(torch.equal(tensor, bare.state_dict()[name]) for name, tensor in model.encoder.state_dict().items())


def test_a_folder_without_the_projection_is_no_colbert(tmp_path):
    plain(BiEncoder).save(tmp_path)
    with pytest.raises(ValueError, match="holds a bi-encoder model, not colbert"):
        Colbert.open(tmp_path)
    assert BiEncoder.open(tmp_path).encode_queries(["hello"], "en").shape == (1, 32)
    with pytest.raises(ValueError, match="similarity is 'l2'; have: cosine, dot"):
        BiEncoder.open(tmp_path, similarity="l2")


def test_batches_are_bounded_by_padded_tokens_and_hold_every_text_once():
    lengths_B = np.array([5, 60, 7, 30, 5, 9, 31])
    found = list(batches(lengths_B, 40))
    assert sorted(np.concatenate(found).tolist()) == list(range(7))
    assert all(len(batch) == 1 or len(batch) * lengths_B[batch].max() <= 40 for batch in found)
    assert list(batches(np.array([], dtype=int), 40)) == []
