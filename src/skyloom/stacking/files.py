"""Co-adds in FITS files: written in one go or row by row, read back, and extended."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from skyloom.errors import InputError, SkyloomError, SkyloomWarning, WriteError
from skyloom.exposure import MaskBit
from skyloom.resampling.correlation import CovarianceMap
from skyloom.stacking.memory import Plane, Window
from skyloom.stacking.options import CoaddOptions, RejectionOptions
from skyloom.stacking.result import Coadd, Contribution, plain_options

_COLUMNS = {
    "name": "NAME",
    "exptime": "EXPTIME",
    "scale": "SCALE",
    "factor": "FACTOR",
    "sky": "SKY",
    "n_rejected": "NREJECT",
    "weight": "WEIGHT",
    "gain": "GAIN",
    "correlation": "CORR",
    "level": "LEVEL",
    "fwhm": "FWHM",
    "n_stars": "NSTARS",
}


def write_coadd(
    coadd: Coadd, path: str | os.PathLike[str], *, overwrite: bool, inputs: Sequence[str | os.PathLike[str]]
) -> Path:
    """Write a co-add, see `Coadd.write`: the planes go row by row, so that they need not be in memory."""
    from skyloom.io import Provenance, write_exposure

    provenance = Provenance("coadd", {"options": plain_options(coadd.options)}, inputs)
    more = _tables(coadd)
    if Path(path).suffix.lower() in (".gz", ".fz"):
        return write_exposure(
            coadd.exposure,
            path,
            overwrite=overwrite,
            provenance=provenance,
            planes={"WHT": coadd.weight, "CTX": coadd.context, "EXPTIME": coadd.exptime_map},
            more=more,
        )
    from astropy.io import fits

    from skyloom.io.quiet import quiet_astropy
    from skyloom.io.stream import write_streamed
    from skyloom.io.writer import primary_header

    values: dict[str, Any] = {"read_noise": None, "saturation": None, **coadd.fields}
    with quiet_astropy():
        primary = fits.PrimaryHDU(header=primary_header(SimpleNamespace(**values), provenance))  # type: ignore[arg-type]
    images = _images(coadd)
    primary.header["NEXTEND"] = (len(images) + len(more), "number of extensions")
    return write_streamed(primary, images, more, path, overwrite=overwrite)


def _images(coadd: Coadd) -> list[Any]:
    """Return the image extensions."""
    from astropy.io import fits

    from skyloom.io.stream import StreamedImage
    from skyloom.io.wcs import header_from_wcs
    from skyloom.io.writer import mask_cards

    planes, wcs = coadd.planes, header_from_wcs(coadd.wcs, coadd.shape)
    width = slice(0, coadd.shape[1])
    unit = {"BUNIT": str(coadd.fields["unit"]).replace("µ", "u").encode("ascii", "replace").decode()}

    def rows(name: str) -> Any:
        def read(plane: int, start: int, stop: int) -> npt.NDArray[Any]:
            values = planes[name].read((slice(start, stop), width))
            return values[plane] if values.ndim == 3 else values

        return read

    def science(_: int, start: int, stop: int) -> npt.NDArray[Any]:
        window = slice(start, stop), width
        no_data = (planes["DQ"].read(window) & np.uint32(MaskBit.NO_DATA)) != 0
        values = planes["SCI"].read(window)
        return np.where(no_data, values.dtype.type(np.nan), values)

    def error(_: int, start: int, stop: int) -> npt.NDArray[Any]:
        return np.sqrt(planes["VAR"].read((slice(start, stop), width)))

    extensions: list[tuple[str, str, Any, Mapping[str, Any]]] = [
        ("SCI", "SCI", science, unit),
        ("ERR", "VAR", error, unit),
        ("DQ", "DQ", rows("DQ"), mask_cards()),
        *((name, name, rows(name), {}) for name in ("WHT", "CTX", "EXPTIME")),
    ]
    result = []
    for name, plane, read, values in extensions:
        cards = fits.Header(wcs, copy=True)
        for key, value in values.items():
            cards[key] = value
        result.append(StreamedImage(name, planes[plane].shape, planes[plane].dtype, read, cards))
    return result


def _tables(coadd: Coadd) -> list[Any]:
    """Return the small extensions: INPUTS, COVAR, PSF."""
    from skyloom.psf.hdu import psf_to_hdu

    hdus = [contributions_hdu(coadd.contributions, "INPUTS")]
    if coadd.covariance is not None:
        hdus.append(coadd.covariance.to_hdu())
    psf = coadd.psf
    if psf is not None:
        hdus.append(psf_to_hdu(psf))
    return hdus


def contributions_hdu(contributions: Sequence[Contribution], name: str) -> Any:
    """Return the table of what exposures bring."""
    from astropy.io import fits
    from astropy.table import Table

    columns = {column: [getattr(one, key) for one in contributions] for key, column in _COLUMNS.items()}
    columns["NAME"] = [one.name.encode("unicode_escape").decode("ascii") for one in contributions]
    return fits.BinTableHDU(Table(columns), name=name)


class _FitsPlane(Plane):
    """A plane of a FITS file that is not compressed, read by windows."""

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any], what: str) -> None:
        super().__init__(path, shape, np.uint32 if what == "DQ" else dtype.newbyteorder("="))
        self._offset, self._stored, self._what = offset, dtype, what

    def read(self, window: Window | None = None) -> npt.NDArray[Any]:
        """Return the values of a window."""
        assert isinstance(self._store, Path)
        array = np.memmap(self._store, self._stored, "r", self._offset, self.shape)
        return _unpacked(np.array(array if window is None else array[(..., *window)], self._stored), self._what)

    def write(self, window: Window, values: npt.ArrayLike) -> None:  # noqa: ARG002
        """Refuse: a finished file is not changed."""
        raise WriteError(f"{self._store} is a finished file, which is not changed. Write a new one.")


def _unpacked(stored: npt.NDArray[Any], what: str) -> npt.NDArray[Any]:
    """Return what the values of an extension mean: a variance for ERR, bits for DQ, 0 in place of NaN."""
    values = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    if what == "DQ":
        return values.view(np.uint32) ^ np.uint32(2**31)
    if what == "SCI":
        return np.where(np.isnan(values), values.dtype.type(0), values)
    return values * values if what == "ERR" else values


def read_coadd(path: str | os.PathLike[str], *, verify: bool = True) -> Coadd:
    """Open a co-add that `Coadd.write` has written; its planes are read when they are asked for.

    Parameters
    ----------
    path : path-like
        FITS file.
    verify : bool
        Compare it with its checksums.

    Returns
    -------
    Coadd

    Raises
    ------
    ReadError
        The file cannot be read, or is damaged.
    InputError
        It is no co-add.
    """
    from skyloom.io import read_provenance
    from skyloom.io.fits_file import FitsFile, path_of
    from skyloom.io.keywords import hdu_name
    from skyloom.io.wcs import wcs_from_header
    from skyloom.psf.hdu import psf_from_hdu

    place = path_of(path)
    with FitsFile(place, place.name, verify) as file:
        provenance = read_provenance(file.hdulist[0].header)
        index = {hdu_name(hdu): number for number, hdu in enumerate(file.hdulist)}
        missing = {"SCI", "ERR", "DQ", "WHT", "CTX", "EXPTIME", "INPUTS"} - set(index)
        if provenance is None or provenance.command != "coadd" or missing:
            raise InputError(
                f"{place.name} is no co-add that can be extended{_lacks(missing)}; give a file that `skyloom coadd` "
                "has written.",
                path=str(path),
            )
        file.check_extensions(complete=True)
        file.check_sums(range(len(file.hdulist)))
        planes = {
            ("VAR" if name == "ERR" else name): _plane(place, file.hdulist[index[name]], name)
            for name in ("SCI", "ERR", "DQ", "WHT", "CTX", "EXPTIME")
        }
        contributions = read_contributions(file.hdulist[index["INPUTS"]].data)
        covariance = CovarianceMap.from_hdu(file.hdulist[index["COVAR"]]) if "COVAR" in index else None
        psf = psf_from_hdu(file.hdulist[index["PSF"]]) if "PSF" in index else None
        primary, science = file.hdulist[0].header, file.hdulist[index["SCI"]].header
        fields = {
            "wcs": wcs_from_header(science, file.hdulist, place.name),
            "gain": primary.get("GAIN"),
            "exptime": primary.get("EXPTIME"),
            "zeropoint": primary.get("MAGZERO"),
            "correlation": primary.get("CORRFAC", 1.0),
            "unit": science.get("BUNIT", "adu"),
            "header": {key: primary[key] for key in ("NCOMBINE", "TEXPTIME") if key in primary},
            "name": place.name,
        }
    options = _options(provenance.parameters.get("options", {}))
    return Coadd(planes, fields, contributions, options, covariance, psf, place)


def _lacks(missing: set[str]) -> str:
    return f" (it has no {', '.join(sorted(missing))})" if missing else ""


def _plane(path: Path, hdu: Any, name: str) -> Plane:
    from astropy.io import fits

    header = hdu.header
    shape = tuple(int(header[f"NAXIS{axis}"]) for axis in range(header["NAXIS"], 0, -1))
    with path.open("rb") as file:
        plain = file.read(6) == b"SIMPLE"
    if plain and not isinstance(hdu, fits.CompImageHDU):
        kind = {-32: ">f4", -64: ">f8", 32: ">u4" if name == "DQ" else ">i4"}[header["BITPIX"]]
        return _FitsPlane(path, hdu.fileinfo()["datLoc"], shape, np.dtype(kind), name)
    values = np.asarray(hdu.data)
    if name == "DQ":
        return Plane(values.astype(np.uint32))
    return Plane(_unpacked(np.array(values), name))


def read_contributions(table: Any) -> tuple[Contribution, ...]:
    """Return what the table of `contributions_hdu` says."""
    plain: dict[str, Any] = {"name": lambda v: str(v).encode("ascii").decode("unicode_escape")}
    plain |= {"n_rejected": int, "n_stars": int, "sky": lambda v: tuple(float(x) for x in v)}
    known = {key: column for key, column in _COLUMNS.items() if column in table.names}  # older files have fewer
    return tuple(
        Contribution(**{key: plain.get(key, float)(row[column]) for key, column in known.items()}) for row in table
    )


def _options(parameters: Mapping[str, Any]) -> CoaddOptions:
    """Return the options that a file carries."""
    values = dict(parameters)
    rejection: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in values.pop("rejection", {}).items()
    }
    if isinstance(values.get("flux_scale"), list):
        values["flux_scale"] = tuple(values["flux_scale"])
    try:
        return CoaddOptions(**values | {"memory": None, "overwrite": False}, rejection=RejectionOptions(**rejection))
    except (TypeError, SkyloomError):
        warnings.warn(
            "The options of the co-add are those of another version of skyloom; the defaults are taken for them.",
            SkyloomWarning,
            stacklevel=3,
        )
        return CoaddOptions()
