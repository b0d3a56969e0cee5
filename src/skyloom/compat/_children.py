"""Processes that `multiprocessing` starts afresh ("spawn", "forkserver") get the modules that their parent has active.

Such a child first unpickles a dictionary of the parent's state (`sys.path`, the name of the main module, ...), and only
then imports anything of the program. An object that is added to it, and whose unpickling calls
`skyloom.compat.activate`, therefore acts early enough.
"""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import spawn
from typing import Any


class _Activation:
    """Is unpickled by activating originals."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, ...]]:
        from skyloom.compat import activate

        return activate, self.names


class ToChildren:
    """Passes the names of active originals on.

    Parameters
    ----------
    active : list of str
        The names; read whenever a process is started.
    """

    def __init__(self, active: list[str]) -> None:
        self.active = active
        self._state_of_parent: Callable[[str], dict[str, Any]] | None = None

    def begin(self) -> None:
        """Pass them on from now on; twice is once."""
        if self._state_of_parent is None:
            self._state_of_parent = spawn.get_preparation_data
            spawn.get_preparation_data = self._state

    def end(self) -> None:
        """Leave `multiprocessing` as it was."""
        if self._state_of_parent is not None:
            spawn.get_preparation_data = self._state_of_parent  # type: ignore[assignment]
            self._state_of_parent = None

    def _state(self, name: str) -> dict[str, Any]:
        assert self._state_of_parent is not None
        return {**self._state_of_parent(name), __name__: _Activation(tuple(self.active))}
