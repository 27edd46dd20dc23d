"""``evaluate``: integer counts over a whole split, whatever the batches, and a network left as it was."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sstune import tasks
from sstune.datasets import Split
from sstune.modes import eval_mode
from sstune.schema import ClassificationConfig
from sstune.tasks import evaluate
from sstune.tasks.evaluation import BATCH_SIZE

CPU = torch.device("cpu")
TASK = tasks.build(ClassificationConfig("classification", label_smoothing=0.1), 3)


def split(n: int) -> Split:
    stream = np.random.default_rng(0)
    images = torch.from_numpy(stream.integers(0, 256, (n, 1, 4, 4), np.uint8))
    return Split(images, torch.from_numpy(stream.integers(0, 3, n)))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 3)
    )


@pytest.mark.parametrize("n", [1, 2, BATCH_SIZE - 1, BATCH_SIZE, BATCH_SIZE + 1, 2 * BATCH_SIZE + 77])
def test_equals_the_whole_split_in_one_batch(n: int) -> None:
    model, data = network(), split(n)
    judged = evaluate(model, TASK, data, CPU)
    with torch.no_grad():
        outputs = model.eval()(data.images / 255)
        expected = outputs.argmax(1) == data.targets
    assert judged.score.each is not None
    assert torch.equal(judged.score.each, expected)
    assert judged.score.correct == int(expected.sum())
    assert torch.equal(judged.predictions, outputs.argmax(1))
    loss = F.cross_entropy(outputs, data.targets, label_smoothing=0.1)
    assert judged.loss == pytest.approx(float(loss), rel=1e-5)


def test_needs_no_gradients_and_draws_nothing() -> None:
    model, seen = network(), []
    model.register_forward_hook(lambda module, args, output: seen.append(output.requires_grad))
    before = torch.get_rng_state()
    evaluate(model, TASK, split(5), CPU)
    assert seen == [False]
    assert torch.equal(torch.get_rng_state(), before)


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


@pytest.fixture(params=["train", "eval", "frozen-norm"])
def model(request: pytest.FixtureRequest) -> nn.Sequential:
    model = network().train(request.param != "eval")
    if request.param == "frozen-norm":
        model[1].eval()
    return model


class TestModes:
    def test_are_restored_module_by_module(self, model: nn.Sequential) -> None:
        before, state = modes(model), {key: value.clone() for key, value in model.state_dict().items()}
        evaluate(model, TASK, split(5), CPU)
        assert modes(model) == before
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())

    def test_are_eval_inside(self, model: nn.Sequential) -> None:
        before = modes(model)
        with eval_mode(model):
            assert not any(modes(model))
            with eval_mode(model):
                assert not any(modes(model))
            assert not any(modes(model))
        assert modes(model) == before

    def test_are_restored_after_an_exception(self, model: nn.Sequential) -> None:
        def fail(module: nn.Module, args: Any, output: Tensor) -> None:
            raise ZeroDivisionError

        before = modes(model)
        model.register_forward_hook(fail)
        with pytest.raises(ZeroDivisionError):
            evaluate(model, TASK, split(5), CPU)
        assert modes(model) == before


class Spoils(nn.Module):
    """Passes outputs on, but gives ``value`` for image ``number`` of all that it has seen."""

    def __init__(self, inner: nn.Module, number: int, value: float) -> None:
        super().__init__()
        self.inner, self.number, self.value, self.seen = inner, number, value, 0

    def forward(self, images: Tensor) -> Tensor:
        outputs = self.inner(images)
        if 0 <= self.number - self.seen < len(outputs):
            outputs[self.number - self.seen, -1] = self.value
        self.seen += len(outputs)
        return outputs


class TestOutputsThatAreNoNumbers:
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("number", [0, BATCH_SIZE - 1, BATCH_SIZE, BATCH_SIZE + 4])
    def test_one_is_enough_for_an_error(self, value: float, number: int) -> None:
        spoilt = Spoils(network(), number, value)
        said = rf"outputs are NaN or infinite for 1 of {BATCH_SIZE + 5} images \(its weights are finite\)"
        with pytest.raises(FloatingPointError, match=said):
            evaluate(spoilt, TASK, split(BATCH_SIZE + 5), CPU)

    @pytest.mark.parametrize("name", ["0.weight", "1.running_var", "5.bias"])
    def test_names_the_tensor(self, name: str) -> None:
        model = network()
        model.state_dict()[name].view(-1)[0] = math.nan
        with pytest.raises(FloatingPointError, match=rf"5 of 5 images \({name}: 1 of \d+ values"):
            evaluate(model, TASK, split(5), CPU)
