"""Rule settings by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from variants import rule_of

from sstune.schema import RuleConfig


@pytest.fixture(scope="session")
def rule_config() -> Callable[..., RuleConfig]:
    """``rule_config("frsf", Scale.xavier, exclude=["head"])``; names as in :mod:`variants`."""
    return rule_of


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """The networks here are so small that threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
