"""The layers that test_layers.py runs over, as data: a new layer enters every test there by entering the table.

`make(w, rule=...)` gives a layer whose widths are multiples of w, so that n divides them where it divides w; `inputs`
gives what its forward takes.
"""

from typing import Any, NamedTuple

import torch

from nplex import nn


class Case(NamedTuple):
    make: Any
    inputs: Any
    compiles: bool = True  # torch's twin is compiled in one graph, and exported
    autocasts: bool = True  # its output has autocast's type
    vmaps: bool = True


def _tokens(*shape):
    return lambda w, dtype: (torch.randn(*shape, w, dtype=dtype),)


def _image(*space):
    return lambda w, dtype: (torch.randn(2, w, *space, dtype=dtype),)


def _ids(w, dtype):
    return (torch.randint(0, 3 * w, (2, 5)),)


def _target_and_memory(w, dtype):
    return torch.randn(2, 3, 2 * w, dtype=dtype), torch.randn(2, 4, 2 * w, dtype=dtype)


def _input_and_state(w, dtype):
    return torch.randn(3, w, dtype=dtype), torch.randn(3, 2 * w, dtype=dtype)


def _wide(*shape):
    return lambda w, dtype: (torch.randn(*shape, 2 * w, dtype=dtype),)


LAYERS = {
    "Linear": Case(lambda w, **kw: nn.Linear(w, 2 * w, **kw), _tokens(2, 3)),
    "Linear, no bias": Case(lambda w, **kw: nn.Linear(2 * w, w, False, **kw), _wide(4)),
    "Conv1d": Case(lambda w, **kw: nn.Conv1d(w, 2 * w, 3, padding=1, **kw), _image(7)),
    "Conv2d": Case(lambda w, **kw: nn.Conv2d(w, 2 * w, 3, stride=2, padding="valid", **kw), _image(6, 7)),
    "Conv2d, groups": Case(
        lambda w, **kw: nn.Conv2d(2 * w, 4 * w, (1, 3), groups=2, padding=(0, 2), padding_mode="circular", **kw),
        lambda w, dtype: (torch.randn(2, 2 * w, 5, 6, dtype=dtype),),
    ),
    "Conv3d": Case(lambda w, **kw: nn.Conv3d(w, w, 2, dilation=2, bias=False, **kw), _image(4, 4, 5)),
    "ConvTranspose1d": Case(lambda w, **kw: nn.ConvTranspose1d(w, 2 * w, 3, stride=2, **kw), _image(4)),
    "ConvTranspose2d": Case(
        lambda w, **kw: nn.ConvTranspose2d(2 * w, 2 * w, 3, stride=2, output_padding=1, groups=2, **kw),
        lambda w, dtype: (torch.randn(2, 2 * w, 3, 4, dtype=dtype),),
    ),
    "ConvTranspose3d": Case(lambda w, **kw: nn.ConvTranspose3d(w, w, 2, padding=1, **kw), _image(3, 3, 4)),
    "Embedding": Case(lambda w, **kw: nn.Embedding(3 * w, w, **kw), _ids, autocasts=False, vmaps=False),
    "Embedding, padding": Case(
        lambda w, **kw: nn.Embedding(3 * w, w, padding_idx=1, **kw), _ids, autocasts=False, vmaps=False
    ),
    "EmbeddingBag": Case(
        lambda w, **kw: nn.EmbeddingBag(3 * w, w, mode="sum", **kw), _ids, autocasts=False, vmaps=False
    ),
    "Bilinear": Case(
        lambda w, **kw: nn.Bilinear(w, 3, 2 * w, **kw),
        lambda w, dtype: (torch.randn(4, w, dtype=dtype), torch.randn(4, 3, dtype=dtype)),
        autocasts=False,
    ),
    "RNN": Case(lambda w, **kw: nn.RNN(w, 2 * w, nonlinearity="relu", **kw), _tokens(4, 2), False, False, False),
    "LSTM": Case(
        lambda w, **kw: nn.LSTM(w, 2 * w, 2, bidirectional=True, proj_size=w, batch_first=True, **kw),
        _tokens(2, 4),
        False,
        False,
        False,
    ),
    "GRU": Case(lambda w, **kw: nn.GRU(w, w, 2, bias=False, **kw), _tokens(4, 2), False, False, False),
    "RNNCell": Case(lambda w, **kw: nn.RNNCell(w, 2 * w, **kw), _input_and_state, autocasts=False),
    "LSTMCell": Case(
        lambda w, **kw: nn.LSTMCell(w, 2 * w, **kw),
        lambda w, dtype: (torch.randn(3, w, dtype=dtype), tuple(torch.randn(2, 3, 2 * w, dtype=dtype))),
        autocasts=False,
        vmaps=False,
    ),
    "GRUCell": Case(lambda w, **kw: nn.GRUCell(w, 2 * w, **kw), _input_and_state, autocasts=False),
    "MultiheadAttention": Case(
        lambda w, **kw: nn.MultiheadAttention(2 * w, 2, batch_first=True, **kw),
        lambda w, dtype: (torch.randn(2, 3, 2 * w, dtype=dtype),) * 3,
    ),
    "MultiheadAttention, kdim": Case(
        lambda w, **kw: nn.MultiheadAttention(2 * w, 2, kdim=w, vdim=3 * w, batch_first=True, **kw),
        lambda w, dtype: tuple(torch.randn(2, 3, k * w, dtype=dtype) for k in (2, 1, 3)),
    ),
    "TransformerEncoderLayer": Case(
        lambda w, **kw: nn.TransformerEncoderLayer(2 * w, 2, 3 * w, 0.0, batch_first=True, **kw), _wide(2, 3)
    ),
    "TransformerDecoderLayer": Case(
        lambda w, **kw: nn.TransformerDecoderLayer(2 * w, 2, 3 * w, 0.0, batch_first=True, **kw), _target_and_memory
    ),
    "Transformer": Case(
        lambda w, **kw: nn.Transformer(2 * w, 2, 2, 1, 3 * w, 0.0, batch_first=True, **kw),
        lambda w, dtype: _target_and_memory(w, dtype)[::-1],
    ),
}
LAYERS = {name: case for name, case in LAYERS.items() if hasattr(nn, name.partition(",")[0])}
