"""The page: a template, its style and its script, plotly.js, and the data, in one file that asks no network."""

import html
import json
import re
from collections.abc import Callable, Iterable
from importlib.resources import files
from pathlib import Path

from nplex.files import write_text
from nplex.lab.reporting.read import FinishedRun, baseline, finished_runs, search_of
from nplex.lab.reporting.rule_tables import identify_rules, packed
from nplex.lab.run_folder import RESULT
from nplex.lab.summary import DIGITS, NAMES, Summary, summarise

OnRule = Callable[[int, int], None]
PARTS = files("nplex.lab.reporting") / "parts"


def report(folder: Path, out: Path, progress: OnRule | None = None) -> Path:
    """Writes one HTML page about a run, about all runs of a comparison, or about a search.

    It works without a network and without a server: scores and speed, learning curves, and the tables of learned
    rules over training as heat maps with a slider.

    Args:
        folder: that nplex run, nplex compare or nplex tune wrote.
        out: the page.
        progress: called after each rule that is identified, with how many are done and how many there are;
            without it none are.

    Raises:
        ImportError: plotly is not installed; names the command.
        FileNotFoundError: there is no such folder, or no finished run in it.
        ValueError: it is not a folder of runs, or a file is damaged.
    """
    search = search_of(folder)
    runs = [] if search and not any(folder.glob(f"*/{RESULT}")) else finished_runs(folder)
    first = runs[0].result if runs else {}
    rules_shown = packed(runs)
    if progress is not None:
        identify_rules(runs, rules_shown, progress)
    if search is None:
        summary = summarise([run.result for run in runs], baseline(folder))
        task, about, table = first["task"], _about(runs, summary), summary.table()
        lines = ((each.rule, each.layer_parameters, each.score, each.low, each.high) for each in summary.lines)
        scores = _scores(summary.kind, lines)
    else:
        task, about, table = search.task, search.about(), search.table()
        found = ((row.rule, row.measured) for row in search.rows)
        scores = _scores("score", ((rule, each.parameters, each.score, *each.ends) for rule, each in found))
    values = {
        "title": html.escape(f"{task}: {', '.join(line['rule'] for line in scores['lines'])}"),
        "heading": html.escape(task),
        "about": html.escape(about),
        "table": _table(table),
        "settings": _settings(first.get("recipe", {})),
        "style": (PARTS / "style.css").read_text("utf-8"),
        "script": (PARTS / "script.js").read_text("utf-8"),
        "plotly": _plotly(),
        "data": _json(scores | {"curves": _curves(runs), "rules": rules_shown}),
    }
    template = (PARTS / "page.html").read_text("utf-8")
    text = re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], template)  # once: what is put in stays as it is
    write_text(out, text)
    return out


def _about(runs: list[FinishedRun], summary: Summary) -> str:
    """What was run, on what, where."""
    seeds = sorted({run.result["seed"] for run in runs})
    data = runs[0].result["data"].get("name", "")
    count = f"{len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}"
    sizes = runs[0].result.get("sizes", {})
    read = "".join(f", {sizes[part]:,} examples for {part}" for part in ("train", "dev") if part in sizes)
    return f"{count}; data: {data}{read}; {summary.examples:,} test examples. {summary.where()}"


def _table(rows: list[list[str]]) -> str:
    head, *others = rows
    cells = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
    lines = []
    for first, *rest in others:
        row = "".join(f"<td>{html.escape(cell)}</td>" for cell in rest)
        lines.append(f'<tr><th scope="row">{html.escape(first)}</th>{row}</tr>')
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _settings(recipe: dict) -> str:
    """All settings but the rule, folded away; nothing where there are none, as of a function."""
    schedule = recipe.get("schedule")
    every = {**recipe, **(schedule if isinstance(schedule, dict) else {})}
    lines = [f"{name} = {value}" for name, value in every.items() if name not in ("rule", "table", "schedule")]
    return f"<details><summary>Settings</summary><pre>{html.escape(chr(10).join(lines))}</pre></details>" * bool(
        lines
    )


def _scores(kind: str, rows: Iterable[tuple[str, int | None, float, float, float]]) -> dict:
    """Of each rule its parameters, its score and the ends of the interval."""
    keys = ("rule", "parameters", "score", "low", "high")
    lines = [dict(zip(keys, row, strict=True)) for row in rows]
    return {"score": NAMES[kind], "digits": DIGITS[kind], "lines": lines}


def _curves(runs: list[FinishedRun]) -> list[dict]:
    return [
        {
            "label": run.label, "rule": run.rule, "history": run.result["history"],
            "steps": [step for step, _ in run.steps], "losses": [round(loss, 5) for _, loss in run.steps],
        }
        for run in runs
        if run.result["history"]
    ]  # fmt: skip


def _json(data: dict) -> str:
    """JSON that may stand in a script element: nothing in it can end the element; nan is null."""
    finite = json.loads(json.dumps(data), parse_constant=lambda _: None)  # a run that diverged has its page too
    return json.dumps(finite, allow_nan=False).replace("<", "\\u003c").replace("\u2028", "\\u2028")


def _plotly() -> str:
    """plotly.js as it comes with plotly; its absence is one error that names the command."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise ImportError("reports need plotly, which is not installed: pip install 'nplex[lab]'") from None
    return get_plotlyjs().replace("</script", "<\\/script")
