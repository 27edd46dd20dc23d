"""Read the weights that a run starts from."""

from __future__ import annotations

from functools import cached_property
from typing import Any, cast

from sstune import rules
from sstune.backbones import Network, load_state, read_checkpoint, state_dict_in
from sstune.commands.lineage import Source
from sstune.composition import restored_section
from sstune.schema import BackboneConfig


class Weights:
    """The content of a source's file, read once, on first use."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def resolved(self, backbone: BackboneConfig) -> BackboneConfig:
        """``backbone`` with the values that the source's run chose for keys left at null."""
        if self.source.config is None:
            return backbone
        return cast(BackboneConfig, restored_section(backbone, self._part("settled")))

    def load_into(self, network: Network) -> list[str]:
        """Load the forward weights into a network that is not yet converted.

        Returns:
            A note on each tensor that was not loaded and keeps its initial values.

        Raises:
            RequestError: the file is not a checkpoint, or does not fit the network.
        """
        path = self.source.path
        return load_state(network, state_dict_in(self._content, path), path)

    def load_feedback(self, network: Network) -> None:
        """Load the feedback of the source's run into a network converted with the same rule."""
        state = {**rules.plain_state_dict(network.backbone), **self._part("feedback")}
        network.backbone.load_state_dict(state)

    @cached_property
    def _content(self) -> Any:
        return read_checkpoint(self.source.path)

    def _part(self, name: str) -> dict[str, Any]:
        """Another part of a run's file than the forward weights; empty if absent."""
        return dict(self._content.get(name, {}))
