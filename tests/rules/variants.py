"""Every rule in every form that has code of its own, by a short name."""

from __future__ import annotations

from typing import Any

from sstune.rules import FEEDBACKS
from sstune.schema import GROUPS, RuleConfig, Scale, Spread, Start

# Names beyond the rules' own: (rule, settings).
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "kp-random": ("kp", {"start": Start.random}),
    "wm-random": ("wm", {"start": Start.random}),
    "pfa-random": ("pfa", {"start": Start.random, "expansion": 1.5}),
    "pfa-literal": ("pfa", {"start": Start.random, "closed_form": False, "expansion": 2.5}),
    "pfa-sparse": ("pfa", {"closed_form": False, "density": 0.5, "expansion": 2.0}),
    "pfa_o-random": ("pfa_o", {"start": Start.random}),
    "pfa_o-literal": ("pfa_o", {"start": Start.random, "closed_form": False}),
    "dfa-channel": ("dfa", {"spread": Spread.channel}),
}

DFA = ["dfa", "dfa-channel"]
LOCAL = [name for name in [*FEEDBACKS, *FORMS] if name not in DFA]  # feedback from layer to layer
EVERY = [*LOCAL, *DFA]

# Whether V is W as long as nothing is trained, up to rounding; what is drawn; what gets parameters.
IS_BP = ["sham", "kp", "wm", "pfa_o"]
DRAWN = ["frsf", "brsf", "fa"]
WITH_PARAMETERS = ["kp-random", "pfa-random", "pfa-literal", "pfa-sparse", "pfa_o-random", "pfa_o-literal"]

SIGNED_OR_FIXED = ["usf", "frsf", "brsf", "fa", "fa_signed"]  # whose V is multiplied by s
RULES = [
    (name, scale) for name in LOCAL for scale in Scale if name in SIGNED_OR_FIXED or scale is Scale.xavier
]


def rule_of(form: str, scale: Scale = Scale.weight_rms, **fields: Any) -> RuleConfig:
    """``rule_of("pfa-random", Scale.xavier, exclude=["head"])``."""
    name, settings = FORMS.get(form, (form, {}))
    schema = GROUPS["rule"].get(name, RuleConfig)
    config: RuleConfig = schema(name=name, scale=scale, **{**settings, **fields})
    return config
