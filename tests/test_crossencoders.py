"""Cross-encoders: what each reads, equal to transformers' own forward, whatever the batch; resumable re-ranking."""

import numpy as np
import pytest
import torch
from sentencepiece import SentencePieceTrainer
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    MT5Config,
    MT5ForConditionalGeneration,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    XLMRobertaModel,
    XmodForSequenceClassification,
)

from tests import toys
from xmlib import crossencoders
from xmlib.crossencoders import Classifier, MonoT5, MonoXM, finetune, rerank
from xmlib.data.collection import Collection, Passages
from xmlib.training import Recipe

QUERIES = ["where is the river ?", "old mill", "hello", "where is the green tower ?", "b"]
PASSAGES = ["the river is north of the old city .", "a", "hello world , hello", "the red tower .", "the bank is south"]
SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, initializer_range=0.2)


def answering_tokenizer():
    tokenizer = toys.tokenizer.__wrapped__()
    tokenizer.add_tokens(list(MonoT5.ANSWERS))
    return tokenizer


def toy(cls, **changes):
    torch.manual_seed(0)
    tokenizer = answering_tokenizer() if cls is MonoT5 else toys.tokenizer()
    size = len(tokenizer)
    if cls is MonoT5:
        small = dict(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, tie_word_embeddings=False)
        config = MT5Config(vocab_size=size, pad_token_id=1, eos_token_id=2, decoder_start_token_id=1, **small)
        model = MT5ForConditionalGeneration(config)
    elif cls is MonoXM:
        model = XmodForSequenceClassification(toys.config(num_labels=1))
    else:
        config = XLMRobertaConfig(**dict(vocab_size=size, max_position_embeddings=80, num_labels=1) | SIZES | changes)
        model = XLMRobertaForSequenceClassification(config)
    return cls(model.eval(), tokenizer, length=64)


def one_by_one(encoder, lang):
    """Every pair by itself, through transformers alone."""
    found = []
    for query, passage in zip(QUERIES, PASSAGES, strict=True):
        tokenizer, model = encoder.tokenizer, encoder.model
        with torch.no_grad():
            if isinstance(encoder, MonoT5):
                text = f"Query: {query} Document: {passage} Relevant:"
                ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"] + [2]])
                logits = model(input_ids=ids, decoder_input_ids=torch.tensor([[1]])).logits[0, 0]
                answers = tokenizer.convert_tokens_to_ids(["▁no", "▁yes"])
                found.append(logits[answers].log_softmax(0)[1].item())
                continue
            inputs = tokenizer(query, passage, return_tensors="pt")
            if isinstance(encoder, MonoXM):
                inputs["lang_ids"] = torch.tensor([["en_XX", "sw_KE", "ar_AR"].index(lang)])
            found.append(model(**inputs).logits[0, 0].item())
    return found


def test_a_tokenizer_may_be_a_sentencepiece_model_alone(tmp_path):
    """As unicamp-dl/mt5-base-mmarco-v2 has it."""
    spm = SentencePieceTrainer.train  # pieces are numbered as in mT5
    numbers = dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1, vocab_size=60, user_defined_symbols=list(MonoT5.ANSWERS))
    spm(sentence_iterator=iter(PASSAGES * 20), model_prefix=str(tmp_path / "spiece"), hard_vocab_limit=False, **numbers)
    small = dict(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, tie_word_embeddings=False)
    MT5ForConditionalGeneration(MT5Config(vocab_size=60, **small)).save_pretrained(tmp_path)
    (tmp_path / "spiece.vocab").unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": 0}')
    encoder = MonoT5.open(tmp_path)
    assert encoder._answers == [3, 4]
    assert np.isfinite(encoder.scores(QUERIES, PASSAGES, "en")).all()


@pytest.mark.parametrize("cls, lang", [(MonoT5, "en"), (Classifier, "en"), (MonoXM, "en_XX"), (MonoXM, "sw_KE")])
def test_scores_are_those_of_transformers_on_each_pair_alone(cls, lang):
    encoder = toy(cls)
    together = encoder.scores(QUERIES, PASSAGES, lang)
    assert together.dtype == np.float32 and np.ptp(together) > 1e-2
    np.testing.assert_allclose(together, one_by_one(encoder, lang), atol=1e-4)
    np.testing.assert_allclose(together, encoder.scores(QUERIES, PASSAGES, lang, batch_tokens=20), atol=1e-5)


def test_scores_come_back_in_the_order_of_the_pairs():
    encoder = toy(Classifier)
    order = [3, 0, 4, 2, 1]
    shuffled = encoder.scores([QUERIES[i] for i in order], [PASSAGES[i] for i in order], "en")
    np.testing.assert_allclose(shuffled, encoder.scores(QUERIES, PASSAGES, "en")[order], atol=1e-5)
    assert encoder.scores([], [], "en").shape == (0,)


def test_two_segments_reach_a_model_that_tells_them_apart():
    torch.manual_seed(0)
    tokenizer = toys.tokenizer.__wrapped__()
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=80, pad_token_id=1, num_labels=2, **SIZES)
    encoder = Classifier(BertForSequenceClassification(config).eval(), tokenizer, 64)
    pair = tokenizer(QUERIES[0], PASSAGES[0], return_tensors="pt")
    with torch.no_grad():
        no, yes = encoder.model(**pair).logits[0]
    assert "token_type_ids" in pair
    np.testing.assert_allclose(encoder.scores(QUERIES[:1], PASSAGES[:1], "en"), [(yes - no).item()], atol=1e-5)


def test_a_classifier_of_three_labels_cannot_rank():
    with pytest.raises(ValueError, match="a classifier of 3 labels"):
        toy(Classifier, num_labels=3).scores(QUERIES, PASSAGES, "en")


def test_mono_xm_goes_through_the_adapters_of_the_language_and_refuses_unknown_ones():
    encoder = toy(MonoXM)
    assert not np.allclose(encoder.scores(QUERIES, PASSAGES, "en"), encoder.scores(QUERIES, PASSAGES, "ar"), atol=1e-3)
    with pytest.raises(ValueError, match="no language adapter for 'fi'; this model has: ar, en, sw"):
        encoder.scores(QUERIES, PASSAGES, "fi")


def test_a_passage_too_long_is_cut_and_the_question_of_monot5_stays():
    encoder = toy(MonoT5)
    (pair,) = encoder.tokenize(["where"], ["the river is north " * 40])
    tail = encoder.tokenizer("Relevant:", add_special_tokens=False)["input_ids"] + [2]
    assert len(pair["input_ids"]) == 64 and pair["input_ids"][-len(tail) :] == tail
    (pair,) = toy(Classifier).tokenize(["where"], ["the river is north " * 40])
    assert len(pair["input_ids"]) == 64


def test_a_vocabulary_without_yes_is_refused():
    with pytest.raises(ValueError, match="lacks ▁no and ▁yes"):
        MonoT5(toy(MonoT5).model, toys.tokenizer())


@pytest.mark.parametrize("cls", [MonoT5, Classifier, MonoXM])
def test_a_saved_folder_opens_and_one_without_a_head_is_refused(cls, tmp_path):
    encoder = toy(cls)
    encoder.save(tmp_path / "whole")
    opened = cls.open(tmp_path / "whole", length=64)
    expected = encoder.scores(QUERIES, PASSAGES, "en")
    np.testing.assert_allclose(opened.scores(QUERIES, PASSAGES, "en"), expected, atol=1e-6)
    if cls is Classifier:
        bare = tmp_path / "bare"
        XLMRobertaModel(encoder.model.config, add_pooling_layer=False).save_pretrained(bare)
        encoder.tokenizer.save_pretrained(bare)
        with pytest.raises(ValueError, match="no checkpoint of a classifier cross-encoder: it lacks classifier"):
            Classifier.open(bare)
        assert Classifier.from_encoder(bare, 64, num_labels=1).scores(QUERIES, PASSAGES, "en").shape == (5,)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    import json

    toy(Classifier).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Config", "AutoModelForSequenceClassification": "own.M"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ValueError):
        Classifier.open(tmp_path)


def test_the_last_layer_computes_in_float32_under_autocast():
    for cls in (MonoT5, Classifier, MonoXM):
        encoder = toy(cls)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            logits = encoder.logits(encoder.tokenize(QUERIES, PASSAGES), "en")
        assert logits.dtype == torch.float32
        rough = encoder.scores(QUERIES, PASSAGES, "en")
        np.testing.assert_allclose(encoder.score_of(logits).numpy(), rough, atol=0.1)
        assert not torch.equal(logits, logits.bfloat16().float())


@pytest.mark.parametrize("cls", [MonoT5, Classifier, MonoXM])
def test_training_learns_a_few_pairs_by_heart_and_freezes_what_it_should(cls):
    encoder, examples = toy(cls), toys.triples(8)
    before = {name: tensor.clone() for name, tensor in encoder.model.state_dict().items()}
    losses = [record["loss"] for record in finetune(encoder, examples, Recipe(60, 8, 3e-3), progress=False).run()]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.05
    after = encoder.model.state_dict()
    frozen = [name for name in before if cls is MonoXM and ("adapter" in name or "embeddings" in name)]
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert any(not torch.equal(before[name], after[name]) for name in before)


# --- re-ranking


def collection() -> Collection:
    passages = Passages.from_pairs((f"p{i}", text) for i, text in enumerate(PASSAGES))
    return Collection(
        "toy", "en", "test", passages, {f"q{i}": text for i, text in enumerate(QUERIES)}, {"q0": {"p0": 1}}
    )


CANDIDATES = {"q0": ["p0", "p3", "p4"], "q1": [], "q2": ["p2", "p0"], "q3": ["p3", "p1"], "q4": ["p4"]}


class Counting:
    """Scores by the length of the passage, and counts; breaks off at the n-th call."""

    def __init__(self, dies_at=99):
        self.calls, self.pairs, self.dies_at = 0, 0, dies_at

    def scores(self, queries, passages, lang):
        self.calls += 1
        if self.calls == self.dies_at:
            raise KeyboardInterrupt
        self.pairs += len(queries)
        return np.array([len(passage) for passage in passages], dtype=np.float32)


def test_every_candidate_gets_the_score_of_its_own_pair(tmp_path):
    encoder = toy(Classifier)
    found = rerank(encoder, collection(), CANDIDATES, "en", tmp_path / "scores.npy", group_pairs=3)
    for qid, pids in CANDIDATES.items():
        texts = [collection().passages[pid] for pid in pids]
        expected = encoder.scores([collection().queries[qid]] * len(pids), texts, "en")
        np.testing.assert_allclose(found[qid], expected, atol=1e-5)


def test_a_kill_loses_only_the_group_it_was_at(tmp_path):
    file, dying = tmp_path / "scores.npy", Counting(dies_at=3)
    with pytest.raises(KeyboardInterrupt):
        rerank(dying, collection(), CANDIDATES, "en", file, group_pairs=3)
    assert dying.pairs == 5  # q0 (with q1, which has none), then q2; q3 was lost
    again = Counting()
    found = rerank(again, collection(), CANDIDATES, "en", file, group_pairs=3)
    assert again.pairs == 8 - dying.pairs
    assert found == rerank(Counting(), collection(), CANDIDATES, "en", tmp_path / "fresh.npy")
    assert found["q1"] == [] and found["q0"] == [float(len(PASSAGES[i])) for i in (0, 3, 4)]


def test_no_candidate_at_all_is_no_error(tmp_path):
    assert rerank(Counting(), collection(), {"q0": []}, "en", tmp_path / "scores.npy") == {"q0": []}


def test_the_kinds_are_found_by_name():
    assert set(crossencoders.KINDS) == {"mono-t5", "classifier", "mono-xm"}
