"""Convolution with a varying kernel, pixel by pixel."""

import numpy as np


def kernel_at(planes, order, centre, scale, *, x, y):
    """sum_{i + j <= order} X^i Y^j P_ij"""
    X, Y = (x - centre[0]) / scale[0], (y - centre[1]) / scale[1]
    kernel, term = np.zeros(planes.shape[1:]), 0
    for i in range(order + 1):
        for j in range(order + 1 - i):
            kernel += X**i * Y**j * planes[term]
            term += 1
    return kernel


def convolve_varying(data, variance, usable, kernel):
    """Return data, variance, the lost share of |K| and the kept share of K; no renormalisation."""
    planes, order, centre, scale = kernel.planes, kernel.order, kernel.centre, kernel.scale
    ny, nx = data.shape
    ky, kx = planes.shape[1:]
    out, out_variance, lost, kept = (np.zeros((ny, nx)) for _ in range(4))
    for y in range(ny):
        for x in range(nx):
            kernel = kernel_at(planes, order, centre, scale, x=x, y=y)
            seen = np.zeros((ky, kx))
            for v in range(ky):
                for u in range(kx):
                    yy, xx = y - (v - ky // 2), x - (u - kx // 2)
                    if 0 <= yy < ny and 0 <= xx < nx and usable[yy, xx]:
                        seen[v, u] = 1
                        out[y, x] += kernel[v, u] * data[yy, xx]
                        out_variance[y, x] += kernel[v, u] ** 2 * variance[yy, xx]
            lost[y, x] = 1 - (np.abs(kernel) * seen).sum() / np.abs(kernel).sum()
            kept[y, x] = (kernel * seen).sum() / kernel.sum()
    return out, out_variance, lost, kept
