"""Calibrated conversion: moments, nearest outputs, low rank."""

import copy

import pytest
import torch
from cases import RULES
from torch import nn

import nplex
from nplex import algebra
from nplex import nn as nx
from nplex.convert.calibration import observe
from nplex.nn import FixedRule, LearnedRule
from nplex.nn.moments import Moments
from nplex.nn.nearest import nearest_
from nplex.nn.truncated import spectrum, truncate_

LAYERS = {
    "Linear": lambda: nn.Linear(12, 20),
    "Linear, odd": lambda: nn.Linear(13, 18),
    "Linear, odd, no bias": lambda: nn.Linear(7, 9, bias=False),
    "Conv1d": lambda: nn.Conv1d(8, 12, 3, stride=2, padding=1),
    "Conv1d, odd": lambda: nn.Conv1d(9, 10, 2, dilation=2, padding="same"),
    "Conv2d": lambda: nn.Conv2d(8, 16, 3, groups=2, padding=1, padding_mode="circular"),
    "Conv2d, no bias": lambda: nn.Conv2d(8, 16, (2, 3), bias=False),
    "Conv3d": lambda: nn.Conv3d(4, 8, 2),
    "MultiheadAttention": lambda: nn.MultiheadAttention(12, 2, batch_first=True),
    "MultiheadAttention, other widths": lambda: nn.MultiheadAttention(12, 3, kdim=8, vdim=10),
}


@pytest.fixture
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def correlated(count, width):
    """Vectors with a mean, whose directions differ in size."""
    mix = torch.randn(width, width) * torch.linspace(0.1, 2, width)
    return torch.randn(count, width) @ mix + 3 * torch.randn(width)


def inputs_for(layer, count=200):
    """Inputs of a layer of LAYERS."""
    if isinstance(layer, nn.MultiheadAttention):
        if layer.kdim == layer.embed_dim:
            x = correlated(count * 5, 12).reshape(count, 5, 12)
            return x, x, x
        return tuple(correlated(5 * count, width).reshape(5, count, width) for width in (12, 8, 10))
    if isinstance(layer, nn.Linear):
        return (correlated(count, layer.in_features),)
    space = len(layer.kernel_size)
    x = correlated(count // 4 * 5**space, layer.in_channels).reshape(-1, *[5] * space, layer.in_channels)
    return (x.movedim(-1, 1).contiguous(),)


def moments_of(vectors):
    found = Moments()
    found.add(vectors)
    return found


def exact(moments):
    """C as it is: nothing drawn to the diagonal."""
    moments.count, moments.scatter = 10**12, moments.scatter / moments.count * 10**12
    return moments


class Alone(nn.Module):
    """A layer in a model, called with what it takes."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, *args):
        y = self.layer(*args)
        return y[0] if isinstance(y, tuple) else y


# Moments


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_streamed_moments_are_the_direct_ones(dtype):
    torch.manual_seed(0)
    x = (correlated(1000, 16).double() + 1000).to(dtype)
    found = Moments()
    for piece in x.split([1, 0, 600, 399]):
        found.add(piece)
    double = x.double()
    assert found.count == 1000
    torch.testing.assert_close(found.mean, double.mean(0))
    torch.testing.assert_close(found.scatter / 1000, double.T.cov(correction=0), rtol=1e-9, atol=1e-9)


def test_wide_moments_are_in_float32_and_still_centred():
    torch.manual_seed(0)
    x = torch.randn(64, 2049, dtype=torch.float64) + 100
    found = Moments()
    for piece in x.split(16):
        found.add(piece.float())
    assert found.scatter.dtype is torch.float32
    torch.testing.assert_close(found.scatter.double() / 64, x.T.cov(correction=0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("n", "b"), [(1, 10), (2, 5), (3, 4), (4, 3)])
def test_blocks_are_those_of_the_padded_matrix(n, b):
    torch.manual_seed(0)
    found = moments_of(correlated(500, 10).double())
    for centred in (True, False):
        c = found.scatter / 500
        s = found.shrinkage
        c = c + (not centred) * torch.outer(found.mean, found.mean)
        c = (1 - s) * c + s * c.diagonal().diag()
        padded = torch.zeros(n * b, n * b, dtype=torch.float64)
        padded[:10, :10] = c
        torch.testing.assert_close(found.blocks(n, b, centred=centred), padded.reshape(n, b, n, b).transpose(1, 2))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.usefixtures("_double")
def test_what_a_layer_gets_gives_its_outputs(name):
    """The second moment of outputs is W C W^T, whatever the geometry of a convolution."""
    torch.manual_seed(0)
    layer = LAYERS[name]()
    given = inputs_for(layer)
    found = observe(Alone(layer), {"layer": layer}, [given])["layer"]
    weights = dict(layer.named_parameters())
    assert set(found) == {key for key in weights if "weight" in key}
    if isinstance(layer, nn.MultiheadAttention):
        y, last = layer(*given)[0].flatten(0, 1), found["out_proj.weight"]
        weight, bias = layer.out_proj.weight, layer.out_proj.bias
        assert all(len(known) == (3 if key == "in_proj_weight" else 1) for key, known in found.items())
    else:
        y, last, weight, bias = layer(*given), found["weight"], layer.weight, layer.bias
        y = y if isinstance(layer, nn.Linear) else y.movedim(1, -1)
    y, groups = y.reshape(-1, weight.shape[0]), len(last)
    for part, known, mine in zip(y.chunk(groups, 1), last, weight.flatten(1).chunk(groups), strict=True):
        torch.testing.assert_close(part.T.cov(correction=0), mine @ (known.scatter / known.count) @ mine.T)
    shift = torch.cat([m @ k.mean for k, m in zip(last, weight.flatten(1).chunk(groups), strict=True)])
    torch.testing.assert_close(y.mean(0), shift + (0 if bias is None else bias))


# Nearest outputs


def dense_problem(layer, old, known):
    """The weighted least squares problem of the components, written out: `A z = y`, one column for each number."""
    values, columns = [], []
    components = [p for key, p in layer.named_parameters() if "components" in key]
    torch_names = [key for key, _ in old.named_parameters() if "weight" in key]

    def residuals(torch_layer):
        parts = dict(torch_layer.named_parameters())
        out = []
        for key in torch_names:
            weight, moments = parts[key].flatten(1), known[key]
            pieces = weight.chunk(len(moments))
            has_bias = parts.get(key.replace("weight", "bias")) is not None
            for piece, m in zip(pieces, moments, strict=True):
                c = m.blocks(1, piece.shape[1], centred=has_bias)[0, 0]
                out.append((piece @ torch.linalg.cholesky(c)).flatten())
        return torch.cat(out)

    values = residuals(old)
    with torch.no_grad():
        for p in components:
            p.zero_()
        for p in components:
            for i in range(p.numel()):
                p.view(-1)[i] = 1
                columns.append(residuals(layer.to_torch()).detach())
                p.view(-1)[i] = 0
    return torch.stack(columns, 1), values.detach(), components


SMALL = {
    "Linear": lambda: nn.Linear(8, 12),
    "Linear, odd": lambda: nn.Linear(7, 9),
    "Linear, odd, no bias": lambda: nn.Linear(7, 9, bias=False),
    "Conv1d": lambda: nn.Conv1d(4, 6, 3),
    "Conv2d": lambda: nn.Conv2d(8, 8, 2, groups=2),
    "MultiheadAttention": lambda: nn.MultiheadAttention(6, 2, batch_first=True),
    "MultiheadAttention, other widths": lambda: nn.MultiheadAttention(6, 2, kdim=5, vdim=4),
}


def small_inputs(layer):
    if isinstance(layer, nn.MultiheadAttention):
        if layer.kdim == 6:
            return (correlated(400, 6).reshape(80, 5, 6),) * 3
        return tuple(correlated(400, width).reshape(5, 80, width) for width in (6, 5, 4))
    return inputs_for(layer)


@pytest.mark.parametrize("rule", ["learned 2", "learned 3", "learned 4:7", "quaternion", "complex"])
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.usefixtures("_double")
def test_components_are_the_least_squares_solution_for_their_rule(name, rule):
    torch.manual_seed(0)
    old = SMALL[name]()
    kind = getattr(nx, name.partition(",")[0])
    if RULES[rule]().n > min(min(p.shape[:2]) for p in old.parameters() if p.ndim > 1) / getattr(old, "groups", 1):
        pytest.skip("n is larger than a width")
    known = observe(Alone(old), {"layer": old}, [small_inputs(old)])["layer"]
    layer = kind.like(old, rule=RULES[rule]())
    [error] = nearest_([(layer, old)], inputs=[known])
    found = {key: p.detach().clone() for key, p in layer.named_parameters() if "components" in key}
    got = copy.deepcopy(layer)
    a, y, _ = dense_problem(layer, old, known)
    z = torch.linalg.lstsq(a, y[:, None], driver="gelsd").solution[:, 0]
    best = (a @ z - y).norm() / y.norm()
    assert error == pytest.approx(best.item(), rel=1e-6)
    own = torch.cat([p.flatten() for p in found.values()])
    assert (a @ own - y).norm() / y.norm() == pytest.approx(best.item(), rel=1e-6)
    for key, p in got.named_parameters():
        if key in found:
            assert torch.equal(p, found[key])


@pytest.mark.parametrize("rule", ["learned 2", "learned 2:2", "learned 3", "complex", "quaternion"])
@pytest.mark.parametrize("name", [name for name in LAYERS if "no bias" not in name and "Conv3d" not in name])
@pytest.mark.usefixtures("_double")
def test_outputs_come_nearer_than_with_the_nearest_weights(name, rule):
    torch.manual_seed(0)
    model = Alone(LAYERS[name]())
    given = inputs_for(model.layer)
    wrong, rows = {}, {}
    for calibration in (None, [given]):
        new = copy.deepcopy(model)
        torch.manual_seed(0)
        report = nplex.convert_(new, RULES[rule](), weights="nearest", calibration=calibration)
        wrong[calibration is None], rows[calibration is None] = new(*given) - model(*given), report.rows[0]
    assert wrong[False].norm() < wrong[True].norm()
    assert rows[False].error is None
    assert rows[True].output_error is None
    if not name.startswith("Multi"):
        y = model(*given).movedim(1, -1) if "Conv" in name else model(*given)
        missed = wrong[False].movedim(1, -1) if "Conv" in name else wrong[False]
        assert missed.flatten(0, -2).mean(0).norm() < 1e-9, "the bias takes up the mean error"
        size = (y.flatten(0, -2) - y.flatten(0, -2).mean(0)).norm()
        assert rows[False].output_error == pytest.approx((missed.norm() / size).item(), rel=0.15)
