"""Style transfer: today's English into Shakespeare's, or the King James Bible into the World English one.

Paper: the table of style transfer (BLEU; Transformer 44M 11.65, n = 2 12.20, n = 4 12.42, n = 8 11.66, n = 16 10.76),
on the same files, modern to Shakespeare. Sizes: `paper` has 6 + 6 layers of width 512, `small` 3 + 3 of width 128.
Expected here and how long it takes: results/README.md.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from nplex.lab.data import builtin
from nplex.lab.recipes.recipe import check_rule, check_set, check_size
from nplex.lab.recipes.translation import read_sides, sizes
from nplex.lab.recipes.writing import Lines, Writing

SETS = ("shakespeare",)
SMALL = {"width": 128, "feed_forward": 512, "dropout": 0.1}  # results/README.md says what else was tried


@dataclass(frozen=True)
class Style(Writing):
    """Writing with files of two styles."""

    name: ClassVar[str] = "style"

    def read(self, folder: Path | None) -> tuple[Path, tuple[Path, ...], tuple[Lines, Lines, Lines]]:
        """The folder, its files, and the pairs of train, dev and test."""
        if folder is None and self.set:
            raise FileNotFoundError(f"--set {self.set} needs its folder: give it with --data")
        if folder is None:
            return read_sides(builtin("bible"), ("train", "valid", "test"), "kjv", "web")
        if self.set:
            return read_sides(folder, ("train", "valid", "test"), "modern", "original", ".nltktok")
        return read_sides(folder, ("train", "dev", "test"), self.source, self.target)


def style(rule: str = "4", *, size: str = "small", set: str = "") -> Style:
    """Shakespeare's style with the set shakespeare; without data the King James Bible into the World English one.

    Raises:
        ValueError: the text names no rule, or one with n above the width; or an unknown size or set.
    """
    check_size(size)
    check_set("style", set, ("", *SETS))
    recipe = Style(rule=rule, set=set, **sizes(size))
    check_rule(rule, SMALL["width"] if size == "small" else recipe.width)
    if size == "paper":
        return replace(recipe, dropout=0.3, schedule=replace(recipe.schedule, epochs=40))
    return replace(recipe, **SMALL, schedule=replace(recipe.schedule, epochs=16, batch_tokens=1_024))
