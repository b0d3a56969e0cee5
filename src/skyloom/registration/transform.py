"""The transform between two pixel frames: a similarity, an affine map, or a polynomial, and its inverse."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from skyloom.errors import InputError
from skyloom.registration.spline import Spline

Float = npt.NDArray[np.float64]

_NEWTON_STEPS = 50
_NEWTON_TOLERANCE = 1e-10  # pixels: far below any measurement, above the rounding of positions up to 1e5


@cache
def exponents(order: int) -> npt.NDArray[np.intp]:
    """Return the powers (i, j) of u^i v^j for all i + j <= `order`, lower degrees first, shape (P, 2)."""
    powers = np.array([(degree - j, j) for degree in range(order + 1) for j in range(degree + 1)], np.intp)
    powers.flags.writeable = False
    return powers


def n_terms(order: int) -> int:
    """Return P = (order + 1) (order + 2) / 2."""
    return (order + 1) * (order + 2) // 2


def monomials(uv: Float, order: int) -> Float:
    """Return u^i v^j at N points, shape (N, P), in the order of `exponents`."""
    terms = np.empty((len(uv), n_terms(order)))
    terms[:, 0] = 1.0
    for degree in range(1, order + 1):
        # all terms of one degree less times u, and the last of them times v
        before, start, stop = n_terms(degree - 2), n_terms(degree - 1), n_terms(degree) - 1
        np.multiply(terms[:, before:start], uv[:, :1], out=terms[:, start:stop])
        np.multiply(terms[:, start - 1], uv[:, 1], out=terms[:, stop])
    return terms


@dataclass(frozen=True, eq=False)
class Transform:
    """Template to source pixels: q = sum_ij c_ij u^i v^j (+ a spline), with (u, v) = (xy - centre) / half.

    Parameters
    ----------
    coefficients : ndarray, shape (2, P)
        For x and y of the source, terms in the order of `exponents`.
    order : int
        Degree, 1 to 5.
    centre : ndarray, shape (2,)
        Template pixel that is the origin of (u, v).
    half : float
        Template pixels per unit of u and v.
    kind : {"similarity", "affine", "polynomial"}
        Which family the coefficients belong to.
    residual : Spline, optional
        A smooth surface that is added to the polynomial, in source pixels.

    Raises
    ------
    InputError
        The coefficients do not fit to the order, or their linear part has no inverse.
    """

    coefficients: Float
    order: int
    centre: Float
    half: float
    kind: str = "polynomial"
    residual: Spline | None = None

    def __post_init__(self) -> None:
        for name, shape in (("coefficients", (2, n_terms(self.order))), ("centre", (2,))):
            value = np.array(getattr(self, name), np.float64)
            if value.shape != shape or not np.isfinite(value).all():
                raise InputError(
                    f"The transform's {name} have the shape {value.shape}; finite numbers of shape "
                    f"{shape} are needed for order {self.order}."
                )
            value.flags.writeable = False
            object.__setattr__(self, name, value)
        if not abs(self.determinant) > 0:
            raise InputError("The transform's linear part has no inverse.", matrix=self.matrix.tolist())

    @classmethod
    def linear(cls, matrix: npt.ArrayLike, shift: npt.ArrayLike = (0.0, 0.0)) -> Transform:
        """Return the affine map q = matrix xy + shift."""
        m, s = np.asarray(matrix, np.float64), np.asarray(shift, np.float64)
        return cls(np.column_stack([s, m]), 1, np.zeros(2), 1.0, "affine")

    @property
    def matrix(self) -> Float:
        """Derivative of the polynomial at `centre`, source pixels per template pixel, shape (2, 2)."""
        return self.coefficients[:, 1:3] / self.half

    @property
    def determinant(self) -> float:
        """Of `matrix`: area of a template pixel in source pixels, negative if one is a mirror image."""
        (a, b), (c, d) = self.coefficients[:, 1:3].tolist()
        return float((a * d - b * c) / self.half**2)

    @property
    def scale(self) -> float:
        """Source pixels per template pixel at the centre: square root of the determinant's absolute value."""
        return float(np.sqrt(abs(self.determinant)))

    @property
    def parity(self) -> int:
        """-1 if the source is a mirror image of the template, else +1."""
        return 1 if self.determinant > 0 else -1

    @property
    def rotation(self) -> float:
        """Angle in degrees (-180, 180] from the template's y axis to its image, counter-clockwise with x right, y up.

        The y axis is the one that a reflection of x leaves alone, so the angle means the same for both parities.
        """
        # direction of the y axis after removing shear: the nearest rotation (Procrustes) of matrix @ diag(parity, 1)
        u, _, vt = np.linalg.svd(self.matrix @ np.diag([self.parity, 1.0]))
        r = u @ vt
        return float(np.degrees(np.arctan2(r[1, 0], r[0, 0])))

    def __call__(self, xy: npt.ArrayLike) -> Float:
        """Map template positions to source positions, both of shape (N, 2)."""
        xy = as_xy(xy)
        q = monomials((xy - self.centre) / self.half, self.order) @ self.coefficients.T
        return q if self.residual is None else q + self.residual(xy)

    def jacobian(self, xy: npt.ArrayLike) -> Float:
        """Return d(source) / d(template) at positions (N, 2), shape (N, 2, 2)."""
        xy = as_xy(xy)
        lower = monomials((xy - self.centre) / self.half, self.order - 1)
        i, j = exponents(self.order).T
        # d(u^i v^j)/du = i u^(i-1) v^j; its place among the terms of one degree less
        by_u = np.flatnonzero(i > 0)
        by_v = np.flatnonzero(j > 0)

        def place(i: npt.NDArray[np.intp], j: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
            return (i + j) * (i + j + 1) // 2 + j

        result = np.empty((len(xy), 2, 2))
        for axis in range(2):
            c = self.coefficients[axis]
            result[:, axis, 0] = lower[:, place(i[by_u] - 1, j[by_u])] @ (c[by_u] * i[by_u])
            result[:, axis, 1] = lower[:, place(i[by_v], j[by_v] - 1)] @ (c[by_v] * j[by_v])
        result /= self.half
        return result if self.residual is None else result + self.residual.jacobian(xy)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers of the transform, for other programs.

        Returns
        -------
        dict
            With 0-based pixels (x, y), pixel centres at integers: q = sum_k coefficients[axis][k] u^i v^j, where
            (i, j) = exponents[k] and (u, v) = (xy - centre) / half; for order 1 that is q = matrix xy + shift, else
            `matrix` and `shift` are its linear part at `centre`. `spline` (null without) is added: cubic B-splines
            with the `coefficients` (along y, along x, axis) and uniform knots between the corners `low` and `high`,
            constant along the normal outside of them.
        """
        spline = self.residual
        return {
            "convention": "template to source, 0-based pixels: q = sum_k c_k u^i v^j, (u, v) = (xy - centre) / half",
            "kind": self.kind,
            "order": self.order,
            "matrix": self.matrix.tolist(),
            "shift": (self.coefficients[:, 0] - self.matrix @ self.centre).tolist(),
            "centre": self.centre.tolist(),
            "half": float(self.half),
            "exponents": exponents(self.order).tolist(),
            "coefficients": self.coefficients.tolist(),
            "spline": None
            if spline is None
            else {name: getattr(spline, name).tolist() for name in ("coefficients", "low", "high")},
        }

    def inverse(self, xy: npt.ArrayLike) -> Float:
        """Map source positions to template positions, both of shape (N, 2), by Newton's method.

        Where the polynomial has no inverse (far outside of the images, if the distortion folds the plane) the result
        is NaN.
        """
        target = as_xy(xy)
        guess = (target - self.coefficients[:, 0]) @ np.linalg.inv(self.matrix).T + self.centre
        if self.order == 1 and self.residual is None:
            return guess
        active = np.flatnonzero(np.isfinite(target).all(axis=1))
        guess[~np.isfinite(target).all(axis=1)] = np.nan
        for _ in range(_NEWTON_STEPS):
            miss = target[active] - self(guess[active])
            jacobian = self.jacobian(guess[active])
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                det = jacobian[:, 0, 0] * jacobian[:, 1, 1] - jacobian[:, 0, 1] * jacobian[:, 1, 0]
                step = np.column_stack(
                    [
                        (jacobian[:, 1, 1] * miss[:, 0] - jacobian[:, 0, 1] * miss[:, 1]) / det,
                        (jacobian[:, 0, 0] * miss[:, 1] - jacobian[:, 1, 0] * miss[:, 0]) / det,
                    ]
                )
            # a step longer than the domain comes from a nearly singular Jacobian
            with np.errstate(invalid="ignore"):
                length = np.hypot(step[:, 0], step[:, 1])
                step *= np.minimum(1.0, 2 * self.half / np.maximum(length, 1e-300))[:, None]
            guess[active] += step
            active = active[~(length < _NEWTON_TOLERANCE * max(1.0, self.half))]
            if not len(active):
                break
        guess[active] = np.nan
        return guess


def as_xy(xy: npt.ArrayLike) -> Float:
    """Return positions as float64 of shape (N, 2).

    Raises
    ------
    InputError
        They have another shape.
    """
    array = np.asarray(xy, np.float64)
    if array.ndim != 2 or array.shape[1] != 2:
        raise InputError(
            f"Positions have the shape {array.shape}; (N, 2) is needed, one row (x, y) for each.", shape=array.shape
        )
    return array
