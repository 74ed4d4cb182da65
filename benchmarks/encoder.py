"""Encoding speed: the packed encoder beside stock `XmodModel`, on the same random weights of xmod-base's shape.

Every system encodes the same texts in turn, round by round, in one process: passages with the lengths of MS MARCO in
one batch, and one query of 32 tokens. Quality comes from the same run: the largest difference of a hidden state from
stock in float32, and how far rankings by MaxSim agree, over a random projection to 128 dimensions. Passages of random
tokens score nearly alike, so their order is a harder test than that of real text.

    python -m benchmarks.encoder                        # xmod-base, 81 languages: 4.5 GB of memory, some minutes
    python -m benchmarks.encoder --layers 2 --vocabulary 1000 --rounds 3

Stands on torch, transformers and numpy alone. sentence-transformers and PyLate are measured as well where they can be
imported: PyLate wants other versions than this project, so give it a Python of its own (benchmarks/peers.txt).
Prints a Markdown table and writes runs/benchmarks/encoder.json.
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from transformers import XmodModel

from benchmarks import common
from xmlib import scoring, xmod
from xmlib.models import compute_dtype

QUERY = 32  # tokens, [M] included
DIM = 128  # of a token vector
BEST = 10  # passages whose order is compared


def arguments() -> argparse.Namespace:
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--passages", type=int, default=64, help="texts of the batch")
    parser.add_argument("--batch-tokens", type=int, default=2048, help="ours encodes at most about so many at once")
    parser.add_argument("--questions", type=int, default=32, help="queries whose rankings are compared")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds; one more goes before, untimed")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    common.prepare(options)
    device = torch.device(options.device)
    model = common.xmod_base(options).to(device).eval()
    passages = common.passages(options.passages, options.vocabulary, options.seed)
    questions = common.texts([QUERY] * options.questions, options.vocabulary, options.seed + 1)
    systems = encoders(model, options)
    projection_HD = torch.randn(model.config.hidden_size, DIM, generator=torch.Generator().manual_seed(0)).to(device)

    tasks = {f"{len(passages)} passages": passages, "1 query": questions[:1]}
    timings = {
        task: common.alternate(
            {name: lambda f=f, t=texts: f(t) for name, f in systems.items()},
            options.rounds * (10 if len(texts) == 1 else 1),  # a query takes little, and varies more
            device,
            options.clock,
        )
        for task, texts in tasks.items()
    }
    hidden = {name: [f(passages), f(questions)] for name, f in systems.items()}
    stock = next(iter(systems))
    best = {name: ranking(*texts, passages, projection_HD) for name, texts in hidden.items()}
    rows = []
    for task, seconds in timings.items():
        for name in systems:
            rows.append(
                {
                    "task": task,
                    "system": name,
                    **common.summary(seconds[name]),
                    "times stock": common.median(seconds[stock]) / common.median(seconds[name]),
                    "tokens/s": sum(map(len, tasks[task])) / common.median(seconds[name]),
                    "largest difference": max(
                        (ours - theirs).abs().max().item()
                        for ours, theirs in zip(hidden[name], hidden[stock], strict=True)
                    ),
                    f"top {BEST} in the same order, %": 100 * float((best[name] == best[stock]).all(1).mean()),
                    f"of stock's top {BEST}, %": 100 * shared(best[name], best[stock]),
                }
            )
    if device.type == "cuda":
        rate = common.product_rate(device)
        for row in rows:
            row["MFU, %"] = 100 * row["tokens/s"] * common.forward_flops(model) / rate
    facts = {
        **{name: common.version(name) for name in ("sentence-transformers", "pylate")},
        "passage tokens": sum(map(len, passages)),
        "longest": max(map(len, passages)),
    }
    common.report("encoder", options, rows, facts)


def encoders(model: XmodModel, options: argparse.Namespace) -> dict:
    """Name → function from a list of token id tensors to hidden states, end to end (T, H) in float32; stock first."""
    device = torch.device(options.device)
    language = model.config.languages.index("en_XX")

    def stock(texts: list[torch.Tensor]) -> torch.Tensor:
        return common.stock_hidden(model, texts, language).float()

    def packed(encoder: XmodModel, dtype: torch.dtype = torch.float32):
        def encode(texts: list[torch.Tensor]) -> torch.Tensor:
            order = sorted(range(len(texts)), key=lambda b: len(texts[b]))
            results, batch, size = {}, [], 0
            for b in order:
                batch.append(b)
                size += len(texts[b])
                if size >= options.batch_tokens or b == order[-1]:
                    lengths = [len(texts[b]) for b in batch]
                    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                        out_TH = xmod.encode(encoder, torch.cat([texts[b] for b in batch]), lengths, "en_XX")
                    results |= zip(batch, out_TH.float().split(lengths), strict=True)
                    batch, size = [], 0
            return torch.cat([results[b] for b in range(len(texts))])

        return torch.no_grad()(encode)

    systems = {"XmodModel float32": torch.no_grad()(stock)}
    if device.type == "cuda":
        # Under autocast stock XmodModel fails where adapters write into a float32 tensor, so its weights are cast.
        half = common.xmod_base(options).to(device, torch.bfloat16).eval()
        systems["XmodModel bfloat16"] = torch.no_grad()(
            lambda texts: common.stock_hidden(half, texts, language).float()
        )
        systems["xmlib float32"] = packed(model)
        systems["xmlib bfloat16"] = packed(model, torch.bfloat16)
        return systems
    systems |= {f"{name} float32": torch.no_grad()(through(peer)) for name, peer in common.peers(model).items()}
    systems["xmlib float32"] = packed(model)
    systems["xmlib int8"] = packed(xmod.in_int8(model))
    if compute_dtype(model) == torch.bfloat16:
        systems["xmlib bfloat16"] = packed(model, torch.bfloat16)
    return systems


def through(peer: torch.nn.Module):
    """All that the peer does with a batch; of it the hidden states of real tokens."""
    hidden = {}
    transformer = peer[0] if isinstance(peer, torch.nn.Sequential) else peer
    transformer.register_forward_hook(lambda module, given, out: hidden.update(out))

    def encode(texts: list[torch.Tensor]) -> torch.Tensor:
        padded = common.features(texts, next(peer.parameters()).device)
        peer(dict(padded))
        return hidden["token_embeddings"][padded["attention_mask"].bool()]

    return encode


def ranking(
    passages_TH: torch.Tensor, questions_TH: torch.Tensor, texts: list[torch.Tensor], projection_HD: torch.Tensor
) -> np.ndarray:
    """Positions of the best passages of every query by MaxSim. Returns (A, BEST)."""
    unit = [F.normalize(h @ projection_HD, dim=-1).cpu().numpy() for h in (passages_TH, questions_TH)]
    offsets_B1 = np.cumsum([0, *map(len, texts)])
    scores_AB = scoring.maxsim_packed(unit[1].reshape(-1, QUERY, DIM), unit[0], offsets_B1)
    return np.argsort(-scores_AB, axis=1, kind="stable")[:, :BEST]


def shared(one_AK: np.ndarray, other_AK: np.ndarray) -> float:
    """Share of passages that both rankings have among their best."""
    return float(
        np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(one_AK.tolist(), other_AK.tolist(), strict=True)])
    )


if __name__ == "__main__":
    main()
