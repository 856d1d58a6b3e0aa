"""The weight that a layer shows: every way to write it is refused, everything else is as with any tensor."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from layer_cases import LAYERS
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F

from nplex import nn as nx
from nplex.nn.computed import Computed


def shown(layer):
    """Every computed weight in a layer, by name."""
    found = {}
    for prefix, module in layer.named_modules():
        names = getattr(module, "_weights", ["weight"] if type(getattr(module, "weight", None)) is Computed else [])
        found |= {f"{prefix}.{name}": getattr(module, name) for name in names if getattr(module, name) is not None}
    return found


def write(statement):
    def run(w):
        exec(statement, {"w": w, "torch": torch, "nn": nn, "F": F})

    return run


WRITES = [
    "nn.init.zeros_(w)", "nn.init.ones_(w)", "nn.init.constant_(w, 2)", "nn.init.uniform_(w)", "nn.init.normal_(w)",
    "nn.init.trunc_normal_(w)", "nn.init.xavier_uniform_(w)", "nn.init.xavier_normal_(w)",
    "nn.init.kaiming_uniform_(w)", "nn.init.kaiming_normal_(w)", "nn.init.orthogonal_(w)",
    "nn.init.normal_(tensor=w)", "w.data.fill_(0)", "w.data = w.data.clone()", "w.data.normal_(0, 1)",
    "w.detach().zero_()", "w.data[0] = 1", "w[0] = 1", "w[0].fill_(1)", "w[:, 1] *= 2", "w.copy_(w.clone())",
    "w.zero_()", "w.mul_(2)", "w.data.mul_(2)", "w.data += 1", "w.data -= 1", "w.data *= 2", "w.data /= 2",
    "w.view(-1).zero_()", "w.flatten().zero_()", "w.t().zero_() if w.ndim == 2 else w.mT.zero_()", "w.T.zero_()",
    "w.chunk(2)[0].zero_()", "w.data.chunk(2, 0)[1].fill_(1)", "[nn.init.zeros_(row) for row in w]",
    "w.unbind()[0].zero_()", "torch.zero_(w)", "torch.relu_(w)", "F.relu(w, inplace=True)",
    "nn.ReLU(inplace=True)(w)", "torch.add(w, 1, out=w)", "torch.zeros(w.shape, out=w)",
    "w.masked_fill_(w > 0, 0)", "w.index_fill_(0, torch.tensor([0]), 0)", "torch._foreach_mul_([w], 2)",
    "w.clamp_(-1, 1)", "w.exponential_()", "w.resize_(3)", "nn.init._no_grad_normal_(w, 0, 1)",
    "nn.utils.vector_to_parameters(torch.zeros(w.numel()), [w])", "w.squeeze().transpose(0, 1).zero_()",
    "w.grad = torch.ones_like(w)",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LAYERS)
def test_no_write_into_any_weight_is_lost(name):
    layer = LAYERS[name].make(4, rule=2)
    weights = shown(layer)
    assert weights
    assert {type(w) for w in weights.values()} == {Computed}
    for w in weights.values():
        for statement in WRITES:
            with torch.no_grad(), pytest.raises(RuntimeError, match=r"computed weight: .*nplex\.nn\.init\.like_"):
                write(statement)(w)


@pytest.mark.parametrize("name", LAYERS)
def test_no_weight_can_be_assigned(name):
    """As torch's users tie weights, head.weight = embedding.weight, or set one: the error says what to do."""
    layer = LAYERS[name].make(4, rule=2)
    for full in shown(layer):
        prefix, _, leaf = full.strip(".").rpartition(".")
        for value in (nn.Parameter(torch.zeros(2)), torch.zeros(2), None):
            with pytest.raises(AttributeError, match=f"{leaf} is computed; change the rule or"):
                setattr(layer.get_submodule(prefix), leaf, value)


@pytest.mark.parametrize("statement", ["nn.init.eye_(w)", "nn.init.sparse_(w, 0.5)"])
def test_initialisers_of_matrices(statement):
    with pytest.raises(RuntimeError, match="computed weight"):
        write(statement)(nx.Linear(8, 8, rule=2).weight)


def test_initialisers_of_kernels():
    with pytest.raises(RuntimeError, match="computed weight"):
        nn.init.dirac_(nx.Conv2d(4, 4, 3, rule=2).weight)


def test_initialising_a_whole_model_by_a_function():
    def first_values(module):
        if hasattr(module, "weight"):
            nn.init.trunc_normal_(module.weight, std=0.02)

    with pytest.raises(RuntimeError, match="normal_ writes"):
        nn.Sequential(nx.Linear(8, 8, rule=2)).apply(first_values)


def test_all_weights_of_a_recurrent_layer_show_what_can_be_written():
    layer = nx.LSTM(4, 4, rule=2)
    kinds = [type(w) for w in layer.all_weights[0]]
    assert kinds == [Computed, Computed, nn.Parameter, nn.Parameter]


@pytest.fixture
def layer():
    return nx.Linear(8, 16, rule=2)


def test_an_attribute_of_a_weight_warns(layer):
    with pytest.warns(UserWarning, match="attribute 'no_decay' is lost"):
        layer.weight.no_decay = True


READS = [
    "w + 1", "1 - w", "w @ w.t()", "w.clone()", "w.to(torch.float64)", "w.float()", "w.sum()", "w.square().mean()",
    "F.linear(x, w)", "torch.cat([w, w])", "torch.stack((w, w))", "w.detach().clone()", "w.data.clone()",
    "w.contiguous()", "w.cpu()", "w.abs().max(0)[0]", "torch.where(w > 0, w, 0)", "torch.linalg.svdvals(w)",
    "torch.empty_like(w).copy_(w)", "torch.zeros(16, 8).add_(w)", "copy.deepcopy(w.detach())",
    "nn.functional.normalize(w)", "torch.einsum('ij,kj->ik', x, w)", "w.norm()", "w.new_zeros(3)",
]  # fmt: skip


@pytest.mark.parametrize("expression", READS)
def test_everything_else_gives_plain_tensors(expression, layer):
    scope = {"torch": torch, "F": F, "nn": nn, "x": torch.randn(3, 8), "copy": copy}
    with torch.no_grad():
        plain = layer.weight.clone()
    assert type(plain) is Tensor
    came = eval(expression, scope | {"w": layer.weight})
    assert type(came) is Tensor
    torch.testing.assert_close(came.detach(), eval(expression, scope | {"w": plain}), equal_nan=True)


def test_what_is_read_of_it(layer):
    w = layer.weight
    assert (w.dtype, w.shape, w.device, w.ndim, w.requires_grad) == (
        torch.float32,
        (16, 8),
        torch.device("cpu"),
        2,
        True,
    )
    assert isinstance(w, Tensor)
    assert not isinstance(w, nn.Parameter)
    assert "Computed" not in repr(w)
    assert w.detach().numpy().shape == (16, 8)
    assert len(w) == 16
    assert w.data_ptr() == w.data.data_ptr()
    assert w in {w}


@pytest.mark.parametrize(
    "make", [lambda w: w, lambda w: w.data, lambda w: w.detach(), lambda w: w[:4], lambda w: w.T]
)
@pytest.mark.parametrize("needs_grad", [True, False])
def test_a_parameter_made_of_it_is_a_plain_parameter(make, needs_grad, layer):
    p = nn.Parameter(make(layer.weight), needs_grad)
    assert type(p) is nn.Parameter
    assert isinstance(p, nn.Parameter)
    assert p.is_leaf
    assert p.requires_grad is needs_grad
    other = nn.Linear(2, 2)
    other.weight = p
    torch.testing.assert_close(p.detach(), make(layer.weight).detach())
    nn.init.zeros_(p)
    assert not p.any()
    assert type(pickle.loads(pickle.dumps(p))) is type(copy.deepcopy(p)) is nn.Parameter
    if needs_grad:
        p.square().sum().backward()
        torch.optim.Adam([p]).step()


def test_derivatives_go_through_it(layer):
    x, w = torch.randn(3, 8), layer.weight
    y = F.linear(x, w).square().sum()
    (of_weight,) = torch.autograd.grad(y, w, retain_graph=True)
    assert of_weight.shape == w.shape
    w.retain_grad()
    y.backward()
    assert torch.equal(w.grad, of_weight)
    assert layer.components.grad.abs().sum() > 0
    layer.weight.sum().backward()


def test_files_know_nothing_of_it(layer):
    file = io.BytesIO()
    torch.save({"w": layer.weight, "d": layer.weight.data}, file)
    file.seek(0)
    read = torch.load(file, weights_only=True)
    assert [type(t) for t in read.values()] == [Tensor, Tensor]
    assert torch.equal(load(save({"w": layer.weight.detach()}))["w"], layer.weight)
    assert type(pickle.loads(pickle.dumps(layer.weight.detach()))) is Tensor


def test_freezing_it_is_refused_by_torch(layer):
    with pytest.raises(RuntimeError, match="leaf"):
        layer.weight.requires_grad_(False)
    with pytest.raises(RuntimeError, match="leaf"):
        layer.weight.requires_grad = False


def test_a_tied_head_learns(layer):
    words = nx.Embedding(12, 8, rule=2)
    F.linear(words(torch.tensor([1, 2])), words.weight).sum().backward()
    assert words.components.grad.abs().sum() > 0


def test_torchs_own_attention_reads_it():
    attention, x = nn.MultiheadAttention(8, 2, batch_first=True).eval(), torch.randn(2, 3, 8)
    attention.out_proj = nx.Linear(8, 8, rule=2)
    with torch.no_grad():
        y, _ = attention(x, x, x)
    assert type(y) is Tensor
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    layer.linear1 = nx.Linear(8, 16, rule=2)
    with torch.no_grad():
        fast = layer(x)
    torch.testing.assert_close(fast, layer(x).detach(), atol=1e-5, rtol=1e-5)


def test_transforms_and_fake_tensors_see_a_plain_one(layer):
    seen = []
    torch.func.vmap(lambda s: (seen.append(type(layer.weight)), s * layer.weight.sum())[1])(torch.ones(2))
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        seen.append(type(nx.Linear(8, 8, rule=2).weight))
    assert Computed not in seen


def test_no_warning_where_nothing_is_lost(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer.weight.grad = None
        other = nn.Linear(8, 16)
        other.weight.data = layer.weight.data
        other.weight.data.copy_(layer.weight)
    assert type(other.weight.data) is Tensor
