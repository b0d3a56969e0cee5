"""`Exposure` from and to astropy's CCDData."""

from __future__ import annotations

from typing import Any

import numpy as np

from skyloom.errors import InputError
from skyloom.exposure import UNUSABLE, Exposure
from skyloom.io.keywords import detector_values, unit_text


def from_ccddata(ccd: Any) -> Exposure:
    """Return an `Exposure` with the planes of an NDData object.

    Parameters
    ----------
    ccd : astropy.nddata.NDData
        CCDData or any other; the header in ``meta`` is searched for gain, read noise, saturation and exposure time.

    Returns
    -------
    Exposure

    Raises
    ------
    InputError
        Its data are no real image, or its uncertainty is of an unknown type.
    """
    return Exposure(**ccddata_fields(ccd))


def ccddata_fields(ccd: Any) -> dict[str, Any]:
    """Return the fields of the `Exposure` that an NDData object becomes."""
    header = dict(ccd.meta.items()) if ccd.meta is not None else {}
    if ccd.unit is not None:
        header["BUNIT"] = unit_text(ccd.unit)
    mask = ccd.mask if ccd.mask is not None and np.ndim(ccd.mask) else None
    if mask is not None and np.asarray(mask).dtype.kind not in "biu":
        mask = np.asarray(mask) != 0
    return {
        "data": np.asarray(ccd.data),
        "variance": _variance(ccd),
        "mask": mask,
        "wcs": ccd.wcs,
        "psf": getattr(ccd, "psf", None),
        "header": ccd.meta if ccd.meta is not None else {},
        "name": str(header.get("FILENAME", type(ccd).__name__)),
        **detector_values((header,)),
    }


def _variance(ccd: Any) -> Any:
    """Return the variance plane, in the unit of the data squared."""
    uncertainty = ccd.uncertainty
    if uncertainty is None:
        return None
    kind = uncertainty.uncertainty_type
    array = np.asarray(uncertainty.array, dtype=np.float64)
    if uncertainty.unit is not None and ccd.unit is not None:
        power = {"std": 1, "var": 2, "ivar": -2}.get(kind, 1)
        array = array * uncertainty.unit.to(ccd.unit**power)
    with np.errstate(all="ignore"):
        if kind == "std":
            return np.where(array > 0, array**2, 0.0)
        if kind == "var":
            return array
        if kind == "ivar":
            return np.where(array > 0, 1.0 / array, 0.0)
    raise InputError(
        f"The uncertainty is of type {kind!r}; StdDevUncertainty, VarianceUncertainty or InverseVariance is needed.",
        kind=kind,
    )


def to_ccddata(exposure: Exposure) -> Any:
    """Return an exposure as ``astropy.nddata.CCDData``, with the variance as VarianceUncertainty.

    Parameters
    ----------
    exposure : Exposure
        The image.

    Returns
    -------
    astropy.nddata.CCDData
        Its mask is True where the exposure is not usable; ``flags`` holds the bits of `MaskBit`.
    """
    from astropy import units
    from astropy.nddata import CCDData, VarianceUncertainty

    unit = units.Unit(exposure.unit, parse_strict="silent")
    variance = None if exposure.variance is None else VarianceUncertainty(np.array(exposure.variance))
    mask = (exposure.mask & np.uint32(UNUSABLE)) != 0
    return CCDData(
        np.array(exposure.data),
        unit=unit,
        uncertainty=variance,
        mask=mask,
        flags=np.array(exposure.mask),
        wcs=exposure.wcs,
        psf=exposure.psf,
        meta=_meta(exposure),
    )


def _meta(exposure: Exposure) -> dict[str, Any]:
    """Return the header, with the values of the exposure under their usual keywords."""
    known = {
        "GAIN": exposure.gain,
        "RDNOISE": exposure.read_noise,
        "SATURATE": exposure.saturation,
        "EXPTIME": exposure.exptime,
        "MAGZERO": exposure.zeropoint,
    }
    meta = dict(exposure.header.items())
    meta.update({key: value for key, value in known.items() if value is not None})
    return meta
