"""The weight as a layer shows it: used as any tensor, and never written, since nobody would see it."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from nplex.ops.tracing import Adoptable, is_eager

_ADVICE = (
    "a layer's weight is built from its rule and components at each reading, so the layer would not change. To give "
    "it first values: nplex.nn.init.like_(layer, torch.nn.init.zeros_), or any other; to change it, change rule and "
    "components; to change a copy, take weight.clone() first"
)
# What torch's users write through to reach a parameter.
_VIEWS = frozenset([
    "data", "detach", "view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "squeeze", "unsqueeze",
    "ravel", "expand", "expand_as", "T", "mT", "t", "H", "mH", "adjoint", "transpose", "permute", "movedim",
    "moveaxis", "swapaxes", "swapdims", "narrow", "select", "diagonal", "unfold", "as_strided", "real", "__getitem__",
    "__iter__", "chunk", "split", "split_with_sizes", "tensor_split", "hsplit", "vsplit", "dsplit", "unbind",
    "requires_grad_",
])  # fmt: skip
_WRITES = frozenset(
    f"__{name}__"
    for name in ["setitem", "iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior"]
)
_NO_WRITES = frozenset(("requires_grad_", "share_memory_"))


class _Kind(type(Tensor)):
    def __instancecheck__(cls, instance: Any) -> bool:
        """True of every tensor: torch.testing compares only what is related, as a parameter and a weight are."""
        return isinstance(instance, Tensor)


class Computed(Adoptable, Tensor, metaclass=_Kind):  # pyright: ignore - torch's mark is a property here
    """A weight that refuses to be written.

    It is the weight itself under another class: torch's functions get the plain tensor, and give plain ones. So
    derivatives, hooks and `nn.Parameter(weight)` are as those of any computed tensor; the class costs some
    microseconds at each function that takes it. Its views refuse too, as do `.data` and `.detach()`, because torch's
    users write through them; copies do not: clone, to, cpu, float, contiguous. What numpy writes cannot be seen.
    """

    plain: Tensor

    @classmethod
    def __torch_function__(cls, func: Callable, types: Iterable, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, name_of_attribute = func.__name__, getattr(getattr(func, "__self__", None), "__name__", "")
        if _writes(name, name_of_attribute, args, kwargs):
            raise RuntimeError(f"{name_of_attribute or name} writes into a computed weight: {_ADVICE}")
        result = func(*_plain(args), **_plain(kwargs))
        return _guarded(result) if (name_of_attribute if name == "__get__" else name) in _VIEWS else result

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and name != "plain" and not hasattr(type(self), name):
            warnings.warn(f"the attribute {name!r} is lost at the next reading: {_ADVICE}", stacklevel=2)
        super().__setattr__(name, value)

    def become_parameter(self) -> None:
        """From then on it is a tensor of the caller's own."""
        needs_grad = vars(self).pop("plain").requires_grad
        self.__class__ = nn.Parameter  # pyright: ignore - as torch's own UninitializedParameter does
        self.requires_grad_(needs_grad)


def read_only(weight: Tensor) -> Tensor:
    """The weight for somebody to look at; left plain where torch.compile, export or a transform looks on."""
    if not is_eager(weight):
        return weight
    shown = weight.detach().as_subclass(Computed)  # derivatives are those of the plain one
    shown.plain = weight
    return shown


def _writes(name: str, attribute: str, args: tuple, kwargs: Mapping) -> bool:
    """Whether the function changes the numbers of a computed weight, which may be its second argument only read."""
    target = args[0] if args else next(iter(kwargs.values()), None)
    if name == "__set__":
        lost = attribute == "data" or (attribute == "grad" and args[1] is not None)
        return lost and type(target) is Computed
    in_place = name in _WRITES or (name[-1] == "_" and name[:2] != "__" and name not in _NO_WRITES)
    return _has_computed(kwargs.get("out")) or ((in_place or bool(kwargs.get("inplace"))) and _has_computed(target))


def _has_computed(value: Any) -> bool:
    return type(value) is Computed or (isinstance(value, (list, tuple)) and any(map(_has_computed, value)))


def _plain(value: Any) -> Any:
    """The plain tensors of an argument, whatever holds them."""
    if type(value) is Computed:
        return value.plain
    if type(value) in (tuple, list):
        return type(value)(map(_plain, value))
    return {key: _plain(v) for key, v in value.items()} if type(value) is dict else value


def _guarded(result: Any) -> Any:
    if isinstance(result, Tensor):
        return read_only(result)
    return iter([*map(read_only, result)]) if isinstance(result, Iterator) else type(result)(map(read_only, result))
