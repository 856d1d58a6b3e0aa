"""Adapters: deltas beside frozen layers, in every place that a layer may stand in, merged, switched, and on disk."""

import copy
import itertools
import json
import math
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import nplex
from nplex import adapters
from nplex.adapters.adding import adapted, parts
from nplex.adapters.delta import Delta
from nplex.algebra import quaternion
from nplex.nn import LearnedRule


def net(widths=(16, 32, 8)):
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
    return nn.Sequential(layers[0], nn.ReLU(), *layers[1:])


class Body(nn.Module):
    """A base that can hold a shared rule, and a head."""

    def __init__(self):
        super().__init__()
        self.up, self.down, self.head = nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(x + self.down(self.up(x).relu()))


def trained(model, seed=1):
    """The same model with deltas that are not zero."""
    generator = torch.Generator().manual_seed(seed)
    for _, part in parts(model):
        if isinstance(part, Delta):
            with torch.no_grad():
                part.left.copy_(torch.randn(part.left.shape, generator=generator))
    return model


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("make", [net, Body])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    ("rule", "low_rank"),
    [(4, 1), (2, 3), (3, 1), (4, 1 / 4), (6, 2 / 3), (quaternion, 2), (LearnedRule(4, rank=7), 1)],
)
def test_starts_at_exactly_zero_and_is_the_kronecker_sum(make, shared, rule, low_rank):
    model, x = make(), torch.randn(5, 16)
    before, y = state(model), model(x)
    report = adapters.add_(model, rule, low_rank=low_rank, shared=shared, scale=0.5)
    assert torch.equal(model(x), y)
    assert same(before, {name: value for name, value in model.state_dict().items() if name in before})
    numbers = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert numbers == report.parameters
    for layer in adapted(trained(model)).values():
        delta = layer.adapters["default"]
        x = torch.randn(7, layer.in_features)
        weight = layer.weight + delta.weight()
        torch.testing.assert_close(layer(x), nn.functional.linear(x, weight, layer.bias))


def test_the_weight_is_never_built():
    delta = Delta((4096, 4096), LearnedRule(4, norm=4.0), 1, 1.0, 0.0, torch.device("cpu"), torch.float32)
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        delta(torch.randn(2, 4096))
    assert counter.get_total_flops() < 2 * 2 * 4 * (4096 + 4096 + 64) + 1


def test_only_the_adapter_is_trained():
    model, x = Body(), torch.randn(8, 16)
    adapters.add_(model)
    before = state(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        model(x).square().sum().backward()
        optimizer.step()
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {
        "adapter_rules.default.table", "up.adapters.default.left", "up.adapters.default.right",
        "down.adapters.default.left", "down.adapters.default.right",
    }  # fmt: skip


def test_the_report_names_what_is_left_and_why():
    model = nn.ModuleDict({
        "up": nn.Linear(16, 16), "conv": nn.Conv1d(8, 8, 3), "heads": nn.MultiheadAttention(16, 4),
        "lm_head": nn.Linear(16, 9),
        "small": nn.Linear(2, 16), "own": type("Own", (nn.Linear,), {})(16, 16), "bag": nn.EmbeddingBag(8, 8),
        "norm": nn.LayerNorm(16), "ours": type("Ours", (nplex.nn.Linear,), {})(16, 16, rule=2),
    })  # fmt: skip
    report = adapters.add_(model, shared=False)
    reasons = {row.name: row.reason for row in report.rows}
    assert reasons == {
        "up": "",
        "conv": "not a linear layer",
        "heads": "reads the weights of its projections and does not call them, so that a delta would be skipped",
        "lm_head": "an output head by its name (lm_head); frozen too",
        "small": "n = 4 is larger than in_features = 2: take a rule with n of 2 or less",
        "own": "Own is a subclass of torch's Linear, which may do more",
        "bag": "not a linear layer",
        "ours": "Ours is a subclass of nplex's Linear, which may do more",
    }
    assert "adapter 'default' in 1 of 8 layers" in str(report)
    assert "other modules with parameters, skipped: 1 LayerNorm" in str(report)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
def test_the_fast_path_of_torchs_encoder_does_not_skip_it(masked, norm_first):
    layer = nn.TransformerEncoderLayer(16, 4, 32, 0.0, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first).eval()
    x = torch.randn(3, 5, 16)
    mask = (torch.arange(5) >= torch.tensor([5, 3, 4])[:, None]) if masked else None
    adapters.add_(model)
    trained(model)
    with torch.no_grad():
        fast = model(x, src_key_padding_mask=mask)
    slow = model.train()(x, src_key_padding_mask=mask)
    adapters.use_(model, None)
    real = torch.ones(3, 5, dtype=torch.bool) if mask is None else ~mask
    torch.testing.assert_close(fast[real], slow[real].detach(), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(model(x, src_key_padding_mask=mask)[real], slow[real], atol=1e-2)


def test_a_layer_at_two_places_has_one_delta():
    layer = nn.Linear(8, 8)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    report = adapters.add_(model, 2)
    assert [row.names for row in report.rows if row.changes] == ["0 = 2"]
    x = torch.randn(3, 8)
    y = trained(model)(x)
    weight = layer.weight + layer.adapters["default"].weight()
    torch.testing.assert_close(
        y, nn.functional.linear(nn.functional.linear(x, weight, layer.bias).relu(), weight, layer.bias)
    )


def converted():
    model = Body()
    nplex.convert_(model, 2, where=nplex.only("up"))
    return model


@pytest.mark.parametrize("make", [net, Body, converted])
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("merged", [False, True])
def test_copies_are_independent(make, copied, merged):
    model, x = make(), torch.randn(4, 16)
    adapters.add_(model)
    y = trained(model)(x)
    if merged and make is converted:
        pytest.skip("converted layers are not merged")
    if merged:
        adapters.merge_(model)
    other = copied(model)
    if merged:
        adapters.unmerge_(other)
        adapters.unmerge_(model)
    torch.testing.assert_close(other(x), y)
    assert not nplex.nn.missing_rules(other)
    trained(other, seed=2)
    for _, part in parts(other):
        for parameter in part.parameters():
            parameter.data += 1
    assert torch.equal(model(x), y)
    assert not torch.allclose(other(x), y)


@pytest.mark.parametrize("make", [net, Body])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_merge_and_unmerge_bit_by_bit(make, dtype):
    model, x = make().to(dtype), torch.randn(4, 16, dtype=dtype)
    adapters.add_(model, scale=0.3)
    y = trained(model)(x)
    before = state(model)
    names = {name for name in before if "adapter" not in name}
    adapters.merge_(model)
    assert set(model.state_dict()) == names == {name for name, _ in model.named_parameters()}
    torch.testing.assert_close(model(x), y, atol=20 * torch.finfo(dtype).eps * float(y.detach().abs().max()), rtol=0)
    assert not any(len(m._forward_hooks) for m in model.modules())
    adapters.unmerge_(model)
    assert same(before, model.state_dict())
    assert torch.equal(model(x), y)


def test_merging_for_good_leaves_a_plain_model():
    model, x = Body(), torch.randn(4, 16)
    names = set(model.state_dict())
    adapters.add_(model)
    adapters.add_(model, 2, name="second")
    y = trained(model)(x)
    adapters.merge_(model, keep=False)
    assert set(model.state_dict()) == names
    torch.testing.assert_close(model(x), y)
    with pytest.raises(ValueError, match="no adapter is merged"):
        adapters.unmerge_(model)


def test_several_are_switched_at_run_time():
    model, x = Body(), torch.randn(4, 16)
    base = model(x)
    adapters.add_(model, name="german")
    german = trained(model)(x)
    adapters.add_(model, quaternion, low_rank=2, name="french", where=nplex.only("up"))
    assert torch.equal(model(x), base)
    with torch.no_grad():
        model.up.adapters["french"].left.normal_()
    french = model(x)
    adapters.use_(model, "german")
    assert torch.equal(model(x), german)
    assert {
        name.split(".")[2] for name, p in model.named_parameters() if p.requires_grad and "adapters." in name
    } == {"german"}
    adapters.use_(model, None)
    assert torch.equal(model(x), base)
    adapters.use_(model, "french")
    assert torch.equal(model(x), french)
    adapters.remove_(model, "german")
    assert torch.equal(model(x), french)
    adapters.remove_(model)
    assert torch.equal(model(x), base)
    assert not any("adapter" in name for name in model.state_dict())


def test_a_head_stays_trained_when_a_second_one_is_added():
    model = Body()
    adapters.add_(model)
    model.head.requires_grad_(True)
    adapters.add_(model, name="second")
    assert model.head.weight.requires_grad


def test_a_whole_model_with_adapters_says_what_to_add_first(tmp_path):
    model, again, x = net(), net(), torch.randn(4, 16)
    adapters.add_(model, 2)
    nplex.save(trained(model), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="add its adapters first"):
        nplex.load(tmp_path / "model.safetensors", again)
    adapters.add_(again, 2)
    assert torch.equal(nplex.load(tmp_path / "model.safetensors", again)(x), model(x))


@pytest.mark.parametrize("make", [net, Body, converted])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("rule", [4, quaternion, LearnedRule(2, rank=3)])
def test_save_and_load(make, shared, rule, tmp_path):
    model, x = make(), torch.randn(4, 16)
    base = copy.deepcopy(model)
    adapters.add_(model, rule, shared=shared, scale=2, dropout=0.25, low_rank=1, name="german")
    if make is Body:
        model.head.requires_grad_(True)
        nn.init.normal_(model.head.weight)
    y = trained(model).eval()(x)
    adapters.save(model, tmp_path)
    assert adapters.load(base.eval(), tmp_path) == ["german"]
    assert torch.equal(base(x), y)
    assert {n: p.requires_grad for n, p in base.named_parameters()} == {
        n: p.requires_grad for n, p in model.named_parameters()
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapters.json", "adapters.safetensors"]
    assert str(base) == str(model)


def test_several_in_one_folder_and_one_under_another_name(tmp_path):
    model, x = Body(), torch.randn(4, 16)
    base = copy.deepcopy(model)
    adapters.add_(model, 2, name="a", low_rank=2)
    adapters.add_(model, 8, name="b", low_rank=1 / 8)
    y = trained(model)(x)
    adapters.save(model, tmp_path / "both")
    other = copy.deepcopy(base)
    assert adapters.load(other, tmp_path / "both") == ["a", "b"]
    assert torch.equal(other(x), y)
    adapters.save(model, tmp_path / "one", name="a")
    assert adapters.load(other, tmp_path / "one", name="c") == ["c"]
    adapters.use_(model, "a")
    assert torch.equal(other(x), model(x))
    with pytest.raises(ValueError, match="2 adapters"):
        adapters.load(base, tmp_path / "both", name="c")
    for wrong in ("a\\d", "\\g<1>", "", "x y", "items"):
        with pytest.raises(ValueError, match="cannot be the name"):
            adapters.load(base, tmp_path / "one", name=wrong)


def test_after_folding_the_same_adapter_fits_and_merges(tmp_path):
    """What the refusal to merge into converted layers advises."""
    model, x = converted(), torch.randn(4, 16)
    adapters.add_(model)
    y = trained(model)(x)
    with pytest.raises(ValueError, match=r"up cannot be merged: its weight is computed.*save the adapters, remove_"):
        adapters.merge_(model)
    assert torch.equal(model(x), y)
    adapters.save(model, tmp_path)
    adapters.remove_(model)
    nplex.fold_(model)
    adapters.load(model, tmp_path)
    adapters.merge_(model)
    torch.testing.assert_close(model(x), y)


def test_a_base_checkpoint_loads_strictly_and_so_does_one_with_adapters():
    model, other = Body(), Body()
    adapters.add_(model)
    trained(model)
    inside = {name: value for name, value in state(model).items() if "adapter" in name}
    model.load_state_dict(other.state_dict())
    assert same(inside, {name: value for name, value in model.state_dict().items() if "adapter" in name})
    assert torch.equal(model.up.weight, other.up.weight)
    adapters.add_(other)
    other.load_state_dict(state(trained(model, 3)))
    assert same(model.state_dict(), other.state_dict())
    damaged = state(model)
    del damaged["up.adapters.default.left"]
    with pytest.raises(RuntimeError, match=r"Missing key.*up.adapters.default.left"):
        other.load_state_dict(damaged)


def test_a_layer_of_the_base_that_was_trained_too_is_saved_with_the_adapter(tmp_path):
    model, x = Body(), torch.randn(4, 16)
    base, size = copy.deepcopy(model), sum(p.numel() for p in model.parameters())
    assert adapters.add_(model).base == adapters.add_(model, name="second").base == size
    model.up.requires_grad_(True)
    nn.init.normal_(model.up.weight)
    y = trained(model)(x)
    adapters.save(model, tmp_path, name="second")
    adapters.load(base, tmp_path)
    assert torch.equal(base(x), y)


COMPACTER = [
    pytest.param(True, False, id="shared rule"), pytest.param(False, False, id="own rules"),
    pytest.param(True, True, id="factors of the rule"),
]  # fmt: skip


def compacter(n, widths, r, shared, factors):
    """Tensors as Compacter's PHM layers name them, and each layer's matrix, d_in x d_out."""
    tensors, matrices = {}, {}

    def rule(at):
        left, right = torch.randn(n, n, 1), torch.randn(n, 1, n)
        if factors:
            tensors.update({f"{at}phm_rule_left": left, f"{at}phm_rule_right": right})
            return left @ right
        tensors[f"{at}phm_rule"] = left @ right + 0.0
        return left @ right

    common = rule("") if shared else None
    for at, (d_in, d_out) in widths.items():
        own = rule(f"{at}.") if common is None else common
        left, right = torch.randn(n, d_in // n, r), torch.randn(n, r, d_out // n)
        tensors |= {f"{at}.W_left": left, f"{at}.W_right": right}
        matrices[at] = sum(torch.kron(own[k], left[k] @ right[k]) for k in range(n))
    return tensors, matrices


@pytest.mark.parametrize(("shared", "factors"), COMPACTER)
def test_names_of_compacter(shared, factors, tmp_path):
    model = Body()
    tensors, matrices = compacter(4, {"up": (16, 24), "down": (24, 16)}, 2, shared, factors)
    save_file(tensors, tmp_path / "compacter.safetensors")
    adapters.load(model, tmp_path, name="old")
    for name, matrix in matrices.items():
        x = torch.randn(3, matrix.shape[0])
        layer = model.get_submodule(name)
        torch.testing.assert_close(
            layer(x) - nn.functional.linear(x, layer.weight, layer.bias), x @ matrix, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.pop("up.W_left"), "up has W_right; a delta has W_left and W_right"),
        (lambda t: t.update({"up.b": torch.ones(24)}), "up has a bias b"),
        (
            lambda t: t.update({f"adapter_{name}": value.clone() for name, value in t.items() if name[:2] == "up"}),
            "bottleneck",
        ),
        (lambda t: t.update({"odd": torch.ones(2)}), "odd is not a name of Compacter's"),
        (lambda t: t.pop("phm_rule"), "expected one shared phm_rule"),
        (
            lambda t: t.update({f"left.{name[3:]}": t.pop(name) for name in [*t] if name[:2] == "up"}),
            "'left', which is not a linear layer",
        ),
        (
            lambda t: t.update({"down.W_left": torch.ones(4, 2, 2)}),
            "down is 8 -> 16 in it, and 24 -> 16 in the model",
        ),
        (lambda t: t.update({"up.W_left": torch.full((4, 4, 2), math.nan)}), "not finite"),
    ],
)
def test_other_files_of_compacter_are_refused(change, match, tmp_path):
    model = Body()
    tensors, _ = compacter(4, {"up": (16, 24), "down": (24, 16)}, 2, True, False)
    change(tensors)
    save_file(tensors, tmp_path / "compacter.safetensors")
    before = state(model)
    with pytest.raises(ValueError, match=match):
        adapters.load(model, tmp_path)
    assert same(before, model.state_dict())
    assert all(p.requires_grad for p in model.parameters())


SCALE, DROPOUT = "scale must be a positive finite number", "dropout must be a number from 0 to below 1"
BAD = [
    ({"scale": 0.0}, SCALE), ({"scale": -1.0}, SCALE), ({"scale": math.nan}, SCALE), ({"scale": math.inf}, SCALE),
    ({"dropout": 1.0}, DROPOUT), ({"dropout": -0.1}, DROPOUT), ({"dropout": math.nan}, DROPOUT),
    ({"low_rank": 0}, "low_rank must be a positive"), ({"low_rank": 1 / 3}, "low_rank must be whole, or k/4"),
    ({"low_rank": 2.5}, "low_rank"), ({"low_rank": 99}, "low_rank = 99 is larger"),
    ({"rule": 0}, "rule must be a positive integer"), ({"rule": 99}, "n = 99 is larger than in_features = 16"),
    ({"where": nplex.only("nothing")}, "no layer of Body can be adapted"),
    ({"name": ""}, "cannot be the name"), ({"name": "a.b"}, "cannot be the name"),
    ({"name": "items"}, "cannot be the name"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "match"), BAD)
def test_what_is_impossible_is_refused_and_nothing_is_changed(options, match):
    model = Body()
    names, trainable = set(model.state_dict()), {name: p.requires_grad for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match=match):
        adapters.add_(model, **options)
    assert set(model.state_dict()) == names
    assert {name: p.requires_grad for name, p in model.named_parameters()} == trainable
    assert not any(m._forward_hooks for m in model.modules())


def test_wrong_order_of_calls(tmp_path):
    model = Body()
    for call in (
        adapters.merge_,
        adapters.remove_,
        lambda m: adapters.use_(m, "a"),
        lambda m: adapters.save(m, tmp_path),
    ):
        with pytest.raises(ValueError, match=r"Body has no adapters: nplex.adapters.add_"):
            call(model)
    with pytest.raises(ValueError, match="no adapter is merged"):
        adapters.unmerge_(model)
    adapters.add_(model, name="german")
    with pytest.raises(ValueError, match="there is an adapter 'german' already"):
        adapters.add_(model, name="german")
    for call in (adapters.use_, adapters.remove_):
        with pytest.raises(ValueError, match="unknown adapter 'french'; choose from german"):
            call(model, "french")
    adapters.save(model, tmp_path)
    with pytest.raises(ValueError, match="there is an adapter 'german' already"):
        adapters.load(model, tmp_path)
    adapters.use_(model, None)
    with pytest.raises(ValueError, match="no adapter is active"):
        adapters.merge_(model)
    adapters.use_(model, "german")
    adapters.merge_(model)
    calls = [
        adapters.merge_, adapters.add_, adapters.remove_, lambda m: adapters.use_(m, None),
        lambda m: adapters.save(m, tmp_path), lambda m: adapters.load(m, tmp_path), lambda m: nplex.convert_(m, 2),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(ValueError, match="unmerge_ it first"):
            call(model)


def test_what_happened_to_a_merged_weight_is_not_undone():
    model = Body()
    adapters.add_(model)
    trained(model)
    adapters.merge_(model)
    with torch.no_grad():
        model.up.weight += 0.01
    with pytest.raises(ValueError, match=r"up.weight was changed after the adapter was merged"):
        adapters.unmerge_(model)
    with torch.no_grad():
        model.up.weight -= 0.01
    adapters.unmerge_(model)


def test_tied_and_damaged_weights_are_not_merged():
    model = nn.ModuleDict({
        "embedding": nn.Embedding(16, 16),
        "out": nn.Linear(16, 16, bias=False),
        "up": nn.Linear(16, 16),
    })
    model["out"].weight = model["embedding"].weight
    adapters.add_(model, shared=False, where=nplex.only("out", "up"))
    before = state(trained(model))
    with pytest.raises(
        ValueError, match=r"out cannot be merged: its weight is tied \(embedding.weight = out.weight\)"
    ):
        adapters.merge_(model)
    assert same(before, model.state_dict())
    other = Body()
    adapters.add_(other)
    with torch.no_grad():
        other.down.adapters["default"].right[0] = math.nan
        other.down.adapters["default"].left += 1
    before = state(other)
    with pytest.raises(
        ValueError, match="down cannot be merged: weight and delta 'default' have a sum that is not finite"
    ):
        adapters.merge_(other)
    assert set(before) == set(other.state_dict())


def test_a_folder_of_another_base_size_or_state_is_refused(tmp_path):
    model = Body()
    base = copy.deepcopy(model)
    adapters.add_(model)
    adapters.save(trained(model), tmp_path)
    with pytest.raises(ValueError, match="weights of the base are others"):
        adapters.load(Body(), tmp_path)
    assert adapters.load(Body(), tmp_path, same_base=False) == ["default"]
    with pytest.raises(ValueError, match="'up', which is not a linear layer of this model"):
        adapters.load(net(), tmp_path)
    wide = Body()
    wide.up = nn.Linear(16, 48)
    with pytest.raises(ValueError, match="up is 16 -> 24 in it, and 16 -> 48 in the model"):
        adapters.load(wide, tmp_path)
    with pytest.raises(ValueError, match="meta device"):
        adapters.load(copy.deepcopy(base).to("meta"), tmp_path)
    with pytest.raises(FileNotFoundError):
        adapters.load(base, tmp_path / "nowhere")
    adapters.load(copy.deepcopy(base).bfloat16(), tmp_path)
    text = (tmp_path / "adapters.json").read_text()
    for old, new, match in (
        ('"format": 1', '"format": 2', "has format 2"), ('"scale": 1.0', '"scale": 2.0', "not of one save"),
        ("{", "[", "damaged"), ('"adapters"', '"adapter"', "damaged"),
    ):  # fmt: skip
        (tmp_path / "adapters.json").write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=match):
            adapters.load(base, tmp_path)
    with torch.no_grad():
        model.up.adapters["default"].left[0] = math.nan
    with pytest.raises(ValueError, match=r"default/up.left has numbers that are not finite"):
        adapters.save(model, tmp_path)
    assert all(p.requires_grad for p in base.parameters())
    json.loads(text)


class Reads(Body):
    def forward(self, x):
        return self.head(x + self.down(nn.functional.linear(x, self.up.weight, self.up.bias)))


def test_check_finds_a_forward_that_reads_a_weight_and_skips_the_delta():
    model, x = Reads(), torch.randn(4, 16)
    adapters.add_(model, name="resting")
    adapters.add_(model)
    report = nplex.check(model, x)
    assert [row.name for row in report.rows if row.problem] == ["up.adapters.default"]
    assert nplex.check(adapted_body(), x)


def adapted_body():
    model = Body()
    adapters.add_(model)
    return model


def test_attention_of_nplex_gets_a_delta_at_its_output():
    model = nn.ModuleDict({"attention": nplex.nn.MultiheadAttention(16, 4, batch_first=True, rule=2)})
    report = adapters.add_(model, shared=False)
    assert [row.name for row in report.rows if row.changes] == ["attention.out_proj"]
    x = torch.randn(2, 3, 16)
    y, _ = model["attention"](x, x, x)
    trained(model)
    assert not torch.allclose(model["attention"](x, x, x)[0], y)


def test_offloaded_layers():
    from accelerate import cpu_offload

    model, x = Body(), torch.randn(4, 16)
    y = model(x)
    cpu_offload(model, torch.device("cpu"))
    adapters.add_(model)
    assert torch.equal(model(x), y)
    assert not torch.allclose(trained(model)(x), y)


PROGRAM = Path(__file__).parent / "programs" / "adapted.py"


@pytest.mark.parametrize(
    "case", ["compiled", "transformed", "distributed", "accelerated", "trainer", "families", "peft"]
)
def test_in_a_process_of_its_own(case):
    done = subprocess.run([sys.executable, PROGRAM, case], capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    if done.stdout.startswith("skipped"):
        pytest.skip(done.stdout)


def test_models_that_are_not_initialised_yet_are_refused():
    with pytest.raises(ValueError, match=r"1.weight is not initialised yet: run one batch first"):
        adapters.add_(nn.Sequential(nn.Linear(8, 8), nn.LazyLinear(8)))


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrapped_models_are_refused(wrap):
    with pytest.raises(ValueError, match="is wrapped"):
        adapters.add_(wrap(Body()))


def test_conversion_and_folding_know_adapters(tmp_path):
    model = Body()
    adapters.add_(model)
    for call in (lambda m: nplex.convert_(m, 2), lambda m: nplex.preview(m, 2)):
        with pytest.raises(
            ValueError, match=r"up.adapters has adapters \(Deltas\); merge them first \(nplex.adapters.merge_"
        ):
            call(model)
    adapters.merge_(model, keep=False)
    nplex.convert_(model, 2)
    adapters.add_(model)
    assert {row.name: row.changes for row in adapters.add_(model, name="b").rows} == {
        "up": True,
        "down": True,
        "head": False,
    }


def test_autocast_and_sixteen_bits():
    model, x = Body(), torch.randn(4, 16)
    adapters.add_(model)
    y = trained(model)(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == torch.bfloat16
        torch.testing.assert_close(model(x).float(), y, atol=0.3, rtol=0.1)
    half = Body().bfloat16()
    adapters.add_(half)
    assert {p.dtype for p in half.parameters() if p.requires_grad} == {torch.float32}
    assert half(x.bfloat16()).dtype == torch.bfloat16


def test_dropout_is_on_in_training_alone():
    model, x = Body(), torch.randn(4, 16)
    adapters.add_(model, dropout=0.5)
    trained(model)
    assert not torch.equal(model(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    from torch.utils.checkpoint import checkpoint

    model, x = Body(), torch.randn(4, 16, requires_grad=True)
    adapters.add_(model)
    trained(model)(x).sum().backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    checkpoint(model, x, use_reentrant=reentrant).sum().backward()
    assert same(plain, {name: p.grad for name, p in model.named_parameters() if p.requires_grad})


def test_they_are_counted_and_get_rates():
    model = Body()
    report = adapters.add_(model)
    assert nplex.count(model).trainable == report.parameters
    groups = nplex.optim.param_groups(model, lr=1e-3)
    assert sum(p.numel() for group in groups for p in group["params"]) == report.parameters


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors(layout):
    layer = nn.Sequential(nn.Linear(8, 8))
    adapters.add_(layer, 2)
    trained(layer)
    rows = [torch.randn(3, 8), torch.randn(5, 8)]
    nested = torch.nested.nested_tensor(rows, layout=layout)
    for part, row in zip(layer(nested).unbind(), rows, strict=True):
        torch.testing.assert_close(part, layer(row))


@pytest.mark.filterwarnings("ignore")
def test_quantized_layers():
    model, x = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)), torch.randn(4, 16)
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear})
    y = quantized(x)
    adapters.add_(quantized)
    assert torch.equal(quantized(x), y)
    trained(quantized)(x).sum().backward()
    assert quantized[0].adapters["default"].left.grad is not None
    with pytest.raises(ValueError, match="0 cannot be merged: its weight is quantized"):
        adapters.merge_(quantized)
