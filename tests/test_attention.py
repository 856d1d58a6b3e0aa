import copy
import itertools
import pickle

import pytest
import torch
from cases import RULES
from safetensors.torch import load, save
from torch import nn

from nplex.algebra import quaternion
from nplex.nn import LearnedRule, Linear, MultiheadAttention, missing_rules, share
from nplex.nn.sharing import Ownership
from nplex.ops import attention as formula

NAMES = ["learned 2", "learned 3", "learned 5", "learned 4:7", "quaternion"]
F64 = {"dtype": torch.float64}
N, L, S, E, H = 2, 4, 6, 12, 3

KINDS = {
    "none": None,
    "bool": lambda *shape: torch.rand(shape) < 0.3,
    "float": lambda *shape: torch.randn(shape, **F64),
}


def mask(kind, *shape):
    """Some positions are hidden, never the first."""
    made = None if KINDS[kind] is None else KINDS[kind](*shape)
    if made is not None and kind == "bool":
        made[..., 0] = False
    return made


def make(name="learned 5", *, width=E, heads=H, **options):
    """A layer all of whose parameters are random."""
    layer = MultiheadAttention(width, heads, rule=RULES[name](**F64), **F64, **options)
    with torch.no_grad():
        for bias in (layer.in_proj_bias, layer.out_proj.bias):
            if bias is not None:
                bias.normal_()
    return layer


def inputs(kinship="none", *, batch_first=False, batched=True, kdim=E, vdim=E):
    """Query, key and value: of one tensor, key of value, query of key, or three."""

    def x(length, width):
        shape = (length, width) if not batched else (N, length, width) if batch_first else (length, N, width)
        return torch.randn(shape, **F64).requires_grad_()

    if kinship == "all":
        return (x(S, E),) * 3
    if kinship == "key is value":
        return x(L, E), *(x(S, E),) * 2
    if kinship == "query is key":
        return *(x(S, E),) * 2, x(S, E)
    return x(L, E), x(S, kdim), x(S, vdim)


def same_as_torch(layer, query, key, value, **call):
    """Outputs, weights and the gradients of the inputs equal those of the twin."""
    twin = layer.to_torch()
    unique = list({id(x): x for x in (query, key, value)}.values())
    gradient, gradients, results = None, [], []
    for module in (layer, twin):
        torch.manual_seed(3)
        y, weights = module(query, key, value, **call)
        gradient = torch.randn_like(y) if gradient is None else gradient
        loss = (y * gradient).sum() + (0 if weights is None else weights.square().sum())
        gradients.append(torch.autograd.grad(loss, unique))
        results.append((y, weights))
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(gradients[0], gradients[1])
    return results[0]


@pytest.mark.parametrize("kinship", ["all", "key is value", "query is key", "none"])
@pytest.mark.parametrize("name", NAMES)
def test_equals_torchs_layer(name, kinship):
    for batch_first, batched, need_weights in itertools.product([False, True], repeat=3):
        layer = make(name, batch_first=batch_first)
        call = inputs(kinship, batch_first=batch_first, batched=batched)
        same_as_torch(layer, *call, need_weights=need_weights)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("appended", [{}, {"add_bias_kv": True}, {"add_zero_attn": True}, "both"])
@pytest.mark.parametrize("padding", ["none", "bool", "float"])
@pytest.mark.parametrize("attn", ["none", "bool", "float"])
@pytest.mark.filterwarnings("ignore:Support for mismatched")
def test_every_mask_equals_torchs(attn, padding, appended, need_weights):
    appended = {"add_bias_kv": True, "add_zero_attn": True} if appended == "both" else appended
    for batched, dims in itertools.product([False, True], [2, 3]):
        batch_first = dims == 3
        layer = make("learned 3", batch_first=batch_first, **appended)
        call = {
            "attn_mask": mask(attn, *(() if dims == 2 else ((N if batched else 1) * H,)), L, S),
            "key_padding_mask": mask(padding, *((N,) if batched else ()), S),
            "need_weights": need_weights,
            "average_attn_weights": dims == 2,
        }
        same_as_torch(layer, *inputs(batched=batched, batch_first=batch_first), **call)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("padding", ["none", "float"])
@pytest.mark.parametrize("appended", [{}, {"add_bias_kv": True, "add_zero_attn": True}])
def test_the_causal_hint_equals_torchs(appended, padding, need_weights):
    causal = nn.Transformer.generate_square_subsequent_mask(S, dtype=torch.float64)
    layer, x = make("learned 4:7", **appended), inputs("all")
    for attn_mask in (causal, causal.isinf()) if padding == "none" else (causal,):
        call = {"attn_mask": attn_mask, "key_padding_mask": mask(padding, N, S), "need_weights": need_weights}
        hinted, weights = same_as_torch(layer, *x, is_causal=True, **call)
        assert not need_weights or not weights.triu(1)[..., :S].any()
        if not appended:
            torch.testing.assert_close(layer(*x, **call)[0], hinted)


def test_the_causal_hint_spares_the_mask():
    layer, x = make(), inputs("all")
    no_mask = torch.zeros(S, S, **F64)
    causal = nn.Transformer.generate_square_subsequent_mask(S, dtype=torch.float64)
    hinted = layer(*x, attn_mask=no_mask, is_causal=True, need_weights=False)[0]
    torch.testing.assert_close(hinted, layer(*x, attn_mask=causal, need_weights=False)[0])


@pytest.mark.parametrize(("kdim", "vdim"), [(7, None), (None, 5), (9, 16), (12, 12)])
@pytest.mark.parametrize("name", NAMES)
def test_other_widths_of_key_and_value_equal_torchs(name, kdim, vdim):
    for bias, need_weights in itertools.product([False, True], repeat=2):
        layer = make(name, kdim=kdim, vdim=vdim, bias=bias)
        same_as_torch(layer, *inputs(kdim=kdim or E, vdim=vdim or E), need_weights=need_weights)
        assert (layer.in_proj_weight is None) == (kdim != 12)
        assert (layer.k_proj_weight is None) == (kdim == 12)


def test_one_tensor_for_key_and_value_of_another_width():
    layer = make("learned 3", kdim=7, vdim=7)
    memory = torch.randn(S, N, 7, **F64, requires_grad=True)
    same_as_torch(layer, inputs()[0], memory, memory)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_a_query_that_sees_nothing_gets_what_torch_gives_it(kind, need_weights):
    layer, twin = (layer := make().eval()), layer.to_torch()
    hidden = torch.zeros(L, S, dtype=torch.bool)
    hidden[1] = True
    if kind == "float":
        hidden = torch.zeros(L, S, **F64).masked_fill(hidden, -torch.inf)
    call = {"attn_mask": hidden, "need_weights": need_weights}
    x = inputs()
    ours, theirs = layer(*x, **call), twin(*x, **call)
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    assert ours[0][1].isnan().all() == need_weights


@pytest.mark.parametrize("need_weights", [False, True])
def test_dropout_is_torchs_and_only_in_training(need_weights):
    layer, x = make("learned 2", dropout=0.4), inputs()
    y, weights = same_as_torch(layer, *x, need_weights=need_weights, average_attn_weights=False)
    assert not torch.equal(layer(*x, need_weights=need_weights)[0], y)
    assert not need_weights or 0.2 < (weights == 0).double().mean() < 0.6
    layer.eval()
    assert torch.equal(layer(*x)[0], layer(*x)[0])
    same_as_torch(layer, *x, need_weights=need_weights)


@pytest.mark.parametrize("heads", [2, 3, 4])
@pytest.mark.parametrize("method", ["reference", "dense", "components_first", "rule_first", "bilinear"])
def test_every_method_and_number_of_heads(method, heads):
    layer = make("learned 4:7", heads=heads, method=method)
    assert layer.out_proj.method == method
    same_as_torch(layer, *inputs("key is value"))


def test_masks_of_two_kinds_need_no_warning():
    same = [torch.rand(N, S) < 0.3, torch.randn(L, S, **F64)]
    layer, x = make(), inputs()
    as_numbers = torch.zeros(N, S, **F64).masked_fill(same[0], -torch.inf)
    found = layer(*x, key_padding_mask=same[0], attn_mask=same[1])[0]
    torch.testing.assert_close(found, layer(*x, key_padding_mask=as_numbers, attn_mask=same[1])[0])


@pytest.mark.parametrize("kinship", ["all", "key is value", "none"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_parameters_are_those_through_the_dense_weights(name, kinship):
    layer, x = make(name), inputs(kinship)
    y = layer(*x)[0]
    gradient = torch.randn_like(y)
    found = torch.autograd.grad((y * gradient).sum(), list(layer.parameters()))
    y, _ = nn.functional.multi_head_attention_forward(
        *x, E, H, layer.in_proj_weight, layer.in_proj_bias, None, None, False, 0.0, layer.out_proj.weight,
        layer.out_proj.bias,
    )  # fmt: skip
    expected = torch.autograd.grad((y * gradient).sum(), list(layer.parameters()))
    torch.testing.assert_close(found, expected)


def test_one_product_for_one_tensor(monkeypatch):
    from nplex.ops import grouped

    calls = []
    product = grouped.run
    monkeypatch.setattr(grouped, "run", lambda x, *args, **kw: calls.append(x) or product(x, *args, **kw))
    layer = make()
    for kinship, expected in {"all": 1, "key is value": 2, "query is key": 2, "none": 3}.items():
        calls.clear()
        layer(*inputs(kinship))
        assert len(calls) == expected


@pytest.mark.parametrize("name", ["learned 3", "learned 4:7", "quaternion"])
@pytest.mark.parametrize(("kdim", "vdim"), [(None, None), (96, 300)])
def test_starts_as_torchs_layer(name, kdim, vdim):
    layer = MultiheadAttention(240, 4, kdim=kdim, vdim=vdim, add_bias_kv=True, rule=RULES[name]())
    torch_layer = nn.MultiheadAttention(240, 4, kdim=kdim, vdim=vdim, add_bias_kv=True)
    twin = dict(layer.to_torch().named_parameters())
    assert twin.keys() == dict(torch_layer.named_parameters()).keys()
    for key, expected in torch_layer.named_parameters():
        if expected.any():
            assert 0.85 < (twin[key].std() / expected.std()).item() < 1.15, key
        else:
            assert not twin[key].any()


def test_first_values_after_the_meta_device():
    layer = MultiheadAttention(64, 4, rule=4, device="meta").to_empty(device="cpu")
    for module in layer.modules():
        module.reset_parameters()
    assert not layer.in_proj_bias.any()
    assert not layer.out_proj.bias.any()
    assert layer(*(torch.randn(3, 2, 64),) * 3)[0].isfinite().all()


def test_parts_have_rules_of_their_own():
    rule = LearnedRule(4, 7)
    layer = MultiheadAttention(E, H, rule=rule)
    assert layer.rule is rule
    assert layer.out_proj.rule is not rule
    assert layer.out_proj.rule.ownership is Ownership.OWNED
    assert layer.out_proj.rule.rank == 7
    assert not torch.equal(layer.out_proj.rule.decode, rule.decode)
    with pytest.raises(ValueError, match="this rule already belongs to a layer"):
        MultiheadAttention(E, H, rule=rule)


def test_a_layer_that_could_not_be_made_leaves_its_rule_free():
    rule = LearnedRule(4)
    with pytest.raises(ValueError, match="num_heads must be 1 or more and divide embed_dim = 12, got 5"):
        MultiheadAttention(E, 5, rule=rule)
    with pytest.raises(ValueError, match="the rule is"):
        MultiheadAttention(E, H, dtype=torch.float16, rule=rule)
    assert rule.ownership is Ownership.FREE


def test_names_in_the_state_dict():
    names = set(MultiheadAttention(E, H, add_bias_kv=True, rule=4).state_dict())
    rest = {"in_proj_bias", "bias_k", "bias_v", "rule.table"}
    out = {"out_proj.components", "out_proj.bias", "out_proj.rule.table"}
    assert names == rest | out | {"in_proj_components"}
    names = set(MultiheadAttention(E, H, bias=False, kdim=8, rule=4).state_dict())
    parts = {"q_proj_components", "k_proj_components", "v_proj_components"}
    assert names == parts | {"rule.table", "out_proj.components", "out_proj.rule.table"}


@pytest.mark.parametrize("options", [{}, {"kdim": 7, "add_bias_kv": True}])
def test_survives_state_dict_deepcopy_pickle_and_safetensors(options):
    layer, fresh = make("learned 4:7", **options), make("learned 4:7", **options)
    x = inputs(kdim=options.get("kdim", E))
    fresh.load_state_dict(load(save(layer.state_dict())))
    for other in (fresh, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(*x)[0], layer(*x)[0])


def test_a_shared_rule_is_used_by_all_parts():
    model = nn.Module()
    rule = share(model, LearnedRule(4))
    model.attention = MultiheadAttention(E, H, rule=rule)
    assert model.attention.rule is model.attention.out_proj.rule is rule
    assert [name for name, _ in model.named_parameters() if "rule" in name] == ["rule.table"]
    assert missing_rules(model) == []
    assert missing_rules(model.attention) == ["(the module itself)", "out_proj"]
    twin = copy.deepcopy(model)
    assert twin.attention.rule is twin.attention.out_proj.rule is twin.rule
    assert copy.deepcopy(model.attention).rule is rule
    assert "n=4, rule=shared" in repr(model.attention)


def test_like_takes_sizes_and_options_over():
    options = {"add_bias_kv": True, "add_zero_attn": True, "kdim": 7, "vdim": 8, "batch_first": True, "dropout": 0.2}
    old = nn.MultiheadAttention(E, H, bias=False, **options, **F64).eval()
    layer = MultiheadAttention.like(old, rule=quaternion)
    twin = layer.to_torch()
    for name in (*options, "embed_dim", "num_heads", "training"):
        if not name.startswith("add_bias"):
            assert getattr(layer, name) == getattr(twin, name) == getattr(old, name), name
    shapes = {name: (p.shape, p.dtype) for name, p in old.named_parameters()}
    assert {name: (p.shape, p.dtype) for name, p in twin.named_parameters()} == shapes
    assert layer.out_proj.rule.algebra is layer.rule.algebra is quaternion


def test_repr_says_what_it_is():
    text = repr(MultiheadAttention(E, H, rule=4))
    assert "embed_dim=12, num_heads=3, n=4" in text
    assert "in_features=12, out_features=12, bias=True, n=4" in text


@pytest.mark.parametrize("need_weights", [False, True])
def test_smaller_types_and_autocast(need_weights):
    layer, hidden = make("learned 4:7").float(), torch.rand(N, S) < 0.3
    x = [t.detach().float() for t in inputs()]
    exact = layer(*x, key_padding_mask=hidden, need_weights=need_weights)[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(*x, key_padding_mask=hidden, need_weights=need_weights)[0]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=0.1, atol=0.1)
    found = layer.bfloat16()(*(t.bfloat16() for t in x), key_padding_mask=hidden, need_weights=need_weights)[0]
    torch.testing.assert_close(found.float(), exact, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("need_weights", [False, True])
def test_vmap_over_samples_without_warnings(need_weights):
    layer, x = make("learned 4:7"), torch.randn(3, L, N, E, **F64)
    call = {"need_weights": need_weights, "attn_mask": torch.randn(L, L, **F64)}
    found = torch.vmap(lambda x: layer(x, x, x, **call)[0])(x)
    torch.testing.assert_close(found, torch.stack([layer(y, y, y, **call)[0] for y in x]))


def test_a_learned_mask_gets_its_gradient():
    layer, x = make(), inputs()
    bias = torch.randn(L, S, **F64, requires_grad=True)
    ours, theirs = (m(*x, attn_mask=bias)[0].square().sum() for m in (layer, layer.to_torch()))
    torch.testing.assert_close(torch.autograd.grad(ours, bias), torch.autograd.grad(theirs, bias))


WRONG = [
    ((E,), (S, N, E), (S, N, E), {}, r"query must have 2 dimensions, or 3 with a batch, got shape \(12,\)"),
    ((L, N, E), (S, E), (S, N, E), {}, r"key must have 3 dimensions, as query, got shape \(6, 12\)"),
    ((L, N, 8), (S, N, E), (S, N, E), {}, r"query must have 12 numbers in its last dimension, got shape \(4, 2, 8\)"),
    ((L, N, E), (S, N, E), (S, N, 9), {}, r"value must have 12 numbers in its last dimension"),
    ((L, N, E), (S, N, E), (L, N, E), {}, r"key and value must have the same length and batch, got shapes"),
    ((L, N, E), (S, 3, E), (S, 3, E), {}, r"query and key must have the same batch, got 2 and 3 in dimension 1"),
    (*[(S, N, E)] * 3, {"attn_mask": (S, 5)}, r"attn_mask must have shape \(6, 6\) or \(6, 6, 6\), got \(6, 5\)"),
    (
        *[(S, N, E)] * 3,
        {"attn_mask": (N, S, S)},
        r"attn_mask must have shape \(6, 6\) or \(6, 6, 6\), got \(2, 6, 6\)",
    ),
    (*[(S, N, E)] * 3, {"key_padding_mask": (S,)}, r"key_padding_mask must have shape \(2, 6\), got \(6,\)"),
    (*[(S, E)] * 3, {"key_padding_mask": (1, S)}, r"key_padding_mask must have shape \(6,\), got \(1, 6\)"),
    (*[(S, N, E)] * 3, {"is_causal": True}, "is_causal is a hint about attn_mask: give the causal mask too"),
]


@pytest.mark.parametrize(("query", "key", "value", "call", "message"), WRONG)
def test_wrong_input_is_named_where_torch_refuses_it(query, key, value, call, message):
    layer = make()
    x = [torch.zeros(shape, **F64) for shape in (query, key, value)]
    call = {name: shape if shape is True else torch.zeros(shape, **F64) for name, shape in call.items()}
    with pytest.raises(ValueError, match=message):
        layer(*x, **call)
    with pytest.raises((AssertionError, RuntimeError)):
        layer.to_torch()(*x, **call)


def test_a_mask_of_integers_is_refused(unchecked):
    for name, shape in {"attn_mask": (S, S), "key_padding_mask": (N, S)}.items():
        with pytest.raises(ValueError, match=f"{name} must be bool, True where hidden, or numbers to be added, got"):
            make()(*inputs("all"), **{name: torch.zeros(shape, dtype=torch.int64)})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": 16}, "n = 16 is larger than embed_dim = 12"),
        ({"rule": 4, "kdim": 3}, "n = 4 is larger than kdim = 3"),
        ({"rule": 4, "vdim": 0}, "vdim must be a positive integer, got 0"),
        ({"rule": 4, "num_heads": 0}, "num_heads must be 1 or more and divide embed_dim = 12, got 0"),
        ({"rule": 4, "method": "bilinear"}, "needs a rule held as factors, got a full table"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        MultiheadAttention(**({"embed_dim": E, "num_heads": H} | arguments))


def test_weights_are_read_only():
    layer = make()
    with pytest.raises((AttributeError, KeyError), match="in_proj_weight"):
        layer.in_proj_weight = nn.Parameter(torch.zeros(3 * E, E))
    assert layer.in_proj_weight.requires_grad


def test_the_causal_mask_is_known_when_seen():
    causal = torch.full((4, 4), -torch.inf).triu(1)
    assert formula.is_causal_mask(causal, 4)
    assert formula.is_causal_mask(causal.isinf(), 4)
    assert not formula.is_causal_mask(causal, 5)
    assert not formula.is_causal_mask(causal.mT, 4)
    assert not formula.is_causal_mask(causal.to("meta"), 4)
    assert not formula.is_causal_mask(None, 4)


def in_torchs_encoder(*, swapped_late, layers=2, **options):
    """torch's stack with our attention in its layers, and the same stack with torch's own."""

    def swap(layer):
        ours = MultiheadAttention.like(layer.self_attn, rule=LearnedRule(5, **F64))
        with torch.no_grad():
            ours.in_proj_bias.normal_()
        layer.self_attn = ours

    layer = nn.TransformerEncoderLayer(E, 2, 16, 0.0, batch_first=True, **F64, **options)
    if not swapped_late:
        swap(layer)
    stack = nn.TransformerEncoder(layer, layers, enable_nested_tensor=swapped_late)
    if swapped_late:
        for layer in stack.layers:
            swap(layer)
    twin = copy.deepcopy(stack)
    for layer in twin.layers:
        layer.self_attn = layer.self_attn.to_torch()
    return stack, twin


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
@pytest.mark.parametrize("swapped_late", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
def test_works_inside_torchs_encoder(swapped_late, norm_first, training, gradients):
    options = {"norm_first": norm_first, "swapped_late": swapped_late and not norm_first}
    stack, twin = (module.train(training) for module in in_torchs_encoder(**options))
    x = torch.randn(3, S, E, **F64)
    hidden = torch.arange(S) >= torch.tensor([S, 4, 2])[:, None]
    causal = nn.Transformer.generate_square_subsequent_mask(S, dtype=torch.float64)
    with torch.set_grad_enabled(gradients):
        for call in ({}, {"src_key_padding_mask": hidden}, {"mask": causal}, {"mask": causal, "is_causal": True}):
            found, expected = (module(x, **call) for module in (stack, twin))
            seen = ~hidden if "src_key_padding_mask" in call else ...
            torch.testing.assert_close(found[seen], expected[seen])
        for call in ({}, {"src_key_padding_mask": hidden}, {"src_mask": causal}):
            found, expected = (module.layers[0](x, **call) for module in (stack, twin))
            seen = ~hidden if "src_key_padding_mask" in call else ...
            torch.testing.assert_close(found[seen], expected[seen])


def test_torchs_layer_computes_with_the_components_in_eval_mode():
    stack, _ = in_torchs_encoder(swapped_late=False, layers=1)
    calls = []
    stack.layers[0].self_attn.out_proj.register_forward_hook(lambda *args: calls.append(1))
    with torch.no_grad():
        stack.eval()(torch.randn(2, S, E, **F64))
    assert calls


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_nested_tensors_elsewhere_are_refused():
    nested = torch.nested.nested_tensor([torch.randn(3, E, **F64), torch.randn(2, E, **F64)])
    message = "nested tensors need one query, key and value, batch_first and no masks; or pad them"
    with pytest.raises(ValueError, match=message):
        make()(nested, nested, nested)
    with pytest.raises(ValueError, match=message):
        make(batch_first=True)(nested, torch.randn(2, 3, E, **F64), torch.randn(2, 3, E, **F64))
    with pytest.raises(ValueError, match=message):
        make(batch_first=True)(nested, nested, nested, torch.zeros(2, 3, **F64))


def test_the_output_projection_is_a_linear():
    assert isinstance(make().out_proj, Linear)
