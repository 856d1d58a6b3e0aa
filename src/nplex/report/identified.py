"""What the rules of a page are, before and after."""

from collections.abc import Callable

from nplex.algebra.identify import identify
from nplex.report.read import Told

LARGEST = 8  # larger rules are compared with nothing


def identified(
    runs: list[Told], shown: list[dict], report: Callable[[int, int], None] = lambda done, of: None
) -> None:
    """Adds to each layer of `tables.packed` its verdicts before the first step and at the end, as `identified`.

    Args:
        runs: whose tables they are.
        shown: what `packed` gave.
        report: called after each layer with how many are done, and how many there are.
    """
    labelled = {run.label: run for run in runs}
    layers = [(labelled[each["run"]], layer) for each in shown for layer in each["layers"] if layer["n"] <= LARGEST]
    for done, (run, layer) in enumerate(layers, 1):
        first, last = (run.tables[layer["epochs"][at]][layer["name"]] for at in (0, -1))
        layer["identified"] = [identify(table).verdict for table in (first, last)]
        report(done, len(layers))
