"""Runs of a recipe in their folders, and comparisons of several rules."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from nplex import count, preview
from nplex.convert import Where
from nplex.files import write_json, write_tensors
from nplex.lab.checked import damaged, write_sealed
from nplex.lab.environment import environment
from nplex.lab.recipes.recipe import PARTS, Data, Outcome, Recipe
from nplex.lab.results import finished_folders, finished_result
from nplex.lab.run_folder import (
    CHECKPOINT,
    COMPARISON,
    MODEL,
    RESULT,
    SETTINGS,
    VOCABULARY,
    Settings,
    owned,
    settings_for,
)
from nplex.lab.scored import Scored
from nplex.lab.summary import Summary, summarise
from nplex.lab.train import OnStep, State, clear, fit, main_process, silent, wait


def run(recipe: Recipe | Scored, data: Data, seed: int, folder: Path, report: OnStep = silent) -> dict:
    """Trains and tests one model in a folder; one that is finished is read, not run again.

    Writes settings.json at the start, checkpoint.safetensors while it runs, and at the end model.safetensors,
    vocabulary.json and result.json. Under torchrun all processes train and test, and the first one writes.

    Args:
        recipe: what is trained and tested, or a function that gives a score.
        data: what its `load` gave.
        seed: of first values and of the order of examples.
        folder: for the files of this run alone.
        report: called after each step.

    Raises:
        ValueError: the folder holds a run with other settings, or a damaged file.
        Interrupted: Ctrl-C; the checkpoint is written.
    """
    config = _config(recipe, data, seed)
    if not (folder / RESULT).exists():  # what is done is only read
        with owned(folder) if main_process() else nullcontext():
            if isinstance(recipe, Scored):
                _begin(folder, config)
                write_sealed(folder / RESULT, _plain(config | recipe.measured(seed) | {"environment": environment()}))
            else:
                _train_and_test(recipe, data, seed, folder, config, report)
    check_settings(folder, "run", config)
    result = finished_result(folder / RESULT)
    if difference := _difference({key: result[key] for key in config}, config):
        raise damaged(folder / RESULT, f"it belongs to other settings: {difference}")
    return result


def compare(
    recipe: Recipe | Scored, rules: Sequence[str], seeds: Sequence[int], data: Data, folder: Path,
    report: OnStep = silent,
) -> Summary:  # fmt: skip
    """Runs every rule with every seed, each in a folder of its own, and sums up all runs that the folder then holds.

    Raises:
        ValueError: the folder holds a run with other settings.
        Interrupted: Ctrl-C; what is done stays done.
    """
    with owned(folder) if main_process() else nullcontext():
        every = [recipe.with_rule(rule) for rule in rules]
        before = settings_for(folder, "comparison") or {"rules": [], "seeds": []}
        settings = {
            "task": recipe.task_name,
            "rules": list(dict.fromkeys([*before["rules"], *(each.rule for each in every)])),
            "seeds": sorted({*before["seeds"], *seeds}),
        }
        _check_others(folder, _config(recipe, data, 0))
        if main_process():
            write_json(folder / SETTINGS, Settings("comparison", settings).json())
        for seed in seeds:
            for each in every:
                run(each, data, seed, folder / f"{Path(each.rule).name.replace(':', '-')}-seed{seed}", report)
        wait()
        results = [finished_result(each / RESULT) for each in finished_folders(folder)]
        summary = summarise(results, recipe.baseline(data))
        if main_process():
            write_sealed(folder / COMPARISON[0], _plain(asdict(summary) | {"runs": results}))
    return summary


def _check_others(folder: Path, config: dict) -> None:
    """Refuses a comparison whose runs were made with other settings than the rule and the seed."""
    for each in sorted(folder.glob(f"*/{RESULT}")):
        found = settings_for(each.parent, "run") or config
        found = found | {"seed": 0, "recipe": found["recipe"] | {"rule": config["recipe"]["rule"], "table": None}}
        if difference := _difference(found, config | {"recipe": config["recipe"] | {"table": None}}):
            raise ValueError(f"{each.parent} is a run with other settings ({difference}); take another --out")


def layer_parameters(model: nn.Module, where: Where) -> int:
    """Parameters of hypercomplex layers with their rules, and of torch's layers that `where` selects, each once."""
    rows = preview(model, 2, where=where).rows
    layers = [layer for row in rows if where(row.name, layer := model.get_submodule(row.name)) is True]
    dense = {p for layer in layers if not hasattr(layer, "rule") for p in layer.parameters()}
    return count(model).layers + sum(p.numel() for p in dense)


def sizes(data: Data) -> dict[str, int]:
    """How many examples each part has; of language bytes or words."""
    return {part: len(getattr(data, part)) for part in PARTS}


def fingerprint(data: Data) -> dict[str, str]:
    """The name of the data folder and the SHA-256 of each file, so that results tell what they were made from."""
    names = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in data.files}
    return {"name": data.folder.resolve().name} | names


def check_settings(folder: Path, kind: str, settings: dict) -> None:
    """Checks that what a folder holds was made with these settings, or that it holds nothing.

    Raises:
        ValueError: it is of another kind, or has other settings; names the first.
    """
    found = settings_for(folder, kind)
    if found is not None and (difference := _difference(found, settings)):
        raise ValueError(f"{folder} holds a {kind} with other settings ({difference}); take another --out")


def _train_and_test(recipe: Recipe, data: Data, seed: int, folder: Path, config: dict, report: OnStep) -> None:
    _begin(folder, config)
    began_in = environment()
    torch.manual_seed(seed)
    model = recipe.build(data)
    state = fit(
        model, recipe.task(data), recipe.schedule, seed=seed, folder=folder, config=config, report=report,
        label=f"{recipe.rule}, seed {seed}",
    )  # fmt: skip
    outcome = recipe.test(model, data, next(model.parameters()).device)
    if main_process():
        write_tensors(folder / MODEL, model.state_dict(), {"config": config})
        write_json(folder / VOCABULARY, data.vocabulary.as_dict())
        measured = _measured(model, recipe, data, state, outcome)
        write_sealed(folder / RESULT, _plain(config | measured | {"environment": began_in}))
        (folder / CHECKPOINT).unlink(missing_ok=True)
        clear(folder)
    wait()


def _config(recipe: Recipe | Scored, data: Data, seed: int) -> dict:
    """What decides a run."""
    scored = isinstance(recipe, Scored)
    values, source = ({"rule": recipe.rule}, {}) if scored else (asdict(recipe), fingerprint(data))
    return _plain({"task": recipe.task_name, "recipe": values, "seed": seed, "data": source})


def _begin(folder: Path, config: dict) -> None:
    if main_process():
        check_settings(folder, "run", config)
        write_json(folder / SETTINGS, Settings("run", config).json())


def _plain(config: dict) -> dict:
    """A config as JSON gives it back: tuples are lists there."""
    return json.loads(json.dumps(config))


def _measured(model: nn.Module, recipe: Recipe, data: Data, state: State, outcome: Outcome) -> dict:
    with torch.device("meta"):
        dense = recipe.dense(data)
    return {
        "layer_parameters": layer_parameters(model, recipe.converted),
        "dense_layer_parameters": layer_parameters(dense, recipe.converted),
        "parameters": sum(p.numel() for p in model.parameters()),
        "sizes": sizes(data),
        "kind": outcome.kind,
        "scores": outcome.scores,
        "interval": outcome.interval,
        "answers": outcome.answers,
        "examples": outcome.examples,
        "notes": outcome.notes,
        "training_seconds": state.seconds,
        "training_tokens_per_second": state.tokens / max(state.seconds, 1e-9),
        "testing_tokens_per_second": outcome.tokens / max(outcome.seconds, 1e-9),
        "history": state.history,
    }


def _difference(found: dict, wanted: dict, path: str = "") -> str:
    """The first setting that differs, as text; "" where none does. How often to write checkpoints is free."""
    for key in [*wanted, *(found.keys() - wanted)]:
        old, new = found.get(key), wanted.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            if inner := _difference(old, new, f"{path}{key}."):
                return inner
        elif old != new and path + key != "recipe.schedule.checkpoint_every":
            return f"{path}{key} was {old!r:.80}, now {new!r:.80}"
    return ""
