"""D0, D11, D12: whether the robustness of the network can be measured."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sstune.attacks.attack import ATTACKS
from sstune.attacks.audit.check import CHECK_FUNCTIONS, CheckResult
from sstune.attacks.audit.comparison import percent, surely_above
from sstune.attacks.audit.evidence import Evidence
from sstune.attacks.audit.probing import gradient_pass, spread_batches
from sstune.attacks.evaluation import check_zero_eps, gradient_mode
from sstune.attacks.validity import InvalidAttack, differ
from sstune.datasets import Batch
from sstune.modes import eval_mode
from sstune.schema import PgdConfig
from sstune.schema.audit import Status

REPEATS = 5
LOOKED_AT = 64
FEWEST_RIGHT = 24  # of fewer, not even a third less would be a significant difference at four eps
FEWEST_VALUES = 8  # of fewer, not even a difference at all of them would be significant at four eps


def probe(evidence: Evidence, n: int = LOOKED_AT) -> Batch:
    """``n`` samples as one batch on the victim's device."""
    (batch,) = spread_batches(evidence.victim, n, n)
    return batch


@CHECK_FUNCTIONS.register("D0")
def d0(evidence: Evidence) -> CheckResult:
    """Enough samples, eval mode, outputs of a sample its own, passes without a trace, nothing at eps = 0."""
    network, batch, said = evidence.victim.network, probe(evidence), evidence.profile.outputs
    found = []
    modes = [name or "the network itself" for name, module in network.named_modules() if module.training]
    if modes:
        found.append(f"{len(modes)} modules came in train mode ({modes[0]}, ...): call .eval()")
    found += _too_little(evidence)
    with torch.no_grad(), eval_mode(network):
        before = {key: value.clone() for key, value in _tensors(network).items()}
        outputs = network(batch.images)
        changed = [key for key, value in _tensors(network).items() if not torch.equal(value, before[key])]
        half = len(batch.images) // 2 or 1
        alone = network(batch.images[:half])
        turned = network(batch.images.flip(0)).flip(0)
        again = network(batch.images)
    if not torch.isfinite(outputs).all():
        found.append(f"{said} are not finite")
    if changed:
        found.append(f"a forward pass in eval mode changes {changed[0]}")
    if not differ(outputs, again) and (differ(alone, outputs[:half]) or differ(turned, outputs)):
        found.append(f"a sample's {said} depend on the other samples of its batch, or on its place in it")
    try:
        name, loss = evidence.profile.attack, evidence.profile.loss
        pgd = ATTACKS[name](PgdConfig(name, [], steps=2, loss=loss), evidence.seed)
        check_zero_eps(evidence.victim, pgd, evidence.white_box, LOOKED_AT)
    except InvalidAttack as error:
        found.append(str(error))
    status = Status.error if found else Status.ok
    text = "; ".join(found) or f"eval mode, finite {said}, eps = 0 equals clean"
    return CheckResult(status, float(len(found)), "faults", "0", len(batch.images), text)


def _too_little(evidence: Evidence) -> Iterator[str]:
    """Too few samples to compare attacks, or a metric that no attack can lower."""
    if evidence.counted:
        if (right := int(evidence.before.sum())) < FEWEST_RIGHT:
            yield f"only {right} of {evidence.n} samples are right without an attack: too few to attack"
        return
    if evidence.n < FEWEST_VALUES:
        yield f"only {evidence.n} samples: too few to compare attacks"
    elif not surely_above(evidence.before, evidence.chance):
        clean, chance = percent(evidence.before), 100 * evidence.chance
        metric = evidence.victim.task.metric
        yield f"{metric} without an attack, {clean:.1f} %, is no more than chance, {chance:.1f} %"


@CHECK_FUNCTIONS.register("D11")
def d11(evidence: Evidence) -> CheckResult:
    """Random outputs or gradients: an attack must average over them.

    Where outputs are random, samples that were attacked together share a draw, and their figures its luck.
    """
    outputs, gradients = repeated(evidence)
    random = [name for name, values in (("outputs", outputs), ("input gradients", gradients)) if
              any(differ(values[0], other) for other in values[1:])]  # fmt: skip
    averaged = evidence.white_box.eot > 1
    unfair = Status.error if "outputs" in random else Status.warn
    status = Status.ok if not random else Status.report if averaged else unfair
    text = "the same in every repeat"
    if random:
        text = f"{' and '.join(random)} differ from pass to pass"
        text += f"; averaged over {evidence.white_box.eot}" if averaged else ": use attack.eot"
        text += ", and attack.batch_size=1 if a draw is for a whole batch" if "outputs" in random else ""
    return CheckResult(status, float(len(random)), "of 2 vary", "0", len(outputs[0]), text)


def repeated(evidence: Evidence) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and own input gradients of the same images, five times over, drawn as the attack draws."""
    batch = probe(evidence)
    model = evidence.white_box.model(evidence.seed, "repeat")
    model.eot = 1
    loss = evidence.profile.unsaturated
    with gradient_mode(evidence.victim.network, evidence.white_box.gradient):
        passes = [gradient_pass(evidence.victim, model, batch, loss) for _ in range(REPEATS)]
    return [outputs for outputs, _ in passes], [gradient for _, gradient in passes]


@CHECK_FUNCTIONS.register("D12")
def d12(evidence: Evidence) -> CheckResult:
    """A network that ends in a softmax has flat losses where it is sure."""
    batch = probe(evidence)
    with torch.no_grad(), eval_mode(evidence.victim.network):
        outputs = evidence.victim.network(batch.images)
    softmax = are_probabilities(outputs)
    text = "outputs are probabilities: attack the logits before the softmax" if softmax else "logits"
    status = Status.warn if softmax else Status.ok
    return CheckResult(status, float(outputs.sum(1).mean()), "mean sum", "not 1", len(outputs), text)


def are_probabilities(outputs: Tensor) -> bool:
    """Whether outputs, (N, classes), are those of a softmax."""
    return bool((outputs >= 0).all()) and float((outputs.sum(1) - 1).abs().max()) < 1e-3


def _tensors(network: torch.nn.Module) -> dict[str, Tensor]:
    return dict([*network.named_parameters(), *network.named_buffers()])
