"""The laboratory: tasks, training, scores and the search for n, built on the library's public names alone."""

from nplex.lab.experiment import compare, run
from nplex.lab.generation import beam, greedy
from nplex.lab.loading import LoadedRun, load_run
from nplex.lab.recipes.recipe import Data, Outcome, Recipe
from nplex.lab.recipes.tasks import agreement, inference, language, recipe_of, style, translation
from nplex.lab.run_folder import RunFolder
from nplex.lab.train import Loss, Schedule, Task, fit
from nplex.lab.tuning import tune

__all__ = [
    "fit", "Schedule", "Task", "Loss", "greedy", "beam", "agreement", "inference", "translation", "style", "language",
    "recipe_of", "run", "compare", "RunFolder", "tune", "load_run", "LoadedRun", "Recipe", "Data", "Outcome",
]  # fmt: skip
