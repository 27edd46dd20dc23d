"""One forward pass of a network: which layers it calls, and the shapes of their inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sstune.modes import eval_mode
from sstune.schema import RequestError


@dataclass(frozen=True)
class Observed:
    """Shapes of one forward pass.

    ``samples``: of each layer's input without the batch dimension; empty if its inputs have several shapes.
    ``outputs``: of the network's output, None if that is no tensor.
    """

    samples: dict[str, torch.Size]
    outputs: torch.Size | None


@torch.no_grad()
def observe(model: nn.Module, layers: dict[str, nn.Module], example: Tensor) -> Observed:
    """Run ``model`` once on ``example``, in eval mode, leaving the global random state unchanged.

    Raises:
        RequestError: one of ``layers`` is never called.
    """
    samples: dict[str, torch.Size] = {}

    def see(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            leading, *rest = (args or tuple(kwargs.values()))[0].shape
            n, left_over = divmod(leading, len(example))  # windows or frames may be folded into the batch
            sample = torch.Size(rest if n == 1 else (n, *rest))
            if left_over or samples.setdefault(name, sample) != sample:
                samples[name] = torch.Size()

        return hook

    hooks = [layer.register_forward_pre_hook(see(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        with eval_mode(model), torch.random.fork_rng([example.device] if example.is_cuda else []):
            outputs = model(example)
    finally:
        for each in hooks:
            each.remove()
    for name in layers:
        if name not in samples:
            raise RequestError(
                f"rule.include: {name} is not called by a forward pass in eval mode; if its weights are read "
                f"directly, their derivative does not pass through the feedback; add it to rule.exclude"
            )
    return Observed(samples, outputs.shape if isinstance(outputs, Tensor) else None)
