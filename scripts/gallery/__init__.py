"""A gallery of networks whose gradient masking is known, for the audit: what masks a gradient, what does not.

``GALLERY`` holds the entries by name; ``python -m scripts.gallery`` measures how much each of them hides.
"""

from scripts.gallery import (
    feedback,
    filters,
    gradients,
    jumps,
    mixtures,
    outputs,
    plain,
    randomness,
    steps,
    triggers,
)
from scripts.gallery.entry import GALLERY, Entry

__all__ = [
    "GALLERY",
    "Entry",
    "feedback",
    "filters",
    "gradients",
    "jumps",
    "mixtures",
    "outputs",
    "plain",
    "randomness",
    "steps",
    "triggers",
]
