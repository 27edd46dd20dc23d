"""A signal that comes at a chosen moment, and how what was interrupted is compared."""

from __future__ import annotations

import signal
from typing import Any

from sstune.interrupt import StopFlag


class StopAfter(StopFlag):
    """A flag that is set, as by SIGTERM, when it has been looked at ``looks`` times: once a training step."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks

    def __bool__(self) -> bool:
        self.looks -= 1
        if self.looks == 0:
            self.handle(signal.SIGTERM, None)
        return super().__bool__()


def timeless(value: Any) -> Any:
    """What a run measured, without how long it took."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key != "seconds"}
    return [timeless(item) for item in value] if isinstance(value, list) else value
