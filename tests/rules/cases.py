"""Layers in every geometry: how to make one, the shape of its input, and further arguments of its call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Case = tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, Any]]


def case(
    layer: Callable[..., nn.Module], *args: Any, x: tuple[int, ...], call: Any = None, **kwargs: Any
) -> Case:
    return (lambda: layer(*args, **kwargs)), x, call or {}


PADDING_MODES = ["zeros", "reflect", "replicate", "circular"]

CASES: dict[str, Case] = {
    "linear-1d": case(nn.Linear, 5, 3, x=(5,)),
    "linear-2d": case(nn.Linear, 5, 3, x=(4, 5)),
    "linear-3d": case(nn.Linear, 5, 3, x=(2, 4, 5)),
    "linear-4d": case(nn.Linear, 5, 3, x=(2, 3, 2, 5)),
    "linear-out-1": case(nn.Linear, 5, 1, x=(4, 5)),
    "linear-out-1-1d": case(nn.Linear, 5, 1, x=(5,)),
    "linear-in-1": case(nn.Linear, 1, 3, x=(4, 1)),
    "linear-no-bias": case(nn.Linear, 5, 3, bias=False, x=(4, 5)),
    "linear-one": case(nn.Linear, 5, 3, x=(1, 5)),
    "linear-none": case(nn.Linear, 5, 3, x=(0, 5)),
    "conv1d": case(nn.Conv1d, 2, 3, 3, stride=2, padding=2, dilation=2, x=(2, 2, 9)),
    "conv1d-unbatched": case(nn.Conv1d, 2, 3, 3, padding=1, x=(2, 7)),
    "conv1d-same": case(nn.Conv1d, 2, 3, 3, padding="same", dilation=2, bias=False, x=(2, 2, 7)),
    "conv1d-same-even": case(nn.Conv1d, 2, 3, 4, padding="same", x=(2, 2, 7)),
    "conv2d": case(nn.Conv2d, 3, 4, 3, x=(2, 3, 6, 5)),
    "conv2d-1x1": case(nn.Conv2d, 3, 4, 1, stride=2, bias=False, x=(2, 3, 5, 5)),
    "conv2d-stride": case(nn.Conv2d, 3, 4, (3, 2), stride=(2, 3), padding=(1, 0), x=(2, 3, 7, 8)),
    "conv2d-dilation": case(nn.Conv2d, 3, 4, (2, 3), dilation=(3, 2), padding=(2, 1), x=(2, 3, 7, 8)),
    "conv2d-groups": case(nn.Conv2d, 4, 6, 3, groups=2, padding=1, x=(2, 4, 5, 5)),
    "conv2d-depthwise": case(nn.Conv2d, 4, 8, 3, groups=4, stride=2, padding=1, x=(2, 4, 5, 5)),
    "conv2d-no-bias": case(nn.Conv2d, 3, 4, 3, padding=1, bias=False, x=(2, 3, 5, 5)),
    "conv2d-one": case(nn.Conv2d, 3, 4, 3, padding=1, x=(1, 3, 5, 5)),
    "conv2d-unbatched": case(nn.Conv2d, 3, 4, 3, padding=1, x=(3, 5, 5)),
    "conv2d-valid": case(nn.Conv2d, 3, 4, 3, padding="valid", stride=2, x=(2, 3, 6, 6)),
    "conv2d-same-odd": case(nn.Conv2d, 3, 4, 3, padding="same", x=(2, 3, 5, 6)),
    "conv2d-same-even": case(nn.Conv2d, 3, 4, (2, 4), padding="same", dilation=(3, 1), x=(2, 3, 5, 6)),
    "conv3d": case(
        nn.Conv3d, 2, 4, 2, stride=(1, 2, 1), padding=1, dilation=(1, 1, 2), groups=2, x=(2, 2, 3, 4, 4)
    ),
    "conv3d-unbatched": case(nn.Conv3d, 2, 3, 2, bias=False, x=(2, 3, 3, 3)),
    "conv3d-same": case(nn.Conv3d, 1, 2, (1, 2, 3), padding="same", x=(1, 1, 3, 3, 3)),
    **{
        f"conv1d-{mode}": case(nn.Conv1d, 2, 3, 3, padding=2, stride=2, padding_mode=mode, x=(2, 2, 6))
        for mode in PADDING_MODES
    },
    **{
        f"conv2d-{mode}": case(nn.Conv2d, 2, 3, (3, 2), padding=(2, 1), padding_mode=mode, x=(2, 2, 5, 4))
        for mode in PADDING_MODES
    },
    **{
        f"conv2d-same-{mode}": case(nn.Conv2d, 2, 3, (4, 3), padding="same", padding_mode=mode, x=(2, 5, 6))
        for mode in PADDING_MODES
    },
    **{
        f"conv2d-valid-{mode}": case(nn.Conv2d, 2, 3, 2, padding="valid", padding_mode=mode, x=(1, 2, 4, 4))
        for mode in PADDING_MODES
    },
    **{
        f"conv3d-{mode}": case(nn.Conv3d, 1, 2, 2, padding=(1, 0, 1), padding_mode=mode, x=(1, 1, 3, 3, 3))
        for mode in PADDING_MODES
    },
    "transpose1d": case(nn.ConvTranspose1d, 2, 3, 3, stride=3, output_padding=2, padding=1, x=(2, 2, 4)),
    "transpose1d-size": case(nn.ConvTranspose1d, 2, 3, 3, stride=2, x=(2, 2, 4), call={"output_size": [10]}),
    "transpose2d": case(
        nn.ConvTranspose2d, 4, 6, (3, 2), stride=(2, 3), padding=(1, 0), output_padding=(1, 2), groups=2,
        dilation=(2, 1), x=(2, 4, 3, 4),
    ),
    "transpose2d-size": case(
        nn.ConvTranspose2d, 3, 2, 3, stride=2, padding=1, bias=False, x=(2, 3, 4, 4),
        call={"output_size": [8, 7]},
    ),
    "transpose2d-unbatched": case(nn.ConvTranspose2d, 3, 2, 2, stride=2, x=(3, 3, 3)),
    "transpose3d": case(nn.ConvTranspose3d, 2, 1, 2, stride=2, output_padding=1, x=(1, 2, 2, 2, 3)),
    "transpose3d-size": case(
        nn.ConvTranspose3d, 2, 2, 2, stride=2, groups=2, x=(1, 2, 2, 2, 2), call={"output_size": [4, 5, 4]}
    ),
}  # fmt: skip


def small_network() -> nn.Sequential:
    """Every kind of layer, for images (3, 8, 8) and 5 classes."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding="same", groups=2),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 3, stride=2, output_padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 18 * 18, 5),
    )
