"""Two processes with half a batch each train as one process does with the whole."""

from __future__ import annotations

from typing import Any

import ddp
import pytest
import torch
from processes import run_all
from variants import EVERY

from sstune.rules import FEEDBACKS


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes has after training, by rule."""
    folder = tmp_path_factory.mktemp("ranks")
    run_all(ddp.work, [(rank, 2, EVERY, folder) for rank in range(2)])
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("form", EVERY)
class TestTwoProcesses:
    def test_have_equal_feedback_and_weights(self, form: str, ranks: list[dict[str, Any]]) -> None:
        one, two = (rank[form] for rank in ranks)
        assert len(one["feedback"]) == 4
        for name, matrix in one["feedback"].items():
            assert torch.equal(matrix, two["feedback"][name]), name
        for key, value in one["state"].items():
            other = two["state"][key]
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, key

    def test_train_as_one_does(self, form: str, ranks: list[dict[str, Any]]) -> None:
        alone = ddp.train(form, 0, 1)
        moved = False
        for key, value in alone["state"].items():
            if isinstance(value, torch.Tensor):
                found = ranks[0][form]["state"][key]
                torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-5, msg=key)
                moved = moved or not torch.equal(found, ddp.small_network().state_dict().get(key, found))
        assert moved


def test_every_rule_is_here() -> None:
    assert set(FEEDBACKS) <= set(EVERY)
