"""Subject-verb agreement: from the words before a verb, is it singular or plural?

Paper: table 6 (accuracy; Transformer 400K 94.80, quaternion 94.70, n = 2 95.14, n = 4 95.05, n = 8 95.62), on
another split of Linzen's data. The same sizes: 2 layers, width 128, feed-forward 512, 4 heads.
Expected here and how long it takes: README.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from nplex.lab.data import builtin
from nplex.lab.recipes.classification import Classification, LabelledData
from nplex.lab.recipes.classifiers import Encoder
from nplex.lab.recipes.recipe import PARTS, Reading, is_small
from nplex.lab.text import QUERY, Columns, Vocabulary, find_file, read_rows
from nplex.lab.train import Schedule

LABELS = ("VBZ", "VBP")
LONGEST = 64
COLUMNS = Columns(texts=(1,), labels={label: label for label in LABELS}, source=2)


@dataclass(frozen=True)
class Agreement(Classification):
    """A transformer encoder that reads the query, then the words from the last to the first.

    Attributes:
        feed_forward: the inner width of the blocks.
        heads: of attention.
        layers: number of blocks.
    """

    name: ClassVar[str] = "agreement"
    patterns: ClassVar[tuple[str, ...]] = ("blocks.*",)
    labels: ClassVar[tuple[str, ...]] = LABELS
    inputs: ClassVar[tuple[str, ...]] = ("the words before the verb",)
    feed_forward: int = 512
    heads: int = 4
    layers: int = 2

    def read(self, folder: Path | None, parts: Sequence[str] = PARTS) -> Reading:
        """The folder, its files, and the rows of each part."""
        folder = builtin("agreement") if folder is None else folder
        files = tuple(find_file(folder, f"{part}.tsv") for part in parts)
        return folder, files, [read_rows(file, COLUMNS) for file in files]

    def words(self, text: str) -> list[str]:
        """Words between spaces."""
        return text.split()

    def encode(self, lines: list[list[str]], vocabulary: Vocabulary) -> list[Tensor]:
        """The query and the words backwards; of lines that are too long the words nearest to the verb."""
        encoded = vocabulary.encode([words[::-1][: LONGEST - 1] for words in lines])
        return [torch.cat([torch.tensor([QUERY]), line]) for line in encoded]

    def dense(self, data: LabelledData) -> nn.Module:
        """The model of torch's layers."""
        return Encoder(
            len(data.vocabulary), len(LABELS), width=self.width, heads=self.heads, feed_forward=self.feed_forward,
            layers=self.layers, dropout=self.dropout, longest=LONGEST,
        )  # fmt: skip


def agreement(rule: str = "4", *, size: str = "small", set: str = "") -> Agreement:
    """The paper's size, which two cores train in minutes: `small` and `paper` are the same.

    Raises:
        ValueError: the text names no rule, or one with n above the width; or an unknown size or set.
    """
    is_small(size)
    return Agreement(rule=rule, set=set, schedule=Schedule(epochs=4, batch_size=64, checkpoint_every=100))
