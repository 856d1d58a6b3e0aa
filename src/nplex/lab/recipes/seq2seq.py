"""Tasks from lines to lines: an encoder-decoder transformer on shared subwords, scored by BLEU."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from nplex.lab.generation import beam
from nplex.lab.recipes.encoder_decoder import EncoderDecoder
from nplex.lab.recipes.recipe import Data, Outcome, Prediction, Reading, Recipe, is_small
from nplex.lab.scores import bleu
from nplex.lab.text import (
    BEGIN,
    END,
    Pairs,
    Subwords,
    batches,
    find_file,
    longest,
    moved,
    pad,
    pad_sides,
    read_parallel,
)  # fmt: skip
from nplex.lab.train import Loss, Schedule, spread


@dataclass(frozen=True)
class Encoded:
    """Pairs of lines, as text and as numbers: sources end with END, targets stand between BEGIN and END."""

    pairs: Pairs
    sides: tuple[list[Tensor], list[Tensor]]

    def __len__(self) -> int:
        return len(self.pairs)

    @classmethod
    def of(cls, pairs: Pairs, subwords: Subwords, most: int) -> "Encoded":
        """Encodes pairs; sources that are too long lose their end."""
        targets = subwords.encode([target for _, target in pairs])
        sources = sources_of([source for source, _ in pairs], subwords, most)
        return cls(pairs, (sources, [torch.tensor([BEGIN, *numbers, END]) for numbers in targets]))

    def fitting(self, most: int) -> "Encoded":
        """Without the pairs that are too long to be learned from."""
        kept = [i for i, length in enumerate(longest(self.sides)) if length <= most]
        sources, targets = ([side[i] for i in kept] for side in self.sides)
        return Encoded([self.pairs[i] for i in kept], (sources, targets))


def sources_of(lines: Sequence[str], subwords: Subwords, most: int) -> list[Tensor]:
    """What the model reads of some lines; those that are too long lose their end."""
    return [torch.tensor([*numbers[:most], END]) for numbers in subwords.encode(lines)]


ParallelData = Data[Subwords, Encoded]


@dataclass(frozen=True)
class Seq2Seq(Recipe[Subwords, Encoded]):
    """Writes lines; scored by BLEU. Both stacks are converted.

    Attributes:
        source: the language or style that is read, which ends the names of its files.
        target: that which is written.
        feed_forward: the inner width of the blocks.
        heads: of attention.
        layers: blocks of each stack.
        longest: subwords of a line; longer pairs are left out of training.
        beams: texts that beam search keeps side by side.
        length_penalty: of beam search.
    """

    patterns: ClassVar[tuple[str, ...]] = ("encoder.*", "decoder.*")
    source: str = "source"
    target: str = "target"
    width: int = 256
    feed_forward: int = 512
    heads: int = 4
    layers: int = 3
    vocabulary: int = 8_000
    longest: int = 128
    beams: int = 5
    length_penalty: float = 0.6

    def tokenizer(self, train: Pairs) -> Subwords:
        """The subwords of both sides of the training part."""
        return Subwords.train([line for pair in train for line in pair], self.vocabulary)

    def read_tokenizer(self, values: dict) -> Subwords:
        """Subwords, in the format of the tokenizers library."""
        return Subwords.from_dict(values)

    def encoded(self, reading: Reading, tokenizer: Subwords) -> ParallelData:
        """The pairs of each part as numbers."""
        folder, files, parts = reading
        found = [Encoded.of(part, tokenizer, self.longest) for part in parts]
        train, dev, test = found[0].fitting(self.longest), found[len(found) // 2], found[-1]
        return Data(folder, files, tokenizer, train, dev, test, [target for _, target in test.pairs])

    def dense(self, data: ParallelData) -> nn.Module:
        """The model of torch's layers."""
        return EncoderDecoder(
            len(data.vocabulary), width=self.width, heads=self.heads, feed_forward=self.feed_forward,
            layers=self.layers, dropout=self.dropout, longest=2 * self.longest + 12,
        )  # fmt: skip

    def task(self, data: ParallelData) -> "Seq2SeqTask":
        """What `nplex.lab.fit` trains."""
        return Seq2SeqTask(data, self.schedule)

    def test(self, model: nn.Module, data: ParallelData, device: torch.device) -> Outcome:
        """BLEU on the test part, with and without regard to case."""
        began = time.perf_counter()
        texts, written = self.write(model, data.test.sides[0], data.vocabulary, device)
        seconds = time.perf_counter() - began
        cased, uncased = (bleu(texts, data.references, lowercase=lower) for lower in (False, True))
        scores = {"bleu": cased.score, "bleu, uncased": uncased.score}
        notes = {"sacreBLEU": cased.signature, "uncased": uncased.signature}
        return Outcome("bleu", scores, (cased.low, cased.high), texts, written, seconds, notes)

    def predict(
        self, model: nn.Module, lines: Sequence[Sequence[str]], tokenizer: Subwords, device: torch.device
    ) -> list[Prediction]:
        """The text that beam search writes for each line; lines that are too long lose their end."""
        sources = sources_of([line.strip() for (line,) in lines], tokenizer, self.longest)
        return [{"text": text} for text in self.write(model, sources, tokenizer, device)[0]]

    def write(
        self, model: nn.Module, sources: list[Tensor], subwords: Subwords, device: torch.device
    ) -> tuple[list[str], int]:
        """The texts for some sources, and how many subwords were written."""
        model.eval()
        texts, written = [""] * len(sources), 0

        def found(indices: list[int]) -> list[list[int]]:
            source = moved(pad([sources[i] for i in indices]), device)
            most = min(int(1.5 * source.shape[1]) + 10, 2 * self.longest)
            options = {"beams": self.beams, "length_penalty": self.length_penalty}
            return beam(model, source, longest=most, begin=BEGIN, end=END, **options)

        work = batches(longest([sources]), 32)
        for indices, lines in zip(work, spread(work, found), strict=True):
            for index, numbers in zip(indices, lines, strict=True):
                texts[index], written = subwords.decode(numbers), written + len(numbers) + 1
        return texts, written

    def baseline(self, data: ParallelData) -> tuple[str, dict[str, float]]:
        """The source as it stands."""
        sources = [source for source, _ in data.test.pairs]
        cased, uncased = (bleu(sources, data.references, lowercase=lower, resamples=0) for lower in (False, True))
        return "copy", {"bleu": cased.score, "bleu, uncased": uncased.score}


@dataclass(frozen=True)
class Seq2SeqTask:
    """Smoothed cross-entropy of subwords; nats a subword on the dev part."""

    main: ClassVar[str] = "nats"
    higher: ClassVar[bool] = False
    data: ParallelData
    schedule: Schedule

    def batches(self, generator: torch.Generator) -> list[list[int]]:
        """Pairs of like length together, as many tokens as the schedule says, in random order."""
        lengths, tokens = longest(self.data.train.sides), self.schedule.batch_tokens
        return batches(lengths, tokens or self.schedule.batch_size, generator, padded=bool(tokens))

    def loss(self, model: nn.Module, indices: list[int], device: torch.device) -> Loss:
        """Cross-entropy of the targets' subwords, smoothed."""
        total, _ = model(*pad_sides(self.data.train.sides, indices, device), self.schedule.label_smoothing)
        read, written = (sum(len(side[index]) for index in indices) for side in self.data.train.sides)
        items = written - len(indices)  # the first word is not predicted
        return Loss(total, items, items + read)

    @torch.no_grad()
    def scores(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Nats a subword on the dev part, without smoothing, and the perplexity that they mean."""
        sides = self.data.dev.sides
        work = batches(longest(sides), 64)
        found = spread(work, lambda batch: [value.item() for value in model(*pad_sides(sides, batch, device), 0.0)])
        total, items = map(sum, zip(*found, strict=True))
        return {"nats": (nats := total / items), "perplexity": math.exp(min(nats, 50.0))}


def sizes(size: str) -> dict:
    """Widths and schedule: label smoothing .1, the mean of the last five epochs' weights.

    Source: Vaswani et al., Attention is all you need (2017), section 5.
    """
    small = is_small(size)
    schedule = Schedule(
        epochs=16 if small else 60, batch_tokens=2_048 if small else 8_192, learning_rate=2e-3 if small else 7e-4,
        warmup=0.08, label_smoothing=0.1, keep="average", checkpoint_every=500, weight_decay=0.0,
    )  # fmt: skip
    if small:
        return {"schedule": schedule, "vocabulary": 4_000}
    return {"schedule": schedule, "dropout": 0.1, "width": 512, "feed_forward": 2048, "heads": 8, "layers": 6}


def read_sides(
    folder: Path, parts: Sequence[str], source: str, target: str, names: Mapping[str, str], ending: str = ""
) -> Reading:
    """Reads `part.source` and `part.target`, plain or .gz, of some parts; `names` of parts that are called otherwise.

    Raises:
        FileNotFoundError: a file is missing; says what a folder holds.
        ValueError: the files do not match line by line; names file and line.
    """
    called = [names.get(part, part) for part in parts]
    files = [[find_file(folder, f"{part}.{side}{ending}") for side in (source, target)] for part in called]
    return folder, tuple(file for pair in files for file in pair), [read_parallel(*pair) for pair in files]
