"""A language added after training (Figure 1d): only its adapters learn, and every other language stays bit for bit."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from transformers import XmodForMaskedLM, XmodModel

from tests import toys
from tests.test_pipeline import mrr, toy_collection, train  # noqa: F401  the fixture of a toy Training
from xmlib import losses, pipeline, pretraining, reporting, training, xmod
from xmlib.models import ColbertXM
from xmlib.systems import System
from xmlib.training import Recipe

TEXTS = ["kijito cha zamani", "mnara mpya na mto", "daraja jipya mjini"] * 4
RECIPE = Recipe(steps=12, batch_size=8, peak_rate=1e-2, seed=1, checkpoint_every=5)


@pytest.fixture
def mlm() -> XmodForMaskedLM:
    """English and Arabic; Swahili is to come."""
    torch.manual_seed(0)
    return XmodForMaskedLM(toys.config(languages=["en_XX", "ar_AR"])).eval()


def added(mlm, texts=TEXTS, **arguments):
    return pretraining.add_language(mlm, toys.tokenizer(), "sw", texts, RECIPE, progress=False, **arguments)


def hidden(model: XmodModel, lang: str) -> torch.Tensor:
    ids = torch.arange(8, 20)
    with torch.no_grad():
        return xmod.encode(model, ids, [7, 5], lang)


def test_a_language_comes_last_and_leaves_the_others_bit_for_bit_also_to_transformers(mlm):
    model = mlm.roberta
    before = {lang: hidden(model, lang) for lang in ("en", "ar")}
    ids = torch.arange(8, 20)[None]
    stock = [model(ids, lang_ids=torch.tensor([number])).last_hidden_state for number in (0, 1)]
    xmod.add_language(model, "sw", xmod.adapters_of(model, "ar"))
    assert model.config.languages == mlm.config.languages == ["en_XX", "ar_AR", "sw_KE"]
    assert all(torch.equal(hidden(model, lang), vectors) for lang, vectors in before.items())
    for number, expected in enumerate(stock):
        assert torch.equal(model(ids, lang_ids=torch.tensor([number])).last_hidden_state, expected)
    assert torch.equal(hidden(model, "sw"), before["ar"])  # copies, until they are trained
    xmod.adapters_of(model, "sw")[0].dense1.bias.data += 1
    assert not torch.equal(hidden(model, "sw"), before["ar"]) and torch.equal(hidden(model, "ar"), before["ar"])

    xmod.remove_language(model, "sw")
    assert model.config.languages == ["en_XX", "ar_AR"]
    with pytest.raises(ValueError, match="no language adapter for 'sw'; this model has: ar, en"):
        hidden(model, "sw")


def test_what_cannot_be_added_raises_with_what_there_is(mlm):
    english = xmod.adapters_of(mlm.roberta, "en")
    with pytest.raises(ValueError, match="adapters for 'ar' already; it has: en_XX, ar_AR"):
        xmod.add_language(mlm.roberta, "ar", english)
    with pytest.raises(ValueError, match="1 adapters of width 32 do not fit a model of 2 layers of width 32"):
        xmod.add_language(mlm.roberta, "sw", english[:1])
    with pytest.raises(ValueError, match="unknown language 'xx'; have: af, am"):
        xmod.add_language(mlm.roberta, "xx", english)
    with pytest.raises(ValueError, match="no text in 'sw'"):
        added(mlm, texts=[])
    with pytest.raises(ValueError, match="no language adapter for 'te'; this model has: ar, en"):
        added(mlm, start="te")


def test_only_the_new_adapters_learn_and_nothing_below_them_is_differentiated(mlm):
    before = {name: tensor.clone() for name, tensor in mlm.state_dict().items()}
    loop = added(mlm)
    assert all(".sw_KE." in name for name in loop.trained)
    seen = []
    adapter = xmod.adapters_of(mlm.roberta, "sw")[0]
    adapter.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].requires_grad, output)))
    log = loop.run()
    assert seen and not any(differentiated for differentiated, _ in seen) and all(y.requires_grad for _, y in seen)
    assert np.mean([r["loss"] for r in log[-3:]]) < np.mean([r["loss"] for r in log[:3]])
    held = loop.optimizer.state
    assert sum(parameter.numel() for parameter in held) == sum(p.numel() for p in loop.trained.values())
    after = mlm.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    start = before["roberta.encoder.layer.0.output.adapter_modules.en_XX.dense1.weight"]
    assert not torch.equal(after["roberta.encoder.layer.0.output.adapter_modules.sw_KE.dense1.weight"], start)


def test_a_frozen_vocabulary_gives_the_same_gradient_below_it():
    torch.manual_seed(0)
    weight, bias, target = torch.randn(50, 8), torch.randn(50), torch.randint(50, (6,))
    gradients = []
    for frozen in (False, True):
        states = torch.randn(6, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        losses.vocabulary(states, weight.clone().requires_grad_(not frozen), bias, target).backward()
        gradients.append(states.grad)
    assert torch.equal(*gradients)


def test_held_out_loss_hides_the_same_tokens_each_time_and_falls_with_training(mlm):
    other = ["mnara wa zamani mjini", "mto mpya"] * 40  # more than one batch
    asked = (toys.tokenizer(), other)
    english = pretraining.held_out_loss(mlm, *asked, "en")
    assert pretraining.held_out_loss(mlm, *asked, "en") == english != pretraining.held_out_loss(mlm, *asked, "ar")
    loop = added(mlm)
    assert pretraining.held_out_loss(mlm, *asked, "sw") == english  # they begin as the English ones
    loop.run()
    assert pretraining.held_out_loss(mlm, *asked, "sw") < english


def test_an_extended_encoder_is_a_folder_that_transformers_opens(mlm, tmp_path):
    added(mlm).run()
    pretraining.save(mlm, toys.tokenizer(), tmp_path)
    again = XmodModel.from_pretrained(tmp_path, add_pooling_layer=False)
    assert list(again.config.languages) == ["en_XX", "ar_AR", "sw_KE"]
    assert torch.equal(hidden(again.eval(), "sw"), hidden(mlm.roberta, "sw"))

    retriever = ColbertXM.from_encoder(tmp_path, dim=8).eval()
    assert retriever.languages == ["en_XX", "ar_AR", "sw_KE"] == list(retriever.roberta.config.languages)
    xmod.remove_language(retriever.roberta, "sw")
    retriever.save(tmp_path / "retriever")
    opened = ColbertXM.open(tmp_path / "retriever")
    assert opened.languages == ["en_XX", "ar_AR"]
    xmod.add_language(opened.roberta, "sw", xmod.adapters_of(mlm.roberta, "sw"))
    opened.save(tmp_path / "again")
    assert ColbertXM.open(tmp_path / "again").languages == ["en_XX", "ar_AR", "sw_KE"]


# --- as stages of a training


@pytest.fixture
def late(train):  # noqa: F811
    """The toy Training with Swahili left out of the pre-training."""
    return dataclasses.replace(train, new_languages="sw", pretrain_steps=10, new_steps=10)


def weights(folder) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


def test_a_language_left_out_is_added_and_can_then_be_searched_like_any_other(late):
    assert late.encoder_languages() == ["en", "sw"] and late.added_languages == ["sw"]
    base, extended = weights(late.pretrained_encoder), weights(late.encoder)
    assert not any("sw_KE" in name for name in base)
    assert all(torch.equal(extended[name], tensor) for name, tensor in base.items())
    assert {name for name in extended if name not in base} == {name for name in extended if "sw_KE" in name} != set()
    assert len(pipeline.read_log(late.encoder)) == late.new_steps
    late = dataclasses.replace(late, steps=8)
    assert 0 < mrr(System("ColBERT-XM", "colbert-xm", late.colbert, engine="exact"), toy_collection("sw")) <= 1


def test_fine_tuning_before_and_after_a_language_was_added_gives_the_same_retriever(late):
    late = dataclasses.replace(late, steps=4)
    recipe = Recipe(late.steps, late.batch_size, late.rate, seed=late.seed)
    arguments = (late.examples, recipe, late.layout)
    settings = dict(own_negatives=late.own_negatives, progress=False, dim=late.dim)
    before = pipeline.finetuned("colbert-xm", late.pretrained_encoder, *arguments, **settings)
    after = weights(late.colbert)
    assert all(torch.equal(after[name], tensor) for name, tensor in weights(before).items())

    plugged = pipeline.plugged(before, late.encoder, "sw")
    assert weights(plugged).keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in weights(plugged).items())
    c = toy_collection("en")
    texts = [c.passages.text(i) for i in range(len(c.passages))]
    vectors = [ColbertXM.open(folder).encode_passages(texts, "en").vectors_TH for folder in (before, plugged)]
    assert np.array_equal(*vectors)

    other = late.add_language(late.pretrained_encoder, "sw", late.texts["sw"][:5])
    assert other != late.encoder
    swapped = weights(pipeline.plugged(late.colbert, other, "sw"))  # in place of those it had
    changed = {name for name, tensor in after.items() if not torch.equal(swapped[name], tensor)}
    assert changed == {name for name in after if "sw_KE" in name}


def test_adding_that_was_cut_off_goes_on_from_its_checkpoint(late, monkeypatch):
    recipe = dataclasses.replace(RECIPE, steps=12)
    arguments = (late.pretrained_encoder, "sw", late.texts["sw"], recipe)
    expected = (pipeline.extended(*arguments, progress=False) / "model.safetensors").read_bytes()
    monkeypatch.setattr(pipeline, "RUNS", pipeline.RUNS / "again")
    real = training.Loop._save

    def save_and_die(loop):
        real(loop)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training.Loop, "_save", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            pipeline.extended(*arguments, progress=False)
    resumed = pipeline.extended(*arguments, progress=False)
    assert (resumed / "model.safetensors").read_bytes() == expected
    assert pipeline.read_log(resumed)["step"].tolist() == list(range(12))


def test_a_new_language_must_have_text_and_must_not_be_english(late):
    with pytest.raises(ValueError, match="unknown language 'fi'; have: en, sw"):
        _ = dataclasses.replace(late, new_languages="fi").texts
    with pytest.raises(ValueError, match="new_languages is 'en,sw': English has to be there from the start"):
        _ = dataclasses.replace(late, new_languages="en,sw").texts
    assert dataclasses.replace(late, languages="en").encoder_languages() == ["en", "sw"]
    assert dataclasses.replace(late, new_languages="").added_languages == []


def test_text_is_in_the_order_in_which_the_encoder_meets_its_languages(late, tmp_path):
    for lang in ("en", "id", "ru", "te"):
        (tmp_path / f"{lang}.txt").write_text(f"{lang}\n")
    late = dataclasses.replace(late, text=str(tmp_path), new_languages="id")
    assert list(late.texts.items()) == [(lang, [lang]) for lang in ("en", "ru", "te", "id")]
    assert late.encoder_languages() == ["en", "id", "ru", "te"]


# --- the figure


def test_the_figure_begins_at_the_english_adapters_and_is_drawn_again_from_its_csv(tmp_path, monkeypatch):
    monkeypatch.setattr(reporting, "FIGURES", tmp_path)
    where = dict(lang="sw", collection="sample", split="test", n_queries=9, profile="demo")
    made = [
        ("en", 0, 6.0, 0.10),
        ("sw", 900, 4.0, 0.14),
        ("sw", 90, 5.0, 0.12),
        ("id", 0, 5.9, 0.11),
        ("ru", 0, 7, 0.05),
    ]
    rows = [
        where | dict(system="ColBERT-XM", adapters=adapters, texts=texts, metric=metric, value=value)
        for at, metric in enumerate(("loss", "mrr@10"))
        for adapters, texts, *values in made
        for value in values[at : at + 1]
    ]
    rows.append(where | dict(system="BM25", adapters="", texts=0, metric="mrr@10", value=0.5))
    rows.append(rows[0] | dict(profile="smoke"))  # is passed over
    written = reporting.new_language_curve(pd.DataFrame(rows), "demo")
    assert [path.name for path in written] == [f"fig8_new_language.{suffix}" for suffix in ("csv", "svg", "png")]
    frame = reporting.read_csv(written[0])
    assert len(frame) == 11 and frame["adapters"].tolist()[-1] == ""
    first = {path: path.read_bytes() for path in written[1:]}
    assert {path: path.read_bytes() for path in reporting.redraw("demo")} == first
