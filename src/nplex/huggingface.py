"""Converted models of transformers: save_pretrained writes them, from_pretrained reads them.

`import nplex` is all it takes, before or after transformers: nplex.on_import imports this module. It registers a
quantizer for `quant_method: "nplex"`, the one door by which a config.json can say that layers are to be exchanged
before weights are loaded; nothing is quantized, and a loaded model keeps no trace of it. And it lets save_pretrained
write the present conversion into config.json, and a model card.
"""

import functools
from contextvars import ContextVar
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils import logging
from transformers.utils.quantization_config import QuantizationConfigMixin

from nplex.convert.apply import apply_
from nplex.convert.record import record
from nplex.convert.transfer import base_name, moved, resized
from nplex.convert.twins import is_layer
from nplex.model_card import model_card
from nplex.nn import FixedRule, LearnedRule, Rule
from nplex.nn.computed import Computed

METHOD = "nplex"
FORMAT = 1
_KEYS = {"conversion", "base", "format", "quant_method"}
_OURS = (".components", ".rule.table", ".rule.decode")  # endings of tensors that only our layers have
_fresh_sizes = ContextVar("ignore_mismatched_sizes", default=False)  # of the from_pretrained that runs
_loads = ContextVar("loads", default=False)  # whether a from_pretrained runs


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
            conversion, self._resized = resized(
                moved(config.conversion, config.base, model), model, fresh=_fresh_sizes.get()
            )
            apply_(model, conversion)
            _check_types(model)
        except ValueError as error:
            raise ValueError(f"config.json does not fit this {type(model).__name__}: {error}") from None
        _untie(model)
        rules = [module for module in model.modules() if isinstance(module, LearnedRule)]
        self._frozen = [rule for rule in rules if not any(p.requires_grad for p in rule.parameters())]

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        for rule in self._frozen:  # transformers trains all that it loads
            rule.requires_grad_(False)
        _fill_in(model)
        for name in self._resized:
            cast(Any, model.get_submodule(name)).reset_parameters()
        for module in model.modules():
            if isinstance(module, PreTrainedModel):
                vars(module.config).pop("_is_quantized", None)
                if described := _held(module.config):  # a dict, as transformers wants it when it loads again
                    cast(Any, module.config).quantization_config = described
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


def apply_config(model: PreTrainedModel) -> None:
    """Converts a fresh model as its config says, if that holds a conversion.

    Raises:
        ValueError: the conversion is damaged, or belongs to another model.
    """
    if described := _held(model.config):
        config = NplexConfig.from_dict(described)
        apply_(model, moved(config.conversion, config.base, model))


def _held(config: Any) -> dict[str, Any]:
    """What a config holds of a conversion by nplex, or nothing."""
    described = getattr(config, "quantization_config", None)
    described = described.to_dict() if isinstance(described, QuantizationConfigMixin) else described
    return described if isinstance(described, dict) and described.get("quant_method") == METHOD else {}


def _untie(model: PreTrainedModel) -> None:
    """Takes converted layers out of the ties that a config asks for: they hold no weight, the file holds both."""
    ties: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    for target, source in list(ties.items()):
        layers = [model.get_submodule(name.rpartition(".")[0]) for name in (target, source)]
        if any(map(is_layer, layers)):
            del ties[target]
            logging.get_logger("transformers.nplex").warning(
                f"the config ties {target} to {source}, but one of them is converted: they are loaded as they were "
                f"saved, and not tied"
            )


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
        config.quantization_config = NplexConfig(conversion, base_name(model)).to_dict()
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


def _checked(load: Any) -> Any:
    """from_pretrained that refuses random weights where config and file disagree about what is converted."""

    @functools.wraps(load)
    def from_pretrained(cls: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        token, outer = _fresh_sizes.set(bool(kwargs.get("ignore_mismatched_sizes"))), _loads.set(True)
        try:
            model, info = load(cls, *args, output_loading_info=True, **kwargs)
        finally:
            _fresh_sizes.reset(token)
            _loads.reset(outer)
        over, lost = set(info["unexpected_keys"]), set(info["missing_keys"])
        if not _held(model.config) and (ours := sorted(key for key in over if key.endswith(_OURS))):
            raise ValueError(
                f"the file holds hypercomplex layers ({ours[0]} and so on), of which this config says nothing; leave "
                f"config= out, or take AutoConfig.from_pretrained of the saved folder"
            )
        ours = {key.removesuffix("components") for key in lost if key.endswith(".components")}
        if dense := sorted(key for key in over if key.removesuffix("weight") in ours):
            raise ValueError(
                f"the file holds {dense[0]} of a dense layer, which this config says is converted; load it without "
                f"that config, then nplex.convert_(model, rule)"
            )
        return (model, info) if output_loading_info else model

    return from_pretrained


def _converting(make: Any) -> Any:
    """from_config that converts the fresh model as its config says."""

    @functools.wraps(make)
    def from_config(cls: Any, config: Any, **kwargs: Any) -> Any:
        model = make(cls, config, **kwargs)
        apply_config(model)
        return model

    return from_config


def _resizing(resize: Any) -> Any:
    """resize_token_embeddings that refuses before anything is changed."""

    @functools.wraps(resize)
    def resize_token_embeddings(
        self: Any, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        names = {module: name for name, module in self.named_modules() if is_layer(module)}
        if names and (new_num_tokens, pad_to_multiple_of) != (None, None):
            ends = {"embeddings": self.get_input_embeddings(), "output head": self.get_output_embeddings()}
            for what, layer in ends.items():
                if layer in names and (pad_to_multiple_of or new_num_tokens != layer.weight.shape[0]):
                    raise ValueError(
                        f"the {what} {names[layer]} is converted and cannot be resized: resize the dense model "
                        f"before nplex.convert_, or leave it dense with where=nplex.all_but({names[layer]!r})"
                    )
        return resize(self, new_num_tokens, pad_to_multiple_of, *args, **kwargs)

    return resize_token_embeddings


# Transformers gives first values to what is not marked; nplex.nn's own are given in _fill_in.
Computed._is_hf_initialized = property(lambda weight: _loads.get())  # pyright: ignore[reportAttributeAccessIssue]
register_quantization_config(METHOD)(NplexConfig)
register_quantizer(METHOD)(NplexQuantizer)
PreTrainedModel.save_pretrained = _with_conversion(PreTrainedModel.save_pretrained)
PreTrainedModel.resize_token_embeddings = _resizing(PreTrainedModel.resize_token_embeddings)
for _name, _wrap in (("from_pretrained", _checked), ("_from_config", _converting)):
    setattr(PreTrainedModel, _name, classmethod(_wrap(vars(PreTrainedModel)[_name].__func__)))
