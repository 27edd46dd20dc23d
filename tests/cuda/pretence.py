"""Everything that torch would do on a GPU, done on the CPU for tensors that say they are on that GPU.

A preloaded stand-in for the CUDA runtime (``no_gpu_runtime.c``) makes one device appear, so that
``torch.cuda``, its generators and random states, streams, events, pinned memory, autograd's device thread,
and dispatch and autocast by device are torch's own code. Every tensor on "cuda" is a :class:`Pretended`. What
CUDA refuses is refused, and what makes the host wait for the device is counted.

It cannot tell: speed, memory, rounding, CUDA graphs and torch.compile, several devices that compute, what a
kernel refuses by dtype or layout.
"""

from __future__ import annotations

from typing import Any

import torch
from pretended import CPU, LEDGER, Pretended, aten, note_waits
from refusals import check_arguments, check_devices
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten


def cudnn_batch_norm(
    x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, *rest: Any
) -> Any:
    return (
        *aten.native_batch_norm(x, weight, bias, mean, var, training, *rest),
        torch.empty(0, dtype=torch.uint8),
    )


def cudnn_batch_norm_backward(
    x: Tensor, grad: Tensor, weight: Any, mean: Any, var: Any, saved: Any, inverse: Any, eps: float, _: Any
) -> Any:
    masks = [True, True, True]
    return aten.native_batch_norm_backward(grad, x, weight, mean, var, saved, inverse, True, eps, masks)


# What torch asks of CUDA alone, said with what a CPU has.
SAID_OTHERWISE = {
    "cudnn_batch_norm": cudnn_batch_norm,
    "cudnn_batch_norm_backward": cudnn_batch_norm_backward,
}


class Pretence(TorchDispatchMode):
    """Catches what has no pretended tensor among its arguments yet: factories and copies to the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})


def is_cuda(device: Any) -> bool:
    """Whether an argument ``device`` asks for the GPU."""
    return device is not None and torch.device(device).type == "cuda"


def adopted(value: Any) -> Any:
    """A true CUDA tensor, which torch's C++ made on its own, as a pretended one."""
    if isinstance(value, Tensor) and not isinstance(value, Pretended) and value.is_cuda:
        with _disable_current_modes():
            return Pretended(value.detach().cpu())
    return value


def dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Do on the CPU what ``func`` would do on the device, or refuse as CUDA does."""
    flat, spec = tree_flatten((args, kwargs))
    flat = [adopted(value) for value in flat]
    args, kwargs = tree_unflatten(flat, spec)
    name = func._schema.name.removeprefix("aten::")
    plain_name = name.rstrip("_")
    there = [value for value in flat if isinstance(value, Pretended)]
    here = [value for value in flat if isinstance(value, Tensor) and not isinstance(value, Pretended)]
    asked = kwargs.get("device")
    with _disable_current_modes():
        if name == "lift_fresh":
            return args[0]
        if name in ("_to_copy", "copy_", "copy"):
            return copied(func, name, args, kwargs)
        if not there and not is_cuda(asked):
            if (generator := kwargs.get("generator")) is not None and generator.device.type != "cpu":
                raise RuntimeError(
                    f"Expected a 'cpu' device type for generator but found '{generator.device}'"
                )
            return func(*args, **kwargs)
        if there:
            check_devices(name, func, args, there, here)
        if there and asked is not None and not is_cuda(asked):  # zeros_like(x, device="cpu")
            return func(*tree_map(held, args), **tree_map(held, kwargs))
        check_arguments(name, plain_name, args, kwargs)
        note_waits(name, args)
        if is_cuda(asked):
            kwargs = {**kwargs, "device": CPU}
        kwargs = {key: value for key, value in kwargs.items() if key != "pin_memory"}
        wrappers = {id(value.held): value for value in there}
        out = seeded(func, tree_map(held, args), tree_map(held, kwargs))
        return tree_map(lambda value: wrapped(value, wrappers), out)


def held(value: Any) -> Any:
    """The CPU tensor behind a pretended one; anything else as it is."""
    return value.held if isinstance(value, Pretended) else value


def wrapped(value: Any, wrappers: dict[int, Pretended]) -> Any:
    """A result as the program shall see it; ``wrappers`` are the arguments' by the tensors that they hold."""
    if not isinstance(value, Tensor):
        return value
    return (
        wrappers[id(value)] if id(value) in wrappers else Pretended(value)
    )  # in place: the very tensor that was given


def copied(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    """Copies, the one thing that may cross devices."""
    if name == "_to_copy":
        source, asked = args[0], kwargs.get("device")
        from_cuda = isinstance(source, Pretended)
        to_cuda = from_cuda if asked is None else is_cuda(asked)
        pinned = kwargs.get("non_blocking") and (from_cuda or source.is_pinned())
        if from_cuda != to_cuda and not pinned:
            LEDGER.note("copy to the host" if from_cuda else "copy to the device")
        out = func(
            held(source), **{**kwargs, "device": CPU if asked is not None else None, "pin_memory": None}
        )
        return Pretended(out) if to_cuda else out
    target, source, *rest = args
    if isinstance(target, Pretended) != isinstance(source, Pretended):
        blocking = not (rest and rest[0])
        if blocking and not (source.dim() == 0 and isinstance(target, Pretended)):
            LEDGER.note("copy to the host" if isinstance(source, Pretended) else "copy to the device")
    out = func(held(target), held(source), *rest, **kwargs)
    return target if name == "copy_" else Pretended(out)


def seeded(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Call ``func``; what it draws follows from the CUDA generator's own seed and offset, which moves on."""
    if (other := SAID_OTHERWISE.get(func._schema.name.removeprefix("aten::"))) is not None:
        return other(*args, **kwargs)
    names = [argument.name for argument in func._schema.arguments]
    if torch.Tag.nondeterministic_seeded not in func.tags and "generator" not in names:
        return func(*args, **kwargs)
    position = names.index("generator") if "generator" in names else len(args)
    args = list(args)
    given = kwargs.get("generator")
    if given is not None:
        kwargs["generator"] = torch.default_generator
    if position < len(args) and args[position] is not None:
        given, args[position] = args[position], torch.default_generator
    generator = given if given is not None else torch.cuda.default_generators[0]
    key = hash((generator.initial_seed(), generator.get_offset())) % 2**63
    generator.set_offset(generator.get_offset() + 4)
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(key)
    try:
        return func(*args, **kwargs)
    finally:
        torch.set_rng_state(before)


def pretend() -> Pretence:
    """Begin; everything on "cuda" is pretended from here on."""
    torch.cuda.init()
    torch.__future__.set_swap_module_params_on_conversion(
        True
    )  # parameters stay the same objects, as on CUDA
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") passes through the mode
    for kernel in ("flash", "mem_efficient", "cudnn"):  # attention out of operators that a CPU has
        getattr(torch.backends.cuda, f"enable_{kernel}_sdp")(False)
    mode = Pretence()
    mode.__enter__()
    return mode
