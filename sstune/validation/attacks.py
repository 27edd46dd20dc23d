"""What an attack can be asked for: on its own, in an audit, and in training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

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
    for eps in attack.eps:
        try:
            parse_eps(eps, attack.norm)
        except ValueError as error:
            yield f"attack.eps: {error}"
    for key in ("eps", "gradient", "surrogates"):
        values = getattr(attack, key)
        if twice := sorted({str(value) for value in values if values.count(value) > 1}):
            yield f"attack.{key}: {twice[0]} is named twice"
    if isinstance(attack, IteratedConfig):
        try:
            parse_step_size(attack.step_size, 1.0, attack.norm)
        except ValueError as error:
            yield f"attack.step_size: {error}"
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
        if not Path(path).expanduser().exists():
            yield f"{key}: {path} does not exist (a run directory or a checkpoint file)"
    if attack.targeted is not None and not climbs:
        yield f"attack.targeted: is for fgsm, pgd, mifgsm and transfer, not for {attack.name}"
    if attack.eot > 1 and not (climbs or attack.name.startswith(("apgd", "audit"))):
        yield f"attack.eot: is for fgsm, pgd, mifgsm, apgd, apgd_t and audit, not for {attack.name}"
    draws = attack.redraw or getattr(config.rule, "redraw", None)
    if attack.eot > 1 and config.rule.name == "brsf" and draws != Draws.forward:
        yield "attack.eot: averages gradients of different draws, so brsf needs attack.redraw=forward"
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
    try:
        parse_step_size(task.adversarial_step_size, 1.0)
    except ValueError as error:
        yield f"task.adversarial_step_size: {error}"
