"""Torch's own module database over every twin: what torch's tests ask of its modules holds of ours.

`torch.testing._internal.common_modules.module_db` tells for each module how it is made and called. Each twin is made
and called so, and compared with `twin.to_torch()`.
"""

import copy
import io
import itertools
import pickle
import sys
import types

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from nplex import algebra
from nplex import nn as nx
from nplex.convert.twins import TWINS

if "expecttest" not in sys.modules:  # torch's test tools import it, and use none of it here
    stub = types.ModuleType("expecttest")
    stub.TestCase, stub.assert_expected_inline = object, None
    sys.modules["expecttest"] = stub
from torch.testing._internal.common_modules import module_db

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
DOUBLE = torch.float64
CONTAINERS = (
    "TransformerEncoderLayer", "TransformerDecoderLayer", "TransformerEncoder", "TransformerDecoder", "Transformer",
)  # fmt: skip
KINDS = {dense: twin for dense, twin in TWINS.items() if dense.__module__ == twin.torch_layer.__module__}
KINDS = {twin.torch_layer: twin for twin in KINDS.values()} | {getattr(nn, k): getattr(nx, k) for k in CONTAINERS}
INFOS = {info.name: info for info in module_db if info.module_cls in KINDS}
RULES = {
    "2": lambda dtype: 2,
    "3": lambda dtype: 3,
    "2:3": lambda dtype: nx.LearnedRule(2, rank=3, dtype=dtype),
    "4:7": lambda dtype: nx.LearnedRule(4, rank=7, dtype=dtype),
    "complex": lambda dtype: algebra.complex_,
}
FAST, GRADCHECKS = 6, 2
every_module = pytest.mark.parametrize("name", INFOS)


class Case:
    """One way to make and to call a module, with one rule."""

    def __init__(self, info, given, rule, dtype, training):
        self.info, self.given, self.rule, self.dtype, self.training = info, given, rule, dtype, training
        self.call = (given.forward_input.args, given.forward_input.kwargs)
        self.has_parts = any(isinstance(arg, nn.Module) for arg in given.constructor_input.args)

    def make(self, **options):
        """The twin, in the case's type and mode; None where the rule is too large for it."""
        args, kwargs = self.given.constructor_input.args, self.given.constructor_input.kwargs
        try:
            if self.has_parts:
                args = [to_twin(part, RULES[self.rule]) for part in args]
            else:
                options = {"rule": RULES[self.rule](options.get("dtype")), **options}
            made = KINDS[self.info.module_cls](*args, **kwargs | options)
        except ValueError as error:
            if "is larger than" in str(error):
                return None
            raise
        return made if options.get("device") else made.to(self.dtype).train(self.training)

    def __repr__(self):
        return f"{self.given.constructor_input}, {self.given.forward_input}, rule={self.rule}, {self.training=}"


def to_twin(part, rule):
    if type(part) not in KINDS:
        return part
    return KINDS[type(part)].like(part, rule=rule(next(part.parameters()).dtype))


def cases(name, *, dtype=DOUBLE, grad=False, most=FAST):
    """Some of the database's inputs for a module with a rule each, spread over all; all of them if most is None."""
    info, found = INFOS[name], []
    for training in (True, False) if info.train_and_eval_differ else (True,):
        torch.manual_seed(0)
        made = info.module_inputs_func(info, "cpu", dtype, grad, training)
        found += [(given, training) for given in made if given.forward_input is not None]
    if most is None:
        chosen = itertools.product(found, RULES)
    else:
        most = max(1, (most + 1) // 3) if info.module_cls.__name__ in CONTAINERS else most
        chosen = zip(found[:: -(-len(found) // most)], itertools.cycle(RULES))
    for (given, training), rule in chosen:
        for fitting in (rule, "2"):
            case = Case(info, given, fitting, dtype, training)
            if (module := case.make()) is not None:
                yield case, module
                break


def run(module, call):
    args, kwargs = call
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return module(*args, **kwargs)


def tensors(tree):
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor)]


def leaves(tree):
    return [t for t in tensors(tree) if t.requires_grad]


def fresh(t):
    return t.detach().clone().requires_grad_(t.requires_grad) if isinstance(t, torch.Tensor) else t


def spread(t):
    """The same numbers, further apart in memory."""
    if not isinstance(t, torch.Tensor) or t.dim() == 0:
        return t
    return t.detach().repeat_interleave(2, -1)[..., ::2].requires_grad_(t.requires_grad)


def cast(tree, dtype):
    return tree_map(lambda t: t.detach().to(dtype) if is_floating(t) else t, tree)


def is_floating(t):
    return isinstance(t, torch.Tensor) and t.is_floating_point()


def backward(output, change=fresh):
    generator = torch.Generator().manual_seed(1)
    for y in leaves(output):
        y.backward(change(torch.randn(y.shape, generator=generator, dtype=DOUBLE).to(y.dtype)), retain_graph=True)


def strides(t):
    return [stride for stride, size in zip(t.stride(), t.shape, strict=True) if size > 1]


def close(ours, theirs, **tolerance):
    for one, other in zip(tensors(ours), tensors(theirs), strict=True):
        torch.testing.assert_close(one, other, equal_nan=True, **tolerance)


def test_every_twin_is_in_the_database():
    assert {kind.__name__ for kind in KINDS} - {info.module_cls.__name__ for info in INFOS.values()} == {
        "EmbeddingBag",
        "TransformerDecoder",
    }


def check_values_gradients_and_layout(name, most):
    seen = 0
    for case, module in cases(name, grad=True, most=most):
        dense, (call, same) = module.to_torch(), (tree_map(fresh, case.call) for _ in range(2))
        assert dense.training == case.training
        ours, theirs = run(module, call), run(dense, same)
        assert type(ours) is type(theirs)
        close(ours, theirs)
        for one, other in zip(tensors(ours), tensors(theirs), strict=True):
            assert strides(one) == strides(other), (case, one.shape, one.stride(), other.stride())
        close(call, case.call)  # nothing was written into an input
        backward(ours)
        backward(theirs)
        for one, other in zip(leaves(call), leaves(same), strict=True):
            assert (one.grad is None) == (other.grad is None)
            assert one.grad is None or torch.allclose(one.grad, other.grad, equal_nan=True), case
        own = dict(module.named_parameters())
        for key, parameter in dense.named_parameters():
            if key in own and parameter.grad is not None:
                torch.testing.assert_close(own[key].grad, parameter.grad, equal_nan=True)
        seen += 1
    assert seen


@every_module
def test_values_gradients_and_layout(name):
    check_values_gradients_and_layout(name, FAST)


@pytest.mark.slow
@every_module
def test_values_gradients_and_layout_of_all_inputs(name):
    check_values_gradients_and_layout(name, None)


@every_module
def test_inputs_that_are_not_contiguous(name):
    for case, module in cases(name, grad=True):
        found = []
        for change in (fresh, spread):
            module.zero_grad()
            call = tree_map(change, case.call)
            output = run(module, call)
            backward(output, change)
            found.append((output, [t.grad for t in leaves(call)], [p.grad for p in module.parameters()]))
        close(*found)


@every_module
def test_copies_and_state(name):
    for case, module in cases(name, most=3):
        expected, file = run(module, case.call), io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        others = [copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(file, weights_only=False)]
        for assign in (False, True):
            others.append(case.make())
            others[-1].load_state_dict(module.state_dict(), assign=assign)
        for other in others:
            close(run(other, case.call), expected, rtol=0, atol=0)
        given = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        empty = case.make().to("meta")
        close(
            run(lambda *a, given=given, empty=empty, **k: torch.func.functional_call(empty, given, a, k), case.call),
            expected,
        )
        assert repr(module) == repr(others[0])


@every_module
def test_types(name):
    for case, module in cases(name, dtype=torch.float32, most=3):
        for dtype in (torch.float64, torch.float16, torch.bfloat16):
            module.to(dtype)
            call, dense = cast(case.call, dtype), module.to_torch()
            try:
                theirs = run(dense, call)
            except RuntimeError:  # torch has no kernel for this type
                continue
            ours = run(module, call)
            assert [y.dtype for y in tensors(ours)] == [y.dtype for y in tensors(theirs)]
            tolerance = 1e-6 if dtype == torch.float64 else 0.1
            close(cast(ours, DOUBLE), cast(theirs, DOUBLE), rtol=tolerance, atol=tolerance)
        with torch.autocast("cpu", torch.bfloat16):
            module.float()
            try:
                theirs = run(module.to_torch(), case.call)
            except RuntimeError:  # oneDNN's LSTM has no bfloat16 where the processor has no AVX-512
                continue
            ours = run(module, case.call)
            assert [y.dtype for y in tensors(ours)] == [y.dtype for y in tensors(theirs)]


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn, torch.int32])
@every_module
def test_types_that_are_refused(name, dtype):
    case, module = next(cases(name, most=1))
    before = {key: value.dtype for key, value in module.state_dict().items()}
    with pytest.raises((ValueError, TypeError), match=r"computes in float16, .* or float64|only accepts"):
        module.to(dtype)
    assert {key: value.dtype for key, value in module.state_dict().items()} == before
    if not case.has_parts:
        with pytest.raises(
            (ValueError, RuntimeError), match=f"computes in float16.* got {dtype}|not implemented for|Only Tensors of"
        ):
            case.make(dtype=dtype, device="cpu")


@every_module
def test_memory_formats(name):
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for case, module in cases(name, dtype=torch.float32, most=4):
        sizes = {t.dim() for t in tensors(case.call)} & set(formats)
        expected = run(module, case.call)
        for kind in [torch.channels_last, *(formats[size] for size in sizes)]:
            try:
                dense = module.to_torch().to(memory_format=kind)
            except RuntimeError:  # torch refuses its own layer
                continue
            module.to(memory_format=kind)
            last = tree_map(
                lambda t, k=kind: (
                    t.to(memory_format=k)
                    if isinstance(t, torch.Tensor) and t.dim() in formats and formats[t.dim()] is k
                    else t
                ),
                case.call,
            )
            for call in (case.call, last):
                ours, theirs = run(module, call), run(dense, call)
                close(ours, expected)
                for one, other in zip(tensors(ours), tensors(theirs), strict=True):
                    assert strides(one) == strides(other), (case, one.shape, one.stride(), other.stride())
            module.to(memory_format=torch.contiguous_format)


@every_module
def test_without_memory(name):
    for case, module in cases(name, most=3):
        expected = run(module, case.call)
        empty, call = (
            copy.deepcopy(module).to("meta"),
            tree_map(lambda t: t.to("meta") if isinstance(t, torch.Tensor) else t, case.call),
        )
        for one, other in zip(tensors(empty(*call[0], **call[1])), tensors(expected), strict=True):
            assert (one.shape, one.dtype, one.is_meta) == (other.shape, other.dtype, True)
        if case.has_parts:
            continue
        with torch.device("meta"):
            made = [case.make(), case.make(device="meta", dtype=case.dtype)]
        for key, t in module.state_dict().items():
            for other in (m.state_dict()[key] for m in made):
                assert (other.is_meta, other.shape, other.dtype, other.stride()) == (
                    True,
                    t.shape,
                    t.dtype,
                    t.stride(),
                )


@every_module
def test_conversions_that_swap_parameters(name):
    try:
        torch.__future__.set_swap_module_params_on_conversion(True)
        for case, module in cases(name, dtype=torch.float32, most=3):
            parameters = list(map(id, module.parameters()))
            for p in module.parameters():
                p.grad = torch.ones_like(p)
            module.double().to("cpu")
            assert list(map(id, module.parameters())) == parameters
            assert {p.grad.dtype for p in module.parameters()} == {DOUBLE}
            close(run(module, cast(case.call, DOUBLE)), run(module.to_torch(), cast(case.call, DOUBLE)))
            module.float().half().double()
            other = case.make().double()
            module.load_state_dict(other.state_dict())
            close(run(module, cast(case.call, DOUBLE)), run(other, cast(case.call, DOUBLE)))
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


@every_module
def test_attributes(name):
    """Public ones of torch's layer are there, and equal where they are plain values."""
    for case, module in cases(name, most=4):
        args, kwargs = case.given.constructor_input.args, case.given.constructor_input.kwargs
        dense = INFOS[name].module_cls(*args, **kwargs).to(case.dtype).train(case.training)
        for key in (key for key in dir(dense) if key[0] != "_" and key != "use_nested_tensor"):
            assert hasattr(module, key), key
            theirs = getattr(dense, key)
            if isinstance(theirs, (int, float, str, tuple, type(None))):
                assert getattr(module, key) == theirs, key
            elif isinstance(theirs, torch.Tensor):
                assert getattr(module, key).shape == theirs.shape, key


@pytest.mark.parametrize("name", [name for name, info in INFOS.items() if info.module_error_inputs_func])
def test_inputs_that_torch_refuses(name, unchecked):
    """Refused by the same kind of error, or a ValueError, which tells what came; never by an assertion."""
    info = INFOS[name]
    for wrong in info.module_error_inputs_func(info, "cpu", torch.float32, False, True):
        made, given = wrong.module_error_input.constructor_input, wrong.module_error_input.forward_input
        with pytest.raises((wrong.error_type, ValueError), match=r"got|must be|does not match") as raised:
            KINDS[info.module_cls](*made.args, **made.kwargs, rule=2)(*given.args, **given.kwargs)
        assert not isinstance(raised.value, AssertionError)


@pytest.mark.slow
@every_module
def test_gradients_are_those_of_finite_differences(name):
    for case, module in cases(name, grad=True, most=GRADCHECKS):
        names, parameters = zip(*module.named_parameters(), strict=True)
        flat, spec = tree_flatten(case.call)
        where = [i for i, t in enumerate(flat) if is_floating(t) and t.requires_grad]

        def called(*given, module=module, names=names, flat=flat, spec=spec, where=where):
            new = list(flat)
            for i, t in zip(where, given, strict=False):
                new[i] = t
            args, kwargs = tree_unflatten(new, spec)
            state = dict(zip(names, given[len(where) :], strict=True))
            output = run(lambda *a, **k: torch.func.functional_call(module, state, a, k), (args, kwargs))
            return tuple(t for t in tensors(output) if is_floating(t))

        given = [fresh(flat[i]) for i in where] + [p.detach().clone().requires_grad_() for p in parameters]
        assert torch.autograd.gradcheck(called, given, fast_mode=True)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
def test_attention_to_batches(batch_first, need_weights):
    """The database has single sequences alone. What torch's answers in one piece, ours does; and often where not."""
    for batch, length, grad, same in itertools.product((1, 3), (1, 4), (True, False), (True, False)):
        layer = nx.MultiheadAttention(8, 2, batch_first=batch_first, rule=4).train(grad)
        query, source = (torch.randn((batch, size, 8) if batch_first else (size, batch, 8)) for size in (length, 5))
        call = (query, query, query) if same else (query, source, source)
        with torch.set_grad_enabled(grad):
            ours, theirs = (one(*call, need_weights=need_weights) for one in (layer, layer.to_torch()))
        close(ours, theirs, rtol=1e-4, atol=1e-5)
        for one, other in zip(tensors(ours), tensors(theirs), strict=True):
            assert one.is_contiguous() or not other.is_contiguous()
