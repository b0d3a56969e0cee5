"""A plugin of pytest: `AssignWcsStep` of jwst without the reference files of the telescope, which it would download.

Images get a tangent plane with about the scale, place and rotation that their instrument has, spectra of MIRI's slit a
straight one. Of the tests of `jwst.resample`, those run that need a WCS and not the numbers of the true one.
"""

import jwst.assign_wcs.assign_wcs_step as step
import numpy as np
from astropy import units
from astropy.coordinates import ICRS
from astropy.modeling import models
from gwcs import WCS
from gwcs import coordinate_frames as cf
from stcal.alignment.util import compute_s_region_imaging, wcs_bbox_from_shape

SCALES = {"MIRI": 0.11, "NIRCAM": 0.063, "NIRISS": 0.0656, "FGS": 0.069, "NIRSPEC": 0.1}  # arcsec
REFERENCE_PIXELS = {"MIRI": (692.5, 511.5), "NIRCAM": (1023.5, 1023.5)}
ROTATIONS = {"MIRI": 4.8}  # degrees
SLITS = ("MIR_LRS-SLITLESS", "MIR_LRS-FIXEDSLIT")


def sky(info):
    """Return the transformation from degrees on the tangent plane to positions."""
    return models.Pix2Sky_TAN() | models.RotateNative2Celestial(info.ra_ref, info.dec_ref, 180)


def image_system(model):
    """Return the system of an image."""
    name, info = model.meta.instrument.name, model.meta.wcsinfo
    angle = np.deg2rad((info.roll_ref or 0.0) + ROTATIONS.get(name, 0.0))
    c, s = np.cos(angle), np.sin(angle)
    matrix = SCALES[name] / 3600 * np.array([[-c, s], [s, c]])
    ny, nx = model.data.shape[-2:]
    x0, y0 = REFERENCE_PIXELS.get(name, (nx / 2, ny / 2))
    transform = models.Shift(-x0) & models.Shift(-y0) | models.AffineTransformation2D(matrix) | sky(info)
    detector = cf.Frame2D(name="detector", axes_names=("x", "y"), unit=(units.pix, units.pix))
    world = cf.CelestialFrame(name="world", reference_frame=ICRS(), axes_names=("lon", "lat"))
    return WCS([(detector, transform), (world, None)])


def slit_system(model):
    """Return the system of a slit along x, with wavelengths along y."""
    middle = (model.data.shape[-1] - 1) / 2
    scale = SCALES["MIRI"] / 3600
    along = models.Scale(scale) & models.Scale(0.03 * scale) | sky(model.meta.wcsinfo)
    wavelength = models.Polynomial1D(1, c0=14.0, c1=-0.02)
    transform = models.Shift(-middle) & models.Identity(1) | models.Mapping((0, 0, 1)) | along & wavelength
    rows = models.Polynomial1D(1, c0=14.0 / 0.02, c1=-1 / 0.02)
    back = models.Mapping((0, 2), n_inputs=3) | models.Shift(middle) & models.Identity(1)
    transform.inverse = along.inverse & rows | back
    detector = cf.Frame2D(name="detector", axes_names=("x", "y"), unit=(units.pix, units.pix))
    position = cf.CelestialFrame(name="sky", reference_frame=ICRS(), axes_names=("ra", "dec"))
    wave = cf.SpectralFrame(name="wavelength", axes_order=(2,), unit=(units.micron,), axes_names=("wave",))
    return WCS([(detector, transform), (cf.CompositeFrame([position, wave], name="world"), None)])


def load_wcs(model, *arguments, **options):
    """Stand for the function of the step that makes the system out of the reference files."""
    shape = model.data.shape[-2:]
    slit = model.meta.exposure.type in SLITS
    wcs = slit_system(model) if slit else image_system(model)
    wcs.bounding_box, wcs.array_shape = wcs_bbox_from_shape(shape), shape
    model.meta.wcs = wcs
    model.meta.cal_step.assign_wcs = "COMPLETE"
    if slit:
        model.meta.wcsinfo.dispersion_direction = 2
    else:
        model.meta.wcsinfo.s_region = compute_s_region_imaging(wcs, shape, center=False)
    return model


def pytest_configure():
    """Put it in its place."""
    step.load_wcs = load_wcs
    step.AssignWcsStep.get_reference_file = lambda self, model, kind: "N/A"
