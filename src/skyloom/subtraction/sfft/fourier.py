r"""The Fourier form: unweighted least squares whose cost does not depend on the kernel's size.

It is that of Hu et al. (2022, ApJ 936, 157). With functions T_s(x, y) of position, I_s = T_s I for the template I, and
all pixels counting the same, the model

    M = sum_s sum_a c_sa shift_a(I_s) + sum_q b_q T_q,      |a_x|, |a_y| <= w,

has a normal matrix whose entries are correlations of images, taken at differences of shifts (their eq. 12 to 20):

    <shift_a I_s, shift_a' I_t> = C_st(a' - a),  C_st = F^-1[conj(F I_s) F I_t],

one transform for each pair (s, t), whatever the number of shifts. The boundary is periodic.

The kernel's sum is a constant of the field (`constant_ratio`) or varies like the rest: with the functions
delta_a - delta_0 for a != 0 (zero sum) and delta_0, only the coefficients of the latter are bound to the constant
function.

Weights would break the correlations. Pixels that are not to count are therefore *replaced* by the model of the step
before: the expectation-maximisation algorithm for missing data (Dempster, Laird & Rubin 1977), whose fixed point is
the least-squares solution over the other pixels. A step of it is one of the Richardson iteration with the matrix of
all pixels, here sped up by conjugate directions. The border of w pixels counts as missing too, which makes the
periodic boundary harmless.

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

_MOST_STEPS = 300
_ACCURACY = 1e-6  # of the statistical errors
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
    system = _System(xp.where(good, template - levels[1], 0.0), options, xp, fft)
    if int(target.sum()) <= system.size:
        raise TooFewPixelsError(
            f"Too few good pixels: {int(target.sum())} may be used and the model has {system.size} unknowns. Give a "
            "smaller "
            "kernel or fewer terms."
        )
    x, steps = system.solve(xp.where(target, science - levels[0], 0.0), target)
    model = system.model(x)
    image = xp.where(xp.isfinite(science), science - levels[0] - model, 0.0)
    return FourierFit(image, model + levels[0], *system.parts(x), options, steps)


class _System:
    """The normal equations for one template."""

    def __init__(self, template: Any, options: FourierOptions, xp: Any, fft: Any) -> None:
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
        self.transforms = [self._forward(self._term(self.kernel_axes, s) * template) for s in range(self.n_terms)]
        self.mix = xp.asarray(_mix(self.n_terms, self.taps, options))
        self.size = self.mix.shape[1] + self.n_flat
        matrix = self._matrix()
        unit = float(xp.mean(xp.diagonal(matrix)[: -self.n_flat]))
        if not unit > 0:
            raise SubtractionError("The template has no structure where it may be used; no kernel can be fitted.")
        n = self.mix.shape[1]
        self.ridge = options.ridge * unit
        matrix[xp.arange(n), xp.arange(n)] += self.ridge
        self.scale = 1 / xp.sqrt(xp.diagonal(matrix))
        self.inverse = xp.linalg.inv(matrix * self.scale[:, None] * self.scale[None, :])

    def _term(self, axes: tuple[Any, ...], s: int) -> Any:
        return axes[1][s][:, None] * axes[0][s][None, :]

    def _forward(self, image: Any) -> Any:
        return self.fft.rfft2(image)

    def _back(self, transform: Any) -> Any:
        return self.fft.irfft2(transform, s=self.shape)

    def _matrix(self) -> Any:
        xp, n = self.xp, self.taps
        ny, nx = self.shape
        raw = xp.empty((self.n_terms * n, self.n_terms * n))
        lag_y, lag_x = (d[None, :] - d[:, None] for d in (self.dy, self.dx))
        for s in range(self.n_terms):
            for t in range(s, self.n_terms):
                # sum_p I_s(p - a) I_t(p - a') = sum_p I_s(p) I_t(p - (a' - a))
                correlation = self._back(self.transforms[s] * xp.conj(self.transforms[t]))
                block = correlation[lag_y % ny, lag_x % nx]
                raw[s * n : (s + 1) * n, t * n : (t + 1) * n] = block
                raw[t * n : (t + 1) * n, s * n : (s + 1) * n] = block.T
        flat = [self._term(self.flat_axes, q) for q in range(self.n_flat)]
        cross = xp.stack([self._kernel_products(image) for image in flat], axis=1)
        corner = (self.flat_axes[1] @ self.flat_axes[1].T) * (self.flat_axes[0] @ self.flat_axes[0].T)
        cross = self.mix.T @ cross
        return xp.concatenate(
            [xp.concatenate([self.mix.T @ raw @ self.mix, cross], axis=1), xp.concatenate([cross.T, corner], axis=1)]
        )

    def _kernel_products(self, image: Any) -> Any:
        """Return sum_p I_s(p - a) u(p) for all s and a."""
        ny, nx = self.shape
        transform = self._forward(image)
        parts = [self._back(transform * self.xp.conj(one))[self.dy % ny, self.dx % nx] for one in self.transforms]
        return self.xp.concatenate(parts)

    def project(self, image: Any) -> Any:
        """Return A^T u for an image u, with zeros where pixels are missing."""
        flat = self.xp.stack([(self.flat_axes[1][q] @ image) @ self.flat_axes[0][q] for q in range(self.n_flat)])
        return self.xp.concatenate([self.mix.T @ self._kernel_products(image), flat])

    def step(self, gradient: Any) -> Any:
        """Return the step to the minimum that would be right if no pixel were missing."""
        return self.scale * (self.inverse @ (self.scale * gradient))

    def solve(self, image: Any, target: Any) -> tuple[Any, int]:
        """Return the least-squares solution over the target pixels, and the number of steps to it."""
        x = self.xp.zeros(self.size)
        residual = image.copy()
        r = self.project(residual)
        direction = z = self.step(r)
        left = first = float(r @ z)
        for count in range(_MOST_STEPS):
            if left <= max(_ACCURACY**2 * float(self.xp.mean(residual[target] ** 2)), _ROUNDING * first):
                return x, count
            change = self.xp.where(target, self.model(direction), 0.0)
            length = left / float(self.xp.sum(change**2) + self.ridge * self.xp.sum(direction[: -self.n_flat] ** 2))
            x = x + length * direction
            residual = residual - length * change
            r = self.project(residual)
            r[: -self.n_flat] -= self.ridge * x[: -self.n_flat]
            z = self.step(r)
            previous, left = left, float(r @ z)
            direction = z + (left / previous) * direction
        raise SubtractionError(
            f"The fit has not converged after {_MOST_STEPS} steps: too many pixels are missing for so many unknowns. "
            "Give a "
            "smaller kernel or fewer terms."
        )

    def parts(self, x: Any) -> tuple[Any, Any]:
        """Return the kernels and the coefficients of the background."""
        side = 2 * self.options.half + 1
        n = self.mix.shape[1]
        return (self.mix @ x[:n]).reshape(self.n_terms, side, side), x[n:]

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


def _mix(n_terms: int, taps: int, options: FourierOptions) -> Float64Array:
    """Return the columns delta_a - delta_0 of each term, and those that make the kernel's sum."""
    middle = taps // 2
    zero_sum = np.delete(np.eye(taps), middle, axis=1)
    zero_sum[middle] = -1
    blocks = np.kron(np.eye(n_terms), zero_sum)
    peak = np.eye(taps)[:, middle]
    ratio = options.kernel.constant()[:, None] if options.constant_ratio else np.eye(n_terms)
    return np.hstack([np.kron(ratio, peak[:, None]), blocks])


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
