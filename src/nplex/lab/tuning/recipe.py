"""A recipe as what is tuned: each rule is trained and tested in a folder of its own."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from nplex.lab import experiment
from nplex.lab.scored import Measured


@dataclass(frozen=True)
class RecipeObjective:
    """Trains and tests a recipe with a rule, on data that its `load` gave; a half-trained run goes on."""

    recipe: Any
    data: Any
    folder: Path
    seed: int = 0
    unit: ClassVar[str] = "1,000 training tokens"

    @property
    def settings(self) -> dict[str, Any]:
        """What all who work on a search must agree on."""
        recipe = {name: value for name, value in asdict(self.recipe).items() if name != "rule"}
        return {"recipe": recipe, "data": experiment.fingerprint(self.data), "seed": self.seed}

    def __call__(self, rule: str) -> Measured:
        """Trains and tests."""
        folder = self.folder / f"{rule.replace(':', '-')}-seed{self.seed}"
        result = experiment.run(replace(self.recipe, rule=rule), self.data, self.seed, folder)
        low, high = result["interval"]
        where = f"where={self.recipe.converted!r}"
        return Measured(
            next(iter(result["scores"].values())), result["layer_parameters"],
            1000 / result["training_tokens_per_second"], low, high, where + ", shared=True" * self.recipe.shared,
        )  # fmt: skip
