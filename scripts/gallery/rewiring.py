"""Exchange layers inside a base network."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def replaced(network: nn.Module, kind: type[nn.Module], make: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """``network`` with ``make(module)`` in place of each submodule of class ``kind``, in place."""
    for name, module in [*network.named_modules()]:
        if name and isinstance(module, kind):
            network.set_submodule(name, make(module))
    return network


def followed(network: nn.Module, names: tuple[str, ...], make: Callable[[], nn.Module]) -> nn.Module:
    """``network`` with a new module behind each submodule whose name ends in one of ``names``, in place."""
    for name, module in [*network.named_modules()]:
        if name.endswith(names):
            network.set_submodule(name, nn.Sequential(module, make()))
    return network


STAGES = ("backbone.layer1", "backbone.layer2", "backbone.layer3")  # of the ResNets for small images
