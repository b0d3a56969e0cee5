"""Point spread functions: models, and their estimate from stars."""

from skyloom.psf.estimate import estimate_psf
from skyloom.psf.model import ArrayPsf, Psf, PsfModel, stamp_at, stamp_fwhm
from skyloom.psf.psfex import PsfexModel, as_psf
from skyloom.psf.shift import shift_stamp

__all__ = [
    "ArrayPsf",
    "Psf",
    "PsfModel",
    "PsfexModel",
    "as_psf",
    "estimate_psf",
    "shift_stamp",
    "stamp_at",
    "stamp_fwhm",
]
