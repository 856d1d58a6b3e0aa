import dataclasses
import re
from pathlib import Path

import pytest
import torch
from cases import ALGEBRAS, METHODS, RULES, methods_for
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad
from torch.nn import functional as F

from nplex import ops
from nplex.algebra import BilinearAlgorithm, generic_rank, known_algorithm, quaternion
from nplex.nn import Linear, cached
from nplex.ops import reference, tracing
from nplex.ops.method import Method

BATCHES = [(), (0,), (1,), (3,), (2, 0), (2, 3)]


def factors(n, rank, dtype=torch.float64):
    return BilinearAlgorithm(*(torch.randn(n, rank, dtype=dtype, requires_grad=True) for _ in range(3)))


def rule_of(n, rank, dtype=torch.float64):
    if rank is None:
        return torch.randn(n, n, n, dtype=dtype, requires_grad=True)
    return factors(n, rank, dtype)


def leaves(rule):
    return [rule] if isinstance(rule, torch.Tensor) else list(rule)


def sizes():
    return st.tuples(st.integers(1, 8), st.integers(1, 9), st.integers(1, 9)).flatmap(
        lambda nab: st.tuples(
            st.just(nab[0]),
            st.integers(nab[0] * (nab[1] - 1) + 1, nab[0] * nab[1]),
            st.integers(nab[0] * (nab[2] - 1) + 1, nab[0] * nab[2]),
        )
    )


def case(n, d_in, d_out, batch, rank, bias, dtype=torch.float64):
    """Input, rule, components and bias of given sizes, all requiring gradients."""
    a, b = -(-d_out // n), -(-d_in // n)
    x = torch.randn(*batch, d_in, dtype=dtype, requires_grad=True)
    components = torch.randn(n, a, b, dtype=dtype, requires_grad=True)
    offset = torch.randn(d_out, dtype=dtype, requires_grad=True) if bias else None
    return x, rule_of(n, rank, dtype), components, offset


def value_and_gradients(x, rule, components, bias, features, method):
    inputs = [x, *leaves(rule), components, *([] if bias is None else [bias])]
    y = ops.product(x, rule, components, bias, features=features, method=method)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    return y, torch.autograd.grad((y * weights).sum(), inputs)


@settings(max_examples=40)
@given(sizes(), st.sampled_from(BATCHES), st.sampled_from([None, "n", "generic"]), st.booleans(), st.integers(0, 99))
def test_every_method_agrees_with_the_reference_in_value_and_every_gradient(size, batch, kind, bias, seed):
    torch.manual_seed(seed)
    n, d_in, d_out = size
    rank = {None: None, "n": n, "generic": generic_rank(n)}[kind]
    arguments = case(n, d_in, d_out, batch, rank, bias)
    expected, gradients = value_and_gradients(*arguments, (d_in, d_out), "reference")
    for method in METHODS:
        if method != "bilinear" or rank is not None:
            found, found_gradients = value_and_gradients(*arguments, (d_in, d_out), method)
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
            for one, other in zip(found_gradients, gradients, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@settings(max_examples=6)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 3), st.integers(0, 3), st.sampled_from(BATCHES))
@pytest.mark.parametrize("algebra", ALGEBRAS, ids=lambda algebra: algebra.name)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=str)
def test_every_algebra_and_method_agrees_with_the_reference(
    algebra, dtype, tolerance, a, b, less_in, less_out, batch
):
    n, known = algebra.n, known_algorithm(algebra)
    sizes = n * b - min(less_in, n - 1), n * a - min(less_out, n - 1)
    x, _, components, bias = case(n, *sizes, batch, None, True, dtype)
    rules = [algebra.table.to(dtype).requires_grad_()]
    if known is not None:
        rules.append(BilinearAlgorithm(*(factor.requires_grad_() for factor in known.to(dtype))))
    for rule in rules:
        expected, gradients = value_and_gradients(x, rule, components, bias, sizes, "reference")
        for method in METHODS:
            if method != "bilinear" or isinstance(rule, BilinearAlgorithm):
                found, found_gradients = value_and_gradients(x, rule, components, bias, sizes, method)
                for one, other in zip([found, *found_gradients], [expected, *gradients], strict=True):
                    assert (one - other).norm() <= tolerance * max(other.norm(), 1.0)


@pytest.mark.parametrize(("n", "rank"), [(2, None), (3, 4), (4, 7)])
def test_reference_is_differentiable(n, rank):
    x, rule, components, bias = case(n, 2 * n - 1, n + 1, (2,), rank, True)

    def product(x, components, bias, *parts):
        rule = parts[0] if rank is None else BilinearAlgorithm(*parts)
        return ops.product(x, rule, components, bias, features=(2 * n - 1, n + 1), method="reference")

    assert torch.autograd.gradcheck(product, (x, components, bias, *leaves(rule)))


@pytest.mark.parametrize("method", METHODS)
def test_second_derivatives(method):
    x, rule, components, bias = case(2, 3, 4, (2,), 3, True)

    def product(x, components, bias, *parts):
        return ops.product(x, BilinearAlgorithm(*parts), components, bias, features=(3, 4), method=method)

    assert torch.autograd.gradgradcheck(product, (x, components, bias, *rule))


def test_weight_is_the_published_sum():
    rule, components = torch.randn(3, 3, 3), torch.randn(3, 2, 4)
    expected = sum(torch.kron(rule[k], components[k]) for k in range(3))
    torch.testing.assert_close(reference.weight(rule, components), expected)
    torch.testing.assert_close(ops.expand(rule, components), expected)


@pytest.mark.parametrize("name", RULES)
def test_float32_is_as_good_as_rounding_allows(name):
    rule = RULES[name]()()
    n = rule.shape[0] if isinstance(rule, torch.Tensor) else rule.n
    x, components, bias = torch.randn(7, 5 * n), torch.randn(n, 6, 5), torch.randn(6 * n)
    exact = rule.detach().double() if isinstance(rule, torch.Tensor) else rule.to(torch.float64)
    expected = ops.product(x.double(), exact, components.double(), bias.double(), method="reference")
    for method in methods_for(RULES[name]()):
        found = ops.product(x, rule, components, bias, method=method)
        assert (found.double() - expected).norm() / expected.norm() < 2e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS)
def test_half_precision(method, dtype):
    x, rule, components, bias = case(4, 64, 32, (6,), 7, True)
    expected = ops.product(x, rule, components, bias, method="reference")
    half = BilinearAlgorithm(*(factor.to(dtype) for factor in rule))
    found = ops.product(x.to(dtype), half, components.to(dtype), bias.to(dtype), method=method)
    assert found.dtype == dtype
    assert (found.double() - expected).norm() / expected.norm() < 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rank", [None, 7])
def test_autocast_gives_bfloat16_and_float32_gradients(method, rank):
    if method == "bilinear" and rank is None:
        return
    x, rule, components, bias = case(4, 64, 32, (6,), rank, True, torch.float32)
    expected = ops.product(x, rule, components, bias, method="reference")
    with torch.autocast("cpu", torch.bfloat16):
        found = ops.product(x, rule, components, bias, method=method)
    found.float().sum().backward()
    assert found.dtype == torch.bfloat16
    assert (found - expected).norm() / expected.norm() < 0.03
    assert components.grad.dtype == torch.float32


@pytest.mark.parametrize("method", [*METHODS, "auto"])
def test_vmap_over_samples_and_over_an_ensemble(method):
    rules = [factors(4, 7) for _ in range(3)]
    stacked = BilinearAlgorithm(*(torch.stack(parts) for parts in zip(*rules, strict=True)))
    x, components = torch.randn(5, 9, dtype=torch.float64), torch.randn(3, 4, 2, 3, dtype=torch.float64)

    def member(rule, components):
        return torch.vmap(lambda sample: ops.product(sample, rule, components, features=(9, 7), method=method))(x)

    found = torch.vmap(member)(stacked, components)
    expected = [
        ops.product(x, r, c, features=(9, 7), method="reference") for r, c in zip(rules, components, strict=True)
    ]
    torch.testing.assert_close(found, torch.stack(expected))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(3, 7)}, r"x must have 8 numbers in its last dimension, got shape \(3, 7\)"),
        ({"x": torch.tensor(1.0)}, r"x must have 8 numbers in its last dimension, got shape \(\)"),
        ({"rule": torch.zeros(3, 3, 3)}, r"the rule must be 4 x 4 x 4 for 4 components, got 3 x 3 x 3"),
        ({"bias": torch.zeros(11)}, r"bias must have shape \(12,\), got \(11,\)"),
        ({"features": (4, 12)}, r"features \(4, 12\) do not fit 4 components of 3 x 2"),
        ({"features": (8, 13)}, r"expected at most \(8, 12\)"),
        ({"rule": quaternion}, r"rule must be a table or factors, got Algebra; of a module rule\(\)"),
        ({"x": [1.0]}, "x and components must be tensors, got list and Tensor"),
        ({"components": torch.zeros(4, 6)}, r"components must have 3 dimensions, n x a x b, got shape \(4, 6\)"),
        (
            {"rule": BilinearAlgorithm(*map(torch.zeros, [(4, 7), (4, 7), (4, 6)]))},
            r"the three factors must have one shape",
        ),
        ({"method": "fast"}, r"method must be one of auto, reference, dense.*got 'fast'"),
        ({"method": "bilinear"}, r"needs a rule held as factors, got a full table; give the rule a rank"),
    ],
)
def test_errors_say_what_does_not_fit(changes, message, unchecked):
    arguments = {"x": torch.zeros(3, 8), "rule": torch.zeros(4, 4, 4), "components": torch.zeros(4, 3, 2)} | changes
    with pytest.raises((ValueError, TypeError), match=message):
        ops.product(**arguments)


def test_auto_takes_the_plans_method(monkeypatch):
    taken = []
    for name, method in list(ops.METHODS.items()):
        noted = dataclasses.replace(
            method, product=lambda *a, name=name, method=method: taken.append(name) or method.product(*a)
        )
        monkeypatch.setitem(ops.METHODS, name, noted)
    x, rule, components, bias = case(4, 256, 256, (300,), 4, True, torch.float32)
    ops.product(x, rule, components, bias)
    ops.product(x[:1], rule, components, bias)
    assert taken == [ops.plan_for(256, 256, tokens=t, n=4, rank=4, training=True).method for t in (300, 1)]


def test_a_method_is_one_value_and_one_row(monkeypatch):
    """A new method is what stands here, a function, what it prepares and costs, and its row of the table."""
    prepared = []

    def product(x, rule, components, bias=None, prepared=()):
        return F.linear(x, prepared[0] if prepared else reference.weight(rule, components), bias)

    def prepare(rule, components):
        prepared.append("toy")
        return (reference.weight(rule, components),)

    def cost(request):
        work = request.work()
        work.call(1)
        return work

    monkeypatch.setitem(ops.METHODS, "toy", Method("toy", product, prepare, cost))
    made = ops.plan_for(32, 32, tokens=9, n=4)
    assert made.method == "toy"
    assert "toy" in str(made)
    layer, x = Linear(32, 32, rule=4, method="toy"), torch.randn(9, 32)
    expected = ops.product(x, layer.rule(), layer.components, layer.bias, method="dense")
    torch.testing.assert_close(layer(x), expected)
    assert prepared == []
    layer.method = "auto"
    with torch.no_grad(), cached(layer):
        for _ in range(3):
            torch.testing.assert_close(layer(x), expected.detach())
    assert prepared == ["toy"]
    with pytest.raises(ValueError, match=r"method must be one of auto, reference, .*, toy; got 'other'"):
        Linear(32, 32, rule=4, method="other")


@pytest.mark.parametrize(
    ("holder", "name"),
    [
        (torch._C, "_get_tracing_state"),
        (torch._C, "_set_tracing_state"),
        (torch._C, "_get_dispatch_mode"),
        (torch._C._TorchDispatchModeKey, "FAKE"),
        (torch._C._TorchDispatchModeKey, "PROXY"),
        (torch._C, "_set_dispatch_mode"),
        (torch._C, "_unset_dispatch_mode"),
        (torch._C._functorch, "is_legacy_batchedtensor"),
        (torch._C._autograd, "_top_saved_tensors_default_hooks"),
        (torch._C, "_are_functorch_transforms_active"),
        (forward_ad, "_current_level"),
        (torch.Tensor, "_version"),
        (torch.ops.mkldnn, "_reorder_linear_weight"),
        (torch.ops.mkldnn, "_linear_pointwise"),
    ],
    ids=str,
)
def test_private_names_of_torch_still_exist(holder, name):
    assert hasattr(holder, name)


def test_parameters_are_still_marked():
    """The mark by which tracing.Adoptable learns that a tensor becomes a parameter."""

    class Other(torch.Tensor):
        pass

    assert torch.nn.Parameter(torch.zeros(2).as_subclass(Other))._is_param


def test_torch_compile_still_reads_the_mark_of_a_constant():
    """The mark that tracing.constant_when_compiled sets is torch's own."""

    def answer():
        return 1

    assert (
        torch.compiler.assume_constant_result(answer).__dict__ == tracing.constant_when_compiled(lambda: 1).__dict__
    )


def test_private_names_of_torch_stand_in_one_file():
    private = re.compile(r"torch\.(?:\w+\.)*_[a-z]\w*|\bforward_ad\._\w+|\._version\b|\.mkldnn\._\w+")
    found = {p.name: private.findall(p.read_text("utf-8")) for p in Path(ops.__file__).parent.glob("*.py")}
    assert [name for name, names in found.items() if names] == ["tracing.py"]
