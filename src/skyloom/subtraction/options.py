"""What the user may choose about matching and subtracting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from skyloom.convolution import MAX_ORDER
from skyloom.errors import InputError

_OF_BASIS = {
    "gaussian_sigmas": "gaussian",
    "gaussian_orders": "gaussian",
    "regularisation": "delta",
    "smoothness": "delta",
}
"""Options that only one basis has."""

_ORDERS = (6, 4, 2, 0)  # the last Gaussian, which is as wide as the wings of stars, only has a height


@dataclass(frozen=True)
class AlardLuptonOptions:
    """Options of `skyloom.subtraction.subtract`.

    Parameters
    ----------
    convolve : {'auto', 'template', 'science'}
        Which image to convolve; 'auto' takes the one with the narrower stars, or, where the widths differ by less than
        20 %, tries both and takes the way that leaves less of bright stars.
    spatial_order : 'auto' or int
        Order of the polynomial with which the kernel varies over the field, 0 to 4; 'auto' is the highest of 0 to 3
        that predicts stamps well that the fit has not seen.
    background_order : 'auto' or int
        Order of the polynomial of the differential background, 0 to 4; 'auto' is the one of 0 to 3 that
        predicts best.
    vary_kernel_sum : 'auto' or bool
        Let the kernel's sum (the flux ratio of the two images) vary over the field like the rest of the kernel; 'auto'
        if that predicts stamps clearly better: vignetting or clouds in one image only.
    kernel_half_width : int, optional
        Pixels from the kernel's centre to its edge; from the two FWHMs if not given.
    basis : {'gaussian', 'delta'}
        Functions of which the kernel is a sum: Gaussians times polynomials, or its single pixels, which can have any
        shape (trailed or doubled stars) and need more and better stars, and more time.
    regularisation : 'auto' or float
        Of the basis 'delta': strength with which the kernel is kept smooth, in units of the mean diagonal of a stamp's
        equations over that of the penalty. 'auto' is the one that predicts stamps best that the fit has not seen; 0 is
        none.
    smoothness : {'curvature', 'gradient'}
        Of the basis 'delta': what of the kernel is kept small, its second or its first differences.
    gaussian_sigmas, gaussian_orders : tuple, optional
        Of the basis 'gaussian': widths (pixels) of the Gaussians and degrees of the polynomials on them; widths from
        the two FWHMs and degrees 6, 4, 2, 0 if not given. A last Gaussian of degree 0, after others of higher ones, is
        the same all over the field, whoever gave the degrees: it is the wings of the stars.
    stamp_half_width : int, optional
        Pixels from a stamp's centre to its edge; from the FWHMs if not given.
    tiles : int, optional
        Cells along the longer side of the field; stamps are spread evenly over the cells. From the image's size if not
        given.
    stamps_per_tile : int, optional
        So many stamps of each cell take part in the fit, the others wait as replacements. If not given, one, or more
        when there are few cells.
    candidates_per_tile : int
        So many candidates of each cell are kept.
    min_stamps : int
        Fewer stamps than this are an error.
    min_snr : float
        Signal-to-noise ratio, in both images, of a star that may be a stamp.
    stamp_clip : float
        Stamps whose reduced chi2 lies so many robust standard deviations above the others' are dropped.
    pixel_clip : float
        Pixels of a stamp that lie so many standard deviations off the model are left out.
    max_iterations : int
        Of fitting and dropping.
    max_lost : float
        A pixel of the convolved image is unusable if more than this share of the kernel's weight fell on unusable
        pixels; it is so before, where what they may have held would matter.
    decorrelate : bool
        Filter the difference so that its noise is white, see `skyloom.subtraction.decorrelate`.

    Raises
    ------
    InputError
        A value is out of its range, or is given for an option of the other basis.
    """

    convolve: Literal["auto", "template", "science"] = "auto"
    spatial_order: Literal["auto"] | int = "auto"
    background_order: Literal["auto"] | int = "auto"
    vary_kernel_sum: Literal["auto"] | bool = "auto"
    kernel_half_width: int | None = None
    basis: Literal["gaussian", "delta"] = "gaussian"
    regularisation: Literal["auto"] | float = "auto"
    smoothness: Literal["curvature", "gradient"] = "curvature"
    gaussian_sigmas: tuple[float, ...] | None = None
    gaussian_orders: tuple[int, ...] | None = None
    stamp_half_width: int | None = None
    tiles: int | None = None
    stamps_per_tile: int | None = None
    candidates_per_tile: int = 5
    min_stamps: int = 4
    min_snr: float = 20.0
    stamp_clip: float = 3.5
    pixel_clip: float = 6.0
    max_iterations: int = 10
    max_lost: float = 0.1
    decorrelate: bool = False

    def __post_init__(self) -> None:
        if self.convolve not in ("auto", "template", "science"):
            raise InputError(f"convolve is {self.convolve!r}; it must be 'auto', 'template' or 'science'.")
        for what in ("spatial_order", "background_order"):
            order = getattr(self, what)
            if order != "auto" and order not in range(MAX_ORDER + 1):
                raise InputError(f"{what} is {order!r}; it must be 'auto' or a whole number from 0 to {MAX_ORDER}.")
        for what, known in (("basis", ("gaussian", "delta")), ("smoothness", ("curvature", "gradient"))):
            if getattr(self, what) not in known:
                raise InputError(f"{what} is {getattr(self, what)!r}; it must be {known[0]!r} or {known[1]!r}.")
        for what, basis in _OF_BASIS.items():
            if basis != self.basis and getattr(self, what) != getattr(AlardLuptonOptions, what):
                raise InputError(
                    f"{what} is {getattr(self, what)!r}, but is an option of basis={basis!r} only, and the basis is "
                    f"{self.basis!r}. Leave it out, or choose the other basis."
                )
        strength = self.regularisation
        if strength != "auto" and not (isinstance(strength, int | float) and 0 <= strength < float("inf")):
            raise InputError(f"regularisation is {strength!r}; it must be 'auto' or a finite number of at least 0.")
        if self.vary_kernel_sum not in ("auto", True, False):
            raise InputError(f"vary_kernel_sum is {self.vary_kernel_sum!r}; it must be 'auto', True or False.")
        if self.gaussian_sigmas is not None and len(self.gaussian_sigmas) != len(self.orders):
            raise InputError(
                f"There are {len(self.gaussian_sigmas)} gaussian_sigmas and {len(self.orders)} gaussian_orders; give "
                f"one order for each width (for more than {len(_ORDERS)} widths there is no default)."
            )
        if any(not 0 < sigma < float("inf") for sigma in self.gaussian_sigmas or ()) or not self.orders:
            raise InputError(f"gaussian_sigmas are {self.gaussian_sigmas}; at least one, all above 0, is needed.")
        if any(order not in range(9) for order in self.orders):
            raise InputError(f"gaussian_orders are {self.orders}; each must be a whole number from 0 to 8.")
        limits = {
            "kernel_half_width": 1,
            "stamp_half_width": 3,
            "tiles": 1,
            "stamps_per_tile": 1,
            "candidates_per_tile": 1,
            "min_stamps": 1,
            "min_snr": 0,
            "stamp_clip": 1,
            "pixel_clip": 2,
            "max_iterations": 1,
            "max_lost": 0,
        }
        for what, low in limits.items():
            value = getattr(self, what)
            if value is not None and not value >= low:
                raise InputError(f"{what} is {value}; it must be at least {low}.", **{what: value})

    @property
    def orders(self) -> tuple[int, ...]:
        """Degrees of the polynomials on the Gaussians: those given, or one for each width that is."""
        if self.gaussian_orders is not None:
            return self.gaussian_orders
        return _ORDERS if self.gaussian_sigmas is None else _ORDERS[: len(self.gaussian_sigmas)]
