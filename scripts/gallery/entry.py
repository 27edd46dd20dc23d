"""An entry of the gallery, and the base network that it is built from.

``$CHECKPOINT`` names the base network: the directory of a finished run (or its ``model.pt``), or the file of
the ResNet-20 for CIFAR-10 that :mod:`scripts.faults` loads. An entry is called without arguments, so that
``model.factory=scripts.gallery.MODULE:NAME`` names it on the command line.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from torch import nn

from scripts.faults import resnet20
from sstune import tasks
from sstune.commands.data import arranged
from sstune.commands.lineage import MODEL, open_source
from sstune.commands.victim import build

Build = Callable[[nn.Module], nn.Module]

GALLERY: dict[str, Entry] = {}


@dataclass(frozen=True)
class Entry:
    """A network whose gradient masking is known.

    Args:
        name: of the network, and of the entry in its module.
        family: what masks its gradient.
        source: the paper, or "own".
        text: what the network does, and what an attacker does who knows it.
        network: the base network -> the entry's network. It may change the base in place.
        twin: the base network -> a network with nearly the same outputs, whose gradient the adaptive attack
            uses in place of the own one (BPDA, Athalye et al. 2018, arXiv 1802.00420); None: the own one.
        eot: gradients that the adaptive attack averages for a step; above 1, outputs or gradients are random.
        base: the environment variable that names the base network.
    """

    name: str
    family: str
    source: str
    text: str
    network: Build
    twin: Build | None = None
    eot: int = 1
    base: str = "CHECKPOINT"

    def __call__(self) -> nn.Module:
        """The network, in eval mode."""
        return self.network(load(self.base)).eval()

    def made_twin(self) -> nn.Module | None:
        """The twin, in eval mode."""
        return None if self.twin is None else self.twin(load(self.base)).eval()

    @property
    def is_random(self) -> bool:
        """Whether outputs or gradients differ from pass to pass."""
        return self.eot > 1

    @property
    def spec(self) -> str:
        """The value of ``model.factory``."""
        return f"{self.network.__module__}:{self.name}"


def entry(
    family: str, source: str, twin: Build | None = None, eot: int = 1, base: str = "CHECKPOINT"
) -> Callable[[Build], Entry]:
    """Decorator: a function that builds a network becomes an entry of the gallery, with its docstring.

    Raises:
        ValueError: the name is taken.
    """

    def made(network: Build) -> Entry:
        name, text = network.__name__, " ".join((network.__doc__ or "").split())
        if name in GALLERY:
            raise ValueError(f"the gallery has two entries {name}")
        GALLERY[name] = Entry(name, family, source, text, network, twin, eot, base)
        return GALLERY[name]

    return made


def itself(base: nn.Module) -> nn.Module:
    """The twin of networks that differ from the base network in their gradient only, or by little."""
    return base


def load(variable: str) -> nn.Module:
    """A new copy of the base network that the environment variable names, in eval mode.

    Raises:
        KeyError: the variable is not set.
        RequestError: its value is not a finished run.
    """
    return copy.deepcopy(_loaded(os.environ[variable]))


def base_label(variable: str) -> str:
    """The name of the base network's run or file.

    Raises:
        KeyError: the variable is not set.
    """
    path = Path(os.environ[variable])
    return path.parent.name if path.name == MODEL else path.name


@cache
def _loaded(path: str) -> nn.Module:
    found = Path(path).expanduser()
    found = found.parent if found.name == MODEL else found
    if found.is_file() and path == os.environ.get("CHECKPOINT"):  # which scripts.faults reads
        return resnet20()
    source = open_source(found)
    if source.config is None:
        raise ValueError(f"{path} is not the directory of a run")
    data = arranged(source.config)
    outputs = tasks.build(source.config.task, data.n_classes).outputs
    return build(source.config, source, data, outputs).eval()
