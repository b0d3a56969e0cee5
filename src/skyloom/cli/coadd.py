"""Co-add exposures: each is resampled once, from its original pixels, onto one output grid.

With a WCS in every header the output grid covers all exposures; without (or with --align stars) the exposures are
registered by their stars to the first one (or --reference), whose grid is the output. Written are SCI, ERR, DQ, WHT
(weight), CTX (which exposures contribute), EXPTIME, INPUTS, COVAR (noise covariances) and PSF. Printed is what each
exposure brings: flux scale, light (beside the better ones: clouds), sky, FWHM and number of stars (where they are
aligned by stars), outlying pixels, and its part of the weight.

Exposures are read one by one; --memory bounds what the process takes. A co-add can be extended: --resume.
"""

from __future__ import annotations

import argparse

HELP = "co-add exposures onto one grid"
USAGE = "skyloom coadd EXPOSURE [EXPOSURE ...] -o FILE [options]"


def add_more(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Take exposures that stand after options."""
    arguments.exposures = [*arguments.exposures, *rest]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to `parser`."""
    from skyloom.cli.inputs import add_json, add_reading_options

    parser.add_argument("exposures", metavar="EXPOSURE", nargs="+", help="FITS images")
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="FITS file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    parser.add_argument(
        "--align",
        choices=("auto", "wcs", "stars"),
        default="auto",
        help="by WCS, by stars, or auto: by WCS when every exposure has one (default: %(default)s)",
    )
    parser.add_argument(
        "--reference",
        metavar="FILE",
        help="image whose grid is the output grid (default: a new grid, or the first exposure)",
    )
    parser.add_argument("--resume", metavar="FILE", help="co-add to go on with; it is not changed")
    add_json(parser)
    _add_options(parser)
    add_reading_options(parser)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--method",
        choices=("clipped", "mean", "median", "proper"),
        help="mean without outliers, mean, median, or the optimal sum with each exposure's PSF (default: clipped)",
    )
    parser.add_argument(
        "--weight", choices=("ivm", "exptime", "none"), help="inverse variance, exposure time or none (default: ivm)"
    )
    parser.add_argument(
        "--background",
        choices=("match", "plane", "subtract", "none"),
        help="skies matched by a number, or by a plane; or a smooth sky subtracted; or left (default: match)",
    )
    parser.add_argument(
        "--flux-scale",
        choices=("auto", "zeropoint", "exptime", "none"),
        help="what brings exposures to the flux scale of the first (default: auto)",
    )
    parser.add_argument("--pixfrac", type=float, metavar="P", help="side of a drop in input pixels (default: 1.0)")
    parser.add_argument("--pixel-scale", type=float, metavar="ARCSEC", help="pixel scale of a new output grid")
    parser.add_argument("--rotation", type=float, metavar="DEG", help="position angle of the y axis of a new grid")
    parser.add_argument("--memory", metavar="SIZE", help="what the process may occupy, as 1GiB (default: 60 %% of all)")


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from dataclasses import replace
    from functools import partial

    from skyloom.cli import EXIT_OK, EXIT_PARTIAL
    from skyloom.cli.inputs import reading_options
    from skyloom.cli.messages import progress_bar
    from skyloom.io import check_not_input, check_writable, read
    from skyloom.io.json import to_json
    from skyloom.pipeline import coadd
    from skyloom.stacking import read_coadd
    from skyloom.stacking.light import frame_lines
    from skyloom.stacking.result import options_for_more

    check_writable(arguments.output, overwrite=arguments.overwrite)
    check_not_input([arguments.output], [*arguments.exposures, arguments.reference, arguments.resume])
    names = ("method", "weight", "background", "flux_scale", "pixfrac", "pixel_scale", "rotation", "memory")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    earlier = None if arguments.resume is None else read_coadd(arguments.resume)
    options = replace(options_for_more(earlier), overwrite=arguments.overwrite, **given)
    exposures = [partial(read, path, **reading_options(arguments)) for path in arguments.exposures]
    reference = None if arguments.reference is None else read(arguments.reference, **reading_options(arguments))
    with progress_bar(arguments.quiet) as progress:
        result = coadd(
            exposures,
            options,
            align=arguments.align,
            wcs=reference,
            output=arguments.output,
            resume=earlier,
            progress=progress,
        )
    added = result.n_exposures - (0 if earlier is None else earlier.n_exposures)
    left_out = len(exposures) - added
    if arguments.json:
        told = {"output": arguments.output, "shape": result.shape, "left_out": left_out, "exposures": result.frames}
        print(to_json(told))
    elif not arguments.quiet:
        print("\n".join(frame_lines(result.frames)))
        print(
            f"{added} exposure{'s' * (added != 1)} co-added to {result.shape[1]}x{result.shape[0]} pixels"
            + ("" if earlier is None else f", {result.n_exposures} in all")
            + (f" ({left_out} left out, see the messages above)" if left_out else "")
            + f": {arguments.output}"
        )
    return EXIT_PARTIAL if left_out else EXIT_OK
