"""What CUDA refuses, and a CPU would not."""

from __future__ import annotations

from typing import Any

import torch
from pretended import Pretended
from torch import Tensor

# CPU tensors without axes may stand beside CUDA tensors in these, besides all pointwise ones.
LENIENT = ("_foreach", "where", "masked_fill", "fill", "index_put", "_index_put_impl", "lerp", "clamp")
# torch.use_deterministic_algorithms: those that raise on CUDA, of what vision networks use.
NOT_DETERMINISTIC = {
    "_adaptive_avg_pool2d_backward", "adaptive_max_pool2d_backward", "avg_pool3d_backward",
    "max_pool3d_with_indices_backward", "grid_sampler_2d_backward", "grid_sampler_3d_backward",
    "upsample_bicubic2d_backward", "upsample_bilinear2d_backward", "_upsample_bilinear2d_aa_backward",
    "_upsample_bicubic2d_aa_backward", "reflection_pad2d_backward",
    "nll_loss2d_forward", "histc",
}  # fmt: skip


LIMITS = {"images": 0}  # more of them in one product are out of memory; 0: any number fit


def check_devices(name: str, func: Any, args: Any, there: list[Pretended], here: list[Tensor]) -> None:
    """CUDA's rules on tensors of the CPU among its own."""
    if name.startswith(("index", "_index_put_impl", "_unsafe_index")) and isinstance(args[1], (list, tuple)):
        indexed, values = args[0], args[2:3]
        if not isinstance(indexed, Pretended) and any(isinstance(each, Pretended) for each in args[1]):
            raise RuntimeError(
                "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
            )
        rest = [each for each in (indexed, *values) if isinstance(each, Tensor)]
        here = [each for each in rest if not isinstance(each, Pretended)]
        if not isinstance(indexed, Pretended) and len(here) < len(rest):
            raise RuntimeError("Expected all tensors to be on the same device, but found cuda:0 and cpu!")
    lenient = torch.Tag.pointwise in func.tags or name.startswith(LENIENT)
    wrong = [each for each in here if each.dim() > 0 or not lenient]
    first = args[0] if args and isinstance(args[0], Tensor) else None
    if (
        name.endswith("_")
        and not name.startswith("_")
        and first is not None
        and not isinstance(first, Pretended)
    ):
        wrong.append(first)  # the result has no place on the CPU
    if wrong:
        shapes = [tuple(each.shape) for each in wrong]
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
            f"({name}: {shapes} on the CPU)"
        )


def check_arguments(name: str, plain_name: str, args: Any, kwargs: dict[str, Any]) -> None:
    """CUDA's rules on generators, deterministic algorithms and fused optimisers; and the memory's end."""
    generator = kwargs.get("generator")
    if generator is None:
        generator = next((each for each in args if isinstance(each, torch.Generator)), None)
    if generator is not None and generator.device.type != "cuda":
        raise RuntimeError(f"Expected a 'cuda' device type for generator but found '{generator.device}'")
    if torch.are_deterministic_algorithms_enabled() and plain_name in NOT_DETERMINISTIC:
        raise RuntimeError(f"{plain_name} does not have a deterministic implementation on CUDA")
    if name.startswith("_fused_"):
        lists = [each for each in args[:4] if isinstance(each, list) and each]
        for group in zip(*(each for each in lists if len(each) == len(lists[0])), strict=True):
            shaped = [each for each in group if each.dim() > 0]
            if len({strides(each) for each in shaped}) > 1:
                raise RuntimeError(f"{name}: parameters, gradients and states of different strides")
    images = {"convolution": 0, "mm": 0, "addmm": 1}.get(name)
    if LIMITS["images"] and images is not None and len(args[images]) > LIMITS["images"]:
        raise torch.OutOfMemoryError(f"CUDA out of memory (pretended, {name})")


def strides(tensor: Tensor) -> tuple[int, ...]:
    """Those that matter: an axis of length 1 may have any."""
    return tuple(step for step, size in zip(tensor.stride(), tensor.shape, strict=True) if size != 1)
