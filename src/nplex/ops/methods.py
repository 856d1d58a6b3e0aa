"""The table of methods: a new one is a file with a METHOD and a row here."""

from nplex.ops import bilinear, dense, factored, reference
from nplex.ops.method import Method

METHODS: dict[str, Method] = {
    "reference": reference.METHOD,
    "dense": dense.METHOD,
    "components_first": factored.COMPONENTS_FIRST,
    "rule_first": factored.RULE_FIRST,
    "bilinear": bilinear.METHOD,
}
