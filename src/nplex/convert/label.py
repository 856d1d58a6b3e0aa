"""Layers and rules in a few words, for reports."""

from torch import nn

from nplex.nn import Rule

SIZES = (
    ("in1_features", "in2_features", "out_features"), ("in_features", "out_features"),
    ("in_channels", "out_channels"), ("input_size", "hidden_size"), ("num_embeddings", "embedding_dim"),
    ("embed_dim",), ("nx", "nf"),
)  # fmt: skip
PLAIN = {"groups": 1, "num_layers": 1, "bidirectional": False, "proj_size": 0, "num_heads": None}
SHORT = {"num_layers": "layers", "num_heads": "heads"}


def label(module: nn.Module, rule: Rule | None = None) -> str:
    """`Conv2d(64, 128, 3x3)`, `LSTM(32, 64, layers=2)`; with a rule `Linear(64, 256, rule=4)`.

    Examples:
        >>> label(nn.LSTM(32, 64, num_layers=2))
        'LSTM(32, 64, layers=2)'
    """
    kind = type(module).__name__.replace("NonDynamicallyQuantizable", "")
    names = next((names for names in SIZES if all(hasattr(module, name) for name in names)), ())
    parts = [str(getattr(module, name)) for name in names]
    kernel = getattr(module, "kernel_size", None)
    if isinstance(kernel, tuple):
        parts.append("x".join(map(str, kernel)))
    for name, plain in PLAIN.items():
        value = getattr(module, name, plain)
        if value != plain:
            parts.append(f"{SHORT.get(name, name)}={value}")
    if rule is not None:
        parts.append(f"rule={rule_label(rule)}")
    return f"{kind}({', '.join(parts)})" if parts else kind


def rule_label(rule: Rule) -> str:
    """`4`, `4:7`, `quaternion`: a rule as the command line writes it."""
    algebra = getattr(rule, "algebra", None)
    if algebra is not None:
        return algebra.name
    return f"{rule.n}" if rule.rank is None else f"{rule.n}:{rule.rank}"
