"""What a model's layers get as input: their moments, streamed from some batches in one run each."""

import copy
import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nplex.convert.checking import as_before, run
from nplex.convert.report import FEW, Row
from nplex.convert.twins import is_transposed_linear
from nplex.nn import LowRankLinear
from nplex.nn.moments import Moments
from nplex.nn.nearest import Inputs
from nplex.nn.truncated import spectrum
from nplex.ops.tracing import version

WANTED = "an iterable of what the model takes: tensors, tuples of arguments, or mappings of names to them"


class _Input(NamedTuple):
    """What a part of a weight is multiplied with in one call.

    Attributes:
        weight: torch's name for it.
        part: its number among the parts of the weight.
        tensor: what holds the vectors.
        geometry: how they lie in it: two inputs of one tensor and one geometry are one.
        vectors: what takes them out, given those rows that are not padding.
    """

    weight: str
    part: int
    tensor: Tensor
    geometry: tuple
    vectors: Callable[[Tensor | None], Iterator[Tensor]]


class _Seen(NamedTuple):
    """A tensor that this forward has shown, its version, moments with it, their count then, and those without it."""

    tensor: weakref.ref
    version: int
    moments: Moments
    size: int
    before: weakref.ref | None


def observe(model: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable[Any]) -> dict[str, Inputs]:
    """The moments of the inputs of layers, by their names; a layer that no batch ran is not among them.

    The model runs once for each batch without gradients, in the modes it is in: `model.eval()` first turns dropout
    off. Its buffers and the states of random numbers are afterwards as before. Layers whose first input is one
    tensor, as those of query, key and value, share its moments. Where a batch is a mapping with an `attention_mask`
    of zeros and ones, and an input has the mask's shape before its last dimension, padding is left out. It is not in
    encoder-decoders, whose decoder's input may have that shape too: give them batches without padding. Of
    convolutions an input is a patch: what a place of the output sees, of one group of channels.

    Memory is width^2 numbers for each different input (nplex.nn.moments), whatever the number of batches.

    Args:
        model: it is run.
        layers: of the model: Linear, transformers' Conv1D, convolutions, MultiheadAttention; of others nothing is
            known.
        batches: each a tensor, a tuple or list of arguments, or a mapping of names to them.

    Raises:
        TypeError: the batches are not an iterable of what a model takes.
        ValueError: there are none, the model cannot take one, or a layer gets numbers that are not finite; names it.
    """
    if isinstance(batches, Tensor | Mapping | str) or not isinstance(batches, Iterable):
        raise TypeError(f"calibration must be {WANTED}; got one {type(batches).__name__}, put it in a list")
    if any(p.is_meta for p in model.parameters()):
        raise ValueError("calibration runs the model, but it is on the meta device: load its weights first")
    watch, count, fast = _Watch(model), 0, torch.backends.mha.get_fastpath_enabled()
    hooks = [layer.register_forward_hook(watch.hook(name), with_kwargs=True) for name, layer in layers.items()]
    torch.backends.mha.set_fastpath_enabled(False)  # it passes by the layers inside
    try:
        with as_before(model), torch.inference_mode(False), torch.no_grad():
            for count, batch in enumerate(batches, 1):
                check_batch(batch, f"calibration must be {WANTED}; batch {count}")
                watch.start(batch)
                run(model, batch, f"batch {count} of the calibration")
    except _NotFinite as error:
        raise ValueError(str(error)) from None
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for hook in hooks:
            hook.remove()
    if not count:
        raise ValueError(f"calibration has no batches; give {WANTED}. An iterator gives its batches only once")
    return watch.inputs()


def check_batch(batch: Any, what: str) -> None:
    """Refuses what cannot be a batch.

    Raises:
        TypeError: it is not a tensor, a mapping or a sequence.
    """
    if isinstance(batch, str) or not isinstance(batch, Tensor | Mapping | Sequence):
        raise TypeError(f"{what} is a {type(batch).__name__}")


def judged(row: Row, inputs: Inputs, layers: tuple[Any, Any], *, compare: bool) -> Row:
    """A row whose error is that of outputs, and what to know of its calibration.

    Args:
        row: of a fitted layer, with its error.
        inputs: what was known of the layer's inputs.
        layers: the new and the old one.
        compare: whether to add the error of two factors of the same size.
    """
    if not inputs:
        return replace(row, note="not calibrated: nearest weights")
    every = [moments for parts in inputs.values() for moments in parts]
    least = min(every, key=lambda moments: moments.count / len(moments.mean))
    few = f"{FEW}{least.count:,} for {len(least.mean):,} inputs" * (least.count < len(least.mean))
    row = replace(row, error=None, output_error=row.error, note=few)
    twin, dense = layers
    if not compare or not isinstance(dense, nn.Linear) or isinstance(twin, LowRankLinear):
        return row
    own = row.now_parameters - (0 if dense.bias is None else len(dense.bias))
    rank = max(1, own // sum(dense.weight.shape))
    squares = spectrum(dense, *inputs["weight"])
    error = float(squares[rank:].sum() / squares.sum().clamp_min(1e-300)) ** 0.5
    return replace(row, low_rank=rank, low_rank_error=error)


class _NotFinite(Exception):
    """A layer gets numbers that are not finite."""


class _Watch:
    """The hooks of one calibration, and what they saw."""

    def __init__(self, model: nn.Module) -> None:
        self.masked = not getattr(getattr(model, "config", None), "is_encoder_decoder", False)
        self.moments: dict[str, dict[tuple[str, int], Moments]] = {}
        self.seen: dict[tuple, _Seen] = {}
        self.mask: Tensor | None = None

    def start(self, batch: Any) -> None:
        """Forgets the tensors of the last batch, and looks which tokens of this one are padding."""
        mask = batch.get("attention_mask") if self.masked and isinstance(batch, Mapping) else None
        self.mask = mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None
        self.seen.clear()

    def hook(self, name: str) -> Callable[..., None]:
        """What looks at the calls of one layer."""
        own = self.moments.setdefault(name, {})

        def look(layer: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            for given in _inputs(layer, args, kwargs):
                self._take(own, given)
                if not own[given.weight, given.part].is_finite:
                    raise _NotFinite(f"calibration: the input of {name} is not finite; look at batch and weights")

        return look

    def _take(self, own: dict[tuple[str, int], Moments], given: _Input) -> None:
        """One input of one weight; what another layer with the same past has taken in is not taken in twice."""
        slot, key = (given.weight, given.part), (id(given.tensor), *given.geometry)
        seen, old = self.seen.get(key), own.get(slot)
        past = None if old is None else weakref.ref(old)
        number = -1 if given.tensor.is_inference() else version(given.tensor)  # those cannot be changed here
        if seen is not None and seen.tensor() is given.tensor and seen.version == number:
            if seen.before == past and seen.size == seen.moments.count:
                own[slot] = seen.moments
            if own.get(slot) is seen.moments:
                return
        moments = Moments() if old is None else old
        if sum(each is old for slots in self.moments.values() for each in slots.values()) > 1:
            moments = copy.deepcopy(moments)  # the others may never get this input
        own[slot] = moments
        for vectors in given.vectors(self.mask):
            moments.add(vectors)
        self.seen[key] = _Seen(weakref.ref(given.tensor), number, moments, moments.count, past)

    def inputs(self) -> dict[str, Inputs]:
        """By layer and weight, the parts in order; without layers that got no vectors."""
        found: dict[str, dict[str, list[Moments]]] = {}
        for name, slots in self.moments.items():
            if slots and all(moments.count for moments in slots.values()):
                for (weight, _), moments in sorted(slots.items(), key=lambda item: item[0]):
                    found.setdefault(name, {}).setdefault(weight, []).append(moments)
        return dict(found)


def _inputs(layer: Any, args: tuple, kwargs: dict) -> Iterator[_Input]:
    """What each weight of a layer is multiplied with in one call; nothing for layers of other kinds."""
    if isinstance(layer, nn.MultiheadAttention):
        given = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
        packed = layer.in_proj_weight is not None
        for part, name in enumerate(("query", "key", "value")):
            weight = "in_proj_weight" if packed else f"{name[0]}_proj_weight"
            yield _rows(weight, part if packed else 0, given[name])
        yield _rows("out_proj.weight", 0, _attended(layer, args, kwargs))
    elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        x = args[0] if args else kwargs["input"]
        geometry = layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.padding_mode
        for group in range(layer.groups):
            vectors = functools.partial(_patches, layer, x, group)
            yield _Input("weight", group, x, (*geometry, layer.groups, group), lambda mask, take=vectors: take())
    elif isinstance(layer, nn.Linear) or is_transposed_linear(layer):
        yield _rows("weight", 0, args[0] if args else next(iter(kwargs.values())))


def _rows(weight: str, part: int, x: Tensor) -> _Input:
    """Vectors in the last dimension."""

    def vectors(mask: Tensor | None) -> Iterator[Tensor]:
        real = x[mask] if mask is not None and x.shape[:-1] == mask.shape else x
        yield real.reshape(-1, x.shape[-1])

    return _Input(weight, part, x, (), vectors)


def _attended(layer: nn.MultiheadAttention, args: tuple, kwargs: dict) -> Tensor:
    """What the output's projection of attention gets: the layer once more, with one that changes nothing."""
    plain = copy.copy(layer)
    out = nn.Linear(layer.embed_dim, layer.embed_dim, False, device="meta")
    eye = torch.eye(layer.embed_dim, device=layer.out_proj.weight.device, dtype=layer.out_proj.weight.dtype)
    out.weight = nn.Parameter(eye, requires_grad=False)
    plain._modules = layer._modules | {"out_proj": out}
    return plain.forward(*args, **kwargs)[0]


def _patches(layer: Any, x: Tensor, group: int) -> Iterator[Tensor]:
    """What each place of a convolution's output sees of one group: channels first, then places of the kernel."""
    dimensions = len(layer.kernel_size)
    batch = x if x.ndim == dimensions + 2 else x[None]
    width = layer.in_channels // layer.groups
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    for image in batch[:, group * width : (group + 1) * width].split(1):
        seen = F.pad(image, layer._reversed_padding_repeated_twice, mode=mode)
        for d, (size, stride, step) in enumerate(
            zip(layer.kernel_size, layer.stride, layer.dilation, strict=True), 2
        ):
            seen = seen.unfold(d, step * (size - 1) + 1, stride)[..., ::step]
        places = range(2, 2 + dimensions)
        yield seen.permute(0, *places, 1, *range(2 + dimensions, 2 + 2 * dimensions)).reshape(
            -1, layer.weight[0].numel()
        )
