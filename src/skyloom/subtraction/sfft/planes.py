"""Checked copies of the two images of a fit, without their levels, and what of them may be used."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from skyloom.errors import ShapeError
from skyloom.exposure import BoolArray
from skyloom.subtraction.dropin_arguments import bad_plane, real_plane, usable_errors
from skyloom.subtraction.sfft.design import Float64Array
from skyloom.subtraction.sfft.fit import FitPlanes
from skyloom.subtraction.sfft.noise_map import power_of_two, rough_level


@dataclass(frozen=True, eq=False)
class SfftPlanes:
    """Images for `fit_delta`.

    Parameters
    ----------
    science, template : ndarray of float64, shape (ny, nx)
        Above their levels; 0 where not finite, the template where bad.
    science_level, template_level : float
        About the medians of the usable pixels, which were taken off. The fit sees what varies, and no level can leak
        into the kernel.
    finite, bad_science, bad_template, dmask : ndarray of bool, shape (ny, nx)
        Where science is a number; where each image is bad; where the kernel reaches a bad pixel of the template or
        the border.
    err, template_err : ndarray of float64, optional
        Standard deviations.
    """

    science: Float64Array
    template: Float64Array
    science_level: float
    template_level: float
    finite: BoolArray
    bad_science: BoolArray
    bad_template: BoolArray
    dmask: BoolArray
    kernel_shape: tuple[int, int]
    err: Float64Array | None = None
    template_err: Float64Array | None = None

    @property
    def usable(self) -> BoolArray:
        """True where a pixel may take part in the fit."""
        return ~(self.bad_science | self.dmask)

    def with_errors(self, err: Float64Array | None, template_err: Float64Array | None) -> SfftPlanes:
        """Return the planes with errors; pixels whose error no image of this unit can have become bad."""
        bad_science, bad_template = self.bad_science, self.bad_template
        of_science, of_template = self.units
        if err is not None:
            bad_science = bad_science | ~usable_errors(err / of_science)
        if template_err is not None:
            bad_template = bad_template | ~usable_errors(template_err / of_template, zero=True)
        return replace(
            self,
            template=np.where(bad_template, 0.0, self.template),
            bad_science=bad_science,
            bad_template=bad_template,
            dmask=reach(bad_template, self.kernel_shape),
            err=err,
            template_err=template_err,
        )

    @property
    def units(self) -> tuple[float, float]:
        """Powers of 2 in which science image and template are fitted, so that single precision holds their squares."""
        return power_of_two(self.science, self.usable), power_of_two(self.template, self.usable)

    def restricted(self, units: tuple[float, float], region: BoolArray | None = None) -> FitPlanes:
        """Return what is fitted: the usable pixels, of a region, in units of their own."""
        of_science, of_template = units
        variance = None if self.err is None else np.where(self.bad_science, 1.0, self.err / of_science) ** 2
        template_variance = None
        if self.template_err is not None:
            template_variance = np.where(self.bad_template, 0.0, self.template_err / of_template) ** 2
        usable = self.usable if region is None else self.usable & region
        science, template = self.science / of_science, self.template / of_template
        return FitPlanes(science, template, usable, variance, template_variance, of_science)


def make_planes(image: Any, template: Any, mask: Any, template_mask: Any, kernel_shape: tuple[int, int]) -> SfftPlanes:
    """Check and copy two images.

    Raises
    ------
    InputError
        They are no real numbers.
    ShapeError
        They differ in shape, or a mask does.
    """
    science, reference = numbers(image, "the image"), numbers(template, "the template")
    shape = science.shape
    if shape != reference.shape:
        raise ShapeError(
            f"The image has the shape {shape} and the template {reference.shape}; two images of the same shape are "
            "needed. "
            "Resample the template first.",
            image=shape,
            template=reference.shape,
        )
    finite = np.isfinite(science)
    bad_science = ~finite | bad_plane(mask, shape, "argument mask") | np.ma.getmaskarray(image)
    bad_template = ~np.isfinite(reference) | bad_plane(template_mask, shape, "argument template_mask")
    bad_template |= np.ma.getmaskarray(template)
    dmask = reach(bad_template, kernel_shape)
    usable = ~(bad_science | dmask)
    levels = [rough_level(plane, usable) for plane in (science, reference)]
    return SfftPlanes(
        science=np.where(finite, science - levels[0], 0.0),
        template=np.where(bad_template, 0.0, reference - levels[1]),
        science_level=levels[0],
        template_level=levels[1],
        finite=finite,
        bad_science=bad_science,
        bad_template=bad_template,
        dmask=dmask,
        kernel_shape=kernel_shape,
    )


def numbers(image: Any, what: str) -> Float64Array:
    """Return a copy of an image, with what lies below its mask; paths are read."""
    whole = image if isinstance(image, str | Path) else np.ma.getdata(image)
    return real_plane(whole, what).astype(np.float64)


def reach(bad: BoolArray, kernel_shape: tuple[int, int]) -> BoolArray:
    """Return True where a kernel reaches a bad pixel, or outside of the image."""
    hy, hx = kernel_shape[0] // 2, kernel_shape[1] // 2
    grown: BoolArray = bad.copy()
    if bad.any():
        grown = ndimage.maximum_filter(bad, size=kernel_shape, mode="constant", cval=0)
    ny, nx = bad.shape
    grown[:hy] = grown[max(ny - hy, 0) :] = True
    grown[:, :hx] = grown[:, max(nx - hx, 0) :] = True
    return grown
