"""A difference as one FITS file, complete enough to be searched again.

SCI (difference), ERR, DQ, SCIENCE, TEMPLATE (on the science grid), MATCHED (what was subtracted), VARTPL (the
template's part of the variance), KERNEL (a cube: one image for each term of the polynomial of position, X and Y in
units of XSCALE and YSCALE from XCENTRE and YCENTRE), PSF (see `skyloom.psf.hdu`), STAMPS (table).

The score is stored as it is, since more went into it than the other planes tell (such as the error of the sky): SCORE
(significance), FLUX, FLUXVAR (its variance), EFFVAR, COVERAGE.

A proper difference has no KERNEL, but MOVING (Z^2), and the PSFs of both images, PSFSCI and PSFTPL (SIGMA is the noise
of each), instead of that of the difference. A decorrelated difference has no KERNEL either.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from skyloom.errors import ReadError
from skyloom.exposure import UNUSABLE, Exposure, FloatArray, MaskBit

if TYPE_CHECKING:
    from skyloom.io.provenance import Input
    from skyloom.pipeline.difference import Difference
    from skyloom.subtraction import Subtraction

_EXTENSIONS = {"ERR", "DQ", "SCORE", "SCIENCE", "TEMPLATE", "MATCHED", "VARTPL", "STAMPS"}
_SCORE = {
    "SCORE": "significance",
    "FLUX": "flux",
    "FLUXVAR": "flux_variance",
    "EFFVAR": "effective_variance",
    "COVERAGE": "coverage",
    "MOVING": "moving",
}
_PSF_NODES = 5
"""Along each axis, at which a PSF that is neither an array nor a polynomial is written."""

_CARDS = {
    "method": ("METHOD", "of the subtraction"),
    "n_stamps": ("NSTAMPS", "stamps that the kernel was fitted to"),
    "kernel_sum": ("KSUM", "kernel sum"),
    "flux_scale": ("FLXSCALE", "science flux / template flux"),
    "flux_scale_error": ("FLXSCERR", "standard error of the stars' flux ratio"),
    "transparency": ("TRANSPAR", "light / what the exposure times let expect"),
    "warning": ("DIMWARN", ""),
    "limit_flux": ("LIMFLUX", "flux of a 5 sigma point source"),
    "limit_flux_template": ("LIMFLUXT", "the same in the unit of the template"),
    "limit_mag": ("LIMMAG", "[mag] the same"),
    "unit": ("FLUXUNIT", "unit of fluxes"),
    "sky_rms": ("SKYRMS", "standard deviation of SCI over sky"),
    "science_fwhm": ("FWHMSCI", "[pix] of the science image"),
    "template_fwhm": ("FWHMTPL", "[pix] of the template on its grid"),
    "usable_fraction": ("USABLE", "part of the pixels that can be used"),
    "chi2": ("STAMPCHI", "reduced chi2 of the stamps"),
    "spatial_order": ("KERORDER", "order of the kernel's variation"),
    "background_order": ("BGORDER", "order of the differential background"),
    "noise_mean": ("NOISEAVG", "mean of SCI/ERR over sky"),
    "noise_std": ("NOISESTD", "standard deviation of SCI/ERR over sky"),
    "score_std": ("SCORESTD", "standard deviation of SCORE over sky"),
    "systematic_fraction": ("SYSTERR", "fractional residual under bright stars"),
    "flux_scatter": ("FLUXSCAT", "scatter of the flux ratios of stars"),
    "registration_rms": ("REGRMS", "[pix] rms of the matched stars"),
    "registration_n": ("REGN", "matched stars"),
    "n_templates": ("NTEMPLAT", "frames of the template that were used"),
}


def write_difference(
    result: Difference,
    path: str | Path,
    *,
    overwrite: bool = False,
    inputs: Sequence[str | Path | Input] = (),
    outputs: Sequence[str | Path] = (),
) -> Path:
    """Write a difference to a FITS file, atomic, with checksums and provenance.

    Parameters
    ----------
    result : Difference
        What to write.
    path : path-like
        The file.
    overwrite : bool
        Replace it if it exists.
    inputs : sequence of path-like
        The files that went in, for the provenance.
    outputs : sequence of path-like
        What else was made of the difference, for the provenance.
    """
    from astropy.io import fits

    from skyloom.io import Provenance, write_exposure
    from skyloom.psf.hdu import psf_to_hdu
    from skyloom.stacking.files import contributions_hdu
    from skyloom.subtraction.zogy import DifferencePsf

    science = result.science
    provenance = Provenance("difference", result.parameters, inputs, outputs=outputs)
    header = dict(science.header)
    numbers = {**result.diagnostics, "method": result.method}
    for name, (keyword, comment) in _CARDS.items():
        value = numbers.get(name)
        if value is not None and (isinstance(value, str) or np.isfinite(value)):
            header[keyword] = (value, comment)
    subtraction = result.subtraction
    header["METHWHY"] = result.reason
    header["CONVOLVD"] = (subtraction.convolved, "the image that was convolved")
    header["CORRSCI"] = (subtraction.correlation_science, "noise correlation of the science image")
    header["CORRTPL"] = (subtraction.correlation_template, "noise correlation of the template")
    unusable = (result.mask & np.uint32(UNUSABLE)) != 0
    exposure = science.replace(
        data=result.image, variance=result.variance, mask=result.mask, saturation=None, header=header
    )
    planes: dict[str, Any] = {
        "SCIENCE": _with_nan(science),
        "TEMPLATE": _with_nan(result.template),
        "MATCHED": result.matched,
        "VARTPL": subtraction.variance_template,
    }
    scored = {name: getattr(result.score, plane) for name, plane in _SCORE.items()}
    planes |= {name: plane for name, plane in scored.items() if plane is not None}
    tables = [fits.BinTableHDU(result.stamps, name="STAMPS")]
    for name, frames in (("SCIFRAMES", result.science_frames), ("TPLFRAMES", result.template_frames)):
        if frames:
            tables.append(contributions_hdu(frames, name))
    if result.kernel is not None and subtraction.decorrelation is None:
        tables.append(_kernel_hdu(result.kernel.polynomial))
    proper = isinstance(result.psf, DifferencePsf)
    tables += _proper_psfs(result.psf) if proper else [psf_to_hdu(_storable(result.psf, result.shape))]
    return write_exposure(
        exposure, path, overwrite=overwrite, provenance=provenance, planes=planes, more=tables, blank=unusable
    )


def _with_nan(exposure: Exposure) -> FloatArray:
    nan = exposure.data.dtype.type(np.nan)
    return np.where(exposure.mask & np.uint32(MaskBit.NO_DATA), nan, exposure.data)


def _kernel_hdu(polynomial: Any) -> Any:
    from astropy.io import fits

    hdu = fits.ImageHDU(np.asarray(polynomial.planes, np.float64), name="KERNEL")
    for axis, at, unit in zip("XY", polynomial.centre, polynomial.scale, strict=True):
        hdu.header[f"{axis}CENTRE"] = (float(at), "[pix] origin of the polynomial")
        hdu.header[f"{axis}SCALE"] = (float(unit), "[pix] unit of the polynomial")
    return hdu


def _proper_psfs(psf: Any) -> list[Any]:
    """Return the PSFs and the noise that make the PSF of a proper difference."""
    from skyloom.psf.hdu import psf_to_hdu

    hdus = []
    for name, one, sigma in zip(("PSFSCI", "PSFTPL"), psf.psfs, psf.sigmas, strict=True):
        hdus.append(psf_to_hdu(_storable(one, psf.shape), name))
        hdus[-1].header["SIGMA"] = (sigma, "noise of the image, on the flux scale of the science image")
    for axis, value in zip("XY", psf.shift, strict=True):
        hdus[-1].header[f"SHIFT{axis}"] = (value, "[pix] by which the template was moved")
    return hdus


def _storable(psf: Any, shape: tuple[int, int]) -> Any:
    """Return a PSF of a kind that files hold: one that is no array or polynomial is sampled over the field."""
    from skyloom.psf import ArrayPsf, PsfModel
    from skyloom.psf.tiled import TiledPsf

    if isinstance(psf, (ArrayPsf, PsfModel, TiledPsf)):
        return psf
    y, x = (np.linspace(0, n - 1, _PSF_NODES) for n in shape)
    return TiledPsf([[psf.stamp(float(at_x), float(at_y)) for at_x in x] for at_y in y], x, y)


def read_difference(path: str | os.PathLike[str]) -> Difference:
    """Read a difference that `write_difference` wrote.

    Raises
    ------
    ReadError
        The file cannot be read, or is not a difference.
    """
    from skyloom.detection import Score
    from skyloom.io import read
    from skyloom.pipeline.difference import Difference

    exposure = read(path)  # checks the whole file
    planes, result, psf = _contents(path, exposure)
    from_template = (result.mask & np.uint32(MaskBit.TEMPLATE)) != 0
    science = exposure.replace(
        data=planes["SCIENCE"], variance=None, mask=np.where(from_template, np.uint32(0), result.mask)
    )
    template = Exposure(
        planes["TEMPLATE"], mask=np.where(from_template, result.mask, np.uint32(0)), wcs=exposure.wcs, name="template"
    )
    scored = Score(psf=psf, **{plane: planes[name] for name, plane in _SCORE.items() if name in planes})
    return Difference(
        image=result.image,
        variance=result.variance,
        mask=result.mask,
        score=scored,
        science=science,
        template=template,
        matched=result.matched,
        psf=psf,
        subtraction=result,
        method=exposure.header.get("METHOD", "alard-lupton"),
        reason=exposure.header.get("METHWHY", ""),
        diagnostics=result.statistics,
    )


def _contents(path: str | os.PathLike[str], exposure: Exposure) -> tuple[dict[str, FloatArray], Subtraction, Any]:
    """Return the planes, the subtraction and the PSF of a file of a difference, whose SCI, ERR and DQ are read."""
    from astropy.io import fits
    from astropy.table import Table

    from skyloom.psf.hdu import psf_from_hdu
    from skyloom.subtraction import Subtraction

    with fits.open(path, memmap=False) as hdus:
        names = {hdu.name for hdu in hdus}
        if missing := _EXTENSIONS - names:
            raise ReadError(
                f"{path} is not a difference of skyloom: it has no {', '.join(sorted(missing))}. Give a file that "
                "'skyloom difference' wrote.",
                missing=sorted(missing),
            )
        kind: Any = exposure.data.dtype
        kept = {"SCIENCE", "TEMPLATE", "MATCHED", "VARTPL", *_SCORE} & names
        planes: dict[str, FloatArray] = {name: np.asarray(hdus[name].data, kind) for name in kept}
        kernel = _kernel_of(hdus["KERNEL"]) if "KERNEL" in names else None
        needed = {*_SCORE} - {"MOVING"} if "PSF" in names else {*_SCORE, "PSFSCI", "PSFTPL"}
        if missing := needed - names:
            raise ReadError(f"{path} is not complete: it has no {', '.join(sorted(missing))}.", missing=sorted(missing))
        psf = psf_from_hdu(hdus["PSF"]) if "PSF" in names else _proper_psf(hdus, exposure.shape)
        stamps = Table(hdus["STAMPS"].data)
        mask = np.asarray(hdus["DQ"].data).astype(np.uint32)
    header = exposure.header
    variance = exposure.variance
    assert variance is not None
    result = Subtraction(
        image=exposure.data,
        variance=variance,
        variance_science=np.maximum(variance - planes["VARTPL"], 0),
        variance_template=planes["VARTPL"],
        mask=mask,
        matched=planes["MATCHED"],
        kernel=kernel,
        background=np.zeros(exposure.shape, np.float32),
        convolved=header["CONVOLVD"],
        stamps=stamps,
        statistics=read_diagnostics(header),
        correlation_science=header["CORRSCI"],
        correlation_template=header["CORRTPL"],
    )
    return planes, result, psf


def read_diagnostics(header: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the header of a difference tells of how well it went."""
    return {name: header[keyword] for name, (keyword, _) in _CARDS.items() if keyword in header}


def _kernel_of(hdu: Any) -> Any:
    from skyloom.convolution import PolynomialKernel

    cards = hdu.header
    return PolynomialKernel(
        np.asarray(hdu.data, np.float64), (cards["XCENTRE"], cards["YCENTRE"]), (cards["XSCALE"], cards["YSCALE"])
    )


def _proper_psf(hdus: Any, shape: tuple[int, int]) -> Any:
    from skyloom.psf.hdu import psf_from_hdu
    from skyloom.subtraction.zogy import DifferencePsf

    science, template = hdus["PSFSCI"], hdus["PSFTPL"]
    psfs = psf_from_hdu(science), psf_from_hdu(template)
    shift = tuple(template.header.get(f"SHIFT{axis}", 0.0) for axis in "XY")
    return DifferencePsf(psfs, science.header["SIGMA"], template.header["SIGMA"], shape, shift)
