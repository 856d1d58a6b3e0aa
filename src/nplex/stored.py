"""Models on disk for the command line: a folder of transformers, or a file that nplex.save wrote.

A file tells names, shapes and kinds of layers, not an architecture. That is enough to count, to convert its linear
layers, and to fold them back, into a file that `nplex.load` reads into the model.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nplex.convert.apply import apply_
from nplex.convert.record import read_record
from nplex.files import read_json, read_model, save, write_json
from nplex.model_folder import naming, open_folder
from nplex.model_state import check_fit, fill

MANIFEST = "nplex.json"  # in a folder that write_model wrote: the names of its files
_SIZES = {"Linear": ("in_features", "out_features"), "Embedding": ("num_embeddings", "embedding_dim")}


def open_model(path: Path, *, weights: bool, tell: Callable[[str], object] | None = None) -> nn.Module:
    """The model of a folder or a file.

    Args:
        path: a folder that transformers wrote, or a file that nplex.save wrote.
        weights: whether they are loaded; else the model is on the meta device, and takes no memory.
        tell: gets a sentence about what of a folder the model does not use.

    Raises:
        FileNotFoundError: there is nothing there.
        ValueError: it is neither, is damaged, or lacks a tensor.
    """
    if path.is_dir():
        return open_folder(path, weights=weights, tell=tell)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    return _open_file(path, weights)


def write_model(model: nn.Module, source: Path, out: Path, *, force: bool = False) -> None:
    """Writes a model in the form of its source, whole or not at all: a folder, or a file.

    A folder gets the source's other small files too, such as the tokenizer's. Where out is a link, what it leads to
    is replaced.

    Raises:
        ValueError: out must not be replaced, see check_out; or it cannot be written.
        OSError: the file cannot be written; names it.
    """
    check_out(source, out, force=force)
    if not source.is_dir():
        save(model, out)
        return
    with naming(out, "cannot be written"):
        _write_folder(model, source, Path(os.path.realpath(out)))


def _write_folder(model: nn.Module, source: Path, out: Path) -> None:
    part, old = (out.with_name(f"{out.name}.{os.urandom(4).hex()}.part") for _ in range(2))
    try:
        model.save_pretrained(part)  # pyright: ignore - transformers'
        for file in source.iterdir():
            weights = file.suffix in {".safetensors", ".bin", ".pt"} or file.name.endswith(".index.json")
            skipped = weights or file.name in {"README.md", MANIFEST}
            if file.is_file() and not skipped and not (part / file.name).exists():
                shutil.copy2(file, part / file.name)
        names = sorted(file.name for file in part.iterdir())
        write_json(part / MANIFEST, {"kind": "model", "format": 1, "files": names})
        if out.exists():
            out.replace(old)
        part.replace(out)
    finally:
        if old.exists() and not out.exists():
            old.replace(out)
        for each in (part, old):
            shutil.rmtree(each, ignore_errors=True)


def check_out(source: Path, out: Path, *, force: bool) -> None:
    """Refuses to write over the source, over a folder around it, and over what nplex did not write.

    Raises:
        ValueError: says what is there, and what to do.
    """
    files = [source, *(file for file in source.glob("*") if file.is_file())]
    if any(file.resolve().is_relative_to(out.resolve()) for file in files):
        verb = "is" if out.resolve() == source.resolve() else "holds"
        raise ValueError(f"{out} {verb} the model itself; name another path")
    if not out.exists():
        return
    if not force:
        raise ValueError(f"{out} exists; name another path, or give --force to replace it")
    if out.is_dir() != source.is_dir():
        raise ValueError(f"{out} is a {'folder' if out.is_dir() else 'file'}, the model is not; name another path")
    if foreign := _foreign(out):
        raise ValueError(f"refusing to replace {out}: nplex did not write {foreign}; delete it, or name another path")


def _foreign(out: Path) -> Path | None:
    """What nplex did not write: a file in a folder, or the path itself."""
    try:
        if out.is_file():
            read_model(out)
            return None
        manifest = read_json(out / MANIFEST)
    except (OSError, ValueError):
        return out
    files = manifest.get("files")
    if manifest.get("kind") != "model" or not isinstance(files, list) or not all(isinstance(f, str) for f in files):
        return out
    names = {MANIFEST, *files}
    return next((path for path in sorted(out.iterdir()) if path.is_dir() or path.name not in names), None)


def _open_file(path: Path, weights: bool) -> nn.Module:
    """A module with the names and shapes of a file: linear layers, embeddings, our layers, and bare tensors."""
    tensors, header = read_model(path, sealed=True)
    with naming(path, "cannot be opened"):
        model = _skeleton(tensors, header)
        (fill if weights else check_fit)(model, tensors)
    return model


def _skeleton(tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> nn.Module:
    """The layers that a header names and bare tensors, on the meta device, tied as in the saved model."""
    layers = {name: (each["kind"], each["sizes"], "weight") for name, each in header.get("dense", {}).items()}
    for name, each in read_record(header["conversion"]).items():
        has_low_rank = each.kind == "LowRankLinear"
        layers[name] = ("Linear", each.sizes, "left") if has_low_rank else (each.kind, each.sizes, "components")
    model, made, tied = nn.Module(), {}, header["tied"]
    for name, (kind, sizes, leaf) in layers.items():
        if kind not in _SIZES:
            raise ValueError(
                f"{name} is a {kind}; a file alone opens Linear and Embedding. Use nplex.load(path, model)"
            )
        other = tied.get(f"{name}.{leaf}", "").removesuffix(f".{leaf}")
        has_bias = f"{name}.bias" in tensors
        same = layers.get(other, ("",))[0] == kind and (not has_bias or tied.get(f"{name}.bias") == f"{other}.bias")
        options = {"bias": has_bias} if kind == "Linear" else {"padding_idx": sizes.get("padding_idx")}
        widths = [sizes[key] for key in _SIZES[kind]]
        dtype = tensors[f"{name}.{leaf}"].dtype
        made[name] = made[other] if same else getattr(nn, kind)(*widths, **options, device="meta", dtype=dtype)
        _owner(model, name).add_module(name.rpartition(".")[2], made[name])
    apply_(model, header["conversion"])
    for name in tensors.keys() - model.state_dict():
        empty = tensors[name].to("meta")
        kind = "_parameters" if empty.is_floating_point() else "_buffers"
        value = nn.Parameter(empty) if empty.is_floating_point() else empty
        vars(_owner(model, name))[kind][name.rpartition(".")[2]] = value
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, first in tied.items():
        if name in parameters:
            _owner(model, name)._parameters[name.rpartition(".")[2]] = parameters[first]
    return model


def _owner(model: nn.Module, name: str) -> nn.Module:
    """The module that holds a name, made with the modules on the way where it is not there."""
    for parent in name.split(".")[:-1]:
        if parent not in model._modules:
            model.add_module(parent, nn.Module())
        model = model.get_submodule(parent)
    return model
