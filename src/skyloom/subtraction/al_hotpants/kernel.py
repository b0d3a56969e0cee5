"""Kernels in the layout of HOTPANTS: its basis, its coefficients, its FITS table, and images of the kernel anywhere."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.table import Table

from skyloom.convolution import PolynomialKernel, exponents, polynomial
from skyloom.errors import InputError, NoOverlapError
from skyloom.subtraction.basis import Float64Array, KernelBasis, gaussian_basis


@dataclass(frozen=True)
class Region:
    """A part of the field with a fit of its own; pixels 0-based, limits inclusive.

    Parameters
    ----------
    x0, x1, y0, y1 : int
        The region.
    bx0, bx1, by0, by1 : int
        The region with its border, from which X and Y count: X = (x - bx0 - W / 2) / (W / 2), W = bx1 - bx0 + 1.
    """

    x0: int
    x1: int
    y0: int
    y1: int
    bx0: int
    bx1: int
    by0: int
    by1: int

    @property
    def scale(self) -> tuple[float, float]:
        """Half the sides of the region with its border, W / 2 and H / 2."""
        return (self.bx1 - self.bx0 + 1) / 2, (self.by1 - self.by0 + 1) / 2

    @property
    def centre(self) -> tuple[float, float]:
        """Pixel coordinates with X = Y = 0: half a pixel above the middle, as HOTPANTS counts."""
        return self.bx0 + self.scale[0], self.by0 + self.scale[1]

    def holds(self, x: float, y: float) -> bool:
        """Whether the pixel nearest to (x, y) belongs to the region."""
        return bool(self.x0 <= round(x) <= self.x1 and self.y0 <= round(y) <= self.y1)


@dataclass(frozen=True, eq=False)
class HotpantsBasis:
    """The functions B_n of HOTPANTS, for `degrees` and `sigmas` of the Gaussians or from `given` images.

    B_(g,p,q) = u^p v^q exp(-(u^2 + v^2) / (2 sigma_g^2)), p outer and q inner, p + q <= degree. If p and q are both
    even, each factor has the sum 1 and, but for the first, B_0 is subtracted: all sums but that of B_0 vanish.

    Parameters
    ----------
    half : int
    degrees, sigmas : tuple
    given : ndarray, shape (n, 2 half + 1, 2 half + 1), optional
        Basis images: B_0 is the first, divided by its sum; B_n is the n-th less its sum times B_0.
    """

    half: int
    degrees: tuple[int, ...] = ()
    sigmas: tuple[float, ...] = ()
    given: Float64Array | None = None

    def __len__(self) -> int:
        return len(self._powers()) if self.given is None else len(self.given)

    def _powers(self) -> list[tuple[int, int, int]]:
        return [(g, p, q) for g, d in enumerate(self.degrees) for p in range(d + 1) for q in range(d + 1 - p)]

    @cached_property
    def images(self) -> Float64Array:
        """The functions as images [v, u], shape (n, 2 half + 1, 2 half + 1)."""
        if self.given is not None:
            first = self.given[0] / self.given[0].sum()
            return np.stack([first] + [image - image.sum() * first for image in self.given[1:]])
        axis = np.arange(-self.half, self.half + 1.0)
        images: list[Float64Array] = []
        for g, p, q in self._powers():
            gauss = np.exp(-0.5 * (axis / self.sigmas[g]) ** 2)
            along_x, along_y = axis**p * gauss, axis**q * gauss
            both_even = p % 2 == 0 and q % 2 == 0
            if both_even:
                along_x, along_y = along_x / along_x.sum(), along_y / along_y.sum()
            image = np.outer(along_y, along_x)
            images.append(image - images[0] if both_even and images else image)
        return np.array(images)

    def orthonormal(self) -> KernelBasis:
        """Return a basis of the same span, the first function the same, in which the fit is well conditioned."""
        if self.given is None:
            return gaussian_basis(self.sigmas, self.degrees, self.half)
        return _separated(self.images)

    def coefficients_from(self, basis: KernelBasis, coefficients: Float64Array) -> Float64Array:
        """Return coefficients (n, terms) of these functions for a kernel given by those of `orthonormal()`."""
        if self.given is None:
            own = self._from_hermite(basis.mix.T @ coefficients)
        else:
            images = self.images.reshape(len(self), -1)
            norm = np.linalg.norm(images, axis=1)
            planes = coefficients.T @ basis.images.reshape(len(basis), -1)
            own = np.linalg.lstsq((images / norm[:, None]).T, planes.T, rcond=1e-14)[0] / norm[:, None]
        own[0] = coefficients[0]  # both B_0 are the same, and all other functions have the sum 0
        return own

    def _from_hermite(self, coefficients: Float64Array) -> Float64Array:
        """Return coefficients of these functions, but for B_0, from those of the filters of `gaussian_basis`.

        These are H_p(u / sigma) H_q(v / sigma) times the Gaussian of sum 1; the rows of `coefficients` are those of
        p and q in the order of this basis.
        """
        g, p, q = np.array(self._powers()).T
        own = np.zeros_like(coefficients)
        axis = np.arange(-self.half, self.half + 1.0)
        for k, (degree, sigma) in enumerate(zip(self.degrees, self.sigmas, strict=True)):
            powers = _hermite_powers(degree) / sigma ** np.arange(degree + 1.0)  # of u in H_p(u / sigma), row by row
            gauss = np.exp(-0.5 * (axis / sigma) ** 2)
            moments = axis ** np.arange(degree + 1.0)[:, None] @ gauss
            here, a, b = g == k, p[g == k], q[g == k]
            monomial = (powers[np.ix_(a, a)] * powers[np.ix_(b, b)]).T @ coefficients[here] / moments[0] ** 2
            # if both powers are even, the factors of B_n have the sum 1
            own[here] = monomial * np.where((a % 2 == 0) & (b % 2 == 0), moments[a] * moments[b], 1.0)[:, None]
        return own


def _hermite_powers(degree: int) -> Float64Array:
    """Return the coefficients [p, i] of t^i in H_p(t), from H_(p+1) = 2 t H_p - 2 p H_(p-1)."""
    powers = np.eye(degree + 1)
    for p in range(degree):
        powers[p + 1, 1:] = 2 * powers[p, :-1]
        powers[p + 1, 0] = 0
        if p:
            powers[p + 1] -= 2 * p * powers[p - 1]
    return powers


@dataclass(frozen=True, eq=False)
class HotpantsKernel:
    """The solution of all regions, in the layout of HOTPANTS.

    Parameters
    ----------
    basis : HotpantsBasis
    ko, bgo : int
        Orders of the polynomials of kernel and background.
    regions : tuple of Region
    solutions : ndarray, shape (n_regions, n_rows)
        Columns of the table: [0] unused; [1] coefficient of B_0; then, for each further function, those of the
        monomials X^i Y^j, i outer and j inner; then those of the background; the rest is 0. NaN for
        a region without a solution.
    convolved : tuple of str
        Which image each region's kernel convolves: 'template' or 'image'.
    """

    basis: HotpantsBasis
    ko: int
    bgo: int
    regions: tuple[Region, ...]
    solutions: Float64Array
    convolved: tuple[str, ...] = field(default=())

    @staticmethod
    def row_count(n_basis: int, ko: int, bgo: int) -> int:
        """Return the length of the columns of the table."""
        return n_basis * len(exponents(ko)) + len(exponents(bgo)) + 1

    @staticmethod
    def pack(coefficients: Float64Array, background: Float64Array) -> Float64Array:
        """Return a column from coefficients (n_basis, n_terms) of the kernel and those of the background."""
        column = np.zeros(coefficients.size + len(background) + 1)
        column[1] = coefficients[0, 0]
        used = 2 + coefficients[1:].size
        column[2:used] = coefficients[1:].ravel()
        column[used : used + len(background)] = background
        return column

    def coefficients(self, region: int) -> Float64Array:
        """Return the coefficients of the kernel's functions, shape (n_basis, n_terms)."""
        terms = len(exponents(self.ko))
        own = np.zeros((len(self.basis), terms))
        own[0, 0] = self.solutions[region, 1]
        own[1:] = self.solutions[region, 2 : 2 + (len(self.basis) - 1) * terms].reshape(-1, terms)
        return own

    def background(self, region: int) -> Float64Array:
        """Return the coefficients of the background's monomials."""
        start = 2 + (len(self.basis) - 1) * len(exponents(self.ko))
        return self.solutions[region, start : start + len(exponents(self.bgo))]

    def polynomial(self, region: int) -> PolynomialKernel:
        """Return the kernel of a region, one image for each monomial."""
        where = self.regions[region]
        planes = np.tensordot(self.coefficients(region).T, self.basis.images, axes=1)
        return PolynomialKernel(planes, where.centre, where.scale)

    def region_at(self, x: float, y: float) -> int:
        """Return the number of the region to which pixel (x, y) belongs.

        Raises
        ------
        NoOverlapError
            No region holds it.
        """
        for number, region in enumerate(self.regions):
            if region.holds(x, y):
                return number
        raise NoOverlapError(
            f"The pixel x={x:g}, y={y:g} lies in none of the {len(self.regions)} regions of the kernel."
        )

    def image_at(self, x: float, y: float) -> Float64Array:
        """Return the kernel at pixel (x, y) (0-based), shape (2 r + 1, 2 r + 1), rows along y."""
        return self.polynomial(self.region_at(x, y)).image_at(x, y)

    def sum_at(self, x: float, y: float) -> float:
        """Return the kernel's sum at pixel (x, y)."""
        return float(self.polynomial(self.region_at(x, y)).sum_at(x, y))

    def background_at(self, x: float, y: float) -> float:
        """Return the differential background at pixel (x, y)."""
        number = self.region_at(x, y)
        where = self.regions[number]
        return float(polynomial(self.background(number), x, y, where.centre, where.scale))

    def to_table(self) -> Table:
        """Return the table that HOTPANTS writes with -hki; the names of the header are in `meta`.

        REGIONnn and CONVOLnn, which HOTPANTS writes to the primary header, and BORDERnn, the region with its
        border, are there too, so that `from_table` needs nothing else.
        """
        table = Table({f"Region{k}": column for k, column in enumerate(self.solutions)})
        meta: dict[str, Any] = {"OBJECT": "Convolution Kernel Information", "NGAUSS": len(self.basis.degrees)}
        for k, (degree, sigma) in enumerate(zip(self.basis.degrees, self.basis.sigmas, strict=True), start=1):
            meta |= {f"DGAUSS{k}": degree, f"SGAUSS{k}": sigma}
        meta |= {"FWKERN": 2 * self.basis.half + 1, "CKORDER": self.ko, "BGORDER": self.bgo}
        if self.basis.given is not None:
            meta["NPCA"] = len(self.basis.given)
        for k, where in enumerate(self.regions):
            meta[f"REGION{k:02d}"] = f"[{where.x0 + 1}:{where.x1 + 1},{where.y0 + 1}:{where.y1 + 1}]"
            meta[f"BORDER{k:02d}"] = f"[{where.bx0 + 1}:{where.bx1 + 1},{where.by0 + 1}:{where.by1 + 1}]"
            meta[f"CONVOL{k:02d}"] = self.convolved[k].upper()
        table.meta.update(meta)
        return table

    @classmethod
    def from_table(
        cls, table: Table, header: Mapping[str, Any] | None = None, *, pca: Float64Array | None = None
    ) -> HotpantsKernel:
        """Return the kernel of a table, be it ours or one that HOTPANTS wrote.

        Parameters
        ----------
        table : Table
            With the keywords of its header in `meta`.
        header : mapping, optional
            Primary header: REGIONnn and CONVOLnn, if the table has them not.
        pca : ndarray, shape (n, 2 r + 1, 2 r + 1), optional
            The basis images of a kernel that was fitted with them.

        Raises
        ------
        InputError
            A keyword is missing, or the columns have the wrong length.
        """
        keys: dict[str, Any] = {**dict(header or {}), **table.meta}
        try:
            half, ko, bgo, count = (int(keys[name]) for name in ("FWKERN", "CKORDER", "BGORDER", "NGAUSS"))
            degrees = tuple(int(keys[f"DGAUSS{k}"]) for k in range(1, count + 1))
            sigmas = tuple(float(keys[f"SGAUSS{k}"]) for k in range(1, count + 1))
            regions = tuple(_region(keys, k, len(table.columns)) for k in range(len(table.columns)))
        except KeyError as error:
            raise InputError(
                f"The kernel table has no keyword {error.args[0]}; it must be the last extension that HOTPANTS writes "
                "with -hki, together with the header of the first."
            ) from None
        if "NPCA" in keys and pca is None:
            raise InputError("The kernel was fitted with basis images (NPCA); give them as pca=.")
        basis = HotpantsBasis((half - 1) // 2, degrees, sigmas, pca)
        solutions = np.array([np.asarray(table[name], np.float64) for name in table.colnames])
        needed = cls.row_count(len(basis), ko, bgo)
        if solutions.shape[1] != needed:
            raise InputError(
                f"The kernel table has {solutions.shape[1]} rows; {len(basis)} functions of order {ko} with a "
                f"background of order {bgo} need {needed}."
            )
        convolved = tuple(str(keys.get(f"CONVOL{k:02d}", "TEMPLATE")).lower() for k in range(len(regions)))
        return cls(basis, ko, bgo, regions, solutions, convolved)

    @classmethod
    def read(cls, path: str | Path) -> HotpantsKernel:
        """Return the kernel of a file that HOTPANTS (-hki or -oki) or skyloom wrote: the table comes last."""
        with fits.open(path) as hdus:
            return cls.from_table(Table.read(hdus[-1]), hdus[0].header)

    def write(self, path: str | Path, *, overwrite: bool = True) -> None:
        """Write the kernel as HOTPANTS does with -oki: an empty image with REGIONnn and CONVOLnn, and the table."""
        primary = fits.PrimaryHDU()
        table = self.to_table()
        for name, value in table.meta.items():
            if name.startswith(("REGION", "CONVOL")):
                primary.header[name] = value
        primary.header["KERINFO"] = True
        fits.HDUList([primary, fits.table_to_hdu(table)]).writeto(path, overwrite=overwrite)


def _region(keys: Mapping[str, Any], number: int, count: int) -> Region:
    """Return a region from its keywords; HOTPANTS writes no border, which is none if there is one region."""
    inner = _limits(str(keys[f"REGION{number:02d}"]))
    name = f"BORDER{number:02d}"
    if name not in keys and count > 1:
        raise InputError(
            f"The kernel has {count} regions, but no keyword {name}: where the polynomials have their origin is not "
            "known. HOTPANTS does not write it; give BORDERnn in the header, '[xmin:xmax,ymin:ymax]' with the border "
            "of half a stamp."
        )
    return Region(*inner, *(_limits(str(keys[name])) if name in keys else inner))


def _limits(text: str) -> tuple[int, int, int, int]:
    numbers = re.fullmatch(r"\s*\[(\d+):(\d+),(\d+):(\d+)\]\s*", text)
    if numbers is None:
        raise InputError(f"The limits {text!r} of a region cannot be read; '[xmin:xmax,ymin:ymax]' is needed.")
    return tuple(int(one) - 1 for one in numbers.groups())  # type: ignore[return-value]  # four groups


def _separated(images: Float64Array) -> KernelBasis:
    """Write images as sums of separable functions, by singular values, with zero-sum combinations orthonormalised."""
    filters, owner = [], []
    for n, image in enumerate(images):
        left, values, right = np.linalg.svd(image)
        for k in np.flatnonzero(values > 1e-12 * values[0]):
            filters.append((left[:, k] * values[k], right[k]))
            owner.append(n)
    mix = (np.arange(len(images))[:, None] == np.array(owner)).astype(np.float64)
    flat = images[1:].reshape(len(images) - 1, images[0].size)
    if len(flat):
        square, vectors = np.linalg.eigh(flat @ flat.T)
        kept = square > 1e-12 * square.max()
        mix = np.vstack([mix[:1], (vectors[:, kept] / np.sqrt(square[kept])).T @ mix[1:]])
    return KernelBasis(np.array(filters), mix)
