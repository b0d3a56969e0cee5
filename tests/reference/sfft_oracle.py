"""Dense weighted least squares for a delta-function kernel that varies over the field: every column is written out."""

import numpy as np


def monomials(order):
    return [(i, j) for i in range(order + 1) for j in range(order + 1 - i)]


def axes(shape):
    ny, nx = shape
    y, x = np.mgrid[:ny, :nx]
    return (x - (nx - 1) / 2) / (max(nx - 1, 1) / 2), (y - (ny - 1) / 2) / (max(ny - 1, 1) / 2)


def shifted(template, dy, dx):
    """R(p - (dy, dx)), 0 from outside."""
    out = np.zeros_like(template, dtype=float)
    ny, nx = template.shape
    for y in range(max(0, dy), min(ny, ny + dy)):
        for x in range(max(0, dx), min(nx, nx + dx)):
            out[y, x] = template[y - dy, x - dx]
    return out


def columns(template, kernel_shape, kernel_order, background_order):
    """The design, shape (unknowns, ny, nx): for each term of the kernel all taps, dy and dx rising; then the "
    "background."""
    X, Y = axes(template.shape)
    hy, hx = kernel_shape[0] // 2, kernel_shape[1] // 2
    taps = [shifted(template, dy, dx) for dy in range(-hy, hy + 1) for dx in range(-hx, hx + 1)]
    kernel = [X**i * Y**j * tap for i, j in monomials(kernel_order) for tap in taps]
    return np.array(kernel + [X**i * Y**j for i, j in monomials(background_order)])


def penalty(size, n_taps, kernel_order, *, flux_order, flux, ridge):
    """The penalties, `flux` and `ridge` in the unit of the normal matrix."""
    n_kernel = n_taps * len(monomials(kernel_order))
    matrix = np.zeros((size, size))
    for t, (i, j) in enumerate(monomials(kernel_order)):
        block = slice(t * n_taps, (t + 1) * n_taps)
        if i + j > flux_order:
            matrix[block, block] += flux
    matrix[np.arange(n_kernel), np.arange(n_kernel)] += ridge
    return matrix


def dense_fit(science, template, weight, *, kernel_shape, kernel_order, background_order, **penalties):
    """Return the kernel (terms, ky, kx) and the background in the order of `monomials`, and the residual."""
    design = columns(template, kernel_shape, kernel_order, background_order)
    flat = design.reshape(len(design), -1)
    w = weight.ravel()
    normal = (flat * w) @ flat.T
    n_taps = kernel_shape[0] * kernel_shape[1]
    matrix = normal + penalty(len(normal), n_taps, kernel_order, **penalties)
    x = np.linalg.solve(matrix, (flat * w) @ science.ravel())
    n_kernel = n_taps * len(monomials(kernel_order))
    return x[:n_kernel].reshape(-1, *kernel_shape), x[n_kernel:], science - np.tensordot(x, design, axes=1)


def varying_convolution(template, kernel_at):
    """Sum over taps of k(dy, dx; x, y) R(p - (dy, dx)), pixel by pixel; 0 from outside."""
    ny, nx = template.shape
    out = np.zeros((ny, nx))
    for y in range(ny):
        for x in range(nx):
            k = kernel_at(x, y)
            hy, hx = k.shape[0] // 2, k.shape[1] // 2
            for dy in range(-hy, hy + 1):
                for dx in range(-hx, hx + 1):
                    if 0 <= y - dy < ny and 0 <= x - dx < nx:
                        out[y, x] += k[hy + dy, hx + dx] * template[y - dy, x - dx]
    return out
