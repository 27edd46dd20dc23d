"""Attacks: whose gradient, which attack, and whether its figures are valid."""

from sstune.attacks import gradient_sign
from sstune.attacks.evaluation import InvalidAttack, attacked_through, check_images, check_zero_eps, robust
from sstune.attacks.registry import ATTACKS, Attack

__all__ = [
    "ATTACKS",
    "Attack",
    "InvalidAttack",
    "attacked_through",
    "check_images",
    "check_zero_eps",
    "gradient_sign",
    "robust",
]
