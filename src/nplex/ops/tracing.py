"""What surrounds a call: who looks on, autocast; and every private name of torch that nplex uses.

A test looks whether each private name still exists.
"""

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.autograd import forward_ad
from torch.fx import Proxy
from torch.utils._python_dispatch import TorchDispatchMode

_PLAIN = (Tensor, torch.nn.Parameter)
_FAKE, _PROXY = torch._C._TorchDispatchModeKey.FAKE, torch._C._TorchDispatchModeKey.PROXY  # the latter: make_fx
Function = TypeVar("Function", bound=Callable)


def is_eager(*tensors: Tensor | None) -> bool:
    """True for ordinary tensors in an ordinary call.

    False while torch.compile, export, jit.trace, make_fx, FakeTensorMode, torch.func's transforms or forward-mode
    derivatives look on, and for subclasses of Tensor (FakeTensor, DTensor, ...): what is written there must be
    differentiable as it stands, and numbers cannot be read.
    """
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None or _is_transformed():
        return False
    if torch._C._get_dispatch_mode(_FAKE) is not None or torch._C._get_dispatch_mode(_PROXY) is not None:
        return False
    for tensor in tensors:  # noqa: SIM110 - all(...) takes microseconds, a part of what a small layer takes
        if tensor is not None and type(tensor) not in _PLAIN:
            return False
    return True


def is_transformed() -> bool:
    """Whether torch.func's transforms or forward-mode derivatives look on, which the fused kernels do not know."""
    return not torch.compiler.is_compiling() and _is_transformed()


def is_batched(tensor: Tensor) -> bool:
    """Whether it stands for several tensors: under torch.func.vmap, or as a gradient with is_grads_batched."""
    return is_transformed() or torch._C._functorch.is_legacy_batchedtensor(tensor)  # pyright: ignore


def _is_transformed() -> bool:
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def plain_sizes(function: Function) -> Function:
    """The function; under torch.jit.trace one that sees sizes as Python's numbers, which are tensors there else."""
    if torch.compiler.is_compiling() or (state := torch._C._get_tracing_state()) is None:
        return function

    def _untraced(*args: Any) -> Any:
        torch._C._set_tracing_state(None)  # pyright: ignore - None ends it
        try:
            return function(*args)
        finally:
            torch._C._set_tracing_state(state)  # pyright: ignore

    return _untraced  # pyright: ignore


def is_recorded() -> bool:
    """Whether hooks see the tensors that are saved for backward, as those of checkpointing, which counts them."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None  # pyright: ignore


@contextlib.contextmanager
def real_numbers() -> Iterator[None]:
    """Inside, tensors have numbers, on the CPU: also in `with torch.device("meta")` and in FakeTensorMode."""
    fake = torch._C._unset_dispatch_mode(_FAKE)
    try:
        with torch.device("cpu"):
            yield
    finally:
        if fake is not None:
            torch._C._set_dispatch_mode(fake)


def has_numbers(tensor: Tensor) -> bool:
    """Whether its numbers can be read: neither on the meta device, nor one of FakeTensorMode."""
    return not tensor.is_meta and getattr(tensor, "fake_mode", None) is None


def is_distributed(tensor: Tensor) -> bool:
    """Whether it is sharded, or a replica: a DTensor. Looks without loading torch.distributed.tensor."""
    return type(tensor) not in _PLAIN and hasattr(tensor, "device_mesh")


class Adoptable:
    """A tensor that learns when `nn.Parameter(tensor)` takes it: torch marks it then as a parameter."""

    def become_parameter(self) -> None:
        """Called then."""
        raise NotImplementedError

    @property
    def _is_param(self) -> bool:
        return False

    @_is_param.setter
    def _is_param(self, value: bool) -> None:
        self.become_parameter()


def version(tensor: Tensor) -> int:
    """A number that every in-place operation on the tensor raises, except those on its `.data`."""
    return tensor._version


def constant_when_compiled(function: Function) -> Function:
    """Marks a function of plain numbers whose answer torch.compile takes as a constant, and does not trace.

    torch.compiler.assume_constant_result does the same, but imports all of the compiler.
    """
    setattr(function, "_dynamo_marked_constant", True)  # noqa: B010
    return function


def forget_graphs() -> None:
    """Lets torch.compile look anew at what it compiled: it does not see hooks that are added afterwards."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


@constant_when_compiled
def is_transformed_when_compiled() -> bool:
    """As is_transformed, of what torch.compile is just tracing."""
    return _is_transformed()


def is_static(size: int) -> bool:
    """Whether torch.compile knows a size as a number; False for one that stands for all, and before torch 2.8."""
    from torch.fx.experimental import symbolic_shapes  # here: it loads sympy

    return hasattr(symbolic_shapes, "has_static_value") and symbolic_shapes.has_static_value(size)


def outside_graphs(function: Callable) -> Callable:
    """Marks a function that torch.compile leaves out of its graphs.

    The public torch.compiler.disable loads the compiler at once; this one when the function is called.
    """
    return _disable_dynamo(function)


class Leaf:
    """Layers that torch.fx.symbolic_trace keeps as one call, as it does with torch's own."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        forward: Any = getattr(cls, "forward", None)
        if forward and ("forward" in vars(cls) or not hasattr(forward, "_is_leaf")):
            cls.forward = _as_one_call(forward)


def _as_one_call(forward: Any) -> Any:
    @functools.wraps(forward)
    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        for given in (*args, *kwargs.values()):
            if isinstance(given, Proxy):
                tracer: Any = given.tracer
                return tracer.create_proxy("call_module", tracer.path_of_module(self), args, kwargs)
        return forward(self, *args, **kwargs)

    called._is_leaf = True  # pyright: ignore
    return called


def recurrence_is_traced() -> bool:
    """Whether torch.compile may take recurrent layers into a graph, `torch._dynamo.config.allow_rnn`."""
    return torch._dynamo.config.allow_rnn


def state_asked_of() -> tuple[torch.nn.Module | None, Any, int]:
    """The module whose state_dict() runs, what that fills in, and how many calls lie between it and the caller.

    Torch's hooks know the inner module alone, while the question is often what the outermost one holds. None where
    accelerate asks, which looks only whether a part has a state.
    """
    frame, calls = inspect.currentframe(), 0
    module, destination, depth = None, None, 0
    while frame is not None and (frame := frame.f_back) is not None:
        calls += 1
        if frame.f_code is torch.nn.Module.state_dict.__code__:
            asked = frame.f_locals
            if destination is None or asked["destination"] is destination:
                module, destination, depth = asked["self"], asked["destination"], calls
        elif frame.f_globals.get("__name__") == "accelerate.hooks":
            return None, None, 0
    return module, destination, depth


def autocast_type(tensor: Tensor) -> torch.dtype | None:
    """The type that autocast gives a matmul of this tensor, or None where it is off or unknown to the device."""
    device = tensor.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def cast(tensor: Any, dtype: torch.dtype) -> Any:
    """In autocast's type, as it would do for each matmul; float64 stays, and so does None."""
    return tensor if tensor is None or tensor.dtype == torch.float64 else tensor.to(dtype)


def full_precision(tensor: Tensor) -> contextlib.AbstractContextManager:
    """A context without autocast, for what torch's layer does in the type of its weight."""
    if autocast_type(tensor) is None:
        return contextlib.nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)


def onednn_pack(weight: Tensor, rows: int) -> Tensor:
    """The weight in oneDNN's order for about so many rows; opaque, only `onednn_linear` can read it."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, rows)


def onednn_linear(x: Tensor, packed: Tensor) -> Tensor:
    """`x weight^T` for a packed weight."""
    return torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")


@functools.cache
def onednn_packs(dtype: torch.dtype) -> bool:
    """Whether this torch on this processor packs weights of this type, and gives what it should; tried once.

    oneDNN computes in bfloat16 only on processors with AVX-512, and raises an error on others.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    x, weight = torch.arange(6.0).reshape(2, 3).to(dtype), torch.arange(12.0).reshape(4, 3).to(dtype)
    try:
        return torch.equal(onednn_linear(x, onednn_pack(weight, 2)), x @ weight.mT)
    except (AttributeError, RuntimeError, TypeError):
        return False


class OperandWatch(TorchDispatchMode):
    """Inside, `see` is given every tensor that an operation of torch takes, also without gradients."""

    def __init__(self, see: Callable[[Tensor], object]) -> None:
        super().__init__()
        self._see = see

    def __torch_dispatch__(
        self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        """Looks at the operands, then computes as ever."""
        kwargs = kwargs or {}
        for operand in (*args, *kwargs.values()):
            for tensor in operand if isinstance(operand, list | tuple) else (operand,):
                if isinstance(tensor, Tensor):
                    self._see(tensor)
        return func(*args, **kwargs)
