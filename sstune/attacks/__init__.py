"""Attacks: whose gradient, which attack, and whether its figures are valid."""

from sstune.attacks import ascent, autoattack, library, noise, rays, square
from sstune.attacks.attack import ATTACKS, Attack, Attempt
from sstune.attacks.evaluation import (
    Victim,
    View,
    attack_batches,
    attacked_through,
    check_zero_eps,
    drawing_anew,
    robust,
)
from sstune.attacks.memory import largest_batch
from sstune.attacks.outcome import Outcome
from sstune.attacks.subject import Subject
from sstune.attacks.validity import InvalidAttack, check_images

__all__ = [
    "ATTACKS",
    "Attack",
    "Attempt",
    "InvalidAttack",
    "Outcome",
    "Subject",
    "Victim",
    "View",
    "ascent",
    "attack_batches",
    "attacked_through",
    "autoattack",
    "check_images",
    "check_zero_eps",
    "drawing_anew",
    "largest_batch",
    "library",
    "noise",
    "rays",
    "robust",
    "square",
]
