import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import nplex
from nplex.algebra import complex_, cyclic, dual, octonion, quaternion
from nplex.convert import FactorReport, FactorRow
from nplex.nn import FixedRule, LearnedRule, Linear, Rule, missing_rules, share
from nplex.nn.sharing import Ownership

ROUNDED = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 1e-2, torch.bfloat16: 5e-2}


class Net(nn.Module):
    """Two layers with a rule of their own or a shared one, and a torch layer."""

    def __init__(self, rule=2, shared=False, **kw):
        super().__init__()
        rule = (lambda n=rule: LearnedRule(n, **kw)) if isinstance(rule, int) else rule
        common = share(self, rule()) if shared else None
        self.up, self.down = Linear(8, 16, rule=common or rule(), **kw), Linear(16, 8, rule=common or rule(), **kw)
        self.head = nn.Linear(8, 2, **kw)

    def forward(self, x):
        return self.head(torch.tanh(self.down(torch.tanh(self.up(x)))))


def trained(model, steps=3, optimizer=None):
    """A few steps, so that tables are no longer orthogonal; the model and its optimizer."""
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def loss_of(model):
    parameter = next(model.parameters())
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(32, 8, generator=generator).to(parameter.dtype)
    y = torch.randn(32, 2, generator=generator).to(parameter.dtype)
    return (model(x) - y).square().mean()


def relative(new, old):
    return float((new.double() - old.double()).norm() / old.double().norm())


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}, list(model.modules())


def unchanged(model, before):
    state, modules = model.state_dict(), list(model.modules())
    bits = all(torch.equal(state[name], before[0][name]) for name in before[0])
    return state.keys() == before[0].keys() and bits and modules == before[1]


@pytest.mark.parametrize("n", [2, 3, 4, 8])
def test_outputs_stay_and_the_arithmetic_falls(n):
    model, _ = trained(Net(n))
    x = torch.randn(5, 8)
    before = model(x).detach()
    report = nplex.factorize_(model)
    assert relative(model(x).detach(), before) < 2e-6
    assert [row.before for row in report.rows] == [None, None]
    for row, layer in zip(report.rows, (model.up, model.down), strict=True):
        assert row.changes
        assert layer.rule.rank == row.after == row.share * n**2 < n**2
        assert layer.rule.ownership is Ownership.OWNED
        assert row.error < 1e-6
        assert row.growth <= 20
        assert row.seconds > 0


@pytest.mark.parametrize("dtype", ROUNDED)
def test_every_type_to_its_own_rounding(dtype):
    layer = Linear(16, 16, rule=4, dtype=dtype)
    table = layer.rule.table.detach().clone()
    row = nplex.factorize_(layer).rows[0]
    assert {p.dtype for p in layer.parameters()} == {dtype}
    assert row.after == 7
    assert row.error == pytest.approx(layer.rule().error(table))
    assert row.error < ROUNDED[dtype]
    x = torch.randn(3, 16, dtype=dtype)
    assert relative(layer(x).detach(), x.double() @ layer.weight.detach().double().mT + layer.bias.detach()) < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_rounded_table_still_has_its_rank(dtype):
    layer = Linear(16, 16, rule=LearnedRule(4, 4, dtype=dtype), dtype=dtype)
    nplex.unfactorize_(layer)
    assert nplex.factorize_(layer).rows[0].after == 4


def test_a_step_afterwards_trains_the_factors():
    model, optimizer = trained(Net())
    nplex.factorize_(model, optimizer=optimizer)
    before, loss = snapshot(model)[0], loss_of(model).item()
    trained(model, 10, optimizer)
    assert loss_of(model).item() < loss
    after = model.state_dict()
    assert all(not torch.equal(after[name], before[name]) for name in before if "rule" in name)
    assert sum("rule" in name for name in before) == 6


def test_the_optimizer_keeps_groups_order_and_all_other_state():
    model, _ = trained(Net(), 0)
    groups = [
        {"params": [*model.up.parameters()], "lr": 0.01, "weight_decay": 0.1},
        {"params": [*model.down.parameters(), *model.head.parameters()], "lr": 0.02},
    ]
    _, optimizer = trained(model, 3, torch.optim.Adam(groups))
    tables = [model.up.rule.table, model.down.rule.table]
    state = {p: copy.deepcopy(s) for p, s in optimizer.state.items() if not any(p is t for t in tables)}
    settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    report = nplex.factorize_(model, optimizer=optimizer)
    assert report.optimizer == "optimizer: 2 of 2 rules replaced in their groups, with fresh state"
    lists = [[*model.up.parameters()], [*model.down.parameters(), *model.head.parameters()]]
    for group, expected in zip(optimizer.param_groups, lists, strict=True):
        assert [id(p) for p in group["params"]] == [id(p) for p in expected]
    assert [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups] == settings
    assert set(map(id, optimizer.state)) == set(map(id, state))
    for p, kept in state.items():
        assert all(torch.equal(optimizer.state[p][key], kept[key]) for key in kept)
    trained(model, 1, optimizer)
    assert len(optimizer.state) == len([*model.parameters()])
    nplex.unfactorize_(model, optimizer=optimizer)
    assert optimizer.param_groups[0]["params"][-1] is model.up.rule.table
    trained(model, 1, optimizer)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.NAdam])
def test_named_parameters_keep_their_names(kind):
    model = Net()
    _, optimizer = trained(model, 2, kind(model.named_parameters(), lr=0.01))
    nplex.factorize_(model, optimizer=optimizer)
    group = optimizer.param_groups[0]
    assert dict(zip(group["param_names"], map(id, group["params"]), strict=True)) == {
        name: id(p) for name, p in model.named_parameters()
    }
    trained(model, 2, optimizer)
    optimizer.load_state_dict(optimizer.state_dict())


def test_a_table_that_the_optimizer_does_not_have_stays_out_of_it():
    model = Net()
    optimizer = torch.optim.SGD([*model.up.parameters(), *model.head.parameters()], lr=0.1)
    report = nplex.factorize_(model, optimizer=optimizer)
    told = "optimizer: 1 of 2 rules replaced in their groups, with fresh state; not in it and left out: down.rule"
    assert report.optimizer == told
    held = {id(p) for p in optimizer.param_groups[0]["params"]}
    assert all(id(p) in held for p in model.up.rule.parameters())
    assert not any(id(p) in held for p in model.down.rule.parameters())


def test_without_the_optimizer_rules_in_training_bring_a_warning():
    model = Net()
    loss_of(model).backward()
    with pytest.warns(UserWarning, match="an optimizer made before does not know.*optimizer=optimizer"):
        report = nplex.factorize_(model)
    assert "none was given" in report.optimizer
    loss_of(model).backward()
    with pytest.warns(UserWarning, match="an optimizer made before"):
        nplex.unfactorize_(model)


def test_the_warning_comes_before_the_change():
    model = Net()
    loss_of(model).backward()
    before = snapshot(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning):
            nplex.factorize_(model)
    assert unchanged(model, before)


def test_frozen_rules_and_fresh_models_bring_no_warning():
    model = Net()
    model.up.rule.requires_grad_(False)
    model.eval()
    model.down.rule.train()
    nplex.factorize_(model)
    assert not any(p.requires_grad for p in model.up.rule.parameters())
    assert all(p.requires_grad for p in model.down.rule.parameters())
    assert (model.up.rule.training, model.down.rule.training) == (False, True)


def test_a_shared_rule_is_factorized_once_and_stays_shared():
    model, _ = trained(Net(shared=True))
    x, names = torch.randn(3, 8), list(dict(model.named_children()))
    before = model(x).detach()
    report = nplex.factorize_(model)
    assert [(row.name, row.layers) for row in report.rows] == [("rule", ("up", "down"))]
    assert model.up.rule is model.down.rule is model.rule
    assert "rule" not in model.up._modules
    assert list(dict(model.named_children())) == names
    assert missing_rules(model) == []
    assert relative(model(x).detach(), before) < 2e-6
    whole = copy.deepcopy(model)
    assert whole.up.rule is whole.rule is not model.rule
    more = copy.deepcopy(model.up)
    assert more.rule is model.rule
    nplex.unfactorize_(model)
    assert model.up.rule is model.down.rule is model.rule
    assert model.rule.rank is None


def test_a_part_whose_rule_is_registered_outside_is_refused():
    model = Net(shared=True)
    model.part = nn.Sequential(model.up, Linear(16, 8, rule=4))
    before = snapshot(model)
    for part, name in ((model.part, "0"), (model.up, "the model")):
        for change in (nplex.factorize_, nplex.unfactorize_):
            with pytest.raises(ValueError, match=f"^{name}: rule registered outside.*give the whole model"):
                change(part)
    assert unchanged(model, before)


def test_state_goes_into_a_freshly_built_model():
    model, _ = trained(Net())
    nplex.factorize_(model, rank=3)
    fresh = Net(lambda: LearnedRule(2, rank=3))
    fresh.load_state_dict(model.state_dict())
    x = torch.randn(3, 8)
    assert torch.equal(fresh(x), model(x))
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    assert list(model.state_dict()) == list(fresh.state_dict())


@pytest.mark.parametrize("rule", [cyclic(5), cyclic(3)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_fixed_rules_held_as_tables_get_an_algorithm(rule, dtype):
    layer = Linear(15, 15, rule=FixedRule(rule, dtype=dtype), dtype=dtype)
    x = torch.randn(3, 15, dtype=dtype)
    before = layer(x).detach()
    report = nplex.factorize_(layer)
    assert report.optimizer == ""
    assert layer.rule.rank == report.rows[0].after < rule.n**2
    assert layer.rule.algebra is rule
    assert relative(layer(x).detach(), before) < {torch.float64: 1e-12, torch.float32: 2e-6}[dtype]
    assert layer.double().rule().error(rule.table) < 1e-9
    layer.load_state_dict(layer.state_dict())


def test_octonions_at_a_given_rank():
    layer = Linear(16, 16, rule=octonion, dtype=torch.bfloat16)
    row = nplex.factorize_(layer, rank=30).rows[0]
    assert layer.rule.rank == row.after == 30
    assert row.error < 5e-2
    assert layer.double().rule().error(octonion.table) < 1e-9


def test_equal_tables_are_searched_once_and_share_nothing():
    layer = Linear(8, 8, rule=2, dtype=torch.float64)
    model = nn.Sequential(*(copy.deepcopy(layer) for _ in range(3)))
    report = nplex.factorize_(model)
    assert [row.seconds > 0 for row in report.rows] == [True, False, False]
    assert len({p.data_ptr() for m in model for p in m.rule.parameters()}) == 9


def test_rules_held_as_factors_are_left_alone():
    model = nn.Sequential(Linear(8, 8, rule=LearnedRule(4, 5)), Linear(8, 8, rule=quaternion), Linear(8, 8, rule=2))
    kept = [model[0].rule, model[1].rule]
    report = nplex.factorize_(model)
    assert [row.reason for row in report.rows[:2]] == ["already held as factors"] * 2
    assert [model[0].rule, model[1].rule] == kept
    before = snapshot(model)
    assert not any(row.changes for row in nplex.factorize_(model).rows)
    assert unchanged(model, before)


def test_where_takes_a_rule_if_all_its_layers_are_taken():
    model = Net()
    model.again = model.up
    report = nplex.factorize_(model, where=nplex.only("up", "down"))
    assert report.rows[0].layers == ("up = again",)
    assert [row.reason for row in report.rows] == ["not selected by where under all names", ""]
    nplex.factorize_(model, where=nplex.only("up", "again"))
    assert model.again.rule is model.up.rule
    assert model.up.rule.rank in (2, 3)
    shared = Net(shared=True)
    with pytest.raises(ValueError, match=r"(?s)nothing to factorize in Net:.*not selected by where"):
        nplex.factorize_(shared, where=nplex.only("up"))


class Scaled(Rule):
    """A rule of another kind, which reads the table of the one in it."""

    def __init__(self):
        super().__init__(4, None, 4.0)
        self.inner = LearnedRule(4)

    def reset_parameters(self):
        """Nothing of its own."""

    def forward(self):
        return 2 * self.inner()


def test_what_cannot_be_exchanged_is_left_alone_and_told():
    model = nn.Sequential(*(Linear(8, 8, rule=2) for _ in range(6)), Linear(8, 8, rule=Scaled()))
    model[1].rule.register_forward_hook(lambda module, x, y: None)
    model[2].rule.register_buffer("mask", torch.ones(2))
    model[3].rule.table.register_hook(lambda g: g)
    model[4].rule.table = model[5].rule.table
    report = nplex.factorize_(model)
    reasons = {row.name: row.reason for row in report.rows}
    lost = "has hooks, or holds more than its numbers, which would be lost"
    tied, other = "its table is tied to {}.rule.table", "is a rule of its own kind, or a part of one"
    assert reasons == {
        "0.rule": "", "1.rule": lost, "2.rule": lost, "3.rule": lost, "4.rule": tied.format(5),
            "5.rule": tied.format(4),
        "6.rule": other, "6.rule.inner": other,
    }  # fmt: skip
    model(torch.randn(2, 8)).sum().backward()


def test_a_free_rule_in_a_module_of_ones_own():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.law = LearnedRule(4)
            self.components = nn.Parameter(torch.randn(4, 2, 2))

        def forward(self, x):
            return nplex.ops.product(x, self.law(), self.components)

    model, x = nn.Sequential(Own()), torch.randn(3, 8)
    before = model(x).detach()
    row = nplex.factorize_(model).rows[0]
    assert (row.name, row.layers, model[0].law.ownership) == ("0.law", ("0",), Ownership.FREE)
    assert relative(model(x).detach(), before) < 2e-6


def test_n_of_1_saves_nothing():
    model = nn.Sequential(Linear(4, 4, rule=1), Linear(4, 4, rule=2))
    report = nplex.factorize_(model)
    assert report.rows[0].reason == "no fewer than n^2 products were found"
    assert model[0].rule.rank is None


def spoiled(value):
    model = Net()
    with torch.no_grad():
        model.down.rule.table.mul_(value)
    return model


def parametrized():
    model = Net()
    nn.utils.parametrizations.weight_norm(model.down.rule, "table")
    return model


def pruned():
    model = Net()
    prune.l1_unstructured(model.down.rule, "table", 0.1)
    return model


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (Net, {"rank": 1}, r"up\.rule: expected a relative error of 1\.0e-05 or less, got .* with 1 products.*seed"),
        (Net, {"tolerance": 1e-9}, r"up\.rule: expected a relative error of 1\.0e-09.*nothing was changed"),
        (Net, {"rank": 17}, r"up\.rule: rank must be at most n\^2 = 4, got 17"),
        (Net, {"rank": 0}, "rank must be a positive integer, got 0"),
        (lambda: spoiled(0), {}, r"down\.rule must not be all zeros"),
        (lambda: spoiled(float("nan")), {}, r"down\.rule must be finite, got NaN"),
        (lambda: Net(device="meta"), {}, r"up\.rule is torch\.float32 on meta; load it"),
        (parametrized, {}, r"down\.rule: its table is parametrized or pruned; make that permanent"),
        (pruned, {}, r"down\.rule: its table is parametrized or pruned"),
        (lambda: nn.Sequential(nn.Linear(8, 8)), {}, r"nothing to factorize in Sequential: it has no rule; see"),
        (lambda: LearnedRule(4), {}, "the model is itself a rule"),
        (lambda: torch.compile(Net()), {}, r"the model is wrapped \(OptimizedModule\)"),
    ],
)  # fmt: skip
def test_a_refusal_leaves_the_model_as_it_was(make, options, message):
    model = make()
    before = snapshot(model)
    with pytest.raises(ValueError, match="(?s)" + message):
        nplex.factorize_(model, **options)
    if not any(p.is_meta or p.isnan().any() for p in model.parameters()):
        assert unchanged(model, before)
    assert list(model.modules()) == before[1]


def test_one_bad_rule_among_good_ones_leaves_all():
    model = nn.Sequential(Linear(8, 8, rule=2), Linear(8, 8, rule=LearnedRule(2, start=dual)))
    optimizer = torch.optim.Adam(model.parameters())
    before, groups = snapshot(model), [id(p) for p in optimizer.param_groups[0]["params"]]
    with pytest.raises(ValueError, match=r"1\.rule: expected"):
        nplex.factorize_(model, rank=2, optimizer=optimizer)
    assert unchanged(model, before)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == groups


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, torch.optim.Adagrad, nn.Linear])
def test_what_cannot_exchange_parameters_is_refused(kind, unchecked):
    model = Net()
    other = nn.Linear(2, 2) if kind is nn.Linear else kind(model.parameters())
    with pytest.raises(TypeError, match=f"a {kind.__name__} cannot exchange its parameters; make a new one"):
        nplex.factorize_(model, optimizer=other)


def test_a_model_that_is_no_module_is_refused(unchecked):
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, got list"):
        nplex.factorize_([])


def test_there_and_back():
    model, optimizer = trained(Net())
    table = model.up.rule.table.detach().clone()
    nplex.factorize_(model, optimizer=optimizer)
    report = nplex.unfactorize_(model, optimizer=optimizer)
    assert relative(model.up.rule.table.detach(), table) < 1e-6
    assert [(row.after, row.share) for row in report.rows] == [(None, 1.0)] * 2
    assert report.rows[0].error < 1e-7
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in model.parameters()}
    assert list(model.state_dict()) == list(Net(2).state_dict())


def test_unfactorize_keeps_what_a_rule_starts_from_and_fixed_rules():
    model = nn.Sequential(Linear(8, 8, rule=LearnedRule(4, 8, start=quaternion)), Linear(8, 8, rule=complex_))
    report = nplex.unfactorize_(model)
    torch.testing.assert_close(model[0].rule.table.double(), 2 * quaternion.table, atol=1e-6, rtol=0)
    assert model[0].rule.start is quaternion
    assert report.rows[1].reason == "fixed: it chooses by itself how it is held"
    with pytest.raises(ValueError, match="nothing to unfactorize in Linear"):
        nplex.unfactorize_(model[1])


def test_unfactorize_refuses_the_bilinear_method_and_factors_in_several_groups():
    model = nn.Sequential(Linear(8, 8, rule=LearnedRule(4, 7)), Linear(8, 8, rule=LearnedRule(4, 7)))
    model[1].method = "bilinear"
    before = snapshot(model)
    with pytest.raises(ValueError, match=r'a layer with 1\.rule has method="bilinear".*"auto" first'):
        nplex.unfactorize_(model)
    assert unchanged(model, before)
    model[1].method = "auto"
    optimizer = torch.optim.SGD([{"params": [p]} for p in model.parameters()], lr=0.1)
    with pytest.raises(ValueError, match=r"0\.rule is in several groups of the optimizer"):
        nplex.unfactorize_(model, optimizer=optimizer)
    assert unchanged(model, before)


def test_the_layers_method_stays():
    model = Net()
    model.up.method = "dense"
    nplex.factorize_(model)
    assert (model.up.method, model.down.method) == ("dense", "auto")
    model(torch.randn(2, 8))


def test_the_report_prints_a_table():
    rows = (
        FactorRow("a.rule", ("a",), 4, None, 7, 1.2e-7, 2.3, 0.12),
        FactorRow("rule", ("b", "c = d", "e", "f"), 4, 8, 8, reason="already held as factors"),
    )
    assert str(FactorReport(rows, "optimizer: as it was")).splitlines() == [
        "rule    layers                n  rank       of_dense    error  growth  seconds",
        "a.rule  a                     4  full -> 7      0.44  1.2e-07     2.3     0.12",
        "rule    b, c = d, e, ... (4)  4  8              0.50                            already held as factors",
        "1 of 2 rules change",
        "optimizer: as it was",
    ]
