"""World coordinate systems out of FITS headers, ASDF extensions, and back into headers."""

from __future__ import annotations

import io
import logging
import re
import warnings
from typing import Any

from skyloom.errors import SkyloomWarning
from skyloom.io.iraf_wcs import as_tpv
from skyloom.io.keywords import hdu_name
from skyloom.io.quiet import quiet_astropy

logger = logging.getLogger("skyloom.io")

_NUMBERS = re.compile(r"(CRVAL|CRPIX|CDELT)\d+$|(CD|PC)\d+_\d+$")


def wcs_from_header(
    header: Any, hdulist: Any = None, name: str = "image", *, shape: tuple[int, int] | None = None
) -> Any:
    """Return the celestial WCS of a header, or None if it has none.

    Parameters
    ----------
    header : astropy.io.fits.Header
        Header of the image.
    hdulist : astropy.io.fits.HDUList, optional
        The file, for distortions that are tables in other extensions (HST, -TAB).
    name : str
        What warnings call the image.
    shape : (int, int), optional
        Of the image, (ny, nx): with it, TNX and ZPX distortions are understood, too.

    Returns
    -------
    astropy.wcs.WCS or None
        Two-dimensional, with SIP, TPV and table distortions. What an unreadable WCS was is told by a `SkyloomWarning`.
    """
    if not any(key.startswith("CTYPE") for key in header):
        return None
    from astropy.wcs import WCS

    try:
        with quiet_astropy():
            for key in filter(_NUMBERS.match, header):
                if not isinstance(header[key], (int, float)):  # wcslib passes over it
                    raise ValueError(f"{key} is {header[key]!r}, no number")
            if shape is not None:
                header = as_tpv(header, shape)
            wcs = WCS(header, fobj=hdulist)
            if not wcs.has_celestial:
                return None
            if wcs.naxis > 2:
                wcs = wcs.celestial
            wcs.wcs.set()
            wcs.pixel_to_world_values(0.0, 0.0)
    except Exception as error:  # noqa: BLE001  # wcslib and astropy raise a dozen types for a damaged header
        warnings.warn(
            f"The WCS of {name} cannot be used ({_first_line(error)}); the image is read without it.",
            SkyloomWarning,
            stacklevel=2,
        )
        return None
    return wcs


def wcs_from_asdf_extension(hdulist: Any, name: str = "image") -> Any:
    """Return the gwcs that JWST files keep in their ASDF extension, or None.

    None also if `asdf` or `gwcs` are not installed: the FITS header then has an approximation.
    """
    extension = next((hdu for hdu in hdulist if hdu_name(hdu) == "ASDF"), None)
    if extension is None:
        return None
    try:
        import asdf
        import gwcs  # noqa: F401  # its converters are found through entry points
    except ImportError:
        logger.info("%s has a gwcs; it is ignored because asdf and gwcs are not installed.", name)
        return None
    try:
        with quiet_astropy():
            tree = io.BytesIO(extension.data["ASDF_METADATA"].tobytes())
            with asdf.open(tree, lazy_load=False, memmap=False) as file:
                return file.tree.get("meta", {}).get("wcs")
    except Exception as error:  # noqa: BLE001  # any of the converters may fail on a damaged tree
        warnings.warn(
            f"The ASDF extension of {name} cannot be read ({_first_line(error)}); the WCS of the FITS header is used.",
            SkyloomWarning,
            stacklevel=2,
        )
        return None


def header_from_wcs(wcs: Any, shape: tuple[int, int]) -> Any:
    """Return FITS cards for any APE-14 WCS that has a FITS form; an empty header for None.

    A gwcs is approximated by a TAN projection with SIP distortion, to 0.01 pixel where that can be reached; the
    residual is written in SIPMXERR.
    """
    from astropy.io.fits import Header

    if wcs is None:
        return Header()
    if hasattr(wcs, "low_level_wcs"):
        wcs = wcs.low_level_wcs
    with quiet_astropy():
        if hasattr(wcs, "to_header"):
            return wcs.to_header(relax=True)
        if hasattr(wcs, "to_fits_sip"):
            ny, nx = shape
            box = ((-0.5, nx - 0.5), (-0.5, ny - 0.5))
            return wcs.to_fits_sip(bounding_box=box, max_pix_error=0.01, max_inv_pix_error=None)
    warnings.warn(
        f"A WCS of type {type(wcs).__name__} has no FITS form; the file is written without WCS.",
        SkyloomWarning,
        stacklevel=2,
    )
    return Header()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
