"""README.md of a converted model of transformers: what was converted, to which rules, how to load it."""

import re
from collections import Counter
from typing import Any

from torch import nn

from nplex.convert.record import record
from nplex.counting import count


def model_card(model: nn.Module) -> str:
    """README.md of a converted model: what was converted, to which rules, how to load it."""
    conversion, numbers, kind = record(model), count(model), type(model).__name__
    groups: Counter[tuple[str, str, str]] = Counter()
    for name, layer in conversion["layers"].items():
        pattern = re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)
        groups[pattern, layer["kind"], _rule_summary(conversion["rules"][layer["rule"]], layer.get("shared"))] += 1
    rows = [f"| `{name}` | {number} | {layer} | {rule} |" for (name, layer, rule), number in groups.items()]
    share = 100 * numbers.total / max(numbers.dense, 1)
    return "\n".join([
        "---", "library_name: transformers", "tags:", "- nplex", "- hypercomplex", "---",
        f"# {kind} with hypercomplex layers", "",
        f"{len(conversion['layers'])} layers are hypercomplex layers of `nplex`: the model has {numbers.total:,} "
        f"parameters, a dense one would have {numbers.dense:,} ({share:.1f} %).", "",
        "## How to load it", "", "```python",
        "import nplex  # without it, transformers warns and gives random weights: pip install nplex",
        f"from transformers import {kind}", "",
        f'model = {kind}.from_pretrained("path/to/this/folder")', "```", "",
        "## What was converted", "", "| layers | number | kind | rule |", "|---|---|---|---|", *rows, "",
    ])  # fmt: skip


def _rule_summary(rule: dict[str, Any], shared: str | None) -> str:
    """`learned, n = 4, rank 7, shared at `rule``, for the model card."""
    words = [rule.get("algebra", f"learned, n = {rule.get('n')}")]
    words += [f"rank {rule['rank']}"] * (rule["rank"] is not None) + ["frozen"] * (rule.get("learned") is False)
    return ", ".join(words + [f"shared at `{shared}`"] * (shared is not None))
