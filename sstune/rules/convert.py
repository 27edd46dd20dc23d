"""Convert a network's layers to feedback layers, in place, and switch their feedback off or freeze it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn

from sstune.rules.feedback import FEEDBACKS, warn_of_steps_not_begun
from sstune.rules.layers import CONVERTED, FeedbackLayer, converted_class
from sstune.rules.observation import observe
from sstune.schema import RequestError, RuleConfig, nearest
from sstune.schema.typed import typed

# Reads its projections' weights without calling the layers that own them: converting those would do nothing.
_OPAQUE = (nn.MultiheadAttention,)


@dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    ``feedback`` names the layers that now use feedback, ``exact`` the other modules with parameters of their
    own, which keep their exact derivative; each with its class. The network itself has the name "".
    """

    feedback: dict[str, str]
    exact: dict[str, str]

    def __str__(self) -> str:
        return f"feedback in {_counted(self.feedback)}; exact derivatives in {_counted(self.exact)}"


def convert(
    model: nn.Module,
    rule: RuleConfig,
    seed: int,
    aliases: dict[str, str] | None = None,
    example: Tensor | None = None,
) -> Conversion:
    """Give the layers that ``rule`` selects its feedback; parameters stay the same objects.

    Args:
        model: any network; converted layers change their class in place, so hooks, shared modules and
            optimisers that hold the parameters stay valid.
        rule: which rule, scale and layers (glob patterns on module names).
        seed: of the run; draws are keyed by (seed, layer name).
        aliases: names that patterns may use for modules, e.g. ``{"head": "fc", "stem": "conv1"}``.
        example: a batch of inputs. ``model`` is run on it once, in eval mode, to check that every converted
            layer is called. Direct rules need it for the shapes of their feedback.

    Raises:
        RequestError: ``rule`` holds a value of another type than its key's, a pattern matches nothing or
            names a layer that cannot be converted, or a layer's weights are used without calling it.
        ValueError: a direct rule without an example.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    if rule.name == "bp":
        return Conversion({}, _with_parameters(dict(model.named_modules())))
    feedback = FEEDBACKS[rule.name]
    rule = typed("rule", rule)
    selected = _select(modules, rule, aliases or {})
    layers = {name: modules[name] for name in selected}
    observed = None if example is None else observe(model, layers, example)
    converted = {}
    for name in selected:
        layer = modules[name]
        converted[name] = type(layer).__name__
        layer.feedback = feedback(layer, rule, seed, name).train(layer.training)
        layer.exact = False  # set now: a new attribute would recompile a compiled network
        layer.__class__ = converted_class(layer)
        if layer.feedback.each_step and layer.weight.requires_grad:
            warn_of_steps_not_begun(layer.feedback, layer.weight, rule.name)
    feedback.connect(model, {name: modules[name] for name in selected}, observed)
    rest = {name: module for name, module in model.named_modules() if name not in selected}
    return Conversion(converted, _with_parameters(rest))


def _with_parameters(modules: dict[str, nn.Module]) -> dict[str, str]:
    return {
        name: type(module).__name__
        for name, module in modules.items()
        if any(True for _ in module.parameters(recurse=False))
    }


def _counted(modules: dict[str, str]) -> str:
    counts = Counter(modules.values())
    return ", ".join(f"{n} {kind}" for kind, n in counts.items()) or "no layer"


def _select(modules: dict[str, nn.Module], rule: RuleConfig, aliases: dict[str, str]) -> list[str]:
    include = resolve(rule.include, "rule.include", modules, aliases)
    exclude = resolve(rule.exclude, "rule.exclude", modules, aliases)
    selected = []
    for name, module in modules.items():
        if not matches(name, include) or matches(name, exclude):
            continue
        if converted_class(module) and isinstance(module._parameters.get("weight"), nn.Parameter):
            selected.append(name)
        elif isinstance(module, (*CONVERTED, *_OPAQUE)) or (name in include and not _contains_layers(module)):
            raise RequestError(
                f"rule.include: {name} ({type(module).__name__}) cannot be converted: its derivative "
                f"would not pass through the feedback; add it to rule.exclude"
            )
    if not selected:
        raise RequestError(f"rule.include: no layer is left to convert by {rule.include} less {rule.exclude}")
    return selected


def _contains_layers(module: nn.Module) -> bool:
    return any(converted_class(inner) for inner in module.modules())


def resolve(
    patterns: list[str], key: str, modules: dict[str, nn.Module], aliases: dict[str, str]
) -> list[str]:
    """Patterns of module names with each alias ("head", "stem") replaced by what it stands for.

    Raises:
        RequestError: a pattern matches none of ``modules``; names ``key`` and the nearest right spelling.
    """
    resolved = []
    for pattern in patterns:
        name = pattern if pattern in modules else aliases.get(pattern, pattern)
        if not any(fnmatchcase(module, name) for module in modules):
            layers = (found for found, module in modules.items() if isinstance(module, tuple(CONVERTED)))
            known = {*aliases, *layers}
            raise RequestError(f"{key}: {name!r} matches no module, {nearest(name, known)}")
        resolved.append(name)
    return resolved


def matches(name: str, patterns: list[str]) -> bool:
    """Whether a pattern matches ``name`` or one of the modules that contain it."""
    return any(fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*") for pattern in patterns)


def feedback_layers(model: nn.Module) -> dict[str, FeedbackLayer]:
    """Converted layers by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, FeedbackLayer)}


def feedback_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of trained feedback, which are among those of the network."""
    return [
        parameter for layer in feedback_layers(model).values() for parameter in layer.feedback.parameters()
    ]


@contextmanager
def exact_gradients(model: nn.Module) -> Iterator[None]:
    """Inside, the same weights have their true derivative; nothing else about ``model`` changes."""
    layers = list(feedback_layers(model).values())
    before = [layer.exact for layer in layers]
    try:
        for layer in layers:
            layer.exact = True
        yield
    finally:
        for layer, exact in zip(layers, before, strict=True):
            layer.exact = exact


def begin_step(model: nn.Module) -> None:
    """Update feedback that changes from step to step; call it before each step's forward pass."""
    for layer in feedback_layers(model).values():
        layer.feedback.begin_step(layer.weight)
        layer.feedback.begun_with = layer.weight._version


def redraw(model: nn.Module, key: int) -> None:
    """Redraw all random feedback, seeded by ``key``; other feedback does not change."""
    for layer in feedback_layers(model).values():
        layer.feedback.redraw(key)


@contextmanager
def unchanged_feedback(model: nn.Module) -> Iterator[None]:
    """On exit, restore the state of every layer's feedback: its attributes, and which tensors it holds."""
    feedback = [layer.feedback for layer in feedback_layers(model).values()]
    states = [dict(each.__dict__, _buffers=dict(each._buffers)) for each in feedback]
    try:
        yield
    finally:
        for each, state in zip(feedback, states, strict=True):
            each.__dict__.update(state)


@contextmanager
def frozen_feedback(model: nn.Module) -> Iterator[None]:
    """Inside, forward passes draw no feedback, only :func:`redraw` does; on exit its state is restored."""
    with unchanged_feedback(model):
        for layer in feedback_layers(model).values():
            if layer.feedback.is_random:
                layer.feedback.is_frozen = True
        yield


def plain_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state dict without feedback: that of the unconverted network."""
    named = model.named_modules(remove_duplicate=False)  # a shared layer has keys under each name
    prefixes = tuple(f"{name}.feedback." for name, module in named if isinstance(module, FeedbackLayer))
    return {key: value for key, value in model.state_dict().items() if not key.startswith(prefixes)}
