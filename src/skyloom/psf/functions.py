"""Point spread functions as dictionaries, with the functions of ``stdpipe.psf``; no programs are run.

The keys are those of `PsfexModel.to_dict`. Positions are 0-based pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import sep
from astropy.io import fits
from astropy.table import Table
from scipy import ndimage

from skyloom.background import white_noise
from skyloom.errors import InputError, ShapeError
from skyloom.exposure import Exposure, MaskBit
from skyloom.psf.estimate import estimate_psf
from skyloom.psf.model import PsfModel
from skyloom.psf.psfex import PsfexModel
from skyloom.psf.stars import nearest, source_columns

Array = npt.NDArray[np.float64]
Verbose = bool | Callable[..., Any]

__all__ = [
    "bilinear_interpolate",
    "create_psf_model",
    "enclosed_psf_fraction",
    "get_psf_stamp",
    "get_supersampled_psf_stamp",
    "load_psf",
    "place_psf_stamp",
    "run_psfex",
    "select_psf_seeds",
]


class MissingArgumentError(InputError, TypeError):
    """An argument without default was not given."""


# --- models ---------------------------------------------------------------------------------------------------


def load_psf(filename: str, get_header: bool = False, verbose: Verbose = False) -> dict[str, Any]:
    """Return the model in a file of PSFEx as a dictionary, with its header under 'header' if asked for.

    Raises
    ------
    ReadError
        There is no such file, or it holds something else.
    """
    model = PsfexModel.read(filename)
    psf = model.to_dict()
    if get_header:
        psf["header"] = fits.getheader(filename, 1)
    _say(verbose, f"{filename}: {model!r}")
    return psf


def run_psfex(  # noqa: PLR0917  the reference's signature
    image: Any,
    mask: Any = None,
    thresh: float = 2.0,
    aper: float | None = None,
    r0: float = 0.0,  # noqa: ARG001
    gain: float | None = 1,
    minarea: int = 5,  # noqa: ARG001
    vignet_size: int | None = None,
    psf_size: int | None = None,
    order: int = 0,
    sex_extra: Mapping[str, Any] | None = None,  # noqa: ARG001
    checkimages: Any = None,
    extra: Mapping[str, Any] | None = None,  # noqa: ARG001
    psffile: str | None = None,
    get_obj: bool = False,
    _workdir: str | None = None,
    _tmpdir: str | None = None,
    _exe: str | None = None,
    _sex_exe: str | None = None,
    verbose: Verbose = False,
) -> Any:
    """Measure the point spread function of an image, see `estimate_psf`.

    Parameters
    ----------
    image : array_like, shape (ny, nx)
    mask : array_like of bool, optional
        True where a pixel is bad. So are pixels that are not finite.
    thresh : float
        Detection threshold, in units of the noise; at least 5 is used, as fainter sources make no stars.
    aper : float, optional
        Radius in pixels within which the model has unit flux; by default all of it has.
    gain : float, optional
        e-/ADU.
    vignet_size, psf_size : int, optional
        Side of the stamps, pixels; the smaller one counts.
    order : int
        Degree of the variation over the image, 0 to 2.
    psffile : str, optional
        Write the model to this file, too.
    get_obj : bool
        Return the detected objects as well.
    r0, minarea, sex_extra, extra, _workdir, _tmpdir
        Tune programs that are not run here: without effect.
    checkimages, _exe, _sex_exe
        Ask for those programs: refused.
    verbose : bool or callable

    Returns
    -------
    dict, or a list of it and a Table

    Raises
    ------
    InputError, NoUsableDataError, TooFewSourcesError
        See `estimate_psf`.
    """
    from skyloom.registration import detect_sources

    asked = {"checkimages": checkimages, "_exe": _exe, "_sex_exe": _sex_exe}
    refused = [name for name, value in asked.items() if value]
    if refused:
        raise InputError(f"{', '.join(refused)}: PSFEx and SExtractor are not run; leave these arguments out.")
    exposure = _exposure(image, mask, gain)
    objects = detect_sources(exposure, threshold=max(5.0, float(thresh)))
    sides = [int(side) for side in (vignet_size, psf_size) if side is not None]
    model = estimate_psf(exposure, objects, order=order, half=min(sides) // 2 if sides else None, fallback="moffat")
    psfex = PsfexModel.from_model(model)
    if aper is not None:
        ny, nx = exposure.shape
        inside = enclosed_psf_fraction(psfex.to_dict(), (nx - 1) // 2, (ny - 1) // 2, radius=aper)
        psfex = PsfexModel.from_dict(psfex.to_dict() | {"data": psfex.data / inside})
    if psffile is not None:
        psfex.write(psffile, overwrite=True)
    _say(verbose, f"{model!r}")
    return [psfex.to_dict(), objects] if get_obj else psfex.to_dict()


def create_psf_model(  # noqa: PLR0917  the reference's signature
    image: Any,
    obj: Any = None,
    fwhm: float | None = None,  # noqa: ARG001
    size: int | None = None,
    mask: Any = None,
    oversampling: int | None = None,
    degree: int = 0,
    regularization: float = 1e-6,  # noqa: ARG001
    subtract_neighbors: bool = True,  # noqa: ARG001
    neighbors_obj: Any = None,
    subtract_background: Any = False,  # noqa: ARG001
    isolation: float | None = 2.0,  # noqa: ARG001
    get_raw: bool = False,
    verbose: Verbose = False,
) -> Any:
    """Measure the point spread function of an image from its stars, see `estimate_psf`.

    Parameters
    ----------
    image : array_like, shape (ny, nx)
    obj : Table, optional
        Sources (columns x, y, optionally flux), of which the good stars are chosen; detected by default.
    size : int, optional
        Side of the stamps, pixels.
    mask : array_like of bool, optional
        True where a pixel is bad.
    oversampling : int, optional
        Steps per pixel of the model's image; by default 1, and more for stars narrower than 2.6 pixels.
    degree : int
        Degree of the variation over the image, 0 to 2.
    neighbors_obj : Table, optional
        All sources, if `obj` holds some of them only: neighbours are fitted and subtracted, stars chosen from `obj`.
    get_raw : bool
        Return the `PsfModel`.
    fwhm, regularization, subtract_neighbors, subtract_background, isolation
        Steps of the original that `estimate_psf` takes by itself or does not need: without effect.
    verbose : bool or callable

    Returns
    -------
    dict or PsfModel

    Raises
    ------
    InputError, NoUsableDataError, TooFewSourcesError
        See `estimate_psf`.
    """
    sources, stars = obj, None
    if obj is not None and neighbors_obj is not None:
        sources, stars = _joined(obj, neighbors_obj), obj
    elif obj is None:
        sources = neighbors_obj
    exposure = _exposure(image, mask, None)
    # without gain and sky the noise of the background is all that is known
    exposure = exposure.replace(variance=np.full(exposure.shape, white_noise(exposure) ** 2))
    model = estimate_psf(
        exposure, sources, order=degree, half=None if size is None else max(2, int(size) // 2), stars=stars
    )
    _say(verbose, f"{model!r}")
    if get_raw:
        return model
    return _oversampled(model, model.oversampling if oversampling is None else oversampling).to_dict()


def _joined(obj: Any, others: Any) -> Table:
    """Return the positions (and fluxes, if both have them) of `others`, and of what of `obj` is not among them."""
    one, two = source_columns(obj), source_columns(others)
    position = np.where(np.isfinite(one[0]) & np.isfinite(one[1]), one[:2], -1e9)
    new = nearest(position[0], position[1], others) >= 1
    return Table(
        {
            name: np.concatenate([theirs, own[new]])
            for name, own, theirs in zip(("x", "y", "flux"), one, two, strict=True)
            if own is not None and theirs is not None
        }
    )


def _oversampled(model: PsfModel, factor: int) -> PsfexModel:
    psfex = PsfexModel.from_model(model)
    if factor == model.oversampling:
        return psfex
    if not (isinstance(factor, (int, np.integer)) and factor > 0):
        raise InputError(f"oversampling is {factor!r}; a whole number above 0 is needed.")
    n = 2 * model.half * factor + 1
    axis = np.arange(n) * model.oversampling / factor
    fine = np.stack([ndimage.map_coordinates(plane, np.meshgrid(axis, axis, indexing="ij")) for plane in psfex.data])
    share = (model.oversampling / factor) ** 2
    return PsfexModel.from_dict(psfex.to_dict() | {"data": share * fine, "sampling": 1 / factor})


def _exposure(image: Any, mask: Any, gain: float | None) -> Exposure:
    exposure = Exposure(data=image, gain=gain, name="the image")
    if mask is None:
        return exposure
    bad = np.asarray(mask)
    if bad.shape != exposure.shape:
        raise ShapeError(
            f"The mask has the shape {bad.shape}; that of the image, {exposure.shape}, is needed.", found=bad.shape
        )
    return exposure.replace(mask=exposure.mask | np.where(bad != 0, np.uint32(MaskBit.BAD), np.uint32(0)))


# --- stamps ---------------------------------------------------------------------------------------------------


def get_supersampled_psf_stamp(psf: Mapping[str, Any], x: float = 0, y: float = 0, normalize: bool = True) -> Array:
    """Return the super-sampled image of a model at (x, y), shape (height, width), by default with unit sum."""
    stamp = PsfexModel.from_dict(psf).supersampled(x, y)
    return stamp / stamp.sum() if normalize else stamp


def get_psf_stamp(  # noqa: PLR0917
    psf: Mapping[str, Any],
    x: float = 0,
    y: float = 0,
    dx: float | None = None,
    dy: float | None = None,
    normalize: bool = True,
) -> Array:
    """Return the pixels of a source at (x, y).

    Parameters
    ----------
    psf : mapping
    x, y : float
        Position in the image.
    dx, dy : float, optional
        Offset of the source from the middle of the stamp; by default what is left of x and y after rounding.
    normalize : bool
        Give the stamp unit sum. Without it, what the model's image holds, over `sampling` squared.

    Returns
    -------
    ndarray, shape (2 half + 1, 2 half + 1)
    """
    model = PsfexModel.from_dict(psf)
    dx, dy = (at - round(at) if offset is None else offset for at, offset in ((x, dx), (y, dy)))
    stamp = model.raw_stamp(x, y, dx, dy)
    return stamp / stamp.sum() if normalize else stamp / model.sampling**2


def place_psf_stamp(  # noqa: PLR0917
    image: Array, psf: Mapping[str, Any], x0: float, y0: float, flux: float = 1, gain: float | None = None
) -> None:
    """Add a source to an image, in place.

    Parameters
    ----------
    image : ndarray, shape (ny, nx)
        Changed. What lies outside of it is left out.
    psf : mapping
    x0, y0, flux : float
    gain : float, optional
        e-/ADU: with it, the source has photon noise (of NumPy's global random numbers, as in the original).
    """
    stamp = flux * get_psf_stamp(psf, x0, y0)
    if gain is not None:
        electrons = np.random.poisson(np.maximum(stamp, 0) * gain)  # noqa: NPY002
        stamp = np.where(stamp > 0, electrons / gain, stamp)
    half = stamp.shape[0] // 2
    ix, iy = round(x0), round(y0)
    ny, nx = image.shape
    rows, columns = slice(max(0, iy - half), min(ny, iy + half + 1)), slice(max(0, ix - half), min(nx, ix + half + 1))
    if rows.stop > rows.start and columns.stop > columns.start:
        top, left = iy - half, ix - half
        part = stamp[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        image[rows, columns] += part.astype(image.dtype, copy=False)


def enclosed_psf_fraction(
    psf: Mapping[str, Any], x: float = 0, y: float = 0, radius: Any = None, subpixel: int = 10
) -> Any:
    """Return the part of a source's flux in a circle.

    Parameters
    ----------
    psf : mapping
    x, y : float
        Position of the source.
    radius : float or array_like
        Pixels.
    subpixel : int
        Pixels on the edge of the circle are divided into so many parts along each side; 1: by their centres.

    Returns
    -------
    float, or ndarray of the shape of `radius`
    """
    if radius is None:
        raise MissingArgumentError("radius is required: a number of pixels, or several.")
    stamp = np.ascontiguousarray(get_psf_stamp(psf, x, y))
    middle = stamp.shape[0] // 2
    radii = np.asarray(radius, np.float64)
    at = np.full(radii.size, middle + x - round(x)), np.full(radii.size, middle + y - round(y))
    sums = sep.sum_circle(stamp, *at, radii.ravel(), subpix=int(subpixel))[0].reshape(radii.shape)
    return float(sums) if radii.ndim == 0 else sums


def bilinear_interpolate(im: Any, x: Any, y: Any) -> Any:
    """Return an image's values at some positions, by bilinear interpolation; outside, those of the border."""
    return ndimage.map_coordinates(np.asarray(im, np.float64), [y, x], order=1, mode="nearest")


# --- stars ----------------------------------------------------------------------------------------------------


def select_psf_seeds(
    obj: Table,
    image_shape: tuple[int, int],
    *,
    max_per_tile: int = 25,
    grid: int | tuple[int, int] = 6,
    edge: float = 20,
    obj_col_x: str = "x",
    obj_col_y: str = "y",
    obj_col_flux: str = "flux",
    obj_col_flags: str | None = "flags",
    accept_flags: int = 0,
) -> Table:
    """Choose the brightest sources of each cell of an image.

    Parameters
    ----------
    obj : Table
    image_shape : (int, int)
        (ny, nx).
    max_per_tile : int
        Largest number of sources of a cell.
    grid : int or (int, int)
        Number of cells along x and y.
    edge : float
        Sources nearer to the border, in pixels, are left out.
    obj_col_x, obj_col_y, obj_col_flux, obj_col_flags : str
        Columns; a column of flags that is not there, or None, is not looked at.
    accept_flags : int
        Bits that a source may have.

    Returns
    -------
    Table
        Rows of `obj`, in their order.
    """
    x, y, flux = (np.asarray(obj[name], np.float64) for name in (obj_col_x, obj_col_y, obj_col_flux))
    ny, nx = image_shape
    across, down = (int(grid), int(grid)) if np.ndim(grid) == 0 else (int(n) for n in grid)  # type: ignore[union-attr, arg-type]
    good = np.isfinite(x) & np.isfinite(y) & np.isfinite(flux)
    good &= (np.nan_to_num(flux) > 0) & (x >= edge) & (x < nx - edge) & (y >= edge) & (y < ny - edge)
    if obj_col_flags is not None and obj_col_flags in obj.colnames:
        good &= (np.asarray(obj[obj_col_flags], np.int64) & ~np.int64(accept_flags)) == 0
    index = np.flatnonzero(good)
    cell = np.clip(x[index] / nx * across, 0, across - 1).astype(int)
    cell += across * np.clip(y[index] / ny * down, 0, down - 1).astype(int)
    order = np.lexsort((-flux[index], cell))
    index, cell = index[order], cell[order]
    rank = np.arange(cell.size) - np.searchsorted(cell, cell)
    return obj[np.sort(index[rank < max_per_tile])]


def _say(verbose: Verbose, text: str) -> None:
    if verbose:
        (verbose if callable(verbose) else print)(text)
