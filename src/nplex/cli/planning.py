"""Verbs about speed: plan, measure."""

from typing import Annotated

import typer

from nplex.terminal import TWIN, messages, refuse, refusing


def plan(
    in_features: Annotated[int, typer.Argument(min=1, help="Width of the input.")],
    out_features: Annotated[int, typer.Argument(min=1, help="Width of the output.")],
    tokens: Annotated[int, typer.Option(min=0, help="Rows of the input: batch times length; 1 when decoding.")] = 512,
    rule: Annotated[str, typer.Option(help=f"One of: {TWIN}.", metavar="RULE")] = "4",
    training: Annotated[bool, typer.Option("--training", help="Count the gradients too.")] = False,
    prepared: Annotated[bool, typer.Option("--prepared", help="As inside nplex.nn.cached.")] = False,
) -> None:
    """Print what each way to compute a layer would cost on this machine, and which is taken.

    Examples:
      nplex plan 4096 4096 --tokens 1 --rule 8

      nplex plan 512 2048 --rule 4:7 --training
    """
    with refusing():
        from nplex.nn import as_rule
        from nplex.ops import plan_for

        if rule == "dense":
            refuse("a dense layer has one way only; give a rule, as --rule 4")
        parsed = as_rule(rule)
        sizes = {"tokens": tokens, "n": parsed.n, "rank": parsed.rank}
        print(plan_for(in_features, out_features, **sizes, training=training, prepared=prepared))


def measure(device: Annotated[str, typer.Option(help="cpu, cuda, ...", metavar="DEVICE")] = "cpu") -> None:
    """Measure how fast this machine computes, for all later plans: two seconds, best while nothing else runs.

    Examples:
      nplex measure
      OMP_NUM_THREADS=1 nplex measure    # each number of threads has its own numbers
    """
    with refusing():
        from nplex.ops import machine, measure

        print(found := measure(device))
        machine.save(found, machine.cache_file(), device=device)
    messages.print(f"kept in {machine.cache_file()}", soft_wrap=True)
