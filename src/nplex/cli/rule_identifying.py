"""nplex rule identify: which known algebra a rule is, up to changes of basis."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from nplex.cli.rule_showing import Only, What, rules_named
from nplex.terminal import messages, print_table, refusing


def identify(
    rule: What, only: Only = None, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """Say which known algebra a rule is, whatever bases it stands in; of a file each of its rules.

    A rule inside a network is known only up to changes of basis on its three sides, so all bases are tried. Of one
    rule the distance to each known algebra of its size is printed, and what it is in any bases; of several a line
    for each. A second for n = 4, some for n = 8.

    Examples:
      nplex rule identify 'clifford(1,1)'

      nplex rule identify runs/agreement-4 --only 'blocks.0.*'

      nplex rule identify own.json --json
    """
    from rich.progress import track

    with refusing():
        from nplex.algebra import identify as identified

        rules = rules_named(rule, only)
        shown = track(
            rules.items(), "identifying", console=messages, disable=not messages.is_terminal or len(rules) == 1
        )
        found = {name: identified(value) for name, value in shown}
    if as_json:
        print(json.dumps({name: asdict(value) for name, value in found.items()}, indent=1))
    elif len(found) == 1:
        print(*found.values())
    else:
        print_table([["rule", "n", "verdict"], *([name, str(v.n), v.verdict] for name, v in found.items())])
