"""`read`: any image of an astronomer becomes an `Exposure`."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from skyloom.background import MAD_TO_SIGMA
from skyloom.errors import InputError, NoUsableDataError, ReadError, SkyloomWarning
from skyloom.exposure import Exposure, MaskBit
from skyloom.io.ccddata import ccddata_fields
from skyloom.io.fits_file import FitsFile, describe, image_shape, path_and_extension
from skyloom.io.keywords import as_number, card, detector_values, hdu_name, hdu_version, plane_name, unit_text
from skyloom.io.profiles import GENERIC, SKYLOOM, Profile, mask_bits, profile_for
from skyloom.io.quiet import quiet_astropy
from skyloom.io.wcs import wcs_from_asdf_extension, wcs_from_header

logger = logging.getLogger("skyloom.io")

PILED_PIXELS = 8
"""Fewer pixels of one value are no plateau."""
PILED_RANGE = 0.05
"""Part of the range from the sky to the highest value in which fewer pixels than at the plateau must lie."""
PILED_ABOVE_SKY = 50.0
"""Deviations of the sky."""
ROLES = ("error", "variance", "inverse_variance", "weight", "quality")
OTHER_PLANES = {
    "WT",
    "CTX",
    "CON",
    "CONTEXT",
    "EXP",
    "EXPMAP",
    "SAMP",
    "TIME",
    "AREA",
    "HDRTAB",
}
"""Extensions that are never the image itself, besides those of the roles."""


def read(
    source: Any,
    *,
    ext: int | str | tuple[str, int] | None = None,
    mask: Any = None,
    gain: float | None = None,
    read_noise: float | None = None,
    saturation: float | None = None,
    exptime: float | None = None,
    verify: bool = True,
) -> Exposure:
    """Read an image, with all planes and values that belong to it.

    Parameters
    ----------
    source : path, HDU, HDUList, array, CCDData, NDData or Exposure
        The image. FITS files may be compressed (.fz, .gz, .bz2, .xz).
    ext : int, str or (str, int), optional
        Which HDU of a FITS file holds the image: number, EXTNAME, or EXTNAME and EXTVER. Needed only where a file holds
        several images; the planes that belong to it (ERR, DQ, ...) are found by themselves.
    mask : path or array of bool or int, shape (ny, nx), or False, optional
        More pixels to mask: booleans (True is bad), bits of `MaskBit`, or a FITS file with a quality plane. False: use
        no mask at all, not even the file's own.
    gain : float, optional
        Electrons per unit of data. This and the next three: instead of what the header says.
    read_noise : float, optional
        Electrons.
    saturation : float, optional
        Data at or above this value are saturated.
    exptime : float, optional
        Seconds.
    verify : bool
        Compare FITS files with the checksums that they carry, and with the number of extensions that they promise.

    Returns
    -------
    Exposure

    Raises
    ------
    ReadError
        The file is missing, not FITS, cut short, damaged, does not match its checksum, or has no such image.
    InputError
        The source is of a type that cannot be read, holds several images, or a value makes no sense.
    NoUsableDataError
        No pixel of the image can be used.
    """
    if isinstance(source, NamedArray):
        source, name = source.array, source.name
    else:
        name = "array"
    given = {"gain": gain, "read_noise": read_noise, "saturation": saturation, "exptime": exptime}
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if mask is False:
        changes["mask"] = None
    if isinstance(source, Exposure):
        exposure = source.replace(**changes) if changes else source
    else:
        fields = _fields_of(source, ext, verify, name) | changes
        exposure = Exposure(**fields | {"data": np.ma.getdata(fields["data"]) if mask is False else fields["data"]})
    if mask is not None and mask is not False:
        exposure = exposure.replace(mask=exposure.mask | _extra_mask(mask, exposure, verify))
    if not exposure.usable.any():
        raise NoUsableDataError(
            f"No pixel of {exposure.name} can be used: {_why_unusable(exposure)}. Check the file and its mask.",
            name=exposure.name,
        )
    return exposure


class NamedArray(NamedTuple):
    """An array, and what messages call it."""

    array: Any
    name: str


def named(source: Any, name: str) -> Any:
    """Return an array with a name, for `read`; anything else has one, and is returned as it is."""
    return NamedArray(source, name) if isinstance(source, np.ndarray) else source


def _fields_of(source: Any, ext: Any, verify: bool, name: str) -> dict[str, Any]:
    """Return the fields of the exposure that `source` becomes, by its type."""
    if isinstance(source, str | os.PathLike):
        path, bracket = path_and_extension(source)
        if bracket is not None and ext is not None:
            raise InputError(f"{path.name} has the extension {bracket} in its name, and ext is {ext!r}; give one.")
        return _fields_of_path(path, ext if bracket is None else bracket, verify)
    # whoever passes an astropy object has imported its module already
    fits = sys.modules.get("astropy.io.fits")
    if fits is not None and isinstance(source, fits.HDUList):
        name = Path(source.filename() or "HDUList").name
        return _fields_of_file(FitsFile(source, name, verify=False), ext, None)
    if fits is not None and isinstance(
        source, fits.PrimaryHDU | fits.ImageHDU | fits.CompImageHDU | fits.BinTableHDU | fits.TableHDU
    ):
        name = hdu_name(source) or "HDU"
        return _fields_of_file(FitsFile(fits.HDUList([source]), name, verify=False), 0, None)
    nddata = sys.modules.get("astropy.nddata")
    if nddata is not None and isinstance(source, nddata.NDData):
        return ccddata_fields(source)
    if isinstance(source, bytes | bytearray | memoryview | dict | set) or source is None:
        raise InputError(
            f"A {type(source).__name__} is no image; give a path, an array, an HDU, or a CCDData.",
            type=type(source).__name__,
        )
    return _fields_of_array(source, name)


def _fields_of_array(source: Any, name: str) -> dict[str, Any]:
    """Read a plain, masked or Quantity array."""
    unit = getattr(source, "unit", None)
    try:
        data = source if isinstance(source, np.ma.MaskedArray) else np.asarray(getattr(source, "value", source))
    except (TypeError, ValueError) as error:
        raise InputError(f"A {type(source).__name__} cannot be read as an image: {error}.") from error
    level = pile_up_level(np.ma.getdata(data))
    return {"data": data, "unit": unit_text(unit), "name": name, "saturation": level}


def _fields_of_path(path: Path, ext: Any, verify: bool) -> dict[str, Any]:
    if path.suffix.lower() == ".asdf" and path.is_file():
        from skyloom.io.asdf_file import asdf_fields

        return asdf_fields(path)
    with FitsFile(path, path.name, verify) as file:
        return _fields_of_file(file, ext, path)


def _fields_of_file(file: FitsFile, ext: Any, path: Path | None) -> dict[str, Any]:
    """Put the planes of a FITS file together."""
    from astropy.io.fits import VerifyError

    hdulist = file.hdulist
    primary = hdulist[0].header
    with quiet_astropy(), suppress(VerifyError):
        # astropy parses a card, and puts together the header of a compressed image, when it is first asked for, and
        # warns then
        for hdu in hdulist:
            list(hdu.header.values())
    profile = profile_for(tuple(hdu.header for hdu in hdulist[:2]))
    file.check_extensions(profile.complete)
    index = _find(file, ext) if ext is not None else _choose(file, profile)
    # The keywords of the primary HDU are used, too. And a file of one image is checked as a whole: the name of an
    # extension may be what is damaged.
    file.check_sums(range(len(hdulist)) if ext is None else {0, index})
    header = merged_header(hdulist[index].header, primary)
    data = file.plane(index)
    planes = _companions(file, index, profile)
    if path is not None:
        planes = {**_siblings(path, ext, profile, file, data.shape), **planes}
    values = detector_values((hdulist[index].header, primary))
    if pattern := str(card(header, "BAYERPAT") or "").strip():
        warnings.warn(
            f"{file.name} is a mosaic of colour filters (BAYERPAT is {pattern}): neighbouring pixels differ, and so "
            "will its results. Split it into one image for each colour before.",
            SkyloomWarning,
            stacklevel=4,
        )
    if values["saturation"] is None and "quality" not in planes:
        values["saturation"] = pile_up_level(data)
    if profile is SKYLOOM:
        values["correlation"] = as_number(primary, "CORRFAC") or 1.0
    wcs = wcs_from_asdf_extension(hdulist, file.name)
    return {
        "data": data,
        "variance": _variance(planes, file.name),
        "mask": _mask(planes),
        "wcs": wcs if wcs is not None else wcs_from_header(header, hdulist, file.name, shape=data.shape),
        "header": header,
        "name": file.name,
        **values,
    }


def merged_header(header: Any, primary: Any) -> Any:
    """Return a copy of an extension's header with the primary header's other cards behind it."""
    merged = header.copy(strip=False)
    if header is not primary:
        structural = {"SIMPLE", "EXTEND", "NEXTEND", "CHECKSUM", "DATASUM", "COMMENT", "HISTORY", "", "END"}
        for card in primary.cards:
            if card.keyword not in merged and card.keyword not in structural and card.keyword[:5] != "NAXIS":
                merged.append(card, end=True)
    return merged


def _find(file: FitsFile, ext: Any) -> int:
    """Return the index of the HDU that the user asked for."""
    if isinstance(ext, str):
        name, _, version = ext.partition(",")
        name, version = name.strip().upper(), version.strip()
        ext = int(name) if name.isdigit() else (name, int(version)) if version.isdigit() else (name, None)
    there = ", ".join(file.label(i) for i in range(len(file.hdulist)))
    if isinstance(ext, tuple) and len(ext) == 2:
        wanted, version = str(ext[0]).upper(), ext[1]
        for index, hdu in enumerate(file.hdulist):
            same_name = hdu_name(hdu) == wanted or (wanted == "PRIMARY" and index == 0)
            if same_name and version in (None, hdu_version(hdu)):
                return index
    elif isinstance(ext, int | np.integer) and 0 <= ext < len(file.hdulist):
        return int(ext)
    asked = ext[0] if isinstance(ext, tuple) and len(ext) == 2 and ext[1] is None else ext
    raise ReadError(f"{file.name} has no extension {asked!r}; it has {there}.", path=file.name, ext=ext)


def _choose(file: FitsFile, profile: Profile) -> int:
    """Return the index of the only HDU that can be the image."""
    images = [i for i, hdu in enumerate(file.hdulist) if image_shape(hdu) is not None]
    for name in (*profile.image, *GENERIC.image):
        named = [i for i in images if plane_name(file.hdulist[i])[1] == name]
        if named:
            images = named
            break
    else:
        images = [i for i in images if plane_name(file.hdulist[i])[1] not in _plane_names(profile)]
    if 0 in images or len(images) == 1:
        return images[0]
    if not images:
        found = "; ".join(f"{file.label(i)}: {describe(hdu)}" for i, hdu in enumerate(file.hdulist))
        raise ReadError(f"{file.name} has no two-dimensional image. It has {found}.", path=file.name)
    choices = ", ".join(f"{i} ({hdu_name(file.hdulist[i])}, {hdu_version(file.hdulist[i])})" for i in images)
    how = "choose one with ext= (--ext, --science-ext, ...)"
    raise InputError(f"{file.name} holds {len(images)} images; {how}: {choices}.", path=file.name)


def _plane_names(profile: Profile) -> set[str]:
    """Return the names of extensions that hold something else than the image."""
    return OTHER_PLANES | {name for p in (profile, GENERIC) for role in ROLES for name in getattr(p, role)}


def _companions(file: FitsFile, index: int, profile: Profile) -> dict[str, Any]:
    """Return the planes of the same file that belong to the image: role -> array."""
    chosen = file.hdulist[index]
    detector, own = plane_name(chosen)
    if own in _plane_names(profile):
        return {}
    planes: dict[str, Any] = {}
    for role in ROLES:
        if role == "weight" and profile is SKYLOOM:
            continue  # its mask knows
        names = (*getattr(profile, role), *getattr(GENERIC, role))
        found = [
            i
            for i, hdu in enumerate(file.hdulist)
            if i != index
            and (found_name := plane_name(hdu))[0] == detector
            and found_name[1] in names
            and hdu_version(hdu) == hdu_version(chosen)
            and image_shape(hdu) is not None
        ]
        if role != "variance":
            found = found[:1]
        fitting = [i for i in found if image_shape(file.hdulist[i]) == image_shape(chosen)]
        if len(fitting) < len(found):
            warnings.warn(
                f"{', '.join(file.label(i) for i in found if i not in fitting)} of {file.name} has another shape than "
                f"the image and is ignored.",
                SkyloomWarning,
                stacklevel=4,
            )
        if not fitting:
            continue
        if role == "quality":
            plane = _integers(file.plane(fitting[0]))
            planes[role] = mask_bits(plane, profile, file.hdulist[fitting[0]].header)
        else:
            with np.errstate(invalid="ignore"):  # signalling NaN in a damaged file
                planes[role] = sum(np.asarray(file.plane(i), dtype=np.float64) for i in fitting)
    return planes


def _siblings(path: Path, ext: Any, profile: Profile, image: FitsFile, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the planes that stand in files beside this one, if the convention has such and they are there."""
    planes: dict[str, Any] = {}
    for role, (here, there) in (profile.siblings or {}).items():
        sibling = path.with_name(path.name.replace(here, there))
        if sibling == path or not sibling.is_file():
            continue
        logger.info("%s: the %s plane is taken from %s.", path.name, role.replace("_", " "), sibling.name)
        with FitsFile(sibling, sibling.name, image.verify) as file:
            index = _find(file, ext) if ext is not None else _choose(file, profile)
            planes[role] = file.plane(index)
            if planes[role].shape != shape:
                warnings.warn(
                    f"{sibling.name} has another shape than {path.name} and is ignored.", SkyloomWarning, stacklevel=5
                )
                del planes[role]
            elif role == "quality":
                planes[role] = mask_bits(_integers(planes[role]), profile, file.hdulist[index].header)
    return planes


def _variance(planes: dict[str, Any], name: str) -> npt.NDArray[np.float64] | None:
    """Return the variance plane from what the file has: error, variances, or inverse variance."""
    with np.errstate(all="ignore"):
        if "error" in planes:
            variance = np.where(planes["error"] > 0, planes["error"] ** 2, 0.0)
        elif "variance" in planes:
            variance = planes["variance"]
        elif "inverse_variance" in planes:
            variance = np.where(planes["inverse_variance"] > 0, 1.0 / planes["inverse_variance"], 0.0)
        else:
            return None
        if not (np.isfinite(variance) & (variance > 0)).any():
            warnings.warn(
                f"The error plane of {name} has no positive value; it is ignored.", SkyloomWarning, stacklevel=4
            )
            return None
    return np.asarray(variance)


def _mask(planes: dict[str, Any]) -> npt.NDArray[np.uint32] | None:
    """Return the mask: bits of the quality plane, and no data where the weight is 0, if it is above 0 anywhere."""
    mask: npt.NDArray[np.uint32] | None = planes.get("quality")
    if "weight" in planes:
        with np.errstate(invalid="ignore"):
            empty = ~(planes["weight"] > 0)
        if not empty.all():
            mask = np.zeros(empty.shape, np.uint32) if mask is None else mask
            mask = np.where(empty, mask | np.uint32(MaskBit.NO_DATA), mask)
    return mask


def _extra_mask(mask: Any, exposure: Exposure, verify: bool) -> npt.NDArray[np.uint32]:
    """Return the bits of the mask that the user gave, as array or file."""
    if isinstance(mask, str | os.PathLike):
        path, bracket = path_and_extension(mask)
        profile = profile_for((exposure.header,))
        with FitsFile(path, path.name, verify) as file:
            chosen = range(len(file.hdulist)) if bracket is None else [_find(file, bracket)]
            images = [i for i in chosen if image_shape(file.hdulist[i]) == exposure.shape]
            if len(images) != 1:
                raise ReadError(
                    f"The mask {path.name} has {len(images)} planes of the image's shape {exposure.shape}; "
                    f"exactly one is needed. Choose it by {path.name}[EXTENSION].",
                    path=str(path),
                )
            return mask_bits(_integers(file.plane(images[0])), profile, file.hdulist[images[0]].header)
    blank = np.zeros(exposure.shape, np.float32)
    return Exposure(blank, mask=mask, name=f"the mask for {exposure.name}").mask


def pile_up_level(data: npt.NDArray[Any]) -> float | None:
    """Return the level where the detector or its converter ran full, if the pixel values show it.

    Data that stop at one value, which at least 8 pixels have and more than all the values in the 5 % of the range from
    the sky to it just below, are saturated there: the pixels of stars have any value, and few the highest. The level
    must lie 50 deviations of the sky above it: images of a few counts stop at one value, too. And half of the pixels
    must touch another one: the peaks of equal stars, of a simulation without noise, stand alone. Anything less is no
    evidence: None.
    """
    if data.dtype.kind not in "iuf" or data.ndim != 2 or not data.size:
        return None
    values = data[np.isfinite(data)] if data.dtype.kind == "f" else data
    if not values.size:
        return None
    top = float(values.max())
    at_top = int(np.count_nonzero(values == top))
    if at_top < PILED_PIXELS:
        return None
    sample = values.ravel()[:: max(1, values.size // 100_000)].astype(np.float64)
    sky = float(np.median(sample))
    noise = max(MAD_TO_SIGMA * float(np.median(np.abs(sample - sky))), 1.0 if data.dtype.kind != "f" else 0.0)
    below = int(np.count_nonzero((values >= top - PILED_RANGE * (top - sky)) & (values < top)))
    if noise == 0 or at_top <= below or top - sky <= PILED_ABOVE_SKY * noise:
        return None
    full = np.pad(data == top, 1)
    touching = full[2:, 1:-1] | full[:-2, 1:-1] | full[1:-1, 2:] | full[1:-1, :-2]
    return top if 2 * np.count_nonzero(full[1:-1, 1:-1] & touching) >= at_top else None


def _integers(plane: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a quality plane as integers; where it was stored as floating point, NaN is bad."""
    if plane.dtype.kind != "f":
        return plane
    return np.nan_to_num(plane, nan=1.0, posinf=1.0, neginf=1.0).astype(np.int64)


def _why_unusable(exposure: Exposure) -> str:
    """Say which mask bits cover the image."""
    counts = {bit.name: float((exposure.mask & np.uint32(bit) != 0).mean()) for bit in MaskBit}
    return ", ".join(f"{name} on {share:.0%}" for name, share in counts.items() if share)
