"""What a student is compared by with its teacher: hidden states of blocks, and outputs."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nplex.pretrained.blocks import tensors_of

Outputs = Callable[[Any, Any, Any], Tensor]


def relative_error(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """`|| student - teacher ||^2 / || teacher ||^2`, over the positions that a mask keeps.

    Raises:
        ValueError: the shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"the teacher gives {tuple(teacher.shape)} where the model gives {tuple(student.shape)}; the teacher "
            f"must be the model before its conversion"
        )
    teacher = teacher.detach().to(student.device).float()
    wrong, size = (student.float() - teacher).square(), teacher.square()
    if mask is not None:
        kept = mask.to(wrong).reshape(*mask.shape, *[1] * (wrong.ndim - mask.ndim))
        wrong, size = wrong * kept, size * kept
    return wrong.sum() / size.sum().clamp_min(1e-30)


def output_loss(student: Any, teacher: Any, batch: Any) -> Tensor:
    """How far outputs are apart, by what they are.

    Of a model of transformers, logits: the Kullback-Leibler divergence from the teacher's, a mean over positions; of
    one column their relative error. Its last hidden state: `1 - cosine` of the means over positions. Anything else:
    the mean of the relative errors of its tensors.
    """
    known = [name for name in ("logits", "last_hidden_state") if isinstance(teacher, Mapping) and name in teacher]
    if not known:
        pairs = zip(tensors_of(student), tensors_of(teacher), strict=True)
        errors = [relative_error(own, other) for own, other in pairs if other.is_floating_point()]
        return torch.stack(errors).mean() if errors else torch.zeros(())
    own, other = student[known[0]], teacher[known[0]]
    other, mask = other.to(own.device), mask_of(batch, own, decoder="encoder_last_hidden_state" in teacher)
    if known[0] == "last_hidden_state":
        return (1 - F.cosine_similarity(mean(own, mask), mean(other, mask), dim=-1)).mean()
    return divergence(own, other, mask) if own.shape[-1] > 1 else relative_error(own, other, mask)


def divergence(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """`sum_v p_v log(p_v / q_v)` with p the teacher's softmax and q the student's: a mean over positions."""
    each = F.kl_div(
        student.float().log_softmax(-1), teacher.float().log_softmax(-1), reduction="none", log_target=True
    )
    each = each.sum(-1)
    if mask is None or mask.shape != each.shape:
        return each.mean()
    return (each * mask).sum() / mask.sum().clamp_min(1)


def mean(hidden: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean over positions that a mask keeps: batch x positions x width -> batch x width; others flat."""
    hidden = hidden.float()
    if hidden.ndim != 3:
        return hidden.flatten(1)
    if mask is None:
        return hidden.mean(1)
    return (hidden * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True).clamp_min(1)


def mask_of(batch: Any, hidden: Tensor, *, decoder: bool) -> Tensor | None:
    """The mask of a batch's positions, where it has one of the hidden states' first two sizes."""
    mask = (
        batch.get("decoder_attention_mask" if decoder else "attention_mask") if isinstance(batch, Mapping) else None
    )
    if not isinstance(mask, Tensor) or mask.ndim != 2 or hidden.shape[:2] != mask.shape:
        return None
    return mask.to(hidden.device, torch.float32)
