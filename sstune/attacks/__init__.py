"""Attacks, the gradient that they use, and checks that their figures are valid."""

from sstune.attacks import ascent, autoattack, finite_difference, hashing, library, noise, rays, square
from sstune.attacks.attack import ATTACKS, Attack, AttackResult
from sstune.attacks.attacked_model import AttackedModel
from sstune.attacks.evaluation import (
    GradientSource,
    Victim,
    attack_batches,
    check_zero_eps,
    gradient_mode,
    run_attack,
    seeded_rng,
)
from sstune.attacks.memory import largest_batch
from sstune.attacks.outcome import Outcome
from sstune.attacks.validity import InvalidAttack, check_images

__all__ = [
    "ATTACKS",
    "Attack",
    "AttackResult",
    "AttackedModel",
    "GradientSource",
    "InvalidAttack",
    "Outcome",
    "Victim",
    "ascent",
    "attack_batches",
    "autoattack",
    "check_images",
    "check_zero_eps",
    "finite_difference",
    "gradient_mode",
    "hashing",
    "largest_batch",
    "library",
    "noise",
    "rays",
    "run_attack",
    "seeded_rng",
    "square",
]
