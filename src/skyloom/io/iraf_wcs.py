"""World coordinate systems of IRAF (TNX, ZPX), whose distortions stand in WAT cards, in the TPV convention.

Both add a polynomial to the intermediate world coordinates (xi, eta), in degrees (F. Valdes, "The TNX World Coordinate
System", NOAO),

    xi' = xi + lngcor(xi, eta),    eta' = eta + latcor(xi, eta),

and project these: TNX by a gnomonic projection, ZPX by a zenithal one whose radius is a polynomial of the zenith
distance (ZPN, Calabretta & Greisen 2002, eq. 29). TPV is a polynomial of (xi, eta), too, and then gnomonic. So a TNX of
up to the seventh degree is a TPV, exactly; of a ZPX it is the limit for fields of a few degrees. Readers of FITS files
know TPV; many TNX cards, which are cut anywhere, they refuse.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

_LENGTH = 68
"""Characters of the value of a card: blanks at its end are lost when it is read, and belong to the text."""
_DEGREE = 7
_TOLERANCE = 0.01
"""Pixels: TPV must follow within that, everywhere on the image."""

# Powers (of xi, of eta) of the terms PV1_m; those of PV2_m are swapped. Powers of the radius are left out.
_TERMS = {
    0: (0, 0), 1: (1, 0), 2: (0, 1), 4: (2, 0), 5: (1, 1), 6: (0, 2), 7: (3, 0), 8: (2, 1), 9: (1, 2), 10: (0, 3),
    12: (4, 0), 13: (3, 1), 14: (2, 2), 15: (1, 3), 16: (0, 4), 17: (5, 0), 18: (4, 1), 19: (3, 2), 20: (2, 3),
    21: (1, 4), 22: (0, 5), 24: (6, 0), 25: (5, 1), 26: (4, 2), 27: (3, 3), 28: (2, 4), 29: (1, 5), 30: (0, 6),
    31: (7, 0), 32: (6, 1), 33: (5, 2), 34: (4, 3), 35: (3, 4), 36: (2, 5), 37: (1, 6), 38: (0, 7),
}  # fmt: skip


def as_tpv(header: Any, shape: tuple[int, int]) -> Any:
    """Return a header with the TPV form of an IRAF WCS; the header itself if it has none.

    Parameters
    ----------
    header : astropy.io.fits.Header
        Header of an image; it is not changed.
    shape : (int, int)
        Of the image, (ny, nx).

    Raises
    ------
    ValueError
        The WAT cards cannot be understood, or no TPV of the seventh degree is the same WCS.
    """
    kinds = [str(header.get(f"CTYPE{axis}", ""))[-4:].upper() for axis in (1, 2)]
    if kinds[0] != kinds[1] or kinds[0] not in ("-TNX", "-ZPX"):
        return header
    texts = {axis: _wat(header, axis) for axis in (1, 2)}
    corrections = [_correction(texts[axis]) for axis in (1, 2)]
    radial = {int(n): float(value) for n, value in re.findall(r"projp(\d+)\s*=\s*([-+.\deEdD]+)", texts[1])}
    matrix, pixel = _linear(header)
    ny, nx = shape
    x, y = np.meshgrid(np.linspace(0.5, nx + 0.5, 24), np.linspace(0.5, ny + 0.5, 24))  # FITS pixels
    xi, eta = np.einsum("ij,jk->ik", matrix, np.stack([x.ravel() - pixel[0], y.ravel() - pixel[1]]))
    plane = np.stack([values + function(xi, eta) for values, function in zip((xi, eta), corrections, strict=True)])
    if kinds[0] == "-ZPX":
        plane = _gnomonic(plane, radial or {1: 1.0})
    tpv = header.copy()
    for key in [key for key in tpv if re.match(r"(WAT[0-9]_\d+|WCSDIM|PV[12]_\d+)$", key)]:
        del tpv[key]
    scale = np.sqrt(abs(np.linalg.det(matrix)))
    for axis, (values, first, second) in enumerate(((plane[0], xi, eta), (plane[1], eta, xi)), 1):
        tpv[f"CTYPE{axis}"] = header[f"CTYPE{axis}"][:-3] + "TPV"
        for term, value in _fit(values, first, second, _TOLERANCE * scale).items():
            tpv[f"PV{axis}_{term}"] = value
    return tpv


def _wat(header: Any, axis: int) -> str:
    """Return the text of the WAT cards of an axis."""
    pieces = sorted((int(key[5:]), str(header[key])) for key in header if re.match(rf"WAT{axis}_\d+$", key))
    return "".join(text.ljust(_LENGTH) for _, text in pieces)


def _linear(header: Mapping[str, Any]) -> tuple[npt.NDArray[np.float64], tuple[float, float]]:
    """Return the matrix from pixels to degrees, and the reference pixel (1-based)."""
    from astropy.wcs import WCS

    plain = header.copy()  # type: ignore[attr-defined]
    for key in [key for key in plain if re.match(r"WAT[0-9]_\d+$", key)]:
        del plain[key]
    for axis in (1, 2):
        plain[f"CTYPE{axis}"] = plain[f"CTYPE{axis}"][:-3] + "TAN"
    wcs = WCS(plain).celestial
    return wcs.pixel_scale_matrix, tuple(wcs.wcs.crpix)


def _correction(text: str) -> Any:
    """Return the function lngcor or latcor of a WAT text, (xi, eta) in degrees -> degrees."""
    found = re.search(r"(?:lng|lat)cor\s*=\s*\"([^\"]*)", text)
    if found is None:
        return lambda xi, _: np.zeros_like(xi)
    numbers = [float(one.replace("D", "E").replace("d", "e")) for one in found.group(1).split()]
    kind, n_xi, n_eta, cross = (int(one) for one in numbers[:4])
    low_xi, high_xi, low_eta, high_eta = numbers[4:8]
    most = max(n_xi, n_eta)
    # cross terms: none, all, or those whose order is below the larger one
    powers = [
        (i, j)
        for j in range(n_eta)
        for i in range(n_xi)
        if cross == 1 or (i + j < most if cross == 2 else i == 0 or j == 0)
    ]
    if kind not in (1, 2, 3) or cross not in (0, 1, 2) or len(numbers) != 8 + len(powers):
        raise ValueError(f"a WAT card has {len(numbers)} numbers, which are no polynomial")
    table = np.zeros((n_xi, n_eta))
    for power, value in zip(powers, numbers[8:], strict=True):
        table[power] = value
    polynomial = np.polynomial
    evaluate: Any = {
        1: polynomial.chebyshev.chebval2d,
        2: polynomial.legendre.legval2d,
        3: polynomial.polynomial.polyval2d,
    }[kind]
    if kind == 3:
        return lambda xi, eta: evaluate(xi, eta, table)

    def unit(values: Any, low: float, high: float) -> Any:
        return (2 * values - (high + low)) / (high - low)

    return lambda xi, eta: evaluate(unit(xi, low_xi, high_xi), unit(eta, low_eta, high_eta), table)


def _gnomonic(plane: npt.NDArray[np.float64], radial: Mapping[int, float]) -> npt.NDArray[np.float64]:
    """Return the gnomonic coordinates of zenithal ones, degrees, whose radius is sum_m P_m (zenith distance)^m."""
    radius = np.radians(np.hypot(*plane))
    distance = radius / radial.get(1, 1.0)
    for _ in range(50):  # Newton's method
        value = sum(p * distance**m for m, p in radial.items())
        slope = sum(m * p * distance ** (m - 1) for m, p in radial.items() if m)
        step = (value - radius) / slope
        distance = distance - step
        if np.abs(step).max() < 1e-15:
            break
    with np.errstate(invalid="ignore"):
        return plane * np.where(radius > 0, np.tan(distance) / radius, 1 / radial.get(1, 1.0))


def _fit(values: Any, first: Any, second: Any, tolerance: float) -> dict[int, float]:
    """Return the PV coefficients of the polynomial that passes through values (degrees)."""
    size = max(np.abs(first).max(), np.abs(second).max())
    design = np.stack([(first / size) ** p * (second / size) ** q for p, q in _TERMS.values()], axis=1)
    solution = np.linalg.lstsq(design, values / size, rcond=None)[0]
    if not np.abs(design @ solution - values / size).max() * size <= tolerance:
        raise ValueError(f"its distortion is no polynomial of degree {_DEGREE}")
    return {
        term: float(value * size ** (1 - p - q)) for (term, (p, q)), value in zip(_TERMS.items(), solution, strict=True)
    }
