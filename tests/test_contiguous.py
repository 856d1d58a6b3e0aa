"""Outputs, weights and gradients of inputs lie in memory as those of torch's layer: `.view` works where it did."""

import pytest
import torch
from cases import METHODS, RULES, methods_for
from layer_cases import LAYERS
from torch.utils._pytree import tree_leaves

from nplex import nn, ops

BATCHES = [(), (7,), (2, 3), (0,), (1, 1, 2), (70,)]
WIDTHS = [(16, 30), (15, 32), (4, 4), (8, 4), (5, 3), (4, 9)]
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def strides(tensor):
    """Those that say where a number lies; torch leaves others to chance."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


def same_layout(one, other):
    assert one.shape == other.shape
    assert one.numel() == 0 or strides(one) == strides(other), (one.shape, one.stride(), other.stride())


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("method", [*METHODS, "auto"])
@pytest.mark.parametrize("rule", ["learned 3", "learned 4:7"])
def test_products_of_any_width_and_batch(rule, method, grad):
    made = RULES[rule]()
    if method not in (*methods_for(made), "auto"):
        pytest.skip("needs factors")
    for bias in (True, False):
        for d_in, d_out in (w for w in WIDTHS if min(w) >= made.n):
            layer = nn.Linear(d_in, d_out, bias, rule=RULES[rule](), method=method)
            twin = layer.to_torch()
            same_layout(layer.weight, twin.weight)
            for x in (x for batch in BATCHES for x in inputs_of(*batch, d_in)):
                with torch.set_grad_enabled(grad):
                    ours, theirs = layer(x), twin(x)
                same_layout(ours, theirs)
                ours.view(-1)
                with torch.no_grad(), nn.cached(layer):
                    same_layout(layer(x), theirs)
                if grad and d_in > made.n:  # with blocks of one column torch's own matmul gives a transposed one
                    (one,), (other,) = (torch.autograd.grad(y, x, torch.ones_like(y)) for y in (ours, theirs))
                    assert one.is_contiguous() or not other.is_contiguous()


def inputs_of(*shape):
    """Rows that lie one after the other, and parts of longer rows."""
    return [torch.randn(shape, requires_grad=True), torch.randn(*shape, 2)[..., 0].requires_grad_()]


@pytest.mark.parametrize("rows", ["all", "some"])
@pytest.mark.parametrize("rule", ["learned 3", "learned 4:7"])
def test_embeddings_of_any_width(rule, rows):
    for width in (12, 13, 14):
        layer = nn.Embedding(40, width, rule=RULES[rule]())
        ids = torch.arange(40).repeat(9, 1) if rows == "all" else torch.arange(3)
        layer(ids).view(-1)
        layer.weight.view(-1)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("width", [8, 9, 11])
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer(name, width):
    inputs, case = LAYERS[name].inputs(width, torch.float32), LAYERS[name]
    for rule in (2, 4, nn.LearnedRule(4, rank=7), nn.LearnedRule(8, rank=10)):
        layer = case.make(width, rule=rule)
        for one, other in zip(tree_leaves(layer(*inputs)), tree_leaves(layer.to_torch()(*inputs)), strict=True):
            if other is not None:
                assert one.is_contiguous() or not other.is_contiguous(), (rule, one.shape, one.stride())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("method", ["dense", "bilinear"])
@pytest.mark.parametrize("kind", ["Conv1d", "Conv2d", "Conv3d"])
def test_convolutions_answer_in_the_layout_of_their_input(kind, method, bias):
    space = (5,) * int(kind[4])
    for groups, channels, out in ((1, 8, 12), (1, 9, 11), (2, 8, 12), (1, 4, 4)):
        layer = getattr(nn, kind)(
            channels, out, 3, groups=groups, bias=bias, rule=nn.LearnedRule(4, 7), method=method
        )
        twin, x = layer.to_torch(), torch.randn(2, channels, *space)
        same_layout(layer.weight, twin.weight)
        for given in (x, x.movedim(1, -1).contiguous().movedim(-1, 1), x[:1], x[:, :, :3]):
            if given.ndim in LAST:
                same_layout(layer(given), twin(given))
            else:
                layer(given).view(-1)


def test_low_rank_layers():
    for d_in, d_out in WIDTHS[:4]:
        layer = nn.LowRankLinear(d_in, d_out, rule=4, low_rank=1)
        layer(torch.randn(2, 3, d_in)).view(-1)
        layer.weight.view(-1)


def test_expanded_weights_of_groups():
    rule, components = torch.randn(3, 3, 3), torch.randn(3, 2, 4, 5)
    ops.grouped.expand_grouped(rule, components, 11, 14).view(-1)
    ops.grouped.expand_grouped(rule, components[:, :1], 11, 14).view(-1)
