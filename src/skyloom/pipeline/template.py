"""What is done with the frames of a template before a science image is known, once for any number of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from skyloom.errors import InputError, NoUsableDataError
from skyloom.exposure import Exposure
from skyloom.pipeline.frames import each_usable

if TYPE_CHECKING:
    from astropy.table import Table

    from skyloom.pipeline.difference import DifferenceOptions


@dataclass(frozen=True, eq=False)
class Frame:
    """An image with its noise, and the sources that it is registered by.

    Attributes
    ----------
    exposure : Exposure
        With a variance.
    sources : Table or None
        See `skyloom.registration.detect_sources`; None where stars are not matched.
    """

    exposure: Exposure
    sources: Table | None = None

    @property
    def name(self) -> str:
        """Name of the image."""
        return self.exposure.name


@dataclass(frozen=True, eq=False)
class Template:
    """The frames of a template; `skyloom.difference` takes it in their place.

    Attributes
    ----------
    frames : tuple of Frame
        The frames that can be used.
    align : {'stars', 'wcs', 'none'}
        How they are to be aligned: only for 'stars' they have their sources,
    threshold : float
        which were detected with this one.
    """

    frames: tuple[Frame, ...]
    align: str
    threshold: float

    def frames_for(self, options: DifferenceOptions) -> tuple[Frame, ...]:
        """Return the frames for a difference.

        Raises
        ------
        InputError
            It aligns by stars, and the template was prepared without them or with others.
        """
        for what, own, needed in (
            ("align", self.align, options.align),
            ("registration.threshold", self.threshold, options.stars.threshold),
        ):
            if options.align == "stars" and own != needed:
                raise InputError(
                    f"The template was prepared with {what} = {own!r}, and the difference has {needed!r}. Give "
                    "prepare_template the options of the difference.",
                    found=own,
                    needed=needed,
                )
        return self.frames


def prepare_template(
    template: Any, options: DifferenceOptions | None = None, read: Callable[[Any], Exposure] | None = None
) -> Template:
    """Read the frames of a template, measure their noise and find their sources.

    Parameters
    ----------
    template : path, HDU, array, CCDData, NDData or Exposure, or a list of such
        The frames. One that has no usable pixel, no noise or too few stars is left out with a `SkyloomWarning`.
    options : DifferenceOptions, optional
        Those of the differences that it is for: they tell how it is aligned, and how stars are detected.
    read : callable, optional
        What makes an Exposure of a frame; `skyloom.read` by default.

    Returns
    -------
    Template

    Raises
    ------
    SkyloomError
        No frame is left, or one cannot be read.
    """
    from skyloom.pipeline.difference import DifferenceOptions

    options = options or DifferenceOptions()
    frames = prepare_frames(template, options, "Template frame", read=read)
    return Template(tuple(frames), options.align, options.stars.threshold)


def prepare_frames(
    images: Any,
    options: DifferenceOptions,
    what: str,
    stage: Callable[[str], AbstractContextManager[Any]] = nullcontext,
    read: Callable[[Any], Exposure] | None = None,
) -> list[Frame]:
    """Return the usable ones of some images as frames; `what` they are is for the warnings about others."""
    from skyloom import io
    from skyloom.io.reader import named
    from skyloom.noise import with_variance

    role, found = what.split(maxsplit=1)[0].lower(), as_list(images)
    called = [named(one, role if len(found) == 1 else f"{role} {k}") for k, one in enumerate(found, 1)]
    with stage("reading"):
        exposures = each_usable(called, read or io.read, what)
    with stage("measuring noise"):
        exposures = each_usable(exposures, with_variance, what)
    with stage("finding sources"):
        return each_usable(exposures, lambda one: find_stars(one, options), what)


def find_stars(exposure: Exposure, options: DifferenceOptions) -> Frame:
    """Return an image with the sources that it will be registered by, if it will."""
    from skyloom.registration import detect_sources

    if options.align != "stars":
        return Frame(exposure)
    sources = detect_sources(exposure, threshold=options.stars.threshold)
    sources.meta["wcs"] = exposure.wcs
    return Frame(exposure, sources)


def without_science(template: Template, science: Exposure) -> Template:
    """Return a template without the frames that are the science image: it would be subtracted from itself."""

    def check(frame: Frame) -> Frame:
        if np.array_equal(frame.exposure.data, science.data):
            raise NoUsableDataError(
                f"The template {frame.name} and the science image {science.name} are the same image: all pixels are "
                "equal, and their difference would be 0. Give another template.",
                name=frame.name,
            )
        return frame

    return replace(template, frames=tuple(each_usable(template.frames, check)))


def as_list(images: Any) -> Sequence[Any]:
    """Return one image, or a list or tuple of images, as a sequence."""
    found = list(images) if isinstance(images, (list, tuple)) and not hasattr(images, "info") else [images]
    if not found:
        raise InputError("The list of images is empty; give at least one science image and one template.")
    return found
