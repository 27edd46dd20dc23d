"""Config group ``attack``: the options of each attack, and :data:`ATTACK_TRAITS`, how the attacks differ."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from omegaconf import MISSING

from sstune.schema.choices import AttackLoss, Draws, Gradient, Norm, Target


@dataclass
class AttackConfig:
    """An attack on [0,1] images; ``eps`` as people write it ("8/255"), in ``norm`` (Linf or L2).

    ``gradient`` lists what is differentiated, ``surrogates`` the runs or checkpoints that stand in for the
    network where that is ``surrogate``. ``eot`` gradients are averaged for a step, of feedback that is drawn
    as ``redraw`` says (null: as ``rule.redraw`` does). ``targeted``: into which class (null: any wrong one).
    With ``cascade`` a sample that broke at a smaller eps is not attacked at a larger one: it counts as
    broken. ``eight_bit``: success is judged on images rounded to 8 bits. ``n`` limits the test samples, of
    which ``save_images`` are kept with their adversarial images. ``batch_size`` null: the largest that fits.
    """

    name: str = MISSING
    eps: list[str] = MISSING
    norm: Norm = Norm.Linf
    gradient: list[Gradient] = field(default_factory=lambda: [Gradient.rule, Gradient.exact])
    surrogates: list[str] = field(default_factory=list)
    eot: int = 1
    redraw: Draws | None = None
    targeted: Target | None = None
    cascade: bool = False
    eight_bit: bool = False
    n: int | None = None
    save_images: int = 0
    batch_size: int | None = None


@dataclass
class AscentConfig(AttackConfig):
    """An attack that goes up the gradient of ``loss``."""

    loss: AttackLoss = AttackLoss.ce


@dataclass
class IteratedConfig(AscentConfig):
    """``step_size`` relative to eps ("eps/4") or absolute; ``early_exit``: a broken sample is left alone
    (unless ``eight_bit``)."""

    steps: int = 10
    step_size: str = "eps/4"
    early_exit: bool = True


@dataclass
class PgdConfig(IteratedConfig):
    """``restarts`` from random points of the ball, or one from the image itself."""

    restarts: int = 1
    random_start: bool = True


@dataclass
class MiFgsmConfig(IteratedConfig):
    """``decay`` of the accumulated gradient."""

    decay: float = 1.0


@dataclass
class LibraryConfig(AttackConfig):
    """An attack of another library, which draws for a whole batch: its size has a part in the outcome."""

    batch_size: int | None = 250


@dataclass
class ApgdConfig(LibraryConfig):
    """``steps`` from each of ``restarts`` starts (towards each class, where it is targeted)."""

    steps: int = 100
    restarts: int = 1


@dataclass
class SquareConfig(LibraryConfig):
    """``queries`` of the scores, for each sample."""

    queries: int = 5000


@dataclass
class RaysConfig(AttackConfig):
    """``queries`` of the predicted label, for each sample."""

    queries: int = 2000


@dataclass
class NoiseConfig(AttackConfig):
    """The best of so many ``attempts``."""

    attempts: int = 100


class Effort(StrEnum):
    """The unit in which an attack counts its effort until a sample is misclassified."""

    steps = "steps"
    queries = "queries"


@dataclass(frozen=True)
class Style:
    """How figures draw an attack.

    Args:
        line: matplotlib's line style, if the attack uses no gradient; otherwise the gradient has one.
        colour: likewise.
        marker: matplotlib's marker.
        offset: shift along the eps axis, in ticks, so that marks at one eps do not overlap.
    """

    line: Literal["-", "--", "-.", ":"] | tuple[float, tuple[float, ...]] = "-."
    colour: str = "#999999"
    marker: str = "P"
    offset: float = 0.0


@dataclass(frozen=True)
class Traits:
    """How an attack differs from the others.

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
        tasks=_CLASSIFICATION,
        style=Style((0, (1, 1)), "#CC79A7", "v"),
    ),
}
_UNKNOWN = Traits(AttackConfig)


def traits_of(attack: str) -> Traits:
    """The traits of an attack, which tables may call "pgd L2" or "pgd steps=40"; defaults if it is unknown,
    as in rows of other versions."""
    return ATTACK_TRAITS.get(attack.partition(" ")[0], _UNKNOWN)


def register_attack(name: str, traits: Traits) -> None:
    """Add an attack of another package to the table, after those that are there.

    Raises:
        ValueError: the name is taken, or contains a blank.
    """
    if name in ATTACK_TRAITS or " " in name:
        raise ValueError(f"attack.name: {name!r} is taken or contains a blank")
    ATTACK_TRAITS[name] = traits
