"""The laboratory's verbs; `nplex.cli` adds them to the library's."""

from nplex.lab.cli.experiments import compare, run
from nplex.lab.cli.fetching import fetch
from nplex.lab.cli.reporting import report
from nplex.lab.cli.reproducing import reproduce
from nplex.lab.cli.rule_learning import learn
from nplex.lab.cli.tuning import tune
from nplex.lab.cli.using import predict, score

VERBS = (compare, run, reproduce, tune, report, score, predict, fetch)
RULE_VERBS = (learn,)
