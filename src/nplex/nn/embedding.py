"""Embeddings with 1/n of the parameters."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from nplex.algebra import Algebra
from nplex.nn import init
from nplex.nn.fresh import fresh_parameter
from nplex.nn.linear import check_same_place, check_widths
from nplex.nn.rule import Rule, as_rule
from nplex.nn.sharing import attach
from nplex.ops.dense import expand
from nplex.ops.lookup import by_frequency, clip, look_up
from nplex.ops.tracing import full_precision

MODES = ("sum", "mean", "max")
_OPTIONS = ("padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
_BAG_OPTIONS = (*_OPTIONS, "mode", "include_last_offset")


class Embedding(nn.Module):
    """`y = W[id]` with `W = sum_k kron(rule[k], components[k])`: torch.nn.Embedding with 1/n of the parameters.

    Only the rows asked for are made. Rows share their components, so one row cannot be written alone; where torch
    does that, the output is what it would be:

    - the row at padding_idx is zero, always, and passes on no gradient;
    - max_norm scales what is looked up, by a factor without a gradient, and leaves the components as they are.

    An output head can be tied to it: `F.linear(h, embedding.weight)`.

    Shape:
        input `(*)` of integers, output `(*, embedding_dim)`.

    Args:
        num_embeddings: rows of W.
        embedding_dim: columns of W.
        padding_idx: a row that is zero; counted from the end if negative.
        max_norm: rows with a larger norm are looked up scaled to this one.
        norm_type: p of that p-norm.
        scale_grad_by_freq: divides the gradient of a row by how often it is among the ids.
        sparse: must be False, a gradient of components has no sparse form.
        device: as in torch.nn; there is no `_weight` or `_freeze` before it.
        dtype: as in torch.nn.
        rule: n for a learned rule of this layer's own, an Algebra for a fixed one, or a Rule.

    Attributes:
        components: n x ceil(num_embeddings / n) x ceil(embedding_dim / n), the layer's own numbers.
        rule: the rule; registered here unless it is shared.

    Raises:
        ValueError: a size, rule or option is impossible; says what was expected.

    Examples:
        >>> layer = Embedding(30000, 512, rule=4)
        >>> layer(torch.tensor([[3, 1, 2]])).shape
        torch.Size([1, 3, 512])
        >>> sum(p.numel() for p in layer.parameters()), 30000 * 512 // 4 + 4**3
        (3840064, 3840064)
    """

    num_embeddings: int
    embedding_dim: int
    padding_idx: int | None
    max_norm: float | None
    norm_type: float
    scale_grad_by_freq: bool
    sparse: bool
    rule: Rule
    components: nn.Parameter

    def __init__(  # noqa: PLR0913 - torch's own signature
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        rule: int | Algebra | Rule,
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx, self.max_norm, self.norm_type = padding_idx, max_norm, norm_type
        self.scale_grad_by_freq, self.sparse = scale_grad_by_freq, sparse
        _set_up(self, as_rule(rule, device=device, dtype=dtype), device, dtype)

    def reset_parameters(self) -> None:
        """First values for components: W gets the variance of torch's layer, 1."""
        init.normal_components_(self.components, rule_norm=self.rule.initial_norm)

    def forward(self, ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch d"]:
        """`W[ids]`."""
        rows = _rows(self, ids)
        return rows if self.padding_idx is None else rows.masked_fill((ids == self.padding_idx)[..., None], 0)

    @property
    def weight(self) -> Float[Tensor, "rows d"]:
        """The dense W, built at each call and differentiable; to change it, change rule and components."""
        return _weight(self)

    @classmethod
    def like(cls, layer: nn.Embedding, *, rule: int | Algebra | Rule) -> "Embedding":
        """A fresh twin of a torch layer: same sizes, options, device, type and mode, new numbers."""
        weight, options = layer.weight, {name: getattr(layer, name) for name in _OPTIONS}
        sizes = layer.num_embeddings, layer.embedding_dim
        return cls(*sizes, **options, device=weight.device, dtype=weight.dtype, rule=rule).train(layer.training)

    @torch.no_grad()
    def to_torch(self) -> nn.Embedding:
        """The torch.nn.Embedding with the same weight and options."""
        options = {name: getattr(self, name) for name in _OPTIONS}
        layer = nn.Embedding(self.num_embeddings, self.embedding_dim, **options, device="meta")
        layer.weight = fresh_parameter(self.weight)
        return layer.train(self.training)

    def extra_repr(self) -> str:
        """One line for print(model), as torch writes it."""
        return _line(self, {"padding_idx": None, "max_norm": None, "norm_type": 2, "scale_grad_by_freq": False})


class EmbeddingBag(nn.Module):
    """`y = sum, mean or max of W[id]` over each bag of ids: torch.nn.EmbeddingBag with 1/n of the parameters.

    As Embedding, and then torch's own reduction of the rows looked up, so these exist for a moment. For
    scale_grad_by_freq torch 2.13 divides by other counts on a CPU; here it is what torch documents.

    Shape:
        input `(bags, ids)`, or `(ids)` with the offsets at which bags start; output `(bags, embedding_dim)`.

    Args:
        num_embeddings: rows of W.
        embedding_dim: columns of W.
        max_norm: rows with a larger norm are looked up scaled to this one.
        norm_type: p of that p-norm.
        scale_grad_by_freq: divides the gradient of a row by how often it is among the ids; not with mode "max".
        mode: "sum", "mean" or "max".
        sparse: must be False, a gradient of components has no sparse form.
        include_last_offset: whether offsets end with the number of ids; there is no `_weight` before it.
        padding_idx: a row that counts in no bag; from the end if negative.
        device: as in torch.nn, as is dtype.
        dtype: the type of the weight.
        rule: n for a learned rule of this layer's own, an Algebra for a fixed one, or a Rule.

    Attributes:
        components: n x ceil(num_embeddings / n) x ceil(embedding_dim / n), the layer's own numbers.
        rule: the rule; registered here unless it is shared.

    Raises:
        ValueError: a size, rule or option is impossible; says what was expected.

    Examples:
        >>> layer = EmbeddingBag(1000, 64, mode="sum", rule=4)
        >>> layer(torch.tensor([3, 1, 2, 5]), torch.tensor([0, 3])).shape
        torch.Size([2, 64])
    """

    num_embeddings: int
    embedding_dim: int
    max_norm: float | None
    norm_type: float
    scale_grad_by_freq: bool
    mode: str
    sparse: bool
    include_last_offset: bool
    padding_idx: int | None
    rule: Rule
    components: nn.Parameter

    def __init__(  # noqa: PLR0913 - torch's own signature
        self,
        num_embeddings: int,
        embedding_dim: int,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        rule: int | Algebra | Rule,
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}; got {mode!r}")
        if mode == "max" and scale_grad_by_freq:
            raise ValueError("scale_grad_by_freq does not go with mode 'max', as in torch; take 'sum' or 'mean'")
        self.num_embeddings, self.embedding_dim, self.mode = num_embeddings, embedding_dim, mode
        self.padding_idx, self.max_norm, self.norm_type = padding_idx, max_norm, norm_type
        self.scale_grad_by_freq, self.sparse = scale_grad_by_freq, sparse
        self.include_last_offset = include_last_offset
        _set_up(self, as_rule(rule, device=device, dtype=dtype), device, dtype)

    def reset_parameters(self) -> None:
        """First values for components: W gets the variance of torch's layer, 1."""
        init.normal_components_(self.components, rule_norm=self.rule.initial_norm)

    def forward(
        self,
        ids: Int[Tensor, "*ids"],
        offsets: Int[Tensor, "bags"] | None = None,
        per_sample_weights: Float[Tensor, "*ids"] | None = None,
    ) -> Float[Tensor, "_ d"]:
        """The rows of each bag, reduced; see torch.nn.EmbeddingBag for the arguments."""
        flat, padding = ids.reshape(-1), None
        places = torch.arange(flat.shape[0], dtype=ids.dtype, device=ids.device)
        if self.padding_idx is not None:  # one more row, before the others, that torch's reduction leaves out
            padding, places = 0, (places + 1).masked_fill(flat == self.padding_idx, 0)
            flat = torch.cat([flat.new_full((1,), self.padding_idx), flat])
        return F.embedding_bag(
            places.reshape(ids.shape), _rows(self, flat), offsets, mode=self.mode, padding_idx=padding,
            per_sample_weights=per_sample_weights, include_last_offset=self.include_last_offset,
        )  # fmt: skip

    @property
    def weight(self) -> Float[Tensor, "rows d"]:
        """The dense W, built at each call and differentiable; to change it, change rule and components."""
        return _weight(self)

    @classmethod
    def like(cls, layer: nn.EmbeddingBag, *, rule: int | Algebra | Rule) -> "EmbeddingBag":
        """A fresh twin of a torch layer: same sizes, options, device, type and mode, new numbers."""
        weight, options = layer.weight, {name: getattr(layer, name) for name in _BAG_OPTIONS}
        sizes = layer.num_embeddings, layer.embedding_dim
        return cls(*sizes, **options, device=weight.device, dtype=weight.dtype, rule=rule).train(layer.training)

    @torch.no_grad()
    def to_torch(self) -> nn.EmbeddingBag:
        """The torch.nn.EmbeddingBag with the same weight and options."""
        options = {name: getattr(self, name) for name in _BAG_OPTIONS}
        layer = nn.EmbeddingBag(self.num_embeddings, self.embedding_dim, **options, device="meta")
        layer.weight = fresh_parameter(self.weight)
        return layer.train(self.training)

    def extra_repr(self) -> str:
        """One line for print(model), as torch writes it."""
        plain = {"max_norm": None, "norm_type": 2, "scale_grad_by_freq": False, "mode": None, "padding_idx": None}
        return _line(self, plain)


def _set_up(
    layer: Embedding | EmbeddingBag, rule: Rule, device: torch.device | str | None, dtype: torch.dtype | None
) -> None:
    """Checks what the constructor was given and makes components and rule."""
    rows, width = layer.num_embeddings, layer.embedding_dim
    check_widths(rule.n, num_embeddings=rows, embedding_dim=width)
    if layer.sparse:
        raise ValueError(
            "sparse=True needs rows with numbers of their own, here rows share components; take sparse=False and an "
            "optimizer for dense gradients"
        )
    if layer.padding_idx is not None:
        if not -rows <= layer.padding_idx < rows:
            raise ValueError(f"padding_idx must be from {-rows} to {rows - 1}, got {layer.padding_idx}")
        layer.padding_idx %= rows
    a, b = math.ceil(rows / rule.n), math.ceil(width / rule.n)
    layer.components = nn.Parameter(torch.empty(rule.n, a, b, device=device, dtype=dtype))
    check_same_place(rule, layer.components)
    attach(layer, rule)
    layer.reset_parameters()


def _rows(layer: Embedding | EmbeddingBag, ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch d"]:
    """`W[ids]`, with max_norm and scale_grad_by_freq."""
    rows = look_up(ids, layer.rule(), layer.components, (layer.num_embeddings, layer.embedding_dim))
    if layer.max_norm is not None:
        rows = clip(rows, layer.max_norm, layer.norm_type)
    return by_frequency(rows, ids, layer.num_embeddings) if layer.scale_grad_by_freq else rows


def _weight(layer: Embedding | EmbeddingBag) -> Float[Tensor, "rows d"]:
    """The dense W with its row of zeros."""
    with full_precision(layer.components):
        weight = expand(layer.rule(), layer.components)[: layer.num_embeddings, : layer.embedding_dim]
    if layer.padding_idx is None:
        return weight
    rows = torch.arange(layer.num_embeddings, device=weight.device)
    return weight.masked_fill((rows == layer.padding_idx)[:, None], 0)


def _line(layer: Embedding | EmbeddingBag, plain: dict[str, object]) -> str:
    """One line for print(model): sizes, the options that are not the plain ones, n."""
    options = [f"{name}={getattr(layer, name)!r}" for name, value in plain.items() if getattr(layer, name) != value]
    shared = ["rule=shared"] if layer.rule.place == "shared" else []
    return ", ".join([f"{layer.num_embeddings}, {layer.embedding_dim}", *options, f"n={layer.rule.n}", *shared])
