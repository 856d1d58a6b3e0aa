"""The likeliest word at each place."""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from nplex.nn import cached


@torch.no_grad()
def greedy(model: Any, source: Int[Tensor, "batch length"], *, longest: int, begin: int, end: int) -> list[list[int]]:
    """Writes each sentence until its end, or `longest` words; finished sentences take no more work.

    Args:
        model: a Writer.
        source: padded on the right.
        longest: words, without begin and end.
        begin: the number that the first word follows.
        end: the number that ends a sentence; it is not given back.
    """
    texts: list[list[int]] = [[] for _ in range(len(source))]
    with cached(model):
        state, alive = model.start(source), torch.arange(len(source))
        tokens = source.new_full((len(source),), begin)
        for _ in range(longest):
            tokens = model.step(tokens, state).argmax(-1)
            going = tokens != end
            if not going.all():
                rows = going.nonzero()[:, 0]
                alive, tokens, state = alive[rows.cpu()], tokens[rows], state.select(rows)
            if not len(tokens):
                break
            for row, token in zip(alive.tolist(), tokens.tolist(), strict=True):
                texts[row].append(token)
    return texts
