"""Similarity transforms of the plane, as four numbers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.interpolate import RectBivariateSpline, SmoothBivariateSpline

from skyloom.registration.fit import noise_floor, weighted_similarity

Float = npt.NDArray[np.float64]


def as_rows(coo: npt.ArrayLike) -> Float:
    """Return positions of shape (N, 2), (2,) or (2, n, m) as rows of shape (N, 2)."""
    xy = np.asarray(coo, np.float64)
    return xy.reshape(2, -1).T if xy.ndim == 3 else xy.reshape(-1, 2)


def like(rows: Float, coo: npt.ArrayLike) -> Float:
    """Return rows of shape (N, 2) in the layout of the positions that they were made from."""
    xy = np.asarray(coo)
    return rows.T.reshape(xy.shape) if xy.ndim == 3 else rows.reshape(xy.shape)


class AffineTransform:
    """x' = p a x - b y + c,  y' = p b x + a y + d: scale, rotation and shift.

    Parameters
    ----------
    v : array_like, shape (4,)
        a, b, c, d.
    parity : {1, -1}
        p: -1 reflects x first.
    """

    def __init__(self, v: npt.ArrayLike, parity: int = 1) -> None:
        self.v = np.array(v, np.float64)
        self.parity = parity

    @property
    def scale(self) -> float:
        """Target pixels per pixel."""
        return float(np.hypot(self.v[0], self.v[1]))

    @property
    def rotation(self) -> float:
        """Angle in degrees, counter-clockwise with x right and y up."""
        return float(np.degrees(np.arctan2(self.v[1], self.v[0])))

    def matrix_form(self) -> tuple[Float, Float]:
        """Return the matrix (2, 2) and the shift (2,)."""
        a, b, c, d = self.v
        return np.array([[self.parity * a, -b], [self.parity * b, a]]), np.array([c, d])

    def inverse(self) -> AffineTransform:
        """Return the inverse transform."""
        matrix, shift = self.matrix_form()
        a, b = np.array([self.v[0], -self.parity * self.v[1]]) / self.scale**2
        return AffineTransform([a, b, *-np.linalg.solve(matrix, shift)], self.parity)

    def apply_transform(self, xy: npt.ArrayLike) -> Float:
        """Return the image of positions of shape (N, 2), (2,) or (2, n, m), in the same layout."""
        matrix, shift = self.matrix_form()
        return like(as_rows(xy) @ matrix.T + shift, xy)

    def __repr__(self) -> str:
        mirrored = ", parity=-1" if self.parity < 0 else ""
        return f"AffineTransform({self.v.tolist()}{mirrored})"


def calc_affine_transform(source_coo: npt.ArrayLike, template_coo: npt.ArrayLike) -> AffineTransform:
    """Return the least-squares similarity from one list of positions (N, 2) to another, without reflection."""
    return fit_similarity(as_rows(source_coo), as_rows(template_coo), None, 1)


def fit_similarity(source: Float, template: Float, sigma: Float | None, parity: int) -> AffineTransform:
    """Fit a similarity from source to template positions.

    Parameters
    ----------
    source, template : ndarray, shape (N, 2)
        Corresponding positions, two at least.
    sigma : ndarray, shape (N,), or None
        Standard errors (pixels), to which the scatter that no similarity describes is added; None: all alike.
    parity : {1, -1}
        -1 for a mirror image.
    """
    centre = source.mean(axis=0)
    uv = source - centre
    variance = np.zeros(len(uv)) if sigma is None else sigma**2
    weight = np.ones(len(uv)) if sigma is None else sigma
    for _ in range(1 if sigma is None else 3):
        # rows (c, p a, -b) and (d, p b, a) about the centre
        coefficients = weighted_similarity(uv, template, weight, parity)[0]
        miss = template - coefficients[:, 0] - uv @ coefficients[:, 1:].T
        if sigma is not None:
            weight = np.sqrt(variance + noise_floor(np.hypot(*miss.T), variance) ** 2)
    c, d = coefficients[:, 0] - coefficients[:, 1:] @ centre
    return AffineTransform([coefficients[1, 2], -coefficients[0, 2], c, d], parity)


def shifted(transform: AffineTransform, anchor: npt.ArrayLike) -> AffineTransform:
    """Return a transform into a frame whose origin lies at minus `anchor`."""
    return AffineTransform(transform.v + np.append([0.0, 0.0], anchor), transform.parity)


class ResidualSurface(SmoothBivariateSpline):
    """A surface through values on a grid, with all that a `scipy.interpolate.SmoothBivariateSpline` can do.

    Parameters
    ----------
    x, y : ndarray, shape (nx,) and (ny,)
        The grid.
    z : ndarray, shape (nx, ny)
        Values, which the surface passes through: `get_residual` is 0.
    degree : int
        Of the spline along both axes.
    """

    def __init__(self, x: Float, y: Float, z: Float, degree: int) -> None:
        spline = RectBivariateSpline(x, y, z, kx=degree, ky=degree)
        self.fp, self.tck, self.degrees = spline.fp, spline.tck, spline.degrees


def subtract_surfaces(
    xy: npt.ArrayLike, relative: bool = False, *, _sbs_x: ResidualSurface, _sbs_y: ResidualSurface
) -> Float:
    """Return positions on the template less the surfaces there, or (relative) minus the surfaces."""
    rows = as_rows(xy)
    offset = np.column_stack([_sbs_x.ev(*rows.T), _sbs_y.ev(*rows.T)])
    return like(-offset if relative else rows - offset, xy)
