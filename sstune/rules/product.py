"""Product feedback alignment: V = B R, with B fixed and R trained (Li, Benna 2024, arXiv 2405.20594).

The error reaches an intermediate population of ``mid = e * out`` units through B (out x mid) and goes on
through R (mid x in), which learns locally by dR = (B^T delta) x^T = B^T dW, with the layer's optimiser and
weight decay. E[B B^T] = I, so R approaches B^T W, and V approaches B B^T W.

SGD (momentum and weight decay included) is linear in the gradient. So R_t = c_t R_0 + B^T U_t, where U has
W's shape and gets W's updates from U_0 = 0; that is U_t = W_t - c_t W_0. Hence

    V_t = P W_t + c_t D,    P = B B^T,    D = B R_0 - P W_0,

with c_t as in :mod:`sstune.rules.kolen_pollack`: neither R nor its optimiser state is kept, and the cost no
longer grows with e. ``rule.closed_form=false`` keeps R, as other optimisers and masks need.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from sstune.rules.feedback import FEEDBACKS, Pathway, weight_of
from sstune.rules.kolen_pollack import OffsetFeedback, no_gradient
from sstune.rules.layout import Layout
from sstune.schema import OrthogonalPfaConfig, PfaConfig, Start
from sstune.seeding import seed_from


def projected(weight: Tensor, mix: Tensor, layout: Layout) -> Tensor:
    """V = P W."""
    return layout.weight(mix.to(weight.dtype) @ layout.matrices(weight), weight)


def projected_plus_offset(
    weight: Tensor, decay: Tensor, difference: Tensor, mix: Tensor, layout: Layout
) -> Tensor:
    """V = P W + c D."""
    return projected(weight, mix, layout) + (decay * difference).to(weight.dtype)


def product(weight: Tensor, fixed: Tensor, trained: Tensor, mask: Tensor | None, layout: Layout) -> Tensor:
    """V = B R."""
    return layout.weight(fixed.to(weight.dtype) @ trained.to(weight.dtype), weight)


def operand_grads(
    grad_weight: Tensor, fixed: Tensor, trained: Tensor, mask: Tensor | None, layout: Layout
) -> tuple[Tensor | None, ...]:
    """dR = B^T dW, where R is not masked."""
    update = fixed.mT @ layout.matrices(grad_weight).to(fixed.dtype)
    return None, update if mask is None else update * mask, None


@FEEDBACKS.register("pfa")
class ProductFeedbackAlignment(OffsetFeedback):
    """V = B R; R starts at B^T W or at random (``rule.start``).

    ``expansion`` is e. With ``density`` p < 1 that share of B's and of R's entries exists, chosen at random.
    """

    mix: Tensor | None
    fixed: Tensor
    mask: Tensor | None

    def __init__(self, module: nn.Module, rule: OrthogonalPfaConfig, seed: int, layer: str) -> None:
        super().__init__(module, rule, seed, layer)
        weight = weight_of(module)
        self.layout = Layout.of(module)
        self.closed_form = rule.closed_form
        generator = torch.Generator(weight.device)
        generator.manual_seed(seed_from(seed, "product", layer))
        fixed, mask = self.draw(rule, self.layout.matrices(weight), generator)
        trained = self.initial(fixed, weight)
        if self.closed_form:
            self.set_closed_form(fixed, trained, weight)
        else:
            self.register_buffer("fixed", fixed)
            self.register_buffer("mask", mask)
            self.trained = nn.Parameter(trained if mask is None else trained * mask)

    def draw(
        self, rule: OrthogonalPfaConfig, matrices: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """B, (groups, out, mid), uniform with E[B R] = W at R = B^T W, and the mask of R."""
        assert isinstance(rule, PfaConfig)
        groups, out, inputs = matrices.shape
        mid = max(1, round(rule.expansion * out))
        width = math.sqrt(3 / mid) / rule.density
        fixed = matrices.new_empty(groups, out, mid).uniform_(-width, width, generator=generator)
        if rule.density == 1:
            return fixed, None
        kept = matrices.new_empty(groups, out + inputs, mid).uniform_(generator=generator) < rule.density
        return fixed * kept[:, :out], kept[:, out:].mT.contiguous()

    def initial(self, fixed: Tensor, weight: Tensor) -> Tensor:
        """R_0, (groups, mid, inputs)."""
        if self.start is Start.weights:
            return fixed.mT @ self.layout.matrices(weight)
        shape = self.layout.shape(weight, fixed.shape[2])
        return self.layout.matrices(self.random_start(weight, shape, fixed.shape[0] * fixed.shape[2]))

    def set_closed_form(self, fixed: Tensor, trained: Tensor, weight: Tensor) -> None:
        """Store P and D instead of B and R."""
        mix = fixed @ fixed.mT
        self.register_buffer("mix", mix)
        offset = self.layout.weight(fixed @ trained - mix @ self.layout.matrices(weight), weight)
        self.set_offset(None if self.start is Start.weights else offset)

    def forward(self, weight: Tensor) -> Pathway:
        if not self.closed_form:
            form, grads = partial(product, layout=self.layout), partial(operand_grads, layout=self.layout)
            return Pathway(form, (self.fixed, self.trained, self.mask), grads)
        if self.difference is None:
            return Pathway(partial(projected, layout=self.layout), (self.mix,))
        operands = (self.decay, self.difference, self.mix)
        return Pathway(partial(projected_plus_offset, layout=self.layout), operands, no_gradient)


@FEEDBACKS.register("pfa_o")
class OrthogonalProductFeedbackAlignment(ProductFeedbackAlignment):
    """pfa with e = 1 and B orthogonal: P = I, V_t = W_t + c_t (B R_0 - W_0): dV = dW, as in kp."""

    def draw(
        self, rule: OrthogonalPfaConfig, matrices: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """B, (groups, out, out), from the QR decomposition of Gaussian matrices."""
        groups, out, _ = matrices.shape
        gaussian = matrices.new_empty(groups, out, out, dtype=torch.float64).normal_(generator=generator)
        return torch.linalg.qr(gaussian).Q.to(matrices.dtype), None

    def set_closed_form(self, fixed: Tensor, trained: Tensor, weight: Tensor) -> None:
        offset = self.layout.weight(fixed @ trained, weight) - weight
        self.set_offset(None if self.start is Start.weights else offset)

    def forward(self, weight: Tensor) -> Pathway:
        return OffsetFeedback.forward(self, weight) if self.closed_form else super().forward(weight)
