"""Config group ``attack``: the options of each attack, and their traits in :data:`ATTACK_TRAITS`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

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
        "Gradients to attack with, one after the other: the rule's, the exact one, that of surrogate "
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
        "When random feedback is redrawn under attack: never, for each step, or for each gradient; null: as "
        "rule.redraw.",
        identity=Identity.UNLESS_DEFAULT,
    )
    targeted: Target | None = key(
        None,
        "Target class; null: untargeted.",
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
        "Loss to increase: cross-entropy (ce; under another task: its own default), or the difference of "
        "logits (margin), which does not saturate. For hashing: logits, hag, sdha or mainstay.",
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
class FiniteDifferenceConfig(PgdConfig):
    """PGD, then steps along a gradient estimated by finite differences."""

    rounds: int = key(
        3,
        "Number of estimates of the gradient; each takes one query for each dimension of the image.",
        within=Range(1, 1e6),
    )


@dataclass
class MiFgsmConfig(IteratedConfig):
    """Iterated FGSM with momentum."""

    decay: float = key(1.0, "Decay of the accumulated gradient.", within=Range(0, 1e3))


@dataclass
class HagConfig(AscentConfig):
    """HAG, by gradient descent with momentum."""

    steps: int = key(2000, "Number of steps.", within=Range(1, 1e6))
    lr: float = key(
        100 / 128, "Learning rate; its step grows with the gradient.", within=Range(0, above=True)
    )
    momentum: float = key(0.9, "Momentum.", within=Range(0, 0.999999))


@dataclass
class SdhaConfig(AscentConfig):
    """SDHA, by Adam."""

    steps: int = key(1500, "Number of steps.", within=Range(1, 1e6))
    lr: float = key(0.01, "Learning rate.", within=Range(0, above=True))


@dataclass
class LibraryConfig(AttackConfig):
    """An attack of another library, which draws random numbers per batch: results depend on batch_size."""

    batch_size: int | None = redefined(AttackConfig, "batch_size", 250)


@dataclass
class ApgdConfig(LibraryConfig):
    """Auto-PGD and FAB; targeted versions attack each class from each start."""

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


class Effort(StrEnum):
    """Unit of an attack's effort until a sample is misclassified."""

    steps = "steps"
    queries = "queries"


@dataclass(frozen=True)
class Style:
    """Line and marker of an attack in figures.

    Args:
        line: matplotlib line style, for attacks without a gradient; otherwise the gradient determines it.
        colour: likewise.
        marker: matplotlib marker.
        offset: shift along the eps axis, in ticks, so that marks at one eps do not overlap.
    """

    line: Literal["-", "--", "-.", ":"] | tuple[float, tuple[float, ...]] = "-."
    colour: str = "#999999"
    marker: str = "P"
    offset: float = 0.0


@dataclass(frozen=True)
class Traits:
    """Properties of an attack.

    Args:
        config: the dataclass of its options.
        uses_gradient: whether it needs a gradient; if not, ``attack.gradient`` must be ``[none]``.
        norms: the norms of the eps ball that it supports.
        effort: the unit of the effort that it reports and that figures show; None if it reports none, or if
            a curve would have one point.
        targeted: whether ``attack.targeted`` applies.
        eot: whether it can average gradients over draws, ``attack.eot``.
        whole_batches: whether random numbers are drawn per batch, so that results depend on the batch size.
        suite: whether it runs other attacks and reports their worst case per sample.
        tasks: the tasks that it supports, None for all.
    """

    config: type[AttackConfig]
    uses_gradient: bool = True
    norms: tuple[Norm, ...] = tuple(Norm)
    effort: Effort | None = Effort.steps
    targeted: bool = False
    eot: bool = False
    whole_batches: bool = False
    suite: bool = False
    tasks: tuple[str, ...] | None = None
    style: Style = Style()


_LINF = (Norm.Linf,)
_CLASSIFICATION = ("classification",)
_HASHING = ("hashing",)

# The tasks of each loss that not every task has.
LOSS_TASKS: dict[AttackLoss, tuple[str, ...]] = {
    AttackLoss.margin: _CLASSIFICATION,
    AttackLoss.logits: _HASHING,
    AttackLoss.hag: _HASHING,
    AttackLoss.sdha: _HASHING,
    AttackLoss.mainstay: _HASHING,
}


def _of_hashing(config: type[AttackConfig], marker: str) -> Traits:
    """Traits of an attack on hashing, which never counts as successful."""
    return Traits(config, norms=_LINF, effort=None, eot=True, tasks=_HASHING, style=Style(marker=marker))


# By name, in the order of tables and figures: from weak to strong, then black boxes, then the audit.
ATTACK_TRAITS: dict[str, Traits] = {
    "noise": Traits(
        NoiseConfig,
        uses_gradient=False,
        norms=_LINF,
        effort=Effort.queries,
        style=Style((0, (1, 4)), "#999999", "x", offset=-0.15),
    ),
    "fgsm": Traits(AscentConfig, effort=None, targeted=True, eot=True, style=Style(marker="^")),
    "mifgsm": Traits(MiFgsmConfig, targeted=True, eot=True),
    "pgd": Traits(PgdConfig, targeted=True, eot=True, style=Style(marker="o")),
    "finite_difference": Traits(
        FiniteDifferenceConfig, norms=_LINF, effort=None, targeted=True, eot=True, style=Style(marker="*")
    ),
    "mainstay": Traits(
        PgdConfig, norms=_LINF, effort=None, eot=True, tasks=_HASHING, style=Style(marker="v")
    ),
    "hag": Traits(HagConfig, norms=_LINF, effort=None, eot=True, tasks=_HASHING, style=Style(marker="s")),
    "hag_sign": Traits(
        PgdConfig, norms=_LINF, effort=None, eot=True, tasks=_HASHING, style=Style(marker="D")
    ),
    "sdha": Traits(SdhaConfig, norms=_LINF, effort=None, eot=True, tasks=_HASHING, style=Style(marker="P")),
    "apgd": Traits(ApgdConfig, effort=None, eot=True, whole_batches=True, tasks=_CLASSIFICATION),
    "apgd_t": Traits(ApgdConfig, effort=None, eot=True, whole_batches=True, tasks=_CLASSIFICATION),
    "fab_t": Traits(ApgdConfig, effort=None, whole_batches=True, tasks=_CLASSIFICATION),
    "autoattack": Traits(LibraryConfig, effort=None, whole_batches=True, tasks=_CLASSIFICATION),
    "square": Traits(
        SquareConfig,
        uses_gradient=False,
        effort=Effort.queries,
        whole_batches=True,
        tasks=_CLASSIFICATION,
        style=Style("-.", "#0072B2", "s"),
    ),
    "rays": Traits(
        RaysConfig,
        uses_gradient=False,
        norms=_LINF,
        effort=Effort.queries,
        tasks=_CLASSIFICATION,
        style=Style((0, (4, 1.5, 1, 1.5, 1, 1.5)), "#56B4E9", "D", offset=0.15),
    ),
    "audit": Traits(
        AttackConfig,
        norms=_LINF,
        effort=None,
        eot=True,
        suite=True,
        tasks=(*_CLASSIFICATION, *_HASHING),
        style=Style((0, (1, 1)), "#CC79A7", "v"),
    ),
}
_UNKNOWN = Traits(AttackConfig)


def traits_of(attack: str) -> Traits:
    """The traits of an attack, also by its name in tables ("pgd L2", "pgd steps=40"); default traits for an
    unknown attack, as in rows of other versions."""
    return ATTACK_TRAITS.get(attack.partition(" ")[0], _UNKNOWN)


def register_attack(name: str, traits: Traits) -> None:
    """Append an attack of another package to :data:`ATTACK_TRAITS`.

    Raises:
        ValueError: the name is taken, or contains a blank.
    """
    if name in ATTACK_TRAITS or " " in name:
        raise ValueError(f"attack.name: {name!r} is taken or contains a blank")
    ATTACK_TRAITS[name] = traits
