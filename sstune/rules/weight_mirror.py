"""Weight mirror: V learns W from the layer's response to noise (Akrout et al. 2019, arXiv 1904.05391)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sstune.rules.feedback import FEEDBACKS, Pathway, fixed, n_outputs, weight_of
from sstune.rules.kolen_pollack import TrainedFeedback
from sstune.rules.layout import Layout
from sstune.schema import Start, WeightMirrorConfig
from sstune.seeding import seed_from


@FEEDBACKS.register("wm")
class WeightMirror(TrainedFeedback):
    """V trained in a mirroring phase before each optimiser step, by the layer's response to white noise.

    With x ~ N(0, 1) at the layer's input and y = W x, the mean of y x^T is W. So

        V <- (1 - decay) V + rate <y x^T>,

    the mean taken over ``samples`` noise vectors, converges to (rate/decay) W, up to sampling noise. A
    convolution is given noise patches of its kernel's size.
    """

    each_step = True
    mirrored: Tensor

    def __init__(self, module: nn.Module, rule: WeightMirrorConfig, seed: int, layer: str) -> None:
        super().__init__(module, rule, seed, layer)
        weight = weight_of(module)
        self.layout = Layout.of(module)
        self.rate, self.decay, self.samples = rule.rate, rule.decay, rule.samples
        self.phases = 0
        at_random = self.random_start(weight, weight.shape, n_outputs(module))
        self.register_buffer("mirrored", weight.clone() if self.start is Start.weights else at_random)

    @torch.no_grad()
    def begin_step(self, weight: Tensor) -> None:
        """One mirroring phase."""
        generator = torch.Generator(weight.device)
        generator.manual_seed(seed_from(self.seed, "mirror", self.layer, self.phases))
        matrices = self.layout.matrices(weight)
        groups, _, inputs = matrices.shape
        x = matrices.new_empty(groups, self.samples, inputs).normal_(generator=generator)
        y = x @ matrices.mT
        response = self.layout.weight(y.mT @ x, weight)
        self.mirrored.mul_(1 - self.decay).add_(response, alpha=self.rate / self.samples)
        self.phases += 1

    def forward(self, weight: Tensor) -> Pathway:
        return Pathway(fixed, (None, self.mirrored))

    def get_extra_state(self) -> dict[str, int]:
        """The number of phases so far, so that a resumed run continues with the next noise."""
        return {"phases": self.phases}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.phases = state["phases"]
