"""Masked-LM: a small X-MOD from scratch, one adapter per language (Figure 1a); adapters of a new language (Figure 1d).

Text in, a folder out that `transformers` opens as `XmodForMaskedLM` and `XmodModel`, with a Unigram tokenizer of its
own in the layout of XLM-R's: `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, …, `<mask>` last.
"""

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerFast, XmodConfig, XmodForMaskedLM

from xmlib import losses, xmod
from xmlib.languages import TRAINING_LANGUAGE, adapter_name
from xmlib.tokens import Layout, Tokens, concatenate, stream, tokenize_passages
from xmlib.training import Loop, Recipe

# Share of tokens to predict, 0.15 in Devlin et al. (2019); 80 % of them become <mask>, 10 % a random token, as there.
MASKED = 0.2
MARKERS = ("[Q]", "[P]")  # in the vocabulary from the start, so that fine-tuning need not grow it


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A Unigram tokenizer over NFKC text with `▁` for the space, trained on `texts` of all languages together.

    The same from the same texts: the trainer's own order of pieces, and scores of rare characters, differ each time.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", *MARKERS]
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size - 1, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer = _in_order(tokenizer, len(special))
    tokenizer.add_special_tokens(["<mask>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        additional_special_tokens=list(MARKERS),
    )


def _in_order(tokenizer, n_special: int):
    """The Unigram tokenizer with its pieces by score, then by name; ids of the first ones, the special, stay.

    The trainer adds characters that it has no estimate for in the order of a hash table, the first with the lowest
    score there is and each a step above the one before it: they all get the lowest.
    """
    state = json.loads(tokenizer.to_str())
    pieces = state["model"]["vocab"]
    found = pieces[n_special:]
    lowest = min(score for _, score in found)
    added = lowest + 1e-4 * sum(len(piece) == 1 for piece, _ in found)
    # Sums over threads differ in their last digits, which must not decide the order.
    scored = [(piece, round(lowest if len(piece) == 1 and score <= added else score, 3)) for piece, score in found]
    pieces[n_special:] = sorted(scored, key=lambda of: (-of[1], of[0]))
    return type(tokenizer).from_str(json.dumps(state))


def new_xmod(
    tokenizer: PreTrainedTokenizerFast,
    langs: Sequence[str],
    hidden: int = 128,
    layers: int = 4,
    heads: int = 4,
    longest: int = 256,
    seed: int = 42,
) -> XmodForMaskedLM:
    """A freshly initialised X-MOD, smaller than xmod-base, with an adapter for each of `langs`.

    Three things differ from xmod-base because it must learn in some thousand steps: norms come before the sublayers
    and weights start larger, without which it stays at predicting word frequencies, and there is no dropout.
    """
    torch.manual_seed(seed)
    config = XmodConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=longest + 2,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pre_norm=True,
        initializer_range=0.05,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        languages=[adapter_name(lang) for lang in langs],
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return XmodForMaskedLM(config)


def pretrain(
    model: XmodForMaskedLM,
    tokenizer: PreTrainedTokenizerFast,
    texts: dict[str, Sequence[str]],
    recipe: Recipe,
    checkpoint: str | Path | None = None,
    max_length: int = 64,
    join: bool = False,
    smoothing: float = 0.5,
    progress: bool = True,
) -> Loop:
    """The loop that trains `model` on `texts` (language → texts) by masked-LM; iterate over it, or call its `run`.

    An example is one text, cut to `max_length` tokens, or with `join` a stretch of that length out of all texts laid
    end to end: for loose sentences, so that late positions are trained too. A batch mixes languages: each is drawn with
    a probability proportional to (its tokens) ** `smoothing`, so that a language with little text is seen more often
    than its share.
    """
    streams = {lang: examples(tokenizer, lines, max_length, join) for lang, lines in texts.items()}
    langs = list(streams)
    weight = np.array([len(streams[lang].ids_T) for lang in langs], dtype=np.float64) ** smoothing

    def loss_of(step: int) -> torch.Tensor:
        rng = np.random.default_rng([recipe.seed, step])
        counts = rng.multinomial(recipe.batch_size, weight / weight.sum())
        drawn = {lang: rng.integers(len(streams[lang]), size=n) for lang, n in zip(langs, counts, strict=True)}
        batch = concatenate(*(streams[lang].take(rows) for lang, rows in drawn.items()))
        return masked_loss(model, tokenizer, batch, [lang for lang, rows in drawn.items() for _ in rows], rng)

    return Loop(model, loss_of, recipe, checkpoint, title="pre-train X-MOD", progress=progress)


def add_language(
    model: XmodForMaskedLM,
    tokenizer: PreTrainedTokenizerFast,
    lang: str,
    texts: Sequence[str],
    recipe: Recipe,
    checkpoint: str | Path | None = None,
    max_length: int = 64,
    join: bool = False,
    start: str = TRAINING_LANGUAGE,
    progress: bool = True,
) -> Loop:
    """The loop that gives `model` adapters for the language `lang` that it does not have, and trains them on `texts`.

    They begin as those of the language `start`. All else is frozen: no weight of it gets a gradient or a place in the
    optimiser, and nothing below the first layer's adapter is differentiated. Vocabulary and word vectors are as they
    were, so the words of the new language are cut into pieces of the old ones.
    """
    if not texts:
        raise ValueError(f"no text in {lang!r}; its adapters are trained on some")
    xmod.add_language(model.roberta, lang, xmod.adapters_of(model.roberta, start))
    model.requires_grad_(False)
    xmod.freeze_for_adding(model.roberta, lang)
    loop = pretrain(model, tokenizer, {lang: texts}, recipe, checkpoint, max_length, join, progress=progress)
    loop.title = f"add {lang}"
    return loop


def masked_loss(
    model: XmodForMaskedLM, tokenizer, tokens: Tokens, langs: str | Sequence[str], rng: np.random.Generator
) -> torch.Tensor:
    """What guessing the tokens costs that `rng` hides: nats per token, with gradients where they are enabled."""
    inputs_T, chosen = mask_tokens(tokens.ids_T, tokenizer.mask_token_id, len(MARKERS) + 4, rng)
    wanted_T = torch.zeros(len(inputs_T), dtype=torch.bool)
    wanted_T[chosen] = True
    lengths_B, head = tokens.lengths_B.tolist(), model.lm_head
    hidden_RH = xmod.encode(model.roberta, torch.from_numpy(inputs_T), lengths_B, langs, wanted_T=wanted_T)
    hidden_RH = head.layer_norm(F.gelu(head.dense(hidden_RH)))
    target_R = torch.from_numpy(tokens.ids_T[chosen]).to(hidden_RH.device)
    return losses.vocabulary(hidden_RH, head.decoder.weight, head.decoder.bias, target_R)


@torch.no_grad()
def held_out_loss(
    model: XmodForMaskedLM, tokenizer, texts: Sequence[str], lang: str, max_length: int = 64, seed: int = 0
) -> float:
    """`masked_loss` of texts that were not trained on, through the adapters of `lang`; the same tokens are hidden for
    every model and language."""
    tokens, rng = examples_of_texts(tokenizer, texts, max_length), np.random.default_rng(seed)
    parts = [tokens.take(np.arange(first, min(first + 64, len(tokens)))) for first in range(0, len(tokens), 64)]
    found = [masked_loss(model, tokenizer, part, lang, rng).item() for part in parts]
    return float(np.average(found, weights=[len(part.ids_T) for part in parts]))


def examples(tokenizer, texts: Sequence[str], max_length: int, join: bool) -> Tokens:
    """What is drawn from in training: one example per text, or with `join` stretches of all of them."""
    return (examples_of_stretches if join else examples_of_texts)(tokenizer, texts, max_length)


def examples_of_texts(tokenizer, texts: Sequence[str], max_length: int) -> Tokens:
    """One example per text: `<s> … </s>`, at most `max_length` tokens."""
    layout = Layout(passage_length=max_length, query_marker=None, passage_marker=None, mask_punctuation="none")
    return tokenize_passages(tokenizer, texts, layout)


def examples_of_stretches(tokenizer, texts: Sequence[str], max_length: int) -> Tokens:
    """All texts laid end to end and cut every `max_length` tokens, `<s>` and `</s>` included."""
    pieces = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)["input_ids"]
    ids = np.fromiter(itertools.chain.from_iterable(pieces), dtype=np.int64)
    room = max_length - 2
    cuts = [ids[first : first + room] for first in range(0, len(ids), room)]
    return stream([[tokenizer.cls_token_id, *cut, tokenizer.sep_token_id] for cut in cuts])


def mask_tokens(
    ids_T: np.ndarray, mask_id: int, specials: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Corrupt a stream for masked-LM. Returns the input ids and the rows to predict, at least one.

    Ids below `specials` are markers of the sequence and are never chosen; `mask_id` is also the size of the vocabulary
    without `<mask>`, which is last. ValueError where the stream holds nothing but markers.
    """
    eligible = ids_T >= specials
    chosen = np.flatnonzero(eligible & (rng.random(len(ids_T)) < MASKED))
    if not len(chosen):  # as happens to a short text or two
        if not eligible.any():
            raise ValueError(f"no token to hide among {len(ids_T)}: the texts are empty or hold no known character")
        chosen = rng.choice(np.flatnonzero(eligible), 1)
    inputs_T = ids_T.copy()
    dice = rng.random(len(chosen))
    inputs_T[chosen[dice < 0.8]] = mask_id
    random = chosen[(dice >= 0.8) & (dice < 0.9)]
    inputs_T[random] = rng.integers(specials, mask_id, size=len(random))
    return inputs_T, chosen


def save(model: XmodForMaskedLM, tokenizer: PreTrainedTokenizerFast, folder: str | Path) -> None:
    """Write the folder that `Retriever.from_encoder` and `transformers` open."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def read_lines(path: str | Path) -> list[str]:
    """Text for masked-LM training: one sentence or short passage a line, plain or gzipped UTF-8."""
    import gzip

    path = Path(path)
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        return [line for line in map(str.strip, file) if line]
