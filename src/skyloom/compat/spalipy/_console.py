"""The scripts ``align-fits`` and ``align-fits-simple``."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from skyloom.errors import SkyloomWarning, WriteError
from skyloom.exposure import MaskBit

if TYPE_CHECKING:
    from skyloom.compat.spalipy.spalipy import Spalipy
    from skyloom.exposure import Exposure

_SIMPLE = {"n_det": 0.9, "sub_tile": 1, "patience_quad_cand": 1, "spline_order": 0}
"""What ``align-fits-simple`` sets."""

_NOT_OPTIONS = {
    *("source_fits", "output_filename", "template_fits", "source_cat", "template_cat"),
    *("source_ext", "template_ext", "overwrite", "verbose"),
}
"""Arguments of the scripts that are none of `Spalipy`."""


class OutputExistsError(WriteError, ValueError):
    """The output exists and may not be replaced."""


def main(args: Sequence[str] | None = None) -> None:
    """Run ``align-fits``."""
    parser = _parser("align-fits")
    parser.add_argument("source_fits", help="FITS image to align")
    parser.add_argument("output_filename", help="FITS file to write")
    parser.add_argument("-sc", "--source-cat", help="SExtractor catalogue of the source (default: detect)")
    template = parser.add_mutually_exclusive_group(required=True)
    template.add_argument("-tf", "--template-fits", help="FITS image to align it to")
    template.add_argument("-tc", "--template-cat", help="SExtractor catalogue of the template instead")
    _add_common(parser)
    add = parser.add_argument
    add("--output-shape", type=_shape, metavar="X,Y", help="size of the output (default: that of the template)")
    add("--n-det", type=_n_det, default=0.25, help="brightest detections to use: number, or fraction up to 1")
    add("--n-quad-det", type=int, default=20, help="detections per tile that form quads")
    add("--min-quad-sep", type=float, default=50, help="least distance of two detections of a quad, pixels")
    add("--max-match-dist", type=float, default=3, help="largest distance of a match, pixels")
    add("--sub-tile", type=int, default=1, help="quads are made in so many tiles along each axis")
    add("--max-quad-cand", type=int, default=10, help="accepted; the match needs no such limit")
    add("--patience-quad-cand", type=int, default=2, help="accepted; the match needs no such limit")
    add("--quad-edge-buffer", type=float, default=0, help="no quads so near to the border, pixels")
    add("--max-quad-hash-dist", type=float, default=0.005, help="accepted; the match needs no such limit")
    add("--spline-order", type=int, default=3, help="0: scale, rotation, shift only; else follow distortions")
    add("--interp-order", type=int, default=3, help="order of the interpolation, 0 (nearest pixel) to 5")
    add("--min-fwhm", type=float, default=1, help="narrower detections are not used, pixels")
    add("--bad-flag-bits", type=int, default=0, help="detections with any of these flags are not used")
    add("--min-sep", type=float, help="of two detections so near none is used (default: 2 MAX_MATCH_DIST)")
    add("--cval", type=float, default=0, help="value of data where there is no source")
    add("--cval-mask", type=float, default=0, help="accepted; the output's mask says why a pixel has no data")
    _align("align-fits", vars(parser.parse_args(args)))


def main_simple(args: Sequence[str] | None = None) -> None:
    """Run ``align-fits-simple``."""
    parser = _parser("align-fits-simple")
    parser.add_argument("source_fits", help="FITS image to align")
    parser.add_argument("output_filename", help="FITS file to write")
    parser.add_argument("template_fits", help="FITS image to align it to")
    _add_common(parser)
    _align("align-fits-simple", vars(parser.parse_args(args)) | _SIMPLE)


class _Help(argparse.HelpFormatter):
    """Adds the default to the help of those options that have one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_default = action.option_strings and action.default not in (None, False, argparse.SUPPRESS)
        return f"{action.help} (default: %(default)s)" if has_default else action.help


def _parser(name: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        name,
        description="Align an image with another by their stars.",
        epilog="The output keeps the source's header and gets the template's WCS, the mask, and what made it.",
        formatter_class=_Help,
    )


def _add_common(parser: argparse.ArgumentParser) -> None:
    """Add the options that both scripts have."""
    add = parser.add_argument
    add("--source-ext", default=0, help="extension of the source image: number or name")
    add("--template-ext", default=0, help="extension of the template image: number or name")
    add("--min-n-match", type=int, default=100, help="fewer matches are a failure")
    add("--sep-thresh", type=float, default=5, help="detection threshold, standard deviations")
    add("--preserve-footprints", action="store_true", help="output the frame that holds both images")
    add("--overwrite", action="store_true", help="replace the output if it exists")
    add("-v", "--verbose", action="count", default=0, help="more messages; twice: all")


def _shape(text: str) -> tuple[int, int]:
    """Read 'x,y' as (ny, nx)."""
    try:
        x, y = (int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form X,Y") from error
    return y, x


def _n_det(text: str) -> float:
    """Read a number of detections: a fraction up to 1, or a count."""
    value = float(text)
    return value if 0 < value <= 1 else int(value)


def _align(command: str, arguments: dict[str, Any]) -> None:
    """Align one file with another and write the result."""
    from skyloom.compat.spalipy._detections import extract, read_catalogue
    from skyloom.compat.spalipy.spalipy import Spalipy
    from skyloom.io import check_writable

    _set_up_messages(arguments["verbose"])
    output = Path(arguments["output_filename"])
    if output.exists() and not arguments["overwrite"]:
        raise OutputExistsError(f"Output filename {output} exists and --overwrite was not given.", path=str(output))
    check_writable(output, overwrite=arguments["overwrite"])
    source = _read(arguments["source_fits"], arguments["source_ext"])
    template = None
    if arguments["template_fits"] is not None:
        template = _read(arguments["template_fits"], arguments["template_ext"])
    options = {name: value for name, value in arguments.items() if name not in _NOT_OPTIONS}
    threshold = arguments["sep_thresh"]
    spalipy = Spalipy(
        source.data,
        template_data=None if template is None else template.data,
        # from the exposures, which know their masks and noise
        source_det=read_catalogue(arguments["source_cat"])
        if arguments.get("source_cat")
        else extract(source, threshold),
        template_det=read_catalogue(arguments["template_cat"]) if template is None else extract(template, threshold),
        **options,
    )
    spalipy.fit_affine_transform()
    spalipy.fit_spline_transform()
    spalipy.log_transform_stats()
    files = ("source_fits", "template_fits", "source_cat", "template_cat")
    inputs = [arguments[name] for name in files if arguments.get(name) is not None]
    overwrite = arguments["overwrite"]
    _write(spalipy, source, template, output, overwrite=overwrite, command=command, parameters=options, inputs=inputs)


def _read(path: str, ext: Any) -> Exposure:
    """Read an image; extension 0 without data means that the file's only image is wanted."""
    from skyloom.io import read
    from skyloom.io.fits_file import FitsFile, path_of

    ext = int(ext) if str(ext).isdigit() else ext
    if ext == 0:
        place = path_of(path)
        with FitsFile(place, place.name, verify=False) as file:
            if file.hdulist[0].header.get("NAXIS", 0) == 0:
                ext = None
    return read(path, ext=ext)


def _write(
    spalipy: Spalipy,
    source: Exposure,
    template: Exposure | None,
    output: Path,
    *,
    overwrite: bool,
    command: str,
    parameters: dict[str, Any],
    inputs: list[str],
) -> None:
    """Write the aligned data to the primary HDU, as others expect them there, with ERR and DQ behind."""
    from astropy.io import fits

    from skyloom.io import Provenance, write_hdus
    from skyloom.io.wcs import header_from_wcs
    from skyloom.io.writer import mask_cards, primary_header
    from skyloom.registration import registered_header

    # a saturated star keeps its place and its look: the bit travels with the pixels, and DQ tells
    saturated, carrier = np.uint32(MaskBit.SATURATED), np.uint32(MaskBit.TEMPLATE)
    mask = np.where((source.mask & saturated) != 0, (source.mask & ~saturated) | carrier, source.mask)
    result, data = spalipy.resample(source.replace(mask=mask, saturation=None))
    quality = np.where((result.mask & carrier) != 0, (result.mask & ~carrier) | saturated, result.mask)
    result = result.replace(header=registered_header(source.header, spalipy.registration))
    cards = header_from_wcs(_moved_wcs(template, spalipy), result.shape)
    header = primary_header(result, Provenance(command, parameters, inputs))
    header.update(cards)
    header["BUNIT"] = source.unit
    hdus = [fits.PrimaryHDU(data, header)]
    if result.variance is not None:
        hdus.append(fits.ImageHDU(np.sqrt(result.variance), cards, name="ERR"))
    hdus.append(fits.ImageHDU(quality, cards, name="DQ"))
    hdus[-1].header.update(mask_cards())
    write_hdus(hdus, output, overwrite=overwrite)


def _moved_wcs(template: Exposure | None, spalipy: Spalipy) -> Any:
    """Return the template's WCS in the frame of the output."""
    if template is None or template.wcs is None or not spalipy.anchor.any():
        return None if template is None else template.wcs
    wcs = getattr(template.wcs, "deepcopy", lambda: None)()
    if wcs is None or any(getattr(wcs, name, None) is not None for name in ("cpdis1", "cpdis2", "det2im1", "det2im2")):
        import warnings

        warnings.warn(
            "The template's WCS cannot be moved to the larger frame; the output is written without WCS.",
            SkyloomWarning,
            stacklevel=2,
        )
        return None
    wcs.wcs.crpix = wcs.wcs.crpix + spalipy.anchor
    if wcs.sip is not None:
        from astropy.wcs import Sip

        old = wcs.sip
        wcs.sip = Sip(old.a, old.b, old.ap, old.bp, old.crpix + spalipy.anchor)
    wcs.wcs.set()
    return wcs


def _set_up_messages(verbose: int) -> None:
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(level=level, format="%(asctime)s - %(name)s - %(levelname)s - %(message)s")
