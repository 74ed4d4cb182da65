"""Folders of colbert-ai, the library of ColBERT's authors, and the .dnn files of its first version.

A folder holds what transformers saves, with the projection among the weights (`linear.weight`) and the architecture
HF_ColBERT in `config.json`, and `artifact.metadata`, the settings of its training. What a marker is called there need
not be in the vocabulary: in XLM-R's both [unused0] and [unused1] are `<unk>`.

Until version 0.2.21 (August 2024) colbert-ai put ". " in front of every text and the marker in place of the first token
of that. For BERT `.` is one token and nothing of it is left; for XLM-R it is two, and the second one stays
(`legacy_prefix`). The folder does not say which it was, but when it was written: the older layout is taken for those
written before. `Layout` fields given to `load` win. Where a newer version is to compute the older layout, as in what is
exported to it here, the dot is in the tokenizer's template, `<s> . $A </s>`, in which it puts its marker.

A .dnn file is a pickle of the weights of BERT and of the arguments of the training. The tokenizer is not in it; if it
does not lie beside it, it is fetched from the hub: the size of the vocabulary says which of BERT's it is.
"""

import json
import os
import re
from datetime import date, datetime
from pathlib import Path

import torch
from transformers import AutoTokenizer, BertConfig, BertModel, BertTokenizer

from xmlib.formats import checkpoint
from xmlib.formats.parts import Parts, linear
from xmlib.tokens import Layout

METADATA = "artifact.metadata"
ARCHITECTURE = "HF_ColBERT"
MARKER_IN_PLACE = date(2024, 8, 1)  # from when on the marker is put in, and no dot
BERT = {  # words in the vocabulary → whose it is
    30522: "google-bert/bert-base-uncased",
    28996: "google-bert/bert-base-cased",
    105879: "google-bert/bert-base-multilingual-uncased",
    119547: "google-bert/bert-base-multilingual-cased",
}


def is_colbert(folder: Path) -> bool:
    config = checkpoint.read_json(folder, "config.json") or {}
    return ARCHITECTURE in (config.get("architectures") or ()) or bool(checkpoint.tensors(folder, ("linear.weight",)))


def read(folder: Path) -> Parts:
    """The parts of a colbert-ai folder. ValueError where the projection is missing."""
    found = checkpoint.tensors(folder, ("linear.weight",))
    if not found:
        raise ValueError(f"{folder} is no ColBERT checkpoint: its weights have no linear.weight, the projection")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    settings = checkpoint.read_json(folder, METADATA) or {}
    settings = settings.get("config", settings)
    return Parts(folder, tokenizer, layout=_layout(settings, tokenizer), projection=linear(found["linear.weight"]))


def read_dnn(file: Path) -> Parts:
    """The parts of a ColBERT of the first version."""
    found = checkpoint.read_pickled(file)
    weights = found.get("model_state_dict") if isinstance(found, dict) else None
    if not weights:
        raise ValueError(f"{file} is no checkpoint of ColBERT's first version: it has no model_state_dict")
    weights = {name.removeprefix("module."): tensor.float() for name, tensor in weights.items()}
    if missing := [n for n in ("linear.weight", "bert.embeddings.word_embeddings.weight") if n not in weights]:
        raise ValueError(f"{file} has no {' and no '.join(missing)}; its weights: {', '.join(list(weights)[:4])}, …")
    state = {name.removeprefix("bert."): tensor for name, tensor in weights.items() if name.startswith("bert.")}
    state = {name: t for name, t in state.items() if not name.startswith("pooler.") and "position_ids" not in name}
    encoder = BertModel(_bert_of(state), add_pooling_layer=False)
    encoder.load_state_dict(state)
    tokenizer = _tokenizer_of(file, encoder.config.vocab_size)
    arguments = found.get("arguments") or {}
    layout = Layout(
        query_length=arguments.get("query_maxlen", 32),
        passage_length=arguments.get("doc_maxlen", 180),
        query_marker="[unused0]",
        passage_marker="[unused1]",
        legacy_prefix=_dot_stays(tokenizer),
        attend_to_mask_tokens=False,
        mask_punctuation="colbert" if arguments.get("mask_punctuation") else "none",
    )
    return Parts(encoder.eval(), tokenizer, layout=layout, projection=linear(weights["linear.weight"]))


def inexact(model) -> list[str]:
    """What of the model's layout colbert-ai has no setting for; empty where it computes the same vectors."""
    layout, found = model.layout, []
    if layout.mask_punctuation != "colbert":  # with mask_punctuation=False version 0.2.22 fails: no skiplist
        found.append(f"mask_punctuation is {layout.mask_punctuation!r}, and it knows 'colbert' alone")
    if not layout.augment_queries:
        found.append("augment_queries is off, and it fills every query with [M]")
    if layout.query_marker is None or layout.passage_marker is None:
        found.append("there is no marker, and it always puts one in")
    if model.query_prefix or model.passage_prefix:
        found.append("a text stands in front of queries or passages")
    if model.linear.bias is not None:
        found.append("the projection has a bias")
    return found


def write(model, folder: Path) -> None:
    """`artifact.metadata`. What else there has to be is what all folders have."""
    layout = model.layout
    settings = {
        "query_token_id": layout.query_marker,
        "doc_token_id": layout.passage_marker,
        "query_token": "[Q]",
        "doc_token": "[D]",
        "dim": model.linear.out_features,
        "similarity": "cosine",
        "query_maxlen": layout.query_length,
        "doc_maxlen": layout.passage_length,
        "attend_to_mask_tokens": layout.attend_to_mask_tokens,
        "mask_punctuation": True,
        "interaction": "colbert",
        "nbits": 2,
    }
    beside = folder / f"{METADATA}.partial"
    beside.write_text(json.dumps(settings, indent=2) + "\n")
    os.replace(beside, folder / METADATA)


def _layout(settings: dict, tokenizer) -> Layout:
    """`artifact.metadata` as a layout; where it says nothing colbert-ai's own defaults."""
    written = _written(settings)
    older = written is not None and written < MARKER_IN_PLACE and _dot_stays(tokenizer)
    return Layout(
        query_length=settings.get("query_maxlen", 32),
        passage_length=settings.get("doc_maxlen", 220),
        query_marker=settings.get("query_token_id", "[unused0]"),
        passage_marker=settings.get("doc_token_id", "[unused1]"),
        legacy_prefix=older or tokenizer.tokenize("", add_special_tokens=True)[1:-1] == ["."],  # as it is exported
        attend_to_mask_tokens=settings.get("attend_to_mask_tokens", False),
        mask_punctuation="colbert" if settings.get("mask_punctuation", True) else "none",
    )


def _written(settings: dict) -> date | None:
    """The day of the training: the file's own date, or that in the name of the run."""
    if found := re.match(r"\w{3} \d{1,2}, \d{4}", (settings.get("meta") or {}).get("current_datetime") or ""):
        return datetime.strptime(found[0], "%b %d, %Y").date()
    if found := re.search(r"(20\d\d)-(\d\d)[-/](\d\d)", settings.get("name") or ""):
        return date(*map(int, found.groups()))
    return None


def _dot_stays(tokenizer) -> bool:
    """Whether a dot is left of ". " when a marker takes the place of its first token."""
    return len(tokenizer(".", add_special_tokens=False)["input_ids"]) == 2


def _bert_of(state: dict[str, torch.Tensor]) -> BertConfig:
    """The configuration that the shapes of the weights tell. All published BERTs have heads of 64."""
    words, hidden = state["embeddings.word_embeddings.weight"].shape
    return BertConfig(
        vocab_size=words,
        hidden_size=hidden,
        num_hidden_layers=1 + max(int(n.split(".")[2]) for n in state if n.startswith("encoder.layer.")),
        num_attention_heads=hidden // 64,
        intermediate_size=len(state["encoder.layer.0.intermediate.dense.weight"]),
        max_position_embeddings=len(state["embeddings.position_embeddings.weight"]),
        type_vocab_size=len(state["embeddings.token_type_embeddings.weight"]),
    )


def _tokenizer_of(file: Path, words: int):
    if (file.parent / "tokenizer.json").is_file():
        return AutoTokenizer.from_pretrained(file.parent, trust_remote_code=False)
    if (file.parent / "vocab.txt").is_file():
        return BertTokenizer.from_pretrained(file.parent)
    if words not in BERT:
        sizes = ", ".join(f"{size} ({name})" for size, name in BERT.items())
        raise ValueError(
            f"{file} has a vocabulary of {words}, whose tokenizer is not known; known sizes: {sizes}. "
            "Put tokenizer.json or vocab.txt beside it"
        )
    return AutoTokenizer.from_pretrained(checkpoint.locate(BERT[words], weights=False), trust_remote_code=False)
