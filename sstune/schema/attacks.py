"""Config group ``attack``."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from sstune.schema.choices import AttackLoss, Draws, Gradient, Norm, Target
from sstune.schema.keys import Identity, Range, key, redefined


@dataclass
class AttackConfig:
    """An attack on images in [0,1]."""

    name: str = key(MISSING, "Name of the attack; follows from attack=OPTION.")
    eps: list[str] = key(
        MISSING, "Radii of the ball around each image, as fractions or decimals: [2/255, 0.03]."
    )
    norm: Norm = key(Norm.Linf, "Norm in which eps is measured.", identity=Identity.UNLESS_DEFAULT)
    gradient: list[Gradient] = key(
        [Gradient.rule, Gradient.exact],
        "Gradients to attack through, one after the other: the rule's own, the exact one, that of surrogate "
        "networks, or none for attacks that use outputs only.",
    )
    surrogates: list[str] = key(
        [],
        "Run directories or checkpoint files of the networks that gradient=[surrogate] differentiates.",
        identity=Identity.NEVER,
    )
    eot: int = key(
        1,
        "Number of gradients averaged in each step, each with its own draw of random feedback.",
        within=Range(1, 1e6),
        identity=Identity.UNLESS_DEFAULT,
    )
    redraw: Draws | None = key(
        None,
        "When random feedback is drawn anew under attack: never, for each step, or for each gradient; null: "
        "as rule.redraw says.",
        identity=Identity.UNLESS_DEFAULT,
    )
    targeted: Target | None = key(
        None,
        "Class into which a sample is moved; null: untargeted, any wrong class.",
        identity=Identity.UNLESS_DEFAULT,
    )
    cascade: bool = key(
        False,
        "Count a sample that a smaller eps has already misclassified as misclassified at larger ones, "
        "without attacking it again.",
        identity=Identity.UNLESS_DEFAULT,
    )
    eight_bit: bool = key(
        False,
        "Judge success on adversarial images rounded to 8 bits.",
        identity=Identity.UNLESS_DEFAULT,
    )
    n: int | None = key(None, "Number of test samples to attack; null: all.", within=Range(1))
    save_images: int = key(
        0,
        "Number of samples whose images and adversarial images are saved.",
        within=Range(0, 1e6),
        identity=Identity.UNLESS_DEFAULT,
    )
    batch_size: int | None = key(
        None, "Number of images attacked at once; null: as many as fit in memory.", within=Range(1, 1e6)
    )


@dataclass
class AscentConfig(AttackConfig):
    """An attack by gradient ascent."""

    loss: AttackLoss = key(
        AttackLoss.ce,
        "Loss to increase: cross-entropy (ce), or the difference of logits (margin), which does not "
        "saturate.",
        identity=Identity.UNLESS_DEFAULT,
    )


@dataclass
class IteratedConfig(AscentConfig):
    """Gradient ascent in several steps."""

    steps: int = key(10, "Number of steps.", within=Range(1, 1e6))
    step_size: str = key("eps/4", "Size of a step, relative to eps (eps/4) or absolute (2/255).")
    early_exit: bool = key(
        True,
        "Stop attacking a sample once it is misclassified (not with eight_bit).",
        identity=Identity.UNLESS_DEFAULT,
    )


@dataclass
class PgdConfig(IteratedConfig):
    """Projected gradient descent."""

    restarts: int = key(1, "Number of starts; a sample's best result counts.", within=Range(1, 1e6))
    random_start: bool = key(True, "Start at a random point of the ball; false: at the image itself.")


@dataclass
class MiFgsmConfig(IteratedConfig):
    """Iterated FGSM with momentum."""

    decay: float = key(1.0, "Decay of the accumulated gradient.", within=Range(0, 1e3))


@dataclass
class LibraryConfig(AttackConfig):
    """An attack of another library; it draws for a whole batch, so the outcome depends on batch_size."""

    batch_size: int | None = redefined(AttackConfig, "batch_size", 250)


@dataclass
class ApgdConfig(LibraryConfig):
    """Auto-PGD and FAB; where the attack is targeted, from each start towards each class."""

    steps: int = key(100, "Number of steps.", within=Range(1, 1e6))
    restarts: int = key(1, "Number of starts; a sample's best result counts.", within=Range(1, 1e6))


@dataclass
class SquareConfig(LibraryConfig):
    """Square attack."""

    queries: int = key(5000, "Number of queries for each sample.", within=Range(1, 1e9))


@dataclass
class RaysConfig(AttackConfig):
    """RayS."""

    queries: int = key(2000, "Number of queries for each sample.", within=Range(1, 1e9))


@dataclass
class NoiseConfig(AttackConfig):
    """Random perturbations."""

    attempts: int = key(100, "Number of random perturbations of each sample.", within=Range(1, 1e6))
