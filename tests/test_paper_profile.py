"""The paper's profile against exact replicas in miniature: published encoder, mMARCO, hard negatives, all over HTTP.

The loopback hub serves files in the formats of the real ones; notebooks, parameters and client are those of a real run,
in processes of their own. Only sizes and steps are overridden. Before that, what makes millions of passages bearable:
texts are tokenised when a step needs them, and nothing lists or reads them to find a model.
"""

import gzip
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import toys
import yaml
from hub_server import COMMIT, Hub
from safetensors.torch import load_file

from xmlib import pipeline, training
from xmlib.data import msmarco, published, triples
from xmlib.data.triples import Triples, Tuples
from xmlib.languages import adapter_name, language
from xmlib.models import ColbertXM
from xmlib.tokens import Layout
from xmlib.training import Recipe

ROOT = Path(__file__).resolve().parent.parent
LAYOUT = Layout(query_length=16, passage_length=24)


# --- millions of passages


class Endless(Sequence):
    """As many passages as MS MARCO has, made when they are asked for; whoever lists them waits for a long time."""

    def __init__(self):
        self.asked = set()

    def __len__(self) -> int:
        return 8_841_823

    def __getitem__(self, position: int) -> str:
        self.asked.add(position)
        return f"the {toys.WORDS[position % 20]} {toys.WORDS[position % 7]} is north"


def trained(examples, folder=None, steps=4, **arguments) -> dict[str, torch.Tensor]:
    model = toys.model(ColbertXM, layout=LAYOUT, dim=16)
    recipe = Recipe(steps, 6, 1e-3, checkpoint_every=2)
    training.finetune(model, examples, recipe, folder, progress=False, **arguments).run()
    return model.state_dict()


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_tokens_made_step_by_step_train_the_same_weights_bit_by_bit(monkeypatch):
    up_front = trained(toys.triples())
    monkeypatch.setattr(triples, "UP_FRONT", 0)
    assert same(trained(toys.triples()), up_front)


def test_streamed_training_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(triples, "UP_FRONT", 0)
    whole = trained(toys.triples(), tmp_path / "whole.pt")
    save = training.Loop._save

    def save_and_die(loop):
        save(loop)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training.Loop, "_save", save_and_die)
        trained(toys.triples(), tmp_path / "cut.pt")
    assert same(trained(toys.triples(), tmp_path / "cut.pt"), whole)


def test_of_millions_of_passages_only_those_of_the_steps_are_touched():
    passages = Endless()
    rows_E3 = np.random.default_rng(0).integers(len(passages), size=(500, 3))
    rows_E3[:, 0] = np.arange(500)
    examples = Triples([f"where is {i}" for i in range(500)], passages, rows_E3, "en", identity="drawn")
    trained(examples, steps=3)
    steps = np.concatenate([training.batch_rows(500, 6, step, Recipe.seed) for step in range(4)])  # one is ahead
    assert passages.asked <= set(rows_E3[steps, 1:].ravel().tolist()) and len(passages.asked) >= 3 * 12


def test_the_key_of_a_model_reads_no_passage_where_examples_say_who_they_are():
    passages = Endless()
    examples = Triples(["a"], passages, np.zeros((1, 3), dtype=np.int64), "en", identity="drawn")
    assert pipeline.identity_of_examples(examples) == "drawn" and not passages.asked
    mined = toys.triples()
    texts = {"queries": mined.queries, "passages": mined.passages}
    assert pipeline.identity_of_examples(mined) == pipeline.digest(texts, mined.rows_E3)  # as it always was


def test_tuples_are_trained_on_with_the_teachers_scores():
    few = toys.triples(12)
    rows_EM = np.concatenate([few.rows_E3, few.rows_E3[:, 2:][::-1]], axis=1)
    scores_EN = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    tuples = Tuples(few.queries, few.passages, rows_EM, scores_EN, "en")
    told = trained(Triples(few.queries, few.passages, rows_EM, "en"), teacher_EN=scores_EN)
    assert same(trained(tuples), told)
    assert not same(trained(Tuples(few.queries, few.passages, rows_EM, -scores_EN, "en")), told)
    assert tuples.rows_E3.tolist() == few.rows_E3.tolist()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(negatives="mnied"), "negatives are 'mnied'; have: mined, msmarco, msmarco-dense"),
        (dict(nway=8), "nway is 8: .* only where negatives come with a teacher's scores: msmarco, msmarco-dense"),
        (dict(negatives="msmarco", nway=1), "nway is 1: an example has a positive and at least one negative"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_the_choices(given, message):
    with pytest.raises(ValueError, match=message):
        pipeline.Training(**given)


# --- the chain of notebooks

LANGS = ("en", "ar")  # both in mMARCO and in Mr. TyDi
PASSAGES, MAX_PASSAGES = 60, 45
SIZES = {  # by notebook: all that is not the paper's
    "01_train": dict(steps=6, dpr_steps=6, batch_size=8),
    "03_eval": dict(lang=",".join(LANGS), max_passages=MAX_PASSAGES, systems="BM25,mE5-base,DPR-XM,ColBERT-XM"),
    "04_compare": dict(lang=",".join(LANGS), max_passages=MAX_PASSAGES),
    "10_paper": {},
}


def words(pid: int, lang: str) -> str:
    rng = random.Random(pid)
    return " ".join(rng.choice(toys.WORDS) + ("" if lang == "en" else "a") for _ in range(rng.randrange(5, 12)))


def tokenizer():
    """XLM-R's layout, which has no markers for queries and passages."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>", ",", ".", "▁")]
    pieces += [(f"▁{word}{end}", -1.0) for word in toys.WORDS if len(word) > 1 for end in ("", "a")]
    pieces += [(letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyz:0123456789"] + [("<mask>", 0.0)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=3))
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", cls_token="<s>", pad_token="<pad>", eos_token="</s>",
        sep_token="</s>", unk_token="<unk>", mask_token="<mask>",
    )  # fmt: skip


def encoders(folder: Path) -> dict[str, Path]:
    """Hub id → folder of a random checkpoint with the settings of the published one, but small."""
    from transformers import XLMRobertaConfig, XLMRobertaModel, XmodConfig, XmodForMaskedLM

    torch.manual_seed(0)
    pieces = tokenizer()
    sizes = dict(
        vocab_size=len(pieces), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1, bos_token_id=0,
        eos_token_id=2,
    )  # fmt: skip
    adapters = [adapter_name(code) for code in ("en", "id", "ru", "fr", "de", "sw", "ar", "ja")]  # not by alphabet
    models = {
        "facebook/xmod-base": XmodForMaskedLM(XmodConfig(**sizes, languages=adapters, pre_norm=False)),
        "intfloat/multilingual-e5-base": XLMRobertaModel(XLMRobertaConfig(**sizes)),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        pieces.save_pretrained(folder / name)
    return {name: folder / name for name in models}


def serve(hub: Hub, folder: Path) -> None:
    """All that the chain downloads, in the formats of the real files."""
    for name, checkpoint in encoders(folder).items():
        for path in checkpoint.iterdir():
            hub.add(name, path.name, path.read_bytes(), git=path.suffix == ".json")
    texts = {lang: {pid: words(pid, lang) for pid in range(PASSAGES)} for lang in LANGS}
    rng = random.Random(0)
    asked = {
        split: {1000 * n + i: rng.randrange(PASSAGES) for i in range(20)} for n, split in enumerate(("train", "dev"))
    }
    for lang in LANGS:
        name, where = language(lang).mmarco, "data/google"
        lines = "".join(f"{pid}\t{text}\n" for pid, text in texts[lang].items())
        hub.add("unicamp-dl/mmarco", f"{where}/collections/{name}_collection.tsv", lines.encode())
        for split, file in (("train", "train"), ("dev", "dev.small")):
            lines = "".join(f"{qid}\t{' '.join(texts[lang][pid].split()[:4])}\n" for qid, pid in asked[split].items())
            hub.add("unicamp-dl/mmarco", f"{where}/queries/{split}/{name}_queries.{file}.tsv", lines.encode())
        tydi, corpus = f"mrtydi-v1.1-{language(lang).mrtydi}", [
            {"docid": f"{pid}#0", "title": "", "text": text} for pid, text in texts[lang].items()
        ]  # fmt: skip
        content = gzip.compress("".join(json.dumps(row) + "\n" for row in corpus).encode())
        hub.add("castorini/mr-tydi-corpus", f"{tydi}/corpus.jsonl.gz", content)
        topics = "".join(f"{qid}\t{texts[lang][pid]}\n" for qid, pid in asked["dev"].items())
        qrels = "".join(f"{qid}\tQ0\t{pid}#0\t1\n" for qid, pid in asked["dev"].items())
        hub.add("castorini/mr-tydi", f"{tydi}/ir-format-data/topics.test.txt", topics.encode(), git=True)
        hub.add("castorini/mr-tydi", f"{tydi}/ir-format-data/qrels.test.txt", qrels.encode(), git=True)
    judged = "".join(f"{qid}\t0\t{pid}\t1\n" for qid, pid in asked["dev"].items())
    hub.add("unicamp-dl/mmarco", "data/qrels.dev.small.tsv", judged.encode(), git=True)
    rows, scores = [], {}
    for qid, positive in asked["train"].items():
        found = {name: rng.sample(range(PASSAGES), 5) for name in msmarco.SYSTEMS}
        rows.append({"qid": qid, "pos": [positive], "neg": found})
        scores[qid] = {pid: rng.gauss(-4, 2) for pids in found.values() for pid in pids} | {positive: 8.0}
    hub.add(msmarco.REPO, msmarco.MINED.path, gzip.compress("".join(json.dumps(r) + "\n" for r in rows).encode()))
    hub.add(msmarco.REPO, msmarco.SCORES.path, gzip.compress(pickle.dumps(scores)))
    sources = published.PUBLISHED.values()
    hub.revisions |= {source.repository.revision for source in sources} | {msmarco.REVISION}
    hub.revisions |= {split.repository.revision for source in sources for split in source.splits.values()}


def checkout(folder: Path) -> Path:
    """A checkout whose paper profile has the paper's parameters, but for `SIZES`."""
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns(".*"))
    (folder / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "expected.yaml", folder / "tests")
    (folder / "params").mkdir()
    for stem, sizes in SIZES.items():
        given = yaml.safe_load((ROOT / "params" / f"{stem}.paper.yaml").read_text(encoding="utf-8"))
        (folder / "params" / f"{stem}.paper.yaml").write_text(yaml.safe_dump(given | sizes))
    return folder


def run(folder: Path, hub: Hub, *command: str) -> subprocess.CompletedProcess:
    """A command in a process that has nothing but the checkout and the hub, on one core: no processes side by side."""
    dropped = ("HF_", "HUGGING", "XMLIB_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    env = {name: value for name, value in os.environ.items() if not name.upper().startswith(dropped)}
    env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    env |= {"XMLIB_ROOT": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    core = [min(os.sched_getaffinity(0))] if hasattr(os, "sched_setaffinity") else None
    alone = (lambda: os.sched_setaffinity(0, core)) if core else None
    arguments = dict(cwd=folder, env=env, capture_output=True, text=True, timeout=1800, preexec_fn=alone)
    return subprocess.run([sys.executable, *command], **arguments)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The chain, run once: the folder, the hub, and the process that ran it."""
    folder = checkout(tmp_path_factory.mktemp("paper"))
    with Hub() as hub:
        serve(hub, tmp_path_factory.mktemp("replicas"))
        yield folder, hub, run(folder, hub, "-m", "xmlib.run_notebooks", "--profile", "paper")


def said(folder: Path, stem: str) -> str:
    """All that an executed notebook shows as text."""
    cells = json.loads((folder / "runs" / "paper" / f"{stem}.ipynb").read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    shown = [output.get("data", {"text/plain": output.get("text", "")}) for output in outputs]
    return "\n".join("".join(data.get("text/markdown", data.get("text/plain", ""))) for data in shown)


@pytest.mark.slow
@pytest.mark.xdist_group("paper")  # one worker, so that the chain runs once
def test_the_papers_profile_runs_unchanged_on_replicas_of_what_it_downloads(done):
    folder, hub, process = done
    assert process.returncode == 0, process.stdout + process.stderr
    for path in ("english_collection.tsv", msmarco.SCORES.path, "multilingual-e5-base/model.safetensors"):
        assert len(hub.gets(path)) == 1, path  # in four notebooks
    assert "xmod-base, weights of the encoder: 1 file" in said(folder, "01_train")
    assert "48 examples" in said(folder, "01_train") and "msmarco-2way-en" in said(folder, "01_train")
    assert "here already" in said(folder, "04_compare")


@pytest.mark.slow
@pytest.mark.xdist_group("paper")  # one worker, so that the chain runs once
def test_what_was_trained_has_the_papers_settings_and_the_encoders_frozen_weights(done, tmp_path):
    folder, _, _ = done
    (model,) = (folder / "runs" / "models").glob("colbert-xm-*[0-9a-f]")
    about = json.loads((model / "xmlib.json").read_text())
    assert about["sizes"] == {"dim": 128, "query_prefix": "", "passage_prefix": "", "bias": False}
    assert about["record"]["encoder"] == f"facebook/xmod-base@{COMMIT}"
    assert (about["layout"]["query_length"], about["layout"]["passage_length"]) == (32, 256)
    assert about["layout"]["augment_queries"] and about["record"]["recipe"]["peak_rate"] == 3e-6
    before = load_file(encoders(tmp_path)["facebook/xmod-base"] / "model.safetensors")
    after = load_file(model / "model.safetensors")
    moved = {name for name in after if name in before and not torch.equal(before[name], after[name])}
    assert moved and not any("adapter" in name or "embeddings" in name for name in moved)
    assert sum("adapter_modules.ar_AR" in name for name in after) > 0
    (rows,) = (folder / "data" / "published").glob("msmarco-2way-en-*/rows.npy")
    assert np.load(rows).shape == (48, 3)


@pytest.mark.slow
@pytest.mark.xdist_group("paper")  # one worker, so that the chain runs once
def test_numbers_on_reduced_collections_say_so_wherever_they_stand(done):
    folder, _, _ = done
    figures = folder / "figures" / "paper"
    results = pd.read_csv(figures / "results.csv")
    names = {f"mmarco-REDUCED-{MAX_PASSAGES}", f"mrtydi-REDUCED-{MAX_PASSAGES}"}
    assert set(results["collection"]) == names and set(results["profile"]) == {"paper"}
    assert set(results["metric"]) == {"mrr@10", "mrr@100", "recall@100", "recall@1000"}
    assert set(results["n_queries"]) == {20}
    model = dict(zip(results["system"], results["model"], strict=True))
    assert model["mE5-base"] == f"intfloat/multilingual-e5-base@{COMMIT}"
    assert model["ColBERT-XM"].endswith("(made here)")
    for stem in ("tab1_mmarco", "tab2_mrtydi", f"tab_eval_mmarco-REDUCED-{MAX_PASSAGES}_en_ar"):
        assert "REDUCED-45" in (figures / f"{stem}.md").read_text(), stem
    assert set(pd.read_csv(figures / "comparisons.csv")["collection"]) == {f"mmarco-REDUCED-{MAX_PASSAGES}"}
    built = [json.loads(path.read_text()) for path in (folder / "runs" / "indexes").glob("bm25-*/index/meta.json")]
    settings = {(index["collection"].partition("-")[0], index["k1"], index["b"]) for index in built}
    assert settings == {("mmarco", 0.82, 0.68), ("mrtydi", 0.9, 0.4)}
    assert "not run" in said(folder, "10_paper") and "FAIL" not in said(folder, "10_paper")


@pytest.mark.slow
def test_a_notebook_that_shall_only_plan_downloads_nothing_and_ends_well(tmp_path):
    folder = checkout(tmp_path / "checkout")
    with Hub() as hub:
        serve(hub, tmp_path / "replicas")
        out = str(tmp_path / "out.ipynb")
        given = ["-f", "params/03_eval.paper.yaml", "-p", "plan", "True", "-k", "python3"]
        process = run(folder, hub, "-m", "papermill", "notebooks/03_eval.ipynb", out, *given)
        assert process.returncode == 0, process.stderr
        assert {method for method, _, _ in hub.requests} == {"HEAD"}
    cells = [cell for cell in json.loads(Path(out).read_text())["cells"] if cell["cell_type"] == "code"]
    shown = [text for cell in cells for output in cell["outputs"] for text in output.get("text", [])]
    assert any("mmarco (en, ar): 6 files" in line for line in shown), "".join(shown)
    assert sum(bool(cell["execution_count"]) for cell in cells) <= 5
    assert not (folder / "runs").exists() and not (folder / "figures").exists() and not (folder / "data").exists()
