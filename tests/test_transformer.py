import copy
import math
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import RULES
from safetensors.torch import load, save
from torch import nn
from torch.nn import functional as F

from nplex import convert_
from nplex.algebra import quaternion
from nplex.nn import (
    LearnedRule,
    Linear,
    Rule,
    Transformer,
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
    missing_rules,
    share,
)
from nplex.nn.sharing import Ownership

PROGRAM = Path(__file__).parent / "programs" / "compiled_transformer.py"
NAMES = ["learned 2", "learned 3", "learned 5", "learned 4:7", "quaternion"]
F64 = {"dtype": torch.float64}
N, L, S, E, H, FF = 2, 4, 6, 12, 2, 17


def x(length, batch_first=False, batched=True):
    shape = (length, E) if not batched else (N, length, E) if batch_first else (length, N, E)
    return torch.randn(shape, **F64).requires_grad_()


def padding(length):
    """Hides ends of sequences, as torch's nested tensors need it."""
    return torch.arange(length) >= torch.tensor([length, length - 2])[:, None]


def causal(length):
    return Transformer.generate_square_subsequent_mask(length, **F64)


def randomized(module):
    """The module with random biases and norms, which begin as 0 and 1."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "bias" in name or "norm" in name:
                parameter.normal_()
    return module


def same_as_torch(module, *inputs, seen=..., fused=True, **call):
    """Outputs and the gradients of the inputs equal those of the twin, in training and eval mode.

    Where fused, also those of torch's fused kernel, which takes every number but 0 in a mask for -inf.
    """
    twin = module.to_torch()
    for training in (True, False):
        module.train(training), twin.train(training)
        ours, theirs = (m(*inputs, **call)[seen] for m in (module, twin))
        torch.testing.assert_close(ours, theirs)
        gradient = torch.randn_like(ours)
        torch.testing.assert_close(
            torch.autograd.grad((ours * gradient).sum(), inputs),
            torch.autograd.grad((theirs * gradient).sum(), inputs),
        )
        with torch.no_grad():
            torch.backends.mha.set_fastpath_enabled(fused)
            torch.testing.assert_close(module(*inputs, **call)[seen], twin(*inputs, **call)[seen])
            torch.backends.mha.set_fastpath_enabled(True)


def encoder_layer(name="learned 5", **options):
    options = {"dropout": 0.0, "batch_first": True} | options
    return randomized(TransformerEncoderLayer(E, H, FF, rule=RULES[name](**F64), **F64, **options))


def decoder_layer(name="learned 5", **options):
    options = {"dropout": 0.0, "batch_first": True} | options
    return randomized(TransformerDecoderLayer(E, H, FF, rule=RULES[name](**F64), **F64, **options))


def transformer(name="learned 5", **options):
    options = {"dropout": 0.0, "batch_first": True} | options
    return randomized(Transformer(E, H, 2, 2, FF, rule=RULES[name](**F64), **F64, **options))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("norm_first", [False, True])
def test_encoder_layer_equals_torchs(name, norm_first):
    for batch_first, bias in ((norm_first, True), (not norm_first, False)):
        layer = encoder_layer(name, batch_first=batch_first, norm_first=norm_first, bias=bias)
        same_as_torch(layer, x(S, batch_first))
    same_as_torch(layer, x(S, batched=False))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("norm_first", [False, True])
def test_decoder_layer_equals_torchs(name, norm_first):
    for batch_first, bias in ((norm_first, True), (not norm_first, False)):
        layer = decoder_layer(name, batch_first=batch_first, norm_first=norm_first, bias=bias)
        same_as_torch(layer, x(L, batch_first), x(S, batch_first))
    same_as_torch(layer, x(L, batched=False), x(S, batched=False))


ENCODER_MASKS = [
    {"src_mask": causal(S)},
    {"src_mask": causal(S).isinf()},
    {"src_mask": torch.randn(N * H, S, S, **F64)},
    {"src_mask": causal(S), "is_causal": True},
    {"src_key_padding_mask": padding(S)},
    {"src_mask": causal(S).isinf(), "src_key_padding_mask": padding(S), "is_causal": True},
]
DECODER_MASKS = [
    {"tgt_mask": causal(L), "tgt_is_causal": True},
    {"tgt_mask": causal(L).isinf(), "tgt_key_padding_mask": padding(L)},
    {"memory_mask": torch.rand(L, S) < 0.2, "memory_key_padding_mask": torch.randn(N, S) < -2},
    {"memory_mask": torch.randn(N * H, L, S, **F64), "tgt_mask": causal(L)},
    {"memory_key_padding_mask": padding(S), "tgt_key_padding_mask": padding(L)},
]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
@pytest.mark.parametrize("call", ENCODER_MASKS)
def test_masks_of_the_encoder_equal_torchs(call):
    seen = ~call["src_key_padding_mask"] if "src_key_padding_mask" in call else ...
    call = {"fused": call.get("src_mask", causal(S)).ndim == 2} | call
    same_as_torch(encoder_layer("learned 4:7"), x(S, True), seen=seen, **call)
    stack = TransformerEncoder(encoder_layer("learned 3"), 2, randomized(nn.LayerNorm(E, **F64)))
    call = {"mask" if name == "src_mask" else name: value for name, value in call.items()}
    same_as_torch(stack, x(S, True), seen=seen, **call)


@pytest.mark.parametrize("call", DECODER_MASKS)
def test_masks_of_the_decoder_equal_torchs(call):
    same_as_torch(decoder_layer("learned 4:7"), x(L, True), x(S, True), **call)
    stack = TransformerDecoder(decoder_layer("learned 3"), 2, randomized(nn.LayerNorm(E, **F64)))
    same_as_torch(stack, x(L, True), x(S, True), **call)


@pytest.mark.parametrize("name", NAMES)
def test_transformer_equals_torchs(name):
    batch_first = name in ("learned 2", "learned 4:7")
    model = transformer(name, batch_first=batch_first, norm_first=name == "learned 3")
    same_as_torch(model, x(S, batch_first), x(L, batch_first))
    call = {
        "src_mask": torch.randn(S, S, **F64), "tgt_mask": causal(L), "memory_mask": torch.randn(L, S, **F64),
        "src_key_padding_mask": padding(S).double(), "tgt_key_padding_mask": -padding(L).double(),
        "memory_key_padding_mask": padding(S).double(), "tgt_is_causal": True,
    }  # fmt: skip
    same_as_torch(model, x(S, batch_first), x(L, batch_first), fused=False, **call)
    same_as_torch(model, x(S, batched=False), x(L, batched=False))


def containers():
    """Torch's containers, and ours of the same sizes."""
    sizes, options = (E, H, FF), {"dropout": 0.0, "batch_first": True, "norm_first": True} | F64
    own = options | {"rule": quaternion}
    yield nn.TransformerEncoderLayer(*sizes, **options), TransformerEncoderLayer(*sizes, **own), "x"
    yield nn.TransformerDecoderLayer(*sizes, **options), TransformerDecoderLayer(*sizes, **own), "xm"
    stacks = [nn.TransformerEncoder, TransformerEncoder], [nn.TransformerDecoder, TransformerDecoder]
    for (torchs, ours), layers in zip(stacks, list(containers_of_layers(sizes, options, own)), strict=True):
        more = {"enable_nested_tensor": False} if ours is TransformerEncoder else {}
        norms = nn.LayerNorm(E, **F64), nn.LayerNorm(E, **F64)
        yield torchs(layers[0], 2, norms[0], **more), ours(layers[1], 2, norms[1]), layers[2]
    yield nn.Transformer(E, H, 1, 2, FF, **options), Transformer(E, H, 1, 2, FF, **own), "xm"


def containers_of_layers(sizes, options, own):
    yield nn.TransformerEncoderLayer(*sizes, **options), TransformerEncoderLayer(*sizes, **own), "x"
    yield nn.TransformerDecoderLayer(*sizes, **options), TransformerDecoderLayer(*sizes, **own), "xm"


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True, but")
@pytest.mark.parametrize("index", range(5))
def test_torchs_container_converted_has_the_same_keys_and_outputs_to_the_bit(index):
    dense, ours, takes = list(containers())[index]
    assert isinstance(ours, type(dense))
    convert_(dense, quaternion)
    assert list(dense.state_dict()) == list(ours.state_dict())
    ours.load_state_dict(dense.state_dict())
    inputs = [x(S, True), x(L, True)][: len(takes)]
    mask = {2: {"mask": causal(S)}, 3: {"tgt_mask": causal(S)}}.get(index, {})
    for training in (True, False):
        found, expected = (module.train(training)(*inputs, **mask) for module in (ours, dense))
        assert torch.equal(found, expected)
        with torch.no_grad():  # where torch would run its fused kernel
            torch.testing.assert_close(ours(*inputs, **mask), expected)


def test_dropout_is_torchs():
    model = transformer(dropout=0.3, batch_first=False)
    twin, inputs, found = model.to_torch(), (x(S), x(L)), []
    for module in (model, twin):
        torch.manual_seed(2)
        found.append(module(*inputs))
    torch.testing.assert_close(*found)
    assert not torch.allclose(found[0], model.eval()(*inputs))


@pytest.mark.parametrize("activation", ["relu", "gelu", F.gelu, torch.tanh, nn.PReLU(**F64)])
def test_activations(activation):
    layer = encoder_layer(activation=activation)
    same_as_torch(layer, x(S, True))
    assert type(TransformerEncoderLayer.like(layer.to_torch(), rule=2).activation) is type(layer.activation)
    same_as_torch(decoder_layer(activation=activation), x(L, True), x(S, True))


def test_no_causal_hint_needs_to_be_given(monkeypatch):
    """A stack sees that its mask is the causal one, as torch's does."""
    hints = []
    stack = TransformerEncoder(encoder_layer(), 1)
    forward = stack.layers[0].forward
    monkeypatch.setattr(
        stack.layers[0], "forward", lambda *a, **kw: hints.append(kw["is_causal"]) or forward(*a, **kw)
    )
    for mask in (None, causal(S), causal(S).isinf(), causal(S).mT, causal(S).expand(N * H, S, S)):
        stack(x(S, True), mask)
    stack(x(S, True), causal(S), None, False)
    assert hints == [False, True, True, False, False, False]


@pytest.mark.parametrize("build", [encoder_layer, decoder_layer, transformer])
@pytest.mark.parametrize("name", ["learned 3", "learned 4:7"])
def test_gradients_of_parameters_are_those_through_the_dense_weights(build, name):
    model = build(name)
    inputs = (x(S, True),) if build is encoder_layer else (x(L, True), x(S, True))
    y = model(*inputs)
    gradient = torch.randn_like(y)
    found = torch.autograd.grad((y * gradient).sum(), list(model.parameters()))
    twin = model.to_torch()
    dense = {key: attribute(model, key) for key, _ in twin.named_parameters()}
    y = torch.func.functional_call(twin, dense, inputs)
    expected = torch.autograd.grad((y * gradient).sum(), list(model.parameters()))
    torch.testing.assert_close(found, expected)


def attribute(module, path):
    for name in path.split("."):
        module = getattr(module, name)
    return module


def rules(module):
    return [part for part in module.modules() if isinstance(part, Rule)]


def test_every_part_has_a_rule_of_its_own():
    rule = LearnedRule(4, 7)
    for layer, expected in (
        (TransformerEncoderLayer(E, H, FF, rule=rule), 4), (TransformerDecoderLayer(E, H, FF, rule=rule), 6),
        (Transformer(E, H, 2, 3, FF, rule=rule), 2 * 4 + 3 * 6),
    ):  # fmt: skip
        assert len(rules(layer)) == expected
        assert rule not in rules(layer)
        assert {(own.n, own.rank, own.ownership) for own in rules(layer)} == {(4, 7, Ownership.OWNED)}
    assert rule.ownership is Ownership.FREE
    first, *others = rules(TransformerEncoderLayer(E, H, FF, rule=rule))
    assert not any(torch.equal(first.decode, other.decode) for other in others)


def test_copies_in_a_stack_have_equal_numbers_and_rules_of_their_own():
    layer = TransformerEncoderLayer(E, H, FF, dropout=0.0, rule=4)
    stack = TransformerEncoder(layer, 3)
    assert len(set(map(id, rules(stack)))) == len(rules(stack)) == 12
    assert {rule.ownership for rule in rules(stack)} == {Ownership.OWNED}
    assert len(list(stack.parameters())) == 3 * len(list(layer.parameters()))
    for name, parameter in layer.named_parameters():
        copied = [stack.layers[i].get_parameter(name) for i in range(3)]
        assert all(torch.equal(one, parameter) and one is not parameter for one in copied)
    stack(torch.randn(S, N, E)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in stack.parameters() if p.ndim > 1)
    assert not torch.equal(stack.layers[0].linear1.rule.table.grad, stack.layers[1].linear1.rule.table.grad)


class Model(nn.Module):
    """All layers of all kinds with one rule."""

    def __init__(self):
        super().__init__()
        rule = share(self, LearnedRule(4, **F64))
        self.transformer = Transformer(E, H, 2, 2, FF, 0.0, rule=rule, **F64)
        self.head = Linear(E, 8, rule=rule, **F64)

    def forward(self, src, tgt):
        return self.head(self.transformer(src, tgt))


def test_one_shared_rule_is_used_by_all():
    model, inputs = Model(), (x(S), x(L))
    assert rules(model) == [model.rule]
    assert [name for name, _ in model.named_parameters() if "rule" in name] == ["rule.table"]
    assert len(missing_rules(model.transformer)) == 2 * 4 + 2 * 6
    same_as_torch(model.transformer, *inputs)
    model(*inputs).square().sum().backward()
    assert model.rule.table.grad.any()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert rules(other) == [other.rule]
        assert missing_rules(other) == []
        assert torch.equal(other(*inputs), model(*inputs))
        with torch.no_grad():
            other.rule.table.mul_(2)
        assert not torch.allclose(other(*inputs), model(*inputs))
    fresh = Model()
    fresh.load_state_dict(load(save(model.state_dict())))
    assert torch.equal(fresh(*inputs), model(*inputs))


@pytest.mark.parametrize("name", ["learned 3", "learned 4:7", "quaternion"])
def test_survives_state_dict_deepcopy_pickle_and_safetensors(name):
    model, fresh, inputs = transformer(name), transformer(name), (x(S, True), x(L, True))
    fresh.load_state_dict(load(save(model.state_dict())))
    for other in (fresh, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(*inputs), model(*inputs))


def test_submodules_have_torchs_names():
    pairs = [
        (encoder_layer(), nn.TransformerEncoderLayer(E, H, FF)),
        (decoder_layer(), nn.TransformerDecoderLayer(E, H, FF)),
        (transformer(), nn.Transformer(E, H, 2, 2, FF, batch_first=True)),
    ]  # fmt: skip
    for ours, torchs in pairs:
        found = [name for name, part in ours.named_modules() if not isinstance(part, Rule)]
        assert sorted(found) == sorted(name for name, _ in torchs.named_modules())


@pytest.mark.parametrize("name", ["learned 3", "learned 4:7", "quaternion"])
def test_transformer_starts_as_torchs(name):
    model = Transformer(192, 2, 1, 1, 480, rule=RULES[name]())
    torch_model = nn.Transformer(192, 2, 1, 1, 480, batch_first=True)
    twin = dict(model.to_torch().named_parameters())
    for key, expected in torch_model.named_parameters():
        if expected.ndim > 1 or "linear" in key:
            assert 0.85 < (twin[key].std() / expected.std()).item() < 1.15, key
        else:
            assert torch.equal(twin[key], expected), key


def test_layers_start_as_torchs():
    layer, torch_layer = TransformerDecoderLayer(192, 2, 480, rule=4), nn.TransformerDecoderLayer(192, 2, 480)
    twin = dict(layer.to_torch().named_parameters())
    for key, expected in torch_layer.named_parameters():
        if expected.std() > 0:
            assert 0.85 < (twin[key].std() / expected.std()).item() < 1.15, key
        else:
            assert torch.equal(twin[key], expected), key


def test_first_values_after_the_meta_device():
    model = Transformer(96, 2, 1, 1, 256, 0.0, rule=4, device="meta")
    assert all(p.is_meta for p in model.parameters())
    model.to_empty(device="cpu")
    for module in (*model.modules(), model):
        getattr(module, "reset_parameters", lambda: None)()
    y = model(torch.randn(S, N, 96), torch.randn(L, N, 96))
    assert y.isfinite().all()
    bound = math.sqrt(6 / (96 + 256))
    assert model.encoder.layers[0].linear1.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert not model.encoder.layers[0].self_attn.out_proj.bias.any()


def test_first_values_of_a_custom_encoder_are_xaviers():
    class Custom(nn.Module):
        def __init__(self):
            super().__init__()
            self.dense, self.ours = nn.Linear(200, 100), Linear(200, 100, rule=4)
            self.rule = None

    encoder = Custom()
    bias = encoder.ours.bias.detach().clone()
    Transformer(8, 2, custom_encoder=encoder, num_decoder_layers=1, rule=2)
    for layer in (encoder.dense, encoder.ours):
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / 300), rel=0.1)
    assert torch.equal(encoder.ours.bias, bias)


def test_custom_encoder_and_decoder():
    encoder, decoder = TransformerEncoder(encoder_layer(), 1), TransformerDecoder(decoder_layer(), 1)
    model = Transformer(E, H, custom_encoder=encoder, custom_decoder=decoder, batch_first=True, rule=2)
    assert model.encoder is encoder
    assert model.decoder is decoder
    same_as_torch(model, x(S, True), x(L, True))


def test_torch_manual_seed_reproduces():
    def numbers():
        torch.manual_seed(5)
        return list(Transformer(E, H, 1, 1, FF, rule=3).parameters())

    assert all(map(torch.equal, numbers(), numbers()))


def shapes(module):
    return {name: (p.shape, p.dtype) for name, p in module.named_parameters()}


@pytest.mark.parametrize(
    "options", [{}, {"batch_first": True, "norm_first": True, "bias": False, "activation": "gelu"}]
)
def test_like_takes_sizes_and_options_over(options):
    options = {"dropout": 0.3, "layer_norm_eps": 1e-3, "batch_first": False} | options
    model = transformer(**options).to_torch()
    options |= F64
    layers = [
        (TransformerEncoderLayer, nn.TransformerEncoderLayer(E, H, FF, **options)),
        (TransformerDecoderLayer, nn.TransformerDecoderLayer(E, H, FF, **options)),
    ]
    layers += [
        (TransformerEncoder, nn.TransformerEncoder(layers[0][1], 2, nn.LayerNorm(E, **F64), False, False)),
        (TransformerDecoder, nn.TransformerDecoder(layers[1][1], 2)),
        (Transformer, model),
    ]
    for kind, old in layers:
        old.eval()
        found = kind.like(old, rule=quaternion)
        assert isinstance(found, kind)
        assert not found.training
        twin = found.to_torch()
        assert type(twin) is type(old)
        assert shapes(twin) == shapes(old)
        assert repr(twin) == repr(old)
        for part, other in zip(twin.modules(), old.modules(), strict=True):
            told = ("norm_first", "activation", "batch_first", "training", "num_layers", "mask_check", "nhead")
            assert {k: getattr(part, k, 0) for k in told} == {k: getattr(other, k, 0) for k in told}


def test_like_gives_each_layer_numbers_of_its_own():
    stack = TransformerEncoder.like(
        nn.TransformerEncoder(nn.TransformerEncoderLayer(E, H, FF), 2, None, False), rule=4
    )
    one, two = stack.layers
    assert not torch.equal(one.linear1.components, two.linear1.components)
    assert not torch.equal(one.linear1.rule.table, two.linear1.rule.table)


def test_like_refuses_a_stack_of_other_layers():
    stack = nn.TransformerEncoder(nn.TransformerEncoderLayer(E, H, FF), 1, None, False)
    stack.layers[0] = nn.Identity()
    with pytest.raises(TypeError, match=r"only a stack of torch.nn's own layers has a twin, got Identity"):
        TransformerEncoder.like(stack, rule=4)


def test_modes_of_parts_are_kept():
    layer = encoder_layer().train()
    layer.self_attn.eval()
    twin = layer.to_torch()
    assert twin.training
    assert not twin.self_attn.training
    assert twin.linear1.training


def test_our_layer_in_torchs_stack():
    stack = nn.TransformerEncoder(encoder_layer(), 2, enable_nested_tensor=False)
    twin = copy.deepcopy(stack)
    twin.layers = nn.ModuleList(layer.to_torch() for layer in stack.layers)
    inputs = x(S, True)
    for module in (stack, twin):
        module.eval()
    with torch.no_grad():
        for call in ({}, {"src_key_padding_mask": padding(S)}, {"mask": causal(S)}):
            torch.testing.assert_close(stack(inputs, **call), twin(inputs, **call))


def test_smaller_types_and_autocast():
    model, inputs = transformer("learned 4:7").float(), (x(S, True).float(), x(L, True).float())
    model.reset_parameters()
    exact = model(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(*inputs, tgt_mask=causal(L).float())
        expected = model.to_torch()(*inputs, tgt_mask=causal(L).float())
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.1)
    found = model.bfloat16()(*(t.bfloat16() for t in inputs))
    torch.testing.assert_close(found.float(), exact, rtol=0.2, atol=0.2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: encoder_layer(activation="tanh"),
            "activation should be relu/gelu, not tanh",
        ),
        (lambda: Transformer(E, 5, rule=2), "embed_dim must be divisible by num_heads"),
        (lambda: Transformer(E, H, rule=16), "n = 16 is larger than embed_dim = 12"),
        (lambda: TransformerDecoderLayer(E, H, 3, rule=4), "n = 4 is larger than out_features = 3"),
        (lambda: transformer()(x(S), x(L).mT), "the batch number of src and tgt must be equal"),
        (
            lambda: transformer()(x(S, True), x(L, True)[..., :7]),
            "the feature number of src and tgt must be equal to d_model",
        ),
        (lambda: encoder_layer()(x(S, True), torch.zeros(S, L, **F64)), r"attn_mask must have shape \(6, 6\) or"),
    ],
)
def test_what_is_wrong_is_named(build, message, unchecked):
    """By nplex's layers or, for what concerns the container, by torch."""
    with pytest.raises((ValueError, RuntimeError, AssertionError), match=message):
        build()


def run(*arguments):
    done = subprocess.run(
        [sys.executable, PROGRAM, *arguments], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.count("ok ")


@pytest.mark.slow
def test_torch_compile_fullgraph_gives_the_same_values_and_gradients():
    assert run("compile", "aot_eager") == 6


@pytest.mark.slow
def test_torch_export_serves_every_batch_size():
    assert run("export") == 6


@pytest.mark.slow
def test_torch_compile_with_inductor():
    assert run("compile", "inductor", "3") == 3
