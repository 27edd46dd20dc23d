from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from sstune.arithmetic import (
    check_exact,
    exact_products,
    refusing_what_cannot_repeat,
    training_arithmetic,
)
from sstune.schema import Precision, RequestError

KINDS = ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")
ON_CUDA, ON_CPU = KINDS[:3], KINDS[3:]


def backend(kind: str) -> Any:
    library, product = kind.split(".")
    return getattr(getattr(torch.backends, library), product)


def found(kinds: tuple[str, ...]) -> set[str]:
    return {backend(kind).fp32_precision for kind in kinds}


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    exact_products()
    yield
    exact_products()


def compile_something() -> None:
    """torch.compile pins ``cuda.matmul.fp32_precision`` to what it is at the time."""
    torch._dynamo.reset()
    torch.compile(lambda x: x + 1, backend="eager")(torch.ones(3))


@pytest.mark.parametrize("precision", list(Precision))
def test_only_tf32_lets_products_be_tf32_only_inside_and_only_on_cuda(precision: Precision) -> None:
    with training_arithmetic(precision, benchmark=False):
        assert found(ON_CUDA) == {"tf32" if precision is Precision.tf32 else "ieee"}
        assert found(ON_CPU) == {"ieee"}
    assert found(KINDS) == {"ieee"}


def test_what_torch_compile_pins_is_set_back() -> None:
    with training_arithmetic(Precision.tf32, benchmark=False):
        compile_something()
    assert found(KINDS) == {"ieee"}


def test_torch_compile_pins_it_indeed() -> None:
    """Otherwise the test above shows nothing."""
    torch.backends.fp32_precision = "tf32"
    for kind in KINDS:
        backend(kind).fp32_precision = "none"
    compile_something()
    torch.backends.fp32_precision = "ieee"
    assert backend("cuda.matmul").fp32_precision == "tf32"


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_was_set_before_products_become_exact(kind: str) -> None:
    backend(kind).fp32_precision = "tf32"
    exact_products()
    assert found(KINDS) == {"ieee"}


@pytest.mark.parametrize("kind", KINDS)
def test_figures_are_not_measured_in_another_precision(kind: str) -> None:
    mine, other = ("cuda", "cpu") if kind in ON_CUDA else ("cpu", "cuda")
    backend(kind).fp32_precision = "tf32"
    check_exact(torch.device(other))
    with pytest.raises(RuntimeError, match=rf"^torch.backends.{kind}.fp32_precision is tf32, but"):
        check_exact(torch.device(mine))


def test_what_has_no_deterministic_algorithm_is_a_wrong_request() -> None:
    said = "adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation, but you set ..."
    expected = (
        "deterministic: this network needs adaptive_avg_pool2d_backward_cuda, which is not deterministic on "
        "CUDA; use deterministic=false or device=cpu"
    )
    with pytest.raises(RequestError, match=f"^{re.escape(expected)}$"), refusing_what_cannot_repeat():
        raise RuntimeError(said)
    with pytest.raises(RuntimeError, match=r"^another$"), refusing_what_cannot_repeat():
        raise RuntimeError("another")


@pytest.mark.parametrize("benchmark", [True, False])
def test_cudnn_looks_for_the_fastest_algorithm_only_inside(benchmark: bool) -> None:
    with training_arithmetic(Precision.float32, benchmark=benchmark):
        assert torch.backends.cudnn.benchmark == benchmark
    assert not torch.backends.cudnn.benchmark


def test_torchs_older_switches_can_still_be_asked() -> None:
    """They raise where they contradict the newer ones, also in ``cudnn.flags`` of somebody's network."""
    with torch.backends.cudnn.flags(enabled=False):
        assert torch.backends.cuda.matmul.allow_tf32 is False
    with training_arithmetic(Precision.tf32, benchmark=False):
        assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is True
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == "highest"
