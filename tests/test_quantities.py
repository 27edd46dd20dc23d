from __future__ import annotations

import math
import re
from fractions import Fraction
from functools import reduce
from operator import truediv

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sstune.quantities import parse_adversary, parse_eps, parse_step_size


class TestEps:
    @given(st.integers(1, 1000).flatmap(lambda d: st.tuples(st.integers(0, d), st.just(d))))
    def test_fractions(self, parts: tuple[int, int]) -> None:
        numerator, denominator = parts
        expected = numerator / denominator
        assert parse_eps(f"{numerator}/{denominator}") == expected
        assert parse_eps(f" {numerator} / {denominator} ") == expected

    def test_half_a_grey_level(self) -> None:
        assert parse_eps("0.5/255") == 1 / 510

    @given(st.floats(0, 1))
    def test_decimals(self, value: float) -> None:
        assert parse_eps(repr(value)) == value

    @given(st.text("0123456789eE+-./ nainf_", max_size=8))
    def test_anything_else_is_refused_by_name(self, text: str) -> None:
        try:
            expected = float(reduce(truediv, map(Fraction, text.replace(" ", "").split("/"))))
        except (ValueError, ArithmeticError):
            expected = math.nan
        if 0 <= expected <= 1:
            assert parse_eps(text) == expected
        else:
            with pytest.raises(ValueError, match=re.escape(repr(text))):
                parse_eps(text)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("", "not a fraction"),
            ("x", "not a fraction"),
            ("8//255", "not a fraction"),
            ("1/0", "not a fraction"),
            ("nan", "not a fraction"),
            ("inf", "not a fraction"),
            ("1e400", "not a fraction"),
            ("-1/255", "outside"),
            ("256/255", "outside"),
            ("8", "outside"),
        ],
    )
    def test_refuses(self, text: str, said: str) -> None:
        with pytest.raises(ValueError, match=said):
            parse_eps(text)


class TestStepSize:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("eps", 0.5),
            ("eps/4", 0.125),
            ("2*eps", 1.0),
            ("2.5*eps/10", 0.125),
            (" 2.5 * eps / 10 ", 0.125),
            (".5*eps", 0.25),
            ("2/255", 2 / 255),
            ("0.01", 0.01),
        ],
    )
    def test_table(self, text: str, expected: float) -> None:
        assert parse_step_size(text, 0.5) == expected

    @given(st.integers(1, 99), st.integers(1, 99), st.floats(0, 1))
    def test_relative(self, factor: int, divisor: int, eps: float) -> None:
        assert parse_step_size(f"{factor}*eps/{divisor}", eps) == pytest.approx(eps * factor / divisor)

    @pytest.mark.parametrize(
        "text", ["", "eps/0", "eps*2", "-eps", "eps-1", "..*eps", "2*3*eps", "-2/255", "x"]
    )
    def test_refuses(self, text: str) -> None:
        with pytest.raises(ValueError, match=re.escape(repr(text))):
            parse_step_size(text, 0.5)


class TestAdversary:
    @given(st.integers(1, 9999))
    def test_pgd_says_its_steps(self, steps: int) -> None:
        assert parse_adversary(f"pgd{steps}") == steps

    def test_fgsm_has_no_number_of_steps(self) -> None:
        assert parse_adversary("fgsm") is None

    @pytest.mark.parametrize("text", ["", "pgd", "pgd0", "pgd07", "pgd-1", "pgd10000", "fgsm1", "PGD7", "7"])
    def test_refuses(self, text: str) -> None:
        with pytest.raises(ValueError, match=re.escape(repr(text))):
            parse_adversary(text)
