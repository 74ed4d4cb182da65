"""From text to a ranking, end to end at toy size: it learns, what exists is found, what changed is built anew."""

import dataclasses
import shutil

import numpy as np
import pytest
import safetensors.numpy

from xmlib import pipeline, processes, systems, training
from xmlib.data.collection import Collection, Passages
from xmlib.data.folder import save
from xmlib.data.triples import mine
from xmlib.evaluation import Run, evaluate
from xmlib.systems import System

COLOURS = {"en": "red blue green old new".split(), "sw": "nyekundu buluu kijani zamani mpya".split()}
THINGS = {"en": "bridge tower mill bank city".split(), "sw": "daraja mnara kinu benki mji".split()}
SAYS = {
    "en": ("the {colour} {thing} stands in the north", "where is the {thing} that is {colour}"),
    "sw": ("{thing} {colour} liko kaskazini", "liko wapi {thing} {colour}"),
}


def toy_collection(lang: str) -> Collection:
    pairs = [(colour, thing) for colour in COLOURS[lang] for thing in THINGS[lang]]
    passage, query = SAYS[lang]
    return Collection(
        "toy",
        lang,
        "train",
        Passages.from_pairs((f"p{i}", passage.format(colour=c, thing=t)) for i, (c, t) in enumerate(pairs)),
        {f"q{i}": query.format(colour=c, thing=t) for i, (c, t) in enumerate(pairs)},
        {f"q{i}": {f"p{i}": 1} for i in range(len(pairs))},
    )


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Toy text in two languages, a toy English collection with a training split, and a folder of runs of their own."""
    monkeypatch.setattr(pipeline, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(systems, "RUNS", tmp_path / "runs")
    monkeypatch.setenv("XMLIB_RUNS", str(tmp_path / "runs"))  # for processes of their own
    text = tmp_path / "text"
    text.mkdir()
    for lang in SAYS:
        c = toy_collection(lang)
        lines = [c.passages.text(i) for i in range(len(c.passages))] + list(c.queries.values())
        (text / f"{lang}.txt").write_text("\n".join(lines), encoding="utf-8")
    save(toy_collection("en"), tmp_path / "collection")
    return pipeline.Training(
        collection=str(tmp_path / "collection"), text=str(text), vocab_size=300, hidden=32, layers=1, heads=2,
        pretrain_steps=40, pretrain_batch=16, pretrain_rate=5e-3, new_languages="", negatives_per_query=4,
        negatives_depth=8, query_length=32, passage_length=48, dim=16, steps=120, batch_size=10, rate=3e-3,
        dpr_steps=20, dpr_rate=3e-3, seed=3, progress=False,
    )  # fmt: skip


def mrr(system: System, collection: Collection) -> float:
    run = systems.rank(system, collection, k=25, progress=False)
    return evaluate(run, collection.qrels, ["mrr@10"])["mrr@10"].mean()


def test_the_whole_way_learns_english_and_ranks_the_other_language(train):
    names = ["BM25", "DPR-XM", "ColBERT-XM", "ColBERT-XM with English adapters"]
    rows = {name: train.systems[name] for name in names}
    scores = {lang: {name: mrr(row, toy_collection(lang)) for name, row in rows.items()} for lang in SAYS}
    assert scores["en"]["ColBERT-XM"] > 0.9
    assert scores["sw"]["ColBERT-XM"] != scores["sw"]["ColBERT-XM with English adapters"]  # a text is routed
    english = scores["en"]
    assert english["ColBERT-XM"] == english["ColBERT-XM with English adapters"]
    log = pipeline.read_log(rows["ColBERT-XM"].model)
    assert len(log) == train.steps and log["loss"].tail(5).mean() < log["loss"].head(5).mean()


def test_what_was_built_is_found_and_what_changed_is_built_anew(train, capsys):
    folder = train.encoder
    assert "building" in capsys.readouterr().out
    assert dataclasses.replace(train).encoder == folder
    assert "found" in capsys.readouterr().out
    other = dataclasses.replace(train, pretrain_steps=41).encoder
    assert other != folder and folder.exists()


def test_training_that_was_cut_off_goes_on_from_its_checkpoint(train, monkeypatch):
    recipe = training.Recipe(steps=12, batch_size=4, peak_rate=1e-3, checkpoint_every=4)
    arguments = (train.texts, pipeline.Shape(120, 32, 1, 2), recipe)
    whole = pipeline.pretrained(*arguments, progress=False)
    expected = (whole / "model.safetensors").read_bytes()
    monkeypatch.setattr(pipeline, "RUNS", pipeline.RUNS / "again")

    real = training.Loop._save

    def save_and_die(loop):
        real(loop)
        if loop.step == 8:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training.Loop, "_save", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            pipeline.pretrained(*arguments, progress=False)
    resumed = pipeline.pretrained(*arguments, progress=False)
    assert (resumed / "model.safetensors").read_bytes() == expected
    assert not (resumed / pipeline.CHECKPOINT).exists()
    assert pipeline.read_log(resumed)["step"].tolist() == list(range(12))


def test_how_often_a_checkpoint_is_written_is_no_part_of_a_models_identity(train):
    one, two = (training.Recipe(steps=5, checkpoint_every=n) for n in (1, 5))
    assert pipeline.identity_of(one) == pipeline.identity_of(two)


def test_mined_negatives_are_wrong_results_of_the_same_query():
    c = toy_collection("en")
    run = Run("any", {qid: {pid: -i for i, pid in enumerate(list(c.passages.ids)[:6])} for qid in c.queries})
    rows = mine(c, run, per_query=3, depth=5, seed=1)
    assert len(rows) == 3 * len(c.queries)
    assert (rows[:, 1] == rows[:, 0]).all()  # passage i answers query i
    assert (rows[:, 2] != rows[:, 1]).all() and rows[:, 2].max() < 5
    assert np.array_equal(rows, mine(c, run, per_query=3, depth=5, seed=1))
    with pytest.raises(ValueError, match=r"toy \(train\) gives no triple"):
        mine(c, Run("none", {}), seed=1)


def test_a_first_rounds_model_can_mine_for_the_second(train):
    c = toy_collection("en")
    first = System("first round", "colbert-xm", train.colbert, engine="exact")
    examples = pipeline.triples(c, first, per_query=2, depth=5)
    assert len(examples) == 2 * len(c.queries)
    assert all(pair[1] != pair[2] for pair in examples.rows_E3.tolist())


def test_an_unknown_language_names_those_the_encoder_has(train):
    with pytest.raises(ValueError, match="unknown language 'xx'; have: en, sw"):
        _ = dataclasses.replace(train, languages="en,xx").texts


def test_a_folder_with_one_collection_needs_its_language_named(train):
    with pytest.raises(ValueError, match="does not say its language; give one of: en, sw"):
        train.languages_of(train.collection, "all")
    assert train.languages_of(train.collection, "sw") == ["sw"]
    assert train.languages_of("sample", "all") == ["en", "sw"]
    with pytest.raises(ValueError, match="unknown language 'xx'; have: en, sw"):
        train.languages_of("sample", "xx")


def test_snapshots_of_one_run_end_in_the_weights_of_the_run_itself(train):
    train = dataclasses.replace(train, steps=12)
    folders = train.colbert_snapshots([4, 8, 12])
    assert [len(pipeline.read_log(folder)) for folder in folders] == [4, 8, 12]
    *parts, pieced = [safetensors.numpy.load_file(folder / "model.safetensors")["linear.weight"] for folder in folders]
    shutil.rmtree(folders[-1])  # so that the run is trained again, from its first step
    assert train.colbert == folders[-1]
    straight = safetensors.numpy.load_file(train.colbert / "model.safetensors")["linear.weight"]
    assert np.array_equal(pieced, straight)
    assert not any(np.array_equal(part, straight) for part in parts)


def test_both_retrievers_are_trained_side_by_side(train, capsys):
    train = dataclasses.replace(train, steps=3, dpr_steps=3)
    colbert, dpr = train.retrievers
    said = capsys.readouterr().out
    assert f"building {colbert.name}" in said
    assert f"found {dpr.name}" in said or processes.cores() == 1  # another process built it meanwhile


def test_two_processes_make_the_model_that_one_makes(train):
    train = dataclasses.replace(train, steps=6)
    one = train.colbert
    alone = safetensors.numpy.load_file(one / "model.safetensors")
    shutil.rmtree(one)
    folder = dataclasses.replace(train, processes=2).colbert
    assert folder == one and len(pipeline.read_log(folder)) == 6
    both = safetensors.numpy.load_file(folder / "model.safetensors")
    for name, array in alone.items():
        np.testing.assert_allclose(both[name], array, atol=2e-4, err_msg=name)
