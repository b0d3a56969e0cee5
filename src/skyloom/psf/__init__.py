"""Point spread functions: models, and their estimate from stars."""

from skyloom.psf.estimate import estimate_psf
from skyloom.psf.model import ArrayPsf, Psf, PsfModel, stamp_fwhm
from skyloom.psf.shift import shift_stamp

__all__ = ["ArrayPsf", "Psf", "PsfModel", "estimate_psf", "shift_stamp", "stamp_fwhm"]
