"""Direct feedback alignment: the output error goes to every layer at once (Nokland 2016, arXiv 1609.01596).

With e = dL/dlogits, the gradient at the input of layer l is B_l^T e; no error is passed from layer to layer.
Each converted layer detaches its input from the graph, and adds to the logits a zero whose derivative with
respect to that input is B_l. So e always belongs to the forward pass that is differentiated (in training,
evaluation or an attack, with any batch size), and the operations between layers (activations, normalisation,
residual additions) keep their exact derivatives.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sstune.rules.feedback import FEEDBACKS, Feedback, constant_scale, draw, weight_of
from sstune.rules.observation import Observed
from sstune.schema import RequestError, RuleConfig, Spread


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
    """Adds the zeros of one forward pass to the logits, by forward hooks of the network."""

    def __init__(self, rule: str) -> None:
        self.rule = rule
        self.zeros: list[Tensor] = []
        self.running = False

    def begin(self, network: nn.Module, args: tuple[Any, ...]) -> None:
        """Before the network's forward."""
        self.zeros.clear()
        self.running = True

    def deliver(self, network: nn.Module, args: tuple[Any, ...], logits: Tensor | None) -> Tensor | None:
        """After the network's forward; ``logits`` is None if it failed."""
        if logits is not None:
            for zero in self.zeros:
                logits = logits + zero.view_as(logits).to(logits.dtype)
        self.zeros.clear()
        self.running = False
        return logits

    def add(self, zero: Tensor, layer: str) -> None:
        """Called by a layer during the network's forward.

        Raises:
            RuntimeError: the layer is called elsewhere, so that no logits follow.
        """
        if self.running:
            self.zeros.append(zero)
        elif torch._C._current_graph_task_id() == -1:
            raise RuntimeError(
                f"{self.rule}: {layer} was called outside the network's forward, where no output error exists"
            )
        elif torch._C._autograd._top_saved_tensors_default_hooks(True) is None:
            raise RuntimeError(
                f"{self.rule}: {layer} is run again in a backward pass, which the error does not reach; "
                f"checkpoint activations with use_reentrant=False"
            )  # with saved-tensor hooks it is use_reentrant=False, which runs a layer again for its tensors


@FEEDBACKS.register("dfa")
class DirectFeedback(Feedback):
    """The gradient at the layer's input is s B^T e, with B fixed and random.

    ``spread=unit``: B has an entry for every unit of the input and every output of the network (Nokland).
    ``spread=channel``: one for every channel, the same at all positions, which also fits 1,000 classes.
    A subclass may override :meth:`initial_projection`.
    """

    is_direct = True
    sample: torch.Size
    broadcast: Broadcast
    projection: Tensor

    def __init__(self, module: nn.Module, rule: RuleConfig, seed: int, layer: str) -> None:
        super().__init__(module, rule, seed, layer)
        self.spread = getattr(rule, "spread", Spread.unit)
        self.channel = -1 if isinstance(module, nn.Linear) else 1 - weight_of(module).dim()

    @classmethod
    def connect(cls, network: nn.Module, layers: dict[str, nn.Module], observed: Observed | None) -> None:
        """Give each layer its B, and the network the hooks that pass the error on to the layers.

        Raises:
            ValueError: no example batch was given.
            RequestError: the outputs are not (N, classes), or a layer has inputs of several shapes.
        """
        rule = _feedback_of(next(iter(layers.values()))).rule_name
        if observed is None:
            raise ValueError(f"{rule} needs an example batch, for the shapes of the layers' inputs")
        if observed.outputs is None or len(observed.outputs) != 2:
            found = "no tensor" if observed.outputs is None else tuple(observed.outputs)
            raise RequestError(f"rule.name: {rule} needs outputs (N, classes), the network gives {found}")
        broadcast = Broadcast(rule)
        for name, layer in layers.items():
            if not observed.samples[name]:
                raise RequestError(
                    f"rule.include: {name} has inputs of several sizes, or without a leading batch, which "
                    f"{rule} does not support; add it to rule.exclude"
                )
            feedback = _feedback_of(layer)
            feedback.broadcast, feedback.sample = broadcast, observed.samples[name]
            matrix = feedback.initial_projection(feedback.sample, observed.outputs[1], weight_of(layer))
            feedback.register_buffer("projection", matrix)
        network.register_forward_pre_hook(broadcast.begin)
        network.register_forward_hook(broadcast.deliver, always_call=True)

    def initial_projection(self, sample: torch.Size, outputs: int, weight: Tensor) -> Tensor:
        """Draw B.

        Args:
            sample: the shape of the layer's input without the batch dimension.
            outputs: number of the network's outputs.
            weight: the layer's, whose dtype and device B has.

        Returns:
            (``outputs``, *``sample``); a dimension of ``sample`` may be 1, and is then expanded.
        """
        shape = sample
        if self.spread is Spread.channel:
            channels = range(len(sample))[self.channel]
            shape = torch.Size(size if axis == channels else 1 for axis, size in enumerate(sample))
        flat = weight.new_empty(outputs, shape.numel())
        draw(flat, self.scale, False, self.seed, "feedback", self.layer, 0)
        self.constant = constant_scale(flat.shape, self.scale, outputs)
        return flat.view(outputs, *shape)

    def cut(self, x: Tensor, weight: Tensor) -> Tensor:
        """``x`` detached from the graph; the zero that takes its place is added to the logits.

        Raises:
            RuntimeError: ``x`` has another shape than at conversion, or the error cannot reach it.
        """
        if not (x.requires_grad and torch.is_grad_enabled()):
            return x
        inner = self.sample[1:]  # the first size may be folded into the batch
        if self.sample not in (x.shape, x.shape[1:]) and (x.shape[1:] != inner or len(x) % self.sample[0]):
            raise RuntimeError(
                f"{self.rule_name}: {self.layer} was given {tuple(x.shape)}, its feedback is for samples of "
                f"{tuple(self.sample)}"
            )
        scale = self.scale_now(weight)
        self.broadcast.add(_Projection.apply(x, self.projection, scale, self.sample), self.layer)
        return x.detach()

    def matrix(self, weight: Tensor) -> Tensor:
        """NaN throughout: there is no V of the weight's shape, hence no angle to it."""
        return torch.full_like(weight, torch.nan)


def _feedback_of(layer: nn.Module) -> DirectFeedback:
    assert isinstance(layer.feedback, DirectFeedback)
    return layer.feedback
