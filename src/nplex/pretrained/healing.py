"""Healing: a converted model learns from its original what the conversion lost."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from nplex.convert.calibration import WANTED, check_batch
from nplex.pretrained.blocks import find_blocks, tensors_of
from nplex.pretrained.distillation import Outputs
from nplex.pretrained.healing_loop import Run
from nplex.pretrained.healing_report import Healing, HealingReport
from nplex.pretrained.pair import Pair

if TYPE_CHECKING:
    from accelerate import Accelerator


def heal(
    model: nn.Module,
    teacher: nn.Module,
    batches: Iterable[Any],
    settings: Healing | None = None,
    *,
    blocks: Iterable[str] | None = None,
    outputs: Outputs | None = None,
    folder: str | Path | None = None,
    accelerator: "Accelerator | None" = None,
) -> HealingReport:
    """Trains a converted model to give the hidden states and outputs of its original, in place.

    First groups of blocks learn apart, each from the hidden states that the teacher's own blocks get and give. Then
    the whole model learns all hidden states and its outputs. The loss of hidden states is
    `|| student - teacher ||^2 / || teacher ||^2`, a mean over blocks, where `attention_mask` is not 0. Both models
    run in eval mode. The same call gives the same numbers; torch's random numbers stay as they were.

    Args:
        model: converted, on the device where it is to be trained; it is changed. After an error it is as before.
        teacher: the model before its conversion; on any device, in any precision, or offloaded by accelerate.
        batches: what the models take: tensors, tuples of arguments, or mappings as tokenizers give. Of 10 or more
            the last tenth, at most 8, only measures.
        settings: steps, rates and whatever else has a number.
        blocks: names of the blocks; None for all lists of equal modules, such as the layers of transformers.
        outputs: `outputs(student_output, teacher_output, batch)` gives the loss of outputs; None chooses by kind.
        folder: for a checkpoint. The same call goes on from there and, on a CPU, ends in the same bits.
        accelerator: of accelerate, for its device and precision; one process.

    Raises:
        TypeError: an argument is of another kind than it must be, or batches is a single one.
        ValueError: nothing is converted or can be trained, the teacher has another shape or shares parameters, there
            are no batches, a block is unknown or never runs, a number is not finite, or the folder is another's.

    Examples:
        >>> import copy
        >>> from nplex import convert_
        >>> teacher = nn.Sequential(*[nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(4)])
        >>> model = copy.deepcopy(teacher)
        >>> report = convert_(model, 2, weights="nearest")
        >>> groups, whole = heal(model, teacher, [torch.randn(32, 16) for _ in range(20)]).rows
        >>> groups.after < groups.before, whole.after < whole.before
        (True, True)
    """
    found = _checked(model, teacher, batches, settings := settings or Healing(), outputs, accelerator)
    changed = _changed(model, teacher)
    names = find_blocks(model, blocks, changed)
    trained = _trained(model, teacher, changed, everything=settings.everything)
    kept = {name: parameter.detach().clone() for name, parameter in trained.items()}
    with _prepared(model, teacher, trained):
        if accelerator is not None:
            model.to(accelerator.device)
        try:
            pair = Pair(model, teacher, found, names, settings, outputs)
            return Run(pair, trained, settings, folder, accelerator).report()
        except BaseException:  # a Ctrl-C too: what was learned is in the folder
            with torch.no_grad():
                for name, parameter in trained.items():
                    parameter.copy_(kept[name])
            raise


def _checked(model: Any, teacher: Any, batches: Any, settings: Any, outputs: Any, accelerator: Any) -> list[Any]:
    """The batches as a list."""
    for name, module in (("model", model), ("teacher", teacher)):
        if not isinstance(module, nn.Module):
            raise TypeError(f"the {name} must be a torch.nn.Module, got {type(module).__name__}")
    if not isinstance(settings, Healing):
        raise TypeError(f"settings must be a Healing, got {settings!r}")
    if outputs is not None and not callable(outputs):
        raise TypeError(f"outputs must be a function of two outputs and a batch, got {outputs!r}")
    if isinstance(batches, torch.Tensor | Mapping | str) or not isinstance(batches, Iterable):
        raise TypeError(f"batches must be {WANTED}; got one {type(batches).__name__}, put it in a list")
    if accelerator is not None and (count := getattr(accelerator, "num_processes", accelerator)) != 1:
        raise ValueError(f"accelerator must be accelerate's, of one process without torchrun, got {count!r}")
    found = list(batches)
    if not found:
        raise ValueError(
            "there are no batches; give what the model takes, as [tokenizer(texts, return_tensors='pt')]"
        )
    for index, batch in enumerate(found):
        check_batch(batch, f"batches must be {WANTED}; batch {index}")
        if (tensors := tensors_of(batch)) and not any(tensor.numel() for tensor in tensors):
            raise ValueError(f"batch {index} is empty, {tuple(tensors[0].shape)}; leave it out")
    return found


def _changed(model: nn.Module, teacher: nn.Module) -> list[str]:
    """The names of the model's parameters that the teacher does not have.

    Raises:
        ValueError: there are none, or the teacher is not the model before its conversion.
    """
    own, theirs = dict(model.named_parameters()), dict(teacher.named_parameters(remove_duplicate=False))
    for name, parameter in own.items():
        if name in theirs and theirs[name].shape != parameter.shape:
            sizes = f"{tuple(theirs[name].shape)} in the teacher and {tuple(parameter.shape)} in the model"
            raise ValueError(f"{name} is {sizes}; the teacher must be the model before its conversion")
    there = dict(teacher.named_modules())
    for name, module in model.named_modules():
        listed = isinstance(module, nn.ModuleList | nn.Sequential)
        if listed and len(getattr(there.get(name), "_modules", ())) != len(module):
            raise ValueError(
                f"{name} holds {len(module)} modules in the model and not in the teacher; the teacher must be the "
                f"model before its conversion"
            )
    if changed := [name for name in own if name not in theirs]:
        return changed
    raise ValueError(
        f"nothing to heal: all parameters of this {type(model).__name__} are the teacher's in name and shape, no "
        f"layer is converted; see nplex.convert_"
    )


def _trained(
    model: nn.Module, teacher: nn.Module, changed: list[str], *, everything: bool
) -> dict[str, nn.Parameter]:
    """The parameters that healing trains: new ones, biases and norms; or all.

    Raises:
        ValueError: there are none, one has no numbers, or one is the teacher's too.
    """
    chosen = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (everything or name in changed or parameter.ndim < 2)
    }
    if not any(name in changed for name in chosen):
        raise ValueError(
            f"{changed[0]} and all that is converted requires no gradient; requires_grad_(True) trains it"
        )
    theirs = {id(parameter) for parameter in teacher.parameters()}
    memory = {(p.device, p.data_ptr()) for p in teacher.parameters() if not p.is_meta}
    for name, parameter in chosen.items():
        if parameter.is_meta:
            raise ValueError(f"{name} is on the meta device and has no numbers; load the model first")
        if id(parameter) in theirs or (parameter.numel() and (parameter.device, parameter.data_ptr()) in memory):
            raise ValueError(f"{name} is the teacher's too; convert a copy: copy.deepcopy(teacher)")
        if not parameter.isfinite().all():
            raise ValueError(f"{name} is not finite; fix the step that made it")
    return chosen


@contextmanager
def _prepared(model: nn.Module, teacher: nn.Module, trained: dict[str, nn.Parameter]) -> Iterator[None]:
    """Eval mode, gradients of the trained parameters alone, no caches of keys; all is then as it was."""
    chosen = {id(parameter) for parameter in trained.values()}
    with ExitStack() as stack:
        for parameter in (*model.parameters(), *teacher.parameters()):
            stack.callback(parameter.requires_grad_, parameter.requires_grad)
            if parameter.requires_grad and id(parameter) not in chosen:
                parameter.requires_grad_(False)
        for module in (*model.modules(), *teacher.modules()):  # what a block gives must stay as it gave it: inplace
            for holder, name in (
                (module, "training"),
                (module, "inplace"),
                (getattr(module, "config", None), "use_cache"),
            ):
                if getattr(holder, name, False) is True:
                    stack.callback(setattr, holder, name, True)
                    setattr(holder, name, False)
        if any(hasattr(module, "proj_size") for module in model.modules()):  # cuDNN's has no gradient in eval mode
            own = {name: getattr(torch.backends.cudnn, name) for name in ("benchmark", "deterministic", "allow_tf32")}
            stack.enter_context(torch.backends.cudnn.flags(enabled=False, **own))
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)  # it passes by the modules inside
        stack.enter_context(torch.random.fork_rng(range(torch.cuda.device_count())))
        for parameter in trained.values():
            stack.callback(setattr, parameter, "grad", None)
        yield
