import copy
import pickle

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from nplex.algebra import Algebra, as_table, complex_, find, octonion, quaternion
from nplex.nn import FixedRule, LearnedRule, Linear, as_rule, missing_rules, share
from nplex.nn.sharing import Ownership


class Pair(nn.Module):
    """Two layers with one rule, held at the base."""

    def __init__(self, rank=None, **kw):
        super().__init__()
        rule = share(self, LearnedRule(4, rank, **kw))
        self.up, self.down = Linear(8, 16, rule=rule, **kw), Linear(16, 8, rule=rule, **kw)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


def tied(model):
    return model.up.rule is model.rule and model.down.rule is model.rule


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
def test_a_full_rule_starts_with_orthogonal_faces(n):
    table = LearnedRule(n, dtype=torch.float64)()
    eye = torch.eye(n, dtype=torch.float64).expand(n, n, n)
    torch.testing.assert_close(table @ table.mT, n * eye)


@pytest.mark.filterwarnings("ignore:rank = . is below n")
@pytest.mark.parametrize(("n", "rank"), [(2, 1), (2, 3), (4, 4), (4, 7), (8, 24), (5, 3)])
def test_factors_start_with_faces_of_norm_n(n, rank):
    assert LearnedRule(n, rank)().table().flatten(1).norm(dim=1).tolist() == pytest.approx([n] * n, rel=1e-5)


@pytest.mark.parametrize(("n", "rank"), [(4, 1), (4, 3), (3, 2), (8, 5)])
def test_a_rank_that_bounds_the_weights_warns(n, rank):
    with pytest.warns(UserWarning, match=f"rank = {rank} is below n = {n}: .* at most {rank}/{n} of its full rank"):
        narrow = LearnedRule(n, rank, dtype=torch.float64)
    for rule, expected in ((narrow, 8 * rank), (LearnedRule(n, n, dtype=torch.float64), 8 * n)):
        assert torch.linalg.matrix_rank(Linear(8 * n, 16 * n, rule=rule, dtype=torch.float64).weight) == expected


@pytest.mark.parametrize("rank", [None, 8, 9])
def test_starts_from_an_algebra(rank):
    rule = LearnedRule(4, rank, start=quaternion, dtype=torch.float64)
    torch.testing.assert_close(as_table(rule()), 2 * quaternion.table, atol=1e-9, rtol=0)
    rule = LearnedRule(4, rank, start=quaternion, norm=4.0, dtype=torch.float64)
    torch.testing.assert_close(as_table(rule()), quaternion.table, atol=1e-9, rtol=0)


def test_cannot_start_from_an_algebra_at_an_impossible_rank():
    with pytest.raises(ValueError, match="quaternion has no algorithm of 7 products to start from"):
        LearnedRule(4, 7, start=quaternion)


def test_start_must_have_the_same_n():
    with pytest.raises(ValueError, match="start must have n = 4, got complex with n = 2"):
        LearnedRule(4, start=complex_)


@pytest.mark.parametrize(
    ("n", "rank", "message"), [(0, None, "n must be"), (2, 0, "rank must be"), (True, 2, "n must")]
)
def test_impossible_sizes_are_named(n, rank, message):
    with pytest.raises(ValueError, match=message + ".*positive integer"):
        LearnedRule(n, rank)


def test_fixed_rules_have_no_parameters_and_keep_their_table():
    rule = FixedRule(octonion)
    assert list(rule.parameters()) == []
    assert torch.equal(rule().double(), octonion.table)
    assert set(rule.state_dict()) == {"table"}


def test_a_found_algorithm_makes_a_fixed_rule_bilinear():
    rule = FixedRule(octonion, algorithm=find(octonion.table, 26).algorithm)
    assert rule.rank == 26
    torch.testing.assert_close(rule().table(), octonion.table.float(), atol=1e-5, rtol=0)


def test_an_algorithm_of_another_table_is_refused():
    with pytest.raises(ValueError, match="must give the table of quaternion"):
        FixedRule(quaternion, algorithm=find(torch.randn(4, 4, 4)).algorithm)


def test_loading_another_fixed_table_is_refused():
    other = Algebra.from_table(-octonion.table, "other")
    with pytest.raises(RuntimeError, match="octonion"):
        FixedRule(octonion).load_state_dict(FixedRule(other).state_dict())


def test_as_rule():
    rule = LearnedRule(3)
    assert as_rule(rule) is rule
    assert isinstance(as_rule(quaternion), FixedRule)
    assert as_rule(5).n == 5


def test_a_given_rule_belongs_to_the_layer():
    layer = Linear(8, 8, rule=LearnedRule(4, 7))
    assert {name for name, _ in layer.named_parameters()} == {
        "components", "bias", "rule.encode_component", "rule.encode_input", "rule.decode"
    }  # fmt: skip


def test_a_rule_cannot_silently_belong_to_two_layers():
    rule = LearnedRule(4)
    Linear(8, 8, rule=rule)
    with pytest.raises(ValueError, match=r"already belongs to a layer.*share\(model, LearnedRule\(n\)\)"):
        Linear(8, 8, rule=rule)


def test_an_owned_rule_cannot_be_shared_afterwards():
    layer = Linear(8, 8, rule=4)
    with pytest.raises(ValueError, match="only a free rule can be shared, this one is owned"):
        share(nn.Module(), layer.rule)


def test_share_takes_no_name_that_is_taken():
    with pytest.raises(ValueError, match="Pair already has an attribute 'up'"):
        share(Pair(), LearnedRule(2), "up")


def test_a_shared_rule_is_registered_once():
    assert [name for name, _ in Pair().named_parameters() if "rule" in name] == ["rule.table"]
    assert len(Pair().state_dict()) == 5


@pytest.mark.parametrize("rank", [None, 7])
@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), nn.Module.double])
def test_a_shared_rule_stays_shared(how, rank):
    model = Pair(rank)
    assert tied(how(model))


def test_a_shared_rule_survives_safetensors_and_loading_by_assignment():
    model, x = Pair(), torch.randn(3, 8)
    for assign in (False, True):
        fresh = Pair(device="meta") if assign else Pair()
        fresh.load_state_dict(load(save(model.state_dict())), assign=assign)
        assert tied(fresh)
        assert torch.equal(fresh(x), model(x))


def test_a_shared_rule_survives_the_meta_device():
    model = Pair(device="meta").to_empty(device="cpu")
    for module in model.modules():
        getattr(module, "reset_parameters", lambda: None)()
    assert tied(model)
    assert model(torch.randn(3, 8)).isfinite().all()


def test_a_shared_rule_gets_the_gradients_of_all_its_layers():
    model, x = Pair(), torch.randn(3, 8)
    model(x).sum().backward()
    both = model.rule.table.grad.clone()
    model.zero_grad()
    model.down(torch.relu(model.up(x)).detach()).sum().backward()
    assert not torch.allclose(both, model.rule.table.grad)


def test_missing_rules_names_layers_that_would_lose_their_rule():
    model = Pair()
    assert missing_rules(model) == []
    assert missing_rules(nn.Sequential(model.up, model.down)) == ["0", "1"]
    assert missing_rules(model.up) == ["(the module itself)"]
    assert "rule=shared" in repr(model.up)


def test_saving_a_layer_without_its_shared_rule_warns():
    with pytest.warns(UserWarning, match="shared rule is not among these weights"):
        Pair().up.state_dict()


def test_copies_of_a_layer_go_on_sharing_the_models_rule():
    model = Pair()
    model.more = nn.ModuleList(copy.deepcopy(model.up) for _ in range(3))
    assert all(layer.rule is model.rule for layer in model.more)
    assert missing_rules(model) == []
    whole = copy.deepcopy(model)
    assert whole.rule is not model.rule
    assert all(layer.rule is whole.rule for layer in whole.more)
    assert copy.deepcopy(whole.up).rule is whole.rule


def test_a_rule_copied_alone_is_free():
    layer = Linear(8, 8, rule=4)
    assert Linear(8, 8, rule=copy.deepcopy(layer.rule)).rule.ownership is Ownership.OWNED


def test_a_layer_that_could_not_be_made_leaves_its_rule_free():
    rule = LearnedRule(4)
    with pytest.raises(RuntimeError):
        Linear(8, 8, rule=rule, device="nowhere")
    assert Linear(8, 8, rule=rule).rule is rule


def test_a_rule_of_another_type_is_refused():
    with pytest.raises(ValueError, match=r"the rule is torch\.float32 on cpu, the layer torch\.float16 on cpu"):
        Linear(8, 8, rule=LearnedRule(4), dtype=torch.float16)


def test_fixed_rules_lose_nothing_by_a_narrow_type():
    rule = FixedRule(Algebra.from_table(octonion.table / 3))
    assert torch.equal(rule.bfloat16().double()(), octonion.table / 3)


def test_a_fixed_rule_with_a_found_algorithm_loads_its_own_state():
    algorithm = find(octonion.table, 26).algorithm
    layer = Linear(16, 16, rule=FixedRule(octonion, algorithm=algorithm, dtype=torch.float64), dtype=torch.float64)
    layer.load_state_dict(layer.state_dict())
    assert layer.rule().error(octonion.table) < 1e-12


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LearnedRule(4, 17), r"rank must be at most n\^2 = 16"),
        (lambda: LearnedRule(4, start="quaternion"), "start must be an Algebra, got 'quaternion'"),
        (lambda: FixedRule(Algebra.from_table(torch.zeros(2, 2, 2))), "multiplies everything to zero"),
        (lambda: FixedRule(torch.ones(1, 1, 1)), r"FixedRule needs an Algebra.*from_table"),
        (lambda: share(nn.Sequential(), LearnedRule(2)), "calls or lists its children"),
    ],
)
def test_what_cannot_be_a_rule_is_refused(make, message, unchecked):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
