"""Multi-head attention whose projections have 1/n of the parameters."""

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nplex.algebra import BilinearAlgorithm
from nplex.nn import init
from nplex.nn.arguments import check_widths
from nplex.nn.expanded import Expanded
from nplex.nn.linear import Linear
from nplex.nn.sharing import new_like
from nplex.nn.written import RuleLike, as_rule
from nplex.ops.attention import Mask, append, attend, check_inputs, check_masks, merge_masks
from nplex.ops.dispatch import check_method
from nplex.ops.grouped import product_grouped


class MultiheadAttention(Expanded):
    """`y = concat_h(softmax(q_h k_h^T / sqrt(d)) v_h) W_out^T + b_out`: torch's, with 1/n of the parameters.

    `q, k, v = x W[g]^T + b[g]` with `W[g] = sum_k kron(rule[k], components[k, g])`: one rule for the projections of
    query, key and value, which are one product where they are of the same tensor. The output's projection is a
    Linear with a rule of its own like it, or the same shared one.

    Masks, appended biases and zeros, unbatched input, dropout and weights are as in torch.nn.MultiheadAttention; so
    is the hint `is_causal`: where no weights are needed and no padding is masked, attn_mask is not looked at, and
    what add_bias_kv and add_zero_attn append counts as later positions.

    Shape:
        query `(length, batch, embed_dim)`, key `(source, batch, kdim)`, value `(source, batch, vdim)`, output as
        query; batch first where asked; or without batch.

    Args:
        embed_dim: width of query and output.
        num_heads: divides embed_dim.
        dropout: the share of attention weights set to zero in training.
        bias: whether biases of all projections are learned.
        add_bias_kv: whether a learned key and value are appended to each sequence.
        add_zero_attn: whether a key and value of zeros are appended.
        kdim: width of keys, embed_dim by default.
        vdim: width of values, embed_dim by default.
        batch_first: whether the batch is the first dimension.
        device: as in torch.nn.
        dtype: as in torch.nn.
        rule: n for learned rules of this layer's own, an Algebra for fixed ones, or a Rule.
        method: how to compute the projections; "auto" plans it for each input size, see nplex.ops.plan_for.

    Attributes:
        in_proj_components: n x 3 x ceil(embed_dim / n) x ceil(embed_dim / n) for query, key, value, or None.
        q_proj_components: n x 1 x a x b, as k_proj_components and v_proj_components, where kdim or vdim differs.
        in_proj_weight: torch's dense weight, built at each reading and differentiable, or None; and so q_proj_weight,
            k_proj_weight and v_proj_weight.
        in_proj_bias: 3 embed_dim numbers, or None.
        out_proj: the output's projection.
        bias_k: the appended key, 1 x 1 x embed_dim, as bias_v the value; or None.
        rule: the rule of the input's projections; registered here unless it is shared.

    Raises:
        ValueError: a size, rule or method is impossible; says what was expected.

    Source: Vaswani et al., Attention Is All You Need (2017), section 3.2; Zhang et al., Beyond Fully-Connected
    Layers with Quaternions (2021): the attention of the PHM-Transformer.

    Examples:
        >>> layer, x = MultiheadAttention(64, 8, batch_first=True, rule=4), torch.zeros(2, 5, 64)
        >>> y, weights = layer(x, x, x)
        >>> y.shape, weights.shape
        (torch.Size([2, 5, 64]), torch.Size([2, 5, 5]))
    """

    __constants__ = ("batch_first",)
    torch_layer = nn.MultiheadAttention
    _flags: ClassVar[dict[str, str]] = {"bias": "in_proj_bias", "add_bias_kv": "bias_k"}
    _printed = ("embed_dim", "num_heads")
    embed_dim: int
    num_heads: int
    head_dim: int
    kdim: int
    vdim: int
    dropout: float
    batch_first: bool
    add_zero_attn: bool
    in_proj_components: nn.Parameter | None
    q_proj_components: nn.Parameter | None
    k_proj_components: nn.Parameter | None
    v_proj_components: nn.Parameter | None
    in_proj_bias: nn.Parameter | None
    bias_k: nn.Parameter | None
    bias_v: nn.Parameter | None
    out_proj: Linear
    # torch.nn.TransformerEncoderLayer asks for it; True would let it compute with dense weights in eval mode.
    _qkv_same_embed_dim = False

    def __init__(  # noqa: PLR0913 - torch's own signature
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        rule: RuleLike,
        method: str = "auto",
    ) -> None:
        super().__init__()
        own = as_rule(rule, device=device, dtype=dtype)
        check_widths(own.n, embed_dim=embed_dim)
        check_method(method, factors=own.rank is not None)
        if num_heads < 1 or embed_dim % num_heads:
            raise ValueError(f"num_heads must be 1 or more and divide embed_dim = {embed_dim}, got {num_heads}")
        shape = nn.MultiheadAttention(
            embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first, "meta"
        )
        self.method = method
        self.out_proj = _OutProjection(embed_dim, embed_dim, bias, device, dtype, rule=new_like(rule), method=method)
        self._build(shape, own, device, dtype)

    def _widths(self) -> dict[str, int]:
        return {"embed_dim": self.embed_dim, "kdim": self.kdim, "vdim": self.vdim}

    def _groups(self, name: str, rows: int) -> int:
        return rows // self.embed_dim

    def reset_parameters(self) -> None:
        """First values as torch's layer has them; out_proj, a layer of its own, has its own reset_parameters."""
        self.reset_projections()
        if self.in_proj_bias is not None:
            nn.init.zeros_(self.in_proj_bias)
        for bias in (self.bias_k, self.bias_v):
            if bias is not None:
                init.fill_(bias, nn.init.xavier_normal_)

    def reset_projections(self) -> None:
        """Xavier's first values for the input's projections; those of one width count as one matrix."""
        widths = {"in": self.embed_dim, "q": self.embed_dim, "k": self.kdim, "v": self.vdim}
        for part, width in widths.items():
            components = getattr(self, f"{part}_proj_components")
            if components is not None:
                bound = math.sqrt(6 / (self.embed_dim * components.shape[1] + width))
                init.components_(components, rule_norm=self.rule.initial_norm, bound=bound)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Mask | None = None,
        need_weights: bool = True,
        attn_mask: Mask | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """What each query sees of the values, and with which weights.

        Args:
            query: length x batch x embed_dim, batch first where so made, or length x embed_dim.
            key: source x batch x kdim, and so on.
            value: source x batch x vdim, and so on.
            key_padding_mask: batch x source, or source; bool, True where a key is hidden, or numbers to be added.
            need_weights: whether the weights are returned; without them torch's fused kernel runs.
            attn_mask: length x source, or (batch num_heads) x length x source; bool or numbers as before.
            average_attn_weights: whether the weights are the mean of all heads, batch x length x source, or each
                head's, batch x num_heads x length x source.
            is_causal: a hint that attn_mask is the causal one, which must be given all the same.

        Raises:
            ValueError: shapes that do not fit together, masks of another type, or is_causal without attn_mask.
        """
        if is_causal and attn_mask is None:
            raise ValueError("is_causal is a hint about attn_mask: give the causal mask too")
        if query.is_nested:
            masked = attn_mask is not None or key_padding_mask is not None
            if query is not key or key is not value or masked or not self.batch_first:
                raise ValueError(
                    "nested tensors need one query, key and value, batch_first and no masks; or pad them"
                )
            return self._nested(query, need_weights, average_attn_weights)
        causal = is_causal and key_padding_mask is None and not need_weights
        attn_mask = None if causal else attn_mask
        batched, batch_first = query.ndim == 3, self.batch_first or query.ndim == 2
        check_inputs(query, key, value, (self.embed_dim, self.kdim, self.vdim), batch_first)
        q, k, v = (x if batch_first else x.transpose(0, 1) for x in self._project(query, key, value))
        q, k, v = (x if batched else x.unsqueeze(0) for x in (q, k, v))
        sizes = (q.shape[0], self.num_heads, q.shape[1], k.shape[1])
        check_masks(attn_mask, key_padding_mask, sizes, batched)
        mask = merge_masks(attn_mask, key_padding_mask, batch=sizes[0], heads=self.num_heads, dtype=q.dtype)
        k, mask = append(k, self.bias_k, mask, zero=self.add_zero_attn)
        v, _ = append(v, self.bias_v, None, zero=self.add_zero_attn)
        q, k, v = (x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for x in (q, k, v))
        dropout = self.dropout if self.training else 0.0
        y, weights = attend(q, k, v, mask, dropout=dropout, causal=causal, need_weights=need_weights)
        y = y.transpose(1, 2).flatten(2)
        y = self.out_proj((y if batch_first else y.transpose(0, 1)) if batched else y[0])
        if weights is None:
            return y, None
        weights = weights.mean(1) if average_attn_weights else weights
        return y, weights if batched else weights[0]

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """q, k, v; those that are of the same tensor by one product."""
        rule = self.rule()
        if self.in_proj_components is None or (query is not key and key is not value):
            return tuple(self._parts(x, rule, g, g + 1)[0] for g, x in enumerate((query, key, value)))
        if query is key and key is value:
            return self._parts(query, rule, 0, 3)
        last = 1 if key is value else 2
        return *self._parts(query, rule, 0, last), *self._parts(value, rule, last, 3)

    def _parts(
        self, x: Float[Tensor, "*batch d_in"], rule: Float[Tensor, "n n n"] | BilinearAlgorithm, first: int, last: int
    ) -> tuple[Float[Tensor, "*batch embed_dim"], ...]:
        """`x W[g]^T + b[g]` for g from first to before last, of query, key and value."""
        packed, bias = self.in_proj_components, self.in_proj_bias
        if bias is not None:
            bias = bias[first * self.embed_dim : last * self.embed_dim]
        components = getattr(self, f"{'qkv'[first]}_proj_components") if packed is None else packed
        groups = None if packed is None else (first, last)
        y = product_grouped(x, rule, components, bias, rows=self.embed_dim, method=self.method, groups=groups)
        return y.chunk(last - first, -1)

    def _nested(self, sequences: Tensor, need_weights: bool, average: bool) -> tuple[Tensor, Tensor | None]:
        """Self-attention in sequences of several lengths, as torch.nn.TransformerEncoder gives them in eval mode."""
        lengths = [sequence.shape[0] for sequence in sequences.unbind()]
        x = sequences.to_padded_tensor(0.0)
        hidden = torch.arange(x.shape[1], device=x.device) >= torch.tensor(lengths, device=x.device)[:, None]
        y, weights = self(x, x, x, hidden, need_weights, None, average)
        rows = [sequence[:length] for sequence, length in zip(y, lengths, strict=True)]
        return torch.nested.as_nested_tensor(rows), weights


class _OutProjection(Linear):
    """The output's projection, whose bias starts at 0, as torch's attention has it."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.bias is not None:
            nn.init.zeros_(self.bias)
