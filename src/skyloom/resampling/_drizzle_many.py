"""Drizzle many images in one call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sized
from typing import Any

from skyloom.errors import InputError, SkyloomError

Progress = Callable[[int, int | None], object]


def add_images(
    add_image: Callable[..., tuple[int, int]], images: Iterable[Mapping[str, Any]], progress: Progress | None
) -> list[tuple[int, int]]:
    """Call `add_image` with the arguments of each image; see `Drizzle.add_images`."""
    total = len(images) if isinstance(images, Sized) else None
    signature = inspect.signature(add_image)
    results: list[tuple[int, int]] = []
    for k, image in enumerate(images):
        which = f"Image {k} (counted from 0; those before it have been added)"
        if not isinstance(image, Mapping):
            raise InputError(
                f"{which} is a {type(image).__name__}; a mapping of the arguments of add_image is needed.", image=k
            )
        try:
            signature.bind(**image)
        except TypeError as error:
            raise InputError(f"{which}: {error}. Give the arguments of add_image.", image=k) from None
        try:
            results.append(add_image(**image))
        except SkyloomError as error:
            raise type(error)(f"{which}: {error}", **{**error.details, "image": k}) from error
        except Exception as error:
            error.add_note(f"{which}.")
            raise
        if progress is not None:
            progress(k + 1, total)
    return results
