"""Point spread functions in the format of PSFEx (Bertin 2011): super-sampled pixels, polynomials of the position."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.io import fits

from skyloom.errors import InputError, ReadError, ShapeError
from skyloom.psf.model import ArrayPsf, Psf, PsfModel, Stamp
from skyloom.psf.shift import sample_matrix

_NEEDED = ("data", "sampling", "degree", "x0", "y0", "sx", "sy")


@dataclass(frozen=True, eq=False)
class PsfexModel:
    """A point spread function as PSFEx describes it.

    The pixels of a super-sampled image are polynomials ``sum_ij c_ij X^i Y^j``, i + j <= degree, of X = (x - x0) / sx
    and Y = (y - y0) / sy; coefficients are ordered by rising j, then i. The image holds the PSF with the
    blurring by the detector's pixels, so that pixels are interpolated from it and not integrated over.

    Parameters
    ----------
    data : ndarray, shape ((degree + 1) (degree + 2) / 2, height, width)
        Coefficients.
    sampling : float
        Step of the super-sampled image in pixels of the detector.
    degree : int
    x0, y0, sx, sy : float
        Zero points (0-based pixels) and scales of the positions.
    fwhm : float
        Mean FWHM of the stars, pixels.
    """

    data: npt.NDArray[np.float64]
    sampling: float = 1.0
    degree: int = 0
    x0: float = 0.0
    y0: float = 0.0
    sx: float = 1.0
    sy: float = 1.0
    fwhm: float = np.nan

    def __post_init__(self) -> None:
        data = np.array(self.data, dtype=np.float64)
        terms = (self.degree + 1) * (self.degree + 2) // 2
        if data.ndim != 3 or len(data) != terms:
            raise ShapeError(
                f"The coefficients of the PSF have the shape {data.shape}; ({terms}, height, width) is needed for "
                f"degree {self.degree}.",
                found=data.shape,
            )
        if not (np.isfinite(data).all() and data[0].sum() > 0):
            raise InputError("The coefficients of the PSF are not finite, or their sum is not above 0.")
        if not all(np.isfinite(v) and v > 0 for v in (self.sampling, self.sx, self.sy)):
            raise InputError(
                f"The PSF has the sampling {self.sampling} and the scales {self.sx}, {self.sy}; numbers above 0 "
                "are needed."
            )
        data.flags.writeable = False
        object.__setattr__(self, "data", data)

    @property
    def half(self) -> int:
        """Half size of the stamps, pixels of the detector."""
        return max(1, int(min(self.data.shape[1:]) * self.sampling / 2))

    def supersampled(self, x: float, y: float) -> Stamp:
        """Return the super-sampled image at (x, y), shape (height, width), as it is: PSFEx gives its pixels any sum."""
        X, Y = (x - self.x0) / self.sx, (y - self.y0) / self.sy
        terms = [X**i * Y**j for j in range(self.degree + 1) for i in range(self.degree + 1 - j)]
        return np.asarray(np.tensordot(terms, self.data, 1))

    def stamp_at(self, x: float, y: float, dx: float, dy: float) -> Stamp:
        """Return the PSF at (x, y), centred (dx, dy) pixels from the middle pixel, with unit sum when centred."""
        return self.raw_stamp(x, y, dx, dy) / self.raw_stamp(x, y, 0.0, 0.0).sum()

    def stamp(self, x: float, y: float) -> Stamp:
        """Return the PSF at (x, y), centred on the middle pixel, with unit sum."""
        return self.stamp_at(x, y, 0.0, 0.0)

    def raw_stamp(self, x: float, y: float, dx: float, dy: float) -> Stamp:
        """Return what the super-sampled image at (x, y) holds at the pixels of the detector, by windowed sincs."""
        fine = self.supersampled(x, y)
        axis = np.arange(-self.half, self.half + 1.0)
        rows, columns = (
            sample_matrix((axis - shift) / self.sampling + size // 2, size)
            for shift, size in zip((dy, dx), fine.shape, strict=True)
        )
        return np.asarray(rows @ fine @ columns.T)

    # --- other representations ------------------------------------------------------------------------------

    @classmethod
    def from_model(cls, model: PsfModel) -> PsfexModel:
        """Return a model of `estimate_psf` in this format, its samples with the sum 1 that PSFEx gives them."""
        ny, nx = model.shape
        powers = [(total - j, j) for total in range(model.order + 1) for j in range(total + 1)]  # of `polynomial_terms`
        wanted = [(i, j) for j in range(model.order + 1) for i in range(model.order + 1 - j)]
        sampling = 1 / model.oversampling
        data = sampling**2 * np.stack([model.basis[powers.index(power)] for power in wanted])
        middle, scale = ((nx - 1) / 2, (ny - 1) / 2), (max((nx - 1) / 2, 1), max((ny - 1) / 2, 1))
        return cls(data, sampling, model.order, *middle, *scale, fwhm=model.fwhm())

    @classmethod
    def from_dict(cls, psf: Mapping[str, Any]) -> PsfexModel:
        """Return the model that a dictionary with the keys of `to_dict` describes.

        Raises
        ------
        InputError
            A key is missing or no number.
        """
        missing = [key for key in _NEEDED if key not in psf]
        if missing:
            raise InputError(f"The PSF has no {', '.join(missing)}; the keys {', '.join(_NEEDED)} are needed.")
        try:
            numbers = {key: float(psf[key]) for key in _NEEDED if key not in {"data", "degree"}}
            data, degree = np.asarray(psf["data"], np.float64), int(psf["degree"])
        except (TypeError, ValueError) as error:
            raise InputError(f"The PSF cannot be used: {error}.") from error
        return cls(
            data[None] if data.ndim == 2 else data, degree=degree, fwhm=float(psf.get("fwhm") or np.nan), **numbers
        )

    def to_dict(self) -> dict[str, Any]:
        """Return width, height, fwhm, sampling, ncoeffs, degree, data and the zero points and scales of positions."""
        ncoeffs, height, width = self.data.shape
        return {
            "width": width,
            "height": height,
            "fwhm": self.fwhm,
            "sampling": self.sampling,
            "ncoeffs": ncoeffs,
            "degree": self.degree,
            "data": np.array(self.data),
            "x0": self.x0,
            "y0": self.y0,
            "sx": self.sx,
            "sy": self.sy,
        }

    @classmethod
    def read(cls, path: str | Path) -> PsfexModel:
        """Read a file of PSFEx (``.psf``).

        Raises
        ------
        ReadError
            There is no such file, or it holds something else.
        """
        try:
            with fits.open(path) as hdus:
                header, table = hdus[1].header, hdus[1].data
                degree = int(header["POLDEG1"]) if header.get("POLNAXIS", 0) else 0
                zero = [float(header.get(f"POLZERO{k}", 1.0)) - 1 for k in (1, 2)]  # FITS counts from 1
                scale = [float(header.get(f"POLSCAL{k}", 1.0)) for k in (1, 2)]
                data = np.asarray(table["PSF_MASK"][0], np.float64)
                sampling, fwhm = float(header["PSF_SAMP"]), float(header["PSF_FWHM"])
        except (OSError, KeyError, IndexError, TypeError, ValueError) as error:
            raise ReadError(f"{path} is no PSF model of PSFEx: {error}. Give the .psf file that it wrote.") from error
        (x0, y0), (sx, sy) = zero, scale
        return cls(data[None] if data.ndim == 2 else data, sampling, degree, x0, y0, sx, sy, fwhm)

    def write(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a file that PSFEx, SExtractor and `read` understand."""
        from skyloom.io import atomic_write

        column = fits.Column("PSF_MASK", f"{self.data.size}E", dim=str(self.data.shape[::-1]), array=self.data[None])
        hdu = fits.BinTableHDU.from_columns([column], name="PSF_DATA")
        for key, value in {
            "POLNAXIS": 2, "POLGRP1": 1, "POLNAME1": "X_IMAGE", "POLZERO1": self.x0 + 1, "POLSCAL1": self.sx,
            "POLGRP2": 1, "POLNAME2": "Y_IMAGE", "POLZERO2": self.y0 + 1, "POLSCAL2": self.sy,
            "POLNGRP": 1, "POLDEG1": self.degree, "PSF_FWHM": self.fwhm if np.isfinite(self.fwhm) else 0.0,
            "PSF_SAMP": self.sampling, "PSFNAXIS": 3, "PSFAXIS1": self.data.shape[2], "PSFAXIS2": self.data.shape[1],
            "PSFAXIS3": self.data.shape[0],
        }.items():  # fmt: skip
            hdu.header[key] = value
        with atomic_write(path, overwrite=overwrite) as temporary:
            fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(temporary, overwrite=True)
        return Path(path)

    def __repr__(self) -> str:
        size = f"half {self.half}, sampling {self.sampling:.2f}, FWHM {self.fwhm:.2f} px"
        return f"<PsfexModel degree {self.degree}, {size}>"


def as_psf(psf: Any) -> Psf:
    """Return a point spread function that the stages can use.

    Parameters
    ----------
    psf : Psf, array_like, mapping or path
        A model; an image of odd sides, centred; a dictionary as `PsfexModel.to_dict` makes it; or a file of PSFEx.

    Raises
    ------
    InputError
        It is none of these, or cannot be used.
    """
    if isinstance(psf, Mapping):
        psf = PsfexModel.from_dict(psf)
    elif isinstance(psf, (str, Path)):
        psf = PsfexModel.read(psf)
    if isinstance(psf, PsfexModel) and psf.degree == 0 and psf.sampling >= 1:
        return ArrayPsf(psf.stamp(0.0, 0.0))  # computed once, and not at every star
    if isinstance(psf, Psf):
        return psf
    if isinstance(psf, (np.ndarray, list, tuple)):
        return ArrayPsf(psf)
    raise InputError(
        f"The PSF is of type {type(psf).__name__}; a model, an array, a dictionary or the path of a .psf file is "
        "needed.",
        type=type(psf).__name__,
    )
