"""Style transfer: today's English into Shakespeare's, or the King James Bible into the World English one.

Paper: the table of style transfer (BLEU; Transformer 44M 11.65, n = 2 12.20, n = 4 12.42, n = 8 11.66, n = 16 10.76),
on the same files, modern to Shakespeare. Sizes: `paper` has 6 + 6 layers of width 512, `small` 3 + 3 of width 128.
Expected here and how long it takes: results/README.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from nplex.lab.data import builtin
from nplex.lab.recipes.recipe import PARTS, Reading, is_small, no_data
from nplex.lab.recipes.seq2seq import Seq2Seq, read_sides, sizes

VALID = {"dev": "valid"}
SMALL = {"width": 128, "feed_forward": 512, "dropout": 0.1}  # results/README.md says what else was tried


@dataclass(frozen=True)
class Style(Seq2Seq):
    """Reads files of two styles: `train.source` and `train.target`, and the same for dev and test."""

    name: ClassVar[str] = "style"
    sets: ClassVar[tuple[str, ...]] = ("shakespeare",)

    def read(self, folder: Path | None, parts: Sequence[str] = PARTS) -> Reading:
        """The folder, its files, and the pairs of each part."""
        if folder is None and self.set:
            raise no_data(self.name, self.set)
        if folder is None:
            return read_sides(builtin("bible"), parts, "kjv", "web", VALID)
        if self.set:
            return read_sides(folder, parts, "modern", "original", VALID, ".nltktok")
        return read_sides(folder, parts, self.source, self.target, {})


def style(rule: str = "4", *, size: str = "small", set: str = "") -> Style:
    """Shakespeare's style with the set shakespeare; without data the King James Bible into the World English one.

    Raises:
        ValueError: the text names no rule, or one with n above the width; or an unknown size or set.
    """
    small, chosen = is_small(size), sizes(size)
    changes = {"epochs": 16, "batch_tokens": 1_024} if small else {"epochs": 40}
    chosen |= {"schedule": replace(chosen["schedule"], **changes)} | (SMALL if small else {"dropout": 0.3})
    return Style(rule=rule, set=set, **chosen)
