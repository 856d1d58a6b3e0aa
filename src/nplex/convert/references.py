"""Where a model holds its layers and their numbers: modules, containers, bound methods, partials, attributes.

What Python hides is not found: local variables of other functions, globals, objects of other languages.
`nplex.check` sees by a forward whether such a one was left.
"""

import functools
import gc
import types
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

ATOMS = (
    int, float, complex, str, bytes, bytearray, range, slice, type(None), type, types.ModuleType, torch.dtype,
    torch.device, torch.Size,
)  # fmt: skip
IMMUTABLE = (tuple, frozenset, functools.partial, types.MethodType, types.BuiltinMethodType, weakref.ref)
PROXIES = (weakref.ProxyType, weakref.CallableProxyType)
REGISTERED = ("_modules", "_parameters", "_buffers")
OPAQUE = (types.FrameType, types.TracebackType, types.CodeType)
HEAP_TYPE = 1 << 9  # set in the flags of classes that were written in Python
FLAT = ("_flat_weights", "_flat_weight_refs")  # what torch's recurrent layers keep of their own parameters


class Slot(NamedTuple):
    """One place that holds a value.

    Attributes:
        path: its name, as `blocks.0.steps[1]`.
        get: gives the value.
        put: puts another one there; None where that cannot be done exactly.
        home: the module in which the value is registered, else None.
    """

    path: str
    get: Callable[[], Any]
    put: Callable[[Any], None] | None
    home: nn.Module | None = None


class References:
    """All places of a model at which modules and tensors are held."""

    def __init__(self, model: nn.Module) -> None:
        self._modules: dict[int, list[Slot]] = defaultdict(list)
        self._tensors: dict[tuple, list[tuple[Slot, int, int]]] = defaultdict(list)
        for slot in walk([model]):
            value = slot.get()
            if isinstance(value, nn.Module):
                self._modules[id(value)].append(slot)
            elif isinstance(value, Tensor):
                key, start, end = _memory(value)
                self._tensors[key].append((slot, start, end))

    def reason(self, layer: nn.Module, gone: Callable[[nn.Module], bool] = lambda part: False) -> str:
        """Why a layer cannot be replaced wherever it is held, or nothing; `gone` names parts without a successor."""
        parts = set(layer.modules())
        for part in parts:
            for path, _, put, home in self._modules[id(part)]:
                if put is None or (gone(part) and home not in parts):
                    what = "a part of it is " * (part is not layer)
                    return f"{what}also held by {path}, which cannot be changed"
        for name, number in (*layer.named_parameters(), *layer.named_buffers()):
            key, start, end = _memory(number)
            found = [s for s, first, last in self._tensors[key] if first < end and start < last]
            others = sorted({s.path for s in found if s.home is None or s.home not in parts})
            if others:
                return f"its {name} is tied to {', '.join(others[:3])}" + ", ..." * (len(others) > 3)
        return ""


def exchange_modules(model: nn.Module, swaps: dict[nn.Module, nn.Module]) -> None:
    """Puts new modules, and their parts, at all places that hold the old ones.

    Raises:
        ValueError: one of the places cannot be changed; nothing is changed then.
    """
    new: dict[int, nn.Module] = {}
    for old, successor in swaps.items():
        parts = dict(successor.named_modules())
        pairs = [(part, parts[name]) for name, part in old.named_modules() if name in parts]
        new |= {id(part): other for part, other in pairs if other is not part}
    slots = [s for s in walk([model, *swaps.values()]) if id(s.get()) in new and id(s.home) not in new]
    for slot in slots:
        if slot.put is None:
            raise ValueError(f"a {type(slot.get()).__name__} is also held by {slot.path}, which cannot be changed")
    for slot in slots:
        slot.put(new[id(slot.get())])  # pyright: ignore - none is None here


def walk(roots: Iterable[Any]) -> Iterator[Slot]:
    """Every place that is reached from the roots; a mutable object is entered once, however often it is held."""
    seen: set[int] = set()
    todo = deque(Slot("", lambda root=root: root, None) for root in roots)
    while todo:
        slot = todo.popleft()
        value = slot.get()
        if type(value) not in PROXIES and not isinstance(value, IMMUTABLE):
            if id(value) in seen:
                continue
            seen.add(id(value))
        for part in _parts(slot, value):
            content = part.get()
            if _is_alive(content) if type(content) in PROXIES else not isinstance(content, ATOMS):
                yield part
                todo.append(part)


def _parts(slot: Slot, value: Any) -> Iterator[Slot]:
    """The places inside one object."""
    path = slot.path
    if type(value) in PROXIES:
        yield from _of_proxy(slot, value)
    elif isinstance(value, nn.Module):
        yield from _of_module(path, value)
    elif isinstance(value, dict):
        yield from _of_dict(value, lambda key: f"{path}[{key!r:.40}]")
        yield from (Slot(f"{path} (as a key)", lambda key=key: key, None) for key in value)
        yield from _of_object(path, value)
    elif isinstance(value, list | deque):
        for i in range(len(value)):
            yield Slot(
                f"{path}[{i}]", functools.partial(value.__getitem__, i), functools.partial(value.__setitem__, i)
            )
        yield from _of_object(path, value)
    elif isinstance(value, tuple):
        make = getattr(value, "_make", None) or (tuple if type(value) is tuple else None)
        for i in range(len(value)):
            yield _inside(slot, f"{path}[{i}]", lambda old, i=i: old[i], make and functools.partial(_with, make, i))
    elif isinstance(value, set):
        yield from (_of_set(path, value, element) for element in value)
    elif isinstance(value, frozenset):
        for element in value:
            yield Slot(f"{path}[...]", lambda element=element: element, None)
    elif isinstance(value, functools.partial):
        yield _inside(slot, path, lambda old: old.func, lambda old, new: _partial(old, new, old.args, old.keywords))
        yield _inside(slot, path, lambda old: old.args, lambda old, new: _partial(old, old.func, new, old.keywords))
        yield from _of_dict(value.keywords, lambda key: f"{path}({key}=)")
    elif isinstance(value, types.MethodType):
        name = value.__name__
        plain = hasattr(nn.Module, name) and getattr(type(value.__self__), name, None) is value.__func__
        bind = (lambda old, new: getattr(new, old.__name__)) if plain else None
        yield _inside(slot, path, lambda old: old.__self__, bind)
        yield Slot(path, lambda: value.__func__, None)
    elif isinstance(value, types.BuiltinMethodType):
        yield Slot(path, lambda: value.__self__, None)
    elif isinstance(value, weakref.ref):
        make = weakref.WeakMethod if isinstance(value, weakref.WeakMethod) else weakref.ref
        yield _inside(slot, path, lambda old: old(), lambda old, new: make(new))
    elif isinstance(value, types.FunctionType):
        yield from _of_function(path, value)
    elif type(value).__name__ == "ndarray" and value.dtype == object:  # of numpy
        for i in range(value.size):
            get = functools.partial(value.flat.__getitem__, i)
            yield Slot(f"{path}[{i}]", get, functools.partial(value.flat.__setitem__, i))
    elif type(value).__flags__ & HEAP_TYPE or isinstance(value, OPAQUE):
        yield from _of_object(path, value)
    else:  # iterators, views of dicts, generators
        yield from (Slot(path, lambda part=part: part, None) for part in gc.get_referents(value))


def _of_proxy(slot: Slot, proxy: Any) -> Iterator[Slot]:
    """What a weak proxy stands for."""
    target = weakref.ref(proxy.__repr__.__self__)
    yield _inside(slot, slot.path, lambda old: target(), lambda old, new: weakref.proxy(new))


def _is_alive(proxy: Any) -> bool:
    try:
        return bool(proxy.__class__)
    except ReferenceError:
        return False


def _of_module(path: str, module: nn.Module) -> Iterator[Slot]:
    """What is registered in a module, its attributes, and the containers that its class holds."""
    for key, value in vars(module).items():
        if key in REGISTERED:
            yield from _of_dict(value, lambda name: f"{path}.{name}".removeprefix("."), module)
        elif key not in FLAT:
            yield from _of_dict(vars(module), lambda name: f"{path}.{name}".removeprefix("."), only=key)
    for kind in type(module).__mro__:
        if kind.__module__.split(".")[0] not in ("torch", "nplex", "builtins"):
            for key, value in vars(kind).items():
                if isinstance(value, list | dict | set | tuple | nn.Module):
                    yield Slot(f"{kind.__name__}.{key}", lambda value=value: value, None)


def _of_object(path: str, value: Any) -> Iterator[Slot]:
    """The attributes of an object, also of a frozen one."""
    attributes = getattr(value, "__dict__", None)
    if isinstance(attributes, dict):
        yield from _of_dict(attributes, lambda key: f"{path}.{key}")
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for key in (slots,) if isinstance(slots, str) else tuple(slots):
            if hasattr(value, key) and type(vars(kind).get(key)) is types.MemberDescriptorType:
                put = functools.partial(object.__setattr__, value, key)
                yield Slot(f"{path}.{key}", functools.partial(getattr, value, key), put)


def _of_function(path: str, function: types.FunctionType) -> Iterator[Slot]:
    """What a function holds; its variables are those of the code around it, which are left as they are."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            content = cell.cell_contents
        except ValueError:  # empty as yet
            continue
        yield Slot(f"{path} (closure {name})", lambda content=content: content, None)
    for values in (function.__defaults__, function.__kwdefaults__):
        if values:
            yield Slot(f"{path} (defaults)", lambda values=values: values, None)
    yield from _of_dict(vars(function), lambda key: f"{path}.{key}")


def _of_dict(
    values: dict, name: Callable[[Any], str], home: nn.Module | None = None, only: Any = None
) -> Iterator[Slot]:
    """The values of a dict, or of one key of it."""
    for key in values if only is None else (only,):
        get, put = functools.partial(values.__getitem__, key), functools.partial(values.__setitem__, key)
        yield Slot(name(key), get, put, home)


def _of_set(path: str, values: set, element: Any) -> Slot:
    """One element of a set."""
    now = [element]

    def put(new: Any) -> None:
        values.discard(now[0])
        values.add(new)
        now[0] = new

    return Slot(f"{path}[...]", lambda: now[0], put)


def _inside(slot: Slot, path: str, get: Callable, make: Callable | None) -> Slot:
    """A place inside a value that cannot be changed, but made anew where it is held."""
    outer = slot.put
    put = None if outer is None or make is None else lambda new: outer(make(slot.get(), new))
    return Slot(path, lambda: get(slot.get()), put)


def _with(make: Callable, i: int, old: tuple, new: Any) -> Any:
    """A tuple with one entry exchanged."""
    return make((*old[:i], new, *old[i + 1 :]))


def _partial(old: functools.partial, function: Any, values: tuple, named: dict) -> functools.partial:
    """A partial with other parts."""
    made = functools.partial(function, *values, **named)
    vars(made).update(vars(old))
    return made


def _memory(tensor: Tensor) -> tuple[tuple, int, int]:
    """The storage of a tensor, with the first byte that it uses and the one after the last."""
    try:
        storage = tensor.untyped_storage().data_ptr()
    except (RuntimeError, ValueError):  # tensors without a memory of their own
        storage = 0
    if not storage or tensor.is_meta or tensor.layout is not torch.strided:
        return ("object", id(tensor)), 0, 1
    size = tensor.element_size()
    start = tensor.storage_offset() * size
    reach = sum((length - 1) * step for length, step in zip(tensor.shape, tensor.stride(), strict=True))
    return (tensor.device, storage), int(start), int(start + (reach + 1) * size * (tensor.numel() > 0))
