"""Many exposures of one field into one image."""

from skyloom.stacking.coadd import coadd
from skyloom.stacking.files import read_coadd
from skyloom.stacking.options import CoaddOptions, RejectionOptions
from skyloom.stacking.result import Coadd, Contribution

__all__ = ["Coadd", "CoaddOptions", "Contribution", "RejectionOptions", "coadd", "read_coadd"]
