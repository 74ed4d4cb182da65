"""The two retrievers: unit vectors, batching that changes nothing, folders that open as they were saved, routing."""

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, XmodModel

from tests import toys
from xmlib.models import ColbertXM, DprXM, compute_dtype
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
    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == toys.tokenizer()(text)["input_ids"]


def test_opening_the_wrong_folder_says_so(colbert, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model folder of xmlib: it has no xmlib\.json"):
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
    monkeypatch.setattr("xmlib.models.compute_dtype", lambda device: torch.bfloat16)
    half_q_ASH, _ = colbert.encode_queries(texts, "en")
    half = colbert.encode_passages(texts, "en")
    assert not np.array_equal(half_q_ASH, q_ASH)

    def best(q, d):
        return np.stack([maxsim_packed(q_SH, d.vectors_TH, d.offsets_B1) for q_SH in q]).argmax(axis=1)

    assert (best(q_ASH, full) == best(half_q_ASH, half)).all()


def test_the_cpu_computes_in_bfloat16_only_where_it_has_units_for_it(monkeypatch):
    for amx, avx, expected in (
        (True, False, torch.bfloat16),
        (False, True, torch.bfloat16),
        (False, False, torch.float32),
    ):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx)
        assert compute_dtype("cpu") == expected


def test_maxsim_of_padded_and_of_packed_vectors_agree(colbert):
    q_ASH, q_mask_AS = colbert.encode_queries(TEXTS, "en")
    found = colbert.encode_passages(TEXTS, "en")
    packed = np.stack([maxsim_packed(q_SH, found.vectors_TH, found.offsets_B1) for q_SH in q_ASH])
    parts = [torch.from_numpy(found.slice(b, b + 1).vectors_TH.astype(np.float32)) for b in range(len(TEXTS))]
    d_BTH = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
    d_mask_BT = torch.arange(d_BTH.shape[1]) < torch.from_numpy(found.lengths_B)[:, None]
    padded = maxsim(torch.from_numpy(q_ASH), d_BTH, torch.from_numpy(q_mask_AS), d_mask_BT)
    np.testing.assert_allclose(packed, padded.numpy(), atol=1e-4)
