"""A finished run in use: its model, its tokenizer and its task; loading never runs code."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from nplex.files import read_json, read_tensors
from nplex.lab.checked import damaged
from nplex.lab.checkpoint import fill_from
from nplex.lab.recipes.recipe import PARTS, Data, Outcome, Prediction, Recipe
from nplex.lab.recipes.settings import recipe_from
from nplex.lab.recipes.tasks import TASKS
from nplex.lab.results import finished_folders
from nplex.lab.run_folder import MODEL, SETTINGS, VOCABULARY, settings_of


class LoadedRun(NamedTuple):
    """What a finished run gives.

    Attributes:
        model: trained, in evaluation mode, on the CPU.
        tokenizer: what turns text into the numbers that it reads.
        task: the recipe, with all settings of the run.
    """

    model: nn.Module
    tokenizer: Any
    task: Recipe

    def predict(self, lines: Sequence[str]) -> list[Prediction]:
        """A label with probabilities, or a text, for each line.

        Raises:
            ValueError: a line is empty, or has other columns than the task reads; names it.
        """
        return self.task.predict(self.model, self.task.cells(lines), self.tokenizer, self._device)

    def read(self, folder: Path | None = None, set: str | None = None) -> Data:
        """The test part of a folder, or of the built-in set, in the numbers of this run's tokenizer.

        Args:
            folder: that holds it.
            set: the public set in it, "" for the task's own format; the run's own if left out.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a line is malformed; names file and line.
        """
        reader = self.task if set is None else replace(self.task, set=set)
        return self.task.encoded(reader.read(folder, PARTS[-1:]), self.tokenizer)

    def score(self, folder: Path | None = None, set: str | None = None) -> Outcome:
        """The task's measure on that data, with its interval; arguments and errors as of `read`."""
        return self.task.test(self.model, self.read(folder, set), self._device)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


def load_run(path: str | Path, recipe: type[Recipe] | None = None) -> LoadedRun:
    """The model, the tokenizer and the task of a finished run.

    Args:
        path: the folder that nplex run wrote, or one of those that nplex compare wrote.
        recipe: the class of a task of your own, whose code is never looked for.

    Raises:
        FileNotFoundError: there is no such folder, or no finished run in it.
        ValueError: it is not the folder of one run, its task is unknown, or a file is damaged; names it.

    Examples:
        model, tokenizer, task = nplex.lab.load_run("runs/agreement-4-seed0")
    """
    with torch.random.fork_rng(devices=[]):  # first values are drawn, and replaced
        return _load(Path(path), recipe)


def _load(folder: Path, recipe: type[Recipe] | None) -> LoadedRun:
    found = finished_folders(folder)
    if found != [folder]:
        raise ValueError(f"{folder} holds {len(found)} runs; name one of them: {', '.join(map(str, found[:8]))}")
    if not (folder / MODEL).exists():
        raise FileNotFoundError(f"{folder} holds no {MODEL}: it was lost, or the run is the score of a function")
    settings = settings_of(folder)
    values = {} if settings is None else settings.values
    recipe = recipe or _kind(folder, str(values.get("task")))
    try:
        task = recipe_from(recipe, values["recipe"])
    except ValueError as error:
        raise damaged(folder / SETTINGS, error) from None
    tensors, header = read_tensors(folder / MODEL)
    if header.get("config") != values:
        raise damaged(folder / MODEL, f"it belongs to other settings than {SETTINGS}")
    try:
        tokenizer = task.read_tokenizer(read_json(folder / VOCABULARY))
    except ValueError as error:
        raise damaged(folder / VOCABULARY, error) from None
    data = Data(folder, (), tokenizer, None, None, None)
    with torch.device("meta"):  # what does not fit is told before memory is asked for
        expected = task.build(data).state_dict()
    for name in expected.keys() | tensors:
        if name not in tensors or name not in expected or tensors[name].shape != expected[name].shape:
            raise damaged(folder / MODEL, f"{name} is not what {SETTINGS} and {VOCABULARY} say")
    model = task.build(data)
    fill_from(folder / MODEL, model, tensors)
    return LoadedRun(model.eval(), tokenizer, task)


def _kind(folder: Path, name: str) -> type[Recipe]:
    """The class of a built-in task."""
    if ":" in name:
        raise ValueError(f"{folder} is a run of {name}, code that loading does not run; name it, as --task {name}")
    if name not in TASKS:
        raise ValueError(f"{folder / SETTINGS} names the task {name!r:.40}; there are {', '.join(TASKS)}")
    return type(TASKS[name]())
