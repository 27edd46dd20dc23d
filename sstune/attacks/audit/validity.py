"""D0, D11, D12: whether the network is one whose robustness can be measured at all."""

from __future__ import annotations

import torch
from torch import Tensor

from sstune.attacks.ascent import loss_gradient
from sstune.attacks.attack import ATTACKS
from sstune.attacks.audit.check import Check, Status
from sstune.attacks.audit.evidence import Evidence
from sstune.attacks.evaluation import attacked_through, check_zero_eps
from sstune.attacks.validity import InvalidAttack, differ
from sstune.datasets import Batch, batches
from sstune.modes import eval_mode
from sstune.schema import AttackLoss, PgdConfig

REPEATS = 5
LOOKED_AT = 64
FEWEST_RIGHT = 24  # of fewer, not even a third less would be a significant difference at four eps


def probe(evidence: Evidence, n: int = LOOKED_AT) -> Batch:
    """``n`` samples as one batch on the victim's device."""
    victim = evidence.victim.some(n)
    (batch,) = batches(victim.split, n, victim.device)
    return batch


def d0(evidence: Evidence) -> Check:
    """Enough samples, eval mode, logits of a sample its own, passes without a trace, nothing at eps = 0."""
    network, batch = evidence.victim.network, probe(evidence)
    found = []
    modes = [name or "the network itself" for name, module in network.named_modules() if module.training]
    if modes:
        found.append(f"{len(modes)} modules came in train mode ({modes[0]}, ...): call .eval()")
    if (right := int(evidence.victim.clean.sum())) < FEWEST_RIGHT:
        found.append(f"only {right} of {evidence.n} samples are right without an attack: too few to attack")
    with torch.no_grad(), eval_mode(network):
        before = {key: value.clone() for key, value in _tensors(network).items()}
        outputs = network(batch.images)
        changed = [key for key, value in _tensors(network).items() if not torch.equal(value, before[key])]
        half = len(batch.images) // 2 or 1
        alone = network(batch.images[:half])
        again = network(batch.images)
    if not torch.isfinite(outputs).all():
        found.append("logits are not finite")
    if changed:
        found.append(f"a forward pass in eval mode changes {changed[0]}")
    if not differ(outputs, again) and differ(alone, outputs[:half]):
        found.append("a sample's logits depend on the other samples of its batch")
    try:
        pgd = ATTACKS["pgd"](PgdConfig("pgd", [], steps=2), evidence.seed)
        check_zero_eps(evidence.victim, pgd, evidence.own, LOOKED_AT)
    except InvalidAttack as error:
        found.append(str(error))
    status = Status.error if found else Status.ok
    text = "; ".join(found) or "eval mode, finite logits, eps = 0 equals clean"
    return Check(status, float(len(found)), "faults", "0", len(batch.images), text)


def d11(evidence: Evidence) -> Check:
    """Random outputs or gradients: an attack must average over them.

    Where outputs are random, samples that were attacked together share a draw, and their figures its luck.
    """
    outputs, gradients = repeated(evidence)
    random = [name for name, values in (("outputs", outputs), ("input gradients", gradients)) if
              any(differ(values[0], other) for other in values[1:])]  # fmt: skip
    averaged = evidence.own.eot > 1
    unfair = Status.error if "outputs" in random else Status.warn
    status = Status.ok if not random else Status.report if averaged else unfair
    text = "the same in every repeat"
    if random:
        text = f"{' and '.join(random)} differ from pass to pass"
        text += f"; averaged over {evidence.own.eot}" if averaged else ": use attack.eot"
        text += ", and attack.batch_size=1 if a draw is for a whole batch" if "outputs" in random else ""
    return Check(status, float(len(random)), "of 2 vary", "0", len(outputs[0]), text)


def repeated(evidence: Evidence) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and own input gradients of the same images, five times over, drawn as the attack draws."""
    batch = probe(evidence)
    subject = evidence.own.subject(evidence.seed, "repeat")
    subject.eot = 1
    with attacked_through(evidence.victim.network, evidence.own.gradient):
        objective = evidence.objective(batch, AttackLoss.margin)
        passes = [loss_gradient(subject, batch.images, objective) for _ in range(REPEATS)]
    return [outputs for outputs, _ in passes], [gradient for _, gradient in passes]


def d12(evidence: Evidence) -> Check:
    """A network that ends in a softmax has flat losses where it is sure."""
    batch = probe(evidence)
    with torch.no_grad(), eval_mode(evidence.victim.network):
        outputs = evidence.victim.network(batch.images)
    sums = outputs.sum(1)
    alike = bool((outputs >= 0).all()) and float((sums - 1).abs().max()) < 1e-3
    text = "outputs are probabilities: attack the logits before the softmax" if alike else "logits"
    status = Status.warn if alike else Status.ok
    return Check(status, float(sums.mean()), "mean sum", "not 1", len(sums), text)


def _tensors(network: torch.nn.Module) -> dict[str, Tensor]:
    return dict([*network.named_parameters(), *network.named_buffers()])
