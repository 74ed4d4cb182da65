"""What a notebook would download, take and reach, told before it does anything of it.

    announce("03_eval", globals())              # in the notebook; with the parameter plan=True it ends there
    python -m xmlib.plan --profile paper        # of all notebooks, or of those named

Nothing is downloaded and nothing is built for a plan. The hub is asked how large its files are; where it cannot be
reached, sizes that its pages showed stand in and are marked. Disk and time are arithmetic from the constants below, and
no measurement: floors, since searching, BM25 and the download itself are not in them. Scores are those of the paper.
"""

import argparse
import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from xmlib import languages, notebook
from xmlib.baselines import TRAINED, is_made_here
from xmlib.data import hub, msmarco, published
from xmlib.data.collection import reduced_name
from xmlib.data.hub import HubFile
from xmlib.data.sources import collection_languages
from xmlib.paths import DATA, ROOT, RUNS
from xmlib.pipeline import Training
from xmlib.stages import is_built
from xmlib.systems import PAPER, System, checkpoints_of, pick

HERE = "01_train"  # in place of a checkpoint that this notebook makes
GB = 1e9
DEVICE = "one H100"
RATE = 3.65e14  # FLOP/s of it in earnest: half of 730e12, a large bf16 matrix product; assumed
TRAINED_FLOP = 0.54e9  # per token, forward and backward; 12 layers of 768 with an adapter
ENCODED_FLOP = TRAINED_FLOP / 3
PASSAGE_TOKENS = 79  # of MS MARCO, markers included; assumed for every collection
HOURS_PER_STEP = 7.5 / 50_000  # of the paper's fine-tuning, §4.1: one H100, batches of 128

# Passages and test queries. mMARCO: its repository. Mr. TyDi: Zhang et al. (2021), Table 1.
MMARCO = 8_841_823, 6_980
MRTYDI = {
    "ar": (2_106_586, 1_081), "bn": (304_059, 111), "en": (32_907_100, 744), "fi": (1_908_757, 1_254),
    "id": (1_469_399, 829), "ja": (7_000_027, 720), "ko": (1_496_126, 421), "ru": (9_597_504, 995),
    "sw": (136_689, 670), "te": (548_224, 646), "th": (568_855, 1_190),
}  # fmt: skip

XMOD_BYTES = 3.41 * GB  # 853 million weights in float32
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # of a checkpoint; the first that it has is downloaded
LICENCES = {  # of checkpoints, as their pages state them
    "facebook/xmod-base": "MIT",
    "antoinelouis/colbert-xm": "MIT",
    "intfloat/multilingual-e5-base": "MIT",
    "eugene-yang/dpr-xlmr-large-mtt-neuclir": "MIT",
}
_MARCO_GB = dict(
    english=3.06, french=3.66, german=3.49, spanish=3.57, italian=3.44, portuguese=3.43, indonesian=3.30, dutch=3.36,
    russian=5.77, chinese=2.72, japanese=3.92, vietnamese=4.14, hindi=7.65, arabic=4.66,
)  # fmt: skip
SHOWN = {  # bytes, by repository and path, as the hub's pages showed them in 2026
    **{
        ("unicamp-dl/mmarco", f"data/google/collections/{name}_collection.tsv"): size * GB
        for name, size in _MARCO_GB.items()
    },
    ("unicamp-dl/mmarco", "data/qrels.dev.small.tsv"): 143e3,
    ("castorini/mr-tydi-corpus", "mrtydi-v1.1-japanese/corpus.jsonl.gz"): 1.08 * GB,
    ("castorini/mr-tydi-corpus", "mrtydi-v1.1-korean/corpus.jsonl.gz"): 228e6,
    (msmarco.REPO, msmarco.MINED.path): 1.23 * GB,
    (msmarco.REPO, msmarco.SCORES.path): 1.35 * GB,
    ("facebook/xmod-base", WEIGHTS[0]): XMOD_BYTES,
    ("antoinelouis/colbert-xm", WEIGHTS[0]): XMOD_BYTES,
    ("antoinelouis/dpr-xm", WEIGHTS[0]): XMOD_BYTES,
    ("antoinelouis/mono-xm", WEIGHTS[0]): XMOD_BYTES,
}


@dataclass(frozen=True)
class Place:
    """One language of a published collection, as a notebook asks for it."""

    source: str
    lang: str
    split: str = "test"
    max_passages: int = 0

    @property
    def passages(self) -> int:
        """How many; 0 where that is not known here."""
        known = self._counts[0]
        return min(known, self.max_passages or known)

    @property
    def queries(self) -> int:
        return self._counts[1]

    @property
    def _counts(self) -> tuple[int, int]:
        return MMARCO if self.source == "mmarco" else MRTYDI[self.lang] if self.source == "mrtydi" else (0, 0)


@dataclass
class Needs:
    """What a notebook stands on: all that a plan is computed from."""

    places: list[Place] = field(default_factory=list)
    ranked: list[tuple[System, Place]] = field(default_factory=list)
    checkpoints: dict[str, str] = field(default_factory=dict)  # row → hub id
    negatives: bool = False
    runs: list[tuple[str, int, int]] = field(default_factory=list)  # what is trained, steps, examples of a step
    first: str = ""  # the notebook that trains it, where that is another one
    dim: int = 128  # of a token vector
    query_tokens: int = 32

    @property
    def anything(self) -> bool:
        return bool(self.places or self.checkpoints or self.negatives)


@dataclass(frozen=True)
class Download:
    """One line of what is to be fetched: so many files, those of unknown size among them, not counted in `size`."""

    what: str
    licence: str
    files: int
    size: float
    unknown: int
    shown: bool  # sizes are those of `SHOWN`, not the hub's
    makes: float  # bytes made of it in the data folder

    def text(self) -> str:
        if not self.files:
            return f"{self.what}: here already"
        sizes = [hub.human(self.size) + ", as its page showed" * self.shown] if self.size or not self.unknown else []
        sizes += [f"{self.unknown} of unknown size"] if self.unknown else []
        count = f"{self.files} file{'s' * (self.files > 1)}"
        return f"{self.what}: {count}, {' and '.join(sizes)} (licence: {self.licence})"


def announce(stem: str, names: dict) -> None:
    """Print the plan of notebook `stem`, whose `globals()` are `names`; end it there if its parameter `plan` is true.

    papermill takes the SystemExit for the success that it is.
    """
    parameters = {name: names[name] for name in notebook.parameters(notebook.source(stem))}
    print(plan(stem, parameters))
    if parameters["plan"]:
        raise SystemExit(0)


def plan(stem: str, parameters: dict, sizes: "Sizes | None" = None) -> str:
    """The plan of one notebook as text: one line where nothing is to be downloaded."""
    needs, title = needs_of(stem, parameters), f"plan of {stem}, profile {parameters['profile']}"
    if not needs.anything:
        return f"{title}: nothing is downloaded"
    found = downloads(needs, sizes or Sizes())
    parts = {"download": [line.text() for line in found], "disk": disk(needs, found), "time": times(needs)}
    parts["expected"] = expected(stem, needs, parameters.get("max_passages", 0))
    return "\n".join([f"{title}; nothing of it is done yet", *_indented(parts)])


def together(notebooks: dict[str, dict], sizes: "Sizes | None" = None) -> str:
    """What all these notebooks (name → parameters) would download and keep on disk, shared things once."""
    whole = Needs()
    for needs in (needs_of(stem, parameters) for stem, parameters in notebooks.items()):
        ranked = {(row.name, place): (row, place) for row, place in [*whole.ranked, *needs.ranked]}
        whole = Needs(
            list(dict.fromkeys([*whole.places, *needs.places])),
            list(ranked.values()),
            whole.checkpoints | needs.checkpoints,
            whole.negatives or needs.negatives,
            list(dict.fromkeys([*whole.runs, *needs.runs])),
            dim=needs.dim,
        )
    title = f"all {len(notebooks)} notebooks together"
    if not whole.anything:
        return f"{title}: nothing is downloaded"
    found = downloads(whole, sizes or Sizes())
    parts = {"download": [line.text() for line in found], "disk": disk(whole, found)}
    return "\n".join([title, *_indented(parts)])


def needs_of(stem: str, parameters: dict) -> Needs:
    """What the notebook would ask for, out of its parameters and those of 01_train in the same profile."""
    given = parameters if stem == "01_train" else notebook.settings("01_train", parameters["profile"])
    train = Training(**{name: value for name, value in given.items() if name not in notebook.CONTROLS})
    places = [] if stem == "01_train" else list(_places(parameters))
    rows = {source: list(_rows(stem, parameters, train, source)) for source in _sources(parameters)}
    models = {row.name: row.model for of in rows.values() for row in of if row.model}
    ranked = [(row, place) for place in places for row in rows[place.source]]
    published_models = {name: model for name, model in models.items() if _is_hub_id(model)}
    needs = Needs(places, ranked, published_models, dim=train.dim, query_tokens=train.query_length)
    if stem in ("01_train", "05_carbon", "06_scaling") or HERE in models.values():
        _add_training(needs, train, stem, parameters)
    return needs


def _places(parameters: dict) -> Iterator[Place]:
    """The languages of published collections that a notebook is to search, without those that X-MOD does not have."""
    wanted = [code.strip() for code in parameters.get("lang", "").split(",")]
    for source in filter(published.PUBLISHED.get, _sources(parameters)):
        for code in collection_languages(source):
            if languages.LANGUAGES[code].adapter and (wanted == ["all"] or code in wanted):
                yield Place(source, code, max_passages=parameters.get("max_passages", 0))


def _sources(parameters: dict) -> dict[str, None]:
    """The collections that a notebook names, each once."""
    return dict.fromkeys(source.strip() for source in parameters.get("collection", "").split(","))


def _rows(stem: str, parameters: dict, train: Training, source: str) -> Iterator[System]:
    """The systems that a notebook ranks a collection with, as `baselines.Systems` would give them."""
    names = {
        "00_data": ["BM25"],
        "02_index": ["ColBERT-XM"],
        "04_compare": ["BM25", *TRAINED],
        "06_scaling": [parameters["reference"]] if parameters.get("reference") else [],
        "08_new_language": ["BM25", "ColBERT-XM"],
    }.get(stem, pick(parameters["systems"], PAPER, source) if "systems" in parameters else [])
    given = checkpoints_of(parameters.get("checkpoints", ""))
    for name in names:
        row = replace(PAPER[name], depth=parameters.get("rerank_depth", PAPER[name].depth))
        model = given.get(name, HERE if is_made_here(train, row) else row.model)
        yield replace(row, model=model) if row.model else row
    if stem == "06_scaling":
        for share in parameters["shares"]:
            yield System(f"ColBERT-XM after {share:g} of the steps", "colbert-xm", HERE, engine=parameters["engine"])


def _is_hub_id(model: Path | str) -> bool:
    return model != HERE and not Path(model).exists()


def _add_training(needs: Needs, train: Training, stem: str, parameters: dict) -> None:
    if train.collection in published.PUBLISHED:
        needs.places.append(Place(train.collection, languages.TRAINING_LANGUAGE, "train"))
    if train.checkpoint and _is_hub_id(train.checkpoint):
        needs.checkpoints["the encoder"] = train.checkpoint
    needs.negatives = train.negatives != "mined" or train.collection == "mmarco"  # which say what is relevant, too
    if stem == "06_scaling":
        steps = [max(1, round(share * train.steps)) for share in parameters["shares"]]
        steps = sum(steps) if parameters["how"] == "independent" else max(steps)
        needs.runs = [("ColBERT-XM", steps, train.batch_size)]
    else:
        needs.runs = [("ColBERT-XM", train.steps, train.batch_size)]
        if stem == HERE or any((row.name, row.model) == ("DPR-XM", HERE) for row, _ in needs.ranked):
            needs.runs.append(("DPR-XM", train.dpr_steps, train.batch_size))
        needs.first = HERE if stem != HERE else ""


# --- the four parts


def downloads(needs: Needs, asked: "Sizes") -> list[Download]:
    """What would be fetched, one line per collection and checkpoint."""
    found = []
    for source in dict.fromkeys(place.source for place in needs.places):
        about, here = published.PUBLISHED[source], [place for place in needs.places if place.source == source]
        pending = [published.pending(place.source, place.lang, place.split) for place in here]
        passages = dict.fromkeys(file for files, _ in pending for file in files)
        questions = dict.fromkeys(file for _, files in pending for file in files)
        what = f"{source} ({', '.join(dict.fromkeys(place.lang for place in here))})"
        found.append(asked.download(what, about.licence, [*passages, *questions], about.makes, passages))
    if needs.negatives and not is_built(msmarco.open_negatives):
        files = [msmarco.MINED, msmarco.SCORES]
        found.append(asked.download("MS MARCO's hard negatives", msmarco.LICENCE, files, msmarco.MAKES, files))
    for repo in dict.fromkeys(needs.checkpoints.values()):
        rows = ", ".join(name for name, of in needs.checkpoints.items() if of == repo)
        what, licence = f"{repo}, weights of {rows}", LICENCES.get(repo, "see its page")
        found.append(asked.download(what, licence, [asked.weights(repo)]))
    return found


def disk(needs: Needs, found: Sequence[Download]) -> list[str]:
    """What three folders would grow by, and what is free there."""
    from huggingface_hub import constants

    indexes = sum(_index_bytes(row, place, needs.dim) for row, place in needs.ranked)
    models = len(needs.runs) * XMOD_BYTES if "the encoder" in needs.checkpoints else 0.0
    grows = {
        Path(constants.HF_HUB_CACHE): (sum(line.size for line in found), "downloads"),
        DATA: (sum(line.makes for line in found), "packed collections, arrays of negatives"),
        RUNS: (indexes + models, f"indexes {hub.human(indexes)}, models {hub.human(models)}"),
    }
    disks: dict[int, list] = {}
    lines = []
    for folder, (size, what) in grows.items():
        there = hub.existing(folder)
        free = shutil.disk_usage(there).free
        disks.setdefault(there.stat().st_dev, [free, 0.0])[1] += size
        lines.append(f"{hub.human(size)} below {notebook.short(folder)}, where {hub.human(free)} are free: {what}")
    for free, size in disks.values():
        if size > free:
            moved = "XMLIB_DATA, XMLIB_RUNS and HF_HUB_CACHE move them"
            lines.append(f"NOT ENOUGH: {hub.human(size)} on a disk with {hub.human(free)} free; {moved}")
    return lines


def times(needs: Needs) -> list[str]:
    """Hours of training, encoding and re-ranking on the assumed device."""
    lines = []
    for name, steps, batch in needs.runs:
        tokens = steps * batch * (needs.query_tokens + 2 * PASSAGE_TOKENS)
        floor, pace = tokens * TRAINED_FLOP / RATE / 3600, steps * batch / 128 * HOURS_PER_STEP
        first = f", unless {needs.first} has done it" if needs.first else ""
        what = f"train {name}, {steps:,} steps of {batch}{first}"
        lines.append(f"{what}: {_hours(floor)} at least; {_hours(pace)} at the paper's pace for ColBERT-XM")
    encoded = [place for row, place in needs.ranked if row.group in ("single-vector", "multi-vector")]
    if encoded:
        floor = sum(place.passages for place in encoded) * PASSAGE_TOKENS * ENCODED_FLOP / RATE / 3600
        lines.append(f"encode passages for {len(encoded)} indexes: {_hours(floor)} at least")
    pairs = sum(place.queries * row.depth for row, place in needs.ranked if row.group == "cross-encoder")
    if pairs:
        floor = pairs * (PASSAGE_TOKENS + 12) * ENCODED_FLOP / RATE / 3600
        lines.append(f"re-rank {pairs / 1e6:.1f} million pairs: {_hours(floor)} at least")
    unknown = dict.fromkeys(place.source for _, place in needs.ranked if not place.passages)
    if unknown:
        lines.append(f"without {', '.join(unknown)}, whose number of passages is not known here")
    lines.append(
        f"assumed: {DEVICE} at {RATE / 1e12:g} TFLOP/s, encoders of 12 x 768, {PASSAGE_TOKENS} tokens a passage; "
        "without BM25 and search"
    )
    return [*lines, f"this machine: {notebook.device_name()}"]


def expected(stem: str, needs: Needs, max_passages: int = 0) -> list[str]:
    """What the paper prints for what the notebook is about to find."""
    from xmlib import reported

    lines = []
    if stem == "01_train":
        lines.append("the paper prints no loss; the plan of 03_eval has its scores of what is trained here")
    if stem == "02_index":
        plaid = next(
            row["value"] for row in reported.rows(5) if (row["setting"], row["metric"]) == ("PLAID", "index_gb")
        )
        lines.append(f"Table 5: {plaid} GB for the {MMARCO[0]:,} English passages")
    if stem == "04_compare":
        margin = reported.FIGURE_4_MARGIN
        lines.append(
            f"Figure 4, MRR@10 × 100: ColBERT-XM over DPR-XM by {margin['en']} in English, {margin['others']} elsewhere"
        )
    if stem == "05_carbon":
        value = {row["metric"]: row["value"] for row in reported.rows(3) if row["system"] == "ColBERT-XM"}
        lines.append(f"Table 3: ColBERT-XM {value['energy_kwh']} kWh, {value['emission_kgco2eq']} kg CO2eq")
    rows = [row for row, _ in needs.ranked] if stem in ("00_data", "03_eval") else []
    tables = {1: "mmarco", 2: "mrtydi"} if rows else {4: "mmarco"} if stem == "06_scaling" else {}
    for table, source in tables.items():
        langs = {place.lang for place in needs.places if (place.source, place.split) == (source, "test")}
        lines += _printed(table, {row.name for row in rows} or {"ColBERT-XM"}, {*langs, "avg"}) if langs else []
    if max_passages:
        lines.append(f"with {reduced_name('', max_passages)[1:]} all scores are higher, and compare with nothing above")
    return lines or ["the paper prints nothing of this"]


def _printed(table: int, systems: set[str], langs: set[str]) -> list[str]:
    """The printed scores of some systems and languages, one line for each row of the table."""
    from xmlib import reported

    lines = []
    for metric in {1: ["mrr@10"], 2: ["mrr@100", "recall@100"], 4: ["mrr@10"]}[table]:
        lines.append(f"Table {table}, {metric} × 100; avg over all its languages")
        values: dict[str, list[str]] = {}
        for row in reported.rows(table):
            if row["system"] in systems and row["metric"] == metric and row["lang"] in langs:
                name = row["setting"] if table == 4 else row["system"]
                values.setdefault(name, []).append(f"{row['lang']} {row['value']}")
        lines += [f"  {name}: {' · '.join(of)}" for name, of in values.items()]
    return lines


def _index_bytes(row: System, place: Place, dim: int) -> float:
    """Size of an index on disk; a cross-encoder's is BM25's, which another row has."""
    B = place.passages
    if not B or row.group == "cross-encoder":
        return 0.0
    if row.group == "lexical":
        return B * 40 * 8.0  # 40 different terms a passage, each with a score and a place in four bytes; assumed
    if row.group == "single-vector":
        return B * 768 * 4.0
    tokens = B * PASSAGE_TOKENS
    if row.engine == "exact":
        return tokens * dim * 2.0
    centroids = 2 ** math.floor(math.log2(16 * math.sqrt(tokens)))
    return tokens * (2 * dim + math.log2(centroids)) / 8


class Sizes:
    """Sizes of files, asked of the hub until it does not answer."""

    def __init__(self):
        self.reachable, self.known = True, {}

    def __call__(self, file: HubFile) -> float | None:
        """Bytes that are to be fetched: 0 of a file in the cache, None where nobody knows."""
        if file not in self.known:
            self.known[file] = self._ask(file)
        return self.known[file]

    def _ask(self, file: HubFile) -> float | None:
        if hub.cached(file):
            return 0.0
        if self.reachable:
            try:
                return hub.plan([file])[0][1]
            except hub.DownloadError as error:  # one file may be missing or refused, and the next one be there
                self.reachable = getattr(error.__cause__, "response", None) is not None
        return SHOWN.get((file.repo, file.path))

    def weights(self, repo: str) -> HubFile:
        """The file with the weights of a checkpoint."""
        files = [HubFile(repo, name, kind="model") for name in WEIGHTS]
        return next((file for file in files if hub.cached(file) or self(file)), files[0])

    def download(
        self, what: str, licence: str, files: Iterable[HubFile], makes: float = 0.0, of: Iterable[HubFile] = ()
    ) -> Download:
        """One line. `makes`: the bytes that are made, per byte of the files `of`."""
        missing = {file: self(file) for file in files if not hub.cached(file)}
        known = [size for size in missing.values() if size is not None]
        made = makes * sum(self(file) or 0 for file in of)
        unknown = len(missing) - len(known)
        return Download(what, licence, len(missing), sum(known), unknown, bool(known) and not self.reachable, made)


def _hours(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min" if hours >= 1 / 60 else "<1 min"


def _indented(parts: dict[str, list[str]]) -> Iterator[str]:
    for name, lines in parts.items():
        yield from (f"  {'' if i else name:<10}{line}" for i, line in enumerate(lines))


def main(arguments: list[str] | None = None) -> None:
    """Print the plans of a profile's notebooks, then what they take together."""
    parser = argparse.ArgumentParser(prog="python -m xmlib.plan", description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", help="by default all that the profile has")
    parser.add_argument("--profile", default="paper")
    options, sizes = parser.parse_args(arguments), Sizes()
    have = sorted(path.name.split(".")[0] for path in (ROOT / "params").glob(f"*.{options.profile}.yaml"))
    given = {
        stem: notebook.settings(stem, options.profile) | {"profile": options.profile}
        for stem in options.notebooks or have
    }
    for stem, parameters in given.items():
        print(plan(stem, parameters, sizes), end="\n\n")
    print(together(given, sizes))


if __name__ == "__main__":
    main()
