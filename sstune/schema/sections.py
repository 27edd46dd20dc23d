"""Sections of the configuration that are not config groups."""

from __future__ import annotations

from dataclasses import dataclass

from sstune.schema.choices import Queries
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
        "Run directory or checkpoint file of a BP-trained network, or package.module:factory, from which "
        "attacks are transferred.",
        identity=Identity.NEVER,
    )
    exact: str | None = key(
        None,
        "package.module:factory, a function that returns a network with the same outputs whose gradient is "
        "the true one, or nearer to it (BPDA); null: the exact gradient of the network's own layers.",
        identity=Identity.NEVER,
    )
    black_box_n: int = key(
        200,
        "At most so many of the samples that PGD leaves are attacked by their scores only (Square).",
        within=Range(1),
    )
    square_queries: int = key(1000, "Number of queries of Square for each sample.", within=Range(1, 1e9))
    label_n: int = key(
        160, "At most so many of them are attacked by their labels only (RayS).", within=Range(1)
    )
    estimate_queries: int = key(
        500_000,
        "At most so many queries in all estimate gradients by finite differences at one eps, where the "
        "network's own gradient does not predict them.",
        within=Range(1, 1e12),
        identity=Identity.UNLESS_DEFAULT,
    )
    label_queries: int = key(1000, "Number of queries of RayS for each sample.", within=Range(1, 1e9))


@dataclass
class SplitConfig:
    """How a retrieval benchmark is drawn from a dataset: queries, training images, database."""

    protocol: str = key(
        "cifar10-1",
        "Numbers of images and what the database consists of: cifar10-0, cifar10-1, cifar10-2, "
        "cifar10-authors, mnist or tiny-imagenet-32; see docs/datasets.md.",
        identity=Identity.UNLESS_DEFAULT,
    )
    queries: Queries = key(
        Queries.test,
        "Images that queries are drawn from: the test split, which a pre-trained backbone has not seen, or "
        "all images, as published protocols do.",
        identity=Identity.UNLESS_DEFAULT,
    )
    n_query: int | None = key(
        None,
        "Number of queries of each class; null: the protocol's.",
        within=Range(1),
        identity=Identity.UNLESS_DEFAULT,
    )
    n_train: int | None = key(
        None,
        "Number of training images of each class; null: the protocol's.",
        within=Range(1),
        identity=Identity.UNLESS_DEFAULT,
    )
    n_val: int | None = key(
        None,
        "Number of validation images of each class; null: the protocol's.",
        within=Range(1),
        identity=Identity.UNLESS_DEFAULT,
    )
    seed: int = key(
        0,
        "Seed of these draws and of the database's order, whatever the run's seed.",
        within=Range(0, 2**32 - 1),
        identity=Identity.UNLESS_DEFAULT,
    )


@dataclass
class ModelConfig:
    """A network made by other code."""

    factory: str | None = key(
        None,
        "For attack: package.module:factory, a function that returns the network to attack, from images in "
        "[0,1] to logits.",
        identity=Identity.NEVER,
    )
