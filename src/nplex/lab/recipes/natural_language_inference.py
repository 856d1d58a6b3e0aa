"""Natural language inference: does the first sentence entail the second, contradict it, or neither?

Paper: the table of natural language inference (accuracy; LSTM 300: SNLI 84.18, MultiNLI 71.82 / 71.89; quaternion,
n = 2, 5, 10 within a point of it), on all of SNLI and MultiNLI with GloVe vectors. Here the training parts are
smaller (8,330, 20,000 and 4,500 pairs) and words are learned from random vectors, so scores are far below those; what
is compared is one rule with another. Sizes: `paper` has 300 wide vectors and states, `small` 160.
Expected here and how long it takes: results/README.md.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from nplex.lab.recipes.classification import Classification, LabelledData
from nplex.lab.recipes.classifiers import PairClassifier
from nplex.lab.recipes.recipe import PARTS, Reading, is_small, no_data
from nplex.lab.text import Columns, Vocabulary, find_file, read_rows
from nplex.lab.train import Schedule

LABELS = ("entailment", "neutral", "contradiction")
LONGEST = 60
WORD = re.compile(r"\w+|[^\w\s]")
NAMES = {name: name for name in LABELS}

OWN = Columns((1, 2), NAMES, source=3)
MNLI = Columns(("sentence1", "sentence2"), NAMES, "label", "genre", header=True)
SNLI = Columns((0, 1), {str(number): name for number, name in enumerate(LABELS)}, label=2)
REVISED = Columns(("sentence1", "sentence2"), NAMES, "gold_label", header=True)
SICK = Columns(
    ("sentence_A", "sentence_B"), {n.upper(): n for n in LABELS}, "entailment_judgment", header=True
)  # fmt: skip
ALL = slice(None)
# Public sets: file, columns and rows of train, dev and test.
SETS: dict[str, tuple[tuple[str, Columns, slice], ...]] = {
    "snli": (
        ("cad_snli_train.tsv.gz", REVISED, ALL), ("snli_dev.tsv.gz", SNLI, ALL), ("snli_test.tsv.gz", SNLI, ALL),
    ),
    "mnli": (
        ("mnli_train.tsv.gz", MNLI, ALL), ("mnli_val.tsv.gz", MNLI, slice(2500)),
        ("mnli_val.tsv.gz", MNLI, slice(-2500, None)),
    ),
    "sick": (
        ("SICK_train.txt.gz", SICK, ALL), ("SICK_trial.txt.gz", SICK, ALL),
        ("SICK_test_annotated.txt.gz", SICK, ALL),
    ),
}  # fmt: skip
WITHOUT_SIGNS = ("snli",)  # a part of it has no punctuation


@dataclass(frozen=True)
class Inference(Classification):
    """An LSTM on both sentences, max and mean of its states, a head of two layers; the LSTM is converted.

    Attributes:
        embedding: the width of the words' vectors.
    """

    name: ClassVar[str] = "inference"
    patterns: ClassVar[tuple[str, ...]] = ("encoder",)
    sets: ClassVar[tuple[str, ...]] = tuple(SETS)
    labels: ClassVar[tuple[str, ...]] = LABELS
    inputs: ClassVar[tuple[str, ...]] = ("premise", "hypothesis")
    rule: str = "5"
    embedding: int = 160
    width: int = 160
    vocabulary: int = 20_000

    def read(self, folder: Path | None, parts: Sequence[str] = PARTS) -> Reading:
        """The folder, its files, and the rows of each part."""
        if folder is None:
            raise no_data(self.name, fetched="snli")
        if self.set:
            which = dict(zip(PARTS, SETS[self.set], strict=True))
            chosen = [(folder / name, columns, rows) for name, columns, rows in (which[part] for part in parts)]
        else:
            chosen = [(find_file(folder, f"{part}.tsv"), OWN, ALL) for part in parts]
        for file, *_ in chosen:
            if not file.is_file():
                raise FileNotFoundError(
                    f"{folder} has no {file.name}, which --set {self.set} reads; see docs/tasks.md"
                )
        found = [read_rows(file, columns)[rows] for file, columns, rows in chosen]
        return folder, tuple(dict.fromkeys(file for file, *_ in chosen)), found

    def words(self, text: str) -> list[str]:
        """Lower-case words and signs; words alone where a part of the set has no signs."""
        found = WORD.findall(text.lower())
        return [word for word in found if word[0].isalnum()] if self.set in WITHOUT_SIGNS else found

    def encode(self, lines: list[list[str]], vocabulary: Vocabulary) -> list[Tensor]:
        """Numbers of words; of sentences that are too long the first ones."""
        return vocabulary.encode([words[:LONGEST] or ["<empty>"] for words in lines])

    def dense(self, data: LabelledData) -> nn.Module:
        """The model of torch's layers."""
        return PairClassifier(
            len(data.vocabulary), len(LABELS), embedding=self.embedding, width=self.width, dropout=self.dropout
        )


def inference(rule: str = "5", *, size: str = "small", set: str = "") -> Inference:
    """The pair model: Adam, batches of 64 pairs here, of 256 at the paper's size; the best epoch by the dev part.

    Raises:
        ValueError: the text names no rule, or one with n above the width; or an unknown size or set.
    """
    width, batch_size = (160, 64) if is_small(size) else (300, 256)
    schedule = Schedule(epochs=10, batch_size=batch_size, learning_rate=3e-3, weight_decay=0.0, keep="best")
    return Inference(rule=rule, set=set, embedding=width, width=width, schedule=schedule)
