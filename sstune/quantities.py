"""Parse quantities such as 8/255, eps/4 and pgd7.

Imports no torch.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

from sstune.schema import Norm

_LONGEST = 100  # characters of a quantity


def parse_eps(text: str, norm: Norm = Norm.Linf) -> float:
    """``"8/255"`` -> 0.0313...; also ``"0.5/255"`` and plain decimals.

    Raises:
        ValueError: not a number in [0, 1], or under L2, not finite or negative.
    """
    text = str(text)
    try:
        if len(text) > _LONGEST or re.search(r"[eE][+-]?\d{5}", text):  # 1e999999999 would take forever
            raise ValueError
        numerator, *denominators = text.replace(" ", "").split("/")
        value = float(Fraction(numerator) / math.prod(map(Fraction, denominators)))
    except (ValueError, ArithmeticError):  # not a number, n/0, or beyond any float
        raise ValueError(f"{text!r} is not a fraction such as 8/255 or a decimal such as 0.03") from None
    largest = (
        1.0 if norm is Norm.Linf else 1e6
    )  # Linf distance of black and white; in L2 it grows with image size
    if not 0 <= value <= largest:
        raise ValueError(f"{text!r} is outside [0, {largest:g}]")
    return value


def parse_step_size(text: str, eps: float, norm: Norm = Norm.Linf) -> float:
    """``"eps/4"`` or ``"2*eps"`` relative to ``eps``, otherwise absolute as :func:`parse_eps`."""
    text = str(text).replace(" ", "")
    if "eps" not in text:
        return parse_eps(text, norm)
    match = re.fullmatch(r"(?:(?P<factor>[\d.]+)\*)?eps(?:/(?P<divisor>[\d.]+))?", text)
    if match is None:
        raise ValueError(f"{text!r} is none of 2/255, eps/4, 2.5*eps/10")
    try:
        factor, divisor = (float(match[part] or 1) for part in ("factor", "divisor"))
        step = eps * factor / divisor
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{text!r} is none of 2/255, eps/4, 2.5*eps/10") from None
    if not (math.isfinite(factor) and math.isfinite(divisor) and math.isfinite(step)):
        raise ValueError(f"{text!r} is not finite")
    return step


def parse_adversary(text: str) -> int | None:
    """K for ``"pgdK"``, None for ``"fgsm"``: the attack of adversarial training.

    Raises:
        ValueError: anything else.
    """
    if text == "fgsm":
        return None
    match = re.fullmatch(r"pgd(?P<steps>[1-9]\d{0,3})", text)
    if match is None:
        raise ValueError(f"{text!r} is none of fgsm, pgd7, pgd10 (pgd and the number of steps)")
    return int(match["steps"])
