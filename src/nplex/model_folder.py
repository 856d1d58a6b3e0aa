"""A folder that transformers wrote, opened so that damage is found before memory is asked for."""

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from nplex.files import read_json

__all__ = ["open_folder", "read_texts", "naming"]

_TOKENS = 1024  # of a text for calibration at most
_COUNTS = re.compile(r"layers?(_|$)|blocks|depth|labels|experts|heads|stages")
_MOST = 10**5  # layers, heads or labels of one model
_MOST_MADE = 10**7  # numbers of a model that no file holds
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json")


def open_folder(path: Path, *, weights: bool, tell: Callable[[str], object] | None = None) -> nn.Module:
    """A model of transformers, of the class that config.json names.

    Names and shapes of the files are compared with the config on the meta device, before a number is read. A folder
    without files of weights gives the model that its config describes.

    Args:
        path: of the folder.
        weights: whether they are loaded; else the model is on the meta device.
        tell: gets a sentence about tensors of the files that the model does not use.

    Raises:
        ValueError: it holds no config.json, is damaged, or config and files do not belong together; names it.
        ImportError: transformers, or what it needs for this model, is not installed.
    """
    if not (path / "config.json").is_file():
        raise ValueError(f"{path} holds no config.json; expected a folder that save_pretrained wrote")
    described = read_json(path / "config.json")
    if wrong := _too_large(described):
        raise ValueError(f"{path}: config.json is damaged: {wrong}")
    import transformers

    import nplex.huggingface  # noqa: F401 - transformers reads our models after it

    transformers.utils.logging.set_verbosity(logging.CRITICAL)  # what is wrong is raised
    transformers.utils.logging.disable_progress_bar()
    with naming(path, "cannot be opened"):
        kind = _class_of(described, transformers)
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        types = _types_in(path)
        with _at_most(5_000 + 50 * (len(types or ()) or 700)):
            config = transformers.AutoConfig.from_pretrained(path, **options)
            if types is None:
                if weights:
                    raise ValueError("it holds no file of weights, as model.safetensors")
                make = kind.from_config if kind is transformers.AutoModel else kind._from_config
                with torch.device("meta"):
                    return make(config).eval()
            options |= {"dtype": "auto", "output_loading_info": True}
            with _no_first_values(transformers.PreTrainedModel):
                model, found = kind.from_pretrained(path, device_map="meta", **options)
            _check_complete(model, found, tell)
            _check_first_values(model)
            _check_types(model, types)
            _tie(model)
            if weights:
                model, found = kind.from_pretrained(path, **options)
                _check_complete(model, found, None)
    return model.eval()


def read_texts(path: Path, texts: Path, size: int = 1) -> list[Any]:
    """The lines of a file as the model of a folder takes them: each alone, or in padded batches of like length.

    Args:
        path: of a folder with a tokenizer.
        texts: the file, one text a line.
        size: of a batch; batches keep the order of their first texts.

    Raises:
        ValueError: there is no text, or no tokenizer that can be opened.
        OSError: the file cannot be read; names it.
    """
    if not path.is_dir():
        raise ValueError(f"{path} is a file, which has no tokenizer; texts need a folder that transformers wrote")
    with naming(texts, "cannot be read as text"):
        lines = [line for line in texts.read_text("utf-8").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{texts} holds no text; expected one a line, some hundred")
    import transformers

    with naming(path, "has no tokenizer that can be opened"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    described = read_json(path / "config.json")
    most = min(_TOKENS, tokenizer.model_max_length, described.get("max_position_embeddings") or _TOKENS)
    if size > 1 and tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    order = sorted(range(len(lines)), key=lambda i: len(lines[i]) if size > 1 else i)
    groups = sorted((order[i : i + size] for i in range(0, len(order), size)), key=min)
    options: dict[str, Any] = {"padding": size > 1, "truncation": True, "max_length": most, "return_tensors": "pt"}
    return [tokenizer([lines[i] for i in group], **options) for group in groups]


@contextmanager
def naming(path: Path, what: str) -> Iterator[None]:
    """Turns whatever other libraries raise about a file into a ValueError that names it; what is missing stays so."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other libraries, about what is refused or repaired
            yield
    except ImportError:
        raise
    except Exception as error:  # transformers raises what it meets in a damaged file
        kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
        raise ValueError(f"{path} {what}: {kind}{error}") from None


def _too_large(value: Any, key: str = "") -> str:
    """Which whole number no model has; "" if there is none. Lists as long as it would be made of it."""
    if isinstance(value, dict):
        parts = [(name, inner) for name, inner in value.items() if name != "quantization_config"]
    elif isinstance(value, list):
        parts = [(key, inner) for inner in value]
    else:
        most = _MOST if _COUNTS.search(key) else 2**63 - 1
        return f"{key} = {value!s:.30} is too large" if isinstance(value, int) and abs(value) > most else ""
    return next((wrong for name, inner in parts if (wrong := _too_large(inner, name))), "")


def _class_of(described: Mapping[str, Any], transformers: Any) -> Any:
    """The class of transformers that config.json names, else AutoModel."""
    names = described.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"config.json is damaged: architectures is {names!r:.40}, expected a list of texts")
    found = [getattr(transformers, name, None) for name in names]
    kinds = [each for each in found if isinstance(each, type) and issubclass(each, transformers.PreTrainedModel)]
    if names and not kinds:
        raise ValueError(f"config.json names {', '.join(names):.100}, which transformers does not have")
    return kinds[0] if kinds else transformers.AutoModel


def _types_in(path: Path) -> dict[str, str] | None:
    """The types of all tensors of the safetensors files, as "F32"; None where there is no file of weights.

    Raises:
        ValueError: two files hold the same one.
    """
    if not any(file for pattern in _WEIGHTS for file in path.glob(pattern)):
        return None
    whole, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if whole.exists() or not index.exists():
        files = {whole.name} if whole.exists() else set()
    else:
        placed = read_json(index).get("weight_map")
        if not isinstance(placed, dict) or not all(isinstance(name, str) for name in placed.values()):
            raise ValueError(f"{index.name} is damaged: its weight_map must give the file of each tensor")
        files = set(placed.values())
    types: dict[str, str] = {}
    for name in sorted(files):
        with safe_open(path / name, "pt") as file:
            for tensor in file.keys():  # noqa: SIM118
                if tensor in types:
                    raise ValueError(f"two of its files hold {tensor}; {name} is one of them")
                types[tensor] = file.get_slice(tensor).get_dtype()
    return types


@contextmanager
def _at_most(count: int) -> Iterator[None]:
    """Ends the making of a model with more modules than that: its config cannot be right."""
    made = 0

    def check(*_: object) -> None:
        nonlocal made
        made += 1
        if made > count:
            raise ValueError(f"config.json describes more than {count:,} modules, far more than the files hold")

    hook = register_module_module_registration_hook(check)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _no_first_values(kind: Any) -> Iterator[None]:
    """Opens without first values for what no file holds: some classes compute them in Python."""
    give = kind.initialize_weights
    kind.initialize_weights = lambda model: None
    try:
        yield
    finally:
        kind.initialize_weights = give


def _check_first_values(model: nn.Module) -> None:
    """Refuses a size that no file confirms, as of sines for positions: they are few, and take long."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    sizes = {
        name: each.numel()
        for name, each in tensors
        if not hasattr(each, "_is_hf_initialized") and each.is_floating_point()
    }
    if sum(sizes.values()) > _MOST_MADE:
        name = max(sizes, key=lambda name: sizes[name])
        raise ValueError(f"config.json describes {sizes[name]:,} numbers of {name}, which no file holds")


def _check_complete(model: nn.Module, found: Mapping[str, Any], tell: Callable[[str], object] | None) -> None:
    """Nothing may be missing, and no layer of a list left over."""
    if lost := sorted(found["missing_keys"]):
        raise ValueError(f"it lacks {_first(lost)}; expected every tensor of a {type(model).__name__}")
    over = sorted(found["unexpected_keys"])
    known = {_numberless(name) for name in model.state_dict()}
    if layers := [name for name in over if name != _numberless(name) and _numberless(name) in known]:
        raise ValueError(f"config.json describes fewer layers than the files hold: {_first(layers)} would be lost")
    if over and tell is not None:
        tell(f"left out, as a {type(model).__name__} does not have it: {_first(over)}")


def _check_types(model: Any, types: Mapping[str, str]) -> None:
    """Refuses what transformers would cast: numbers of another kind, but for another library's quantized ones."""
    method = getattr(model.config, "quantization_config", None)
    if method is not None and not (isinstance(method, dict) and method.get("quant_method") == "nplex"):
        return
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in model.state_dict().items():
        found = types.get(name, "F32")
        real = name in parameters or tensor.is_floating_point()
        if found.startswith("C") or (real and not found.startswith(("F", "BF"))):
            raise ValueError(f"{name} is of type {found} in the files, expected floating-point numbers")


def _tie(model: Any) -> None:
    """Ties what the config ties: where files hold both, transformers compares numbers, and here there are none."""
    for target, source in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        owner, _, name = target.rpartition(".")
        setattr(model.get_submodule(owner), name, model.get_parameter(source))


def _first(names: list[str]) -> str:
    return names[0] + f", and {len(names) - 1} more" * (len(names) > 1)


def _numberless(name: str) -> str:
    return re.sub(r"\.\d+(?=\.)", ".#", name)
