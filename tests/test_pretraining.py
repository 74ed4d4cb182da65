"""Masked-LM: what is masked, what is an example, and that a tiny X-MOD learns every language's adapter."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, XmodForMaskedLM

from tests import toys
from xmlib import pretraining
from xmlib.data.sources import open_collection
from xmlib.models import ColbertXM
from xmlib.training import Recipe

TEXTS = {
    "en": ["the old bridge is north of the river"] * 8 + ["the new tower is south of the city"] * 8,
    "sw": ["daraja la zamani liko kaskazini mwa mto"] * 8 + ["mnara mpya uko kusini mwa mji"] * 8,
}


@given(st.integers(0, 2**32 - 1))
def test_masking_touches_only_the_chosen_and_never_a_marker(seed):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 50, size=400)
    inputs, chosen = pretraining.mask_tokens(ids, mask_id=50, specials=6, rng=rng)
    others = np.setdiff1d(np.arange(400), chosen)
    assert (ids[chosen] >= 6).all() and np.array_equal(inputs[others], ids[others])
    assert ((inputs[chosen] >= 6) & (inputs[chosen] <= 50)).all()


@pytest.mark.parametrize("seed", range(20))
def test_a_short_text_has_a_token_to_predict_and_one_of_markers_is_refused(seed):
    rng = np.random.default_rng(seed)
    _, chosen = pretraining.mask_tokens(np.array([0, 30, 2]), mask_id=50, specials=6, rng=rng)
    assert chosen.tolist() == [1]
    with pytest.raises(ValueError, match="no token to hide among 2"):
        pretraining.mask_tokens(np.array([0, 2]), mask_id=50, specials=6, rng=rng)


def test_masking_follows_its_shares():
    ids = np.full(200_000, 30)
    inputs, chosen = pretraining.mask_tokens(ids, mask_id=50, specials=6, rng=np.random.default_rng(0))
    assert abs(len(chosen) / len(ids) - pretraining.MASKED) < 0.005
    assert abs((inputs[chosen] == 50).mean() - 0.8) < 0.01
    assert abs((inputs[chosen] == 30).mean() - 0.1) < 0.01


def test_texts_and_stretches_as_examples():
    tokenizer = toys.tokenizer()
    texts = ["the old mill", "where is the new bridge ?", "hello"]
    separate = pretraining.examples_of_texts(tokenizer, texts, 8)
    assert len(separate) == 3
    joined = pretraining.examples_of_stretches(tokenizer, texts, 8)
    assert joined.lengths_B.tolist() == [8, 6]  # ten pieces in stretches of six, <s> and </s> around each
    inside = joined.ids_T[~np.isin(joined.ids_T, [0, 2])]
    assert tokenizer.decode(inside) == "the old mill where is the new bridge ? hello"


def test_the_same_texts_make_the_same_tokenizer():
    """The trainer hands pieces of equal score, and rare characters, out of a hash table that is shuffled each time."""
    texts = [text for lang in ("en", "zh", "ko") for text in open_collection("sample", lang).passages.texts[:80]]
    one, two = (pretraining.train_tokenizer(texts, vocab_size=1500) for _ in range(2))
    assert one.get_vocab() == two.get_vocab()
    assert one.backend_tokenizer.to_str() == two.backend_tokenizer.to_str()
    assert one.tokenize("where is the 도시") == two.tokenize("where is the 도시")
    assert one.convert_ids_to_tokens([0, 5, len(one) - 1]) == ["<s>", "[P]", "<mask>"]
    assert one.unk_token_id not in one("where 中国 한국 is")["input_ids"]


def test_a_tiny_xmod_learns_and_becomes_a_retriever(tmp_path):
    tokenizer = pretraining.train_tokenizer((text for texts in TEXTS.values() for text in texts), vocab_size=80)
    assert [tokenizer.convert_ids_to_tokens(i) for i in range(6)] == ["<s>", "<pad>", "</s>", "<unk>", "[Q]", "[P]"]
    assert tokenizer.mask_token_id == len(tokenizer) - 1
    model = pretraining.new_xmod(tokenizer, ["en", "sw"], hidden=32, layers=2, heads=4, longest=40)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    log = pretraining.pretrain(
        model, tokenizer, TEXTS, Recipe(steps=60, batch_size=16, peak_rate=5e-3), progress=False
    ).run()
    assert np.mean([r["loss"] for r in log[-10:]]) < 0.6 * log[0]["loss"]
    for lang in ("en_XX", "sw_KE"):
        name = f"roberta.encoder.layer.1.output.adapter_modules.{lang}.dense1.weight"
        assert not torch.equal(model.state_dict()[name], before[name])

    pretraining.save(model, tokenizer, tmp_path)
    again = XmodForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(again.roberta.embeddings.word_embeddings.weight, model.roberta.embeddings.word_embeddings.weight)
    assert AutoTokenizer.from_pretrained(tmp_path)("the tower")["input_ids"] == tokenizer("the tower")["input_ids"]
    retriever = ColbertXM.from_encoder(tmp_path, dim=8).eval()
    assert torch.equal(
        retriever.roberta.encoder.layer[0].output.dense.weight, model.roberta.encoder.layer[0].output.dense.weight
    )
    assert len(retriever.encode_passages(["mnara mpya"], "sw")) == 1


def test_a_new_model_depends_on_its_seed_alone():
    one, two, other = (pretraining.new_xmod(toys.tokenizer(), ["en"], 32, 1, 4, seed=seed) for seed in (1, 1, 2))
    name = "roberta.encoder.layer.0.output.dense.weight"
    assert torch.equal(one.state_dict()[name], two.state_dict()[name])
    assert not torch.equal(one.state_dict()[name], other.state_dict()[name])


def test_lines_are_read_plain_or_gzipped(tmp_path):
    import gzip

    (tmp_path / "a.txt").write_text("one\n\n two \n", encoding="utf-8")
    with gzip.open(tmp_path / "b.txt.gz", "wt", encoding="utf-8") as file:
        file.write("ein\nzwei\n")
    assert pretraining.read_lines(tmp_path / "a.txt") == ["one", "two"]
    assert pretraining.read_lines(tmp_path / "b.txt.gz") == ["ein", "zwei"]
