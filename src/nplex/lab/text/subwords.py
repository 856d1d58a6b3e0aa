"""Subwords: byte-pair encoding by the tokenizers library."""

import json
from collections.abc import Sequence
from typing import Any

BEGIN, END = 2, 3
MARKS = ("<pad>", "<unknown>", "<begin>", "<end>")


class Subwords:
    """Parts of words and their numbers; the first four are padding, unknown, begin and end.

    Byte-level: nothing is unknown, and decode(encode(x)) is x, but for spaces around it.

    Source: Sennrich et al., Neural machine translation of rare words with subword units (2016).
    """

    def __init__(self, tokenizer: Any) -> None:
        tokenizer.encode_special_tokens = True  # "<end>" in a text is text
        self._tokenizer = tokenizer

    @classmethod
    def train(cls, lines: Sequence[str], size: int) -> "Subwords":
        """Learned from lines; fewer than `size` where the lines have no more.

        Raises:
            ImportError: tokenizers is not installed; names the command.
            ValueError: the size does not hold all bytes.
        """
        if size < 256 + len(MARKS):
            raise ValueError(f"a vocabulary needs {256 + len(MARKS)} places or more for all bytes, got {size}")
        library = _library()
        tokenizer = library.Tokenizer(library.models.BPE())
        tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=size, special_tokens=list(MARKS), show_progress=False, min_frequency=2,
            initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        )  # fmt: skip
        tokenizer.train_from_iterator(lines, trainer)
        return cls(tokenizer)

    @classmethod
    def from_dict(cls, values: dict) -> "Subwords":
        """From what `as_dict` gave.

        Raises:
            ImportError: tokenizers is not installed; names the command.
            ValueError: these are no subwords.
        """
        try:
            found = cls(_library().Tokenizer.from_str(json.dumps(values)))
        except ImportError:
            raise
        except Exception as error:  # tokenizers raises nothing narrower
            raise ValueError(f"expected subwords as tokenizers writes them: {error}") from None
        if [found._tokenizer.token_to_id(mark) for mark in MARKS] != [*range(len(MARKS))]:
            raise ValueError(f"expected subwords that begin with {', '.join(MARKS)}")
        return found

    def as_dict(self) -> dict:
        """All of it, in the format of the tokenizers library."""
        return json.loads(self._tokenizer.to_str())

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """Numbers of each line, without begin and end; marks in the text are text."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(lines), add_special_tokens=False)]

    def decode(self, numbers: Sequence[int]) -> str:
        """The text of numbers; marks are left out."""
        return self._tokenizer.decode([n for n in numbers if n >= len(MARKS)]).strip()


def _library() -> Any:
    """tokenizers; its absence is one error that names the command."""
    try:
        import tokenizers
    except ImportError:
        raise ImportError("subwords need tokenizers, which is not installed: pip install 'nplex[lab]'") from None
    return tokenizers
