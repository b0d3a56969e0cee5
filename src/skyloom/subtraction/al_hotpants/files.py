"""Files that HOTPANTS writes, for the options that ask for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from skyloom.errors import WriteError
from skyloom.subtraction.al_hotpants.native import HotpantsResult
from skyloom.subtraction.al_hotpants.options import HotpantsOptions


def write_files(result: HotpantsResult, options: HotpantsOptions) -> None:
    """Write the files that `options` names: outim, omi, oni, ond, oci, oki, savexy.

    `outim` has the difference and, with nim, ndm, cim or allm, the layers that HOTPANTS adds, in its order; with hki
    the kernel's table comes last.

    Raises
    ------
    WriteError
        A file exists and `nc` is set, or it cannot be written.
    """
    header = result.header
    noise = (options.nsht, options.nbs, options.nbz)
    scale = (options.sht, options.obs, options.obz)
    if options.outim is not None:
        hdus = [_image(result.diff, header, scale)]
        layers = (
            (options.cim, result.convolved, "Convolved Image", scale),
            (
                options.ndm,
                result.scaled if options.ndm or options.allm else None,
                "Noise-scaled (sigma) Difference Image",
                scale,
            ),
            (options.nim, result.noise, "HOTPanTS Noise Image", noise),
        )
        for wanted, plane, name, scaling in layers:
            if (wanted or options.allm) and plane is not None:
                hdus.append(_image(plane, fits.Header([("OBJECT", name)]), scaling, primary=False))
        if options.hki:
            hdus.append(fits.table_to_hdu(result.kernel.to_table()))
        _write(fits.HDUList(hdus), options.outim, options)
    files: tuple[tuple[Any, Any, tuple[bool, float, float]], ...] = (
        (options.omi, result.mask, (False, 1, 0)),
        (options.oni, result.noise, noise),
        (options.ond, None if options.ond is None else result.scaled, scale),
        (options.oci, result.convolved, scale),
    )
    for path, plane, scaling in files:
        if path is not None and plane is not None:
            _write(fits.HDUList([_image(plane, header, scaling)]), path, options)
    if options.oki is not None:
        _refuse(options.oki, options)
        result.kernel.write(options.oki)
    if options.savexy is not None:
        _refuse(options.savexy, options)
        side = 2 * options.rss + 1
        lines = ["image"] + [f"box({row['x'] + 1},{row['y'] + 1},{side},{side})" for row in result.stamps]
        Path(options.savexy).write_text("\n".join(lines) + "\n")


def _image(plane: Any, header: fits.Header, scaling: tuple[bool, float, float], primary: bool = True) -> Any:
    """Return an image extension, of 16-bit integers with BSCALE and BZERO if that is asked for."""
    hdu = (fits.PrimaryHDU if primary else fits.ImageHDU)(np.array(plane), header)
    if scaling[0]:
        hdu.scale("int16", bscale=scaling[1], bzero=scaling[2])
    return hdu


def _refuse(path: Any, options: HotpantsOptions) -> None:
    if options.nc and Path(path).exists():
        raise WriteError(f"{path} exists, and the option nc forbids to overwrite it. Remove it, or leave nc out.")


def _write(hdus: fits.HDUList, path: Any, options: HotpantsOptions) -> None:
    _refuse(path, options)
    try:
        hdus.writeto(path, overwrite=True)
    except OSError as error:
        raise WriteError(f"{path} cannot be written: {error}") from error
