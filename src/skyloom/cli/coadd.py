"""Co-add exposures: each is drizzled once, from its original pixels, onto one output grid.

With a WCS in every header the output grid covers all exposures; without (or with --align stars) the exposures are
registered by their stars to the first one (or --reference), whose grid is the output. Written are SCI, ERR, DQ, WHT
(weight), CTX (which exposures contribute) and EXPTIME planes.
"""

from __future__ import annotations

import argparse

HELP = "co-add exposures onto one grid"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to `parser`."""
    from skyloom.cli.inputs import add_reading_options

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
    parser.add_argument("--pixel-scale", type=float, metavar="ARCSEC", help="pixel scale of a new output grid")
    parser.add_argument(
        "--pixfrac",
        type=float,
        default=1.0,
        metavar="P",
        help="size of a drop in units of the input pixel, 0-1 (default: %(default)s)",
    )
    parser.add_argument(
        "--weight",
        choices=("ivm", "exptime", "uniform"),
        default="ivm",
        help="inverse variance, exposure time or none (default: %(default)s)",
    )
    parser.add_argument("--no-reject", action="store_true", help="do not look for cosmic rays and other outliers")
    add_reading_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from skyloom.cli import EXIT_OK, EXIT_PARTIAL
    from skyloom.cli.inputs import check_not_input, reading_options
    from skyloom.cli.messages import progress_bar
    from skyloom.io import check_writable, read
    from skyloom.pipeline.stack import StackOptions, stack

    check_writable(arguments.output, overwrite=arguments.overwrite)
    check_not_input([arguments.output], [*arguments.exposures, arguments.reference])
    options = StackOptions(
        align=arguments.align,
        pixfrac=arguments.pixfrac,
        weight=arguments.weight,
        reject=not arguments.no_reject,
        pixel_scale=arguments.pixel_scale,
    )
    with progress_bar(arguments.quiet) as progress:
        exposures = [read(path, **reading_options(arguments)) for path in arguments.exposures]
        reference = None if arguments.reference is None else read(arguments.reference, **reading_options(arguments))
        result = stack(exposures, options, reference=reference, progress=progress)
    result.write(arguments.output, overwrite=arguments.overwrite, inputs=arguments.exposures)
    left_out = len(exposures) - result.n_exposures
    if not arguments.quiet:
        print(
            f"{result.n_exposures} exposures co-added to {result.exposure.shape[1]}x{result.exposure.shape[0]} pixels"
            + (f" ({left_out} left out, see the messages above)" if left_out else "")
            + f": {arguments.output}"
        )
    return EXIT_PARTIAL if left_out else EXIT_OK
