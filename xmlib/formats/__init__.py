"""Checkpoints of everybody's making: any folder or hub id opens as a retriever, and others open what is saved here.

| layout                                      | known by                  | opens as                               |
| ------------------------------------------- | ------------------------- | -------------------------------------- |
| this library                                | xmlib.json                | what was saved                         |
| sentence-transformers: SentenceTransformer  | modules.json with Pooling | `DprXM` over X-MOD, else `BiEncoder`   |
| … MultiVectorEncoder; PyLate                | modules.json without      | `ColbertXM` over X-MOD, else `Colbert` |
| colbert-ai                                  | linear.weight             | the same                               |
| ColBERT's first version                     | a .dnn file               | `Colbert`                              |
| transformers: an encoder                    | config.json alone         | a `BiEncoder` or `DprXM` by its recipe |

    model = load("antoinelouis/colbert-xm", languages=["en", "sw"])     # 2 of 81 adapters; the others are not read
    model.save(folder)                                                  # PyLate and sentence-transformers open it too
    export(model, folder, "colbert-ai", lang="sw")                      # refuses what that library cannot express

Nothing in a checkpoint is ever run.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, XmodConfig

from xmlib import models
from xmlib.formats import colbert_ai, sentence_transformers
from xmlib.formats.checkpoint import commit, dnn_files, locate, read_json, tensors
from xmlib.formats.parts import Parts, linear
from xmlib.languages import adapter_of
from xmlib.tokens import Layout

__all__ = ["LIBRARIES", "commit", "describe", "export", "load", "locate", "pruned"]

LIBRARIES = ("sentence-transformers", "pylate", "colbert-ai")
LAYOUTS = {
    "xmlib.json": "saved here",
    "modules.json": "sentence-transformers or PyLate",
    "linear.weight among the weights": "colbert-ai",
    "*.dnn": "ColBERT's first version",
    "config.json": "an encoder of transformers",
}


def load(
    checkpoint: str | Path, kind: str | None = None, languages: Sequence[str] | None = None, **settings
) -> "models.Retriever":
    """The retriever in a folder, a .dnn file or a hub repository, in evaluation mode.

    `kind`: what it has to be ("colbert-xm", "colbert", "dpr-xm" or "bi-encoder"); ValueError where it is not.
    `languages`: of an X-MOD keep these adapters only. `settings` win over what the checkpoint says: fields of `Layout`
    for token vectors; `pooling`, `similarity`, `length` for pooled ones; `query_prefix` and `passage_prefix` for both.
    """
    parts = _read(locate(checkpoint), checkpoint, kind)
    inside = isinstance(parts.encoder, torch.nn.Module)
    config = parts.encoder.config if inside else AutoConfig.from_pretrained(parts.encoder, trust_remote_code=False)
    modular, multi = config.model_type == "xmod", parts.projection is not None
    cls = (models.ColbertXM if multi else models.DprXM) if modular else (models.Colbert if multi else models.BiEncoder)
    if kind not in (None, cls.kind):
        raise ValueError(f"{checkpoint} holds a {cls.kind} model, not {kind}")
    if languages is not None and not modular:
        raise ValueError(f"{checkpoint} has no adapters of languages to choose from: it is a {config.model_type}")
    return cls.of(_with(parts, settings, checkpoint), pruned(config, languages) if modular else config).eval()


def pruned(config: XmodConfig, languages: Sequence[str] | None) -> XmodConfig:
    """An X-MOD's configuration with the adapters of these languages alone, in its own order; None: with all.

    Opened with it, the encoder has no others: of 852M parameters of xmod-base one language takes 285M.
    """
    if languages is None:
        return config
    chosen = {adapter_of(lang, config.languages) for lang in languages}
    config = copy.deepcopy(config)
    config.languages = [name for name in config.languages if name in chosen]
    if config.default_language not in chosen:
        config.default_language = None
    return config


def export(model: "models.Retriever", folder: str | Path, library: str, lang: str | None = None) -> None:
    """Save a model for one library, which then computes the same vectors. ValueError where it cannot.

    `lang`: the language in which that library encodes, of an X-MOD; it takes none along with a text.
    """
    if library not in LIBRARIES:
        raise ValueError(f"library is {library!r}; have: {', '.join(LIBRARIES)}")
    multi, folder = hasattr(model, "linear"), Path(folder)
    if not multi and library != "sentence-transformers":
        raise ValueError(f"{library} has no single-vector models; this is a {model.kind}")
    format_ = colbert_ai if library == "colbert-ai" else sentence_transformers
    if found := format_.inexact(model):
        raise ValueError(f"{library} would not compute the same: {'; '.join(found)}. Change the model first")
    model.save(folder, lang)
    if library == "colbert-ai" and model.layout.legacy_prefix:  # the marker comes from the library, the dot from here
        for name in (sentence_transformers.MODULES, sentence_transformers.SETTINGS):
            (folder / name).unlink()
        _save_tokenizer(model, folder, [model.tokenizer.cls_token, "."])
        colbert_ai.write(model, folder)


def describe(model: "models.Retriever", folder: Path, adapter: str | None) -> None:
    """Beside the weights of a model that was saved into `folder`: its tokenizer, and what other libraries read.

    `adapter`: of an X-MOD, whose adapter they use; None: they have to be told.
    """
    for name in (models.METADATA, sentence_transformers.MODULES, sentence_transformers.SETTINGS, colbert_ai.METADATA):
        (folder / name).unlink(missing_ok=True)  # of another model, that lay here before
    config = read_json(folder, "config.json")
    if hasattr(model, "linear"):
        config["architectures"] = [colbert_ai.ARCHITECTURE]
    if adapter is not None:
        config["default_language"] = adapter
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True) + "\n")
    exact = not sentence_transformers.inexact(model)
    _save_tokenizer(model, folder, sentence_transformers.template(model) if exact else None)
    if exact:
        sentence_transformers.write(model, folder)
    if hasattr(model, "linear") and not model.layout.legacy_prefix and not colbert_ai.inexact(model):
        colbert_ai.write(model, folder)


def _read(folder: Path, checkpoint: str | Path, kind: str | None) -> Parts:
    """The parts of whatever lies in the folder."""
    if folder.suffix == ".dnn":
        return colbert_ai.read_dnn(folder)
    if (folder / models.METADATA).is_file():
        return _saved_here(folder)
    if (folder / sentence_transformers.MODULES).is_file():
        return sentence_transformers.read(folder)
    if (folder / "config.json").is_file():
        if colbert_ai.is_colbert(folder):
            return colbert_ai.read(folder)
        if kind in ("bi-encoder", "dpr-xm"):
            return Parts(folder, AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
        raise ValueError(
            f"{checkpoint} is an encoder alone: its weights have no linear.weight, the projection of a ColBERT, and no "
            "modules.json says how to pool. BiEncoder.open pools it by the recipe you give; from_encoder trains one"
        )
    paths = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    if dnn := dnn_files(paths):
        return colbert_ai.read_dnn(folder / dnn[0])
    raise ValueError(
        f"{checkpoint} is no checkpoint that is known here. It has {', '.join(paths[:8]) or 'no file'}; known are "
        + ", ".join(f"{name} ({what})" for name, what in LAYOUTS.items())
    )


def _saved_here(folder: Path) -> Parts:
    """The parts of a folder that a modular model was saved in."""
    found = read_json(folder, models.METADATA)
    sizes = found["sizes"]
    weights = tensors(folder, ("linear.weight", "linear.bias"))
    parts = Parts(
        folder,
        AutoTokenizer.from_pretrained(folder, trust_remote_code=False),
        layout=Layout(**found["layout"]),
        record=found["record"],
        projection=linear(weights["linear.weight"], weights.get("linear.bias")) if weights else None,
        **{name: sizes[name] for name in ("query_prefix", "passage_prefix", "pooling", "similarity") if name in sizes},
    )
    for i, (_, _, bias, activation) in enumerate(sizes.get("head", ())):
        names = [f"head.{2 * i}.{name}" for name in ("weight", "bias")[: 1 + bias]]
        weights = tensors(folder, tuple(names))
        parts.head.append((linear(*(weights[name] for name in names)), activation))
    return parts


def _with(parts: Parts, settings: dict, checkpoint: str | Path) -> Parts:
    """The parts, with settings in place of what the checkpoint says."""
    own = {"query_prefix", "passage_prefix"}
    own |= {"pooling", "similarity", "length"} if parts.projection is None else set()
    layout = {field.name for field in fields(Layout)} if parts.projection is not None else set()
    if unknown := sorted(set(settings) - own - layout):
        raise ValueError(f"{checkpoint} has no setting {', '.join(unknown)}; have: {', '.join(sorted(own | layout))}")
    if "length" in settings:
        parts.layout = None
    parts = replace(parts, **{name: value for name, value in settings.items() if name in own})
    changes = {name: value for name, value in settings.items() if name in layout}
    return replace(parts, layout=replace(parts.layout, **changes)) if changes else parts


def _save_tokenizer(model: "models.Retriever", folder: Path, head: list[str] | None) -> None:
    """The tokenizer as transformers of all versions read it; with `head` in front of every text and [SEP] behind it."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(model.tokenizer)
    changed = head is not None and tokenizer("")["input_ids"] != tokenizer.convert_tokens_to_ids(
        [*head, tokenizer.sep_token]
    )
    if changed:
        ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in dict.fromkeys([*head, tokenizer.sep_token])]
        single = [*head, "$A", tokenizer.sep_token]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=ids)
    tokenizer.save_pretrained(folder)
    config = read_json(folder, "tokenizer_config.json")
    if changed or config["tokenizer_class"] == "TokenizersBackend":  # what version 5 calls it
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):  # likewise
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
