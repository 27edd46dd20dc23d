"""Published weights of torchvision, and how they are adapted to modules that differ in part."""

from __future__ import annotations

import os
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from sstune.backbones.checkpoints import read_state_dict, shape_text
from sstune.preprocessing import Preprocessing
from sstune.schema import Interpolation, RequestError


def metadata(name: str) -> Any:
    """The default member of torchvision's ``Weights`` enum of a model."""
    from torchvision.models import get_model_weights  # slow to import, only used here

    return get_model_weights(name).DEFAULT


def preprocessing(name: str) -> Preprocessing:
    """The preprocessing of a model's published weights."""
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
    """Smallest side, in pixels, of images that torchvision's model accepts."""
    return max(metadata(name).meta["min_size"])


def load(module: nn.Module, name: str, stem: str, new: tuple[str, ...]) -> list[str]:
    """Load a model's published weights into ``module``; return notes on adaptations.

    Args:
        stem: name of the first convolution, whose weights are summed over input channels for grey images.
        new: names of modules that keep their new weights if the published ones have another shape.

    Raises:
        RequestError: the weights are not cached and could not be downloaded, or another module does not fit.
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
            notes.append(f"{part}: new, {shape_text(own[f'{part}.weight'])}")
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
            f"downloaded ({type(error).__name__}); download {metadata(name).url} to {file} (below "
            f"TORCH_HOME), or use init_from=FILE"
        ) from error


def _file(name: str) -> Path:
    """Path of the weights in torch.hub's cache."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(metadata(name).url).path).name
