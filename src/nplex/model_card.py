"""README.md of a converted model of transformers: what was converted, to which rules, how to load it."""

import re
from collections import Counter
from typing import Any

from torch import nn

from nplex.convert.record import record
from nplex.counting import count

_BEGIN, _END = "<!-- nplex: begin -->", "<!-- nplex: end -->"
_HEAD = "---\nlibrary_name: transformers\ntags:\n- nplex\n- hypercomplex\n---"


def model_card(model: nn.Module, card: str = "") -> str:
    """README.md of a model: the given one, with a section that says what is converted now, to which rules.

    Args:
        model: of transformers, converted or not.
        card: the README.md that there is. Only the section of an earlier conversion is replaced.

    Returns:
        The text; "" where nothing is converted and no one wrote more.
    """
    head, tail = card, ""
    if is_ours(card):
        head, _, rest = card.partition(_BEGIN)
        tail = rest.partition(_END)[2]
    head, tail = head.rstrip(), tail.strip()
    alone, section = head in ("", _HEAD) and not tail, ""
    if record(model)["layers"]:
        section = f"{_BEGIN}\n{_section(model, '#' if alone else '##')}\n{_END}"
        head = _HEAD if alone else head
    elif alone or not is_ours(card):
        return "" if alone else card
    return "\n\n".join(filter(None, (head, section, tail))) + "\n"


def is_ours(card: str) -> bool:
    """Whether a README.md has the section of a conversion."""
    return _END in card.partition(_BEGIN)[2]


def _section(model: nn.Module, mark: str) -> str:
    conversion, numbers, kind = record(model), count(model), type(model).__name__
    groups: Counter[tuple[str, str, str]] = Counter()
    for name, layer in conversion["layers"].items():
        pattern = re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)
        groups[pattern, layer["kind"], _rule_summary(conversion["rules"][layer["rule"]], layer.get("shared"))] += 1
    rows = [f"| `{name}` | {number} | {layer} | {rule} |" for (name, layer, rule), number in groups.items()]
    share = 100 * numbers.total / max(numbers.dense, 1)
    return "\n".join([
        f"{mark} {kind} with hypercomplex layers", "",
        f"{len(conversion['layers'])} layers are hypercomplex layers of `nplex`: the model has {numbers.total:,} "
        f"parameters, a dense one would have {numbers.dense:,} ({share:.1f} %).", "",
        f"{mark}# How to load it", "", "```python",
        "import nplex  # without it, transformers warns and gives random weights: pip install nplex",
        f"from transformers import {kind}", "",
        f'model = {kind}.from_pretrained("path/to/this/folder")', "```", "",
        f"{mark}# What was converted", "", "| layers | number | kind | rule |", "|---|---|---|---|", *rows,
    ])  # fmt: skip


def _rule_summary(rule: dict[str, Any], shared: str | None) -> str:
    """`learned, n = 4, rank 7, shared at `rule``, for the model card."""
    words = [rule.get("algebra", f"learned, n = {rule.get('n')}")]
    words += [f"rank {rule['rank']}"] * (rule["rank"] is not None) + ["frozen"] * (rule.get("learned") is False)
    return ", ".join(words + [f"shared at `{shared}`"] * (shared is not None))
