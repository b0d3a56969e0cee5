"""Work through the frames of a template, leaving out those that cannot be used."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from skyloom.errors import NoOverlapError, NoUsableDataError, RegistrationError, SkyloomError, SkyloomWarning

T = TypeVar("T")

FRAME_ERRORS = (NoUsableDataError, NoOverlapError, RegistrationError)
"""What is wrong with one frame, and not with what the user asked for: a missing file or a wrong option stays fatal."""


def each_usable(frames: Sequence[Any], step: Callable[[Any], T], what: str = "Template frame") -> list[T]:
    """Apply a step to every frame; leave out, with a `SkyloomWarning`, the frames that it cannot be done with.

    Parameters
    ----------
    frames : sequence
        Exposures, or what they are read from.
    step : callable
        Called with each frame.
    what : str
        What the warning calls a frame.

    Returns
    -------
    list
        Results, at least one.

    Raises
    ------
    SkyloomError
        The step fails for all frames (the first failure), or fails for a reason not in `FRAME_ERRORS`.
    """
    results: list[T] = []
    failures: dict[str, SkyloomError] = {}
    for number, frame in enumerate(frames, start=1):
        try:
            results.append(step(frame))
        except FRAME_ERRORS as error:
            name = getattr(frame, "name", None) or (frame if isinstance(frame, str) else "")
            failures[f"{number} ({name})" if name else f"{number}"] = error
    try:
        if not results:
            raise next(iter(failures.values()))
        texts = [f"{what} {label} is left out: {failure}" for label, failure in failures.items()]
    finally:
        failures.clear()  # their tracebacks hold it, and all images that the callers have
    for text in texts:
        warnings.warn(text, SkyloomWarning, stacklevel=3)
    return results
