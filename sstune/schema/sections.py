"""Sections of the configuration that are not config groups."""

from __future__ import annotations

from dataclasses import dataclass

from sstune.schema.keys import Identity, Range, Role, key


@dataclass
class AdversaryConfig:
    """Adversarial training: each training image is replaced by an adversarial one, in the Linf ball."""

    attack: str | None = key(
        None,
        "Attack to train against: fgsm, or pgd and its number of steps, e.g. pgd7; null: no adversarial "
        "training.",
        role=Role.TRAINING,
        identity=Identity.UNLESS_DEFAULT,
    )
    eps: str = key("4/255", "Radius of the ball (Linf), as a fraction or a decimal.", role=Role.TRAINING)
    step_size: str = key(
        "eps/4",
        "Size of a step of pgd, relative to eps (eps/4) or absolute (2/255).",
        role=Role.TRAINING,
    )


@dataclass
class AuditConfig:
    """The masking audit, attack=audit."""

    strict: bool = key(False, "Exit with status 1 unless the verdict is NOT MASKED.", identity=Identity.NEVER)
    skip: list[str] = key([], "Checks to skip, e.g. [D8].")
    surrogate: str | None = key(
        None,
        "Run directory or checkpoint file of a BP-trained network, from which attacks are transferred.",
        identity=Identity.NEVER,
    )
    black_box_n: int = key(200, "Number of samples attacked by their scores only (Square).", within=Range(1))
    square_queries: int = key(5000, "Number of queries of Square for each sample.", within=Range(1, 1e9))
    label_n: int = key(
        100, "Number of those samples also attacked by their labels only (RayS).", within=Range(1)
    )
    label_queries: int = key(2000, "Number of queries of RayS for each sample.", within=Range(1, 1e9))


@dataclass
class ModelConfig:
    """A network made by other code."""

    factory: str | None = key(
        None,
        "For attack: package.module:factory, a function that returns the network to attack, from images in "
        "[0,1] to logits.",
        identity=Identity.NEVER,
    )
