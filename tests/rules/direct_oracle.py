"""What dfa must compute: every layer on an input that is cut off the graph, and zeros at the logits.

Here the zeros are written out: ``(x - x.detach()) B^T``, so autograd itself does the rest.
"""

from __future__ import annotations

from typing import Any

from oracle import scale_of
from torch import Tensor, nn

from sstune.rules import feedback_layers
from sstune.schema import Scale


def projections(converted: nn.Module) -> dict[str, Tensor]:
    """s B of every layer: (outputs, *input without batch), 1 where all positions share a value."""
    found: dict[str, Tensor] = {}
    for name, layer in feedback_layers(converted).items():
        feedback: Any = layer.feedback
        matrix = feedback.projection
        if feedback.scale is Scale.weight_rms:
            scale = scale_of(layer, Scale.weight_rms)
        elif feedback.scale is Scale.xavier:
            scale = (2 / (matrix.shape[0] + matrix[0].numel())) ** 0.5
        else:
            scale = matrix[0].numel() ** -0.5 if feedback.scale is Scale.he_fan_out else 1.0
        found[name] = scale * matrix
    return found


def direct(plain: nn.Module, matrices: dict[str, Tensor], x: Tensor) -> Tensor:
    """The logits of ``plain``, with the gradients of dfa."""
    cut: list[tuple[Tensor, Tensor]] = []

    def hook(matrix: Tensor) -> Any:
        def replace(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            cut.append((args[0], matrix))
            return (args[0].detach(),)

        return replace

    modules = dict(plain.named_modules())
    hooks = [modules[name].register_forward_pre_hook(hook(m)) for name, m in matrices.items()]
    logits: Tensor = plain(x)
    for each in hooks:
        each.remove()
    n = logits.numel() // logits.shape[-1]
    for operand, matrix in cut:
        shape = list(operand.shape[1:])
        if matrix.dim() > operand.dim():  # windows folded into the batch, or no batch at all
            shape.insert(0, len(operand) // n)
        zero = (operand - operand.detach()).reshape(n, 1, *shape)
        logits = logits + (zero * matrix).flatten(2).sum(2).view_as(logits)
    return logits
