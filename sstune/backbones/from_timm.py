"""Models and weights of timm: any model by name, and functions that resnet and vit share.

timm is imported inside functions: this takes seconds, and other backbones do not need it.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sstune.backbones.registry import Backbone, Shape
from sstune.preprocessing import Preprocessing
from sstune.schema import Interpolation, RequestError, TimmConfig, shown


def metadata(name: str) -> Any:
    """timm's ``PretrainedCfg`` of a model, ``architecture`` or ``architecture.tag``.

    Raises:
        RequestError: timm has no such model, or no such tag.
    """
    import timm

    known = timm.list_models(include_tags="." in name)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else "known: those of timm.list_models()"
        raise RequestError(f"backbone.name: unknown {name!r}, {hint}")
    return timm.get_pretrained_cfg(name)


def preprocessing(name: str) -> Preprocessing:
    """The preprocessing of a model's published weights.

    Raises:
        RequestError: timm has no such model, or no weights for it.
    """
    data = metadata(name)
    if not data.has_weights:
        raise RequestError(f"backbone.pretrained: timm has no weights of {name}")
    return Preprocessing(
        mean=tuple(data.mean),
        std=tuple(data.std),
        size=tuple(data.input_size[1:]),
        crop_pct=data.crop_pct,
        interpolation=Interpolation(data.interpolation),
    )


def fixed_size(name: str) -> tuple[int, int] | None:
    """(height, width) that a model requires; None if it accepts images of several sizes."""
    data = metadata(name)
    return tuple(data.input_size[1:]) if data.fixed_input_size else None


def create(name: str, shape: Shape, outputs: int, load: bool, **settings: Any) -> nn.Module:
    """timm's model for images of ``shape``, with a head of ``outputs`` units.

    Args:
        load: whether to load the published weights, from the hub or its cache. timm drops a head of another
            width, sums the first convolution's weights over colours for grey images, and resamples patch and
            position embeddings.
        settings: further arguments of ``timm.create_model``.

    Raises:
        RequestError: the weights are not cached and could not be downloaded, or damaged.
    """
    import timm
    from huggingface_hub import constants

    settings = {"in_chans": shape[0], "num_classes": outputs, **settings}
    try:
        model: nn.Module = timm.create_model(name, pretrained=load, **settings)
    except Exception as error:
        if not load:
            raise
        data = metadata(name)
        file, where = data.hf_hub_filename or "model.safetensors", data.hf_hub_id or name
        if isinstance(error, OSError):
            raise RequestError(
                f"backbone.pretrained: the weights of {where} are not cached and could not be downloaded "
                f"({type(error).__name__}); download {file} to the hub's cache "
                f"{constants.HF_HUB_CACHE} (below HF_HOME) with `hf download`, or use init_from=FILE"
            ) from error
        timm.create_model(name, pretrained=False, **settings)  # raises unless the weights are the cause
        raise RequestError(
            f"backbone.pretrained: the weights of {where} in {constants.HF_HUB_CACHE} cannot be loaded "
            f"({shown(' '.join(str(error).split())[:60])}); remove {file} there"
        ) from error
    return model


def adaptations(name: str, channels: int, outputs: int) -> list[str]:
    """Notes on how timm adapts a model's published weights to channels and outputs."""
    data = metadata(name)
    notes = []
    if outputs != data.num_classes:
        notes.append(f"head: new, {outputs} outputs (the weights have {data.num_classes})")
    if channels == 1:
        notes.append("stem: the weights' first convolution, summed over its input channels for grey images")
    if data.crop_mode != "center":
        notes.append(f"photographs are cropped at the centre, although the weights' crop is {data.crop_mode}")
    return notes


def any_model(config: TimmConfig, shape: Shape, outputs: int, load: bool = False) -> Backbone:
    """timm's model ``config.name``; one of fixed input size is built for ``backbone.input_size``, if given.

    Raises:
        RequestError: the name is unknown, the model cannot be built for or run on images of ``shape``, or it
            is not a classifier.
    """
    settings = {}
    if fixed_size(config.name) and config.input_size is not None:
        settings["img_size"] = shape[1:]
    try:
        module = create(config.name, shape, outputs, load, **settings)
        module.eval()
        with torch.no_grad():
            made = module(torch.zeros(1, *shape))
        module.train()
    except (ArithmeticError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RequestError(
            f"backbone.name: timm's {config.name} does not work with {shape[1]}x{shape[2]} images: {reason}; "
            f"try another backbone.input_size"
        ) from error
    if not isinstance(made, torch.Tensor) or made.shape != (1, outputs):
        raise RequestError(f"backbone.name: timm's {config.name} is not a classifier")
    data = metadata(config.name)
    layers = [name for name, inner in module.named_modules() if isinstance(inner, nn.Conv2d | nn.Linear)]
    return Backbone(
        module,
        head=_alias(data.classifier, module) or layers[-1],
        stem=_alias(data.first_conv, module) or layers[0],
        notes=tuple(adaptations(config.name, shape[0], outputs)) if load else (),
    )


def _alias(names: str | Sequence[str] | None, module: nn.Module) -> str | None:
    """One glob pattern for the modules in timm's metadata; None if none of them exists."""
    named = [names] if isinstance(names, str) else names or []
    modules = dict(module.named_modules())
    present = [name for name in named if name in modules]
    shared = os.path.commonprefix(present)  # noqa: RUF071 (by character: head and head_dist give head*)
    if len(present) > 1 and shared:
        return f"{shared}*"
    return present[0] if present else None
