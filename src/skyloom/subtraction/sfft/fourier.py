r"""The Fourier form: unweighted least squares whose cost does not depend on the kernel's size.

It is that of Hu et al. (2022, ApJ 936, 157). With functions T_s(x, y) of position, I_s = T_s I for the template I, and
all pixels counting the same, the model

    M = sum_s sum_a c_sa shift_a(I_s) + sum_q b_q T_q,      |a_x|, |a_y| <= w,

has a normal matrix whose entries are correlations of images, taken at differences of shifts (their eq. 12 to 20):

    <shift_a I_s, shift_a' I_t> = C_st(a' - a),  C_st = F^-1[F I_s conj(F I_t)],

one transform for each pair (s, t), whatever the number of shifts. The boundary is periodic.

The kernel's sum is a constant of the field (`constant_ratio`) or varies like the rest: with the functions
delta_a - delta_0 for a != 0 (zero sum) and delta_0, only the coefficients of the latter are bound to the constant
function.

Weights would break the correlations, and so do pixels that are not to count: masked ones, those whose kernel reaches a
masked one, and a border of w pixels, without which the periodic boundary would matter. Hu et al. replace them in both
images, and solve once. Here the equations of the pixels that count are solved exactly, by conjugate gradients whose
products A x and A^T u are made of transforms, too, and take the other pixels out; the matrix of images that fall to 0
smoothly towards holes guides them (as preconditioner: Golub & Van Loan, Matrix Computations, algorithm 11.5.1). The
fall is that of the square of the share of target pixels in a window of the kernel's size: with a sharper edge, or none,
the rims of saturated stars, which hardly any target pixel sees, would rule the matrix. Where these rims rule the target
pixels' equations too, no such guide is good; after some steps the matrix is then summed directly over the target
pixels, with a kernel that is constant within cells (as in `skyloom.subtraction.sfft.design`), and takes over.

All arrays are of one namespace, NumPy's or CuPy's; the code is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from skyloom._threads import num_threads
from skyloom.convolution import exponents
from skyloom.errors import InputError, ShapeError, SubtractionError, TooFewPixelsError
from skyloom.subtraction.sfft.planes import reach

Float64Array = npt.NDArray[np.float64]
Backend = Literal["auto", "cpu", "gpu"]

_STEPS_BY_TRANSFORMS, _MOST_STEPS = 60, 200
_CELLS = 16  # along the longer side, where the matrix is summed directly
_ACCURACY = 1e-4  # of the statistical errors
_ROUNDING = 1e-26


@dataclass(frozen=True)
class Polynomials:
    """X^i Y^j, i + j <= order; X and Y run from -1 to 1 over the field."""

    order: int = 2

    def axes(self, x: Float64Array, y: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Return factors (terms, len(x)) and (terms, len(y)) of each term, for X and Y from -1 to 1."""
        powers = np.array(exponents(self.order))
        return x ** powers[:, :1], y ** powers[:, 1:]

    def constant(self) -> Float64Array:
        """Return the coefficients of the function 1."""
        return np.array([float(i == j == 0) for i, j in exponents(self.order)])


@dataclass(frozen=True)
class BSplines:
    """Products of B-splines along x and y, on knots that divide the field evenly (de Boor 1978)."""

    pieces: int = 2
    degree: int = 3

    def axes(self, x: Float64Array, y: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Return factors (terms, len(x)) and (terms, len(y)) of each term, for X and Y from -1 to 1."""
        along_x, along_y = self._along(x), self._along(y)
        n = len(along_x)
        return np.repeat(along_x, n, axis=0), np.tile(along_y, (n, 1))

    def constant(self) -> Float64Array:
        """Return the coefficients of the function 1: B-splines add up to it."""
        return np.ones((self.pieces + self.degree) ** 2)

    def _along(self, axis: Float64Array) -> Float64Array:
        from scipy.interpolate import BSpline

        inner = np.linspace(-1, 1, self.pieces + 1)
        knots = np.concatenate([[-1] * self.degree, inner, [1] * self.degree])
        design: Float64Array = BSpline.design_matrix(np.clip(axis, -1, 1), knots, self.degree).toarray().T
        return design


@dataclass(frozen=True)
class FourierOptions:
    """How to fit in Fourier space.

    Parameters
    ----------
    half : int
        Pixels from the kernel's centre to its edge.
    kernel, background : Polynomials or BSplines
        How kernel and differential background vary over the field.
    constant_ratio : bool
        The kernel's sum is the same everywhere.
    ridge : float
        Weight of the squares of the kernel's coefficients, in units of the mean diagonal of the normal matrix.
    backend : {'auto', 'cpu', 'gpu'}
        'gpu' needs CuPy and a device; 'auto' takes it if both are there, or if the images are CuPy arrays.

    Raises
    ------
    InputError
        A value is out of its range.
    """

    half: int = 8
    kernel: Polynomials | BSplines = Polynomials(2)
    background: Polynomials | BSplines = Polynomials(2)
    constant_ratio: bool = True
    ridge: float = 1e-7
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        if self.half < 1 or not self.ridge >= 0:
            raise InputError(f"half is {self.half} and ridge {self.ridge}; at least 1 and 0 are needed.")
        if self.backend not in ("auto", "cpu", "gpu"):
            raise InputError(f"backend is {self.backend!r}; it must be 'auto', 'cpu' or 'gpu'.")


@dataclass(frozen=True, eq=False)
class FourierFit:
    """A kernel fitted in Fourier space. Arrays are of the namespace that was used.

    Parameters
    ----------
    image, matched : array, shape (ny, nx)
        Science minus matched template, and the matched template with the background; of all pixels, also those
        replaced.
    kernels : array, shape (terms, 2 half + 1, 2 half + 1)
        One kernel for each function of position.
    background : array
        Coefficients of the background.
    steps : int
        Number of steps.
    """

    image: Any
    matched: Any
    kernels: Any
    background: Any
    options: FourierOptions
    steps: int

    def kernel_at(self, x: float, y: float) -> Any:
        """Return the kernel for the template's light at pixel (x, y)."""
        ny, nx = self.image.shape
        along = self.options.kernel.axes(_unit(np.array([x]), nx), _unit(np.array([y]), ny))
        weights = (along[0] * along[1])[:, 0]
        kernels = self.kernels.get() if hasattr(self.kernels, "get") else self.kernels
        return np.tensordot(weights, kernels, axes=1)


def subtract_fourier(
    science: Any, template: Any, usable: Any = None, options: FourierOptions | None = None
) -> FourierFit:
    """Fit kernel and background in Fourier space, and subtract.

    Parameters
    ----------
    science, template : array, shape (ny, nx)
        On the same pixels, sky subtracted or not; NumPy or CuPy.
    usable : array of bool, shape (ny, nx), optional
        False where either image is not to be used; pixels that are not finite are not.
    options : FourierOptions, optional

    Returns
    -------
    FourierFit

    Raises
    ------
    ShapeError
        The shapes differ.
    TooFewPixelsError
        Fewer usable pixels than unknowns.
    SubtractionError
        The template has no structure.
    InputError
        A GPU is asked for that is not there.
    """
    options = options or FourierOptions()
    xp, fft = _namespace(options.backend, science)
    science, template = (xp.array(plane, dtype=xp.float64) for plane in (science, template))
    if science.ndim != 2 or science.shape != template.shape:
        raise ShapeError(f"The images have the shapes {science.shape} and {template.shape}; they must be the same.")
    good = xp.isfinite(science) & xp.isfinite(template)
    if usable is not None:
        good &= xp.asarray(usable)
    side = (2 * options.half + 1,) * 2
    target = ~xp.asarray(reach(_on_cpu(~good), side))
    if not bool(target.any()):
        raise TooFewPixelsError(
            f"Too few good pixels: the kernel of {side[0]} pixels reaches a bad one from everywhere."
        )
    levels = [float(xp.median(plane[target])) for plane in (science, template)]
    system = _System(xp.where(good, template - levels[1], 0.0), target, options, xp, fft)
    if int(target.sum()) <= system.size:
        raise TooFewPixelsError(
            f"Too few good pixels: {int(target.sum())} may be used and the model has {system.size} unknowns. Give a "
            "smaller "
            "kernel or fewer terms."
        )
    x, steps = system.solve(xp.where(target, science - levels[0], 0.0))
    model = system.model(x)
    image = xp.where(xp.isfinite(science), science - levels[0] - model, 0.0)
    return FourierFit(image, model + levels[0], *system.parts(x), options, steps)


class _System:
    """The normal equations for one template."""

    def __init__(self, template: Any, target: Any, options: FourierOptions, xp: Any, fft: Any) -> None:
        self.xp: Any = xp
        self.fft, self.options = fft, options
        self.shape: tuple[int, int] = template.shape
        ny, nx = template.shape
        X, Y = _unit(np.arange(nx), nx), _unit(np.arange(ny), ny)
        self.kernel_axes = tuple(xp.asarray(a) for a in options.kernel.axes(X, Y))
        self.flat_axes = tuple(xp.asarray(a) for a in options.background.axes(X, Y))
        self.n_terms, self.n_flat = len(self.kernel_axes[0]), len(self.flat_axes[0])
        axis = np.arange(-options.half, options.half + 1)
        self.taps = axis.size**2
        # shifts of a template's image: dy of the tap (dy, dx), row by row
        self.dy, self.dx = (xp.asarray(a.ravel()) for a in np.meshgrid(axis, axis, indexing="ij"))
        self.transforms = self._transforms(template)
        ratio = options.kernel.constant()[:, None] if options.constant_ratio else np.eye(self.n_terms)
        self.ratio = xp.asarray(ratio)  # terms of the functions with which the kernel's sum varies
        self.n_kernel = ratio.shape[1] + self.n_terms * (self.taps - 1)
        self.size = self.n_kernel + self.n_flat
        self.template, self.target = template, target
        matrix = self._matrix(template, self._taper(target))
        unit = float(xp.mean(xp.diagonal(matrix)[: -self.n_flat]))
        if not unit > 0:
            raise SubtractionError("The template has no structure where it may be used; no kernel can be fitted.")
        self.ridge = options.ridge * unit
        self._guide_by(matrix)

    def _guide_by(self, matrix: Any) -> None:
        xp, n = self.xp, self.n_kernel
        matrix[xp.arange(n), xp.arange(n)] += self.ridge
        self.scale = 1 / xp.sqrt(xp.diagonal(matrix))
        self.inverse = xp.linalg.inv(matrix * self.scale[:, None] * self.scale[None, :])

    def _transforms(self, template: Any) -> list[Any]:
        return [self._forward(self._term(self.kernel_axes, s) * template) for s in range(self.n_terms)]

    def _taper(self, target: Any) -> Any:
        """Return the square of the share of a pixel's window that is target: smooth, and 0 in holes."""
        box = self.xp.zeros(self.shape)
        ny, nx = self.shape
        box[self.dy % ny, self.dx % nx] = 1 / self.taps
        return self._back(self._forward(target * 1.0) * self._forward(box)) ** 2

    def _term(self, axes: tuple[Any, ...], s: int) -> Any:
        return axes[1][s][:, None] * axes[0][s][None, :]

    def _forward(self, image: Any) -> Any:
        return self.fft.rfft2(image)

    def _back(self, transform: Any) -> Any:
        return self.fft.irfft2(transform, s=self.shape)

    def _matrix(self, template: Any, taper: Any) -> Any:
        """Return A^T A of the tapered images, a guide to that of the target pixels."""
        xp, n = self.xp, self.taps
        ny, nx = self.shape
        tapered = self._transforms(taper * template)
        raw = xp.empty((self.n_terms * n, self.n_terms * n))
        lag_y, lag_x = (d[None, :] - d[:, None] for d in (self.dy, self.dx))
        for s in range(self.n_terms):
            for t in range(s, self.n_terms):
                # sum_p I_s(p - a) I_t(p - a') = sum_p I_s(p) I_t(p - (a' - a))
                correlation = self._back(tapered[s] * xp.conj(tapered[t]))
                block = correlation[lag_y % ny, lag_x % nx]
                raw[s * n : (s + 1) * n, t * n : (t + 1) * n] = block
                raw[t * n : (t + 1) * n, s * n : (s + 1) * n] = block.T
        flat = [taper * self._term(self.flat_axes, q) for q in range(self.n_flat)]
        cross = xp.stack([self._kernel_products(image, tapered) for image in flat], axis=1)
        return self._whole(raw, cross, xp.stack([self._flat_products(taper * image) for image in flat], axis=1))

    def _direct_matrix(self) -> Any:
        """Return A^T A of the target pixels, summed directly, the kernel being constant within cells."""
        xp, n = self.xp, self.taps
        ny, nx = self.shape
        cell = max(8, -(-max(ny, nx) // _CELLS))
        terms, grams = [], []
        cross: Any = 0.0
        corner: Any = 0.0
        for top in range(0, ny, cell):
            for left in range(0, nx, cell):
                y, x = xp.nonzero(self.target[top : top + cell, left : left + cell])
                if y.size == 0:
                    continue
                y, x = y + top, x + left
                windows = self.template[(y[:, None] - self.dy) % ny, (x[:, None] - self.dx) % nx]
                flat = self.flat_axes[1][:, y] * self.flat_axes[0][:, x]
                middle = min(top + cell // 2, ny - 1), min(left + cell // 2, nx - 1)
                terms.append(self.kernel_axes[1][:, middle[0]] * self.kernel_axes[0][:, middle[1]])
                grams.append((windows.T @ windows).ravel())
                products = windows.T @ flat.T
                cross = cross + terms[-1][:, None, None] * products[None]
                corner = corner + flat @ flat.T
        of_cells, sums = xp.stack(terms), xp.stack(grams)
        raw = xp.empty((self.n_terms * n, self.n_terms * n))
        for s in range(self.n_terms):
            for t in range(s, self.n_terms):
                block = ((of_cells[:, s] * of_cells[:, t]) @ sums).reshape(n, n)
                raw[s * n : (s + 1) * n, t * n : (t + 1) * n] = block
                raw[t * n : (t + 1) * n, s * n : (s + 1) * n] = block
        return self._whole(raw, cross.reshape(self.n_terms * n, -1), corner)

    def _whole(self, raw: Any, cross: Any, corner: Any) -> Any:
        """Return the matrix, given products of shifts with shifts, of shifts with the background, and of the latter."""
        kernel, cross = self._contract(self._contract(raw).T), self._contract(cross)
        xp = self.xp
        return xp.concatenate([xp.concatenate([kernel, cross], axis=1), xp.concatenate([cross.T, corner], axis=1)])

    def _kernel_products(self, image: Any, transforms: list[Any]) -> Any:
        """Return sum_p I_s(p - a) u(p) for all s and a, given F I_s."""
        ny, nx = self.shape
        transform = self._forward(image)
        parts = [self._back(transform * self.xp.conj(one))[self.dy % ny, self.dx % nx] for one in transforms]
        return self.xp.concatenate(parts)

    def _flat_products(self, image: Any) -> Any:
        return self.xp.stack([(self.flat_axes[1][q] @ image) @ self.flat_axes[0][q] for q in range(self.n_flat)])

    def project(self, image: Any) -> Any:
        """Return A^T u for an image u, with zeros where pixels are missing."""
        kernel = self._contract(self._kernel_products(image, self.transforms)[:, None])[:, 0]
        return self.xp.concatenate([kernel, self._flat_products(image)])

    def step(self, gradient: Any) -> Any:
        """Return the step to the minimum that would be right if the guide were exact."""
        return self.scale * (self.inverse @ (self.scale * gradient))

    def solve(self, image: Any) -> tuple[Any, int]:
        """Return the least-squares solution over the target pixels, and the number of steps to it."""
        x, steps, done = self._descend(image, self.xp.zeros(self.size), _STEPS_BY_TRANSFORMS)
        if not done:
            self._guide_by(self._direct_matrix())
            x, more, done = self._descend(image, x, _MOST_STEPS)
            steps += more
        if not done:
            raise SubtractionError(
                f"The fit has not converged after {steps} steps: too many pixels are missing for so many unknowns. "
                "Give a smaller kernel or fewer terms."
            )
        return x, steps

    def _descend(self, image: Any, x: Any, most: int) -> tuple[Any, int, bool]:
        """Return x after steps of conjugate gradients, their number, and whether that is the solution."""
        xp, target = self.xp, self.target
        residual = image - xp.where(target, self.model(x), 0.0)
        r = self.project(residual)
        r[: -self.n_flat] -= self.ridge * x[: -self.n_flat]
        direction = z = self.step(r)
        left = first = float(r @ z)
        for count in range(most):
            if left <= max(_ACCURACY**2 * float(xp.mean(residual[target] ** 2)), _ROUNDING * first):
                return x, count, True
            change = xp.where(target, self.model(direction), 0.0)
            length = left / float(xp.sum(change**2) + self.ridge * xp.sum(direction[: -self.n_flat] ** 2))
            x = x + length * direction
            residual = residual - length * change
            r = self.project(residual)
            r[: -self.n_flat] -= self.ridge * x[: -self.n_flat]
            z = self.step(r)
            previous, left = left, float(r @ z)
            direction = z + (left / previous) * direction
        return x, most, False

    def parts(self, x: Any) -> tuple[Any, Any]:
        """Return the kernels and the coefficients of the background."""
        side = 2 * self.options.half + 1
        n = self.ratio.shape[1]
        rest = x[n : self.n_kernel].reshape(self.n_terms, -1)
        middle = self.taps // 2
        peak = self.ratio @ x[:n] - rest.sum(axis=1)
        kernels = self.xp.concatenate([rest[:, :middle], peak[:, None], rest[:, middle:]], axis=1)
        return kernels.reshape(self.n_terms, side, side), x[self.n_kernel :]

    def _contract(self, products: Any) -> Any:
        """Return products with the functions of the kernel's sum and with delta_a - delta_0, given those with delta_a.

        Of each column: shapes (terms * taps, n) and (n_kernel, n). The transpose of what `parts` does.
        """
        products = products.reshape(self.n_terms, self.taps, -1)
        middle = self.taps // 2
        peak = products[:, middle]
        rest = self.xp.concatenate([products[:, :middle], products[:, middle + 1 :]], axis=1) - peak[:, None]
        return self.xp.concatenate([self.ratio.T @ peak, rest.reshape(-1, products.shape[2])])

    def model(self, x: Any) -> Any:
        """Return the model image."""
        kernels, background = self.parts(x)
        total = 0.0
        half = self.options.half
        for kernel, transform in zip(kernels, self.transforms, strict=True):
            padded = self.xp.zeros(self.shape)
            padded[: 2 * half + 1, : 2 * half + 1] = kernel
            total = total + transform * self._forward(self.xp.roll(padded, (-half, -half), (0, 1)))
        flat = (self.flat_axes[1] * background[:, None]).T @ self.flat_axes[0]
        return self._back(total) + flat


def _unit(pixels: npt.NDArray[Any], size: int) -> Float64Array:
    return (2.0 * pixels - (size - 1)) / max(size - 1, 1)


def _on_cpu(array: Any) -> Any:
    return array.get() if hasattr(array, "get") else array


class _ScipyFft:
    """scipy.fft on our number of threads."""

    @staticmethod
    def rfft2(image: Any) -> Any:
        import scipy.fft

        return scipy.fft.rfft2(image, workers=num_threads())

    @staticmethod
    def irfft2(transform: Any, s: tuple[int, int]) -> Any:
        import scipy.fft

        return scipy.fft.irfft2(transform, s=s, workers=num_threads())


def _namespace(backend: Backend, image: Any) -> tuple[Any, Any]:
    """Return the array namespace, and what has rfft2 and irfft2."""
    is_gpu_array = type(image).__module__.startswith("cupy")
    if backend == "cpu" and is_gpu_array:
        raise InputError(
            "The images are CuPy arrays and backend is 'cpu'; copy them with .get(), or give backend='auto'."
        )
    if backend != "cpu":
        try:
            import cupy  # type: ignore[import-not-found, import-untyped, unused-ignore]

            if cupy.cuda.runtime.getDeviceCount() > 0:
                return cupy, cupy.fft
        except Exception as error:  # noqa: BLE001  CuPy without a driver raises errors of its own
            reason = str(error)
        else:
            reason = "CuPy finds no device"
        if backend == "gpu":
            raise InputError(
                f"backend is 'gpu', but there is none to use: {reason}. Install CuPy, or give backend='cpu'."
            )
    return np, _ScipyFft
