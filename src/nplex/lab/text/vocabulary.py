"""Words and their numbers."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from nplex.lab.checked import TEXTS

PAD, UNKNOWN, QUERY = 0, 1, 2
SPECIAL = ("<pad>", "<unknown>", "<query>")


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

    def as_dict(self) -> dict:
        """The words in the order of their numbers."""
        return {"words": self.words}

    @classmethod
    def from_dict(cls, values: dict) -> "Vocabulary":
        """The words from what `as_dict` gave.

        Raises:
            ValueError: they are no list of words, or do not begin with the special ones.
        """
        words = values.get("words")
        if not isinstance(words, list) or not TEXTS[1](words) or tuple(words[: len(SPECIAL)]) != SPECIAL:
            raise ValueError(f"expected words that begin with {', '.join(SPECIAL)}")
        return cls(tuple(words))

    def decode(self, numbers: Iterable[int]) -> str:
        """Words with spaces between them."""
        return " ".join(self.words[number] for number in numbers)

    def encode(self, lines: Iterable[Sequence[str]]) -> list[Int[Tensor, "_"]]:
        """Numbers for the words of each line."""
        numbers = {word: number for number, word in enumerate(self.words)}
        return [torch.tensor([numbers.get(word, UNKNOWN) for word in line], dtype=torch.long) for line in lines]
