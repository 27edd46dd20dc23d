"""What an attack can be asked for: on its own, in an audit, and in training."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

from sstune.quantities import parse_adversary, parse_eps, parse_step_size
from sstune.schema import (
    AscentConfig,
    AttackConfig,
    ClassificationConfig,
    Draws,
    Gradient,
    IteratedConfig,
    LibraryConfig,
    Norm,
    RunConfig,
    nearest,
)
from sstune.validation.places import exists

# Attacks that ask for outputs only.
GRADIENT_FREE = ("square", "rays", "noise")
# Where not every norm will do.
NORMS = {"rays": (Norm.Linf,), "noise": (Norm.Linf,), "audit": (Norm.Linf,)}
# Of the audit, D0 to D15.
CHECKS = tuple(f"D{number}" for number in range(16))


def attack_problems(config: RunConfig) -> Iterator[str]:
    """What is wrong with the attack or audit that ``config`` asks for, as ``key: what was expected``."""
    attack = config.attack
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
    if isinstance(attack, IteratedConfig):
        yield from _step_problems("attack.step_size", attack.step_size, attack.norm)
    if attack.name in GRADIENT_FREE:
        if attack.gradient != [Gradient.none]:
            yield f"attack.gradient: {attack.name} uses none, leave it away"
    elif not attack.gradient or Gradient.none in attack.gradient:
        yield "attack.gradient: needs rule, exact or both, or surrogate"
    if attack.norm not in NORMS.get(attack.name, tuple(Norm)):
        yield f"attack.norm: {attack.name} works in Linf only"
    climbs = isinstance(attack, AscentConfig)
    if (Gradient.surrogate in attack.gradient) != bool(attack.surrogates):
        yield "attack.surrogates: goes with attack.gradient=[surrogate]; name runs or checkpoints"
    named = [("attack.surrogates", path) for path in attack.surrogates]
    named += [("audit.surrogate", config.audit.surrogate)] if config.audit.surrogate else []
    for key, path in named:
        if not exists(path):
            yield f"{key}: {path} does not exist (a run directory or a checkpoint file)"
    if attack.targeted is not None and not climbs:
        yield f"attack.targeted: is for fgsm, pgd, mifgsm and transfer, not for {attack.name}"
    if attack.eot > 1 and not (climbs or attack.name.startswith(("apgd", "audit"))):
        yield f"attack.eot: is for fgsm, pgd, mifgsm, apgd, apgd_t and audit, not for {attack.name}"
    draws = attack.redraw or getattr(config.rule, "redraw", None)
    if attack.eot > 1 and hasattr(config.rule, "redraw") and draws != Draws.forward:
        rule = config.rule.name
        yield f"attack.eot: averages gradients of different draws, so {rule} needs attack.redraw=forward"
    if attack.name == "audit":
        usual = AttackConfig()
        for key in ("gradient", "cascade", "eight_bit"):
            if getattr(attack, key) != getattr(usual, key):
                yield f"attack.{key}: the audit chooses its attacks itself, leave it away"
    if isinstance(attack, LibraryConfig) and attack.batch_size is None:
        yield f"attack.batch_size: {attack.name} draws for whole batches, so their size must be said"
    for check in config.audit.skip:
        if check not in CHECKS:
            yield f"audit.skip: unknown check {check!r}, {nearest(check, CHECKS)}"


def adversary_problems(task: ClassificationConfig) -> Iterator[str]:
    """What is wrong with the attack that ``task`` trains against."""
    try:
        if task.adversarial is not None:
            parse_adversary(task.adversarial)
    except ValueError as error:
        yield f"task.adversarial: {error}"
    try:
        parse_eps(task.adversarial_eps)
    except ValueError as error:
        yield f"task.adversarial_eps: {error}"
    yield from _step_problems("task.adversarial_step_size", task.adversarial_step_size, Norm.Linf)


def _step_problems(key: str, text: str, norm: Norm) -> Iterator[str]:
    try:
        if parse_step_size(text, 1.0, norm) == 0:
            yield f"{key}: {text!r} makes no step, expected > 0"
    except ValueError as error:
        yield f"{key}: {error}"


def _twice(key: str, values: Sequence[str], value_of: Callable[[str], object]) -> Iterator[str]:
    """Values that are one value, however they are written: 8/255 and 16/510."""
    first: dict[object, str] = {}
    for value in values:
        what = value_of(value)
        if what in first:
            also = "" if first[what] == value else f", as {first[what]}"
            yield f"{key}: {value} is named twice{also}"
        first.setdefault(what, value)
