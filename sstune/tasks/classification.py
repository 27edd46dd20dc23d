"""Image classification: cross-entropy, and the number of images that are classified right."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sstune.schema import ClassificationConfig
from sstune.tasks.registry import TASKS, Task


@TASKS.register("classification")
class Classification(Task):
    """One output per class."""

    def __init__(self, config: ClassificationConfig, n_classes: int) -> None:
        self.outputs = n_classes
        self.label_smoothing = config.label_smoothing

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(outputs, labels, label_smoothing=self.label_smoothing)

    def correct(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return outputs.argmax(dim=1) == labels
