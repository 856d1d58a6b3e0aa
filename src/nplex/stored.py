"""Models as they lie on disk, for the command line: a Hugging Face folder, or a safetensors file.

A file tells names and shapes, not an architecture. That is enough to count and to convert its linear layers: their
weights become rule and components, in a file that `nplex.load` reads into the model; and to fold them back.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from nplex.convert.apply import apply_
from nplex.convert.record import read_record
from nplex.files import save

_MATRIX = 2


def open_model(path: Path, *, weights: bool) -> nn.Module:
    """The model of a folder or a file.

    Args:
        path: a folder that transformers wrote, or a .safetensors file.
        weights: whether they are loaded; else the model is on the meta device, and takes no memory.

    Raises:
        FileNotFoundError: there is nothing there.
        ValueError: it is neither; or it is damaged.
    """
    if path.is_dir():
        return _open_folder(path, weights)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    return _open_file(path, weights)


def write_model(model: nn.Module, source: Path, out: Path, *, force: bool = False) -> None:
    """Writes a model in the form of its source: a folder beside which is renamed, or a file.

    A folder gets the source's other small files too, as the tokenizer's.

    Raises:
        ValueError: out exists and force is not given.
    """
    check_out(source, out, force=force)
    if not source.is_dir():
        save(model, out)
        return
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        model.save_pretrained(part)  # pyright: ignore - transformers'
        for file in source.iterdir():
            weights = file.suffix in {".safetensors", ".bin", ".pt"} or file.name.endswith(".index.json")
            if file.is_file() and not weights and file.name != "README.md" and not (part / file.name).exists():
                shutil.copy2(file, part / file.name)
        if out.exists():
            shutil.rmtree(out)
        part.replace(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_out(source: Path, out: Path, *, force: bool) -> None:
    """Refuses to write over something.

    Raises:
        ValueError: out exists, or is the source.
    """
    if out.resolve() == source.resolve():
        raise ValueError(f"{out} is the model itself; name another place")
    if out.exists() and not force:
        raise ValueError(f"{out} exists; name another place, or give --force to replace it")
    if out.exists() and out.is_dir() != source.is_dir():
        raise ValueError(f"{out} is a {'folder' if out.is_dir() else 'file'}, the model is none; name another place")


def _open_folder(path: Path, weights: bool) -> nn.Module:
    """A model of transformers, of the class that config.json names."""
    if not (path / "config.json").is_file():
        raise ValueError(f"{path} holds no config.json; expected a folder that save_pretrained wrote")
    import transformers

    import nplex.huggingface

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
    names = config.architectures or []
    kind: Any = next((getattr(transformers, name) for name in names if hasattr(transformers, name)), None)
    kind = kind or transformers.AutoModel
    if weights:
        return kind.from_pretrained(path, local_files_only=True, dtype="auto")
    make: Callable[[Any], nn.Module] = kind if hasattr(kind, "forward") else kind.from_config
    with torch.device("meta"):
        model = make(config)
    held = getattr(config, "quantization_config", None)
    held = held if isinstance(held, dict) or held is None else held.to_dict()
    if held is not None and held.get("quant_method") == nplex.huggingface.METHOD:
        apply_(model, nplex.huggingface.moved(held["conversion"], held["base"], model))
    return model.eval()


def _open_file(path: Path, weights: bool) -> nn.Module:
    """A module with the names and shapes of a file: linear layers and embeddings, our layers, and bare parameters."""
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get("nplex", "null"))
            names = list(file.keys())
            shapes = {name: file.get_slice(name) for name in names}
            kinds = {name: _empty(part) for name, part in shapes.items()}
            tensors = {name: file.get_tensor(name) for name in names} if weights else kinds
    except (SafetensorError, ValueError, RecursionError, OSError) as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error})") from None
    header = header if isinstance(header, dict) else {}
    tensors |= {name: tensors[first] for name, first in header.get("tied", {}).items() if first in tensors}
    model, conversion = nn.Module(), header.get("conversion")
    ours = read_record(conversion) if conversion else {}
    for name, tensor in tensors.items():
        prefix, _, leaf = name.rpartition(".")
        if leaf == "weight" and prefix not in ours and _is_linear(name, tensor, tensors.get(f"{prefix}.bias")):
            _put(model, prefix, _linear(tensor, tensors.get(f"{prefix}.bias"), is_embedding="emb" in prefix.lower()))
    for name, layer in ours.items():
        if layer.kind not in {"Linear", "Embedding"}:
            raise ValueError(
                f"{path}: {name} is a {layer.kind}, for which a file alone does not do; load it into its model with "
                f"nplex.load(path, model)"
            )
        sizes = [layer.sizes[key] for key in _SIZES[layer.kind]]
        dense: Any = getattr(nn, layer.kind)
        made = {"bias": f"{name}.bias" in tensors} if layer.kind == "Linear" else {}
        _put(model, name, dense(*sizes, **made, device="meta"))
    if conversion:
        apply_(model, conversion)
    _fill(model, tensors)
    return model


_SIZES = {"Linear": ("in_features", "out_features"), "Embedding": ("num_embeddings", "embedding_dim")}


def _empty(part: Any) -> torch.Tensor:
    """A tensor of a slice's shape and type without its numbers."""
    kind = torch.empty(0, dtype=_TYPES.get(part.get_dtype(), torch.uint8)).dtype
    return torch.empty(part.get_shape(), dtype=kind, device="meta")


_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "BOOL": torch.bool, "C64": torch.complex64,
}  # fmt: skip


def _is_linear(name: str, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether it can be the weight of a linear layer or an embedding: a matrix, with a bias of its rows if any."""
    fits = bias is None or (bias.shape == weight.shape[:1] and bias.dtype == weight.dtype)
    return bool(name) and weight.ndim == _MATRIX and weight.is_floating_point() and fits


def _linear(weight: torch.Tensor, bias: torch.Tensor | None, *, is_embedding: bool) -> nn.Module:
    rows, columns = weight.shape
    if is_embedding and bias is None:
        return nn.Embedding(rows, columns, device="meta")
    return nn.Linear(columns, rows, bias is not None, device="meta")


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Puts a layer at its name, with modules on the way."""
    *parents, last = name.split(".")
    for parent in parents:
        if parent not in model._modules:
            model.add_module(parent, nn.Module())
        model = model.get_submodule(parent)
    model.add_module(last, layer)


def _fill(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """All tensors at their names; those of no layer as bare parameters or buffers, tied ones as one."""
    parameters: dict[int, nn.Parameter] = {}
    for name, tensor in tensors.items():
        *parents, last = name.split(".")
        owner = model
        for parent in parents:
            if parent not in owner._modules:
                owner.add_module(parent, nn.Module())
            owner = owner.get_submodule(parent)
        if last in owner._buffers or not tensor.is_floating_point():
            owner._buffers[last] = tensor
        else:
            owner._parameters[last] = parameters.setdefault(id(tensor), nn.Parameter(tensor))
