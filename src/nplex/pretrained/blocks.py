"""Blocks of a model: found, watched while the model runs, and run again on what was seen."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from typing import Any, NamedTuple

from torch import Tensor, nn

from nplex.ops.tracing import version


class Call(NamedTuple):
    """One call of a block.

    Attributes:
        block: its name.
        arguments: positional ones and named ones.
        links: which tensors of the arguments an earlier block gave: number of the argument's tensor -> (number of
            that call, number of the output's tensor).
        outputs: the tensors of its output.
    """

    block: str
    arguments: tuple[tuple, dict[str, Any]]
    links: dict[int, tuple[int, int]]
    outputs: list[Tensor]

    @property
    def hidden(self) -> Tensor:
        """The hidden state that it gives."""
        return hidden_of(self.outputs)


def hidden_of(outputs: list[Tensor]) -> Tensor:
    """The first of floating point."""
    return next(tensor for tensor in outputs if tensor.is_floating_point())


def find_blocks(model: nn.Module, names: Iterable[str] | None, changed: Iterable[str]) -> list[str]:
    """The names of a model's blocks: those given, or the members of all lists of equal modules.

    Of lists inside lists the outer one counts: the layers of transformers' encoders and decoders. A list without a
    changed parameter does not count.

    Args:
        model: any model.
        names: of the blocks, as the user gives them; None to find them.
        changed: names of the parameters that are not the teacher's.

    Raises:
        TypeError: the names are no list.
        ValueError: a name is unknown, or no list was found.
    """
    modules, changed = dict(model.named_modules()), tuple(changed)
    if names is not None:
        if isinstance(names, str) or not isinstance(names, Iterable):
            raise TypeError(f"blocks must be a list of names, as ['encoder.0', 'encoder.1'], got {names!r}")
        named = list(names)
        if wrong := [name for name in named if name not in modules]:
            there = ", ".join(name for name, _ in model.named_children())
            raise ValueError(f"{wrong[0]!r} is not a module of {type(model).__name__}, which has {there}, ...")
        if not named:
            raise ValueError("blocks is empty; name some modules, as ['encoder.0', 'encoder.1'], or give None")
        return named
    lists: list[str] = []
    for name, module in modules.items():
        equal = isinstance(module, nn.ModuleList | nn.Sequential) and len({type(each) for each in module}) == 1
        holds = any(parameter.startswith(f"{name}." if name else "") for parameter in changed)
        if equal and holds and not any(name.startswith(f"{outer}.") or not outer for outer in lists):
            lists.append(name)
    found = [name for name in modules if name and name.rpartition(".")[0] in lists]
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no list of equal blocks with converted layers; name them, in the order in "
            f"which they run: blocks=['first', 'second']"
        )
    return found


@contextmanager
def watched(model: nn.Module, names: Iterable[str]) -> Iterator[list[Call]]:
    """A list that gets every call of the named blocks while the block of `with` runs.

    Raises:
        ValueError: a block gives no tensor of floating point; or what it took or gave was changed in place.
    """
    calls: list[Call] = []
    sources: dict[int, tuple[int, int]] = {}
    seen: list[tuple[str, Tensor, int]] = []

    def before(name: str, _module: nn.Module, positional: tuple, named: dict[str, Any]) -> None:
        seen.extend((name, tensor, version(tensor)) for tensor in tensors_of((positional, named)))

    def after(name: str, _module: nn.Module, positional: tuple, named: dict[str, Any], output: Any) -> None:
        inputs, outputs = tensors_of((positional, named)), tensors_of(output)
        if not any(tensor.is_floating_point() for tensor in outputs):
            raise ValueError(f"block {name} gives no tensor of floating point; name others by blocks=[...]")
        links = {i: sources[id(tensor)] for i, tensor in enumerate(inputs) if id(tensor) in sources}
        sources.update({id(tensor): (len(calls), i) for i, tensor in enumerate(outputs)})
        seen.extend((name, tensor, version(tensor)) for tensor in outputs)
        calls.append(Call(name, (positional, named), links, outputs))

    with ExitStack() as stack:
        for name in names:
            module = model.get_submodule(name)
            stack.callback(module.register_forward_pre_hook(partial(before, name), with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(partial(after, name), with_kwargs=True).remove)
        yield calls
    for name, tensor, number in seen:
        if version(tensor) != number:
            raise ValueError(
                f"what block {name} takes or gives is changed in place; name other blocks, or add a copy"
            )


def replay(model: nn.Module, calls: list[Call], first: int, last: int) -> list[Tensor]:
    """The hidden states of a model's own blocks on what the calls `first` to `last - 1` of another model took.

    What came there from a block of this range comes here from the model's own.
    """
    outputs: list[list[Tensor]] = []
    for call in calls[first:last]:
        block, numbers = model.get_submodule(call.block), count()
        like = next((p for p in block.parameters() if p.is_floating_point()), None)

        def own(tensor: Tensor, call: Call = call, numbers: Iterator[int] = numbers, like: Any = like) -> Tensor:
            source, leaf = call.links.get(next(numbers), (-1, 0))
            if source >= first:
                return outputs[source - first][leaf]
            if like is None:
                return tensor
            return tensor.to(like.device, like.dtype if tensor.is_floating_point() else tensor.dtype)

        positional, named = mapped(call.arguments, own)
        outputs.append(tensors_of(block(*positional, **named)))
    return [hidden_of(tensors) for tensors in outputs]


def mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Tuples, lists and mappings inside each other with their tensors changed; other things as they are."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple | list):
        inner = [mapped(each, change) for each in value]
        return type(value)(*inner) if hasattr(value, "_fields") else type(value)(inner)
    return {key: mapped(each, change) for key, each in value.items()} if isinstance(value, Mapping) else value


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors in tuples, lists and mappings, in order."""
    found: list[Tensor] = []
    mapped(value, found.append)
    return found
