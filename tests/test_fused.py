"""The Triton kernels of nplex.ops.fused in Triton's interpreter, and their compilation for GPUs that are not there.

`make test-triton` runs them in an environment of its own, with TRITON_INTERPRET=1, which Triton reads when it is
imported. Everywhere else they are skipped.
"""

import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, vmap

from nplex import nn, ops
from nplex.algebra import BilinearAlgorithm
from nplex.nn import LearnedRule, cached
from nplex.ops import fused, tiles

if os.environ.get("TRITON_INTERPRET") != "1" or importlib.util.find_spec("triton") is None:
    reason = "needs Triton, an optional extra of 691 MB, and its interpreter: make test-triton"
    pytest.skip(reason, allow_module_level=True)

from nplex.ops import kernels

HALF, SINGLE, EXACT = torch.float16, torch.float32, torch.float64
CLOSE = {SINGLE: 1e-5, HALF: 4e-3}


@pytest.fixture(autouse=True)
def ran(monkeypatch):
    """The kernels take CPU tensors; the names of those that ran."""
    monkeypatch.setattr(fused, "DEVICES", ("cuda", "cpu"))
    found = set()

    def watched(name, kernel):
        return lambda *args: found.add(name) or kernel(*args)

    for name in ("mix", "mix_back", "decode", "table", "table_back"):
        monkeypatch.setattr(kernels, name, watched(name, getattr(kernels, name)))
    return found


def call(n=4, rank=7, a=16, b=32, tokens=5, dtype=SINGLE, bias=True, requires_grad=True):
    """x, a rule as a list of tensors, components and bias."""
    rule = [(n, n, n)] if rank is None else 3 * [(n, rank)]
    shapes = [(tokens, n * b), *rule, (n, a, b), (n * a,)][: None if bias else -1]
    return [torch.randn(s, dtype=dtype, requires_grad=requires_grad) for s in shapes]


def product(method, tensors):
    x, *rule, components, bias = tensors if tensors[-1].ndim == 1 else (*tensors, None)
    return ops.product(x, rule[0] if len(rule) == 1 else BilinearAlgorithm(*rule), components, bias, method=method)


def gradients(method, tensors):
    y = product(method, tensors)
    wanted = [t for t in tensors if t.requires_grad]
    return [y, *(torch.autograd.grad(y, wanted, torch.linspace(-1, 1, y.numel()).view_as(y).to(y)) if wanted else ())]


def exactly(tensors):
    return [t.detach().double().contiguous().requires_grad_(t.requires_grad) for t in tensors]


def assert_near(found, expected, dtype):
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        assert (one.double() - other).norm() <= CLOSE[dtype] * other.norm()


@pytest.mark.parametrize("dtype", [SINGLE, HALF])
@pytest.mark.parametrize(("n", "rank"), [(1, None), (4, None), (5, None), (3, 2), (4, 7), (8, 24)])
def test_values_and_all_gradients(n, rank, dtype, ran):
    for method, bias in itertools.product(("dense", "bilinear") if rank else ("dense",), (True, False)):
        tensors = call(n, rank, tokens=7, dtype=dtype, bias=bias)
        assert_near(gradients(method, tensors), gradients("reference", exactly(tensors)), dtype)
    assert ran == {"mix", "mix_back"} | ({"table", "table_back"} if rank else set())


@pytest.mark.parametrize("dtype", [SINGLE, HALF])
@pytest.mark.parametrize("rank", [None, 7])
@pytest.mark.parametrize("tokens", [1, 3, 16])
def test_few_tokens_without_gradients(tokens, rank, dtype, ran):
    for bias in (True, False):
        tensors = call(4, rank, 48, 80, tokens, dtype, bias, requires_grad=False)
        assert_near([product("components_first", tensors)], [product("reference", exactly(tensors))], dtype)
    assert ran == {"decode"} | ({"table"} if rank else set())


@pytest.mark.parametrize("tile", [(3, 0), (2, 99)], ids=str)
def test_only_the_gradients_that_are_asked_for_in_tiles(tile, monkeypatch, ran):
    monkeypatch.setattr(tiles, "tile_tokens", lambda *sizes: tile[0])
    monkeypatch.setattr(tiles, "KEPT_FROM", tile[1])
    some = ("111111", "100000", "001000", "000100", "010000", "000010", "000001", "101010", "010101")
    for requires in some:
        tensors = [
            t.requires_grad_(r == "1")
            for t, r in zip(call(2, 3, 16, 16, 4, requires_grad=False), requires, strict=True)
        ]
        for method in ("bilinear", "dense"):
            assert_near(gradients(method, tensors), gradients("reference", exactly(tensors)), SINGLE)
    assert "mix_back" in ran


def test_a_gradient_of_a_sum_and_parts_that_are_not_contiguous(ran):
    tensors = call()
    tensors[-2] = tensors[-2].detach().mT.contiguous().mT.requires_grad_()
    for method in ("bilinear", "dense"):
        found, expected = (
            torch.autograd.grad(product(how, these).sum(), these)
            for how, these in ((method, tensors), ("reference", exactly(tensors)))
        )
        assert_near(found, expected, SINGLE)


@pytest.mark.parametrize("rank", [None, 7])
def test_under_autocast_as_without_kernels(rank, monkeypatch, ran):
    tensors = call(rank=rank)
    for method in ("dense", "bilinear")[: 2 if rank else 1]:
        with torch.autocast("cpu", HALF):
            found = gradients(method, tensors)
        with monkeypatch.context() as patch, torch.autocast("cpu", HALF):
            patch.setattr(fused, "DEVICES", ())
            expected = gradients(method, tensors)
        assert [t.dtype for t in found] == [t.dtype for t in expected] == [HALF, *len(tensors) * [SINGLE]]
        assert all((a - b).norm() < 0.02 * b.norm() for a, b in zip(found, expected, strict=True))
    with torch.no_grad(), torch.autocast("cpu", HALF):
        assert product("components_first", tensors).dtype == HALF
    assert "decode" in ran


def test_layers_inside_cached(ran):
    for method in ("bilinear", "dense", "components_first"):
        layer = nn.Linear(128, 64, rule=LearnedRule(4, 7), method=method)
        x = torch.randn(2, 3, 128)
        expected = torch.nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double())
        with torch.no_grad(), cached(layer):
            for _ in range(2):
                assert_near([layer(x)], [expected], SINGLE)
    assert ran >= {"mix", "decode"}


class Subclass(torch.Tensor):
    """What no kernel is given."""


FALLBACKS = {
    "float64": lambda tensors: exactly(tensors),
    "a subclass": lambda tensors: [tensors[0].as_subclass(Subclass), *tensors[1:]],
}
ODD = {"n = 33": {"n": 33}, "rank 33": {"rank": 33}, "a = 24": {"a": 24}, "b = 17": {"b": 17}, "empty": {"tokens": 0}}


@pytest.mark.parametrize("why", [*FALLBACKS, *ODD, "no Triton"])
@pytest.mark.filterwarnings("ignore:rank = 7 is below")
def test_other_calls_take_the_formulas(why, monkeypatch, ran):
    tensors = call(**ODD.get(why, {}))
    tensors = FALLBACKS.get(why, lambda tensors: tensors)(tensors)
    if why == "no Triton":
        monkeypatch.setattr(fused, "works", lambda: False)
    for method in ("bilinear", "components_first"):
        found, expected = product(method, tensors), product("reference", exactly(tensors))
        assert (found.double() - expected).norm() <= 1e-5 * expected.norm()
    assert ran == set() or (why == "empty" and "decode" not in ran)


@pytest.mark.parametrize("method", ["bilinear", "dense"])
def test_transforms_and_the_compiler_see_the_formula(method, ran, unchecked):
    tensors = call()
    expected = gradients(method, tensors)
    ran.clear()
    plain = [t.detach() for t in tensors]

    def loss(*tensors):
        y = product(method, tensors)
        return (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum()

    torch.testing.assert_close(list(grad(loss, tuple(range(6)))(*plain)), expected[1:], rtol=1e-4, atol=1e-4)
    rows = vmap(lambda x: product(method, (x, *plain[1:])))(plain[0][:, None])
    torch.testing.assert_close(rows[:, 0], expected[0], rtol=1e-4, atol=1e-4)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(plain[0], plain[0])
        assert forward_ad.unpack_dual(product(method, (dual, *plain[1:]))).tangent is not None
    compiled = torch.compile(lambda *tensors: product(method, tensors), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*plain), expected[0], rtol=1e-4, atol=1e-4)
    assert ran == set()


@pytest.mark.parametrize("method", ["bilinear", "dense"])
def test_second_derivatives_and_several_gradients_at_once(method, ran):
    tensors = call()

    def second(method, tensors):
        first = torch.autograd.grad(product(method, tensors).square().sum(), tensors, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), tensors)

    assert_near(second(method, tensors), second("reference", exactly(tensors)), SINGLE)
    y, many = product(method, tensors), torch.randn(3, 5, 64)
    found = torch.autograd.grad(y, tensors, many, is_grads_batched=True, retain_graph=True)
    for i in range(3):
        one = torch.autograd.grad(y, tensors, many[i], retain_graph=True)
        torch.testing.assert_close([g[i] for g in found], list(one), rtol=1e-4, atol=1e-3)


def operands(dtype=SINGLE):
    """Arguments of every operator."""
    n, rank, tokens, c = 3, 5, 4, 32
    r = lambda *shape: torch.randn(shape, dtype=dtype)  # noqa: E731
    few, many, weights = r(n, tokens, c), r(rank, tokens, c), r(rank, n)
    return [
        ("mix", (weights, few, None, many)), ("mix", (weights.mT, many, r(n * c), few)),
        ("mix", (r(n, n, n), few, None, r(n, n, tokens, c))),
        ("mix_back", (many, few, weights, r(n, tokens, c))),
        ("mix_back", (few, many, weights.mT, r(rank, tokens, c))),
        ("mix_back", (r(n, n, tokens, c), few, r(n, n, n), r(n, tokens, c))),
        ("decode", (r(2, n, c), r(n, n, n), r(n, 16, c), None)),
        ("table", 3 * (r(n, rank),)), ("table_back", (torch.randn(n, n, n), *3 * (r(n, rank),))),
    ]  # fmt: skip


@pytest.mark.parametrize("case", range(len(operands())))
def test_operators_keep_what_torch_asks_of_them(case):
    name, args = operands()[case]
    torch.library.opcheck(getattr(torch.ops.nplex, name).default, args)


@pytest.mark.parametrize("case", range(len(operands())))
def test_the_same_bits_each_time(case):
    name, args = operands(HALF)[case]
    first, second = ([t.clone() if isinstance(t, torch.Tensor) else t for t in args] for _ in range(2))
    results = [getattr(torch.ops.nplex, name)(*these) for these in (first, second)]
    for one, other in zip([*first, results[0]], [*second, results[1]], strict=True):
        assert one is other is None or torch.equal(one, other)


def lines_of(program, **environment):
    """The JSON lines that a program prints, with the kernels as they are."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | environment
    command = [sys.executable, Path(__file__).parent / "programs" / program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++, to compile the device that is not there")
def test_operators_of_a_training_step_on_a_device_that_is_not_there(tmp_path):
    """For 16,384 tokens in bfloat16, by the operators that really start and programs/fake_cuda.py's H100."""
    lines = lines_of("triton_started.py", NPLEX_FAKE_CUDA=str(tmp_path), XDG_CACHE_HOME=str(tmp_path))
    share = {(line["width"], line["n"], line["rank"], line["method"]): line["share"] for line in lines}
    assert all(set(line["kernels"]) >= {"mix", "mix_back"} for line in lines)
    assert [case for case, value in share.items() if case[3] == "auto" and value > 1.1] == []
    assert share[4096, 4, 7, "auto"] < 1
    assert share[4096, 4, 4, "auto"] < 0.65
    assert share[4096, 8, 8, "auto"] < 0.5


def test_compiled_for_gpus_that_are_not_there():
    """No number leaves the registers for memory, and numbers that lie side by side are read 16 bytes at once."""
    lines = lines_of("triton_compiled.py")
    assert {(line["target"], line["dtype"]) for line in lines} == set(itertools.product((80, 90), ("bf16", "fp32")))
    assert [line for line in lines if line["spilled"]] == []
    mixing = [line for line in lines if line["kernel"] in ("mixing_kernel", "decoding_kernel")]
    assert len({line["case"] for line in mixing}) == 20
    assert [line for line in mixing if line["wide"] < line["expected"]] == []
