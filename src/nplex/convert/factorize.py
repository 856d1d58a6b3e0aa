"""Full rules into their exact bilinear factors, in place, and back."""

import time
import warnings
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn, optim

from nplex.algebra import BilinearAlgorithm, Search, find
from nplex.convert.exchange import check_optimizer, exchange_rules
from nplex.convert.reasons import HOOKS, check_model
from nplex.convert.references import References, exchange_modules
from nplex.convert.report import FactorReport, FactorRow
from nplex.convert.survey import names_of
from nplex.convert.where import Layers, Where, as_where, unselected
from nplex.nn import FixedRule, LearnedRule, Rule
from nplex.nn.rule import FACTORS
from nplex.nn.sharing import succeed

# Relative errors of a table. A search goes to a few times what the type rounds off, so that a table which was
# rounded still has its rank; the rounded factors then err by growth times 1e-7, 9e-4 and 5e-3 at most (measured).
SEARCHED = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 3e-4, torch.bfloat16: 3e-3}
STORED = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}


class _Held(NamedTuple):
    """A rule, and what the report says of it."""

    rule: Rule
    row: FactorRow


def factorize_(
    model: nn.Module,
    *,
    where: Layers | None = None,
    rank: int | None = None,
    tolerance: float | None = None,
    seed: int = 0,
    optimizer: optim.Optimizer | None = None,
) -> FactorReport:
    """Replaces full rules by exact bilinear factors, in place: the same outputs for `R / n^2` of the arithmetic.

    `LearnedRule(n)` becomes `LearnedRule(n, rank=R)`, whose factors are trained from then on; a FixedRule held as
    its table gets an algorithm. A shared rule is factorized once and stays shared. A layer's method stays: "dense"
    is obeyed, "auto" plans anew. A module of your own that calls its rule must take factors, as ops.product does.
    Call it between steps of training: gradients of the tables are dropped. Nothing is changed when an error is
    raised. To load the weights later, build the model with LearnedRule(n, rank=R).

    Args:
        model: a model or a layer; it is changed.
        where: which layers, as in convert_, None for all; a rule is replaced if all layers that use it are.
        rank: R for every rule; None for the smallest that is found for each.
        tolerance: the largest relative error of the stored factors; None for 1e-10 in float64, 1e-5 in float32,
            1e-2 in float16, 5e-2 in bfloat16. Found were, for random tables of n = 2 to 8, at most 1e-13, 3e-7,
            4e-3 and 2e-2: factorize before casting to bfloat16.
        seed: of the searches, as in algebra.find; one takes about a second at n = 8 and ten at n = 20.
        optimizer: factors take the place of their table in it, in the same group, with fresh state; other state
            is untouched. Without it, a UserWarning says so if a replaced rule has a gradient.

    Raises:
        TypeError: the model is not a module; the optimizer is none of torch's, or LBFGS or Adagrad.
        ValueError: an error is above tolerance; a table is zero, not finite, parametrized or on the meta device;
            rank is above n^2; a rule is registered outside the model; no rule can be factorized.

    Examples:
        >>> from nplex import algebra, nn as nx
        >>> model = nn.Sequential(nn.ReLU(), nx.Linear(64, 64, rule=nx.LearnedRule(2, start=algebra.dual)))
        >>> factorize_(model).rows[0].share, model[1].rule
        (0.75, LearnedRule(n=2, rank=3))
    """
    searches: dict[tuple, Search] = {}
    rules = _survey(model, optimizer, True, as_where(where))
    swaps = [_factorized(entry, rank, tolerance, seed, searches) if entry.row.changes else entry for entry in rules]
    return _put_in(model, rules, swaps, optimizer)


def unfactorize_(model: nn.Module, *, optimizer: optim.Optimizer | None = None) -> FactorReport:
    """The way back: `LearnedRule(n, rank=R)` becomes `LearnedRule(n)` with the factors' table, in place.

    The table is computed in float64 and rounded once. Fixed rules are left alone. Errors leave all as it was.

    Args:
        model: a model or a layer; it is changed.
        optimizer: as in factorize_; a table takes the place of its factors.

    Raises:
        ValueError: as factorize_; or a layer has method="bilinear", which needs factors.
    """
    rules = _survey(model, optimizer, False)
    return _put_in(model, rules, [_unfactorized(entry) if entry.row.changes else entry for entry in rules], optimizer)


def _survey(
    model: nn.Module, optimizer: optim.Optimizer | None, full: bool, where: Where | None = None
) -> list[_Held]:
    """All rules of a model, and why some are skipped; tables are to change (full), or factors."""
    check_model(model)
    check_optimizer(optimizer)
    if isinstance(model, Rule):
        raise ValueError("the model is itself a rule and cannot be replaced in place; give the layer that holds it")
    names = names_of(model)
    found: dict[Rule, list[tuple[nn.Module, str]]] = {}
    for module in names:
        for attribute, value in (*vars(module).items(), *module._modules.items()):
            if isinstance(value, Rule):
                found.setdefault(value, []).append((module, attribute))
    if outside := [names[places[0][0]][0] or "the model" for rule, places in found.items() if rule not in names]:
        raise ValueError(f"{', '.join(outside)}: rule registered outside (see missing_rules); give the whole model")
    references = References(model)
    rules = []
    for rule, places in found.items():
        users = [m for m, attribute in places if not rule.is_shared or attribute in vars(m)] or [places[0][0]]
        layers = tuple(" = ".join(name or "(the model itself)" for name in names[user]) for user in users)
        row = FactorRow(names[rule][0], layers, rule.n, rule.rank, rule.rank)
        reason = "not selected by where under all names"
        if not any(unselected(where, names[user], user) for user in users):
            reason = _reason(rule, row.name, users, full) or references.reason(rule)
        rules.append(_Held(rule, replace(row, reason=reason)))
    if not any(entry.row.changes or (entry.rule.rank is None) != full for entry in rules):
        why = f"\n{FactorReport(tuple(h.row for h in rules))}" if rules else " it has no rule; see nplex.convert_"
        raise ValueError(f"nothing to {'' if full else 'un'}factorize in {type(model).__name__}:{why}")
    return rules


def _reason(rule: Rule, name: str, users: list[nn.Module], full: bool) -> str:
    """Why a rule is skipped, or nothing; refuses one that should change and cannot."""
    if (rule.rank is None) != full:
        return "already held as factors" if full else "already a full table"
    own, numbers = {*rule._parameters, *rule._buffers}, [*rule.parameters(), *rule.buffers()]
    needed = {"table"} if full else set(FACTORS)
    if isinstance(rule, LearnedRule | FixedRule) and not needed <= own:
        missing = ", ".join(sorted(needed - own))
        raise ValueError(f"{name}: its {missing} is parametrized or pruned; make that permanent first")
    if any(type(module) not in (LearnedRule, FixedRule) for module in (rule, *users) if isinstance(module, Rule)):
        return "is a rule of its own kind, or a part of one"
    if isinstance(rule, FixedRule) and not full:
        return "fixed: it chooses by itself how it is held"
    hooks = [p._backward_hooks or p._post_accumulate_grad_hooks for p in numbers]
    hooks += [getattr(rule, name) for name in HOOKS]
    if any(hooks) or own != needed or rule._modules or "forward" in vars(rule):
        return "has hooks, or holds more than its numbers, which would be lost"
    if not full and any(getattr(user, "method", None) == "bilinear" for user in users):
        raise ValueError(f'a layer with {name} has method="bilinear", which needs factors; set it to "auto" first')
    if numbers[0].is_meta or numbers[0].dtype not in STORED:
        raise ValueError(f"{name} is {numbers[0].dtype} on {numbers[0].device}; load it as real floating-point first")
    if not all(bool(number.isfinite().all()) for number in numbers):
        raise ValueError(f"{name} must be finite, got NaN or infinite numbers; fix the step that produced them")
    if full and not bool(numbers[0].any()):
        raise ValueError(f"{name} must not be all zeros: the zero product has no algorithm; leave it out by where")
    return ""


def _factorized(
    entry: _Held, rank: int | None, tolerance: float | None, seed: int, searches: dict[tuple, Search]
) -> _Held:
    """The same place for a rule with found factors; raises a ValueError if they are not exact enough."""
    old, row, begin, size = entry.rule, entry.row, time.perf_counter(), entry.rule.n**2
    if rank is not None and rank > size:
        raise ValueError(f"{row.name}: rank must be at most n^2 = {size}, got {rank}; leave it out by where")
    table = next(iter([*old.parameters(), *old.buffers()]))
    exact = old.algebra.table if isinstance(old, FixedRule) else table
    allowed = STORED[table.dtype] if tolerance is None else tolerance
    key = (exact.dtype, tuple(exact.flatten().tolist()))
    fresh = key not in searches
    if fresh:
        searches[key] = find(exact, rank, seed, tolerance=max(1e-14, min(allowed, SEARCHED[exact.dtype])))
    search = searches[key]
    if rank is None and search.rank == size:
        return entry._replace(row=replace(row, reason="no fewer than n^2 products were found"))
    factors = search.algorithm.to(table.dtype, table.device)
    error = factors.error(table)
    if not error <= allowed or (isinstance(old, FixedRule) and search.verdict != "exact"):
        raise ValueError(
            f"{row.name}: expected a relative error of {allowed:.1e} or less, got {max(error, search.error):.1e} "
            f"with {search.rank} products in {table.dtype}; nothing was changed. Try another seed, a higher rank or "
            f"a larger tolerance, or leave the rule out by where. {search.reason}"
        )
    if isinstance(old, FixedRule):
        new = FixedRule(old.algebra, algorithm=search.algorithm, device=table.device, dtype=table.dtype)
    else:
        new = LearnedRule(old.n, factors.rank, norm=old.initial_norm, device="meta", dtype=table.dtype)
        for name, factor in zip(FACTORS, factors, strict=True):
            setattr(new, name, nn.Parameter(factor.clone(), table.requires_grad))
    seconds = (time.perf_counter() - begin) * fresh
    row = replace(row, after=search.rank, error=error, growth=search.growth, seconds=seconds)
    return entry._replace(rule=new, row=row)


def _unfactorized(entry: _Held) -> _Held:
    """The same place for a rule with the table of its factors."""
    old, like = entry.rule, entry.rule.get_parameter("decode")
    factors = BilinearAlgorithm(*(old.get_parameter(name) for name in FACTORS))
    table = factors.to(torch.float64, "cpu").table().to(like.device, like.dtype)
    start, norm = getattr(old, "start", None), old.initial_norm
    new = LearnedRule(old.n, start=start, norm=norm, device="meta", dtype=like.dtype)
    new.table = nn.Parameter(table, any(p.requires_grad for p in old.parameters()))
    row = replace(entry.row, after=None, error=factors.error(table), growth=factors.growth)
    return entry._replace(rule=new, row=row)


def _put_in(
    model: nn.Module, rules: list[_Held], swaps: list[_Held], optimizer: optim.Optimizer | None
) -> FactorReport:
    """Puts the new rules in place of the old ones, in the optimizer too; all that can fail comes first."""
    changed = [(old.rule, new) for old, new in zip(rules, swaps, strict=True) if old.rule is not new.rule]
    learned = [(old, new) for old, new in changed if isinstance(old, LearnedRule)]
    summary = "optimizer: none was given; one made before does not know the new parameters" * bool(learned)
    if optimizer is not None and learned:
        summary = exchange_rules(optimizer, [(old, new.rule, new.row.name) for old, new in learned])
    elif any(p.requires_grad and p.grad is not None for old, _ in learned for p in old.parameters()):
        what = "rules in training were replaced and an optimizer made before does not know their new parameters"
        warnings.warn(f"{what}; make a new one, or pass it next time: optimizer=optimizer", stacklevel=3)
    for old, (new, _) in changed:
        succeed(old, new)
        new.train(old.training)
    exchange_modules(model, {old: new for old, (new, _) in changed})
    return FactorReport(tuple(entry.row for entry in swaps), summary)
