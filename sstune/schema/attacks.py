"""Config group ``attack``."""

from __future__ import annotations

from dataclasses import dataclass, field

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
