"""Rule settings by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sstune.schema import BrsfConfig, RuleConfig, Scale


@pytest.fixture(scope="session")
def rule_config() -> Callable[..., RuleConfig]:
    """``rule_config("frsf", Scale.xavier, exclude=["head"])``."""

    def config(name: str, scale: Scale = Scale.weight_rms, **fields: Any) -> RuleConfig:
        schema = BrsfConfig if name == "brsf" else RuleConfig
        return schema(name=name, scale=scale, **fields)

    return config
