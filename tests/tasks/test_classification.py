"""Loss and judgement against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sstune import tasks
from sstune.datasets import Batch
from sstune.schema import ClassificationConfig, RequestError, TaskConfig
from sstune.tasks.classification import Misclassification


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
    batch = Batch(torch.zeros(n, 1, 1, 1), torch.from_numpy(labels), torch.arange(n))
    loss = task.loss(torch.from_numpy(outputs), batch)
    assert loss.shape == ()
    assert float(loss) == pytest.approx(expected, rel=1e-12)


def test_correct_is_the_largest_output_per_sample() -> None:
    outputs = torch.tensor([[0.1, 0.9, 0.0], [2.0, 1.0, 1.5], [-3.0, -2.0, -1.0], [0.0, 0.0, 0.1]])
    task = tasks.build(ClassificationConfig("classification"), 3)
    predictions, targets = task.predict(outputs), torch.tensor([1, 2, 2, 0])
    assert predictions.tolist() == [1, 0, 2, 2]
    score = task.score(predictions, targets)
    assert score.each is not None
    assert score.each.tolist() == [True, False, True, False]
    assert (score.value, score.n, score.correct) == (0.5, 4, 2)
    batch = Batch(torch.zeros(4, 1, 1, 1), targets, torch.arange(4))
    assert torch.equal(task.batch_scores(outputs, batch), score.each)
    assert torch.equal(task.attackable(score), score.each)


def test_achieved_is_what_the_definitions_say() -> None:
    """Of all predictions, labels and wanted classes of three."""
    labels, predicted, wanted = (t.flatten() for t in torch.meshgrid(*[torch.arange(3)] * 3, indexing="ij"))
    possible = wanted != labels
    labels, predicted, wanted = labels[possible], predicted[possible], wanted[possible]
    outputs = torch.nn.functional.one_hot(predicted, 3).float()
    for goal in (None, wanted):
        objective = Misclassification(labels, goal)
        expected = [
            float(p != t) if goal is None else 1.0 if p == w else 0.5 if p != t else 0.0
            for t, p, w in zip(labels, predicted, wanted, strict=True)
        ]
        assert objective.achieved(outputs).tolist() == expected
        assert objective.is_adversarial(outputs).tolist() == [value == 1 for value in expected]
        some = torch.tensor([4, 1])
        assert torch.equal(objective.take(some).achieved(outputs[some]), objective.achieved(outputs)[some])


@pytest.mark.parametrize("classes", [2, 10, 200])
def test_has_one_output_per_class(classes: int) -> None:
    assert tasks.build(ClassificationConfig("classification"), classes).outputs == classes


def test_unknown_tasks_are_refused_with_the_nearest_name() -> None:
    assert list(tasks.TASKS) == ["classification", "hashing"]
    with pytest.raises(
        RequestError, match=r"task\.name: unknown 'clasification', did you mean 'classification'\?"
    ):
        tasks.build(TaskConfig("clasification"), 10)
