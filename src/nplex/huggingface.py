"""Converted models of transformers: save_pretrained writes them, from_pretrained reads them.

`import nplex` is all it takes, before or after transformers: nplex.on_import imports this module. It registers a
quantizer for `quant_method: "nplex"`, the one door by which a config.json can say that layers are to be exchanged
before weights are loaded; nothing is quantized, and a loaded model keeps no trace of it. And it lets save_pretrained
write the present conversion into config.json, and a model card.
"""

import functools
import re
from collections import Counter
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from nplex.convert.apply import apply_
from nplex.convert.record import read_record, record
from nplex.convert.twins import is_layer
from nplex.counting import count
from nplex.nn import FixedRule, LearnedRule, Rule

METHOD = "nplex"
FORMAT = 1
_KEYS = {"conversion", "base", "format", "quant_method"}


class NplexConfig(QuantizationConfigMixin):
    """What config.json holds of a conversion.

    Args:
        conversion: what nplex.convert.record gives of the saved model.
        base: the name of the base model within it, as `bert`, or "" if it is the base model.
        format: the number of this layout.
        quant_method: "nplex".
    """

    def __init__(self, conversion: Any, base: str = "", format: int = FORMAT, quant_method: Any = METHOD) -> None:
        self.conversion, self.base, self.format, self.quant_method = conversion, base, format, quant_method

    @classmethod
    def from_dict(cls, config_dict: dict, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """As transformers calls it.

        Raises:
            ValueError: the format is newer, or it is damaged.
        """
        number = config_dict.get("format")
        if isinstance(number, int) and number > FORMAT:
            raise ValueError(
                f"config.json: the conversion by nplex has format {number}, this nplex reads {FORMAT}; "
                f"pip install --upgrade nplex"
            )
        if config_dict.keys() != _KEYS or number != FORMAT or not isinstance(config_dict["base"], str):
            raise ValueError(f"config.json: the conversion by nplex is damaged, it has {sorted(config_dict)}")
        return super().from_dict(config_dict, return_unused_kwargs, **kwargs)


class NplexQuantizer(HfQuantizer):
    """Exchanges layers between the making of a model and the loading of its weights."""

    def __init__(self, quantization_config: QuantizationConfigMixin, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        if not self.pre_quantized:
            raise ValueError("nplex converts models that are loaded: nplex.convert_(model, rule)")

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        config = cast(NplexConfig, self.quantization_config)
        try:
            apply_(model, moved(config.conversion, config.base, model))
            _check_types(model)
        except ValueError as error:
            raise ValueError(f"config.json does not fit this {type(model).__name__}: {error}") from None
        rules = [module for module in model.modules() if isinstance(module, LearnedRule)]
        self._frozen = [rule for rule in rules if not any(p.requires_grad for p in rule.parameters())]

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        for rule in self._frozen:  # transformers trains all that it loads
            rule.requires_grad_(False)
        _fill_in(model)
        for module in model.modules():
            if isinstance(module, PreTrainedModel):
                vars(module.config).pop("_is_quantized", None)
        for attribute in ("hf_quantizer", "quantization_method", "is_quantized"):
            vars(model).pop(attribute, None)
        return model

    def is_serializable(self, safe_serialization: bool | None = None) -> Any:
        """A loaded model is an ordinary one."""
        return True

    @property
    def is_trainable(self) -> Any:
        """A loaded model is an ordinary one."""
        return True


def model_card(model: PreTrainedModel) -> str:
    """README.md of a converted model: what was converted, to which rules, how to load it."""
    conversion, numbers, kind = record(model), count(model), type(model).__name__
    groups: Counter[tuple[str, str, str]] = Counter()
    for name, layer in conversion["layers"].items():
        pattern = re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)
        groups[pattern, layer["kind"], _rule_summary(conversion["rules"][layer["rule"]], layer.get("shared"))] += 1
    rows = [f"| `{name}` | {number} | {layer} | {rule} |" for (name, layer, rule), number in groups.items()]
    share = 100 * numbers.total / max(numbers.dense, 1)
    return "\n".join([
        "---", "library_name: transformers", "tags:", "- nplex", "- hypercomplex", "---",
        f"# {kind} with hypercomplex layers", "",
        f"{len(conversion['layers'])} layers are hypercomplex layers of `nplex`: the model has {numbers.total:,} "
        f"parameters, a dense one would have {numbers.dense:,} ({share:.1f} %).", "",
        "## How to load it", "", "```python",
        "import nplex  # without it, transformers warns and gives random weights: pip install nplex",
        f"from transformers import {kind}", "",
        f'model = {kind}.from_pretrained("path/to/this/folder")', "```", "",
        "## What was converted", "", "| layers | number | kind | rule |", "|---|---|---|---|", *rows, "",
    ])  # fmt: skip


def moved(data: Any, base: str, model: Any) -> dict[str, Any]:
    """A conversion with the names that a model has for the saved model's layers, without those it does not have.

    Args:
        data: the conversion, as config.json holds it.
        base: the name of the base model within the saved one.
        model: of the saved class, its base, or one with another head.

    Raises:
        ValueError: the conversion is damaged, or the model has none of its layers.
    """
    layers, here = read_record(data), _base_name(model)
    modules = dict(model.named_modules())

    def move(name: str) -> str:
        if base and name != base and not name.startswith(base + "."):
            return name  # of a head
        own = name.removeprefix(base).removeprefix(".") if base else name
        return f"{here}.{own}" if here else own

    moved = {move(name): entry for name, entry in data["layers"].items()}
    there = [name for name in moved if name in modules]
    inner = {name for name in moved if any(name.startswith(outer + ".") for outer in there)}
    kept = {name: entry for name, entry in moved.items() if name in modules or name in inner}
    if layers and not kept:
        raise ValueError(f"it has none of the {len(layers)} converted layers, {next(iter(layers))} and so on")
    for name, entry in kept.items():
        if isinstance(entry.get("shared"), str):
            kept[name] = entry | {"shared": move(entry["shared"])}
    return data | {"layers": kept}


def apply_config(model: PreTrainedModel) -> None:
    """Converts a fresh model as its config says, if that holds a conversion.

    Raises:
        ValueError: the conversion is damaged, or belongs to another model.
    """
    if described := _held(model.config):
        apply_(model, moved(described["conversion"], described["base"], model))


def _held(config: Any) -> dict[str, Any]:
    """What a config holds of a conversion by nplex, or nothing."""
    described = getattr(config, "quantization_config", None) or {}
    described = described if isinstance(described, dict) else described.to_dict()
    return described if described.get("quant_method") == METHOD else {}


def _rule_summary(rule: dict[str, Any], shared: str | None) -> str:
    """`learned, n = 4, rank 7, shared at `rule``, for the model card."""
    words = [rule.get("algebra", f"learned, n = {rule.get('n')}")]
    words += [f"rank {rule['rank']}"] * (rule["rank"] is not None) + ["frozen"] * (rule.get("learned") is False)
    return ", ".join(words + [f"shared at `{shared}`"] * (shared is not None))


def _base_name(model: PreTrainedModel) -> str:
    """Where the base model stands in a model with a head; "" where it is the base itself."""
    return "" if model.base_model is model else model.base_model_prefix


def _check_types(model: PreTrainedModel) -> None:
    """Refuses to load in float16 a layer that transformers keeps in float32, with a rule that others share.

    Raises:
        ValueError: names the layer, and the types that can be had.
    """
    dtype, kept = torch.get_default_dtype(), set()
    if dtype is torch.float16:
        kept |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    if dtype in (torch.float16, torch.bfloat16):
        kept |= set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    for name, module in model.named_modules():
        if kept.intersection(name.split(".")) and is_layer(module) and cast(Any, module).rule.is_shared:
            raise ValueError(
                f"in {dtype} transformers keeps {name} in float32, and its rule is shared with layers that are not; "
                f"load the model with dtype=torch.bfloat16 or torch.float32"
            )


def _fill_in(model: PreTrainedModel) -> None:
    """Exact numbers for fixed rules, and first values for what no file held, which transformers reports.

    Raises:
        ValueError: the loaded numbers of a fixed rule are not those of its algebra.
    """
    marks = any(hasattr(parameter, "_is_hf_initialized") for parameter in model.parameters())
    for name, module in model.named_modules():
        numbers = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if (
            marks
            and (isinstance(module, Rule) or is_layer(module))
            and not all(hasattr(number, "_is_hf_initialized") for number in numbers)
        ):
            cast(Any, module).reset_parameters()
        elif isinstance(module, FixedRule):
            try:
                module.load_state_dict(nn.Module.state_dict(module))
            except RuntimeError as error:
                raise ValueError(f"{name}: {error}") from None


def _describe(model: PreTrainedModel) -> bool:
    """Writes the present conversion into the model's config, or takes an old one out; whether there is one."""
    conversion, config = record(cast(nn.Module, model)), cast(Any, model.config)
    if conversion["layers"]:
        config.quantization_config = NplexConfig(conversion, _base_name(model))
        return True
    if _held(config):
        del config.quantization_config
    return False


def _with_conversion(save: Any) -> Any:
    """save_pretrained that looks first what is converted, and writes a model card where there is none."""

    @functools.wraps(save)
    def save_pretrained(
        self: PreTrainedModel, save_directory: Any, is_main_process: bool = True, *args: Any, **kwargs: Any
    ) -> Any:
        converted = _describe(self)
        result = save(self, save_directory, is_main_process, *args, **kwargs)
        card = Path(save_directory) / "README.md"
        whole = converted and not getattr(self, "_hf_peft_config_loaded", False)  # not an adapter alone
        if whole and is_main_process and card.parent.is_dir() and not card.exists():
            card.write_text(model_card(self), "utf-8")
        return result

    return save_pretrained


register_quantization_config(METHOD)(NplexConfig)
register_quantizer(METHOD)(NplexQuantizer)
PreTrainedModel.save_pretrained = _with_conversion(PreTrainedModel.save_pretrained)
