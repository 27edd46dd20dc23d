"""Learning rules: a rule is only the answer to "where does the feedback V come from"."""

from sstune.rules.alignment import LayerAlignment, alignment
from sstune.rules.convert import (
    Conversion,
    begin_step,
    convert,
    exact_gradients,
    feedback_layers,
    plain_state_dict,
)
from sstune.rules.feedback import FEEDBACKS, Feedback

__all__ = [
    "FEEDBACKS",
    "Conversion",
    "Feedback",
    "LayerAlignment",
    "alignment",
    "begin_step",
    "convert",
    "exact_gradients",
    "feedback_layers",
    "plain_state_dict",
]
