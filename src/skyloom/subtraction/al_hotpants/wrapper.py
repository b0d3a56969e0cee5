"""`run_hotpants`: the signature, defaults and results of stdpipe's wrapper around HOTPANTS, run natively."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from skyloom._threads import map_bands
from skyloom.errors import InputError, NoUsableDataError, ShapeError
from skyloom.subtraction.al_hotpants.binary import run_binary
from skyloom.subtraction.al_hotpants.files import write_files
from skyloom.subtraction.al_hotpants.inputs import sampled_level
from skyloom.subtraction.al_hotpants.native import hotpants
from skyloom.subtraction.al_hotpants.options import HotpantsOptions, native_names
from skyloom.subtraction.dropin_arguments import Log, bad_plane, check_gain, error_plane, logger, real_plane
from skyloom.subtraction.sanity import check_range
from skyloom.subtraction.sfft.noise_map import noise_map

log = logging.getLogger("skyloom.subtraction")

_SIGMAS_BELOW = 10  # valid pixels lie above the median less so many deviations (Becker's advice; arXiv:1608.01006)


def run_hotpants(  # noqa: PLR0917  # the signature is that of the original
    image: Any,
    template: Any,
    mask: Any = None,
    template_mask: Any = None,
    err: Any = None,
    template_err: Any = None,
    extra: Mapping[str, Any] | None = None,
    image_fwhm: float | None = None,
    template_fwhm: float | None = None,
    image_gain: float | None = None,
    template_gain: float | None = 1000,
    rel_r: float = 3,
    rel_rss: float = 4,
    nx: int = 1,
    ny: int | None = None,
    obj: Any = None,
    get_convolved: bool = False,
    get_scaled: bool = False,
    get_noise: bool = False,
    get_kernel: bool = False,
    get_header: bool = False,
    _tmpdir: str | None = None,
    _workdir: str | None = None,
    _exe: str | None = None,
    verbose: bool | Callable[..., Any] = False,
) -> Any:
    """Subtract a template from an image with the algorithm of HOTPANTS (Alard 2000; Becker 2015).

    It runs natively, unless `_exe` names a binary. Options of HOTPANTS that `extra` does not set are: n = i, c = t (but
    see below), ko = bgo = 0; il, tl = median - 10 deviations; iu, tu above all good pixels; with `image_fwhm`, r =
    ceil(rel_r * image_fwhm) and rss = ceil(rel_rss * image_fwhm); with both FWHMs, ng = [3, 6, s/2, 4, s, 2, 2s],
    s = max(1, sqrt(abs(image_fwhm^2 - template_fwhm^2)) / 2.35).

    Parameters
    ----------
    image, template : array_like, shape (ny, nx)
    mask, template_mask : array_like, shape (ny, nx), optional
        Pixels that are not 0 (False) are bad. So are NaN and infinite ones.
    err, template_err : array_like or True, optional
        Standard deviation of every pixel; True: that of the background and the photon noise of sources. Without it the
        noise is that of the counts, abs(pixel) / gain.
    extra : mapping, optional
        Options of HOTPANTS, see `HotpantsOptions`. None leaves one out.
    image_fwhm, template_fwhm : float, optional
        Pixels.
    image_gain, template_gain : float, optional
        e-/ADU.
    rel_r, rel_rss : float
        Half widths of kernel and sub-stamps in units of `image_fwhm`.
    nx, ny : int
        Regions along x and y; ny = nx if not given.
    obj : Table, optional
        Objects of the image (columns x, y, 0-based): sub-stamps are placed on them first.
    get_convolved, get_scaled, get_noise, get_kernel, get_header : bool
        What to return besides the difference, in this order.
    _tmpdir, _workdir : str, optional
        Where a binary's files go; a `_workdir` is kept.
    _exe : str, optional
        Path of a HOTPANTS binary to be run.
    verbose : bool or callable
        Print (or call with) what is done.

    Returns
    -------
    ndarray or list
        The difference, or a list of it and: the convolved image, difference / noise, the noise (float32), the kernel
        (Table, see `HotpantsKernel.from_table`), the header.

    Raises
    ------
    InputError, ShapeError
        An option or an image cannot be used; an unknown option of `extra`.
    NoUsableDataError
        All pixels of an image are masked or NaN.
    TooFewStampsError
        Too few stars.
    SubtractionError
        No kernel was found that images can have, or the binary failed.

    Notes
    -----
    If `c` is not in `extra` and the template has the wider stars (by the FWHMs, or because the kernel that was found
    sharpens it), the image is convolved, in its own flux scale.
    """
    say = logger(verbose)
    image, template = real_plane(image, "the image"), real_plane(template, "the template")
    if image.shape != template.shape:
        raise ShapeError(
            f"The image has the shape {image.shape} and the template {template.shape}; they must be on the same grid. "
            "Resample the template first.",
            image=image.shape,
            template=template.shape,
        )
    sides = (("image", image, mask), ("template", template, template_mask))
    (image_bad, image_limits), (template_bad, template_limits) = map_bands(lambda side: _bad_pixels(*side), sides)
    masks = {"imi": image_bad, "tmi": template_bad}
    params: dict[str, Any] = image_limits | template_limits
    params |= {"n": "i", "c": "t", "ko": 0, "bgo": 0, "v": 2, "nrx": nx, "nry": nx if ny is None else ny}
    params |= _sizes(image_fwhm, template_fwhm, rel_r, rel_rss)
    params |= {name: gain for name, gain in (("ig", image_gain), ("tg", template_gain)) if gain is not None}
    wider = image_fwhm is not None and template_fwhm is not None and template_fwhm > image_fwhm
    if wider:
        params["c"] = "i"
    noise = {
        "ini": _noise(err, image, masks["imi"], image_gain, "image", say),
        "tni": _noise(template_err, template, masks["tmi"], template_gain, "template", say),
    }
    own = {str(name).lstrip("-").lower(): value for name, value in (extra or {}).items()}
    positions = _object_positions(obj)
    options = HotpantsOptions.from_mapping({**params, **{n: p for n, p in noise.items() if p is not None},
                                            **masks, **own})  # fmt: skip
    say(f"{options.nrx} x {options.nry} regions, kernel {2 * options.r + 1}, sub-stamps {2 * options.rss + 1} pixels")
    if _exe is not None:
        params |= {name: value for name, value in own.items() if name not in native_names()}
        found: Any = run_binary(_exe, {"inim": image, "tmplim": template} | noise, masks, params,
                                positions=positions, tmpdir=_tmpdir, workdir=_workdir)  # fmt: skip
        kernel, header = found.kernel, found.header
    else:
        files = any(getattr(options, name) is not None for name in ("oni", "ond", "outim"))
        found = hotpants(
            image, template, options, positions=positions, sharper="c" not in own and not wider,
            want_convolved=get_convolved or options.oci is not None or options.outim is not None,
            want_noise=get_scaled or get_noise or get_header or options.okn or files, want_statistics=get_header,
        )  # fmt: skip
        kernel, header = found.kernel.to_table() if get_kernel else None, found.header
        write_files(found, options)
    say(f"{header.get('NSTAMPS', 0)} stamps used")
    wanted = (
        (get_convolved, found.convolved),
        (get_scaled, found.scaled if get_scaled else None),
        (get_noise, found.noise),
        (get_kernel, kernel),
        (get_header, header),
    )
    result = [found.diff] + [product for get, product in wanted if get]
    return result[0] if len(result) == 1 else result


def _bad_pixels(name: str, plane: npt.NDArray[Any], mask: Any) -> tuple[npt.NDArray[Any], dict[str, float]]:
    """Return the mask, with pixels that are not finite, and the options for the range of valid pixels.

    They run from 10 deviations below the median to above all good ones.
    """
    check_range(f"the {name}", plane)
    low, high = float(plane.min()), float(plane.max())
    # NaN, if there is any, is also the least and the greatest
    bad = np.zeros(plane.shape, bool) if np.isfinite(low) and np.isfinite(high) else ~np.isfinite(plane)
    if mask is not None:
        bad |= bad_plane(mask, plane.shape, f"the mask of the {name}")
    if bad.any():
        if bad.all():
            raise NoUsableDataError(f"All pixels of the {name} are masked or NaN; check its mask.")
        good = plane[~bad]
        low, high = float(good.min()), float(good.max())
    level, deviation = sampled_level(plane, bad)
    top = high + 0.01 * (high - low)
    limits = {"l": level - _SIGMAS_BELOW * deviation, "u": top, "uk": top}
    return bad, {name[0] + suffix: value for suffix, value in limits.items()}


def _sizes(image_fwhm: float | None, template_fwhm: float | None, rel_r: float, rel_rss: float) -> dict[str, Any]:
    """Return r, rss and ng for the seeing."""
    for name, fwhm in (("image_fwhm", image_fwhm), ("template_fwhm", template_fwhm)):
        if fwhm is not None and not (np.isfinite(fwhm) and fwhm > 0):
            raise InputError(f"{name} is {fwhm!r}; a number of pixels above 0 is needed.")
    params: dict[str, Any] = {}
    if image_fwhm is not None and template_fwhm is not None and image_fwhm != template_fwhm:
        sigma = max(1.0, float(np.sqrt(abs(image_fwhm**2 - template_fwhm**2))) / 2.35)
        params["ng"] = [3, 6, 0.5 * sigma, 4, sigma, 2, 2.0 * sigma]
    if image_fwhm is not None:
        params |= {"r": int(np.ceil(image_fwhm * rel_r)), "rss": int(np.ceil(image_fwhm * rel_rss))}
    return params


def _noise(  # noqa: PLR0917
    err: Any, plane: npt.NDArray[Any], bad: npt.NDArray[np.bool_], gain: float | None, name: str, say: Log
) -> npt.NDArray[Any] | None:
    """Return the noise map that `err` gives, or asks for."""
    if err is True:
        check_gain(gain, f"{name}_gain")
        say("Building a noise map from the image")
        return noise_map(plane, bad, gain)[0]
    return error_plane(err, plane.shape, f"the noise of the {name}")


def _object_positions(obj: Any) -> npt.NDArray[np.float64] | None:
    """Return the positions of the objects, shape (N, 2)."""
    if obj is None or len(obj) == 0:
        return None
    try:
        xy = np.column_stack([np.asarray(obj[axis], np.float64) for axis in ("x", "y")])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"obj has no columns x and y of numbers: {error}. Give a table of positions.") from error
    return xy[np.isfinite(xy).all(axis=1)]
