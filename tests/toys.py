"""Small made things that several tests need: a tokenizer whose vocabulary one can read, toy models, triples."""

from functools import cache

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast, XmodConfig

from xmlib.data.triples import Triples

WORDS = "hello world where is the river city old new red blue green north south bank bridge tower mill a b".split()
SYMBOLS = [".", "▁.", ",", "?", "▁?", "!", "▁!", "。", "،", "$", "▁$", "▁"]


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Unigram over whole words and single letters, special tokens where XLM-R has them, `[Q]` and `[P]` included."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "[Q]", "[P]"]
    letters = [letter for letter in "abcdefghijklmnopqrstuvwxyz"]
    pieces = [(token, 0.0) for token in special] + [(f"▁{word}", -1.0) for word in WORDS]
    pieces += [(symbol, -2.0) for symbol in SYMBOLS] + [(letter, -5.0) for letter in letters] + [("<mask>", 0.0)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=3))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    backend.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", cls_token="<s>", pad_token="<pad>", eos_token="</s>",
        sep_token="</s>", unk_token="<unk>", mask_token="<mask>", additional_special_tokens=["[Q]", "[P]"],
    )  # fmt: skip


def config(**changes) -> XmodConfig:
    """Two layers of 32, languages en, sw and ar."""
    sizes = dict(
        vocab_size=len(tokenizer()), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=80, type_vocab_size=1, languages=["en_XX", "sw_KE", "ar_AR"], initializer_range=0.2,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return XmodConfig(**sizes | changes)


def model(kind, seed: int = 0, changes: dict | None = None, **arguments):
    """An untrained retriever of class `kind`."""
    torch.manual_seed(seed)
    return kind(config(**changes or {}), tokenizer(), **arguments).eval()


def triples(examples: int = 24, seed: int = 0) -> Triples:
    """Passages `the red bridge …`, each asked for by its colour and thing; the negative shares one of the two."""
    rng = np.random.default_rng(seed)
    colours, things = ["red", "blue", "green", "old", "new"], ["bridge", "tower", "mill", "bank", "city"]
    pairs = [(colour, thing) for colour in colours for thing in things]
    queries = [f"where is {thing} {colour} ?" for colour, thing in pairs]
    passages = [f"the {colour} {thing} is north ." for colour, thing in pairs]
    rows = []
    for example in range(examples):
        own = example % len(pairs)
        near = [i for i, pair in enumerate(pairs) if i != own and set(pair) & set(pairs[own])]
        rows.append((own, own, rng.choice(near)))
    return Triples(queries, passages, np.array(rows), "en")
