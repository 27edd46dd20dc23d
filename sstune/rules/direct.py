"""Direct feedback alignment: the output error goes to every layer at once (Nokland 2016, arXiv 1609.01596).

With e = dL/dlogits, the gradient at the input of layer l is B_l^T e; nothing travels from layer to layer. In
autograd terms: each converted layer cuts its input off the graph, and adds to the logits a zero whose
derivative with respect to that input is B_l. So e is always that of the very forward pass that is being
differentiated (training, evaluation or attack, any batch size), and what lies between layers (activations,
normalisation, residual additions) keeps its exact derivative.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sstune.rules.feedback import FEEDBACKS, Feedback, constant_scale, draw, weight_of
from sstune.schema import DfaConfig, Spread


class _Projection(torch.autograd.Function):
    """x, (n x features in any shape) -> zeros (n, outputs) whose derivative sends e to s e B."""

    @staticmethod
    def forward(x: Tensor, matrix: Tensor, scale: Tensor | None, sample: torch.Size) -> Tensor:
        return x.new_zeros(x.numel() // sample.numel(), matrix.shape[0])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, matrix, scale, ctx.sample = inputs
        ctx.save_for_backward(matrix, scale)
        ctx.shape, ctx.dtype = x.shape, x.dtype

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        (error,) = grad_outputs
        matrix, scale = ctx.saved_tensors
        error = error if scale is None else error * scale.to(error.dtype)
        projected = error @ matrix.flatten(1).to(error.dtype)
        spread = projected.view(-1, *matrix.shape[1:]).expand(-1, *ctx.sample)
        return spread.reshape(ctx.shape).to(ctx.dtype), None, None, None


class Broadcast:
    """Brings the zeros of one forward pass to the logits; its methods are the network's forward hooks."""

    def __init__(self) -> None:
        self.zeros: list[Tensor] = []
        self.running = False

    def begin(self, network: nn.Module, args: tuple[Any, ...]) -> None:
        """Before the network's forward."""
        self.zeros.clear()
        self.running = True

    def deliver(self, network: nn.Module, args: tuple[Any, ...], logits: Tensor | None) -> Tensor | None:
        """After the network's forward; without logits if it failed."""
        if logits is not None:
            for zero in self.zeros:
                logits = logits + zero.view_as(logits).to(logits.dtype)
        self.zeros.clear()
        self.running = False
        return logits

    def add(self, zero: Tensor, layer: str) -> None:
        """Called by a layer within the forward.

        Raises:
            RuntimeError: there are no logits to reach.
        """
        if self.running:
            self.zeros.append(zero)
        elif torch._C._current_graph_task_id() == -1:
            raise RuntimeError(
                f"dfa: {layer} was called outside the network's forward, where no output error exists"
            )
        elif torch._C._autograd._top_saved_tensors_default_hooks(True) is None:
            raise RuntimeError(
                f"dfa: {layer} is run again in a backward pass, where the error has no way to it; "
                f"checkpoint activations with use_reentrant=False"
            )  # with saved-tensor hooks it is that very form, which runs a layer again for its tensors only


@FEEDBACKS.register("dfa")
class DirectFeedback(Feedback):
    """The gradient at the layer's input is s B^T e, with B fixed and random.

    ``spread=unit``: B has an entry for every unit of the input and every output of the network (Nokland).
    ``spread=channel``: one for every channel, the same at all positions, which also fits 1,000 classes.
    """

    direct = True
    projection: Tensor

    def __init__(self, module: nn.Module, rule: DfaConfig, seed: int, layer: str) -> None:
        super().__init__(module, rule, seed, layer)
        self.spread = rule.spread
        self.channel = -1 if isinstance(module, nn.Linear) else 1 - weight_of(module).dim()

    def connect(self, broadcast: Broadcast, sample: torch.Size, outputs: int, weight: Tensor) -> None:
        """Draw B for inputs of ``sample`` shape (without the batch) and logits of ``outputs`` columns."""
        self.broadcast = broadcast
        self.sample = sample
        shape = sample
        if self.spread is Spread.channel:
            channels = range(len(sample))[self.channel]
            shape = torch.Size(size if axis == channels else 1 for axis, size in enumerate(sample))
        flat = weight.detach().new_empty(outputs, shape.numel())
        draw(flat, self.scale, False, self.seed, "feedback", self.layer, 0)
        self.constant = constant_scale(flat.shape, self.scale, outputs)
        self.register_buffer("projection", flat.view(outputs, *shape))

    def cut(self, x: Tensor, weight: Tensor) -> Tensor:
        """``x`` off the graph, with a zero in its place at the logits.

        Raises:
            RuntimeError: ``x`` is of another size than at conversion, or the error could not reach it.
        """
        if not (x.requires_grad and torch.is_grad_enabled()):
            return x
        inner = self.sample[1:]  # the first size may be folded into the batch
        if self.sample not in (x.shape, x.shape[1:]) and (x.shape[1:] != inner or len(x) % self.sample[0]):
            raise RuntimeError(
                f"dfa: {self.layer} was given {tuple(x.shape)}, its feedback is for samples of "
                f"{tuple(self.sample)}"
            )
        scale = self.scale_now(weight)
        self.broadcast.add(_Projection.apply(x, self.projection, scale, self.sample), self.layer)
        return x.detach()

    def matrix(self, weight: Tensor) -> Tensor:
        """dfa has no V of the weight's shape: NaN throughout, so that no angle is claimed."""
        return torch.full_like(weight, torch.nan)
