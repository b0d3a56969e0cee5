"""Files in and out: read any FITS image as an `Exposure`, write results that are complete or absent.

astropy is imported when the first file is read or written, not before.
"""

from skyloom.io.atomic import atomic_write, check_not_input, check_writable
from skyloom.io.ccddata import from_ccddata, to_ccddata
from skyloom.io.provenance import Provenance, read_provenance
from skyloom.io.reader import read
from skyloom.io.writer import write_exposure, write_hdus

__all__ = [
    "Provenance",
    "atomic_write",
    "check_not_input",
    "check_writable",
    "from_ccddata",
    "read",
    "read_provenance",
    "to_ccddata",
    "write_exposure",
    "write_hdus",
]
