"""Compares what nplex.estimate predicts with what is then measured, for four models of real width.

    python benchmarks/estimate.py                # about a quarter of an hour; writes results/estimate-1-thread.*
    python benchmarks/estimate.py --quick        # one small model, to see that it runs; writes nothing

Each model has two layers of the real width, and a small vocabulary, so that the layers count. The models run in
turns, and the median over the turns counts. Needs transformers.
"""

import statistics
import warnings
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from torch import nn

import nplex
from nplex.files import write_json
from nplex.lab.environment import environment

RULES = ("2", "4", "8", "4:7", "8:22")
WITHIN = 0.25
WORDS = 2000
RESULTS = Path(__file__).parent / "results"


class Lstm(nn.Module):
    """Two layers of width 1,024, as in the language models of their time."""

    def __init__(self, width: int = 1024) -> None:
        super().__init__()
        self.words, self.lstm = nn.Embedding(WORDS, width), nn.LSTM(width, width, 2, batch_first=True)
        self.head = nn.Linear(width, WORDS)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits of the next word."""
        return self.head(self.lstm(self.words(ids))[0])


def models() -> dict[str, tuple[nn.Module, Any]]:
    """Each with what its forward takes."""
    import transformers as hf

    ids = torch.randint(0, WORDS, (4, 128))
    return {
        "BERT": (hf.BertModel(hf.BertConfig(num_hidden_layers=2, vocab_size=WORDS)), {"input_ids": ids}),
        "GPT-2": (hf.GPT2LMHeadModel(hf.GPT2Config(n_layer=2, vocab_size=WORDS)), {"input_ids": ids}),
        "ViT": (
            hf.ViTForImageClassification(hf.ViTConfig(num_hidden_layers=2)),
            {"pixel_values": torch.randn(2, 3, 224, 224)},
        ),
        "LSTM": (Lstm(), torch.randint(0, WORDS, (16, 32))),
    }


def main(
    turns: Annotated[int, typer.Option(min=1, help="How often each model is estimated and measured.")] = 3,
    quick: Annotated[bool, typer.Option("--quick", help="One small model, nothing written.")] = False,
) -> None:
    """Print predicted and measured times, and write them as JSON and Markdown."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    chosen = {"LSTM": (Lstm(64), torch.randint(0, WORDS, (2, 8)))} if quick else models()
    found: dict[str, list[nplex.estimating.Estimate]] = {name: [] for name in chosen}
    order = [name for _ in range(1 if quick else turns) for name in chosen]
    for name in track(order, "estimating", console=Console(stderr=True)):
        model, example = chosen[name]
        found[name].append(nplex.estimate(model, example, RULES, measure=True))
        if not quick and name == order[-1]:  # after each turn
            write([row for name, each in found.items() for row in compared(name, each)], len(found[name]))
    print(table([row for name, each in found.items() for row in compared(name, each)]))


def write(rows: list[dict[str, Any]], turns: int) -> None:
    """All figures as JSON, and the table."""
    env = environment()
    write_json(RESULTS / "estimate-1-thread.json", {"environment": env, "seed": 0, "turns": turns, "rows": rows})
    head = (
        f"nplex {env['commit']}, torch {env['torch']}, {env['processor']}, {env['threads']} thread, float32, "
        f"{turns} turn{'s' * (turns > 1)}, {env['date']}\n\n"
    )
    (RESULTS / "estimate-1-thread.md").write_text(head + table(rows) + "\n", "utf-8")


def compared(name: str, found: list[Any]) -> list[dict[str, Any]]:
    """Predicted and measured in milliseconds, the medians over the turns, and in MB."""
    rows = []
    for same in zip(*(each.rows for each in found), strict=True):
        pairs = [(row, row.measured or (row.inference, row.step, row.memory)) for row in same]
        middle = statistics.median
        rows.append({
            "model": name, "rule": same[0].rule, "parameters": same[0].parameters,
            "step": [1e3 * middle(row.step for row in same), 1e3 * middle(real[1] for _, real in pairs)],
            "inference": [1e3 * middle(row.inference for row in same), 1e3 * middle(real[0] for _, real in pairs)],
            "memory": [same[0].memory / 1e6, pairs[0][1][2] / 1e6],
        })  # fmt: skip
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: predicted, measured and the ratio of both."""
    lines = [
        "| model | rule | parameters | step: predicted ms | measured | ratio | inference: predicted ms | measured "
        "| ratio | training: predicted MB | measured |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    ratios = []
    for row in rows:
        times = [cell for key in ("step", "inference") for cell in (*row[key], row[key][0] / row[key][1])]
        is_dense = row["rule"] == "dense"
        ratios += [] if is_dense else [times[2], times[5]]
        cells = [f"{cell:.2f}" if i in (2, 5) else f"{cell:,.0f}" for i, cell in enumerate(times)]
        cells = ["" if is_dense and i in (0, 2, 3, 5) else cell for i, cell in enumerate(cells)]
        memory = [f"{value:,.0f}" for value in row["memory"]]
        lines.append(f"| {row['model']} | {row['rule']} | {row['parameters']:,} | {' | '.join([*cells, *memory])} |")
    good = sum(abs(ratio - 1) <= WITHIN for ratio in ratios)
    worst = max(ratios, key=lambda ratio: abs(ratio - 1))
    return "\n".join([
        *lines,
        "",
        f"{good} of {len(ratios)} times are predicted within 25 %; the worst ratio is {worst:.2f}.",
    ])


if __name__ == "__main__":
    typer.run(main)
