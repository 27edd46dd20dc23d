"""A network that other code makes: ``model.factory=package.module:factory``."""

from __future__ import annotations

import copy
import hashlib
import importlib
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sstune.commands.lineage import Source
from sstune.finite import first_not_finite
from sstune.modes import eval_mode
from sstune.schema import RequestError, nearest

# Others' code may raise anything; sys.exit() in it ends nothing of ours.
_ANYTHING = (Exception, SystemExit, GeneratorExit)


def source(spec: str, key: str = "model.factory") -> Source:
    """The network of :func:`make`, and what identifies it.

    Raises:
        RequestError: as :func:`make`.
    """
    network = make(spec, key)
    return Source(Path(spec), [{"file": spec, "sha256": digest(spec, network)}], None, network)


def make(spec: str, key: str = "model.factory") -> nn.Module:
    """Call ``package.module:factory`` without arguments, or copy the module of that name, on the CPU.

    The network must map images in [0,1], (N, C, H, W), to logits, (N, classes): it normalises them itself.

    Args:
        key: of the configuration that names it, for errors.

    Raises:
        RequestError: there is no such factory, it fails, gives no torch module, or one with a
            parameter that is NaN or infinite.
    """
    found = _named(spec, key)
    if not callable(found):
        raise RequestError(f"{key}: {spec} is a {type(found).__name__}, expected what makes a network")
    try:
        made = found if isinstance(found, nn.Module) else found()
    except _ANYTHING as error:
        raise RequestError(f"{key}: {spec} raised {_message(error)}") from error
    if not isinstance(made, nn.Module):
        raise RequestError(f"{key}: {spec} gives a {type(made).__name__}, expected a torch.nn.Module")
    if bad := first_not_finite(made.named_parameters()):
        raise RequestError(f"{key}: {spec} has non-finite weights: {bad}")
    try:  # it will be converted in place, and the original may be asked for again
        return copy.deepcopy(made).cpu()
    except _ANYTHING as error:  # a module with weight_norm, a lock, an open file, ... has no copy
        if made is found:
            what = f"{key}: {spec} cannot be copied"
            raise RequestError(f"{what}; name a function that makes it") from error
        return made.cpu()


def _named(spec: str, key: str) -> Any:
    """The object that ``package.module:name`` names; modules of the working directory are found."""
    module_name, colon, name = spec.partition(":")
    if not (module_name and colon and name):
        raise RequestError(f"{key}: {spec!r} is not of the form package.module:factory")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except _ANYTHING as error:
        raise RequestError(f"{key}: {module_name} cannot be imported ({_message(error)})") from error
    try:
        return getattr(module, name)
    except AttributeError as error:
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise RequestError(f"{key}: {module_name} has no {name!r}, {nearest(name, known)}") from error
    except _ANYTHING as error:  # a module may look its names up by code
        raise RequestError(f"{key}: {spec} raised {_message(error)}") from error


def _message(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def digest(spec: str, network: nn.Module) -> str:
    """sha256 over the network's structure and tensors, and the source files of what made it and of its
    modules' classes, but torch's; what these call elsewhere is not seen."""
    content = hashlib.sha256(repr(network).encode())
    for name, value in sorted(network.state_dict().items()):
        content.update(name.encode())
        if isinstance(value, Tensor):
            content.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    modules = {spec.partition(":")[0], *(type(module).__module__ for module in network.modules())}
    for name in sorted(modules):
        source = (
            None if name.partition(".")[0] == "torch" else getattr(sys.modules.get(name), "__file__", None)
        )
        if source:
            content.update(Path(source).read_bytes())
    return content.hexdigest()


def check_outputs(
    network: nn.Module, shape: tuple[int, ...], n_classes: int, key: str = "model.factory"
) -> None:
    """Check that the network maps images of ``shape`` to logits of ``n_classes``; it is not changed.

    Raises:
        RequestError: they do not.
    """
    try:
        with torch.no_grad(), eval_mode(network), torch.random.fork_rng(devices=[]):
            outputs: Any = network(torch.zeros(2, *shape))
    except _ANYTHING as error:
        raise RequestError(f"{key}: fails on images of shape {shape}: {_message(error)}") from error
    if not isinstance(outputs, Tensor) or outputs.shape != (2, n_classes):
        found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise RequestError(f"{key}: gives {found} for 2 images, expected (2, {n_classes}) logits")
