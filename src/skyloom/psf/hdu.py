"""Point spread functions in FITS files."""

from __future__ import annotations

from typing import Any

import numpy as np

from skyloom.errors import InputError
from skyloom.psf.model import ArrayPsf, PsfModel
from skyloom.psf.tiled import TiledPsf


def psf_to_hdu(psf: Any, name: str = "PSF") -> Any:
    """Return a PSF as a FITS image: a cube of the basis images of a `PsfModel`, or of the stamps of a `TiledPsf`.

    PSFKIND is 'POLYNOMIAL' (the terms of `polynomial_terms`, of degree PSFORDER, for an image of PSFNX x PSFNY pixels,
    with PSFSAMP samples per pixel; the stamp of an `ArrayPsf` is of degree 0) or 'TILES' (nodes at PSFXk, PSFYk, x
    fastest).

    Raises
    ------
    InputError
        It is of another kind.
    """
    from astropy.io import fits

    header = fits.Header()
    header["EXTNAME"] = name
    if isinstance(psf, TiledPsf):
        header["PSFKIND"] = "TILES"
        for axis, nodes in (("X", psf.x), ("Y", psf.y)):
            header[f"PSFN{axis}"] = (len(nodes), f"nodes along {axis.lower()}")
            for k, value in enumerate(nodes, 1):
                header[f"PSF{axis}{k}"] = float(value)
        side = psf.stamps.shape[-1]
        return fits.ImageHDU(psf.stamps.reshape(-1, side, side), header)
    if isinstance(psf, ArrayPsf):
        psf = PsfModel(psf.stamp(0, 0)[None], 0, (1, 1))
    if not isinstance(psf, PsfModel):
        raise InputError(f"A {type(psf).__name__} cannot be written as a PSF; a PsfModel or TiledPsf is needed.")
    header["PSFKIND"] = "POLYNOMIAL"
    header["PSFORDER"] = (psf.order, "degree")
    header["PSFNY"], header["PSFNX"] = psf.shape
    header["PSFSAMP"] = (psf.oversampling, "samples per pixel along each side")
    header["PSFSTARS"] = (psf.n_stars, "stars that it was measured from")
    header["PSFFWHM"] = (psf.fwhm(), "[pix] at the middle")
    return fits.ImageHDU(np.array(psf.basis), header)


def psf_from_hdu(hdu: Any) -> PsfModel | TiledPsf:
    """Read what `psf_to_hdu` has written.

    Raises
    ------
    InputError
        The HDU holds something else.
    """
    try:
        header, cube = hdu.header, np.asarray(hdu.data, np.float64)
        if header["PSFKIND"] == "TILES":
            x, y = ([header[f"PSF{a}{k}"] for k in range(1, header[f"PSFN{a}"] + 1)] for a in "XY")
            return TiledPsf(cube.reshape(len(y), len(x), *cube.shape[1:]), x, y)
        shape, oversampling = (header["PSFNY"], header["PSFNX"]), header.get("PSFSAMP", 1)
        return PsfModel(cube, header["PSFORDER"], shape, header["PSFSTARS"], oversampling=oversampling)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"This HDU is no PSF of skyloom: {error}. Give the one that psf_to_hdu() made.") from None
