"""Registries of rules, backbones, tasks, datasets and attacks by their names in a configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from sstune.schema import RequestError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps the names of one config group to classes or functions.

    Args:
        key: the config key that holds the name, for error messages ("rule.name").
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self._entries: dict[str, T] = {}

    def register(self, *names: str) -> Callable[[T], T]:
        """Decorator: register the decorated object under ``names``.

        Raises:
            ValueError: a name is taken.
        """

        def add(entry: T) -> T:
            for name in names:
                if name in self._entries:
                    raise ValueError(f"{self.key}: {name!r} is registered twice")
                self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        """Raises RequestError for an unknown name, with the nearest known one."""
        if name not in self._entries:
            raise RequestError(f"{self.key}: unknown {name!r}, {nearest(name, self._entries)}")
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries
