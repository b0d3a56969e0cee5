"""What the user may choose about matching with delta-function kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from skyloom.convolution import MAX_ORDER
from skyloom.errors import InputError


@dataclass(frozen=True)
class SfftOptions:
    """Options of `skyloom.subtraction.subtract` for a kernel whose pixels are all free.

    Parameters
    ----------
    convolve : {'auto', 'template', 'science'}
        Which image to convolve; see `AlardLuptonOptions`.
    pixels : {'auto', 'boxes', 'all'}
        Fit to boxes around the best stars of each cell of a grid (a sparse field), or to all pixels (a crowded one).
        'auto' takes all if boxes around all sources would cover more than 40 % of the field.
    spatial_order, background_order : int
        Orders of the polynomials with which kernel and background vary over the field, 0 to 4.
    flux_order : 'auto' or int
        Order with which the kernel's sum (the flux ratio of the two images) varies, at most `spatial_order`; 'auto' is
        0, or `spatial_order` where what a constant sum leaves of sources follows their places: vignetting or clouds in
        one image only.
    kernel_half_width : int, optional
        Pixels from the kernel's centre to its edge; 1.5 FWHM of the wider stars, 3 to 15, if not given.
    ridge : float
        Weight of the squares of the kernel's coefficients, in units of the median diagonal of the normal matrix.
    sigma_clip : float or None
        Pixels that lie so many times the scatter of pixels of their brightness off the model are left out.
    max_iterations : int
        Of fitting and clipping.
    max_lost : float
        See `AlardLuptonOptions`.
    decorrelate : bool
        See `AlardLuptonOptions`.
    cross_convolve : bool
        Filter each image with the PSF of the other, and fit what is left: nothing has to be sharpened, and the noise of
        the difference is white (`skyloom.subtraction.cross`). `convolve` and `decorrelate` have no effect then.

    Raises
    ------
    InputError
        A value is out of its range.
    """

    convolve: Literal["auto", "template", "science"] = "auto"
    pixels: Literal["auto", "boxes", "all"] = "auto"
    spatial_order: int = 2
    background_order: int = 2
    flux_order: Literal["auto"] | int = "auto"
    kernel_half_width: int | None = None
    ridge: float = 1e-6
    sigma_clip: float | None = 3.0
    max_iterations: int = 5
    max_lost: float = 0.1
    decorrelate: bool = False
    cross_convolve: bool = False

    def __post_init__(self) -> None:
        for what, allowed in (("convolve", ("auto", "template", "science")), ("pixels", ("auto", "boxes", "all"))):
            if getattr(self, what) not in allowed:
                raise InputError(f"{what} is {getattr(self, what)!r}; it must be one of {', '.join(allowed)}.")
        for what, most in (
            ("spatial_order", MAX_ORDER),
            ("background_order", MAX_ORDER),
            ("flux_order", self.spatial_order),
        ):
            auto = what == "flux_order"
            if getattr(self, what) not in range(most + 1) and not (auto and self.flux_order == "auto"):
                needed = "'auto' or " * auto + f"a whole number from 0 to {most}"
                raise InputError(f"{what} is {getattr(self, what)!r}; it must be {needed}.")
        for what, low in (
            ("kernel_half_width", 1),
            ("ridge", 0),
            ("sigma_clip", 0),
            ("max_iterations", 1),
            ("max_lost", 0),
        ):
            value = getattr(self, what)
            if value is not None and not value >= low:
                raise InputError(f"{what} is {value}; it must be at least {low}.", **{what: value})
