"""Write exposures and other HDUs: atomic, with checksums and provenance."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skyloom.errors import InputError
from skyloom.exposure import BoolArray, Exposure, MaskBit
from skyloom.io.atomic import atomic_write
from skyloom.io.provenance import Provenance
from skyloom.io.quiet import quiet_astropy
from skyloom.io.wcs import header_from_wcs

# Cards that describe the old file, not the image
STRUCTURAL = re.compile(
    r"(SIMPLE|XTENSION|BITPIX|NAXIS\d*|EXTEND|NEXTEND|PCOUNT|GCOUNT|GROUPS|BSCALE|BZERO|BLANK|EXTNAME|EXTVER|EXTLEVEL|"
    r"INHERIT|CHECKSUM|DATASUM|Z(IMAGE|BITPIX|NAXIS\d*|TILE\d+|CMPTYPE|NAME\d+|VAL\d+|SCALE|ZERO|BLANK|QUANTIZ|DITHER0|"
    r"HECKSUM|DATASUM|SIMPLE|TENSION|EXTEND)|T(FIELDS|TYPE\d+|FORM\d+)|THEAP|FZ.*|DATAMIN|DATAMAX|BUNIT|CREATOR|"
    r"SLCMD|SLNIN|SL(IN|SUM|PAR|OUT)\d+|BIT\d+|END)$"
)
# Cards that a WCS writes: replaced by those of the exposure's own
WCS_CARDS = re.compile(
    r"(WCSAXES|WCSNAME|(CTYPE|CRVAL|CRPIX|CDELT|CUNIT|CROTA)\d+|(CD|PC|PV|PS)\d+_\d+|LONPOLE|LATPOLE|RADESYS|EQUINOX|EPOCH|"
    r"(A|B|AP|BP)_(ORDER|DMAX|\d+_\d+)|SIPMXERR|SIPIVERR|(CPDIS|DP|CPERR|CQDIS|DQ|CQERR|AXISCORR)\d+.*|MJDREF[IF]?)$"
)


def write_exposure(
    exposure: Exposure,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    provenance: Provenance | None = None,
    planes: Mapping[str, Any] | None = None,
    more: Sequence[Any] = (),
    blank: BoolArray | None = None,
) -> Path:
    """Write an exposure as a multi-extension FITS file: SCI, ERR and COVERAGE (if it has them), DQ, and more planes.

    Pixels without data are NaN in SCI. ERR is the square root of the variance, 0 where there is none. DQ holds the bits
    of `MaskBit`, whose names stand in its header. All HDUs carry CHECKSUM and DATASUM.

    Parameters
    ----------
    exposure : Exposure
        What to write.
    path : path-like
        File to write; its planes are compressed without loss if the name ends in ``.fz``, the whole file if in ``.gz``.
    overwrite : bool
        Replace an existing file.
    provenance : Provenance, optional
        What made the exposure.
    planes : mapping of str to array, optional
        More image extensions, by EXTNAME.
    more : sequence of HDU
        Further extensions, written as they are.
    blank : array of bool, shape (ny, nx), optional
        Pixels whose data mean nothing and that are to be NaN in SCI, besides those without data.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    WriteError
        The file exists or cannot be written; an existing one is then untouched.
    InputError
        A plane cannot be stored in FITS.
    """
    from astropy.io import fits

    compress = Path(path).suffix.lower() == ".fz"
    wcs_cards = header_from_wcs(exposure.wcs, exposure.shape)
    no_data = (exposure.mask & np.uint32(MaskBit.NO_DATA)) != 0
    unit = {"BUNIT": exposure.unit.replace("µ", "u").encode("ascii", "replace").decode()}
    science = np.where(no_data if blank is None else no_data | blank, np.nan, exposure.data)
    extensions = [_image("SCI", science.astype(exposure.data.dtype), wcs_cards, compress, unit)]
    if exposure.variance is not None:
        error = np.sqrt(exposure.variance)
        extensions.append(_image("ERR", error, wcs_cards, compress, unit))
    extensions.append(_image("DQ", exposure.mask, wcs_cards, compress, mask_cards()))
    if exposure.coverage is not None:
        extensions.append(_image("COVERAGE", exposure.coverage, wcs_cards, compress, {}))
    for name, plane in (planes or {}).items():
        extensions.append(_image(name.upper(), plane, wcs_cards, compress, {}))
    extensions.extend(more)
    with quiet_astropy():
        primary = fits.PrimaryHDU(header=primary_header(exposure, provenance))
    primary.header["NEXTEND"] = (len(extensions), "number of extensions")
    return write_hdus([primary, *extensions], path, overwrite=overwrite)


def write_hdus(hdus: Sequence[Any], path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write HDUs to a FITS file, atomic and with checksums.

    Parameters
    ----------
    hdus : sequence of HDU
        The first must be a PrimaryHDU.
    path : path-like
        File to write; compressed as a whole if the name ends in ``.gz``.
    overwrite : bool
        Replace an existing file.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    WriteError
        See `atomic_write`.
    """
    from astropy.io import fits

    with atomic_write(path, overwrite=overwrite) as temporary, quiet_astropy():
        fits.HDUList(list(hdus)).writeto(temporary, checksum=True, output_verify="silentfix+exception")
    return Path(path)


def _image(name: str, plane: Any, wcs_cards: Any, compress: bool, cards: Mapping[str, Any]) -> Any:
    """Return an image HDU with the given cards."""
    from astropy.io import fits

    plane = np.asarray(plane)
    if plane.dtype.kind == "b":
        plane = plane.astype(np.uint8)
    if plane.dtype.kind not in "iuf" or plane.dtype.itemsize > 8:
        raise InputError(f"The plane {name} is of type {plane.dtype}; FITS images hold integers or floats.", plane=name)
    if plane.dtype == np.float16:
        plane = plane.astype(np.float32)
    header = wcs_cards.copy()
    for key, value in cards.items():
        header[key] = value
    if not compress or plane.ndim != 2:
        return fits.ImageHDU(plane, header, name=name)
    # Floats are not quantised: GZIP_2 shuffles the bytes and loses nothing
    kind = "GZIP_2" if plane.dtype.kind == "f" else "RICE_1"
    return fits.CompImageHDU(plane, header, name=name, compression_type=kind, quantize_level=0.0)


def mask_cards() -> dict[str, tuple[str, str]]:
    """Return the cards that name the bits of a mask: keyword -> (name, comment)."""
    return {f"BIT{int(bit).bit_length() - 1}": (str(bit.name), f"value {int(bit)} of this plane") for bit in MaskBit}


def primary_header(exposure: Exposure, provenance: Provenance | None) -> Any:
    """Return the cards of the exposure's header that are still true, its values, and the provenance."""
    from astropy.io import fits

    header = fits.Header()
    old = exposure.header if isinstance(exposure.header, fits.Header) else _as_header(exposure.header)
    for card in old.cards:
        if not STRUCTURAL.match(card.keyword) and not WCS_CARDS.match(card.keyword):
            header.append(card, end=True)
    values = (
        ("GAIN", exposure.gain, "[electron] per unit of data"),
        ("RDNOISE", exposure.read_noise, "[electron] read noise"),
        ("SATURATE", exposure.saturation, "saturation level"),
        ("EXPTIME", exposure.exptime, "[s] exposure time"),
        ("MAGZERO", exposure.zeropoint, "[mag] of one unit of data"),
        ("CORRFAC", exposure.correlation if exposure.correlation != 1 else None, "variance factor, noise correlation"),
    )
    for key, value, comment in values:
        if value is not None:
            header[key] = (float(value), comment)
    for key, value, comment in (provenance or Provenance("write")).cards():
        if key == "HISTORY":
            header.add_history(value)
        else:
            header[key] = (value, comment)
    return header


def _as_header(mapping: Mapping[str, Any]) -> Any:
    """Return a FITS header with those items of a mapping that FITS can hold."""
    from astropy.io import fits

    header = fits.Header()
    with quiet_astropy():
        for key, value in mapping.items():
            try:
                header[key] = value
            except (ValueError, TypeError):
                continue
    return header
