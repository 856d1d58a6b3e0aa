"""What the tiled product and the tiled build of the weight have beside the formulas that they replace."""

import itertools

import pytest
import torch
from torch.autograd import forward_ad

from nplex import ops
from nplex.algebra import BilinearAlgorithm
from nplex.ops import bilinear, dense, tiles, token_major

N, RANK, A, B, TOKENS = 3, 5, 4, 2, 11


@pytest.fixture(params=[(1, 0), (4, 0), (4, 99), (11, 0)], ids=lambda p: f"tile {p[0]}, kept from {p[1]}")
def tiled(request, monkeypatch):
    """Tiles of some tokens and of few rows, so that even small products take several."""
    size, kept_from = request.param
    monkeypatch.setattr(tiles, "tile_tokens", lambda *sizes: size)
    monkeypatch.setattr(tiles, "KEPT_FROM", kept_from)
    monkeypatch.setattr(tiles, "LEAST_TOKENS", 0)
    monkeypatch.setattr(dense, "TILE_BYTES", 8 * N * N * B * size)


def inputs(dtype=torch.float64, requires_grad=(True,) * 6):
    shapes = [(TOKENS, N, B), (N, RANK), (N, RANK), (N, RANK), (N, A, B), (N * A,)]
    return [torch.randn(s, dtype=dtype, requires_grad=r) for s, r in zip(shapes, requires_grad, strict=True)]


def formula(x, u, v, w, components, bias):
    rule = BilinearAlgorithm(u, v, w)
    return tiles.formula(x, rule, tiles.blocks(rule, components), bias).flatten(1)


def product(x, u, v, w, components, bias, *prepared):
    return bilinear.product(x.flatten(1), BilinearAlgorithm(u, v, w), components, bias, prepared)


def gradients(run, tensors, grad=None):
    y = run(*tensors)
    wanted = [t for t in tensors if t.requires_grad]
    return [y, *torch.autograd.grad(y, wanted, torch.linspace(-1, 1, y.numel()).view_as(y) if grad is None else grad)]


def test_tiles_give_the_value_and_gradients_of_the_formula(tiled):
    tensors = inputs()
    torch.testing.assert_close(gradients(product, tensors), gradients(formula, tensors))


@pytest.mark.parametrize("requires", [r for r in itertools.product([False, True], repeat=6) if any(r)])
def test_only_the_gradients_that_are_asked_for(tiled, requires):
    tensors = inputs(requires_grad=requires)
    torch.testing.assert_close(gradients(product, tensors), gradients(formula, tensors))


def token_major_formula(x, u, v, w, components, bias):
    return token_major.formula(x, BilinearAlgorithm(u, v, w), components, bias).flatten(1)


def test_sums_for_gpus_give_the_value_and_gradients_of_the_formula():
    tensors = inputs()
    torch.testing.assert_close(gradients(token_major_formula, tensors), gradients(formula, tensors))
    wide = [t.detach().float().requires_grad_() for t in tensors]
    half = [wide[0].detach().bfloat16().requires_grad_(), *wide[1:]]
    for found, expected in zip(gradients(token_major_formula, half), gradients(formula, wide), strict=True):
        assert (found - expected).norm() < 0.02 * expected.norm()


def test_without_gradients(tiled):
    tensors = inputs()
    with torch.no_grad():
        found = product(*tensors)
    torch.testing.assert_close(found, formula(*tensors).detach())
    with torch.inference_mode():
        torch.testing.assert_close(product(*tensors), found)


def test_one_token_block_by_block(monkeypatch):
    x, *others = inputs()
    expected = formula(x[:1], *others).detach()
    monkeypatch.setattr(bilinear, "LARGE_BLOCK", 1)
    with torch.no_grad():
        torch.testing.assert_close(product(x[:1], *others), expected)
        torch.testing.assert_close(product(x[:1], *others[:-1], None), expected - others[-1])


def test_strided_inputs_and_expanded_gradients(tiled):
    tensors = inputs()
    tensors[0] = torch.randn(B, TOKENS, N, dtype=torch.float64).permute(1, 2, 0).requires_grad_()
    expanded = torch.ones((), dtype=torch.float64).expand(TOKENS, N * A)
    torch.testing.assert_close(gradients(product, tensors, expanded), gradients(formula, tensors, expanded))


def test_gradients_of_prepared_blocks_go_to_the_blocks(tiled):
    x, u, v, w, components, bias = inputs()
    prepared = torch.randn(RANK, A, B, dtype=torch.float64, requires_grad=True)
    wanted = [x, v, w, bias, prepared]
    found = torch.autograd.grad(product(x, u, v, w, components, bias, prepared).sum(), wanted)
    rule = BilinearAlgorithm(u, v, w)
    torch.testing.assert_close(found, torch.autograd.grad(tiles.formula(x, rule, prepared, bias).sum(), wanted))


def test_backward_twice_through_one_graph(tiled):
    tensors = inputs()
    y = product(*tensors).square().sum()
    first = torch.autograd.grad(y, tensors, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(y, tensors), first)


def test_second_derivatives_of_several_tiles(tiled):
    assert torch.autograd.gradgradcheck(product, inputs())


def test_one_tensor_in_two_places(tiled):
    x, u, v, _, components, bias = inputs()

    def twice(run):
        y = run(x, u, v, v, components, bias)
        (first,) = torch.autograd.grad(y.square().sum(), [v], create_graph=True)
        return [y, first, *torch.autograd.grad(first.square().sum(), [v, x])]

    torch.testing.assert_close(twice(product), twice(formula))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_gradients_over_tiles_in_float32(dtype, monkeypatch):
    monkeypatch.setattr(tiles, "tile_tokens", lambda *sizes: 32)
    exact = [torch.randn(4096, N, B), *inputs(torch.float32)[1:]]
    tensors = [t.detach().to(dtype).requires_grad_() for t in exact]
    grad = torch.rand(4096, N * A).to(dtype)
    expected = gradients(formula, [t.detach().double().requires_grad_() for t in tensors], grad.double())
    for found, value in zip(gradients(product, tensors, grad), expected, strict=True):
        assert found.dtype == dtype
        assert (found.double() - value).norm() / value.norm() < 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("run", [product, formula])
def test_torch_func_sees_a_formula(run):
    tensors = inputs(requires_grad=(False,) * 6)

    def loss(*tensors):
        return run(*tensors).square().sum()

    expected = torch.autograd.grad(loss(*(t.requires_grad_() for t in tensors)), tensors)
    tensors = [t.detach() for t in tensors]
    torch.testing.assert_close(torch.func.grad(loss, tuple(range(6)))(*tensors), expected)
    _, directional = torch.func.jvp(loss, tuple(tensors), tuple(map(torch.ones_like, tensors)))
    torch.testing.assert_close(directional, sum(g.sum() for g in expected))
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, torch.ones_like(t)) for t in tensors]
        torch.testing.assert_close(forward_ad.unpack_dual(loss(*duals)).tangent, directional)


@pytest.mark.parametrize(
    ("learned", "kept_from", "tiles_kept"), [(True, B, 6), (True, B + 1, 2), (False, B, 0), (False, B + 1, 0)]
)
def test_saved_for_backward_are_the_input_and_some_products_while_the_rule_is_learned(
    learned, kept_from, tiles_kept, monkeypatch
):
    monkeypatch.setattr(tiles, "tile_tokens", lambda *sizes: 2)
    monkeypatch.setattr(tiles, "KEPT_FROM", kept_from)
    monkeypatch.setattr(tiles, "KEPT_SHARE", 0.75)
    tensors = inputs(requires_grad=(True, learned, learned, learned, True, True))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        product(*tensors)
    own = [TOKENS * N * B, 3 * N * RANK, N * A * B, tiles_kept * 2 * RANK * A]
    assert sum(saved) == sum(own)


def test_the_weight_in_rows_gives_the_value_and_gradients_of_the_formula(tiled):
    tensors = [torch.randn(N, N, N).double().requires_grad_(), torch.randn(N, A, B).double().requires_grad_()]
    torch.testing.assert_close(gradients(ops.expand, tensors), gradients(dense.formula, tensors))
    strided = torch.randn(N * B, N * A).double().mT
    torch.testing.assert_close(gradients(ops.expand, tensors, strided), gradients(dense.formula, tensors, strided))
    assert torch.autograd.gradgradcheck(ops.expand, tensors)
    for alone in range(2):
        some = [t.detach().requires_grad_(i == alone) for i, t in enumerate(tensors)]
        torch.testing.assert_close(gradients(ops.expand, some), gradients(dense.formula, some))


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [((1024, 7, 512, 512), 512), ((2048, 24, 256, 64), 64), ((2048, 4, 64, 64), 512), ((5, 7, 512, 512), 5)],
)
def test_tile_sizes(sizes, expected):
    assert tiles.tile_tokens(*sizes, 4, torch.device("cpu")) == expected
    assert tiles.tile_tokens(*sizes, 4, torch.device("meta")) == sizes[0]
