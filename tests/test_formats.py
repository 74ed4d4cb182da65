"""Folders of other libraries: theirs give the same vectors here, ours the same there; pruning; nothing foreign is run.

The other side is sentence-transformers itself. What PyLate and colbert-ai compute is compared in
`benchmarks/interchange.py`, since their pins conflict with ours; here their folders are replicas.
"""

import json
import os
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from sentence_transformers import MultiVectorEncoder, SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import AddedToken, Tokenizer
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizer,
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    XLMRobertaModel,
    XmodConfig,
    XmodForMaskedLM,
    XmodForSequenceClassification,
)

from tests import toys
from tests.hub_server import COMMIT, serving
from tests.test_models import TEXTS, plain
from xmlib import formats, systems
from xmlib.formats import colbert_ai
from xmlib.formats.checkpoint import wanted
from xmlib.models import BiEncoder, Colbert, ColbertXM, DprXM, load
from xmlib.systems import PAPER
from xmlib.tokens import RELEASED, Layout, punctuation_ids

SIZE = dict(query_length=12, passage_length=32)
LAYOUTS = {
    "ours": Layout(**SIZE),
    "released": replace(RELEASED, **SIZE),
    "colbert-ai": Layout(**SIZE, mask_punctuation="colbert", attend_to_mask_tokens=False),
    "pylate": Layout(**SIZE, passage_marker="[Q]", mask_punctuation="pylate"),
    "bare": Layout(
        **SIZE,
        query_marker=None,
        passage_marker=None,
        augment_queries=False,
        attend_to_mask_tokens=False,
        mask_punctuation="none",
    ),
}


def agree(model, other, lang="sw"):
    """The same token vectors as a `MultiVectorEncoder`, of the same tokens."""
    q_ASH, q_mask_AS = model.encode_queries(TEXTS, lang)
    for ours, mask, theirs in zip(q_ASH, q_mask_AS, other.encode_query(TEXTS, convert_to_numpy=True), strict=True):
        np.testing.assert_allclose(ours[mask], theirs, atol=1e-4)
    found = model.tokenize_passages(TEXTS)
    with torch.no_grad():  # not rounded to 16 bits, as `encode_passages` does
        ours_TH = model.vectors(found, lang)[torch.from_numpy(found.scored_T)].numpy()
    np.testing.assert_allclose(ours_TH, np.concatenate(other.encode_document(TEXTS, convert_to_numpy=True)), atol=1e-4)


def agree_pooled(model, other, lang="sw"):
    for ours, theirs in (
        (model.encode_queries(TEXTS, lang), other.encode_query(TEXTS)),
        (model.encode_passages(TEXTS, lang), other.encode_document(TEXTS)),
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def same(one, two, lang="sw"):
    """Two models of ours with the same vectors."""
    for encode in ("encode_queries", "encode_passages"):
        a, b = (getattr(model, encode)(TEXTS, lang) for model in (one, two))
        a, b = (x if isinstance(x, np.ndarray) else x[0] if isinstance(x, tuple) else x.vectors_TH for x in (a, b))
        np.testing.assert_allclose(a, b, atol=1e-4)


def bert_tokenizer(folder) -> BertTokenizer:
    """WordPiece with BERT's special tokens, [unused0] among the words and [unused1] not."""
    words = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *toys.WORDS, *".,?!$"]
    words += [letter for letter in "abcdefghijklmnopqrstuvwxyz"] + [f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words))
    return BertTokenizer(str(folder / "vocab.txt"))


def bert(words: int) -> BertModel:
    torch.manual_seed(0)
    sizes = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=1, intermediate_size=96)
    config = BertConfig(vocab_size=words, max_position_embeddings=64, initializer_range=0.2, **sizes)
    return BertModel(config, add_pooling_layer=False).eval()


# --- ours, opened by sentence-transformers


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_saved_colbert_xm_is_the_same_in_sentence_transformers(name, tmp_path):
    model = toys.model(ColbertXM, layout=LAYOUTS[name], dim=16)
    model.save(tmp_path, lang="sw")
    other = MultiVectorEncoder(str(tmp_path), device="cpu")
    agree(model, other)
    other[0].auto_model.set_default_language("ar_AR")
    agree(model, other, "ar")
    same(ColbertXM.open(tmp_path), model, "en")


def test_without_a_language_the_folder_asks_for_one_instead_of_guessing(tmp_path):
    toys.model(ColbertXM, layout=LAYOUTS["ours"]).save(tmp_path)
    with pytest.raises(ValueError, match="Input language unknown"):
        MultiVectorEncoder(str(tmp_path), device="cpu").encode_query(TEXTS)
    with pytest.raises(ValueError, match="no language adapter for 'fi'; this model has: ar, en, sw"):
        formats.export(toys.model(ColbertXM), tmp_path, "pylate", lang="fi")


@pytest.mark.parametrize("name", ["ours", "released", "bare"])
def test_a_saved_colbert_is_the_same_in_sentence_transformers_and_opens_without_being_told_its_layout(name, tmp_path):
    model = plain(Colbert, dim=16, query_prefix="the " if name == "ours" else "", **vars(LAYOUTS[name]))
    model.save(tmp_path)
    agree(model, MultiVectorEncoder(str(tmp_path), device="cpu"))
    opened = Colbert.open(tmp_path)
    same(opened, model)
    assert opened.query_prefix == model.query_prefix
    assert replace(opened.layout, query_marker=None, passage_marker=None) == replace(
        model.layout, query_marker=None, passage_marker=None
    )


def test_saved_single_vector_models_are_the_same_in_sentence_transformers(tmp_path):
    dpr = toys.model(DprXM, pooling="max")
    dpr.save(tmp_path / "dpr", lang="sw")
    agree_pooled(dpr, SentenceTransformer(str(tmp_path / "dpr"), device="cpu"))
    recipe = dict(pooling="cls", similarity="dot", query_prefix="where ", passage_prefix="the ", length=(12, 20))
    model = plain(BiEncoder, **recipe, head=[(32, 8, True, "Tanh")])
    model.save(tmp_path / "any")
    agree_pooled(model, SentenceTransformer(str(tmp_path / "any"), device="cpu"))
    for cls, folder, saved in ((DprXM, "dpr", dpr), (BiEncoder, "any", model)):
        same(cls.open(tmp_path / folder), saved)


def test_an_export_that_would_not_compute_the_same_is_refused(tmp_path):
    with pytest.raises(ValueError, match="colbert-ai would not compute the same: mask_punctuation is 'unicode'"):
        formats.export(toys.model(ColbertXM), tmp_path, "colbert-ai")
    with pytest.raises(ValueError, match="legacy_prefix with two different markers"):
        formats.export(toys.model(ColbertXM, layout=Layout(legacy_prefix=True)), tmp_path, "pylate")
    with pytest.raises(ValueError, match="colbert-ai has no single-vector models; this is a dpr-xm"):
        formats.export(toys.model(DprXM), tmp_path, "colbert-ai")
    with pytest.raises(ValueError, match="library is 'ragatouille'; have: sentence-transformers, pylate, colbert-ai"):
        formats.export(toys.model(ColbertXM), tmp_path, "ragatouille")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["released", "colbert-ai"])
def test_an_export_to_colbert_ai_opens_here_with_its_layout(name, tmp_path):
    model = toys.model(ColbertXM, layout=LAYOUTS[name], dim=16)
    formats.export(model, tmp_path, "colbert-ai", lang="en")
    written = json.loads((tmp_path / "artifact.metadata").read_text())
    assert written["query_maxlen"] == 12 and written["mask_punctuation"] is True
    head = AutoTokenizer.from_pretrained(tmp_path).tokenize("", add_special_tokens=True)
    assert head == (["<s>", ".", "</s>"] if name == "released" else ["<s>", "</s>"])  # it puts the marker in itself
    (tmp_path / "xmlib.json").unlink()
    if (tmp_path / "modules.json").exists():
        (tmp_path / "modules.json").unlink()
    assert load(tmp_path).layout == model.layout


# --- theirs, opened here


def st_transformer(tmp_path, modular: bool, **settings) -> Transformer:
    folder = tmp_path / "encoder"
    model = toys.model(ColbertXM) if modular else plain(Colbert)
    model.save(folder, "sw")
    return Transformer(str(folder), **settings)


@pytest.mark.parametrize("modular", [True, False], ids=["xmod", "xlm-r"])
def test_a_multi_vector_encoder_opens_here(modular, tmp_path):
    expansion = {"strategy": "fixed", "length": 12, "attend": modular}
    first = st_transformer(tmp_path, modular, document_length=24, query_expansion=expansion)
    identity = dict(activation_function=torch.nn.Identity(), module_input_name="token_embeddings")
    dense = [Dense(32, 24, **identity), Dense(24, 24, bias=False, use_residual=True, **identity)]
    mask = MultiVectorMask(skiplist_words=["▁.", ",", "€"])  # the last is no token
    modules = [first, *dense, mask, Normalize(module_input_name="token_embeddings")]
    prompts = {"query": "[Q] ", "document": "[P]"} if modular else {"query": "where is ", "document": ""}
    other = MultiVectorEncoder(modules=modules, prompts=prompts, device="cpu")
    other.save(str(tmp_path / "mve"))
    model = load(tmp_path / "mve")
    agree(model, other)
    assert model.kind == ("colbert-xm" if modular else "colbert") and model.layout.mask_punctuation == ("▁.", ",")
    assert (model.layout.query_marker, model.query_prefix) == (("[Q]", "") if modular else (None, "where is "))
    model.save(tmp_path / "again", *["sw"] * modular)  # with its bias and its list of tokens
    agree(load(tmp_path / "again"), other)


def test_sentence_transformers_open_here(tmp_path):
    prompts = {"query": "where is ", "document": "the "}
    for modular in (True, False):
        first = st_transformer(tmp_path, modular, max_seq_length=16)
        for modules in ([Pooling(32, "mean")], [Pooling(32, "cls"), Dense(32, 8), Dense(8, 6), Normalize()]):
            other = SentenceTransformer(modules=[first, *modules], prompts=prompts, device="cpu")
            other.save(str(tmp_path / "st"))
            model = load(tmp_path / "st")
            assert (type(model), model.pooling) == (DprXM if modular else BiEncoder, modules[0].pooling_mode)
            assert model.lengths == (16, 16) and model.similarity == "cosine"
            other.append(Normalize())  # cosine is what both compute; here vectors are of unit length for it
            agree_pooled(model, other)
            model.save(tmp_path / "again")
            same(load(tmp_path / "again"), model)
            shutil.rmtree(tmp_path / "st")
    dotted = BiEncoder.open(tmp_path / "again", similarity="dot", query_prefix="a ", length=9)
    assert dotted.similarity == "dot" and dotted.query_prefix == "a " and dotted.lengths == (9, 9)
    with pytest.raises(
        ValueError, match="no setting query_marker; have: length, passage_prefix, pooling, query_prefix"
    ):
        load(tmp_path / "again", query_marker="[Q]")


def test_what_no_retriever_here_can_do_is_named(tmp_path):
    first = st_transformer(tmp_path, False)
    for number, (modules, message) in enumerate(
        [
            ([Pooling(32, "lasttoken")], "pooling 'lasttoken' is not supported; known: mean, max, cls"),
            ([Pooling(32, ("mean", "max"))], "pooling 'max \\+ mean' is not supported|pooling 'mean \\+ max'"),
            ([Pooling(32), Normalize(), Dense(32, 8)], "known is Pooling, Dense, Normalize"),
        ]
    ):
        SentenceTransformer(modules=[first, *modules], device="cpu").save(str(tmp_path / f"st{number}"))
        with pytest.raises(ValueError, match=message):
            load(tmp_path / f"st{number}")
    modules = json.loads((tmp_path / "st0" / "modules.json").read_text())
    modules[1]["type"] = "sentence_transformers.models.LSTM"
    (tmp_path / "st0" / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match="module 'LSTM' is not supported; known: Transformer, Pooling, Dense"):
        load(tmp_path / "st0")


def test_a_pylate_folder_opens_here_with_pylates_defaults(tmp_path):
    """As `ColBERT.save` writes it: its markers, with a space, are tokens that were added to the vocabulary."""
    model = plain(Colbert, dim=16, **vars(Layout(**SIZE, mask_punctuation="pylate", attend_to_mask_tokens=False)))
    model.save(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.add_tokens([AddedToken("[Q] "), AddedToken("[D] ")])
    tokenizer.save_pretrained(tmp_path)
    model.encoder.resize_token_embeddings(len(tokenizer))
    model.encoder.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config_sentence_transformers.json").read_text())
    for name in ("skiplist_words", "do_query_expansion", "attend_to_expansion_tokens", "prompts"):
        del settings[name]
    settings |= {"query_prefix": "[Q] ", "document_prefix": "[D] "}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(settings))
    opened = load(tmp_path)
    assert opened.layout == Layout(**SIZE, query_marker="[Q] ", passage_marker="[D] ", **vars_of_pylate())
    first_two = opened.tokenize_passages(TEXTS).ids_T[:2]
    assert first_two.tolist() == [tokenizer.cls_token_id, tokenizer.convert_tokens_to_ids("[D] ")]
    agree(opened, with_pylates_skiplist(MultiVectorEncoder(str(tmp_path), device="cpu")))


def vars_of_pylate() -> dict:
    return dict(attend_to_mask_tokens=False, mask_punctuation="pylate")


def with_pylates_skiplist(other: MultiVectorEncoder) -> MultiVectorEncoder:
    """sentence-transformers leaves `<unk>` among the scored tokens, where the vocabulary lacks a symbol; PyLate not."""
    mask = next(module for module in other if isinstance(module, MultiVectorMask))
    mask._skiplist_ids = torch.tensor(sorted(punctuation_ids(other.tokenizer, "pylate")))
    return other


def xlm_r_tokenizer() -> PreTrainedTokenizerFast:
    """The toy tokenizer, but "." is two pieces to it, as to that of XLM-R: `▁` and `.`."""
    made = json.loads(toys.tokenizer().backend_tokenizer.to_str())
    made["model"]["vocab"] = [["▁_" if token == "▁." else token, score] for token, score in made["model"]["vocab"]]
    names = ("bos_token", "cls_token", "pad_token", "eos_token", "sep_token", "unk_token", "mask_token")
    special = {name: getattr(toys.tokenizer(), name) for name in names}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(made)), **special)


def released_replica(folder, written="Jan 25, 2024 ; 6:33PM CET (+0100)"):
    """The layout of antoinelouis/colbert-xm: weights, config.json and artifact.metadata, no more."""
    model = toys.model(ColbertXM, layout=RELEASED, dim=16)
    model.tokenizer = xlm_r_tokenizer()
    model.save(folder, "en")
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
            path.unlink()
    model.tokenizer.save_pretrained(folder)
    metadata = {"query_token_id": "[unused0]", "doc_token_id": "[unused1]", "query_token": "[Q]", "doc_token": "[D]"}
    metadata |= {"query_maxlen": 32, "doc_maxlen": 256, "attend_to_mask_tokens": True, "mask_punctuation": True}
    metadata |= {"dim": 16, "similarity": "cosine", "checkpoint": "facebook/xmod-base", "nway": 2, "relu": False}
    metadata["meta"] = {"git_hash": "2760099", "current_datetime": written, "version": "colbert-v0.4"}
    (folder / "artifact.metadata").write_text(json.dumps(metadata))
    return model


def test_the_released_colbert_xm_opens_as_it_was_trained(tmp_path):
    model = released_replica(tmp_path)
    opened = load(tmp_path)
    assert isinstance(opened, ColbertXM) and opened.layout == RELEASED
    same(opened, model)
    assert load(tmp_path, legacy_prefix=False).layout == replace(RELEASED, legacy_prefix=False)
    released_replica(tmp_path, written="Nov 03, 2025 ; 6:33PM CET (+0100)")
    assert load(tmp_path).layout == replace(RELEASED, legacy_prefix=False)  # by a colbert-ai that puts no dot in


def test_an_encoder_alone_is_no_colbert_but_pools_by_the_recipe_given(tmp_path):
    encoder = plain(BiEncoder)
    encoder.encoder.save_pretrained(tmp_path)
    encoder.tokenizer.save_pretrained(tmp_path)
    same(BiEncoder.open(tmp_path, pooling="cls"), plain(BiEncoder, pooling="cls"))
    for opens in (load, Colbert.open):
        with pytest.raises(ValueError, match=r"an encoder alone: its weights have no linear\.weight"):
            opens(tmp_path)
    shutil.copy(tmp_path / "config.json", tmp_path / "modules.txt")
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"It has model.safetensors, modules.txt, .*known are xmlib.json .saved here"):
        load(tmp_path)


def test_weights_that_are_missing_are_not_made_up(tmp_path):
    from safetensors.torch import load_file, save_file

    plain(Colbert).save(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["roberta.encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"is not whole: its weights lack encoder\.layer\.1\.output\.dense\.weight"):
        Colbert.open(tmp_path)


# --- ColBERT's first version


def dnn_replica(folder, name="colbert-200000.dnn", **arguments):
    """As `save_checkpoint` of ColBERT's first version writes it, from several GPUs."""
    tokenizer = bert_tokenizer(folder)
    encoder, linear = bert(len(tokenizer)), torch.nn.Linear(64, 16, bias=False)
    state = {f"module.bert.{key}": tensor for key, tensor in encoder.state_dict().items()}
    state["module.bert.pooler.dense.weight"] = torch.zeros(64, 64)
    state["module.bert.embeddings.position_ids"] = torch.arange(64)[None]
    state["module.linear.weight"] = linear.weight.data
    found = {"epoch": 0, "batch": 200000, "model_state_dict": state, "optimizer_state_dict": {"state": {}}}
    torch.save(found | {"arguments": {"query_maxlen": 16, "doc_maxlen": 40, **arguments}}, folder / name)
    return encoder, linear, tokenizer


def test_a_dnn_file_opens_with_the_arguments_it_was_trained_with(tmp_path):
    encoder, linear, tokenizer = dnn_replica(tmp_path, mask_punctuation=True)
    model = load(tmp_path)
    layout = Layout(16, 40, "[unused0]", "[unused1]", attend_to_mask_tokens=False, mask_punctuation="colbert")
    assert isinstance(model, Colbert) and model.layout == layout
    same(load(tmp_path / "colbert-200000.dnn"), model)
    # the first version's way, literally: a dot in front, the marker in place of it, pads as [MASK] that none attends to
    text = "where is the old mill ?"
    ids = tokenizer(". " + text, padding="max_length", max_length=16, return_tensors="pt")
    ids["input_ids"][:, 1] = tokenizer.convert_tokens_to_ids("[unused0]")
    ids["input_ids"][ids["input_ids"] == tokenizer.pad_token_id] = tokenizer.mask_token_id
    with torch.no_grad():
        expected = torch.nn.functional.normalize(linear(encoder(**ids).last_hidden_state[0]), dim=-1)
    np.testing.assert_allclose(model.encode_queries([text], "de")[0][0], expected.numpy(), atol=1e-5)
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(ValueError, match=r"a vocabulary of 81, whose tokenizer is not known; known sizes: 30522"):
        load(tmp_path)


class Evil:
    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_nothing_in_a_checkpoint_is_run(tmp_path):
    evil = Evil()
    evil.folder = str(tmp_path / "done")
    bert_tokenizer(tmp_path / "v1")
    torch.save({"model_state_dict": evil}, tmp_path / "v1" / "colbert.dnn")
    with pytest.raises(ValueError, match=r"colbert\.dnn holds more than weights.*nothing of it was run"):
        load(tmp_path / "v1")
    (tmp_path / "v1" / "colbert.dnn").write_bytes(pickle.dumps(evil))
    with pytest.raises(ValueError, match="holds more than weights"), pytest.warns(UserWarning, match="pickle protocol"):
        load(tmp_path / "v1")
    folder = tmp_path / "remote"
    plain(Colbert).save(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"import os\nos.mkdir({evil.folder!r})\n")
    with pytest.raises(ValueError):
        load(folder)
    dense = json.loads((folder / "1_Dense" / "config.json").read_text()) | {"activation_function": "os.mkdir"}
    (folder / "1_Dense" / "config.json").write_text(json.dumps(dense))
    with pytest.raises(ValueError, match="activation 'mkdir' is not supported; known: Identity, Tanh"):
        load(folder)
    assert not os.path.exists(evil.folder)


# --- adapters that are not needed


def test_only_the_languages_wanted_are_opened_and_the_original_still_has_all(tmp_path):
    whole = toys.model(ColbertXM, layout=LAYOUTS["ours"])
    whole.save(tmp_path / "whole", "ar")
    few = load(tmp_path / "whole", languages=["sw", "en_XX"])
    assert few.languages == ["en_XX", "sw_KE"] and few.config.default_language is None
    same(few, whole)
    with pytest.raises(ValueError, match="no language adapter for 'ar'; this model has: en, sw"):
        few.encode_queries(TEXTS, "ar")
    with pytest.raises(ValueError, match="no language adapter for 'fi'"):
        load(tmp_path / "whole", languages=["fi"])
    few.save(tmp_path / "few", "sw")
    agree(whole, MultiVectorEncoder(str(tmp_path / "few"), device="cpu"))
    again = load(tmp_path / "whole")
    assert again.languages == whole.languages
    same(again, whole, "ar")
    assert ColbertXM.from_encoder(tmp_path / "few", languages=["sw"]).languages == ["sw_KE"]


def test_of_853_million_parameters_one_language_takes_285():
    names = ["en_XX", "sw_KE", *(f"x{i}_XX" for i in range(79))]
    base = dict(vocab_size=250002, max_position_embeddings=514, type_vocab_size=1, languages=names)
    counts = []
    for config in (XmodConfig(**base), formats.pruned(XmodConfig(**base), ["sw"])):
        with torch.device("meta"):
            counts.append(sum(parameter.numel() for parameter in ColbertXM(config).parameters()))
    assert counts == [852_570_624 - 590_592, 284_643_072]  # FACTS of the release, less its pooler, which is not used


# --- the published checkpoints, in miniature, from a hub


def put(hub, repo, folder):
    for path in folder.rglob("*"):
        if path.is_file():
            hub.add(repo, str(path.relative_to(folder)), path.read_bytes(), git=path.suffix in (".json", ".txt"))


def replicas(folder):
    """Folder by row of `PAPER`, each in the files that its repository has."""
    for name in ("ColBERT-XM", "mColBERT", "DPR-X", "mMiniLM-L6", "mono-XM", "mT5-base", "base"):
        (folder / name).mkdir()
    released_replica(folder / "ColBERT-XM")
    shutil.copytree(folder / "ColBERT-XM", folder / "ColBERT-XM with English adapters")
    first = st_transformer(folder, True, max_seq_length=128)
    SentenceTransformer(modules=[first, Pooling(32)], device="cpu").save(str(folder / "DPR-XM"))
    first = st_transformer(folder, False, max_seq_length=512)
    SentenceTransformer(modules=[first, Pooling(32), Normalize()], device="cpu").save(str(folder / "mE5-base"))
    (folder / "mColBERT" / "experiments" / "MSMARCO-psg").mkdir(parents=True)
    for steps in (2000, 200000):
        *_, bert_words = dnn_replica(folder / "mColBERT" / "experiments" / "MSMARCO-psg", f"colbert-{steps}.dnn")
    (folder / "mColBERT" / "experiments" / "MSMARCO-psg" / "vocab.txt").unlink()  # it is Google's, by its size
    bert_words.save_pretrained(folder / "bert")
    tokenizer = AutoTokenizer.from_pretrained(folder / "encoder")
    size = dict(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    size |= dict(intermediate_size=64, max_position_embeddings=520, type_vocab_size=1)
    made = {"DPR-X": XLMRobertaModel(XLMRobertaConfig(**size))}
    made["mMiniLM-L6"] = XLMRobertaForSequenceClassification(XLMRobertaConfig(**size, num_labels=1))
    made["mono-XM"] = XmodForSequenceClassification(toys.config(num_labels=1, max_position_embeddings=520))
    made["base"] = XmodForMaskedLM(toys.config())
    for name, model in made.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    tokenizer.add_tokens(["▁no", "▁yes"])
    tokenizer.save_pretrained(folder / "mT5-base")
    t5 = dict(d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=4, decoder_start_token_id=1)
    MT5ForConditionalGeneration(MT5Config(vocab_size=len(tokenizer), **t5)).save_pretrained(folder / "mT5-base")
    return {name: folder / name for name in PAPER if name != "BM25"}


def test_every_row_of_the_tables_opens_from_the_hub(tmp_path, monkeypatch, capsys):
    (tmp_path / "made").mkdir()
    folders = replicas(tmp_path / "made")
    systems._hub_identity.cache_clear()
    systems._open.cache_clear()
    with serving(monkeypatch, tmp_path) as hub:
        for name, folder in folders.items():
            put(hub, PAPER[name].model, folder)
        put(hub, "facebook/xmod-base", tmp_path / "made" / "base")
        put(hub, "google-bert/bert-base-multilingual-uncased", tmp_path / "made" / "bert")
        monkeypatch.setattr(colbert_ai, "BERT", {81: "google-bert/bert-base-multilingual-uncased"})
        hub.add(PAPER["ColBERT-XM"].model, "onnx/model.onnx", b"large")
        hub.add(PAPER["ColBERT-XM"].model, "pytorch_model.bin", b"large")
        for name, folder in folders.items():
            row = PAPER[name]
            assert systems.version(row) == f"{row.model}@{COMMIT}"
            model = systems.open_model(row.kind, row.model, **row.settings)
            assert model.kind == row.kind
            if row.group == "cross-encoder":
                assert np.isfinite(model.scores(["where"], ["the old mill"], "sw")).all()
            else:
                same(model, systems.open_model(row.kind, folder, **row.settings))
        assert ColbertXM.from_encoder("facebook/xmod-base", dim=8).languages == ["en_XX", "sw_KE", "ar_AR"]
        said = capsys.readouterr().out
        assert "downloading antoinelouis/colbert-xm: 5 files" in said and "(licence: mit)" in said
        fetched = {path.rpartition("/")[2] for method, path, _ in hub.requests if method == "GET" and "colbert" in path}
        assert not fetched & {"model.onnx", "pytorch_model.bin", "colbert-2000.dnn"}
        assert "colbert-200000.dnn" in fetched
        with pytest.raises(RuntimeError, match="no such repository"):
            load("nobody/nothing")
        asked = len(hub.requests)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert load("antoinelouis/dpr-xm").kind == "dpr-xm" and formats.commit("antoinelouis/dpr-xm") == COMMIT
        assert load(f"antoinelouis/colbert-xm@{COMMIT}").layout == RELEASED
        with pytest.raises(FileNotFoundError, match="is not in the hub's cache, and HF_HUB_OFFLINE forbids"):
            load("nobody/nothing")
        assert len(hub.requests) == asked
    with pytest.raises(FileNotFoundError, match="no folder 'runs/models/none/at/all'; and a hub id is owner/name"):
        load("runs/models/none/at/all")


def test_of_a_repository_only_the_model_is_fetched():
    parts = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    files = ["README.md", "config.json", "tokenizer.json", "model.safetensors.index.json", *parts]
    other = ["pytorch_model.bin", "tf_model.h5", "onnx/model.onnx", "openvino/config.json", "optimizer.pt"]
    modules = ["modules.json", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/pytorch_model.bin"]
    assert sorted(wanted([*files, *other, *modules])) == sorted([*files[1:], *modules])
    assert wanted(["config.json", "vocab.txt", "pytorch_model.bin", "training_args.bin"])[-1] == "pytorch_model.bin"
    assert wanted(["setup.py", "a/colbert-9.dnn", "a/colbert-10.dnn"]) == ["a/colbert-10.dnn"]
    assert wanted(["a/colbert-9.dnn", "a/colbert.dnn"]) == ["a/colbert.dnn"]
    assert wanted(["config.json", "vocab.txt", "model.safetensors"], weights=False) == ["config.json", "vocab.txt"]
