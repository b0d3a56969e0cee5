"""Show the whole job on real images that come with skyloom.

Two frames of a crowded field of the galactic bulge (SAAO 1.0 m telescope, no WCS) are differenced against four
frames of earlier nights. A real variable star fades between the two.
"""

from __future__ import annotations

import argparse

HELP = "show the whole job on real images"
USAGE = "skyloom demo [-o FOLDER] [--overwrite]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to `parser`."""
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", default="skyloom-demo", help="folder for the results (default: %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace results that exist")


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from skyloom.cli import EXIT_OK
    from skyloom.cli.messages import progress_bar
    from skyloom.cli.summary import print_summary
    from skyloom.data import SAAO_SCIENCE, SAAO_TEMPLATE, saao_frame
    from skyloom.pipeline import difference
    from skyloom.pipeline.products import Products, write_products

    templates = [saao_frame(number) for number in SAAO_TEMPLATE]
    for number in SAAO_SCIENCE:
        science = saao_frame(number)
        products = Products.in_folder(arguments.output, science.name.removesuffix(".fits.fz"))
        products.check(overwrite=arguments.overwrite)
        with progress_bar(arguments.quiet) as progress:
            result = difference(science, templates, progress=progress)
        candidates = write_products(
            result, products, [science, *templates], threshold=5.0, overwrite=arguments.overwrite
        )
        if not arguments.quiet:
            print_summary(result, candidates, products, f"{sum(result.diagnostics['timings'].values()):.1f} s")
            print(f"\nLook at the page:  {products.report}\n")
    return EXIT_OK
