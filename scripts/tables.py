"""Write the tables of README and docs/ from the results they stand in; `--check` only compares.

A page marks a table by a comment, `<!-- table: NAME -->`, and this file says how NAME is made. So a number is written
down once, in the JSON of the run that measured it.

Examples:
    python scripts/tables.py            # after a new measurement
    python scripts/tables.py --check    # exit code 1, and the pages that differ
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
TABLE = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?\n(?=\n)", re.DOTALL)
RULES = {"2": "n = 2", "4": "n = 4", "4:7": "n = 4, rank 7", "4:4": "n = 4, rank 4", "8": "n = 8",
         "8:24": "n = 8, rank 24", "8:8": "n = 8, rank 8"}  # fmt: skip
COLUMNS = ("4", "4:7", "4:4", "8:24", "8:8")


def read(name: str) -> dict:
    """The JSON of a result."""
    return json.loads((ROOT / name).read_text("utf-8"))


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, its numbers to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def agreement_lines() -> list[tuple[dict, dict]]:
    """Each rule's line on the built-in set beside its line on Linzen's."""
    brown, linzen = read("results/agreement-brown.json"), read("results/agreement-linzen.json")
    others = {line["rule"]: line for line in linzen["lines"]}
    return [(line, others[line["rule"]]) for line in brown["lines"]]


def accuracy(line: dict) -> list[str]:
    """Accuracy and its interval, in percent; results before `scores` held shares of one."""
    whole = 1 if "scores" in line else 100
    score = line["scores"]["accuracy"] if "scores" in line else line["accuracy"]["all"]
    return [f"{whole * score:.2f}", f"{whole * line['low']:.1f}-{whole * line['high']:.1f}"]


def agreement() -> str:
    """Subject-verb agreement: parameters, accuracy and intervals on both sets, and the majority class."""
    rows = [
        [RULES.get(one["rule"], one["rule"]), f"{one['layer_parameters']:,}", f"{one['share']:.3f}",
         *accuracy(one), *accuracy(other)]
        for one, other in agreement_lines()
    ]  # fmt: skip
    brown = 100 * read("results/agreement-brown.json")["majority"]["all"]
    linzen = read("results/agreement-linzen.json")["baseline"][1]["accuracy"]
    rows.append(["*majority class*", "", "", f"{brown:.2f}", "", f"{linzen:.2f}", ""])
    head = ["layers of the transformer", "parameters", "of dense", "built-in set, accuracy %", "95 % interval",
            "Linzen's set, accuracy %", "95 % interval"]  # fmt: skip
    return table(head, rows)


def agreement_short() -> str:
    """The same without intervals."""
    rows = [
        [RULES.get(one["rule"], one["rule"]), f"{one['share']:.3f}", accuracy(one)[0], accuracy(other)[0]]
        for one, other in agreement_lines()
    ]
    return table(["layers", "parameters, of dense", "built-in set", "Linzen's set"], rows)


def of_layer(mode: str, tokens: int) -> dict[str, float]:
    """Time of a layer of 2048 x 2048 as a share of dense, for each rule, by the planned method."""
    sweep = read("benchmarks/results/ops-1-thread.json")["sweep"]
    wanted = (2048, mode, tokens)
    return {row["rule"]: row["ratio"] for row in sweep if (row["width"], row["mode"], row["tokens"]) == wanted}


def of_token(method: str) -> dict[str, float]:
    """Time of one token through a layer of 4096 x 4096 as a share of dense, for each rule, by one method."""
    found = read("benchmarks/results/ops-1-thread.json")["targets"]
    return {row["rule"]: row["ratios"][method] for row in found if row["d_in"] == 4096}


def of_transformer(value: Callable[[dict], float]) -> dict[str, float]:
    """A figure of the encoder-decoder transformer as a share of the dense one's, for each rule."""
    models = {row["variant"]: row for row in read("benchmarks/results/models-1-thread.json")["models"]["transformer"]}
    return {rule: value(row) / value(models["dense"]) for rule, row in models.items()}


def speed() -> str:
    """Shares of the dense layer's and of the dense model's time and size, one core."""
    transformer = "training step of an encoder-decoder transformer, width 512"
    figures = {
        "training step of a layer, 2048 x 2048, 1024 tokens": of_layer("training", 1024),
        "one token through a layer, 4096 x 4096": of_token("rule_first"),
        "the same inside `nplex.nn.cached`": of_token("rule_first, cached"),
        transformer: of_transformer(lambda row: row["ms"]["training"]),
        "a token of its generation, one sentence": of_transformer(lambda row: row["ms"]["generation, 1"]),
        "its parameters, embeddings and output head dense in all": of_transformer(lambda row: row["parameters"]),
    }
    rows = [[title, *(f"{found[rule]:.2f}" for rule in COLUMNS)] for title, found in figures.items()]
    return table(["one core, time as a share of dense", *(RULES[rule] for rule in COLUMNS)], rows)


def speed_short() -> str:
    """A training step of one layer, a line for each rule."""
    found = of_layer("training", 1024)
    return table(["rule", "time"], [[RULES[rule], f"{found[rule]:.2f}"] for rule in ("4", "4:7", "4:4", "8", "8:8")])


def methods() -> str:
    """A layer at 2048 x 2048 in training and inference, few and many tokens, by the planned method."""
    cases = {"training step, 1024 tokens": ("training", 1024), "training step, 16 tokens": ("training", 16),
             "forward, 1024 tokens": ("forward", 1024), "forward, 1 token, cached": ("cached", 1)}  # fmt: skip
    rows = [[name, *(f"{of_layer(*case)[rule]:.2f}" for case in cases.values())] for rule, name in RULES.items()]
    return table(["rule", *cases], rows)


def adapters() -> str:
    """Adapters at equal numbers: those of the last block, best first within a size."""
    sizes = ("0", "1,800", "7,000", "28,000")
    every = read("benchmarks/results/adapters.json")["rows"]
    found = [row for row in every if row["blocks"] == "last" and row["seeds"] == 3]
    rows = [
        [row["adapter"], f"{row['numbers']:,}", f"{row['rate']:g}", f"{row['test']:.1f}",
         f"{min(row['scores']):.1f} to {max(row['scores']):.1f}"]
        for row in sorted(found, key=lambda row: (sizes.index(row["budget"]), -row["test"]))
    ]  # fmt: skip
    return table(["adapter", "numbers", "rate", "accuracy %", "3 seeds"], rows)


def pretrained() -> str:
    """MiniLM without training: the measured lines of the benchmark's own table, without the time."""
    text = (ROOT / "benchmarks/results/pretrained.md").read_text("utf-8")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return "\n".join("|".join(line.split("|")[:-2]) + "|" for line in lines)


def restarts() -> str:
    """Runs whose workers were killed."""
    rows = read("benchmarks/results/restarts.json")["rows"]
    kills, same, stuck = (sum(values) for values in zip(
        *((len(row["killed"]), row["same"], row["stuck"]) for row in rows), strict=True
    ))  # fmt: skip
    return table(
        ["runs", "workers killed", "same bits", "stood still"], [[*map(str, (len(rows), kills, same, stuck))]]
    )


TABLES = {"adapters": adapters, "agreement": agreement, "agreement-short": agreement_short, "speed": speed,
          "speed-short": speed_short, "methods": methods, "pretrained": pretrained, "restarts": restarts}  # fmt: skip


def filled(text: str) -> str:
    """A page with its tables as the results say."""
    return TABLE.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n", text)


def main() -> int:
    """Writes or compares all pages."""
    stale = [page for page in PAGES if filled(page.read_text("utf-8")) != page.read_text("utf-8")]
    for page in stale:
        print(page.relative_to(ROOT))
        if "--check" not in sys.argv:
            page.write_text(filled(page.read_text("utf-8")), "utf-8")
    return int("--check" in sys.argv and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
