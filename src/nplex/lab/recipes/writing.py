"""What translation and style transfer share: an encoder-decoder transformer from lines to lines, scored by BLEU."""

import abc
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from nplex.convert import Where, only
from nplex.lab.generation import beam
from nplex.lab.recipes.recipe import Baseline, Outcome, with_rule
from nplex.lab.recipes.seq2seq import Seq2Seq
from nplex.lab.scores.bleu import bleu
from nplex.lab.text import BEGIN, END, Subwords, batches, pad, token_batches
from nplex.lab.train import Loss, Schedule

LAYERS = only("encoder.*", "decoder.*")
Lines = list[tuple[str, str]]


@dataclass(frozen=True)
class Writing(abc.ABC):
    """Everything that decides a run, but for the seed and the data.

    Attributes:
        rule: `dense`, `4`, `4:7`, `quaternion`: what the layers of both stacks become.
        shared: whether they have one rule.
        set: which public set; "" for one's own files.
        source: the language or style that is read, which ends the names of its files.
        target: that which is written.
        width: of the model.
        feed_forward: the inner width of the blocks.
        heads: of attention.
        layers: blocks of each stack.
        dropout: after embeddings, attention and feed-forward.
        vocabulary: subwords, shared by both sides, learned from the training part.
        longest: subwords of a line; longer pairs are left out of training.
        beams: texts that beam search keeps side by side.
        length_penalty: of beam search.
        schedule: how long and how fast.
    """

    name: ClassVar[str]
    rule: str = "4"
    shared: bool = False
    set: str = ""
    source: str = "source"
    target: str = "target"
    width: int = 256
    feed_forward: int = 512
    heads: int = 4
    layers: int = 3
    dropout: float = 0.2
    vocabulary: int = 8_000
    longest: int = 128
    beams: int = 5
    length_penalty: float = 0.6
    schedule: Schedule = field(default_factory=Schedule)

    @abc.abstractmethod
    def read(self, folder: Path | None) -> tuple[Path, tuple[Path, ...], tuple[Lines, Lines, Lines]]:
        """The folder, its files, and the pairs of train, dev and test."""

    @property
    def converted(self) -> Where:
        """The layers of both stacks."""
        return LAYERS

    def load(self, folder: Path | None) -> "Data":
        """Reads the three parts and learns the subwords of the first.

        Raises:
            FileNotFoundError: there is no data, or a file is missing; says what a folder holds.
            ValueError: the files do not match line by line; names file and line.
        """
        place, files, (train, dev, test) = self.read(folder)
        subwords = Subwords.train([line for pair in train for line in pair], self.vocabulary)
        parts = [Split.of(part, subwords, self.longest) for part in (train, dev, test)]
        return Data(place, files, subwords, parts[0].fitting(self.longest), parts[1], parts[2])

    def build(self, data: "Data") -> nn.Module:
        """The dense model, its blocks converted to the recipe's rule."""
        model = Seq2Seq(
            len(data.subwords), width=self.width, heads=self.heads, feed_forward=self.feed_forward,
            layers=self.layers, dropout=self.dropout, longest=2 * self.longest + 12,
        )  # fmt: skip
        return with_rule(model, self.rule, LAYERS, shared=self.shared)

    def task(self, data: "Data") -> "Training":
        """The task as nplex.lab.train wants it."""
        return Training(data, self.schedule)

    def test(self, model: nn.Module, data: "Data", device: torch.device) -> Outcome:
        """BLEU on the test part, with and without regard to case."""
        began = time.perf_counter()
        texts, written = self.write(model, data, data.test, device)
        seconds = time.perf_counter() - began
        cased, uncased = (bleu(texts, data.references, lowercase=lower) for lower in (False, True))
        scores = {"bleu": cased.score, "bleu, uncased": uncased.score}
        notes = {"sacreBLEU": cased.signature, "uncased": uncased.signature}
        return Outcome("bleu", scores, (cased.low, cased.high), texts, written, seconds, notes)

    def write(self, model: nn.Module, data: "Data", split: "Split", device: torch.device) -> tuple[list[str], int]:
        """The texts for the sources of a part, and how many subwords were written."""
        model.eval()
        texts, written = [""] * len(split.pairs), 0
        for indices in batches([len(line) for line in split.sources], 32):
            source = pad([split.sources[i] for i in indices]).to(device)
            longest = min(int(1.5 * source.shape[1]) + 10, 2 * self.longest)
            found = beam(
                model, source, longest=longest, begin=BEGIN, end=END, beams=self.beams,
                length_penalty=self.length_penalty,
            )  # fmt: skip
            for index, numbers in zip(indices, found, strict=True):
                texts[index], written = data.subwords.decode(numbers), written + len(numbers) + 1
        return texts, written

    def baseline(self, data: "Data") -> Baseline:
        """The source as it stands."""
        sources = [source for source, _ in data.test.pairs]
        cased, uncased = (bleu(sources, data.references, lowercase=lower, resamples=0) for lower in (False, True))
        return Baseline("copy", {"bleu": cased.score, "bleu, uncased": uncased.score})


@dataclass(frozen=True)
class Split:
    """Pairs of lines, as text and as numbers: sources end with END, targets stand between BEGIN and END."""

    pairs: Lines
    sources: list[Tensor]
    targets: list[Tensor]

    @classmethod
    def of(cls, pairs: Lines, subwords: Subwords, longest: int) -> "Split":
        """Encodes pairs; sources that are too long lose their end."""
        sources, targets = (subwords.encode([pair[side] for pair in pairs]) for side in (0, 1))
        return cls(
            pairs,
            [torch.tensor([*numbers[:longest], END]) for numbers in sources],
            [torch.tensor([BEGIN, *numbers, END]) for numbers in targets],
        )

    @property
    def longer(self) -> list[int]:
        """Of source and target, the longer one: what a batch is padded to."""
        return [max(len(a), len(b)) for a, b in zip(self.sources, self.targets, strict=True)]

    def fitting(self, longest: int) -> "Split":
        """Without the pairs that are too long to be learned from."""
        kept = [i for i, length in enumerate(self.longer) if length <= longest]
        return Split(
            [self.pairs[i] for i in kept], [self.sources[i] for i in kept], [self.targets[i] for i in kept]
        )  # fmt: skip

    def batch(self, indices: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
        """Sources and targets of some pairs."""
        source, target = (pad([side[i] for i in indices]).to(device) for side in (self.sources, self.targets))
        return source, target


@dataclass(frozen=True)
class Data:
    """The three parts, and the subwords of the training part."""

    folder: Path
    files: tuple[Path, ...]
    subwords: Subwords
    train: Split
    dev: Split
    test: Split

    @property
    def references(self) -> list[str]:
        """The right texts of the test part."""
        return [target for _, target in self.test.pairs]

    def vocabulary_json(self) -> dict:
        """The subwords, in the format of the tokenizers library."""
        return self.subwords.as_dict()


@dataclass(frozen=True)
class Training:
    """The task as nplex.lab.train wants it."""

    main: ClassVar[str] = "nats"
    higher: ClassVar[bool] = False
    data: Data
    schedule: Schedule

    def batches(self, generator: torch.Generator) -> list[list[int]]:
        """Pairs of like length together, as many tokens as the schedule says, in random order."""
        lengths, tokens = self.data.train.longer, self.schedule.batch_tokens
        if tokens:
            return token_batches(lengths, tokens, generator)
        return batches(lengths, self.schedule.batch_size, generator)

    def loss(self, model: nn.Module, indices: list[int], device: torch.device) -> Loss:
        """Cross-entropy of the targets' subwords, smoothed."""
        source, target = self.data.train.batch(indices, device)
        total, items = model(source, target, self.schedule.label_smoothing)
        return Loss(total, items, items + int((source != 0).sum()))

    @torch.no_grad()
    def scores(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Nats a subword on the dev part, without smoothing, and the perplexity that they mean."""
        sums = [0.0, 0]
        for indices in batches(self.data.dev.longer, 64):
            total, items = model(*self.data.dev.batch(indices, device), 0.0)
            sums = [sums[0] + total.item(), sums[1] + items]
        nats = sums[0] / sums[1]
        return {"nats": nats, "perplexity": math.exp(min(nats, 50.0))}
