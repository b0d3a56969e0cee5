"""The short summary that ``skyloom difference`` and ``skyloom demo`` print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from skyloom.detection.flags import found
from skyloom.stacking.light import frame_lines, frame_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from skyloom.errors import SkyloomError
    from skyloom.pipeline import Difference
    from skyloom.pipeline.products import Products
    from skyloom.registration import Registration


def depth_text(numbers: Mapping[str, Any]) -> list[str]:
    """Return, in a few words each, limit, light and seeing of an image, as far as they are known."""
    limit, magnitude, scale, fwhm = (
        numbers.get(name) for name in ("limit_flux", "limit_mag", "flux_scale", "science_fwhm")
    )
    parts = []
    if limit is not None:
        parts.append(f"limit {limit:.4g} {numbers['unit']}" + ("" if magnitude is None else f" = {magnitude:.2f} mag"))
    if scale is not None:
        parts.append(f"{scale:.3g} of the template's flux")
    if fwhm is not None:
        parts.append(f"FWHM {fwhm:.2f} pixels")
    return parts


def registration_row(
    path: str,
    template: str | None,
    registration: Registration | None,
    error: SkyloomError | None = None,
    output: object = None,
) -> dict[str, Any]:
    """Return what is told of the registration of a file; without one and without an error, it is the reference."""
    row: dict[str, Any] = {
        "source": path,
        "template": template,
        "output": None if output is None or error is not None else str(output),
    }
    if registration is None:
        status = "reference" if error is None else "failed"
        return row | {"status": status, "error": error and type(error).__name__, "message": error and str(error)}
    return row | {"status": "registered", **registration.to_dict()}


def print_summary(difference: Difference, candidates: Any, products: Products, seconds: str, n_best: int = 8) -> None:
    """Print how well it went and in which time, the best candidates, and where the files are."""
    numbers = difference.diagnostics
    print(f"{difference.science.name} minus {difference.template.name}: {seconds}")
    if difference.registration is not None:
        registration = difference.registration
        print(f"  registration   {registration.n_matched} stars, rms {registration.rms:.3f} pixel")
    for what, frames in (("template", difference.template_frames), ("science", difference.science_frames)):
        for line in frame_lines(frame_rows(frames, difference.science.unit), "frame") if frames else ():
            print(f"  {what:<14} {line}")
            what = ""  # noqa: PLW2901
    print(f"  method         {difference.method}: {difference.reason}")
    print(
        f"  matching       {numbers['convolved']} convolved, {numbers['n_stamps']} stamps, "
        f"kernel sum {numbers['kernel_sum']:.4f}"
    )
    print(
        f"  noise          difference/sigma: mean {numbers['noise_mean']:+.3f}, std {numbers['noise_std']:.3f}; "
        f"score std {numbers['score_std']:.3f} (errors of candidates x {candidates.meta['error_scale']:.3g})"
    )
    print(f"  depth          {', '.join(depth_text(numbers))}, sky rms {numbers['sky_rms']:.4g}")
    real = candidates[candidates["real"]]
    print(f"  found          {found(len(real), len(candidates) - len(real))}")
    for row in real[:n_best]:
        place = f"x={row['x']:7.2f} y={row['y']:7.2f}"
        if difference.wcs is not None:
            place += f"  ra={row['ra']:.5f} dec={row['dec']:+.5f}"
        print(
            f"    #{row['id']:<4d} {place}  flux={row['flux']:+10.1f} +- {row['flux_err']:.1f}  S/N={row['snr']:+.1f}"
        )
    if len(real) > n_best:
        print(f"    ... and {len(real) - n_best} more")
    for what, path in products.written():
        print(f"  {what:<14} {path}")
