"""Natural language inference: does the first sentence entail the second, contradict it, or neither?

Paper: the table of natural language inference (accuracy; LSTM 300: SNLI 84.18, MultiNLI 71.82 / 71.89; quaternion,
n = 2, 5, 10 within a point of it), on all of SNLI and MultiNLI with GloVe vectors. Here the training parts are
smaller (8,330, 20,000 and 4,500 pairs) and words are learned from random vectors, so scores are far below those; what
is compared is one rule with another. Sizes: `paper` has 300 wide vectors and states, `small` 160.
Expected here and how long it takes: results/README.md.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from nplex.convert import Where, only
from nplex.lab.recipes.labels import Choosing, LabelledData, majority, tested
from nplex.lab.recipes.pair import PairClassifier
from nplex.lab.recipes.recipe import Baseline, Outcome, check_rule, check_set, check_size, with_rule
from nplex.lab.text import Columns, Pair, Vocabulary, find_split, pad, read_pairs
from nplex.lab.train import Schedule

LABELS = ("entailment", "neutral", "contradiction")
LAYERS = only("encoder")
LONGEST = 60
WORD = re.compile(r"\w+|[^\w\s]")
NAMES = {name: name for name in LABELS}
DIGITS = {str(number): name for number, name in enumerate(LABELS)}


@dataclass(frozen=True)
class PublicSet:
    """Files of a set as its authors publish it.

    Attributes:
        parts: file, columns, and rows from and to, of train, dev and test.
        letters_only: whether punctuation is dropped, where a part has none.
    """

    parts: tuple[tuple[str, Columns, int | None, int | None], ...]
    letters_only: bool = False


OWN = Columns(first=1, second=2, label=0, labels=NAMES, source=3)
MNLI = Columns("sentence1", "sentence2", "label", NAMES, "genre", header=True)
SNLI = Columns(0, 1, 2, DIGITS)
REVISED = Columns("sentence1", "sentence2", "gold_label", NAMES, header=True)
SICK = Columns("sentence_A", "sentence_B", "entailment_judgment", {n.upper(): n for n in LABELS}, header=True)
SETS = {
    "snli": PublicSet(
        (
            ("cad_snli_train.tsv.gz", REVISED, None, None),
            ("snli_dev.tsv.gz", SNLI, None, None),
            ("snli_test.tsv.gz", SNLI, None, None),
        ),
        letters_only=True,
    ),
    "mnli": PublicSet((
        ("mnli_train.tsv.gz", MNLI, None, None),
        ("mnli_val.tsv.gz", MNLI, None, 2500),
        ("mnli_val.tsv.gz", MNLI, -2500, None),
    )),
    "sick": PublicSet((
        ("SICK_train.txt.gz", SICK, None, None),
        ("SICK_trial.txt.gz", SICK, None, None),
        ("SICK_test_annotated.txt.gz", SICK, None, None),
    )),
}


@dataclass(frozen=True)
class Inference:
    """Everything that decides a run, but for the seed and the data.

    Attributes:
        rule: `dense`, `4`, `4:7`, `quaternion`: what the LSTM becomes.
        shared: whether there is one rule.
        set: one of SETS, or "" for train, dev and test .tsv.
        embedding: the width of the words' vectors.
        width: of the LSTM's state.
        dropout: on words, on the pooled states and in the head.
        vocabulary: the most words kept; the others are read as unknown.
        schedule: how long and how fast.
    """

    name: ClassVar[str] = "inference"
    rule: str = "5"
    shared: bool = False
    set: str = ""
    embedding: int = 160
    width: int = 160
    dropout: float = 0.2
    vocabulary: int = 20_000
    schedule: Schedule = field(default_factory=Schedule)

    @property
    def converted(self) -> Where:
        """The LSTM."""
        return LAYERS

    def load(self, folder: Path | None) -> LabelledData:
        """Reads train, dev and test from a folder.

        Raises:
            FileNotFoundError: there is no folder, or a part is missing; says what it holds.
            ValueError: a line is malformed; names file and line.
        """
        if folder is None:
            raise FileNotFoundError(
                "inference has no built-in data: nplex fetch snli gets some, or give a folder with --data; "
                "docs/tasks.md says what it holds"
            )
        files, parts = _read(folder, self.set)
        words = _tokenizer(self.set)
        sentences = [words(sentence) for pair in parts[0] for sentence in (pair.first, pair.second)]
        vocabulary = Vocabulary.of(sentences, self.vocabulary)
        return LabelledData(folder, files, vocabulary, *(Split.of(part, vocabulary, words) for part in parts))

    def build(self, data: LabelledData) -> nn.Module:
        """The dense model, its LSTM converted to the recipe's rule."""
        model = PairClassifier(
            len(data.vocabulary), len(LABELS), embedding=self.embedding, width=self.width, dropout=self.dropout
        )
        return with_rule(model, self.rule, LAYERS, shared=self.shared)

    def task(self, data: LabelledData) -> Choosing:
        """The task as nplex.lab.train wants it."""
        return Choosing(data, self.schedule.batch_size)

    def test(self, model: nn.Module, data: LabelledData, device: torch.device) -> Outcome:
        """Accuracy on the test part, in all and for each source."""
        return tested(model, data.test, device)

    def baseline(self, data: LabelledData) -> Baseline:
        """Always the commoner label of the training part."""
        return majority(data)


def inference(rule: str = "5", *, size: str = "small", set: str = "") -> Inference:
    """The pair model: Adam, batches of 64 pairs here, of 256 at the paper's size; the best epoch by the dev part.

    Raises:
        ValueError: the text names no rule, or one with n above the width; or an unknown size or set.
    """
    check_size(size)
    check_set("inference", set, ("", *SETS))
    width = 300 if size == "paper" else 160
    schedule = Schedule(
        epochs=10, batch_size=256 if size == "paper" else 64, learning_rate=3e-3, weight_decay=0.0, keep="best"
    )
    recipe = Inference(rule=rule, set=set, embedding=width, width=width, schedule=schedule)
    check_rule(rule, recipe.width)
    return recipe


@dataclass(frozen=True)
class Split:
    """Pairs as numbers."""

    firsts: list[Tensor]
    seconds: list[Tensor]
    labels: Tensor
    sources: list[str]

    @classmethod
    def of(cls, pairs: Sequence[Pair], vocabulary: Vocabulary, words: Callable[[str], list[str]]) -> "Split":
        """Encodes pairs; of sentences that are too long the first words are kept."""
        firsts, seconds = (
            vocabulary.encode([words(sentence)[:LONGEST] or ["<empty>"] for sentence in side])
            for side in ([pair.first for pair in pairs], [pair.second for pair in pairs])
        )
        labels = torch.tensor([LABELS.index(pair.label) for pair in pairs])
        return cls(firsts, seconds, labels, [pair.source for pair in pairs])

    @property
    def longer(self) -> list[int]:
        """Of the longer sentence: what a batch is padded to."""
        return [max(len(a), len(b)) for a, b in zip(self.firsts, self.seconds, strict=True)]

    def tokens(self, index: int) -> int:
        """The words of both sentences."""
        return len(self.firsts[index]) + len(self.seconds[index])

    def batch(self, indices: list[int], device: torch.device) -> tuple[tuple[Tensor, ...], Tensor]:
        """Inputs of the model and labels of some pairs."""
        sides = tuple(pad([side[i] for i in indices]).to(device) for side in (self.firsts, self.seconds))
        return sides, self.labels[indices].to(device)


def _read(folder: Path, name: str) -> tuple[tuple[Path, ...], list[list[Pair]]]:
    """The files, and the pairs of train, dev and test."""
    if not name:
        files = tuple(find_split(folder, split) for split in ("train", "dev", "test"))
        return files, [read_pairs(file, OWN) for file in files]
    found = [(folder / file, columns, first, last) for file, columns, first, last in SETS[name].parts]
    for file, *_ in found:
        if not file.is_file():
            raise FileNotFoundError(f"{folder} has no {file.name}, which --set {name} reads; see docs/tasks.md")
    parts = [read_pairs(file, columns)[first:last] for file, columns, first, last in found]
    return tuple(dict.fromkeys(file for file, *_ in found)), parts


def _tokenizer(name: str) -> Callable[[str], list[str]]:
    """Lower-case words and signs of a sentence; words alone where a part of the set has no signs."""
    if name and SETS[name].letters_only:
        return lambda sentence: [token for token in WORD.findall(sentence.lower()) if token[0].isalnum()]
    return lambda sentence: WORD.findall(sentence.lower())
