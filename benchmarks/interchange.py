"""Folders between this library, PyLate and colbert-ai: do both sides compute the same vectors of the same texts?

    python -m benchmarks.interchange --pylate .pylate/bin/python --colbert .colbert/bin/python

The pins of both conflict with ours and with each other's: each needs an environment of its own, see `peers.txt`. Every
case is a small model with random weights. It is saved here, opened and used there, saved there, and opened here again;
the report says how far the vectors of queries and of passages are apart, at most. More than 1e-4 fails.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np

TEXTS = [
    "The old bridge is north of the river.",
    "hello",
    "Where is the river, the city, the mill and the tower?",
    "new: 10 % (ten per cent) of it!",
]
TOLERANCE = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pylate", help="Python of an environment that has PyLate")
    parser.add_argument("--colbert", help="Python of an environment that has colbert-ai")
    parser.add_argument("--inside", nargs=2, metavar=("PEER", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        return inside(options.inside[0], Path(options.inside[1]))
    pythons = {"pylate": options.pylate, "colbert-ai": options.colbert}
    with tempfile.TemporaryDirectory() as work:
        found = [row for peer, python in pythons.items() if python for row in compare(peer, python, Path(work) / peer)]
    width = max(len(row["case"]) for row in found)
    for row in found:
        print(f"{row['peer']:24} {row['case']:{width}} {row['way']:15} {row['apart']:.1e}")
    if bad := [row for row in found if not row["apart"] <= TOLERANCE]:
        sys.exit(f"{len(bad)} of {len(found)} are further apart than {TOLERANCE}")


# --- here


def compare(peer: str, python: str, work: Path) -> list[dict]:
    from xmlib import formats

    inexact = {"pylate": formats.sentence_transformers, "colbert-ai": formats.colbert_ai}[peer].inexact
    made = {name: model for name, model in models().items() if not inexact(model)}  # what it has the settings for
    for name, model in made.items():
        folder = work / name / "ours"
        formats.export(model, folder, peer, *["sw"] * hasattr(model, "languages"))
    ours = {name: vectors(model) for name, model in made.items()}
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    command = [python, str(Path(__file__).resolve()), "--inside", peer, str(work)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{peer} failed:\n{done.stderr[-3000:]}")
    named = json.loads((work / "peer.json").read_text())
    rows = []
    for name in made:
        there = np.load(work / name / "there.npz")
        rows.append({"case": name, "way": "saved here", "apart": apart(ours[name], there)})
        back = formats.load(work / name / "theirs")
        rows.append({"case": name, "way": "saved there", "apart": apart(vectors(back), there)})
    return [{"peer": named} | row for row in rows]


def models() -> dict:
    """Cases by name: X-MOD and others, in the layouts that matter."""
    import torch
    from transformers import BertConfig, BertModel, XLMRobertaConfig, XLMRobertaModel, XmodConfig

    from xmlib.models import Colbert, ColbertXM
    from xmlib.pretraining import train_tokenizer
    from xmlib.tokens import RELEASED, Layout

    torch.manual_seed(0)
    pieces = train_tokenizer([*TEXTS, *map(str.lower, TEXTS), "a . , ? ! : % ( )"] * 20, 150)
    size = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, initializer_range=0.2)
    size |= dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    roberta = size | dict(vocab_size=len(pieces), max_position_embeddings=300, type_vocab_size=1, pad_token_id=1)
    xmod = XmodConfig(**roberta, languages=["en_XX", "sw_KE"])
    words = bert_tokenizer()
    bert = BertModel(BertConfig(**size, vocab_size=len(words), max_position_embeddings=300), add_pooling_layer=False)
    xlm_r = XLMRobertaModel(XLMRobertaConfig(**roberta), add_pooling_layer=False)
    first_version = dict(query_marker="[unused0]", passage_marker="[unused1]", attend_to_mask_tokens=False)
    return {
        "X-MOD, unicode": ColbertXM(xmod, pieces, Layout(), dim=16).eval(),
        "X-MOD, as colbert-ai": ColbertXM(xmod, pieces, Layout(mask_punctuation="colbert"), dim=16).eval(),
        "X-MOD, released, legacy prefix": ColbertXM(xmod, pieces, RELEASED, dim=16).eval(),
        "XLM-R, nothing masked": Colbert(xlm_r, pieces, 16, mask_punctuation="none").eval(),
        "XLM-R, without [M]": Colbert(xlm_r, pieces, 16, augment_queries=False, mask_punctuation="pylate").eval(),
        "BERT, first version": Colbert(bert, words, 16, **first_version, mask_punctuation="colbert").eval(),
    }


def bert_tokenizer():
    """WordPiece over the letters of the texts."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "[unused1]"]
    letters = sorted(set("".join(TEXTS).lower()) - {" "})
    vocabulary = [*special, *letters, *(f"##{letter}" for letter in letters)]
    made = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(tokenizer_object=made, **dict(zip(names, special, strict=False)))


def vectors(model) -> dict[str, np.ndarray]:
    """Token vectors of the texts as queries and as passages, one behind another."""
    import torch

    found = {}
    with torch.no_grad():
        for side, tokens in (("queries", model.tokenize_queries(TEXTS)), ("passages", model.tokenize_passages(TEXTS))):
            scored_T = torch.from_numpy(tokens.scored_T)
            found[side] = model.vectors(tokens, "sw")[scored_T].numpy()
    return found


def apart(ours, theirs) -> float:
    """The largest difference; infinite where there are not even the same tokens."""
    pairs = [(ours[side], theirs[side]) for side in ("queries", "passages")]
    return max(float(abs(a - b).max()) if a.shape == b.shape else float("inf") for a, b in pairs)


# --- there


def inside(peer: str, work: Path) -> None:
    """In the peer's environment: use every folder, and save it again."""
    for case in sorted(work.iterdir()):
        {"pylate": pylate, "colbert-ai": colbert_ai}[peer](case)
    names = {"pylate": ("pylate", "sentence-transformers"), "colbert-ai": ("colbert-ai",)}[peer]
    (work / "peer.json").write_text(json.dumps(" ".join(f"{n} {version(n)}" for n in (*names, "transformers")[:2])))


def pylate(case: Path) -> None:
    from pylate import models

    model = models.ColBERT(str(case / "ours"), device="cpu")
    found = {
        side: np.concatenate(model.encode(TEXTS, is_query=side == "queries", show_progress_bar=False))
        for side in ("queries", "passages")
    }
    np.savez(case / "there.npz", **found)
    model.save(str(case / "theirs"), create_model_card=False)


def colbert_ai(case: Path) -> None:
    import torch
    from colbert.infra import ColBERTConfig
    from colbert.modeling.checkpoint import Checkpoint

    Checkpoint.loaded_extensions = True  # its C++ is for search, and takes a minute to compile
    model = Checkpoint(str(case / "ours"), ColBERTConfig(), verbose=0)
    queries = model.queryFromText(TEXTS).flatten(0, 1)
    passages = torch.cat(model.docFromText(TEXTS, keep_dims=False))
    np.savez(case / "there.npz", queries=queries.float().numpy(), passages=passages.float().numpy())
    model.save(str(case / "theirs"))


if __name__ == "__main__":
    main()
