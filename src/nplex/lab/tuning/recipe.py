"""A recipe as what is tuned: each rule is trained and tested in a folder of its own."""

from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nplex.lab import experiment
from nplex.lab.train import State
from nplex.lab.tuning.measured import Measured, Progress

SPEEDS = ("training", "testing")


@dataclass(frozen=True)
class RecipeObjective:
    """Trains and tests a recipe with a rule.

    Attributes:
        recipe: a recipes.recipe.Recipe; its own rule counts for nothing.
        data: the folder that it loads; None for the built-in set.
        folder: for the runs, each in a folder of its own.
        seed: of first values and of the order of examples.
        speed: whether seconds are those of training or of testing.
    """

    recipe: Any
    data: Path | None
    folder: Path
    seed: int = 0
    speed: str = "training"

    def __post_init__(self) -> None:
        if self.speed not in SPEEDS:
            raise ValueError(f"speed must be {' or '.join(SPEEDS)}, got {self.speed!r}")

    def __getstate__(self) -> dict[str, Any]:
        """Without the data: each process reads them itself."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    @cached_property
    def loaded(self) -> Any:
        """The data, read once a process."""
        return self.recipe.load(self.data)

    @cached_property
    def lower(self) -> bool:
        """Whether a lower score is the better one."""
        return not self.recipe.task(self.loaded).higher

    @property
    def name(self) -> str:
        """As on the command line."""
        return self.recipe.name

    @property
    def unit(self) -> str:
        """What seconds are of."""
        return f"1,000 {self.speed} tokens"

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What all who work on a search must agree on."""
        recipe = {name: value for name, value in asdict(self.recipe).items() if name not in ("rule", "shared")}
        data = experiment.fingerprint(self.loaded)
        return {"recipe": recipe, "data": data, "seed": self.seed, "speed": self.speed}

    def __call__(self, rule: str, *, shared: bool, report: Progress) -> Measured:
        """Trains and tests; a run that an earlier process began goes on from its checkpoint."""
        recipe = replace(self.recipe, rule=rule, shared=shared)
        main, told = recipe.task(self.loaded).main, 0

        def watch(label: str, state: State, steps: int) -> None:
            nonlocal told
            for epoch in state.history[told:]:
                told += 1
                report(epoch[main], state.seconds * told / len(state.history))

        name = f"{rule.replace(':', '-')}{'-shared' if shared else ''}-seed{self.seed}"
        result = experiment.run(recipe, self.loaded, self.seed, self.folder / name, watch)
        low, high = result["interval"]
        return Measured(
            score=next(iter(result["scores"].values())),
            parameters=result["layer_parameters"],
            seconds=1000 / result[f"{self.speed}_tokens_per_second"],
            low=low,
            high=high,
        )
