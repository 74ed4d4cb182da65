"""What the benchmarks share: the model and its texts, alternating rounds of timing, and the report."""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import XmodConfig, XmodModel

from xmlib.paths import RUNS

PADDING = 1
FIRST_TOKEN = 4  # ids below are special
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}  # the second counts all threads of this process


def parser(description: str) -> argparse.ArgumentParser:
    """The arguments that every benchmark has: the model, and the run."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--layers", type=int, default=12, help="depth of the encoder; xmod-base has 12")
    parser.add_argument("--hidden", type=int, default=768, help="width, a multiple of 64; xmod-base has 768")
    parser.add_argument("--vocabulary", type=int, default=250_002, help="tokens; fewer need less memory, same speed")
    parser.add_argument("--languages", type=int, default=81, help="adapters in every layer; xmod-base has 81")
    parser.add_argument("--seed", type=int, default=0, help="of weights and texts")
    parser.add_argument("--device", default=device, help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch, on a CPU")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: for a machine with other work")
    parser.add_argument("--out", type=Path, default=RUNS / "benchmarks", help="folder of the JSON file")
    return parser


def prepare(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)


def xmod_base(options: argparse.Namespace, **switches) -> XmodModel:
    """A random X-MOD in the shape of `facebook/xmod-base`, or of the part of it that the options ask for."""
    torch.manual_seed(options.seed)
    config = XmodConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
        intermediate_size=4 * options.hidden,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        languages=["en_XX", *(f"x{i:02d}_XX" for i in range(1, options.languages))],
        pad_token_id=PADDING,
        **switches,
    )
    return XmodModel(config, add_pooling_layer=False)


def passage_lengths(texts: int, seed: int) -> list[int]:
    """Lengths in tokens like those of MS MARCO passages: about 76 on average, skewed, at most 164."""
    drawn = np.random.default_rng(seed).lognormal(np.log(71), 0.38, size=texts)
    return np.clip(drawn.round(), 16, 164).astype(int).tolist()


def passages(number: int, vocabulary: int, seed: int) -> list[torch.Tensor]:
    return texts(passage_lengths(number, seed), vocabulary, seed)


def texts(lengths: list[int], vocabulary: int, seed: int) -> list[torch.Tensor]:
    """Random token ids, one tensor per text."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(FIRST_TOKEN, vocabulary, (length,), generator=generator) for length in lengths]


def stock_hidden(model: torch.nn.Module, ids: list[torch.Tensor], language: int) -> torch.Tensor:
    """The last hidden states of the real tokens, end to end, as transformers computes them: padded, in one batch."""
    padded = features(ids, model.device)
    langs = torch.full((len(ids),), language, device=model.device)
    return model(**padded, lang_ids=langs).last_hidden_state[padded["attention_mask"].bool()]


def peers(model: XmodModel) -> dict[str, torch.nn.Module]:
    """`model` as sentence-transformers and PyLate open it, by name, where they are installed.

    Each maps a dict of `features` to one with `token_embeddings`; PyLate's projects them to 128 dimensions. They open
    folders only, so the model is written to a temporary one: as large as the model.
    """
    opened = {}
    with tempfile.TemporaryDirectory() as folder:
        if any(map(importlib.util.find_spec, ("sentence_transformers", "pylate"))):
            from tokenizers import Tokenizer, models

            model.save_pretrained(folder)
            words = Tokenizer(models.WordLevel({"<s>": 0, "<pad>": PADDING, "</s>": 2, "<unk>": 3}, unk_token="<unk>"))
            transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>").save_pretrained(folder)
        with suppress(ImportError):  # of it, or of something that it stands on
            from sentence_transformers.models import Transformer

            opened["sentence-transformers"] = Transformer(folder)
        with suppress(ImportError):
            from pylate.models import ColBERT

            plain = {"query_prefix": "", "document_prefix": "", "skiplist_words": []}
            opened["PyLate"] = ColBERT(folder, device=str(model.device), **plain)
    for module in opened.values():
        module.eval().to(model.device)
        for part in module.modules():
            if isinstance(part, XmodModel):
                part.set_default_language("en_XX")
    return opened


def features(ids: list[torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """Texts as the peers take them: padded, in one batch."""
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=PADDING).to(device)
    return {"input_ids": padded, "attention_mask": (padded != PADDING).long()}


def version(package: str) -> str:
    """Of an installed package, or that it is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def alternate(
    systems: dict[str, Callable], rounds: int, device: torch.device, clock: str = "wall"
) -> dict[str, list[float]]:
    """Seconds of every call, the systems taking turns; the first round warms up and is left out."""
    now = CLOCKS[clock]
    seconds = {name: [] for name in systems}
    for number in range(rounds + 1):
        for name, call in systems.items():
            synchronize(device)
            began = now()
            call()
            synchronize(device)
            if number:
                seconds[name].append(now() - began)
    return seconds


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median(seconds: list[float]) -> float:
    return float(np.median(seconds))


def summary(seconds: list[float]) -> dict:
    return {
        "n": len(seconds),
        "median, ms": 1e3 * median(seconds),
        "least, ms": 1e3 * min(seconds),
        "most, ms": 1e3 * max(seconds),
    }


def forward_flops(model: XmodModel) -> float:
    """Floating-point operations per token of a forward pass, without attention's own products: two per weight used."""
    hidden, inner, adapter = (
        model.config.hidden_size,
        model.config.intermediate_size,
        model.config.hidden_size // model.config.adapter_reduction_factor,
    )
    return 2 * model.config.num_hidden_layers * hidden * (4 * hidden + 2 * inner + 2 * adapter)


def product_rate(device: torch.device, dtype: torch.dtype = torch.bfloat16, size: int = 8192) -> float:
    """The best rate of a large square matrix product that this device reaches, in operations per second."""
    one, two = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = alternate({"product": lambda: one @ two}, 10, device)["product"]
    return 2 * size**3 / min(seconds)


def peak_memory_gib(device: torch.device) -> float:
    """Of this process so far: on the GPU by PyTorch's allocator, on a CPU as the system counts it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class Energy:
    """Joules that the GPU used inside a `with` block, by NVML's counter; `kwh` stays None where there is none."""

    def __init__(self, device: torch.device):
        self.kwh, self._handle = None, None
        if device.type == "cuda" and importlib.util.find_spec("pynvml"):
            import pynvml

            pynvml.nvmlInit()
            uuid = str(torch.cuda.get_device_properties(device).uuid)
            self._nvml, self._handle = pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")

    def _joules(self) -> float:
        return self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1e3

    def __enter__(self) -> "Energy":
        self._before = None if self._handle is None else self._joules()
        return self

    def __exit__(self, *_) -> None:
        if self._handle is not None:
            self.kwh = (self._joules() - self._before) / 3.6e6


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = [line.split(":")[1].strip() for line in _cpu_lines() if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def markdown(rows: list[dict]) -> str:
    """A Markdown table of the rows; what is missing in a row is left empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ["---"] * len(columns)]
    lines += [[_cell(row.get(column)) for column in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    if value and abs(value) < 0.01:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def report(name: str, options: argparse.Namespace, rows: list[dict], facts: dict) -> Path:
    """Print the table under what was measured and where, and write both to `<out>/<name>.json`."""
    device = torch.device(options.device)
    facts = {
        "device": machine(device),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peak memory, GiB": round(peak_memory_gib(device), 2),
        **facts,
        **{key: value for key, value in vars(options).items() if key not in ("out", "device")},
    }
    print(" · ".join(f"{key}: {value}" for key, value in facts.items()))
    print()
    print(markdown(rows))
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{name}.json"
    beside = path.with_name(path.name + ".partial")
    beside.write_text(json.dumps({"facts": facts, "rows": rows}, indent=2) + "\n")
    os.replace(beside, path)
    return path
