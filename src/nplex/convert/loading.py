"""A state of a converted model for a dense one, or the other way: torch's error ends with what to do.

Torch asks a dense model's layers nothing of ours, so its load_state_dict is wrapped, once, for all modules.
"""

import functools
import re
import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from nplex.convert.twins import is_layer

RULE = re.compile(r"(^|\.)rule(_\d+)?\.(table|decode)$")
DENSE = (
    "nplex: this state is of a converted model, and the model is dense: convert it first, by "
    "nplex.convert_like_(model, record) with what nplex.record gave, or by nplex.convert_ as before"
)
CONVERTED = (
    "nplex: this state is of a dense model, and the model is converted: load it first, then "
    'nplex.convert_(model, rule, weights="nearest")'
)
_torch = nn.Module.load_state_dict


@functools.wraps(_torch)
def _load(self: nn.Module, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
    try:
        found = _torch(self, state_dict, strict=strict, assign=assign)
    except RuntimeError as error:
        if reason := _mismatch(self, state_dict):
            error.args = (f"{error}\n{reason}",)
        raise
    if found and (found.missing_keys or found.unexpected_keys) and (reason := _mismatch(self, state_dict)):
        warnings.warn(reason, stacklevel=2)
    return found


def _mismatch(model: nn.Module, state: Mapping[str, Any]) -> str:
    """Which of both is converted and the other not; nothing if they are alike."""
    has_rules, is_converted = any(map(RULE.search, state)), any(map(is_layer, model.modules()))
    if has_rules == is_converted:
        return ""
    if has_rules:
        return DENSE
    own, new = model.state_dict().keys(), ("components", "left")
    is_dense = any(name.replace("weight", part) in own for name in state.keys() - own for part in new)
    return CONVERTED if is_dense else ""


nn.Module.load_state_dict = _load
