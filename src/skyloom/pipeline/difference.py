"""The main job: register a template to a science image, match it, subtract it, and score what is left."""

from __future__ import annotations

import dataclasses
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from skyloom.errors import InputError, SkyloomWarning
from skyloom.exposure import Exposure, FloatArray
from skyloom.pipeline.align import Alignment, align, bring_onto_grid, reference_frame
from skyloom.pipeline.frames import each_usable
from skyloom.pipeline.methods import options_types, subtract_by
from skyloom.pipeline.smooth import subtract_without_sky
from skyloom.pipeline.template import Frame, Template, find_stars, prepare_frames

if TYPE_CHECKING:
    import numpy.typing as npt

    from skyloom.detection import Score
    from skyloom.psf import Psf
    from skyloom.registration import Registration, RegistrationOptions
    from skyloom.stacking.result import Contribution
    from skyloom.subtraction import AlardLuptonOptions, SfftOptions, SpatialKernel, Subtraction, ZogyOptions

logger = logging.getLogger("skyloom.pipeline")

METHODS = ("auto", "alard-lupton", "zogy", "sfft")
_ALIGNING = "registering and resampling the template"
STAGES = (
    "reading",
    "measuring noise",
    "finding sources",
    _ALIGNING,
    "modelling the PSF",
    "choosing the method",
    "subtracting and scoring",
)


@dataclass(frozen=True)
class DifferenceOptions:
    """How to difference.

    Parameters
    ----------
    method : {'auto', 'alard-lupton', 'zogy', 'sfft'}
        How the two are brought together: the template is matched with a kernel of Gaussians (Alard & Lupton 1998), or
        one whose pixels are all free (Hu et al. 2022); or both are filtered with the PSF of the other, which is the
        proper subtraction of Zackay, Ofek & Gal-Yam (2016). 'auto' is what `subtraction` is for, or else what the
        images ask for, see `skyloom.pipeline.choose`.
    align : {'stars', 'wcs', 'none'}
        What brings the template onto the science image: a blind match of their stars, their WCS, or nothing because
        both have the same pixels already.
    registration, subtraction : options objects, optional
        Options of these stages; None means their defaults.
    interpolation : str
        Passed on to `skyloom.resampling.resample`.
    detection_threshold : float
        Threshold, in units of the noise, for the sources used in registration and matching.
    smooth_background : bool
        Take off what the polynomial of the differential background has left of the sky (haloes, reflections), if it is
        significant. It follows structure of more than ten FWHM: say False to look for changes as wide as that.
    """

    method: str = "auto"
    align: str = "stars"
    registration: RegistrationOptions | None = None
    subtraction: AlardLuptonOptions | SfftOptions | ZogyOptions | None = None
    interpolation: str = "auto"
    detection_threshold: float = 5.0
    smooth_background: bool = True

    def __post_init__(self) -> None:
        for what, allowed in (("method", METHODS), ("align", ("stars", "wcs", "none"))):
            if getattr(self, what) not in allowed:
                raise InputError(f"{what} is {getattr(self, what)!r}; it must be one of {', '.join(allowed)}.")
        if self.subtraction is not None and self.method not in ("auto", self._options_for()):
            kind = options_types()[self.method].__name__
            raise InputError(
                f"The options for the subtraction are {type(self.subtraction).__name__}; the method {self.method} "
                f"needs {kind}."
            )

    def _options_for(self) -> str | None:
        """Return the method that the options of the subtraction are for; None without such options."""
        for method, kind in options_types().items():
            if isinstance(self.subtraction, kind):
                return method
        if self.subtraction is None:
            return None
        raise InputError(
            f"The options for the subtraction are {type(self.subtraction).__name__}; one of "
            f"{', '.join(kind.__name__ for kind in options_types().values())} is needed."
        )

    @property
    def matching(self) -> AlardLuptonOptions | SfftOptions | ZogyOptions:
        """Options of the subtraction; those of Alard & Lupton if the images shall decide."""
        return self.options_of(self.chosen or "alard-lupton")

    def options_of(self, method: str) -> Any:
        """Return the options of the subtraction by a method: those that were given, or its defaults."""
        return options_types()[method]() if self.subtraction is None else self.subtraction

    @property
    def stars(self) -> RegistrationOptions:
        """Options of the registration."""
        from skyloom.registration import RegistrationOptions

        return self.registration or RegistrationOptions()

    @property
    def chosen(self) -> str | None:
        """The method that was asked for, by its name or its options; None if the images shall decide."""
        return self._options_for() if self.method == "auto" else self.method


@dataclass(frozen=True, eq=False)
class Difference:
    """A difference image with all that made it. Planes have the shape of the science image, (ny, nx).

    Attributes
    ----------
    image : array
        Science minus matched template, in units of the science image; 0 where `mask` is unusable.
    variance : array
        Variance of each pixel of `image`.
    mask : uint32 array
        Bits of `skyloom.MaskBit`.
    score : Score
        Matched filter of `image`: significance, flux and its variance in every pixel.
    science, template : Exposure
        The science image, and the template on its grid (not yet matched).
    matched : array
        What was subtracted: the template convolved with the kernel (or, when the science image was convolved, the
        template itself), in units of the science image, with the differential background. Of a proper difference: the
        science image less the difference.
    psf : Psf
        PSF of the difference.
    subtraction : Subtraction
        Kernel, stamps and statistics of the matching.
    method, reason : str
        The method, and why it was taken.
    alignments : tuple of Alignment
        How each template frame was brought onto the science grid, without the frames that were left out.
    science_frames, template_frames : tuple of Contribution
        What each of several frames brings to the image or the template, the one that gives the flux scale first (the
        clearest: see `skyloom.stacking.light`); empty for a single frame.
    diagnostics : dict
        Numbers that tell how well it went.
    parameters : dict
        What was asked for.
    """

    image: FloatArray
    variance: FloatArray
    mask: npt.NDArray[np.uint32]
    score: Score
    science: Exposure
    template: Exposure
    matched: FloatArray
    psf: Psf
    subtraction: Subtraction
    method: str = "alard-lupton"
    reason: str = ""
    alignments: tuple[Alignment, ...] = ()
    science_frames: tuple[Contribution, ...] = ()
    template_frames: tuple[Contribution, ...] = ()
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def registration(self) -> Registration | None:
        """Registration of the first template frame; None when stars were not used."""
        return self.alignments[0].registration if self.alignments else None

    @property
    def kernel(self) -> SpatialKernel | None:
        """The matching kernel; None of a proper difference."""
        return self.subtraction.kernel

    @property
    def stamps(self) -> Any:
        """Table of the stamps that the kernel was fitted to."""
        return self.subtraction.stamps

    @property
    def wcs(self) -> Any:
        """WCS of the science image, or None."""
        return self.science.wcs

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the planes, (ny, nx)."""
        return self.science.shape

    def write(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the difference and its planes to one FITS file; see `skyloom.pipeline.store`."""
        from skyloom.pipeline.store import write_difference

        return write_difference(self, path, overwrite=overwrite)

    def plot(self, ax: Any = None) -> Any:
        """Draw the noise-normalised difference with matplotlib and return the axes."""
        from matplotlib import pyplot as plt

        ax = plt.subplots(figsize=(8, 8))[1] if ax is None else ax
        ratio = np.ma.masked_where(
            self.variance <= 0, self.image / np.sqrt(np.where(self.variance > 0, self.variance, 1))
        )
        ax.imshow(ratio, origin="lower", cmap="gray", vmin=-5, vmax=5)
        ax.set_title(f"{self.science.name} minus {self.template.name}, in units of the noise")
        return ax

    def __repr__(self) -> str:
        ny, nx = self.shape
        number = self.diagnostics.get
        return (
            f"<Difference {nx}x{ny} of {self.science.name!r}: noise ratio {number('noise_std', np.nan):.3f}, "
            f"score std {number('score_std', np.nan):.3f}>"
        )


class _Clock:
    """Times the stages and tells the caller where the work is."""

    def __init__(self, progress: Callable[[str, int, int], None] | None) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        if self._progress is not None:
            self._progress(name, STAGES.index(name), len(STAGES))
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        logger.debug("%s: %.2f s", name, self.seconds[name])


def difference(
    science: Any,
    template: Any,
    *,
    method: str | None = None,
    options: DifferenceOptions | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Difference:
    """Subtract a template from a science image.

    Both are brought to one grid (that of the science image; each template pixel is resampled once, from its original),
    the template is convolved to the PSF, flux scale and background of the science image (or the science image to that
    of a template with the wider PSF), and the difference is filtered with its PSF.

    Parameters
    ----------
    science : path, HDU, array, CCDData, NDData or Exposure, or a list of such
        The image in which to look for changes. Several frames are co-added on the grid of the first, with the flux
        scale and zero point of the clearest.
    template : like `science`, or a Template
        The image to subtract. Several frames are each registered and co-added on the science grid; one of them that
        has no usable pixel or no noise, or cannot be registered, is left out with a `SkyloomWarning`. For many science
        images, `prepare_template` does once what they share.
    method : str, optional
        Shorthand for ``options.method``. 'zogy' co-adds frames properly, the others by a clipped mean.
    options : DifferenceOptions, optional
        All the rest.
    progress : callable, optional
        Called as ``progress(what, done, total)``.

    Returns
    -------
    Difference

    Raises
    ------
    InputError
        An image or an option cannot be used.
    RegistrationError, NoOverlapError, SubtractionError
        The images cannot be brought together; the message says why.
    """
    options = options or DifferenceOptions()
    if method is not None:
        options = dataclasses.replace(options, method=method)
    clock = _Clock(progress)

    from skyloom.pipeline.choose import choose_method
    from skyloom.pipeline.diagnose import diagnose
    from skyloom.psf import Psf, estimate_psf

    proper = options.chosen == "zogy"
    sciences = prepare_frames(science, options, "Science frame", clock.stage)
    if isinstance(template, Template):
        frames: Sequence[Frame] = template.frames_for(options)
    else:
        frames = prepare_frames(template, options, "Template frame", clock.stage)
    ours, grid, taken, sources = _science(sciences, options, clock, proper=proper)
    science = grid.exposure
    with clock.stage(_ALIGNING):
        theirs = _aligned(grid, frames, options)
        aligned, brought = theirs.onto(science, proper=proper)
    with clock.stage("modelling the PSF"):
        # not from `sources`: so deep a list has faint neighbours around stars, but not those hidden by them
        psf = science.psf if isinstance(science.psf, Psf) else estimate_psf(science)
    with clock.stage("choosing the method"):
        method, reason = choose_method(options, science, aligned, psf, sources)
    if method == "zogy" and not proper:  # frames were averaged before it was known
        with clock.stage(_ALIGNING):
            if len(ours.frames) > 1:
                science, taken = ours.onto(science, proper=True)
                psf = cast(Psf, science.psf)
            if len(theirs.frames) > 1:
                aligned, brought = theirs.onto(science, proper=True)
    with clock.stage("subtracting and scoring"):
        subtract = subtract_without_sky if options.smooth_background else subtract_by
        result, scored, psf = subtract(options.options_of(method), science, aligned, psf=psf, sources=sources)
    clear = theirs.reference
    numbers = diagnose(result, scored, psf, theirs.alignments, (science, theirs.frames[clear]), reference=clear)
    if "warning" in numbers:
        warnings.warn(numbers["warning"], SkyloomWarning, stacklevel=2)
    if numbers["zeropoint"] != science.zeropoint:
        science = science.replace(zeropoint=numbers["zeropoint"])
    return Difference(
        image=result.image,
        variance=result.variance,
        mask=result.mask,
        score=scored,
        science=science,
        template=aligned,
        matched=result.matched,
        psf=psf,
        subtraction=result,
        method=method,
        reason=reason,
        alignments=tuple(theirs.alignments),
        science_frames=taken,
        template_frames=brought,
        diagnostics={"method": method, **numbers, "timings": clock.seconds},
        parameters=flat_parameters(options),
    )


@dataclass(frozen=True)
class _Stack:
    """Frames, and how they are brought onto the grid of an image."""

    frames: Sequence[Exposure]
    alignments: Sequence[Alignment]
    interpolation: str

    @property
    def reference(self) -> int:
        """Number of the frame whose flux scale the image that they make has."""
        return reference_frame(self.frames, self.alignments)

    def onto(self, grid: Exposure, *, proper: bool) -> tuple[Exposure, tuple[Contribution, ...]]:
        """Return them as one image, and what each of several brings."""
        return bring_onto_grid(grid, self.frames, self.alignments, self.interpolation, proper=proper)


def _science(
    frames: Sequence[Frame], options: DifferenceOptions, clock: _Clock, *, proper: bool
) -> tuple[_Stack, Frame, tuple[Contribution, ...], Any]:
    """Return the frames on the grid of the first, the image that they make, of what, and its sources to match."""
    from skyloom.registration import detect_sources

    grid = frames[0]
    with clock.stage(_ALIGNING) if len(frames) > 1 else nullcontext():
        stack = _aligned(grid, frames, options)
        science, taken = stack.onto(grid.exposure, proper=proper)
    with clock.stage("finding sources"):
        grid = grid if science is grid.exposure else find_stars(science, options)
        known = grid.sources is not None and options.detection_threshold == options.stars.threshold
        return (
            stack,
            grid,
            taken,
            grid.sources if known else detect_sources(science, threshold=options.detection_threshold),
        )


def _aligned(grid: Frame, frames: Sequence[Frame], options: DifferenceOptions) -> _Stack:
    """Return the frames that can be brought onto a grid, and how; the one that gives the grid is there already."""

    def step(one: Frame) -> tuple[Exposure, Alignment]:
        how = "none" if one is grid else options.align
        return one.exposure, align(grid, one, how, options.stars)

    found = each_usable(frames, step, "Template frame" if grid is not frames[0] else "Science frame")
    return _Stack([one for one, _ in found], [how for _, how in found], options.interpolation)


def flat_parameters(options: DifferenceOptions) -> dict[str, Any]:
    """Flatten the options to ``{'subtraction.spatial_order': ...}``."""
    flat: dict[str, Any] = {}
    for item in dataclasses.fields(options):
        value = getattr(options, item.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            flat |= {f"{item.name}.{sub.name}": getattr(value, sub.name) for sub in dataclasses.fields(value)}
        else:
            flat[item.name] = value
    return flat
