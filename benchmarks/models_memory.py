"""Peak memory of one model in one mode, in a process of its own; benchmarks/models.py starts one for each.

    python benchmarks/models_memory.py transformer 4:4 training     # prints JSON, in bytes

The peak is the highest resident size (VmHWM of Linux) while the model is built and the mode run three times, less
the resident size just before. By then everything is imported and a tiny model has run, so what is loaded on first use
does not count; the highest size until then is printed too, and far below. The allocator's settings are its own.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Annotated

import models_lstm
import models_transformer
import models_work
import torch
import typer
from torch import Tensor

from nplex.nn import cached

WORKLOADS: dict[str, ModuleType] = {"transformer": models_transformer, "lstm": models_lstm}


def main(
    workload: Annotated[str, typer.Argument(help="transformer or lstm.")],
    variant: Annotated[str, typer.Argument(help="As in the tables.")],
    mode: Annotated[str, typer.Argument(help="training, evaluation, ...")],
    threads: Annotated[int, typer.Option(min=1)] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes.")] = False,
) -> None:
    """Measure and print."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    module = WORKLOADS[workload]
    use(module, variant, mode, module.QUICK)
    before = resident("VmRSS")
    until = resident("VmHWM")
    use(module, variant, mode, module.QUICK if quick else module.FULL)
    print(json.dumps({"peak": resident("VmHWM") - before, "before": before, "peak_before": until - before}))


def use(workload: ModuleType, variant: str, mode: str, sizes: object) -> None:
    """Builds the model and runs the mode three times."""
    model = workload.build(variant, sizes)
    run = models_work.runs(model, workload, sizes)[mode]
    if mode == "training":
        for _ in range(3):
            run()
        return
    with torch.no_grad(), cached(model):
        for _ in range(3):
            run()


def resident(field: str) -> int:
    """A size of this process: VmRSS now, VmHWM at most. Not getrusage: its figure begins with the parent's size."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text("utf-8"))
    assert found, "this needs Linux"
    return 1024 * int(found[1])


def measured(workload: str, variant: str, mode: str, *, quick: bool) -> dict[str, int]:
    """The same in a fresh process."""
    options = ["--threads", str(torch.get_num_threads()), *(["--quick"] if quick else [])]
    command = [sys.executable, __file__, workload, variant, mode, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def held(workload: ModuleType, variant: str, sizes: object) -> dict[str, int]:
    """Bytes of the parameters, and of their gradients and the optimizer's state after a step: summed exactly."""
    model = workload.build(variant, sizes)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = [value for values in optimizer.state.values() for value in values.values()]
    gradients = [p.grad for p in parameters if p.grad is not None]
    return {"parameters": size(parameters), "gradients": size(gradients), "optimizer_state": size(state)}


def size(tensors: Iterable[Tensor]) -> int:
    """Bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


if __name__ == "__main__":
    typer.run(main)
