"""Looking at a model before it is changed: what would change, what would stay, and why."""

from collections import Counter

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import is_lazy

from nplex.convert.report import Report, Row
from nplex.convert.spec import Conversion
from nplex.nn import Linear, Rule
from nplex.nn.sharing import check_base

CONVERTED = (nn.Linear, NonDynamicallyQuantizableLinear)
WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel", "OptimizedModule", "ScriptModule", "FSDPModule")
HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks",
    "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip


def survey(model: nn.Module, spec: Conversion) -> Report:
    """A row for each linear layer, and what else holds parameters.

    Raises:
        TypeError: the model is no module.
        ValueError: the model is itself a linear layer, is wrapped, or cannot hold the shared rule.
    """
    check_model(model)
    template = spec.template
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    holders: dict[int, set[str]] = {}
    for module, places in names.items():
        for key, parameter in module.named_parameters(recurse=False):
            holders.setdefault(id(parameter), set()).add(f"{places[0]}.{key}")
    rows = tuple(
        _row(module, places, spec, template, _tied(module, places, holders))
        for module, places in names.items()
        if isinstance(module, (nn.Linear, Linear))
    )
    common = 0
    if spec.registers and any(row.changes for row in rows):
        check_base(model)
        common = _numel(template)
    total = sum(p.numel() for p in model.parameters() if not is_lazy(p))
    return Report(rows, total, common, _others(names))


def check_model(model: nn.Module) -> None:
    """Refuses what cannot be converted as a whole."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"the model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, CONVERTED):
        raise ValueError("the model is itself a linear layer and cannot be replaced in place; use nplex.nn.Linear")
    for name, module in model.named_modules():
        kinds = {kind.__name__ for kind in type(module).__mro__} & set(WRAPPERS)
        if kinds:
            what = f"{name or 'the model'} is wrapped ({', '.join(sorted(kinds))})"
            raise ValueError(f"{what}; convert the model first, wrap it then")


def _row(module: nn.Module, places: list[str], spec: Conversion, template: Rule, tied: str) -> Row:
    """What happens to one linear layer."""
    was = _numel(module)
    label = f"Linear({module.in_features}, {module.out_features})"
    if isinstance(module, nn.Linear):
        reason = _kept(module, places, spec, template.n) or tied
        now = 0 if reason else _twin_size(module, template, spec)
        if not reason and now < was:
            twin = f"Linear({module.in_features}, {module.out_features}, rule={rule_label(template)})"
            return Row(places[0], tuple(places[1:]), label, was, twin, now, "")
        reason = reason or f"would have {now:,} parameters, not fewer"
    else:
        reason = "already converted"
    return Row(places[0], tuple(places[1:]), label, was, None, was, reason)


def _twin_size(module: nn.Linear, template: Rule, spec: Conversion) -> int:
    """Parameters of the layer that would take its place, its own rule included."""
    n = template.n
    components = n * -(-module.out_features // n) * -(-module.in_features // n)
    return components + (module.bias is not None) * module.out_features + (0 if spec.shares else _numel(template))


def _kept(module: nn.Linear, places: list[str], spec: Conversion, n: int) -> str:
    """The reason why a torch layer stays as it is, or nothing."""
    if is_lazy(module.weight):
        return "is not initialised yet: run one batch first"
    if type(module) not in CONVERTED:
        return f"{type(module).__name__} is a subclass of torch's Linear, which may do more"
    if spec.where is not None and not all(spec.where(name, module) for name in places):
        return "not selected by where" + " under all its names" * (len(places) > 1)
    for width in ("in_features", "out_features"):
        if n > getattr(module, width):
            return f"n = {n} is larger than {width} = {getattr(module, width)}"
    if not module.weight.is_floating_point():
        return f"its weight is {module.weight.dtype}, not floating point"
    own = [*module._modules, *module._buffers, *(set(module._parameters) - {"weight", "bias"})]
    if own or "forward" in vars(module):
        return f"holds more than weight and bias, which would be lost: {', '.join(own or ['its own forward'])}"
    if any(getattr(module, hooks) for hooks in HOOKS) or any(p._backward_hooks for p in module.parameters()):
        return "has hooks, which would be lost"
    return ""


def _tied(module: nn.Module, places: list[str], holders: dict[int, set[str]]) -> str:
    """The reason to leave a layer whose parameter another module holds too."""
    for key, parameter in module.named_parameters(recurse=False):
        others = holders[id(parameter)] - {f"{places[0]}.{key}"}
        if others:
            return f"its {key} is tied to {', '.join(sorted(others))}"
    return ""


def _others(names: dict[nn.Module, list[str]]) -> tuple[tuple[str, int, int], ...]:
    """Kinds of other modules that hold parameters: name, how many, their parameters."""
    modules, parameters = Counter(), Counter()
    for module in names:
        numbers = sum(p.numel() for p in module.parameters(recurse=False) if not is_lazy(p))
        if numbers and not isinstance(module, (nn.Linear, Linear, Rule)):
            modules[type(module).__name__] += 1
            parameters[type(module).__name__] += numbers
    return tuple((kind, count, parameters[kind]) for kind, count in modules.items())


def _numel(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if not is_lazy(p))


def rule_label(rule: Rule) -> str:
    """`4`, `4:7`, `quaternion`: a rule as the command line writes it."""
    algebra = getattr(rule, "algebra", None)
    if algebra is not None:
        return algebra.name
    return f"{rule.n}" if rule.rank is None else f"{rule.n}:{rule.rank}"
