"""What the rules of a page are, before and after."""

from collections.abc import Callable

from nplex.algebra import identify
from nplex.lab.reporting.read import Told

LARGEST, MOST = 4, 8  # larger rules, and more layers of a run, take longer than a page should


def identified(
    runs: list[Told], shown: list[dict], report: Callable[[int, int], None] = lambda done, of: None
) -> None:
    """Adds to layers of `tables.packed` their verdicts before the first step and at the end, as `identified`.

    Those of each run's first layers with a rule of n = 4 or less; `nplex rule identify` tells of all.

    Args:
        runs: whose tables they are.
        shown: what `packed` gave.
        report: called after each layer with how many are done, and how many there are.
    """
    labelled = {run.label: run for run in runs}
    small = [[layer for layer in each["layers"] if layer["n"] <= LARGEST][:MOST] for each in shown]
    layers = [(labelled[each["run"]], layer) for each, few in zip(shown, small, strict=True) for layer in few]
    for done, (run, layer) in enumerate(layers, 1):
        first, last = (run.tables[layer["epochs"][at]][layer["name"]] for at in (0, -1))
        layer["identified"] = [identify(table).verdict for table in (first, last)]
        report(done, len(layers))
