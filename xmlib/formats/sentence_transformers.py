"""Folders of sentence-transformers: a list of modules in `modules.json`, each with a folder of its own.

A `SentenceTransformer` pools: Transformer, Pooling, any number of Dense, Normalize. A `MultiVectorEncoder` does not:
Transformer, Dense, MultiVectorMask, Normalize. PyLate's folders are of an older dialect of the second: Transformer,
Dense, and the settings in `config_sentence_transformers.json`. That dialect is what is written here, since both
libraries read it.

How a layout is told there. A marker is a token that PyLate puts behind [CLS], and that sentence-transformers writes
in front of the text, which comes to the same, as it is a special token. The tokens that punctuation masking leaves out
are listed one by one. The dot of the `legacy_prefix` goes into the template of the tokenizer, `<s> <unk> . $A </s>`,
which queries and passages share; so do their markers there, which are the same token in the released checkpoint.

X-MOD. Neither library takes a language along with a text: the adapters are those of `default_language` in
`config.json`, until `model[0].auto_model.set_default_language("sw_KE")` is called.
"""

import json
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoTokenizer

from xmlib.formats import checkpoint
from xmlib.formats.parts import Parts, linear
from xmlib.models import POOLING, SIMILARITIES
from xmlib.tokens import PUNCTUATION, SINGLE_VECTOR, Layout, punctuation_ids

MODULES, SETTINGS = "modules.json", "config_sentence_transformers.json"
KNOWN = ("Transformer", "Pooling", "Dense", "Normalize", "MultiVectorMask")
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid")  # of torch.nn; a checkpoint may name no others
SIDES = {"query": "query", "passage": "document"}  # here, there
OLD_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def read(folder: Path) -> Parts:
    """The parts that `modules.json` lists. ValueError, with the module, for what no retriever here can do."""
    modules = [(module["type"].rpartition(".")[2], module["path"]) for module in checkpoint.read_json(folder, MODULES)]
    for name, _ in modules:
        _expect(folder, "module", name, KNOWN)
    names = [name for name, _ in modules]
    if names[0] != "Transformer" or names.count("Transformer") != 1 or names.count("Pooling") > 1:
        raise ValueError(f"{folder} has the modules {', '.join(names)}; it takes one Transformer, first")
    settings = checkpoint.read_json(folder, SETTINGS) or {}
    encoder = folder / modules[0][1]
    shape = next((json.loads(path.read_text()) for path in sorted(encoder.glob("sentence_*_config.json"))), {})
    tokenizer = AutoTokenizer.from_pretrained(encoder, trust_remote_code=False)
    if shape.get("do_lower_case") and tokenizer.tokenize("A") != tokenizer.tokenize("a"):
        raise ValueError(f"{folder} lower-cases texts before its tokenizer does not; that is not supported")
    parts = Parts(encoder, tokenizer)
    prompts = settings.get("prompts") or {}
    parts.query_prefix = prompts.get("query") or ""
    parts.passage_prefix = next((prompts[n] for n in ("document", "passage", "corpus") if prompts.get(n)), "")
    dense = [_dense(folder / path) for name, path in modules if name == "Dense"]
    if "Pooling" in names:
        _read_pooled(parts, folder, modules, settings, shape, dense)
    else:
        parts.projection = _folded(folder, dense)
        mask = [
            checkpoint.read_json(folder / path, "config.json") or {} for n, path in modules if n == "MultiVectorMask"
        ]
        parts.layout = _native(parts, folder, shape, mask[0]) if mask else _pylate(parts, settings)
    return parts


def write(model, folder: Path) -> None:
    """All but the weights and the tokenizer of the encoder, which lie in the folder already."""
    modules = [("sentence_transformers.models.Transformer", "", None)]
    prompts = {"query": model.query_prefix, "document": model.passage_prefix}
    settings = {"prompts": prompts, "default_prompt_name": None}
    lengths = {"query_length": model.lengths[0], "document_length": model.lengths[1]}
    shape = {"max_seq_length": max(model.lengths), "do_lower_case": False}
    if hasattr(model, "linear"):
        modules.append(("pylate.models.Dense.Dense", "1_Dense", (model.linear, "Identity")))
        settings |= {"model_type": "ColBERT", "similarity_fn_name": "MaxSim"} | _pylate_settings(model)
    else:
        pooling = {"word_embedding_dimension": model.config.hidden_size}
        pooling |= {name: mode == model.pooling for name, mode in OLD_POOLING.items()} | {"include_prompt": True}
        modules.append(("sentence_transformers.models.Pooling", "1_Pooling", pooling))
        for map_, activation in model.head_layers():
            modules.append(("sentence_transformers.models.Dense", f"{len(modules)}_Dense", (map_, activation)))
        if model.similarity == "cosine":
            modules.append(("sentence_transformers.models.Normalize", f"{len(modules)}_Normalize", {}))
        settings |= {"model_type": "SentenceTransformer", "similarity_fn_name": model.similarity}
        shape |= lengths if len(set(model.lengths)) > 1 else {}  # before version 6 there was but one
    for _, path, content in modules[1:]:
        (folder / path).mkdir(exist_ok=True)
        if isinstance(content, tuple):
            _write_dense(folder / path, *content)
        elif content:
            _write_json(folder / path / "config.json", content)
    _write_json(folder / "sentence_bert_config.json", shape)
    _write_json(folder / SETTINGS, settings)
    listed = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (kind, path, _) in enumerate(modules)]
    _write_json(folder / MODULES, listed)


def inexact(model) -> list[str]:
    """What of a layout the two libraries have no setting for; empty where they compute the same vectors."""
    if not hasattr(model, "linear") or not model.layout.legacy_prefix:
        return []
    markers = {_token(model.tokenizer, m) for m in (model.layout.query_marker, model.layout.passage_marker)}
    return ["legacy_prefix with two different markers"] * (len(markers) > 1)


def template(model) -> list[str] | None:
    """The tokens that the tokenizer has to put in front of every text; None where its own are the model's."""
    layout, tokenizer = model.layout, model.tokenizer
    if layout is None:
        return None
    if not layout.legacy_prefix:
        return [tokenizer.cls_token]
    return [t for t in (tokenizer.cls_token, _token(tokenizer, layout.query_marker), ".") if t]


def _pylate_settings(model) -> dict:
    layout, tokenizer = model.layout, model.tokenizer
    inside = layout.legacy_prefix  # the template has the marker
    skipped = sorted(punctuation_ids(tokenizer, layout.mask_punctuation))
    return {
        "query_prefix": "" if inside else _token(tokenizer, layout.query_marker),
        "document_prefix": "" if inside else _token(tokenizer, layout.passage_marker),
        "query_length": layout.query_length,
        "document_length": layout.passage_length,
        "do_query_expansion": layout.augment_queries,
        "attend_to_expansion_tokens": layout.augment_queries and layout.attend_to_mask_tokens,
        "skiplist_words": tokenizer.convert_ids_to_tokens(skipped),
    }


def _token(tokenizer, marker: str | None) -> str:
    """The token that a marker is in this vocabulary; none for none."""
    return "" if marker is None else tokenizer.convert_ids_to_tokens(tokenizer.convert_tokens_to_ids(marker))


def _read_pooled(parts: Parts, folder: Path, modules: list, settings: dict, shape: dict, dense: list) -> None:
    order = [name for name, _ in modules[1:]]
    expected = ["Pooling", *["Dense"] * len(dense), *["Normalize"] * ("Normalize" in order)]
    if order != expected:
        raise ValueError(f"{folder} has the modules Transformer, {', '.join(order)}; known is {', '.join(expected)}")
    pooling = checkpoint.read_json(folder / modules[1][1], "config.json")
    modes = pooling.get("pooling_mode") or [mode for name, mode in OLD_POOLING.items() if pooling.get(name)]
    modes = [modes] if isinstance(modes, str) else modes
    parts.pooling = _expect(folder, "pooling", " + ".join(modes), POOLING)
    if not pooling.get("include_prompt", True) and (parts.query_prefix or parts.passage_prefix):
        raise ValueError(f"{folder} leaves its prompts out of the pooling; that is not supported")
    similarity = "cosine" if "Normalize" in order else settings.get("similarity_fn_name") or "cosine"
    parts.similarity = _expect(folder, "similarity", similarity, SIMILARITIES)
    parts.length = shape.get("max_seq_length") or _longest(parts.tokenizer)
    if "query_length" in shape or "document_length" in shape:
        lengths = {f"{side}_length": shape.get(f"{name}_length") or parts.length for side, name in SIDES.items()}
        parts.layout = replace(SINGLE_VECTOR, **lengths)
    for weight, bias, residual, activation in dense:
        if residual is not None and activation != "Identity":
            raise ValueError(f"{folder} has a Dense with a residual and {activation}; that is not supported")
        parts.head.append((linear(weight if residual is None else weight + residual, bias), activation))


def _longest(tokenizer) -> int:
    """Tokenizers that know no limit state a huge number."""
    return min(tokenizer.model_max_length, 512)


def _pylate(parts: Parts, settings: dict) -> Layout:
    """PyLate's settings as a layout; where they say nothing, PyLate's defaults."""
    markers = {
        side: settings.get(f"{side}_prefix", default) for side, default in (("query", "[Q] "), ("document", "[D] "))
    }
    head = _head_tokens(parts.tokenizer)
    if head and not any(markers.values()):  # as `template` writes it
        markers = dict.fromkeys(markers, head[0])
        head = head[1:]
    if head not in ([], ["."]):
        raise ValueError(f"{parts.encoder}: its tokenizer begins texts with {' '.join(head)}; that is not supported")
    words = settings.get("skiplist_words")
    skipped = punctuation_ids(parts.tokenizer, "pylate") if words is None else _ids(parts.tokenizer, words)
    return Layout(
        query_length=settings.get("query_length") or 32,
        passage_length=settings.get("document_length") or 180,
        query_marker=markers["query"] or None,
        passage_marker=markers["document"] or None,
        legacy_prefix=bool(head),
        augment_queries=settings.get("do_query_expansion", True),
        attend_to_mask_tokens=settings.get("attend_to_expansion_tokens", False),
        mask_punctuation=_named(parts.tokenizer, skipped),
    )


def _native(parts: Parts, folder: Path, shape: dict, mask: dict) -> Layout:
    """A `MultiVectorEncoder`'s settings as a layout."""
    tokenizer = parts.tokenizer
    if head := _head_tokens(tokenizer):
        raise ValueError(f"{folder}: its tokenizer begins texts with {' '.join(head)}; that is not supported")
    expansion = shape.get("query_expansion")
    if expansion:
        _expect(folder, "query expansion", expansion["strategy"], ("fixed",))
        _expect(folder, "expansion token", expansion.get("token") or tokenizer.mask_token, (tokenizer.mask_token,))
    tasks = mask.get("skiplist_tasks") or ["document"]
    _expect(folder, "skiplist tasks", ", ".join(tasks), ("document",))
    if mask.get("keep_only_token_ids"):
        raise ValueError(f"{folder} keeps only some token ids (keep_only_token_ids); that is not supported")
    longest = shape.get("max_seq_length") or _longest(tokenizer)
    # a word that the vocabulary lacks is dropped there, where PyLate would leave out every <unk>
    skipped = _ids(tokenizer, mask.get("skiplist_words") or ()) - {tokenizer.unk_token_id}
    parts.query_prefix, query_marker = _split_marker(tokenizer, parts.query_prefix)
    parts.passage_prefix, passage_marker = _split_marker(tokenizer, parts.passage_prefix)
    return Layout(
        query_length=expansion["length"] if expansion else shape.get("query_length") or longest,
        passage_length=shape.get("document_length") or longest,
        query_marker=query_marker,
        passage_marker=passage_marker,
        augment_queries=bool(expansion),
        attend_to_mask_tokens=bool(expansion and expansion.get("attend")),
        mask_punctuation=_named(tokenizer, skipped),
    )


def _split_marker(tokenizer, prompt: str) -> tuple[str, str | None]:
    """A prompt as (text, marker): one that is a token of its own in front of any text is a marker."""
    probe = tokenizer.tokenize("a")
    for marker in (prompt, prompt.strip()):
        if marker in tokenizer.get_vocab() and tokenizer.tokenize(prompt + "a") == [marker, *probe]:
            return "", marker
    return prompt, None


def _head_tokens(tokenizer) -> list[str]:
    """What the tokenizer puts between [CLS] and a text."""
    ids = tokenizer("")["input_ids"]
    if not ids or ids[0] != tokenizer.cls_token_id or ids[-1] != tokenizer.sep_token_id:
        raise ValueError("its tokenizer does not put texts between [CLS] and [SEP]; other encoders are not supported")
    return tokenizer.convert_ids_to_tokens(ids[1:-1])


def _ids(tokenizer, words) -> set[int]:
    return {tokenizer.convert_tokens_to_ids(word) for word in words}


def _named(tokenizer, skipped: set[int]) -> str | tuple[str, ...]:
    """The kind of punctuation masking that leaves out these tokens; the tokens, where it is none of them."""
    for kind in PUNCTUATION:
        if punctuation_ids(tokenizer, kind) == skipped:
            return kind
    return tuple(tokenizer.convert_ids_to_tokens(sorted(skipped)))


def _dense(folder: Path) -> tuple:
    """(weight, bias, residual, activation) of a Dense module; None for what it does not have."""
    config = checkpoint.read_json(folder, "config.json")
    activation = config.get("activation_function", "Tanh").rpartition(".")[2]
    _expect(folder, "activation", activation, ACTIVATIONS)
    found = checkpoint.tensors(folder, ("linear.weight", "linear.bias", "residual.weight"))
    residual = found.get("residual.weight")
    if config.get("use_residual") and residual is None:
        residual = torch.eye(len(found["linear.weight"]))
    return found["linear.weight"], found.get("linear.bias"), residual, activation


def _folded(folder: Path, dense: list[tuple]) -> torch.nn.Linear:
    """Linear maps behind one another are one linear map."""
    if not dense:
        raise ValueError(f"{folder} has no Dense module, the projection of the token vectors")
    weight, bias = None, None
    for weight_next, bias_next, residual, activation in dense:
        if activation != "Identity":
            raise ValueError(f"{folder} projects token vectors through {activation}; only linear maps are supported")
        own = weight_next if residual is None else weight_next + residual
        bias = bias_next if bias is None else own @ bias + (0 if bias_next is None else bias_next)
        weight = own if weight is None else own @ weight
    return linear(weight, bias)


def _write_dense(folder: Path, map_: torch.nn.Linear, activation: str) -> None:
    from safetensors.torch import save_file

    state = {f"linear.{name}": tensor.detach().cpu().contiguous() for name, tensor in map_.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    home = "linear" if activation == "Identity" else "activation"
    config = {
        "in_features": map_.in_features,
        "out_features": map_.out_features,
        "bias": map_.bias is not None,
        "activation_function": f"torch.nn.modules.{home}.{activation}",
    }
    _write_json(folder / "config.json", config)


def _write_json(path: Path, content: dict | list) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _expect(folder: Path, what: str, found: str, known: tuple[str, ...]) -> str:
    if found not in known:
        raise ValueError(f"{folder}: {what} {found!r} is not supported; known: {', '.join(known)}")
    return found
