"""Subtract a template from a science image and list what changed.

The two images need not be aligned and need no WCS: their stars are matched. Several templates are each registered and
co-added on the science grid; one that does not match is left out, and the exit status is 2. Written to the output
folder:

  NAME.difference.fits   difference (SCI), error (ERR), mask (DQ), score, matched template, kernel, PSF
  NAME.candidates.ecsv   what changed, as a text table; also .fits (with cutouts) and .reg (DS9 regions)
  NAME.report.html       a page to look at, which opens from disk
"""

from __future__ import annotations

import argparse
from typing import Any, Literal

HELP = "subtract a template from a science image and list what changed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to `parser`."""
    from skyloom.cli.inputs import add_reading_options, add_threshold

    parser.add_argument("science", metavar="SCIENCE", help="FITS image in which to look for changes")
    parser.add_argument("template", metavar="TEMPLATE", nargs="+", help="FITS image(s) to subtract")
    parser.add_argument("-o", "--output", metavar="FOLDER", default=".", help="folder for the results (default: here)")
    parser.add_argument("--overwrite", action="store_true", help="replace results that exist")
    add_threshold(parser, "significance of the faintest candidate")
    parser.add_argument("--no-report", action="store_true", help="do not write the HTML page")
    method = parser.add_argument_group("method")
    method.add_argument(
        "--method",
        choices=("auto", "alard-lupton", "zogy", "sfft"),
        default="auto",
        help="match the template with a kernel of Gaussians (alard-lupton) or of free pixels (sfft), or filter each "
        "image with the PSF of the other (zogy; default: auto, what the images ask for)",
    )
    method.add_argument(
        "--align",
        choices=("stars", "wcs", "none"),
        default="stars",
        help="bring the template onto the science image by a match of the stars, by the WCS of both, "
        "or not at all (default: %(default)s)",
    )
    method.add_argument(
        "--convolve",
        choices=("auto", "template", "science"),
        default="auto",
        help="which image is convolved (default: auto, the sharper one); not with zogy",
    )
    method.add_argument(
        "--spatial-order",
        metavar="N",
        default="auto",
        help="order of the kernel's variation over the field, 0-4 (default: auto)",
    )
    method.add_argument(
        "--background-order",
        metavar="N",
        default="auto",
        help="order of the differential background, 0-4 (default: auto)",
    )
    add_reading_options(parser, ("science", "template"))


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from skyloom.cli import EXIT_OK, EXIT_PARTIAL
    from skyloom.cli.inputs import check_not_input, image_stem, reading_options
    from skyloom.cli.messages import progress_bar
    from skyloom.io import read
    from skyloom.pipeline import DifferenceOptions, difference
    from skyloom.pipeline.frames import each_usable
    from skyloom.pipeline.products import Products, write_products

    products = Products.in_folder(arguments.output, image_stem(arguments.science), report=not arguments.no_report)
    products.check(overwrite=arguments.overwrite)
    inputs = [arguments.science, *arguments.template]
    check_not_input([path for _, path in products.written()], inputs)
    options = DifferenceOptions(
        method=arguments.method,
        align=arguments.align,
        subtraction=_matching(arguments),
    )
    with progress_bar(arguments.quiet) as progress:
        science = read(arguments.science, **reading_options(arguments, "science"))
        how = reading_options(arguments, "template")
        templates = each_usable(arguments.template, lambda path: read(path, **how))
        result = difference(science, templates, options=options, progress=progress)
    candidates = write_products(result, products, inputs, threshold=arguments.threshold, overwrite=arguments.overwrite)
    if not arguments.quiet:
        from skyloom.cli.summary import print_summary

        print_summary(result, candidates, products)
    return EXIT_OK if len(result.alignments) == len(arguments.template) else EXIT_PARTIAL


def _matching(arguments: argparse.Namespace) -> Any:
    """Return the options of the matching; None if there are none, so that 'auto' is free to choose."""
    from skyloom.errors import InputError
    from skyloom.subtraction import AlardLuptonOptions, SfftOptions

    orders: dict[str, Any] = {
        "spatial_order": _order(arguments.spatial_order, "--spatial-order"),
        "background_order": _order(arguments.background_order, "--background-order"),
    }
    given = {name: order for name, order in (orders | {"convolve": arguments.convolve}).items() if order != "auto"}
    if not given:
        return None
    if arguments.method == "zogy":
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise InputError(f"{options} cannot be given with --method zogy, which has no kernel. Leave it out.")
    return (SfftOptions if arguments.method == "sfft" else AlardLuptonOptions)(**given)


def _order(text: str, option: str) -> Literal["auto"] | int:
    """Return the order that the user asked for: a number or 'auto'."""
    from skyloom.errors import InputError

    if text == "auto":
        return "auto"
    if not text.isdecimal():
        raise InputError(f"{option} is {text!r}; it must be 'auto' or a whole number.")
    return int(text)
