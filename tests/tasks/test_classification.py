"""Loss and judgement against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sstune import tasks
from sstune.schema import ClassificationConfig, RequestError, TaskConfig


def log_softmax(outputs: np.ndarray) -> np.ndarray:
    shifted = outputs - outputs.max(1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize(("n", "classes"), [(1, 2), (7, 10), (32, 200)])
def test_loss_is_cross_entropy_with_smoothed_labels(n: int, classes: int, smoothing: float) -> None:
    stream = np.random.default_rng(0)
    outputs, labels = stream.normal(0, 3, (n, classes)), stream.integers(0, classes, n)
    target = np.full((n, classes), smoothing / classes)
    target[np.arange(n), labels] += 1 - smoothing
    expected = -(target * log_softmax(outputs)).sum(1).mean()
    task = tasks.build(ClassificationConfig("classification", smoothing), classes)
    loss = task.loss(torch.from_numpy(outputs), torch.from_numpy(labels))
    assert loss.shape == ()
    assert float(loss) == pytest.approx(expected, rel=1e-12)


def test_correct_is_the_largest_output_per_sample() -> None:
    outputs = torch.tensor([[0.1, 0.9, 0.0], [2.0, 1.0, 1.5], [-3.0, -2.0, -1.0], [0.0, 0.0, 0.1]])
    task = tasks.build(ClassificationConfig("classification"), 3)
    correct = task.correct(outputs, torch.tensor([1, 2, 2, 0]))
    assert correct.dtype == torch.bool
    assert correct.tolist() == [True, False, True, False]


@pytest.mark.parametrize("classes", [2, 10, 200])
def test_has_one_output_per_class(classes: int) -> None:
    assert tasks.build(ClassificationConfig("classification"), classes).outputs == classes


def test_unknown_tasks_are_refused_with_the_nearest_name() -> None:
    assert list(tasks.TASKS) == ["classification"]
    with pytest.raises(
        RequestError, match=r"task\.name: unknown 'clasification', did you mean 'classification'\?"
    ):
        tasks.build(TaskConfig("clasification"), 10)
