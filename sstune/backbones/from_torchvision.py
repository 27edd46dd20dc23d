"""Published weights of torchvision, and how they are fitted to a module that differs in places."""

from __future__ import annotations

import os
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from sstune.backbones.checkpoints import read_state_dict
from sstune.preprocessing import Preprocessing
from sstune.schema import Interpolation, RequestError


def metadata(name: str) -> Any:
    """torchvision's ``Weights`` enum member that a model's weights are by default."""
    from torchvision.models import get_model_weights  # takes a second, and other backbones do without

    return get_model_weights(name).DEFAULT


def preprocessing(name: str) -> Preprocessing:
    """What a model's weights expect of their images."""
    transforms = metadata(name).transforms()
    (crop,), (resized,) = transforms.crop_size, transforms.resize_size
    return Preprocessing(
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        size=(crop, crop),
        crop_pct=crop / resized,
        interpolation=Interpolation(transforms.interpolation.value),
    )


def smallest(name: str) -> int:
    """Pixels a side of the smallest images that torchvision's model takes."""
    return max(metadata(name).meta["min_size"])


def load(module: nn.Module, name: str, stem: str, new: tuple[str, ...]) -> list[str]:
    """Load a model's published weights into ``module``; returns notes on what was adapted.

    Args:
        stem: the first convolution, whose weights are summed over their input channels for grey images.
        new: modules that keep their own weights where the published ones have another shape.

    Raises:
        RequestError: the weights are not cached and could not be downloaded, or do not fit elsewhere.
    """
    state, own, notes = _state_dict(name), module.state_dict(), []
    if own[f"{stem}.weight"].shape[1] == 1 and stem not in new:
        state[f"{stem}.weight"] = state[f"{stem}.weight"].sum(1, keepdim=True)
        notes.append("stem: the weights' first convolution, summed over its input channels for grey images")
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    for part in new:
        keys = [key for key in own if key.startswith(f"{part}.")]
        if any(key not in fitting for key in keys):
            fitting |= {key: own[key] for key in keys}
            notes.append(f"{part}: new, {_shape(own[f'{part}.weight'])}")
    misfit = [key for key in own if key not in fitting]
    if misfit:
        raise RequestError(
            f"backbone.pretrained: {_file(name)} does not fit {name}: {', '.join(misfit[:8])} "
            f"missing or of another shape"
        )
    module.load_state_dict(fitting)
    return notes


def _state_dict(name: str) -> dict[str, Tensor]:
    """The published tensors by name, from torch.hub's cache or the network.

    Raises:
        RequestError: they are not cached and could not be downloaded, or the file is damaged.
    """
    file = _file(name)
    if os.path.lexists(file):
        return read_state_dict(file, "backbone.pretrained")
    try:
        return metadata(name).get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, HTTPException) as error:
        raise RequestError(
            f"backbone.pretrained: the weights of torchvision's {name} are not cached and could not be "
            f"downloaded "
            f"({type(error).__name__}); put {metadata(name).url} at {file} (below TORCH_HOME), or use "
            f"init_from=FILE"
        ) from error


def _file(name: str) -> Path:
    """Where torch.hub keeps the weights."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(metadata(name).url).path).name


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))
