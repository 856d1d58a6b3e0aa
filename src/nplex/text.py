"""Text for the recipes: labelled lines, vocabularies, batches of like length."""

import gzip
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

PAD, UNKNOWN, QUERY = 0, 1, 2
SPECIAL = ("<pad>", "<unknown>", "<query>")


@dataclass(frozen=True)
class Example:
    """One labelled line: the words, their label, and what kind of example it is."""

    label: str
    words: tuple[str, ...]
    source: str


def find_split(folder: Path, split: str) -> Path:
    """`folder/split.tsv.gz` or `folder/split.tsv`.

    Raises:
        FileNotFoundError: neither is there; says what a data folder holds.
    """
    for ending in (".tsv.gz", ".tsv"):
        if (folder / (split + ending)).is_file():
            return folder / (split + ending)
    raise FileNotFoundError(
        f"{folder} has no {split}.tsv or {split}.tsv.gz; a data folder holds train, dev and test, "
        f"one example a line: label TAB words TAB source"
    )


def read_labelled(path: Path, labels: Sequence[str]) -> list[Example]:
    """Reads `label TAB words TAB source` lines, UTF-8, plain or .gz; the source may be left out.

    Raises:
        ValueError: a line has other columns, an unknown label or no words; names file and line.
    """
    examples = []
    for number, line in enumerate(_lines(path), 1):
        columns = line.split("\t")
        if len(columns) not in (2, 3):
            raise ValueError(
                f"{path}, line {number}: expected label TAB words TAB source, got {len(columns)} columns"
            )
        if columns[0] not in labels:
            raise ValueError(f"{path}, line {number}: label must be {' or '.join(labels)}, got {columns[0][:40]!r}")
        words = tuple(columns[1].split())
        if not words:
            raise ValueError(f"{path}, line {number}: no words; remove the line")
        examples.append(Example(columns[0], words, columns[2] if len(columns) == 3 else "all"))
    if not examples:
        raise ValueError(f"{path} is empty, expected one example a line: label TAB words TAB source")
    return examples


def _lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file; a damaged or wrongly encoded one is named."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged, expected gzip: {error}") from None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: expected UTF-8, got byte 0x{data[error.start]:02x}") from None
    lines = text.replace("\r\n", "\n").split("\n")  # splitlines() would also split at U+2028 and its like
    return lines[:-1] if lines[-1] == "" else lines


@dataclass(frozen=True)
class Vocabulary:
    """Words and their numbers; the first three are padding, unknown and query."""

    words: tuple[str, ...]

    @classmethod
    def of(cls, lines: Iterable[Sequence[str]], most: int) -> "Vocabulary":
        """The `most` commonest words that occur at least twice; ties in alphabetical order."""
        counts = Counter(word for line in lines for word in line)
        common = sorted((word for word in counts if counts[word] > 1), key=lambda word: (-counts[word], word))
        return cls(SPECIAL + tuple(common[:most]))

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, lines: Iterable[Sequence[str]]) -> list[Int[Tensor, "_"]]:
        """Numbers for the words of each line."""
        numbers = {word: number for number, word in enumerate(self.words)}
        return [torch.tensor([numbers.get(word, UNKNOWN) for word in line], dtype=torch.long) for line in lines]


def pad(lines: Sequence[Int[Tensor, "_"]]) -> Int[Tensor, "batch longest"]:
    """Lines of different lengths as one tensor, filled up with PAD on the right."""
    return pad_sequence(list(lines), batch_first=True, padding_value=PAD)


def batches(lengths: Sequence[int], size: int, generator: torch.Generator | None = None) -> list[list[int]]:
    """Indices in batches of like length: little is padded.

    With a generator the order is random: shuffled, sorted by length within stretches of 50 batches, and the
    batches shuffled. Without, by length alone.

    Raises:
        ValueError: the size is not positive.
    """
    if size < 1:
        raise ValueError(f"a batch needs a size of 1 or more, got {size}")
    order = list(range(len(lengths))) if generator is None else _shuffled(len(lengths), generator)
    stretch = len(order) if generator is None else 50 * size
    grouped: list[list[int]] = []
    for start in range(0, len(order), max(stretch, 1)):
        part = sorted(order[start : start + stretch], key=lambda index: lengths[index])
        grouped += [part[first : first + size] for first in range(0, len(part), size)]
    return grouped if generator is None else [grouped[index] for index in _shuffled(len(grouped), generator)]


def _shuffled(count: int, generator: torch.Generator) -> list[int]:
    return torch.randperm(count, generator=generator).tolist()
