"""Adapters on disk, without the base: their numbers and what else is trained, and a description as JSON."""

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nplex.adapters.adding import adapted, check_addable, check_known, check_options, make_deltas, parts, put_in
from nplex.adapters.choosing import linear_layers
from nplex.adapters.compacter import read_compacter
from nplex.adapters.delta import Delta
from nplex.convert.reasons import check_model, check_not_merged
from nplex.convert.rule_record import read_rule, rule_record
from nplex.convert.twins import is_transposed_linear
from nplex.files import read_json, read_tensors, write_json, write_tensors
from nplex.nn import Rule
from nplex.nn.computed import Computed

FORMAT = 1
DESCRIPTION, NUMBERS = "adapters.json", "adapters.safetensors"
TRAINED = "trained."  # begins the names of what else was trained
SAMPLE, APART = 16, 0.1
_KEYS = {"rule", "shared", "low_rank", "scale", "dropout", "layers"}


def save(model: nn.Module, folder: str | Path, *, name: str | None = None) -> None:
    """Writes adapters, the active one last, and all else that is trained, as a new head.

    The files are `adapters.json` and `adapters.safetensors`. The first holds the rule, sizes and layers of each
    adapter, and a few numbers of each weight of the base, by which `load` knows another base. The second holds no
    number of the base that was not trained.

    Args:
        model: with adapters, not merged.
        folder: made where it is not there; the two files are replaced.
        name: of one adapter; None for all.

    Raises:
        ValueError: the adapter is unknown, one is merged, or a number is not finite; or the model is wrapped.
        OSError: the files cannot be written.
    """
    check_model(model)
    check_not_merged(model)
    check_known(model, name)
    layers = adapted(model)
    active = {m.adapters.active for m in layers.values()}
    names = [name] if name else sorted(dict.fromkeys(key for key, _ in parts(model)), key=active.__contains__)
    found = {key: {at: m.adapters[key] for at, m in layers.items() if key in m.adapters} for key in names}
    guests = {id(p) for _, part in parts(model) for p in part.parameters()}
    trained = {at: p for at, p in model.named_parameters() if p.requires_grad and id(p) not in guests}
    tensors: dict[str, Tensor] = {TRAINED + at: p for at, p in trained.items()}
    for key, deltas in found.items():
        tensors |= _numbers(key, deltas)
    _check_finite(tensors)
    described = {key: _describe(key, deltas, model) for key, deltas in found.items()}
    write_tensors(Path(folder) / NUMBERS, tensors, {"adapters": described})
    write_json(Path(folder) / DESCRIPTION, {"format": FORMAT, "adapters": described})


def load(model: nn.Module, folder: str | Path, *, name: str | None = None, same_base: bool = True) -> list[str]:
    """Adds the adapters that `save` wrote, the last one active, and what else was trained.

    Everything is checked before the model is changed: names, sizes, numbers, and whether the base is the one that
    they were trained on. A safetensors file with Compacter's names is read too: `phm_rule`, and `W_left` and
    `W_right` under the name of a linear layer; their order of factors is turned into ours.

    Args:
        model: the base, with other adapters or without.
        folder: as written by `save`; or a file, or a folder with one file, in Compacter's names.
        name: for the adapter, where the folder holds one; None for the names that they have.
        same_base: whether to refuse a base whose weights are others than those that the adapter was trained on.

    Returns:
        The names of the adapters.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: it is damaged, holds numbers that are not finite, or belongs to another base; or a name is taken.

    Examples:
        >>> import tempfile
        >>> from nplex.adapters import add_
        >>> model, again = nn.Sequential(nn.Linear(8, 8)), nn.Sequential(nn.Linear(8, 8))
        >>> answer = again.load_state_dict(model.state_dict())
        >>> report = add_(model, 2, name="german")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(model, folder)
        ...     load(again, folder)
        ['german']
    """
    path = Path(folder)
    described, tensors = _read(path) if (path / DESCRIPTION).exists() else read_compacter(path)
    if name is not None:
        if len(described) != 1:
            raise ValueError(
                f"{path} holds {len(described)} adapters ({', '.join(described)}), name= is for one alone"
            )
        (old,) = described
        tensors = {re.sub(rf"^{re.escape(old)}/", lambda _: f"{name}/", at): value for at, value in tensors.items()}
        described = {name: described[old]}
    check_addable(model, described)
    try:
        made = {key: _make(model, data) for key, data in described.items()}
        _check_base(model, described, same_base)
        numbers = _checked(model, made, tensors)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not fit this {type(model).__name__}: {error}") from None
    for key, (deltas, common) in made.items():
        put_in(model, key, {model.get_submodule(at): delta for at, delta in deltas.items()}, common)
    with torch.no_grad():
        for at, own in numbers.items():
            own.copy_(tensors[at])
            if at.startswith(TRAINED):
                own.requires_grad_(True)
    return list(described)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The checked description and the tensors of a folder."""
    data = read_json(path / DESCRIPTION)
    number, described = data.get("format"), data.get("adapters")
    if isinstance(number, int) and number > FORMAT:
        raise ValueError(f"{path} has format {number}, this nplex reads {FORMAT}; pip install --upgrade nplex")
    if data.keys() != {"format", "adapters"} or not isinstance(described, dict) or not described:
        raise ValueError(f"{path / DESCRIPTION} is damaged: it has {sorted(data)}; save the adapters again")
    tensors, header = read_tensors(path / NUMBERS, sealed=True)
    if header.get("adapters") != described:
        raise ValueError(f"{path}: {DESCRIPTION} and {NUMBERS} are not of one save; save the adapters again")
    return described, tensors


def _numbers(name: str, deltas: dict[str, Delta]) -> dict[str, Tensor]:
    """The tensors of an adapter by their names in a file: `german/rule.table`, `german/encoder.up.left`."""
    found = {}
    for at, delta in deltas.items():
        found |= {f"{name}/{at}.left": delta.left, f"{name}/{at}.right": delta.right}
        owner = "" if delta.rule.is_shared else f"{at}."
        found |= {f"{name}/{owner}rule.{key}": value for key, value in delta.rule.state_dict().items()}
    return found


def _describe(name: str, deltas: dict[str, Delta], model: nn.Module) -> dict[str, Any]:
    """An adapter as JSON data."""
    rules = [rule_record(delta.rule) for delta in deltas.values()]
    rules = [rule | {"learned": True} if "learned" in rule else rule for rule in rules]
    first, delta = rules[0], next(iter(deltas.values()))
    if any(rule != first for rule in rules):
        raise ValueError(
            f"the rules of adapter {name!r} are of several kinds, as after factorize_; unfactorize_ first"
        )
    layers = {
        at: {"in": d.in_features, "out": d.out_features, "base": _sample(model.get_submodule(at), frozen=True)}
        for at, d in deltas.items()
    }
    numbers = {"low_rank": delta.low_rank, "scale": delta.scale, "dropout": delta.dropout}
    return {"rule": first, "shared": delta.rule.is_shared, **numbers, "layers": layers}


def _make(model: nn.Module, data: Any) -> tuple[dict[str, Delta], Rule | None]:
    """The deltas of an adapter by their layers, and its shared rule; in no model yet, without their numbers.

    Raises:
        ValueError: it is damaged, or the model has other layers.
    """
    if not isinstance(data, dict) or data.keys() != _KEYS or not isinstance(data["layers"], dict):
        raise ValueError(f"an adapter is damaged: it has {data!r:.80}, expected {', '.join(sorted(_KEYS))}")
    stored, there = read_rule(data["rule"]), linear_layers(model)
    for at, sizes in data["layers"].items():
        if at not in there:
            raise ValueError(f"it has a delta for {at!r}, which is not a linear layer of this model")
        if (own := there[at][1]) != (sizes["in"], sizes["out"]):
            raise ValueError(f"{at} is {sizes['in']} -> {sizes['out']} in it, and {own[0]} -> {own[1]} in the model")
    options = {key: data[key] for key in ("low_rank", "scale", "dropout")}
    check_options(stored.make(torch.device("meta"), torch.float32), **options)
    widths = dict(there[at] for at in data["layers"])
    deltas, common, reasons = make_deltas(widths, stored.make, bool(data["shared"]), options)
    if reasons:
        raise ValueError(next(iter(reasons.values())))
    if any(delta.left.is_meta for delta in deltas.values()):
        raise ValueError("the model is on the meta device, where an adapter has no numbers: load the base first")
    return {at: deltas[there[at][0]] for at in data["layers"]}, common


def _checked(model: nn.Module, made: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the tensors of a file are to be copied into, by their names there.

    Raises:
        ValueError: one is missing, over, of another shape, or not finite.
    """
    numbers: dict[str, Tensor] = {TRAINED + at: p for at, p in model.named_parameters() if TRAINED + at in tensors}
    for key, (deltas, _) in made.items():
        numbers |= _numbers(key, deltas)
    if odd := numbers.keys() ^ tensors.keys():
        raise ValueError(f"{min(odd)} is {'missing in it' if min(odd) in numbers else 'not in the model'}")
    for at, own in numbers.items():
        if tensors[at].shape != own.shape or not tensors[at].is_floating_point():
            raise ValueError(f"{at} is {tuple(tensors[at].shape)} in it, expected {tuple(own.shape)}")
    _check_finite(tensors)
    return numbers


def _check_base(model: nn.Module, described: dict[str, Any], same: bool) -> None:
    """Compares sampled weights with those of the model, relative to their size.

    Raises:
        ValueError: they are apart.
    """
    layers = [(at, data["base"]) for adapter in described.values() for at, data in adapter["layers"].items()]
    pairs = [(_sample(model.get_submodule(at)), other) for at, other in layers if same and other is not None]
    pairs = [(own, other) for own, other in pairs if own is not None]
    apart = math.hypot(*(math.dist(own, other) for own, other in pairs))
    size = math.hypot(*(number for _, other in pairs for number in other))
    if apart > APART * size:
        raise ValueError(
            f"the weights of the base are others than those that it was trained on (relative distance "
            f"{apart / size:.2g}); load the right base first, or same_base=False"
        )


@torch.no_grad()
def _sample(layer: Any, *, frozen: bool = False) -> list[float] | None:
    """A few numbers of a layer's dense weight, d_out x d_in; None where it has none, is quantized, or not frozen."""
    weight: Any = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or weight.is_meta or not weight.is_floating_point():
        return None
    if type(weight) not in (nn.Parameter, Computed) or (
        frozen and any(p.requires_grad for p in layer.parameters(False))
    ):
        return None
    weight = weight.mT if is_transposed_linear(layer) else weight
    rows = torch.linspace(0, weight.shape[0] - 1, SAMPLE).long()
    columns = torch.linspace(0, weight.shape[1] - 1, SAMPLE).long().flip(0)
    return [float(f"{value:.6g}") for value in weight[rows, columns].float().tolist()]


def _check_finite(tensors: dict[str, Tensor]) -> None:
    for at, value in tensors.items():
        if not bool(value.isfinite().all()):
            raise ValueError(f"{at} has numbers that are not finite: training diverged, take an earlier state")
