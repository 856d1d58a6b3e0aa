"""Verbs about rules alone: nplex rule learn, ..."""

import typer

from nplex.cli.rule_learning import learn
from nplex.cli.rule_showing import show

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Multiplication tables: look at them, learn one from examples.",
)
for verb in (show, learn):
    app.command()(verb)
