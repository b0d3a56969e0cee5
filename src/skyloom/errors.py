"""The errors of skyloom: one tree, so that ``except SkyloomError`` catches all that bad data can cause.

Every message says what was found, what was needed and what to do. `details` holds the same facts as data.
"""

from __future__ import annotations

from typing import Any


class SkyloomError(Exception):
    """Base of all errors that skyloom raises on purpose.

    Parameters
    ----------
    message : str
        One clear sentence or two: found, needed, what to do.
    **details
        The numbers of the message, for programs.
    """

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.details = details


class InputError(SkyloomError, ValueError):
    """An argument, an option or an image cannot be used as it is."""


class ReadError(InputError, OSError):
    """A file is missing, is not FITS, is cut short, or does not match its checksum."""


class ShapeError(InputError):
    """Planes of one exposure, or two images, do not have the shapes that they need to have."""


class WcsError(InputError):
    """A world coordinate system is missing, unusable, or asks for an absurd output frame."""


class NoUsableDataError(InputError):
    """An image has no pixel (or too few) that may be used: all masked, all NaN, or no coverage."""


class WriteError(SkyloomError, OSError):
    """A result cannot be written: the file exists, the folder is missing or read-only, the disk is full."""


class RegistrationError(SkyloomError):
    """Two images cannot be registered."""


class TooFewSourcesError(RegistrationError):
    """One of the images has too few sources for the step that needs them."""


class NoMatchError(RegistrationError):
    """No transform brings the two source lists together better than chance would."""


class NoOverlapError(SkyloomError):
    """The images do not share any usable pixel."""


class SubtractionError(SkyloomError):
    """The template cannot be matched to the science image."""


class TooFewStampsError(SubtractionError, TooFewSourcesError):
    """Too few good stamps are left to fit the matching kernel."""


class TooFewPixelsError(SubtractionError, NoUsableDataError, RuntimeError):
    """Fewer pixels can be used than a fit to all pixels has unknowns."""


class SkyloomWarning(UserWarning):
    """Something that the user should know, and that does not stop the work."""
