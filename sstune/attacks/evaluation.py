"""Robust accuracy of a network under a named gradient, sample by sample, with validity always checked."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sstune.arithmetic import check_exact
from sstune.attacks.outcome import NEVER, Outcome
from sstune.attacks.registry import Attack, Batch
from sstune.attacks.subject import Subject
from sstune.attacks.validity import InvalidAttack, check_images, differ, to_8bit
from sstune.copying import to_device
from sstune.datasets import Split, batches, spread
from sstune.finite import check_outputs_finite
from sstune.rules import eval_mode, exact_gradients, frozen_feedback
from sstune.schema import Draws, Gradient, Target
from sstune.seeding import seed_from

CHECKED_AT_ZERO = 256
CPU_BATCH = 128  # larger ones outgrow a CPU's caches


@dataclass(frozen=True)
class Victim:
    """A network under attack, and the samples that it is attacked with.

    Args:
        split: N images; ``samples``, (N,), are their indices in the full test split.
        clean: (N,) bool, right before any attack.
    """

    network: nn.Module
    split: Split
    samples: Tensor
    clean: Tensor
    device: torch.device

    def take(self, index: Tensor) -> Victim:
        """With the samples at ``index`` only."""
        return replace(
            self, split=self.split.take(index), samples=self.samples[index], clean=self.clean[index]
        )

    def some(self, n: int) -> Victim:
        """With ``n`` of the samples only, evenly spread over them."""
        return self.take(spread(n, len(self.split)))

    def images(self, n: int) -> Tensor:
        """The images of :meth:`some`, uint8."""
        few = self.some(n).split
        read = [images for images, _ in batches(few, n, torch.device("cpu"))] if n else []
        return (255 * torch.cat(read)).round().byte() if read else torch.empty(0, dtype=torch.uint8)


@dataclass(frozen=True)
class View:
    """Through what an attacker looks at a victim.

    Args:
        gradient: what is differentiated.
        network: whose gradient it is; the victim's own, or a surrogate.
        source: the surrogate's name.
        draws: when random feedback is drawn, ``eot`` gradients being averaged for each step.
        forward: what computes the network's outputs, if not the network itself (a compiled one).
    """

    gradient: Gradient
    network: nn.Module
    source: str = ""
    draws: Draws = Draws.frozen
    eot: int = 1
    forward: Callable[[Tensor], Tensor] | None = None

    def subject(self, *key: int | str) -> Subject:
        """The network as an attack sees it, drawing feedback as ``key`` says."""
        return Subject(self.network, self.draws, self.eot, key, self.forward)


@contextmanager
def attacked_through(network: nn.Module, gradient: Gradient) -> Iterator[None]:
    """Inside, a backward pass yields ``gradient`` with respect to the images only, in eval mode; feedback is
    drawn only when an attack has it drawn. A surrogate is looked at through its exact gradient."""
    requires_grad = [parameter.requires_grad for parameter in network.parameters()]
    exact = nullcontext() if gradient is Gradient.rule else exact_gradients(network)
    try:
        network.requires_grad_(False)
        with eval_mode(network), exact, frozen_feedback(network):
            yield
    finally:
        for parameter, before in zip(network.parameters(), requires_grad, strict=True):
            parameter.requires_grad_(before)


@contextmanager
def drawing_anew(device: torch.device, *key: int | str) -> Iterator[None]:
    """Inside, a network that draws random numbers of its own draws those that ``key`` names; the process's
    random state is left as it was."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed_from("network", *key))
        yield


def robust(
    victim: Victim,
    attack: Attack,
    view: View,
    eps: float,
    batch_size: int,
    begun: Outcome | None = None,
    save: Callable[[Outcome], None] = lambda outcome: None,
) -> Outcome:
    """Attack the samples that are right without it; every image is checked, every success judged anew.

    Args:
        begun: where to go on.
        save: called after each batch.

    Raises:
        InvalidAttack: an image left [0,1] or the ball, or it or an output for it is NaN or infinite.
        RuntimeError: torch would compute float32 products in another precision.
    """
    outcome = begun or Outcome.begin(victim.clean)
    bar = tqdm(
        desc=f"{attack.name} {view.gradient} eps {255 * eps:.4g}/255",
        leave=False,
        disable=not sys.stderr.isatty(),
        unit="image",
    )
    check_exact(victim.device)
    own = frozen_feedback(victim.network)  # judging draws nothing, whoever's gradient it is
    with bar, attacked_through(view.network, view.gradient), eval_mode(victim.network), own:
        while outcome.part < len(attack.parts):
            entered = outcome.entered.nonzero().flatten()
            bar.reset(total=len(entered))
            bar.update(outcome.done)
            left = victim.split.take(entered[outcome.done :])
            for images, labels in batches(left, batch_size, victim.device):
                began = time.perf_counter()
                index = entered[outcome.done : outcome.done + len(labels)]
                with drawing_anew(victim.device, attack.seed, outcome.part, outcome.done):
                    _attack_batch(victim, attack, view, eps, index, images, labels, outcome)
                outcome.done += len(labels)
                outcome.seconds += time.perf_counter() - began
                bar.set_postfix_str(f"robust {int(outcome.right.sum())}/{len(outcome.right)}")
                bar.update(len(labels))
                save(outcome)
            outcome.part, outcome.done, outcome.entered = outcome.part + 1, 0, ~outcome.broken
    return outcome


def _attack_batch(
    victim: Victim,
    attack: Attack,
    view: View,
    eps: float,
    index: Tensor,
    images: Tensor,
    labels: Tensor,
    outcome: Outcome,
) -> None:
    """The present part of the attack on the samples at ``index``; what became of them goes to ``outcome``."""
    config, part = attack.config, attack.parts[outcome.part]
    samples = victim.samples[index].tolist()
    targets = wanted(victim.network, images, labels, config.targeted, attack.seed, samples)
    batch = Batch(images, labels, targets, samples)
    attempt = attack(part, view.subject(attack.seed, part), batch, eps)
    adversarial = attempt.images
    if config.eight_bit:
        adversarial = to_8bit(adversarial, images, eps, config.norm)
    check_images(adversarial, images, eps, config.norm)
    with torch.no_grad():
        outputs = victim.network(adversarial)
    reached, finite = batch.broken(outputs), torch.isfinite(outputs).all(1)
    told = [reached, outputs.argmax(1) == labels, torch.where(reached, attempt.effort, NEVER), finite]
    broken, right, effort, finite = torch.stack([each.long() for each in told]).cpu()  # the host waits once
    try:
        check_outputs_finite(finite.bool(), victim.network)
    except FloatingPointError as error:
        raise InvalidAttack(f"D0: {error}") from error
    outcome.right[index] &= right.bool()
    outcome.broken[index] = broken.bool()
    if view.gradient is not Gradient.surrogate:  # whose breaking says nothing of the victim's
        outcome.effort[index] = effort.int()
    shown = spread(len(outcome.images), len(outcome.right))
    if (kept := torch.isin(shown, index)).any():
        rounded = to_8bit(adversarial, images, eps, config.norm).cpu()
        rows = torch.searchsorted(index, shown[kept])
        outcome.images[kept] = (255 * rounded[rows]).round().byte()


def wanted(
    network: nn.Module, images: Tensor, labels: Tensor, target: Target | None, seed: int, samples: list[int]
) -> Tensor | None:
    """The wrong class that each sample shall be taken for, (N,); None if any will do."""
    if target is None:
        return None
    with torch.no_grad():
        outputs = network(images).scatter(1, labels[:, None], -torch.inf)
    n_classes = outputs.shape[1]
    if target is Target.runner_up:
        return outputs.argmax(1)
    if target is Target.least_likely:
        return outputs.scatter(1, labels[:, None], torch.inf).argmin(1)
    steps = [1 + seed_from(seed, "target", sample) % (n_classes - 1) for sample in samples]
    return (labels + to_device(torch.tensor(steps), labels.device)) % n_classes


def check_zero_eps(victim: Victim, attack: Attack, view: View, batch_size: int) -> None:
    """Check D0: with eps = 0 every sample (of 256) is judged as without an attack. Not of a network that
    judges one image in two ways, which nothing can be said of.

    Raises:
        InvalidAttack: a judgement differs, so the attack does more than move images in its ball.
    """
    some = victim.some(CHECKED_AT_ZERO)
    if _is_random(some):
        return
    kept = robust(some, attack.shortened(), view, 0.0, batch_size).right
    if not torch.equal(kept, some.clean):
        changed = int((kept != some.clean).sum())
        raise InvalidAttack(
            f"D0: {attack.name} with eps = 0 changes the judgement of {changed} of {len(kept)} samples"
        )


def _is_random(victim: Victim) -> bool:
    """Whether outputs differ from pass to pass by more than rounding."""
    with torch.no_grad(), eval_mode(victim.network), frozen_feedback(victim.network):
        for images, _ in batches(victim.split, CPU_BATCH, victim.device):
            if differ(victim.network(images), victim.network(images)):
                return True
    return False
