"""Training speed: a step of ColBERT-XM's fine-tuning beside the same step over stock `XmodModel`.

A step encodes a batch of triples (queries of 32 tokens, passages with the lengths of MS MARCO), scores every query
against every passage, takes the loss of Eq. 6 and updates the shared weights with AdamW; embeddings and adapters are
frozen. Stock: padded, queries and passages in two forward passes, MaxSim over the four-dimensional tensor. PyLate,
where it is installed: its model and its contrastive loss. All start from the same random weights of xmod-base's shape
and take the same batches in turn; without dropout (`--dropout 0`) the losses of stock and ours have to agree.

    python -m benchmarks.training --layers 2 --vocabulary 1000 --batch 8     # a CPU
    python -m benchmarks.training --batch 128 --rounds 20                    # a GPU, the paper's setting

Stands on torch, transformers and numpy alone (and late-interaction-kernels on CUDA where it is installed). On CUDA
the table has the model FLOP utilisation against a measured matrix product and, through NVML where pynvml is installed,
energy; and the paper's run, 6.4M triples, as it would be at this speed. Prints a Markdown table and writes
runs/benchmarks/training.json.
"""

import argparse
import importlib.util

import numpy as np
import torch
import torch.nn.functional as F
from transformers import XmodModel

from benchmarks import common
from xmlib import losses, training, xmod
from xmlib.models import ColbertXM
from xmlib.tokens import Tokens, stream
from xmlib.training import Loop, Recipe

QUERY = 32
DIM = 128
TRIPLES = 50_000 * 128  # of the paper's run
CARBON = 0.432  # kgCO2eq per kWh, the paper's (Eq. 10)
PRINTED = {"system": "paper, one H100, printed", "paper's run, hours": 7.5, "kWh": 2.3, "kgCO2eq": 1.01}


def arguments() -> argparse.Namespace:
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8, help="triples of a step")
    parser.add_argument("--dropout", type=float, default=0.1, help="of hidden states and attention; xmod-base has 0.1")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps; one more goes before, untimed")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    common.prepare(options)
    device = torch.device(options.device)
    batches = [batch(options, step) for step in range(options.rounds + 1)]
    energy = {}
    steps = {name: maker(options, batches) for name, maker in MAKERS.items()}
    recorded = {name: [] for name in steps}
    calls = {name: lambda n=name, s=iterator: recorded[n].append(next(s)) for name, iterator in steps.items()}
    seconds = common.alternate(calls, options.rounds, device, options.clock)
    if device.type == "cuda":
        energy = {name: energy_of_steps(maker(options, batches), options, device) for name, maker in MAKERS.items()}
    tokens = np.mean([len(q.ids_T) + len(d.ids_T) for q, d in batches[1:]])
    model_flops = flops_per_token(options)
    rate = common.product_rate(device) if device.type == "cuda" else None
    rows = []
    for name in steps:
        middle = common.median(seconds[name])
        row = {
            "system": name,
            **common.summary(seconds[name]),
            "times stock": common.median(seconds["XmodModel"]) / middle,
            "triples/s": options.batch / middle,
            "tokens/s": tokens / middle,
            "first loss": recorded[name][0],
            "last loss": recorded[name][-1],
        }
        if rate:
            kwh = None if energy[name] is None else energy[name] / options.batch * TRIPLES
            row |= {
                "MFU, %": 100 * row["tokens/s"] * model_flops / rate,
                "paper's run, hours": TRIPLES / row["triples/s"] / 3600,
                "kWh": kwh,
                "kgCO2eq": None if kwh is None else kwh * CARBON,
            }
        rows.append(row)
    if rate:
        rows.append(PRINTED)
    facts = {"tokens of a step": round(float(tokens)), "matrix product, FLOP/s": rate}
    common.report("training", options, rows, facts)


def batch(options: argparse.Namespace, step: int) -> tuple[Tokens, Tokens]:
    """Queries and passages of a step: the positive and the negative of each query side by side."""
    seed = options.seed + 1000 * step
    lengths = common.passage_lengths(2 * options.batch, seed)
    queries = common.texts([QUERY] * options.batch, options.vocabulary, seed)
    passages = common.texts(lengths, options.vocabulary, seed + 1)
    return stream([text.tolist() for text in queries]), stream([text.tolist() for text in passages])


def retriever(options: argparse.Namespace) -> ColbertXM:
    """ColBERT-XM over the random encoder, ready for fine-tuning."""
    encoder = common.xmod_base(
        options, hidden_dropout_prob=options.dropout, attention_probs_dropout_prob=options.dropout
    )
    with torch.device("meta"):
        model = ColbertXM(encoder.config, dim=DIM)
    model.roberta = encoder
    torch.manual_seed(options.seed)
    model.linear = torch.nn.Linear(options.hidden, DIM, bias=False)
    return model.to(options.device).prepare_for_finetuning()


def our_steps(options: argparse.Namespace, batches: list):
    """Losses of one step after the other, through `training.Loop`."""
    model = retriever(options)

    def loss_of(step: int) -> torch.Tensor:
        return losses.total(training.batch_scores(model, *batches[step % len(batches)], "en_XX"))

    # A step more than is taken: at its last step a loop waits for the GPU.
    recipe = Recipe(steps=10_000, batch_size=options.batch, seed=options.seed, checkpoint_every=10_000)
    for record in Loop(model, loss_of, recipe, progress=False):
        yield record["loss"]


def stock_steps(options: argparse.Namespace, batches: list):
    """The same through stock XmodModel, written as its users would."""
    model = retriever(options)

    def encode(tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
        padded = common.features(texts_of(tokens), model.device)
        langs = torch.zeros(len(tokens), dtype=torch.int64, device=model.device)
        hidden = model.roberta(**padded, lang_ids=langs).last_hidden_state
        return F.normalize(model.linear(hidden), dim=-1), padded["attention_mask"].bool()

    def loss_of(step: int) -> torch.Tensor:
        (q_ASH, q_mask_AS), (d_BTH, d_mask_BT) = map(encode, batches[step % len(batches)])
        sim_ABST = torch.einsum("ash,bth->abst", q_ASH, d_BTH)
        best_ABS = sim_ABST.masked_fill(~d_mask_BT[None, :, None], -torch.inf).amax(-1)
        return losses.total(best_ABS.masked_fill(~q_mask_AS[:, None], 0.0).sum(-1))

    return stepped(loss_of, [p for p in model.parameters() if p.requires_grad], options)


def pylate_steps(options: argparse.Namespace, batches: list):
    """The same triples through PyLate's ColBERT and its contrastive loss, which has another second term than Eq. 6."""
    from pylate.losses import Contrastive

    colbert = common.peers(retriever(options).roberta)["PyLate"].train()
    for part in colbert.modules():
        if isinstance(part, XmodModel):
            xmod.freeze_for_finetuning(part)
    contrastive = Contrastive(colbert)

    def loss_of(step: int) -> torch.Tensor:
        queries, passages = map(texts_of, batches[step % len(batches)])
        both = common.features(passages, colbert.device)  # PyLate stacks positives and negatives: of one length
        parts = [{name: of[side::2] for name, of in both.items()} for side in (0, 1)]
        return contrastive([common.features(queries, colbert.device), *parts])

    return stepped(loss_of, [p for p in colbert.parameters() if p.requires_grad], options)


def texts_of(tokens: Tokens) -> list[torch.Tensor]:
    return list(torch.from_numpy(tokens.ids_T).split(tokens.lengths_B.tolist()))


def stepped(loss_of, trained: list[torch.nn.Parameter], options: argparse.Namespace):
    """Losses of one step after the other, as in any loop of PyTorch."""
    recipe = Recipe(steps=10_000, batch_size=options.batch, seed=options.seed)
    optimizer = torch.optim.AdamW(trained, lr=recipe.peak_rate, weight_decay=recipe.weight_decay, eps=1e-6)
    # XmodModel fails under autocast (its adapters write 16 bits into 32), so on CUDA it stays in float32 with TF32.
    torch.backends.cuda.matmul.allow_tf32 = True
    for step in range(recipe.steps):
        loss = loss_of(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, recipe.clip)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


MAKERS = {"XmodModel": stock_steps, "xmlib": our_steps}
if importlib.util.find_spec("pylate"):
    MAKERS["PyLate"] = pylate_steps


def energy_of_steps(steps, options: argparse.Namespace, device: torch.device) -> float | None:
    """Kilowatt-hours of a step, over as many as were timed: NVML's counter moves too slowly for single ones."""
    next(steps)
    common.synchronize(device)
    with common.Energy(device) as energy:
        for _ in range(options.rounds):
            next(steps)
        common.synchronize(device)
    return None if energy.kwh is None else energy.kwh / options.rounds


def flops_per_token(options: argparse.Namespace) -> float:
    """Of a training step: forward, gradients of all activations, and of the weights that are not frozen."""
    hidden, inner = options.hidden, 4 * options.hidden
    shared, adapter = 4 * hidden * hidden + 2 * hidden * inner, hidden * hidden
    return 2 * options.layers * (3 * shared + 2 * adapter)


if __name__ == "__main__":
    main()
