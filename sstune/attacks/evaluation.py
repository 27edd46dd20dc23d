"""Run an attack through a named gradient and judge every sample; validity is always checked."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sstune.arithmetic import check_exact
from sstune.attacks.attack import NEVER, Attack, AttackResult
from sstune.attacks.attacked_model import AttackedModel
from sstune.attacks.outcome import Outcome
from sstune.attacks.validity import InvalidAttack, check_images, differ, to_8bit
from sstune.datasets import Batch, Split, batches, evenly_spaced
from sstune.finite import check_outputs_finite
from sstune.modes import eval_mode
from sstune.rules import exact_gradients, frozen_feedback
from sstune.schema import Draws, Gradient
from sstune.seeding import seed_from
from sstune.tasks import Objective, Score, Task, predict, with_interval

CHECKED_AT_ZERO = 256
CPU_BATCH = 128  # larger ones outgrow a CPU's caches


@dataclass(frozen=True)
class Victim:
    """A network under attack, its task, and the attacked samples.

    Args:
        split: N images; ``samples``, (N,), are their indices in the full test split.
        predictions: (N, ...), and ``score``, before any attack.
        reference: what predictions are scored against besides targets (:meth:`Task.reference`).
    """

    network: nn.Module
    task: Task
    split: Split
    samples: Tensor
    predictions: Tensor
    score: Score
    device: torch.device
    reference: Any = None

    @classmethod
    def of(
        cls,
        network: nn.Module,
        task: Task,
        split: Split,
        samples: Tensor,
        device: torch.device,
        reference: Any = None,
    ) -> Victim:
        """Evaluate the network without an attack."""
        with frozen_feedback(network), seeded_rng(device, "clean"):
            predictions, _ = predict(network, task, split, device, with_loss=False)
        score = task.score(predictions, split.targets.cpu(), reference)
        return cls(network, task, split, samples, predictions, score, device, reference)

    @property
    def clean(self) -> Tensor:
        """(N,) bool, the samples to attack; for a classifier, those that it classifies correctly."""
        return self.task.attackable(self.score)

    def take(self, index: Tensor) -> Victim:
        """The same victim with the samples at ``index`` only."""
        split, predictions = self.split.take(index), self.predictions[index]
        score = self.task.score(predictions, split.targets.cpu(), self.reference)
        samples = self.samples[index]
        return replace(self, split=split, samples=samples, predictions=predictions, score=score)

    def some(self, n: int) -> Victim:
        """The same victim with ``n`` evenly spaced samples only."""
        return self.take(evenly_spaced(n, len(self.split)))

    def images(self, n: int) -> Tensor:
        """The images of :meth:`some`, uint8."""
        few = self.split.take(evenly_spaced(n, len(self.split)))
        read = [batch.images for batch in batches(few, n, torch.device("cpu"))] if n else []
        return (255 * torch.cat(read)).round().byte() if read else torch.empty(0, dtype=torch.uint8)

    def begin(self, n_images: int = 0) -> Outcome:
        """The outcome before an attack; it keeps ``n_images`` of the images."""
        return Outcome.begin(self.clean, self.predictions, self.images(n_images))

    def measured(self, predictions: Tensor) -> Score:
        """The score of ``predictions``, (N, ...), for a row: with an interval if samples have no score."""
        targets = self.split.targets.cpu()
        score = self.task.score(predictions, targets, self.reference)
        return with_interval(score, self.task, predictions, targets, self.reference)

    def score_of(self, outcome: Outcome) -> Score:
        """The score under an attack."""
        return self.task.score(outcome.predictions, self.split.targets.cpu(), self.reference)


@dataclass(frozen=True)
class GradientSource:
    """The network whose gradient an attack uses, and which gradient it is.

    Args:
        gradient: of the network with its feedback (rule), the true one (exact), or a surrogate's.
        network: whose gradient it is; the victim's own, or a surrogate.
        name: the surrogate's.
        draws: when random feedback is drawn, ``eot`` gradients being averaged for each step.
        forward: what computes the network's outputs, if not the network itself (a compiled one).
        reference: of a surrogate (:meth:`Task.reference`), for tasks that have one.
    """

    gradient: Gradient
    network: nn.Module
    name: str = ""
    draws: Draws = Draws.frozen
    eot: int = 1
    forward: Callable[[Tensor], Tensor] | None = None
    reference: Any = None

    def model(self, *key: int | str) -> AttackedModel:
        """The model that an attack calls; ``key`` seeds the draws of random feedback."""
        return AttackedModel(self.network, self.draws, self.eot, key, self.forward)


@contextmanager
def gradient_mode(network: nn.Module, gradient: Gradient) -> Iterator[None]:
    """Context in which a backward pass yields ``gradient`` with respect to the images only, in eval mode.
    Random feedback stays as it is unless the attack redraws it; a surrogate has its exact gradient."""
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
def seeded_rng(device: torch.device, *key: int | str) -> Iterator[None]:
    """Context in which torch's generators are seeded by ``key``, for networks that draw random numbers; the
    process's random state is restored."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed_from("network", *key))
        yield


def run_attack(
    victim: Victim,
    attack: Attack,
    source: GradientSource,
    eps: float,
    batch_size: int,
    resume_from: Outcome | None = None,
) -> Outcome:
    """The outcome of an attack; resumes ``resume_from`` if given. See :func:`attack_batches`."""
    outcome = resume_from or victim.begin()
    with closing(attack_batches(victim, attack, source, eps, batch_size, outcome)) as batches_done:
        for _ in batches_done:
            pass
    return outcome


def attack_batches(
    victim: Victim, attack: Attack, source: GradientSource, eps: float, batch_size: int, outcome: Outcome
) -> Generator[None]:
    """Attack the samples that have not been attacked successfully; each batch updates ``outcome``.

    Every image is checked, and the victim itself judges every success. If you stop before the end, close the
    generator: this restores the network's mode.

    Raises:
        InvalidAttack: an image left [0,1] or the ball, or it or an output for it is NaN or infinite.
        RuntimeError: torch would compute float32 products in another precision.
    """
    check_exact(victim.device)
    run = _Run(victim, attack, source, eps)
    bar = tqdm(
        desc=f"{attack.name} {source.gradient} eps {255 * eps:.4g}/255",
        leave=False,
        disable=not sys.stderr.isatty(),
        unit="image",
    )
    own = frozen_feedback(victim.network)  # judging does not redraw the victim's feedback
    with bar, gradient_mode(source.network, source.gradient), eval_mode(victim.network), own:
        while outcome.stage < len(attack.stages):
            entered = outcome.entered.nonzero().flatten()
            bar.reset(total=len(entered))
            bar.update(outcome.done)
            left = entered[outcome.done :]
            for batch in batches(victim.split.take(left), batch_size, victim.device):
                began = time.perf_counter()
                run.attack_batch(left[batch.samples], batch, outcome)
                outcome.done += len(batch)
                outcome.seconds += time.perf_counter() - began
                if not bar.disable:
                    bar.set_postfix_str(_progress_text(victim, outcome))
                bar.update(len(batch))
                yield
            outcome.stage, outcome.done, outcome.entered = outcome.stage + 1, 0, ~outcome.success


def _progress_text(victim: Victim, outcome: Outcome) -> str:
    if victim.score.correct is None:
        return str(victim.score_of(outcome))
    return f"robust {int(outcome.robust.sum())}/{len(outcome.robust)}"


@dataclass(frozen=True)
class _Run:
    """One attack through one gradient at one eps."""

    victim: Victim
    attack: Attack
    source: GradientSource
    eps: float

    def attack_batch(self, index: Tensor, batch: Batch, outcome: Outcome) -> None:
        """The present stage of the attack on the samples at ``index``, (n,); updates ``outcome``."""
        attack, victim, source = self.attack, self.victim, self.source
        stage = attack.stages[outcome.stage]
        batch = replace(batch, samples=victim.samples[index])
        with seeded_rng(victim.device, attack.seed, outcome.stage, outcome.done):
            judge = objective = self._objective(batch, victim.network, victim.reference)
            if source.reference is not None:  # a surrogate's outputs have a meaning of their own
                objective = self._objective(batch, source.network, source.reference)
            attempt = attack(stage, source.model(attack.seed, stage), batch, objective, self.eps)
            adversarial = self._valid(attempt.images, batch.images)
            with torch.no_grad():
                outputs = victim.network(adversarial)
        self._judge(index, judge, outputs, attempt, outcome)
        self._keep_images(index, adversarial, batch.images, outcome)

    @torch.no_grad()
    def _objective(self, batch: Batch, network: nn.Module, reference: Any) -> Objective:
        goal = replace(self.attack.goal(), reference=reference)
        return self.victim.task.objective(batch, goal, lambda: network(batch.images))

    def _valid(self, adversarial: Tensor, images: Tensor) -> Tensor:
        """The adversarial images, rounded to 8 bits if configured, after check D0."""
        config = self.attack.config
        if config.eight_bit:
            adversarial = to_8bit(adversarial, images, self.eps, config.norm)
        check_images(adversarial, images, self.eps, config.norm)
        return adversarial

    def _judge(
        self, index: Tensor, judge: Objective, outputs: Tensor, attempt: AttackResult, outcome: Outcome
    ) -> None:
        """Update ``outcome`` by the victim's outputs for the adversarial images; the host waits once."""
        predictions = self.victim.task.predict(outputs)
        zeros = attempt.zero_gradients
        if zeros is None:
            zeros = torch.full_like(attempt.steps_to_success, NEVER)
        finite = torch.isfinite(outputs).flatten(1).all(1)
        columns = [judge.achieved(outputs), attempt.steps_to_success, zeros, finite]
        columns += predictions.reshape(len(index), -1).unbind(1)
        found = torch.stack([column.double() for column in columns], 1).cpu()
        achieved, effort, zeros, finite = found[:, :4].unbind(1)
        try:
            check_outputs_finite(finite.bool(), self.victim.network)
        except FloatingPointError as error:
            raise InvalidAttack(f"D0: {error}") from error
        if self.source.gradient is Gradient.surrogate:  # its steps are not the victim's
            effort = torch.full_like(effort, NEVER)
        said = found[:, 4:].reshape(predictions.shape).to(outcome.predictions.dtype)
        outcome.update(index, achieved.float(), said, effort, zeros)

    def _keep_images(self, index: Tensor, adversarial: Tensor, images: Tensor, outcome: Outcome) -> None:
        shown = evenly_spaced(len(outcome.images), len(outcome.achieved))
        if (kept := torch.isin(shown, index)).any():
            rounded = to_8bit(adversarial, images, self.eps, self.attack.config.norm).cpu()
            rows = torch.searchsorted(index, shown[kept])
            outcome.images[kept] = (255 * rounded[rows]).round().byte()


def check_zero_eps(victim: Victim, attack: Attack, source: GradientSource, batch_size: int) -> None:
    """Check D0: with eps = 0 the predictions for 256 samples are those without an attack.

    Skipped for networks with random outputs.

    Raises:
        InvalidAttack: a prediction differs, so the attack does more than move images in its ball.
    """
    some = victim.some(CHECKED_AT_ZERO)
    if _is_random(some):
        return
    predictions = run_attack(some, attack.with_tiny_budget(), source, 0.0, batch_size).predictions
    changed = int(some.task.changed(predictions, some.predictions).sum())
    if changed:
        raise InvalidAttack(
            f"D0: {attack.name} with eps = 0 changes the judgement of {changed} of {len(predictions)} samples"
        )


def _is_random(victim: Victim) -> bool:
    """Whether outputs differ from pass to pass by more than rounding."""
    with torch.no_grad(), eval_mode(victim.network), frozen_feedback(victim.network):
        for batch in batches(victim.split, CPU_BATCH, victim.device):
            if differ(victim.network(batch.images), victim.network(batch.images)):
                return True
    return False
