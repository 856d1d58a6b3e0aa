"""Verbs about rules alone: nplex rule show, learn, identify."""

import typer

from nplex.cli.rule_identifying import identify
from nplex.cli.rule_showing import show
from nplex.lab.cli import RULE_VERBS

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Multiplication tables: look at them, learn one from examples, say which algebra one is.",
)
for verb in (show, *RULE_VERBS, identify):
    app.command()(verb)
