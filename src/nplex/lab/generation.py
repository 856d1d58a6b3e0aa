"""Writing with a trained model, word by word, with a cache of keys and values: greedily, or by beam search."""

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nplex.nn import cached


@runtime_checkable
class WriterState(Protocol):
    """What a model knows of the sentences that it writes."""

    def select(self, rows: Int[Tensor, "rows"]) -> "WriterState":
        """The state of some sentences, in another order or several times."""
        ...

    def reorder(self, rows: Int[Tensor, "rows"]) -> "WriterState":
        """As select, where each row takes the place of one of the same source."""
        ...


@runtime_checkable
class Writer(Protocol):
    """A model that writes word by word; a torch module."""

    def start(self, source: Int[Tensor, "batch length"]) -> WriterState:
        """The state before the first word."""
        ...

    def step(self, tokens: Int[Tensor, "batch"], state: Any) -> Float[Tensor, "batch words"]:
        """Logits of the word after `tokens`, which are added to the state."""
        ...


@torch.no_grad()
def greedy(
    model: Any, source: Int[Tensor, "batch length"], *, longest: int, begin: int | Int[Tensor, "batch"], end: int
) -> list[list[int]]:
    """Writes each sentence until its end, or `longest` words; finished sentences take no more work.

    Args:
        model: a Writer.
        source: padded on the right.
        longest: words, without begin and end.
        begin: the number that the first word follows, one for all sentences or one for each.
        end: the number that ends a sentence; it is not given back.
    """
    texts: list[list[int]] = [[] for _ in range(len(source))]
    with cached(model):
        state, alive = model.start(source), torch.arange(len(source))
        tokens = torch.as_tensor(begin, device=source.device).expand(len(source))
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


def penalty(length: int, power: float) -> float:
    """`((5 + length) / 6)^power`, by which the log-probability of a text is divided; its end counts.

    Source: Wu et al., Google's neural machine translation system (2016), equation 14.
    """
    return ((5 + length) / 6) ** power


@dataclass
class Beam:
    """The texts of one sentence that are finished: score and words, best first."""

    size: int
    finished: list[tuple[float, list[int]]] = field(default_factory=list)

    def add(self, score: float, words: list[int]) -> None:
        """Notes a finished text."""
        self.finished = sorted([*self.finished, (score, words)], key=lambda entry: -entry[0])[: self.size]

    def done(self, attainable: float) -> bool:
        """Whether so many are finished, and none that goes on can become the best."""
        return len(self.finished) == self.size and self.finished[0][0] >= attainable


@torch.no_grad()
def beam(
    model: Any, source: Int[Tensor, "batch length"], *, longest: int, begin: int, end: int, beams: int = 5,
    length_penalty: float = 0.6,
) -> list[list[int]]:  # fmt: skip
    """Writes the text with the highest `log p / penalty` that a search of width `beams` finds for each sentence.

    A sentence is done when `beams` texts are finished and none that goes on would be better than the best if it
    ended next; texts that have not ended after `longest` words are taken as they are.

    Args:
        model: a Writer.
        source: padded on the right.
        longest: words, without begin and end.
        begin: the number that the first word follows.
        end: the number that ends a sentence; it is not given back.
        beams: texts kept side by side.
        length_penalty: the power; 0 compares log-probabilities, which favours short texts.
    """
    found = [Beam(beams) for _ in range(len(source))]
    with cached(model):
        alive = list(range(len(source)))
        rows = torch.arange(len(source), device=source.device).repeat_interleave(beams)
        state = model.start(source).select(rows)
        tokens = source.new_full((len(rows),), begin)
        scores = torch.full((len(source), beams), -torch.inf, device=source.device)
        scores[:, 0] = 0.0  # all beams are alike at first
        texts = source.new_empty((len(source), beams, 0))
        for length in range(1, longest + 1):
            best, row, token = _candidates(model.step(tokens, state), scores)
            _collect(found, alive, texts, (best, row, token), end, penalty(length, length_penalty))
            scores, texts, origin = _continue(best, row, token, texts, end)
            going = _going(found, alive, scores, penalty(length + 1, length_penalty))
            rows = (origin + torch.arange(len(alive), device=source.device)[:, None] * beams)[going].flatten()
            state = state.reorder(rows) if len(going) == len(alive) else state.select(rows)
            scores, texts, alive = scores[going], texts[going], [alive[i] for i in going]
            tokens = texts[..., -1].flatten()
            if not alive:
                break
        for sentence, row_scores, row_texts in zip(alive, scores.tolist(), texts.tolist(), strict=True):
            for score, words in zip(row_scores, row_texts, strict=True):
                found[sentence].add(score / penalty(longest + 1, length_penalty), words)
    return [each.finished[0][1] for each in found]


def _candidates(
    logits: Float[Tensor, "rows words"], scores: Float[Tensor, "sentences beams"]
) -> tuple[Float[Tensor, "sentences many"], Int[Tensor, "sentences many"], Int[Tensor, "sentences many"]]:
    """The best 2 beams continuations of each sentence: log-probability, beam and word; at most half of them end."""
    sentences, beams = scores.shape
    words = logits.shape[-1]
    total = (scores.reshape(-1, 1) + logits.float().log_softmax(-1)).view(sentences, beams * words)
    best, position = total.topk(min(2 * beams, beams * words))
    return best, position // words, position % words


def _collect(
    found: list[Beam], alive: list[int], texts: Int[Tensor, "sentences beams length"],
    candidates: tuple[Tensor, Tensor, Tensor], end: int, divisor: float,
) -> None:  # fmt: skip
    """Notes the texts that end among the first `beams` candidates."""
    best, row, token = candidates
    beams = texts.shape[1]
    ends = (token[:, :beams] == end) & best[:, :beams].isfinite()
    for i, rank in ends.nonzero().tolist():
        found[alive[i]].add(best[i, rank].item() / divisor, texts[i, row[i, rank]].tolist())


def _continue(
    best: Float[Tensor, "sentences many"], row: Int[Tensor, "sentences many"], token: Int[Tensor, "sentences many"],
    texts: Int[Tensor, "sentences beams length"], end: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The best `beams` that do not end: log-probabilities, texts, and the beams that they come from."""
    beams = texts.shape[1]
    scores, position = best.masked_fill(token == end, -torch.inf).topk(beams)
    origin, new = row.gather(1, position), token.gather(1, position)
    old = texts.gather(1, origin[..., None].expand(-1, -1, texts.shape[-1]))
    return scores, torch.cat([old, new[..., None]], -1), origin


def _going(
    found: list[Beam], alive: list[int], scores: Float[Tensor, "sentences beams"], divisor: float
) -> list[int]:
    """The indices of the sentences that are not done; the best that goes on stands first."""
    attainable = (scores[:, 0] / divisor).tolist()
    return [i for i, sentence in enumerate(alive) if not found[sentence].done(attainable[i])]
