"""Language: the next byte, or the next word, by a decoder-only transformer.

Not a task of the paper: the plainest test of what a model of some size and cost can learn, and that of
benchmarks/budgets.py. Sizes: `small` has 4 layers of width 128 and reads 128 places, `paper` has the size of the
paper's transformers, 6 layers of width 512, and reads 256.
Expected here and how long it takes: results/README.md.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import torch
from jaxtyping import Int
from torch import Tensor, nn

from nplex.lab.data import builtin
from nplex.lab.generation import greedy
from nplex.lab.recipes.language_model import LanguageModel
from nplex.lab.recipes.recipe import PARTS, Data, Outcome, Prediction, Reading, Recipe, is_small, no_data
from nplex.lab.scores import normal
from nplex.lab.text import Vocabulary, find_file, moved, read_lines
from nplex.lab.train import Loss, Schedule, spread

SETS = {"tinyshakespeare": "tinyshakespeare.txt", "brown": "brown_words.txt"}  # each one file
ENDS = (0.9, 0.95)  # of the training part and of dev, in such a file
LINE = "\n"  # ends a line of words, as a word


class Bytes:
    """Bytes: each is its own number."""

    def __len__(self) -> int:
        return 256

    def as_dict(self) -> dict:
        """How many there are."""
        return {"bytes": 256}

    def encode(self, parts: Sequence[Sequence[str]]) -> list[Int[Tensor, "_"]]:
        """The bytes of the UTF-8 text of each part's lines."""
        texts = [bytearray("".join(line + LINE for line in part).encode()) for part in parts]
        return [torch.tensor(text, dtype=torch.uint8).long() for text in texts]

    def decode(self, numbers: Sequence[int]) -> str:
        """The text of bytes; those that are no UTF-8 are marked."""
        return bytes(numbers).decode("utf-8", "replace")


LanguageData = Data[Vocabulary | Bytes, Tensor]


@dataclass(frozen=True)
class Language(Recipe[Vocabulary | Bytes, Tensor]):
    """Predicts the next byte or word; scored by nats. The blocks are converted.

    Attributes:
        unit: what is predicted, bytes or words.
        feed_forward: the inner width of the blocks.
        heads: of attention.
        layers: blocks.
        length: places that are read at once.
    """

    name: ClassVar[str] = "language"
    patterns: ClassVar[tuple[str, ...]] = ("blocks.*",)
    sets: ClassVar[tuple[str, ...]] = tuple(SETS)
    unit: Literal["byte", "word"] = "byte"
    feed_forward: int = 512
    heads: int = 4
    layers: int = 4
    dropout: float = 0.1
    vocabulary: int = 10_000
    length: int = 128

    def tokenizer(self, train: list[str]) -> Vocabulary | Bytes:
        """Bytes, or the words of the training part."""
        return Bytes() if self.unit == "byte" else Vocabulary.of(map(_words, train), self.vocabulary)

    def read_tokenizer(self, values: dict) -> Vocabulary | Bytes:
        """Its words, or bytes."""
        if self.unit == "word":
            return Vocabulary.from_dict(values)
        if values != Bytes().as_dict():
            raise ValueError("expected that of bytes")
        return Bytes()

    def encoded(self, reading: Reading, tokenizer: Vocabulary | Bytes) -> LanguageData:
        """Each part as one row of numbers."""
        folder, files, parts = reading
        if self.unit == "word":
            parts = [[word for line in part for word in _words(line)] for part in parts]
        found = tokenizer.encode(parts)
        for name, part in zip(PARTS[-len(found) :], found, strict=True):
            if len(part) <= self.length:
                raise ValueError(
                    f"{folder}: the {name} part has {len(part)} {self.unit}s, expected more than {self.length}"
                )
        return Data(folder, files, tokenizer, found[0], found[len(found) // 2], found[-1])

    def read(self, folder: Path | None, parts: Sequence[str] = PARTS) -> Reading:
        """The folder, its files, and the lines of each part."""
        if folder is None and self.set:
            raise no_data(self.name, self.set)
        if folder is not None and self.set:
            return _cut(folder, SETS[self.set], parts)
        names = [f"{part}.txt" for part in parts]
        if folder is None:
            folder, names = builtin("bible"), [f"{'valid' if part == 'dev' else part}.web" for part in parts]
        files = tuple(find_file(folder, name) for name in names)
        return folder, files, [*map(read_lines, files)]

    def dense(self, data: LanguageData) -> nn.Module:
        """The model of torch's layers."""
        return LanguageModel(
            len(data.vocabulary), width=self.width, heads=self.heads, feed_forward=self.feed_forward,
            layers=self.layers, dropout=self.dropout, longest=self.length,
        )  # fmt: skip

    def task(self, data: LanguageData) -> "LanguageTask":
        """What `nplex.lab.fit` trains."""
        return LanguageTask(data, self.length, self.schedule.batch_size)

    def test(self, model: nn.Module, data: LanguageData, device: torch.device) -> Outcome:
        """Nats a byte or word on the test part, cut into pieces that know nothing of each other."""
        began = time.perf_counter()
        losses = pieces(model, data.test, self.length, device)
        seconds = time.perf_counter() - began
        means = [loss.mean().item() for loss in losses]
        nats = float(torch.cat(losses).mean())
        return Outcome(
            "loss", {"loss": nats} | self._other(nats), normal(means), [f"{mean:.5f}" for mean in means],
            sum(map(len, losses)), seconds,
        )  # fmt: skip

    def predict(
        self, model: nn.Module, lines: Sequence[Sequence[str]], tokenizer: Vocabulary | Bytes, device: torch.device
    ) -> list[Prediction]:
        """What follows each line, the likeliest each time, until the line ends or the model's places are full.

        Of a line that takes more than half of the places its end is read.
        """
        model.eval()
        prompts = [_words(line)[:-1] if self.unit == "word" else [line] for (line,) in lines]
        rows = tokenizer.encode(prompts)
        if self.unit == "byte":
            rows = [row[:-1] for row in rows]  # the line goes on
        rows = [row[-max(1, self.length // 2) :] for row in rows]
        (end,) = tokenizer.encode([[""] if self.unit == "byte" else [LINE]])[0].tolist()
        found = [Prediction()] * len(rows)
        for size in sorted({len(row) for row in rows}):
            which = [index for index, row in enumerate(rows) if len(row) == size]
            batch = torch.stack([rows[index] for index in which]).to(device)
            written = greedy(model, batch[:, :-1], longest=self.length - size + 1, begin=batch[:, -1], end=end)
            for index, numbers in zip(which, written, strict=True):
                found[index] = {"text": tokenizer.decode(numbers)}
        return found

    def baseline(self, data: LanguageData) -> tuple[str, dict[str, float]]:
        """How common each byte or word is in the training part, one added to each count."""
        counts = torch.bincount(data.train, minlength=len(data.vocabulary)).double() + 1
        nats = -(counts / counts.sum()).log()[data.test].mean().item()
        return "unigram", {"loss": nats} | self._other(nats)

    def _other(self, nats: float) -> dict[str, float]:
        """Bits of a byte, or the perplexity of words."""
        return {"bits": nats / math.log(2)} if self.unit == "byte" else {"perplexity": math.exp(min(nats, 50.0))}


def language(rule: str = "4", *, size: str = "small", set: str = "") -> Language:
    """Bytes of the World English Bible or of tiny Shakespeare, or words with the set brown.

    Raises:
        ValueError: the text names no rule, or one with n above the width; or an unknown size or set.
    """
    recipe = Language(set=set, unit="word" if set == "brown" else "byte")
    if is_small(size):
        schedule = Schedule(epochs=3, batch_size=16, learning_rate=3e-3, warmup=0.05, checkpoint_every=200)
        return replace(recipe, rule=rule, schedule=schedule)
    schedule = Schedule(epochs=10, batch_size=32, learning_rate=1e-3, warmup=0.05, checkpoint_every=200)
    return replace(
        recipe, rule=rule, width=512, feed_forward=2048, heads=8, layers=6, length=256, schedule=schedule
    )  # fmt: skip


@dataclass(frozen=True)
class LanguageTask:
    """Cross-entropy of bytes or words; an example is named by the index of its first byte or word."""

    main: ClassVar[str] = "nats"
    higher: ClassVar[bool] = False
    data: LanguageData
    length: int
    batch_size: int

    def batches(self, generator: torch.Generator) -> list[list[int]]:
        """Pieces of the text side by side, the first at a random place, in random order."""
        first = int(torch.randint(min(self.length, len(self.data.train) - self.length), (), generator=generator))
        starts = torch.arange(first, len(self.data.train) - self.length, self.length)
        mixed = starts[torch.randperm(len(starts), generator=generator)]
        return [part.tolist() for part in mixed.split(self.batch_size)]

    def loss(self, model: nn.Module, indices: list[int], device: torch.device) -> Loss:
        """Nats of the pieces that begin at some places."""
        text = torch.stack([self.data.train[start : start + self.length + 1] for start in indices])
        losses = model(moved(text, device))
        return Loss(losses.sum(), losses.numel(), losses.numel())

    def scores(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Nats on the dev part."""
        return {"nats": float(torch.cat(pieces(model, self.data.dev, self.length, device)).mean())}


@torch.no_grad()
def pieces(model: nn.Module, text: Int[Tensor, "_"], length: int, device: torch.device) -> list[Tensor]:
    """The losses of a text's places but the first, for each piece of `length` of them; the last may be shorter."""
    model.eval()
    cut = [text[start : start + length + 1] for start in range(0, len(text) - 1, length)]
    whole = [part for part in cut if len(part) == length + 1]
    work = [whole[first : first + 32] for first in range(0, len(whole), 32)] + [cut[-1:]] * (len(cut[-1]) <= length)
    found = spread(work, lambda parts: model(moved(torch.stack(parts), device)).float().cpu())
    return [losses for batch in found for losses in batch]


def _words(line: str) -> list[str]:
    """The words of a line, and its end as a word."""
    return [*line.split(), LINE]


def _cut(folder: Path, name: str, parts: Sequence[str]) -> Reading:
    """One file: its first lines for training, the next for dev, the last for test, by their number of characters."""
    file = find_file(folder, name)
    lines = read_lines(file)
    ends = torch.tensor([len(line) + 1 for line in lines]).cumsum(0)
    first, second = (int((ends <= share * ends[-1]).sum()) for share in ENDS)
    cut = {"train": lines[:first], "dev": lines[first:second], "test": lines[second:]}
    return folder, (file,), [cut[part] for part in parts]
