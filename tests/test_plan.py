"""What is told before anything is done: sizes asked of a hub on loopback, arithmetic by hand, the paper's scores."""

import pytest
from hub_server import serving

from xmlib import notebook, plan, stages
from xmlib.data import hub, msmarco, published
from xmlib.plan import Place


@pytest.fixture
def server(tmp_path, monkeypatch):
    for module in (published, hub, msmarco, plan):
        monkeypatch.setattr(module, "DATA", tmp_path / "data")
    with serving(monkeypatch, tmp_path) as hub_server:
        sources = published.PUBLISHED.values()
        hub_server.revisions |= {source.repository.revision for source in sources} | {msmarco.REVISION}
        hub_server.add("unicamp-dl/mmarco", "data/google/collections/arabic_collection.tsv", b"7" * 5_000_000)
        hub_server.add("unicamp-dl/mmarco", "data/google/queries/dev/arabic_queries.dev.small.tsv", b"7" * 1000)
        hub_server.add("unicamp-dl/mmarco", "data/qrels.dev.small.tsv", b"7" * 1000, git=True)
        yield hub_server


def parameters(stem: str, profile: str = "paper", **changes) -> dict:
    return notebook.settings(stem, profile) | {"profile": profile} | changes


def test_profiles_that_download_nothing_say_so_in_one_line():
    for profile in ("smoke", "demo", "small"):
        for stem in ("00_data", "01_train", "02_index", "03_eval", "04_compare", "05_carbon", "06_scaling", "10_paper"):
            told = plan.plan(stem, parameters(stem, profile))
            assert told == f"plan of {stem}, profile {profile}: nothing is downloaded"


def test_sizes_are_those_that_the_hub_states_and_nothing_is_fetched(server):
    told = plan.plan("00_data", parameters("00_data", lang="ar"))
    assert "mmarco (ar): 3 files, 5 MB (licence: MS MARCO: non-commercial research; translations: Apache-2.0)" in told
    assert "Table 1, mrr@10 × 100" in told and "BM25: ar 11.1 · avg 14.2" in told
    assert {method for method, _, _ in server.requests} == {"HEAD"}
    assert not plan.DATA.exists()


def test_a_file_that_is_not_there_does_not_hide_the_others(server):
    told = plan.plan("00_data", parameters("00_data", lang="de,ar"))
    assert "mmarco (de, ar): 5 files, 3.5 GB and 1 of unknown size" in told  # German: as its page showed it


def test_without_a_connection_the_sizes_of_the_pages_stand_in_and_are_marked(server, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    told = plan.plan("01_train", parameters("01_train"))
    assert "mmarco (en): 2 files, 3.1 GB, as its page showed and 1 of unknown size" in told
    assert "facebook/xmod-base, weights of the encoder: 1 file, 3.4 GB, as its page showed (licence: MIT)" in told
    assert server.requests == []


def test_what_is_in_the_cache_or_packed_is_not_downloaded_again(server, monkeypatch):
    files = published.files("mmarco", "ar")
    for file in files[1:]:
        hub.fetch([file], "questions", "any", say=lambda line: None)
    told = plan.plan("00_data", parameters("00_data", lang="ar"))
    assert "mmarco (ar): 1 file, 5 MB" in told
    with monkeypatch.context() as patch:
        patch.setattr(published, "is_built", lambda make: True)
        assert "mmarco (ar): here already" in plan.plan("00_data", parameters("00_data", lang="ar"))


def test_training_time_worked_by_hand():
    needs = plan.Needs(runs=[("ColBERT-XM", 50_000, 128)], query_tokens=32)
    # 6.4e6 examples x (32 + 2 x 79) tokens x 0.54e9 FLOP / 3.65e14 FLOP/s = 1799 s
    told = plan.times(needs)[0]
    assert told == "train ColBERT-XM, 50,000 steps of 128: 30 min at least; 7.5 h at the paper's pace for ColBERT-XM"


def test_the_size_of_an_index_is_that_of_its_formula():
    row, place = plan.PAPER["ColBERT-XM"], Place("mmarco", "en")
    tokens = 8_841_823 * 79  # 2^18 centroids: 16 x sqrt(7e8) = 422,868
    assert plan._index_bytes(row, place, dim=128) == tokens * (256 + 18) / 8
    assert plan._index_bytes(plan.PAPER["mT5-base"], place, dim=128) == 0  # BM25's, another row
    assert Place("mmarco", "en", max_passages=1000).passages == 1000
    assert Place("mrtydi", "sw", max_passages=10**9).passages == 136_689
    assert Place("miracl", "yo").passages == 0


def test_too_small_a_disk_is_named_with_what_moves_the_folders(server, monkeypatch):
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1e6}))
    told = plan.plan("00_data", parameters("00_data", lang="ar"))
    assert "NOT ENOUGH: " in told and "XMLIB_DATA, XMLIB_RUNS and HF_HUB_CACHE move them" in told


def test_scores_on_reduced_collections_are_not_expected_to_be_the_papers(server):
    told = plan.plan("03_eval", parameters("03_eval", lang="ar", max_passages=1000))
    assert "with REDUCED-1000 all scores are higher, and compare with nothing above" in told
    assert "ColBERT-XM: ar 19.5 · avg 26.2" in told and "ColBERT-XM: ar 55.2 · avg 49.0" in told


def test_published_rows_name_their_checkpoints_and_a_given_one_is_planned_instead(server):
    told = plan.plan("03_eval", parameters("03_eval", lang="ar", systems="mE5,ColBERT-XM"))
    assert "intfloat/multilingual-e5-base, weights of mE5-base" in told and "xmod-base" in told
    given = dict(systems="ColBERT-XM", checkpoints="ColBERT-XM=antoinelouis/colbert-xm")
    told = plan.plan("03_eval", parameters("03_eval", lang="ar", **given))
    assert "antoinelouis/colbert-xm, weights of ColBERT-XM" in told
    assert "xmod-base" not in told and "train " not in told  # nothing is trained for it


def test_announcing_ends_the_notebook_only_where_it_is_told_to(capsys):
    names = parameters("10_paper", "demo", plan=False)
    plan.announce("10_paper", names)
    with pytest.raises(SystemExit) as ended:
        plan.announce("10_paper", names | {"plan": True})
    assert ended.value.code == 0  # which papermill and the shell take for success
    assert capsys.readouterr().out == 2 * "plan of 10_paper, profile demo: nothing is downloaded\n"


def test_all_notebooks_together_count_what_they_share_once(server):
    stems = ("00_data", "03_eval", "04_compare")
    told = plan.together({stem: parameters(stem, lang="ar", systems="BM25") if stem == "03_eval" else
                          parameters(stem, lang="ar") for stem in stems})  # fmt: skip
    assert told.count("mmarco (ar, en)") == 1 and told.startswith("all 3 notebooks together")


def test_nothing_that_a_plan_looks_for_is_built(server):
    assert not stages.is_built(lambda: published._packed("mmarco", "ar"))
    plan.plan("00_data", parameters("00_data", lang="ar"))
    assert not stages.is_built(lambda: published._packed("mmarco", "ar"))
