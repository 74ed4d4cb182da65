"""The small checkpoints: of the architecture of their row, trained as ColBERT-XM is, made once and late."""

import time

import pytest
from transformers import AutoConfig

from tests import test_pipeline
from tests.test_pipeline import mrr, toy_collection
from xmlib import baselines, pipeline, processes
from xmlib.baselines import Systems
from xmlib.systems import PAPER

toy_train = test_pipeline.train  # a fixture: toy text in two languages, toy English triples


@pytest.fixture
def train(toy_train, tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "RUNS", tmp_path / "runs")
    return toy_train


def models(name: str = "*") -> list[str]:
    folders = (pipeline.RUNS / "models").glob(f"{name}-*")
    return sorted(folder.name.rsplit("-", 1)[0] for folder in folders if folder.is_dir())


def test_a_row_is_made_when_it_is_asked_for_and_no_other(train):
    rows = train.systems
    assert list(rows) == list(PAPER) and len(rows) == len(PAPER)
    assert rows["BM25"].model is None and not models()
    row = rows["mMiniLM-L6"]
    assert models() == ["classifier", "vocabulary", "xlm-r"] and "XLM-R of 1 x 16" in row.made
    assert AutoConfig.from_pretrained(row.model).architectures == ["XLMRobertaForSequenceClassification"]
    assert train.systems["mMiniLM-L6"].model == row.model and models() == ["classifier", "vocabulary", "xlm-r"]


@pytest.mark.parametrize(
    "name, architecture",
    [
        ("mT5-base", "MT5ForConditionalGeneration"),
        ("mono-XM", "XmodForSequenceClassification"),
        ("DPR-X", "XLMRobertaModel"),
        ("mE5-base", "XLMRobertaModel"),
        ("mColBERT", "HF_ColBERT"),
    ],
)
def test_every_row_has_the_architecture_and_the_recipe_of_its_own(train, name, architecture):
    row = train.systems[name]
    assert AutoConfig.from_pretrained(row.model).architectures == [architecture]
    assert row.kind == PAPER[name].kind and row.made.endswith("English triples")
    recipe = {key: value for key, value in PAPER[name].settings.items() if key in ("pooling", "similarity")}
    assert recipe.items() <= row.settings.items()
    assert row.settings.get("query_prefix", "") == PAPER[name].settings.get("query_prefix", "")
    assert 0 <= mrr(row, toy_collection("sw")) <= 1


def test_rows_that_do_without_the_x_mod_are_made_while_it_trains(train, monkeypatch, capsys):
    monkeypatch.setattr(processes, "shared", lambda: True)
    with train.systems.beside_encoder():
        deadline = time.time() + 120
        while "mono-t5" not in models() and time.time() < deadline:
            time.sleep(0.1)
        assert "xmod" not in models()
        _ = train.encoder
    assert "made beside it: mT5-base" in capsys.readouterr().out
    assert {"xmod", "xlm-r", "mt5", "mono-t5"} <= set(models()) and "mT5-base" in train.systems.built()
    made = models()
    assert train.systems.make_until_encoder(["mMiniLM-L6"]) == [] and models() == made  # it is there already


def test_nothing_is_made_beside_the_x_mod_on_one_core(train, monkeypatch):
    monkeypatch.setattr(processes, "shared", lambda: False)
    with train.systems.beside_encoder():
        assert not models()


def test_a_single_vector_baseline_learns_english(train):
    assert mrr(train.systems["mE5-base"], toy_collection("en")) > 0.5  # by chance 0.15


def test_a_checkpoint_of_ones_own_takes_the_place_of_the_one_made_here(train, tmp_path):
    have = Systems(train, {"mE5-base": tmp_path / "e5"}, depth=7)
    row = have["mE5-base"]
    assert row.model == tmp_path / "e5" and row.settings == PAPER["mE5-base"].settings and not row.made
    assert not models() and have["BM25"].depth == 7
    with pytest.raises(ValueError, match="a checkpoint for 'BM25'; rows that have one: mT5-base, mMiniLM-L6"):
        Systems(train, {"BM25": "x"})
