"""Runs of a recipe in their folders, and comparisons of several rules."""

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

from nplex import checkpoint
from nplex.convert import Where
from nplex.environment import environment
from nplex.nn import Linear
from nplex.place import CHECKPOINT, COMPARISON, MODEL, RESULT, SETTINGS, VOCABULARY, settings_of
from nplex.recipes import agreement as task
from nplex.recipes.agreement import Data, Recipe
from nplex.summary import Summary, summarise
from nplex.train import Report, State, fit, silent

MEASURED = (
    "layer_parameters",
    "dense_layer_parameters",
    "parameters",
    "accuracy",
    "training_seconds",
    "training_tokens_per_second",
    "testing_tokens_per_second",
    "history",
    "correct",
    "environment",
)


def run(recipe: Recipe, data: Data, seed: int, folder: Path, report: Report = silent) -> dict:
    """Trains and tests one model in a folder; one that is finished is read, not run again.

    Writes settings.json at the start, checkpoint.safetensors while it runs, and at the end model.safetensors,
    vocabulary.json and result.json.

    Raises:
        ValueError: the folder holds a run with other settings, or a damaged file.
        Interrupted: Ctrl-C; the checkpoint is written.
    """
    config = {"task": "agreement", "recipe": asdict(recipe), "seed": seed, "data": fingerprint(data.folder)}
    if (folder / SETTINGS).exists() and (found := checkpoint.read_json(folder / SETTINGS)) != config:
        raise ValueError(
            f"{folder} holds a run with other settings ({_difference(found, config)}); take another --out"
        )
    if (folder / RESULT).exists():
        return _finished(folder / RESULT, config)
    checkpoint.write_json(folder / SETTINGS, config)
    began_in = environment()
    torch.manual_seed(seed)
    model = task.build(recipe, data.vocabulary)
    state = fit(
        model, task.Agreement(data, recipe.schedule.batch_size), recipe.schedule, seed=seed, folder=folder,
        config=config, report=report, label=f"{recipe.rule}, seed {seed}",
    )  # fmt: skip
    checkpoint.write_tensors(folder / MODEL, model.state_dict(), {"config": config})
    checkpoint.write_json(folder / VOCABULARY, {"words": data.vocabulary.words})
    result = config | _measured(model, recipe, data, state) | {"environment": began_in}
    checkpoint.write_json(folder / RESULT, result)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return result


def compare(
    recipe: Recipe, rules: Sequence[str], seeds: Sequence[int], data: Data, folder: Path,
    report: Report = silent,
) -> Summary:  # fmt: skip
    """Runs every rule with every seed, each in a folder of its own, and sums them up.

    Raises:
        ValueError: a folder holds a run with other settings.
        Interrupted: Ctrl-C; what is done stays done.
    """
    if "recipe" in (settings_of(folder) or {}):
        raise ValueError(f"{folder} holds a single run, not a comparison; take another --out")
    checkpoint.write_json(folder / SETTINGS, {"task": "agreement", "rules": list(rules), "seeds": list(seeds)})
    results = []
    for seed in seeds:
        for rule in rules:
            place = folder / f"{rule.replace(':', '-')}-seed{seed}"
            results.append(run(replace(recipe, rule=rule), data, seed, place, report))
    summary = summarise(results, rules, baseline(data))
    checkpoint.write_json(folder / COMPARISON[0], asdict(summary) | {"runs": results})
    return summary


def layer_parameters(model: nn.Module, where: Where) -> int:
    """Parameters of the linear layers that `where` selects, their rules included, each once."""
    layers = [m for name, m in model.named_modules() if isinstance(m, (nn.Linear, Linear)) and where(name, m)]
    parameters = {p for layer in layers for p in layer.parameters()}
    parameters |= {p for layer in layers if isinstance(layer, Linear) for p in layer.rule.parameters()}
    return sum(p.numel() for p in parameters)


def baseline(data: Data) -> dict[str, float]:
    """The accuracy of always saying the commoner label of the training part, in all and per source."""
    common = Counter(data.train.labels.tolist()).most_common(1)[0][0]
    return by_source((data.test.labels == common).tolist(), data.test.sources)


def by_source(right: Sequence[bool | float], sources: Sequence[str]) -> dict[str, float]:
    """Means over all examples, and over those of each source."""
    groups: dict[str, list[float]] = {"all": [float(r) for r in right]}
    for value, source in zip(right, sources, strict=True):
        if source != "all":
            groups.setdefault(source, []).append(float(value))
    return {source: sum(values) / len(values) for source, values in sorted(groups.items())}


def fingerprint(folder: Path) -> dict[str, str]:
    """The name of a data folder and the SHA-256 of each part, so that results tell what they were made from."""
    files = [task.find_split(folder, split) for split in ("train", "dev", "test")]
    return {"name": folder.resolve().name} | {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def _finished(path: Path, config: dict) -> dict:
    """The result of a run that is done, if it is whole."""
    result = checkpoint.read_json(path)
    missing = [key for key in (*config, *MEASURED) if key not in result]
    if missing:
        raise ValueError(f"{path} is damaged, {', '.join(missing)} is missing; delete it to run again")
    return result


def _measured(model: nn.Module, recipe: Recipe, data: Data, state: State) -> dict:
    """What is known after training."""
    device = next(model.parameters()).device
    began = time.perf_counter()
    right = task.correct(model, data.test, device)
    seconds = time.perf_counter() - began
    dense = task.build(replace(recipe, rule="dense"), data.vocabulary)
    return {
        "layer_parameters": layer_parameters(model, task.LAYERS),
        "dense_layer_parameters": layer_parameters(dense, task.LAYERS),
        "parameters": sum(p.numel() for p in model.parameters()),
        "accuracy": by_source(right.tolist(), data.test.sources),
        "training_seconds": state.seconds,
        "training_tokens_per_second": state.tokens / state.seconds,
        "testing_tokens_per_second": sum(len(line) for line in data.test.lines) / seconds,
        "history": state.history,
        "correct": "".join(str(int(value)) for value in right.tolist()),
    }


def _difference(found: dict, wanted: dict, path: str = "") -> str:
    """The first setting that differs, as text."""
    for key in found.keys() | wanted.keys():
        old, new = found.get(key), wanted.get(key)
        if isinstance(old, dict) and isinstance(new, dict) and old != new:
            return _difference(old, new, f"{path}{key}.")
        if old != new:
            return f"{path}{key} was {old!r}, now {new!r}"
    return "none"
