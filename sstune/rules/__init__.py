"""Learning rules: where the feedback V of each layer comes from."""

from sstune.rules import direct, feedback_alignment, kolen_pollack, product, sign_symmetry, weight_mirror
from sstune.rules.alignment import LayerAlignment, alignment
from sstune.rules.convert import (
    Conversion,
    begin_step,
    convert,
    exact_gradients,
    feedback_layers,
    feedback_parameters,
    frozen_feedback,
    matches,
    plain_state_dict,
    redraw,
    resolve,
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
    "direct",
    "exact_gradients",
    "feedback_alignment",
    "feedback_layers",
    "feedback_parameters",
    "frozen_feedback",
    "kolen_pollack",
    "matches",
    "plain_state_dict",
    "product",
    "redraw",
    "resolve",
    "sign_symmetry",
    "weight_mirror",
]
