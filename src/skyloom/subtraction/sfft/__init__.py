"""Subtraction with a delta-function kernel that varies over the field (Hu et al. 2022, ApJ 936, 157)."""

from skyloom.subtraction.sfft.dropin import (
    SFFTResult,
    evaluate_background,
    evaluate_flux_scale,
    evaluate_kernel_at,
    solve,
)
from skyloom.subtraction.sfft.fourier import BSplines, FourierFit, FourierOptions, Polynomials, subtract_fourier
from skyloom.subtraction.sfft.options import SfftOptions
from skyloom.subtraction.sfft.run import run_sfft

__all__ = [
    "BSplines",
    "FourierFit",
    "FourierOptions",
    "Polynomials",
    "SFFTResult",
    "SfftOptions",
    "evaluate_background",
    "evaluate_flux_scale",
    "evaluate_kernel_at",
    "run_sfft",
    "solve",
    "subtract_fourier",
]
