"""What can be wrong with a candidate."""

from __future__ import annotations

from enum import IntFlag


class CandidateFlag(IntFlag):
    """Reasons to doubt a candidate. One without any flag counts as real; a negative one can be real too."""

    DIPOLE = 1
    """A positive and a negative source of like flux side by side: a star that is misregistered, or that moves."""
    EDGE = 2
    """Within one FWHM of the border of the data."""
    SATURATED = 4
    """Within two FWHM of a saturated pixel of either image."""
    MASKED = 8
    """More than a fifth of the PSF's weight lies on unusable pixels."""
    BRIGHT_RESIDUAL = 16
    """No more than what bright sources of this image leave behind, in proportion to the source at this place."""
    NOT_PSF_LIKE = 32
    """The chi-square of the PSF fit is too large, its second moments are not the PSF's, or it is part of a bad row or
    column or of a trail that crosses the field."""
    TOO_SHARP = 64
    """Sharper than a point source: a cosmic ray or a hot pixel (in the template: one of the kernel's shape)."""
    UNCERTAIN = 128
    """The flux that is fitted together with its neighbours' is less than four fifths of the threshold."""
    TRAILED = 256
    """Longer than the PSF in one direction and across it no narrower, as what moves while the shutter is open."""


def flag_text(flags: int) -> str:
    """Return the names of the flags, separated by spaces; empty without any."""
    return " ".join(str(flag.name).lower() for flag in CandidateFlag if flags & flag)


def found(real: int, flagged: int) -> str:
    """Return in words how many candidates there are, and how many have flags."""
    return f"{real:,} candidate{'s' * (real != 1)} (and {flagged:,} flagged as artefact{'s' * (flagged != 1)})"
