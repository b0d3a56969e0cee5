"""ZOGY written out with full complex transforms and one pair of PSFs: equations 12-17 and 25-29."""

import numpy as np
from scipy.signal import fftconvolve


def embed(stamp, shape):
    """The stamp on a periodic grid, its middle pixel on the origin."""
    grid = np.zeros(shape)
    h, w = stamp.shape
    for j in range(h):
        for i in range(w):
            grid[(j - h // 2) % shape[0], (i - w // 2) % shape[1]] += stamp[j, i]
    return grid


def proper(  # noqa: PLR0917
    n, r, p_n, p_r, sigma_n, sigma_r, f_n=1.0, f_r=1.0, floor=0.0
):
    """D, S, P_D, F_D, F_S of two periodic images; `floor` of each filter's flux is in its middle pixel."""
    shape = n.shape
    delta = np.zeros(shape)
    delta[0, 0] = 1
    true_n = np.fft.fft2(embed(p_n, shape))
    pn, pr = ((1 - floor) * np.fft.fft2(embed(p, shape)) + floor * np.fft.fft2(delta) for p in (p_n, p_r))
    nh, rh = np.fft.fft2(n), np.fft.fft2(r)
    den = np.sqrt(sigma_n**2 * f_r**2 * abs(pr) ** 2 + sigma_r**2 * f_n**2 * abs(pn) ** 2)
    d = (f_r * pr * nh - f_n * pn * rh) / den
    f_d = f_r * f_n / np.sqrt(sigma_n**2 * f_r**2 + sigma_r**2 * f_n**2)
    p_d = f_r * f_n * pr * pn / (f_d * den)
    s = f_d * d * np.conj(p_d)
    k_n = f_r**2 * f_n * np.conj(pn) * abs(pr) ** 2 / den**2
    k_r = f_n**2 * f_r * np.conj(pr) * abs(pn) ** 2 / den**2
    f_s = np.mean(f_n * k_n * true_n).real
    back = lambda z: np.fft.ifft2(z).real  # noqa: E731
    return {
        "d": back(d), "s": back(s), "p_d": back(p_d), "f_d": f_d, "f_s": f_s, "k_n": back(k_n), "k_r": back(k_r)
    }  # fmt: skip


def periodic_convolution(image, kernel):
    return np.fft.ifft2(np.fft.fft2(image) * np.fft.fft2(kernel)).real


def straight_convolution(image, stamp):
    return fftconvolve(image, stamp, mode="same")
