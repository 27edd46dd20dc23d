"""Validation of attacks, audits and adversarial training."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

from sstune.quantities import parse_adversary, parse_eps, parse_step_size
from sstune.schema import (
    ATTACK_TRAITS,
    LOSS_TASKS,
    AdversaryConfig,
    AttackConfig,
    Draws,
    Gradient,
    IteratedConfig,
    Norm,
    RunConfig,
    nearest,
    traits_of,
)
from sstune.schema.audit import CHECKS
from sstune.validation.places import exists, names_factory

# Keys of ``attack`` that a suite sets for its attacks.
_SET_BY_SUITE = ("gradient", "cascade", "eight_bit")


def attack_problems(config: RunConfig) -> Iterator[str]:
    """Problems of the attack or audit of ``config``, as ``key: what was expected``."""
    attack = config.attack
    yield from _lists(attack)
    if isinstance(attack, IteratedConfig):
        yield from _step_problems("attack.step_size", attack.step_size, attack.norm)
    yield from _gradient(attack)
    yield from _surrogates(config)
    yield from _unsupported(config)
    if (exact := config.audit.exact) is not None and not names_factory(exact):
        yield f"audit.exact: {exact!r} is not of the form package.module:factory"
    for check in config.audit.skip:
        if check not in CHECKS:
            yield f"audit.skip: unknown check {check!r}, {nearest(check, CHECKS)}"


def _lists(attack: AttackConfig) -> Iterator[str]:
    """Empty lists, duplicate values, and invalid values of eps."""
    if not attack.eps:
        yield "attack.eps: needs at least one value"
    sizes: dict[str, float] = {}
    for eps in attack.eps:
        try:
            sizes[eps] = parse_eps(eps, attack.norm)
        except ValueError as error:
            yield f"attack.eps: {error}"
    yield from _twice("attack.eps", [eps for eps in attack.eps if eps in sizes], sizes.__getitem__)
    yield from _twice("attack.gradient", attack.gradient, str)
    yield from _twice("attack.surrogates", attack.surrogates, os.path.realpath)


def _gradient(attack: AttackConfig) -> Iterator[str]:
    if not traits_of(attack.name).uses_gradient:
        if attack.gradient != [Gradient.none]:
            yield f"attack.gradient: {attack.name} uses no gradient, remove this key"
    elif not attack.gradient or Gradient.none in attack.gradient:
        yield "attack.gradient: needs rule, exact or both, or surrogate"


def _surrogates(config: RunConfig) -> Iterator[str]:
    attack = config.attack
    if (Gradient.surrogate in attack.gradient) != bool(attack.surrogates):
        yield "attack.surrogates: must be given with attack.gradient=[surrogate], and only then"
    named = [("attack.surrogates", path) for path in attack.surrogates]
    named += [("audit.surrogate", config.audit.surrogate)] if config.audit.surrogate else []
    for key, path in named:
        if not exists(path) and not names_factory(path):
            expected = "a run directory, a checkpoint file, or package.module:factory"
            yield f"{key}: {path} does not exist ({expected})"


def task_problems(config: RunConfig) -> Iterator[str]:
    """An attack or a loss that the task does not support."""
    attack, tasks = config.attack, traits_of(config.attack.name).tasks
    if tasks is not None and config.task.name not in tasks:
        yield f"attack: {attack.name} supports {_joined(tasks)}, not task={config.task.name}"
        return
    loss = getattr(attack, "loss", None)
    if loss in LOSS_TASKS and config.task.name not in LOSS_TASKS[loss]:
        yield f"attack.loss: {loss} is for task={_joined(LOSS_TASKS[loss])}, not for {config.task.name}"


def _unsupported(config: RunConfig) -> Iterator[str]:
    """Settings that the attack does not support, by its traits."""
    attack, traits = config.attack, traits_of(config.attack.name)
    if attack.norm not in traits.norms:
        yield f"attack.norm: {attack.name} supports {_joined(traits.norms)} only"
    if attack.targeted is not None and not traits.targeted:
        able = [name for name, each in ATTACK_TRAITS.items() if each.targeted]
        yield f"attack.targeted: is for {_joined(able)}, not for {attack.name}"
    if attack.eot > 1 and not traits.eot:
        able = [name for name, each in ATTACK_TRAITS.items() if each.eot]
        yield f"attack.eot: is for {_joined(able)}, not for {attack.name}"
    draws = attack.redraw or getattr(config.rule, "redraw", None)
    if attack.eot > 1 and hasattr(config.rule, "redraw") and draws != Draws.forward:
        rule = config.rule.name
        yield f"attack.eot: averages gradients of different draws, so {rule} needs attack.redraw=forward"
    if traits.suite:
        default = AttackConfig()
        for key in _SET_BY_SUITE:
            if getattr(attack, key) != getattr(default, key):
                yield f"attack.{key}: the {attack.name} chooses its attacks itself; remove this key"
    if traits.whole_batches and attack.batch_size is None:
        yield f"attack.batch_size: {attack.name} draws random numbers per batch, so their size must be given"


def _joined(names: Sequence[str]) -> str:
    """``a, b and c``."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else str(last)


def adversary_problems(adversary: AdversaryConfig) -> Iterator[str]:
    """Problems of the settings of adversarial training."""
    try:
        if adversary.attack is not None:
            parse_adversary(adversary.attack)
    except ValueError as error:
        yield f"adversary.attack: {error}"
    try:
        parse_eps(adversary.eps)
    except ValueError as error:
        yield f"adversary.eps: {error}"
    yield from _step_problems("adversary.step_size", adversary.step_size, Norm.Linf)


def _step_problems(key: str, text: str, norm: Norm) -> Iterator[str]:
    try:
        if parse_step_size(text, 1.0, norm) == 0:
            yield f"{key}: {text!r} is zero, expected > 0"
    except ValueError as error:
        yield f"{key}: {error}"


def _twice(key: str, values: Sequence[str], value_of: Callable[[str], object]) -> Iterator[str]:
    """Values that are equal, possibly in another notation: 8/255 and 16/510."""
    first: dict[object, str] = {}
    for value in values:
        what = value_of(value)
        if what in first:
            also = "" if first[what] == value else f", as {first[what]}"
            yield f"{key}: {value} is given twice{also}"
        first.setdefault(what, value)
