"""Rules as they lie on disk: in a model's file, in a run, or as a table of numbers."""

from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from nplex.algebra import BilinearAlgorithm
from nplex.algebra.bilinear import check_real
from nplex.files import read_tensors
from nplex.nn.written import table_of_json

__all__ = ["stored_rules", "table_of_json", "learning_ends", "LEARNED"]

FACTORS = BilinearAlgorithm._fields
LEARNED = "table over training"  # what nplex rule learn writes into its file's header
FILES = ("model.safetensors", "rule.safetensors")  # in the folder of a run


def stored_rules(path: Path) -> dict[str, Float[Tensor, "n n n"] | BilinearAlgorithm]:
    """The rules of a file by their names, as float64: tables, or factors where the file holds those.

    Args:
        path: a .safetensors file: of a model that nplex or transformers saved, or the rules.safetensors of a run, of
            which the tables before the first step and after the last pass are given, or the rule.safetensors that
            nplex rule learn wrote; a folder with such a model or tables; or
            a .json file with n x n x n numbers, or with an object that has them as `table`.

    Raises:
        FileNotFoundError: there is nothing there.
        ValueError: it holds no rule, or one that is not a finite cube; says which.
    """
    if path.is_dir():
        found = next((path / name for name in FILES if (path / name).exists()), None)
        if found is None:
            raise FileNotFoundError(
                f"{path} holds no {' or '.join(FILES)}; name a file, or the folder of a run that is finished"
            )
        path = found
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder, and not the name of a known algebra")
    if path.suffix == ".json":
        return {path.stem: table_of_json(path)}
    every, header = read_tensors(path, foreign=True, sealed=True)
    tensors = {name: tensor for name, tensor in every.items() if _is_of_rule(name)}
    for name, tensor in tensors.items():
        check_real(f"{path}: {name}", tensor)
    tensors = {name: tensor.double() for name, tensor in tensors.items()}
    if header.get("holds") == LEARNED:
        try:
            rules: dict[str, Tensor | BilinearAlgorithm] = {**learning_ends(tensors)}
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from None
    else:
        rules = _of_run(tensors) if all("/" in name for name in tensors) else _of_model(tensors)
    if not rules:
        raise ValueError(f"{path} holds no rule: none of its tensors is called ...rule.table or ...rule.decode")
    for name, rule in rules.items():
        _check(f"{path}: {name}", rule)
    return rules


def learning_ends(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tables before the first step and after the last one, of each seed in a file of nplex rule learn.

    Raises:
        ValueError: a name is not `seed/step`.
    """
    steps: dict[int, list[int]] = {}
    for name in tensors:
        seed, _, step = name.partition("/")
        if not (seed.isdecimal() and step.isdecimal()):
            raise ValueError(f"expected tables called seed/step, got {name}")
        steps.setdefault(int(seed), []).append(int(step))
    ends = [(seed, step) for seed, found in sorted(steps.items()) for step in (min(found), max(found))]
    return {f"seed {seed}, step {step}": tensors[f"{seed}/{step}"] for seed, step in ends}


def _is_of_rule(name: str) -> bool:
    """Whether a tensor is one of a rule: `blocks.0.up.rule.table`, or `3/blocks.0.up.rule` of a run."""
    owner, _, last = name.rpartition(".")
    epoch, slash, _ = name.partition("/")
    return (bool(slash) and epoch.isdecimal()) or (owner.split(".")[-1] == "rule" and last in {"table", *FACTORS})


def _of_run(tensors: dict[str, Tensor]) -> dict[str, Tensor | BilinearAlgorithm]:
    """The tables before the first step and after the last pass, in the order of the layers."""
    epochs = sorted({int(name.partition("/")[0]) for name in tensors})
    layers = sorted({name.partition("/")[2] for name in tensors})
    wanted = {f"{layer}, epoch {epoch}": f"{epoch}/{layer}" for layer in layers for epoch in (epochs[0], epochs[-1])}
    return {shown: tensors[name] for shown, name in wanted.items() if name in tensors}


def _of_model(tensors: dict[str, Tensor]) -> dict[str, Tensor | BilinearAlgorithm]:
    """Tables and factors by the names of the rules that hold them."""
    rules: dict[str, Tensor | BilinearAlgorithm] = {}
    for name, tensor in tensors.items():
        owner, _, last = name.rpartition(".")
        if last == "table":
            rules[owner] = tensor
        elif owner not in rules and all(f"{owner}.{factor}" in tensors for factor in FACTORS):
            rules[owner] = BilinearAlgorithm(*(tensors[f"{owner}.{factor}"] for factor in FACTORS))
    return rules


def _check(name: str, rule: Tensor | BilinearAlgorithm) -> None:
    parts = [rule] if isinstance(rule, Tensor) else list(rule)
    shapes = {tuple(part.shape) for part in parts}
    (first, *_) = shapes
    cube = len(first) == 3 and len(set(first)) == 1
    if len(shapes) > 1 or not all(first) or not (cube if len(parts) == 1 else len(first) == 2):
        raise ValueError(f"{name}: expected n x n x n numbers or three factors n x R, got {sorted(shapes)}")
    if not all(bool(part.isfinite().all()) for part in parts):
        raise ValueError(f"{name}: expected finite numbers, got some that are not")
