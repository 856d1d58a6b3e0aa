"""Calibrated conversion: moments, nearest outputs, low rank."""

import copy
from types import SimpleNamespace

import pytest
import torch
from cases import RULES
from torch import nn

import nplex
from nplex import algebra
from nplex import nn as nx
from nplex.convert.calibration import observe
from nplex.nn.moments import Moments
from nplex.nn.nearest import nearest_
from nplex.nn.truncated import spectrum, truncate_
from nplex.nn.weighted import Target, _slope, fit_, table_of

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


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize("rule", ["learned 2", "learned 3", "learned 4:7"])
def test_the_slope_by_the_rule_is_that_of_the_best_components(rule):
    """And no rule near the one that was chosen is better."""
    torch.manual_seed(0)
    old = nn.Linear(7, 9)
    moments = moments_of(correlated(300, 7))
    made = RULES[rule]()
    layer = nx.Linear.like(old, rule=made)
    fit_(made, [target_of(layer, old, moments)], chosen=True)
    target = target_of(layer, old, moments)
    target.prepare(made.n)
    table = table_of(made)
    best, slope = _slope(table, [target])
    along = torch.randn(table.shape) / 100
    for size in (1e-3, 1e-5):
        up, down = (_slope(table + sign * size * along, [target])[0] for sign in (1, -1))
        assert (up - down) / (2 * size) == pytest.approx((slope * along).sum().item(), rel=1e-3, abs=1e-6)
    if made.rank is None:
        assert slope.norm() < 0.05 * best
    for _ in range(20):
        other = copy.deepcopy(made)
        for p in other.parameters():
            p.data += 0.01 * torch.randn_like(p)
        assert _slope(table_of(other), [target])[0] > best - 1e-6


@pytest.mark.usefixtures("_double")
def test_the_error_never_grows_from_where_it_starts():
    torch.manual_seed(0)
    old = nn.Linear(8, 12)
    moments = moments_of(correlated(300, 8))
    for rule in ("learned 2", "learned 4:4", "learned 8"):
        torch.manual_seed(1)
        fixed, free = ((nx.Linear.like(old, rule=RULES[rule]())) for _ in range(2))
        for a, b in zip(fixed.rule.parameters(), free.rule.parameters(), strict=True):
            b.data.copy_(a)
        errors = []
        for layer, chosen in ((fixed, False), (free, True)):
            target = target_of(layer, old, moments)
            fit_(layer.rule, [target], chosen=chosen)
            errors.append(target.missed)
        assert errors[1] <= errors[0] * (1 + 1e-9) + 1e-12


def target_of(layer, old, moments):
    return Target(0, [layer.components.detach()], [old.weight.detach()], [layer.bias.detach()], moments)


def test_one_rule_for_several_layers_has_the_least_sum_of_relative_errors():
    torch.manual_seed(0)
    x = correlated(2000, 64)

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 96)

        def forward(self, x):
            return self.a(x), self.b(x)

    model = Two()
    model.b.weight.data *= 100
    one = copy.deepcopy(model)
    report = nplex.convert_(one, 2, weights="nearest", shared=True, calibration=[x])
    own = nplex.convert_(model, 2, weights="nearest", calibration=[x])
    assert one.a.rule is one.b.rule is one.rule
    assert own.output_error <= report.output_error < 1
    assert abs(report.rows[0].output_error - report.rows[1].output_error) < 0.3


# Low rank


@pytest.mark.parametrize("sizes", [(12, 20), (20, 12), (9, 9)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.usefixtures("_double")
def test_low_rank_is_the_closed_form(sizes, bias):
    torch.manual_seed(0)
    old = nn.Linear(*sizes, bias=bias)
    moments = moments_of(correlated(400, sizes[0]))
    layer = nx.LowRankLinear.like(old, rule=algebra.real, low_rank=4)
    missed, whole = truncate_(layer, old, moments)
    root = torch.linalg.cholesky(moments.blocks(1, sizes[0], centred=bias)[0, 0])
    u, s, v = torch.linalg.svd(old.weight @ root, full_matrices=False)
    best = u[:, :4] @ s[:4].diag() @ v[:4] @ root.inverse()
    torch.testing.assert_close(torch.as_tensor(layer.weight), best.detach())
    assert missed == pytest.approx(s[4:].square().sum().item(), rel=1e-6)
    assert whole == pytest.approx(s.square().sum().item(), rel=1e-6)
    torch.testing.assert_close(spectrum(old, moments)[: len(s)], s.detach().square())
    torch.testing.assert_close(layer.left.norm(dim=1).squeeze(), layer.right.norm(dim=2).squeeze())
    if bias:
        wrong = (layer(moments.mean) - old(moments.mean)).norm()
        assert wrong < 1e-9


@pytest.mark.parametrize("weights", ["fresh", "nearest"])
def test_low_rank_is_a_layer_as_others(weights, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 32, bias=False), nn.Conv1d(8, 8, 3))
    dense = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters())
    report = nplex.convert_(model, {"0": "low-rank:0.5", "*": "low-rank:3"}, weights=weights, optimizer=optimizer)
    assert model[0].low_rank == int(0.5 * 64 * 96 / 160)
    assert model[2].low_rank == 3
    assert "low rank is for linear layers" in report.rows[2].reason
    assert report.total_after == sum(p.numel() for p in model.parameters()) == nplex.count(model).total
    assert nplex.count(model).dense == report.total_before
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in model.parameters()}
    nplex.save(model, tmp_path / "model.safetensors")
    again = copy.deepcopy(dense)
    nplex.load(tmp_path / "model.safetensors", again)
    x = torch.randn(5, 64)
    before = model[:3](x)
    assert torch.equal(again[:3](x), before)
    nplex.fold_(model)
    assert type(model[0]) is nn.Linear
    torch.testing.assert_close(model[:3](x), before)


@pytest.mark.parametrize(
    "text", ["low-rank:", "low-rank:0", "low-rank:1.5", "low-rank:-3", "low-rank:half", "low-rank:.0"]
)
def test_other_low_ranks_are_refused(text):
    with pytest.raises(ValueError, match="low-rank needs a rank, as low-rank:128"):
        nplex.convert_(nn.Sequential(nn.Linear(64, 64)), text)


@pytest.mark.parametrize("text", ["low-rank:65", "low-rank:64"])
def test_a_rank_that_saves_nothing_skips_the_layer(text):
    with pytest.raises(ValueError, match="nothing to convert"):
        nplex.convert_(nn.Sequential(nn.Linear(64, 64)), text)


def test_a_preview_says_which_structure_is_nearer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 32))
    before = copy.deepcopy(model.state_dict())
    x = [correlated(300, 64)]
    report = nplex.preview(model, 2, calibration=x)
    [half] = nplex.preview(model, {"0": f"low-rank:{report.rows[0].low_rank}"}, calibration=x).rows[:1]
    assert half.output_error == pytest.approx(report.rows[0].low_rank_error, rel=1e-4)
    assert 'low rank of the same size (rule="low-rank:...") is nearer in' in str(report)
    assert not report.done
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


def test_compress_keeps_the_share(unchecked):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))
    report = nplex.compress_(model, keep=0.25, calibration=[torch.randn(400, 64)])
    changed = [row for row in report.rows if row.changes]
    assert len(changed) == 2
    assert report.total_after <= 0.25 * report.total_before + 192
    tiny = nplex.compress_(nn.Sequential(nn.Linear(64, 128)), keep=1e-9, calibration=[torch.randn(4, 64)])
    assert tiny.rows[0].now_parameters == 64 + 128 + 128
    for keep in (0, 1, -1, True, "half"):
        with pytest.raises(ValueError, match="keep is the share"):
            nplex.compress_(nn.Sequential(nn.Linear(64, 128)), keep=keep, calibration=[torch.randn(4, 64)])


# Calibration


class Attending(nn.Module):
    """Takes what a tokenizer gives; a part of it never runs."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 32)
        self.q, self.k, self.out = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)
        self.never = nn.Linear(32, 32)
        self.norm, self.drop = nn.BatchNorm1d(32), nn.Dropout(0.5)

    def forward(self, input_ids, attention_mask=None):
        x = self.drop(self.embed(input_ids))
        return self.out(self.norm((self.q(x) * self.k(x)).mT).mT)


def tokens(count=40, length=12):
    ids = torch.randint(20, (count, length))
    mask = (torch.arange(length) < torch.randint(3, length, (count, 1))).long()
    return {"input_ids": ids, "attention_mask": mask}


def test_layers_of_one_input_share_moments_and_padding_is_left_out():
    torch.manual_seed(0)
    model, batches = Attending().eval(), [tokens(), tokens()]
    found = observe(model, {name: getattr(model, name) for name in ("q", "k", "out", "never")}, batches)
    assert set(found) == {"q", "k", "out"}
    assert found["q"]["weight"][0] is found["k"]["weight"][0]
    assert found["q"]["weight"][0] is not found["out"]["weight"][0]
    real = [model.embed(batch["input_ids"])[batch["attention_mask"].bool()] for batch in batches]
    assert found["q"]["weight"][0].count == sum(map(len, real))
    torch.testing.assert_close(found["q"]["weight"][0].mean.float(), torch.cat(real).mean(0))


def test_the_mask_of_an_encoder_is_not_taken_for_the_decoders():
    torch.manual_seed(0)
    model, batch = Attending().eval(), tokens()
    model.config = SimpleNamespace(is_encoder_decoder=True)
    found = observe(model, {"q": model.q}, [batch])
    assert found["q"]["weight"][0].count == batch["input_ids"].numel()


class Again(nn.Module):
    """Layers that get one input together at some calls and others alone at others, in a given order."""

    def __init__(self, calls):
        super().__init__()
        self.a, self.b, self.c, self.calls = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), calls

    def forward(self, *inputs):
        return [getattr(self, name)(inputs[number]) for name, number in self.calls]


@pytest.mark.parametrize(
    "calls", ["a0 a1 b0", "a0 b0 a1", "a0 b0 c0 a1 b2 c2", "a0 b0 a1 b1 c1", "a1 b0 a0 c0", "a0 b0 c0 b1 c1 a2"]
)
def test_layers_of_some_inputs_in_common_keep_their_own_moments(calls):
    torch.manual_seed(0)
    calls = [(call[0], int(call[1])) for call in calls.split()]
    model, batches = Again(calls), [[torch.randn(4, 8) + i for i in range(3)] for _ in range(3)]
    names = sorted({name for name, _ in calls})
    found = observe(model, {name: getattr(model, name) for name in names}, batches)
    for name in names:
        own = [batch[number] for batch in batches for at, number in calls if at == name]
        moments = found[name]["weight"][0]
        assert moments.count == 4 * len(own)
        torch.testing.assert_close(moments.mean.float(), torch.cat(own).mean(0))
        scatter = torch.cat(own).double().mT.cov(correction=0)
        torch.testing.assert_close(moments.scatter / moments.count, scatter)


def test_batches_and_calls_of_inference_mode_give_the_same_moments():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 8))
    layers, x = {"0": model[0], "2": model[2]}, torch.randn(20, 8)
    expected = observe(model, layers, [x])
    with torch.inference_mode():
        within = observe(model, layers, [x])
        batch = x.clone()
    for found in (within, observe(model, layers, [batch])):
        for name in layers:
            assert torch.equal(found[name]["weight"][0].scatter, expected[name]["weight"][0].scatter)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_as_before(training):
    torch.manual_seed(0)
    model = Attending().train(training)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    observe(model, {"q": model.q}, [tokens() for _ in range(2)])
    torch.manual_seed(5)
    state = torch.get_rng_state()
    observe(model, {"q": model.q}, [tokens_of_numbers(model)])
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert not any(m._forward_hooks for m in model.modules())
    assert model.training == training
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("rule", [2, "low-rank:0.5"])
def test_conversion_in_inference_mode_gives_a_model_to_train(rule):
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), torch.randn(40, 8)
    with torch.inference_mode():
        nplex.preview(model, rule, calibration=[x])
        nplex.convert_(model, rule, weights="nearest", calibration=[x])
        made = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    nplex.convert_(made, rule, weights="nearest", calibration=[x])
    for each in (model, made):
        each(x).sum().backward()
        assert all(p.grad is not None for p in each.parameters())


def tokens_of_numbers(model):
    return {"input_ids": torch.arange(40).reshape(4, 10) % 20}


def test_the_report_names_what_is_not_calibrated_and_where_tokens_are_few():
    torch.manual_seed(0)
    report = nplex.convert_(Attending().eval(), 2, weights="nearest", calibration=[tokens(2, 4)])
    rows = {row.name: row for row in report.rows}
    assert rows["never"].note == "not calibrated: nearest weights"
    assert rows["never"].output_error is None
    assert rows["never"].error > 0
    assert rows["q"].note.startswith("few tokens: ")
    assert "not calibrated, with the nearest weights instead: never" in str(report)
    assert "too little calibration for 3 layers, q first: give more batches" in str(report)


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)
        self.lstm = nn.LSTM(16, 16, batch_first=True)

    def forward(self, x, mask=None):
        return self.lstm(self.layers(x, src_key_padding_mask=mask))[0]


def test_torchs_transformer_is_calibrated_in_eval_mode_with_padding():
    torch.manual_seed(0)
    model = Stack().eval()
    x, mask = correlated(300, 16).reshape(30, 10, 16), torch.zeros(30, 10, dtype=torch.bool)
    mask[::2, 6:] = True
    dense = copy.deepcopy(model)
    report = nplex.convert_(model, 2, weights="nearest", calibration=[(x, mask)])
    assert sum(row.output_error is not None for row in report.rows) == 6
    assert "not calibrated, with the nearest weights instead: lstm" in str(report)
    plain = copy.deepcopy(dense)
    nplex.convert_(plain, 2, weights="nearest")
    wrong, other = ((m.layers(x) - dense.layers(x)).norm() for m in (model, plain))
    assert wrong < other


BAD = {
    "empty": ([], ValueError, "calibration has no batches"),
    "spent": (iter(()), ValueError, "calibration has no batches"),
    "a tensor": (torch.ones(3, 64), TypeError, "got one Tensor, put it in a list"),
    "a mapping": ({"x": torch.ones(3, 64)}, TypeError, "got one dict, put it in a list"),
    "a text": ("some text", TypeError, "got one str"),
    "texts": (["some text"], TypeError, "batch 1 is a str"),
    "numbers": ([3], TypeError, "batch 1 is a int"),
    "a number": (3, TypeError, "got one int"),
    "other width": ([torch.ones(3, 64), torch.ones(3, 60)], ValueError, "does not take batch 2 of the calibration"),
    "other names": ([{"y": torch.ones(3, 64)}], ValueError, "does not take batch 1"),
    "too many": ([(torch.ones(3, 64), torch.ones(3))], ValueError, "does not take batch 1"),
    "other device": ([torch.ones(3, 64, device="meta")], ValueError, "batch is on meta, the model on cpu"),
    "nan": ([torch.full((3, 64), torch.nan)], ValueError, "the input of 0 is not finite"),
    "inf": ([torch.ones(3, 64), torch.full((3, 64), torch.inf)], ValueError, "the input of 0 is not finite"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("rule", [2, "low-rank:0.5"])
def test_bad_calibration_is_one_clear_error_and_changes_nothing(name, rule, unchecked):
    batches, kind, message = BAD[name]
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Linear(64, 64))
    layers, before = list(model), copy.deepcopy(model.state_dict())
    for call in (
        lambda: nplex.convert_(model, rule, weights="nearest", calibration=batches),
        lambda: nplex.preview(model, rule, calibration=batches),
        lambda: nplex.compress_(model, calibration=batches),
    ):
        with pytest.raises(kind, match=message):
            call()
        assert list(model) == layers
        assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
        assert not any(m._forward_hooks for m in model.modules())


def test_calibration_is_for_the_nearest_weights_and_for_models_with_numbers():
    model = nn.Sequential(nn.Linear(64, 64))
    with pytest.raises(ValueError, match='calibration is for weights="nearest"'):
        nplex.convert_(model, 2, calibration=[torch.ones(3, 64)])
    with pytest.raises(ValueError, match="on the meta device: load its weights first"):
        nplex.convert_(model.to("meta"), 2, weights="nearest", calibration=[torch.ones(3, 64)])


def test_weights_that_are_not_finite_are_skipped_by_name():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    with torch.no_grad():
        model[1].weight[3, 4] = torch.nan
    report = nplex.convert_(model, 2, weights="nearest", calibration=[torch.randn(99, 64)])
    assert report.rows[1].reason == "its weight is not finite, so that nothing is near to it"


def test_inputs_that_are_always_the_same_and_weights_of_zeros_do_no_harm():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    nn.init.zeros_(model[1].weight)
    for rule in (2, 4, "low-rank:0.5"):
        new = copy.deepcopy(model)
        nplex.convert_(new, rule, weights="nearest", calibration=[torch.ones(10, 64)])
        torch.testing.assert_close(new(torch.ones(1, 64)), model(torch.ones(1, 64)), rtol=1e-3, atol=1e-3)
        assert all(p.isfinite().all() for p in new.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_models_keep_their_type(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64)).to(dtype)
    x = correlated(500, 64).to(dtype)
    for rule in (2, "low-rank:0.5"):
        new = copy.deepcopy(model)
        report = nplex.convert_(new, rule, weights="nearest", calibration=[x])
        assert {p.dtype for p in new.parameters()} == {dtype}
        wrong = (new(x) - model(x)).float()
        assert wrong.norm() / model(x).float().norm() < report.output_error + 0.05


def test_transformers_conv1d_is_calibrated():
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    torch.manual_seed(0)
    model = nn.Sequential(pytorch_utils.Conv1D(96, 64))
    nn.init.normal_(model[0].bias)
    x = correlated(500, 64)
    for rule in (2, "low-rank:0.5"):
        new, plain = copy.deepcopy(model), copy.deepcopy(model)
        nplex.convert_(new, rule, weights="nearest", calibration=[x])
        nplex.convert_(plain, rule, weights="nearest")
        assert (new(x) - model(x)).norm() < (plain(x) - model(x)).norm()
        y = new(x)
        nplex.fold_(new)
        assert type(new[0]) is pytorch_utils.Conv1D
        torch.testing.assert_close(new(x), y)
