"""Models as mission pipelines describe exposures, simulated."""

import numpy as np
from astropy.wcs import WCS, Sip

PIXEL = 0.06 / 3600  # degrees


def make_wcs(shape, shift=(0.0, 0.0), angle=0.0, pixel=PIXEL, sip=0.0):
    """Return a TAN WCS (with SIP distortion) whose sky position of the middle is shifted by some pixels."""
    wcs = WCS(naxis=2)
    ny, nx = shape
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"] if sip else ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [150.0, 2.0]
    wcs.wcs.crpix = [nx / 2 + 0.5 + shift[0], ny / 2 + 0.5 + shift[1]]
    wcs.wcs.cd = pixel * np.array([[-c, s], [s, c]])
    if sip:
        a, b = np.zeros((3, 3)), np.zeros((3, 3))
        a[2, 0], b[1, 1] = sip, -sip
        wcs.sip = Sip(a, b, None, None, wcs.wcs.crpix)
    wcs.array_shape = shape
    wcs.wcs.set()
    return wcs


def make_gwcs(shape, shift=(0.0, 0.0), angle=0.0, pixel=PIXEL):
    """Return the same without distortion as a gwcs, with a bounding box."""
    import gwcs
    from astropy import coordinates as coord
    from astropy import units as u
    from astropy.modeling import models as am
    from gwcs import coordinate_frames as cf

    fits = make_wcs(shape, shift, angle, pixel)
    x, y = fits.wcs.crpix - 1
    sky = am.Pix2Sky_TAN() | am.RotateNative2Celestial(*fits.wcs.crval, 180)
    transform = am.Shift(-x) & am.Shift(-y) | am.AffineTransformation2D(fits.wcs.cd) | sky
    detector = cf.Frame2D(name="detector", unit=(u.pix, u.pix))
    world = cf.CelestialFrame(name="world", reference_frame=coord.ICRS(), unit=(u.deg, u.deg))
    wcs = gwcs.WCS([(detector, transform), (world, None)])
    wcs.array_shape = shape
    wcs.bounding_box = ((-0.5, shape[1] - 0.5), (-0.5, shape[0] - 0.5))
    return wcs


def make_model(shape=(12, 14), wcs=None, seed=0, **changes):
    """Return a model with noise in all planes."""
    rng = np.random.default_rng(seed)
    model = {
        "data": rng.normal(5, 1, shape).astype(np.float32),
        "dq": rng.choice(np.array([0, 0, 0, 1, 4], np.uint32), shape),
        "err": rng.gamma(5, 0.3, shape).astype(np.float32),
        "filename": f"exposure{seed}.fits",
        "group_id": seed,
        "wcs": make_wcs(shape) if wcs is None else wcs,
        "exposure_time": 10.0 + seed,
        "start_time": 100.0 * seed,
        "end_time": 100.0 * seed + 11,
        "duration": 11.0,
        "measurement_time": 9.0 + seed,
        "pixelarea_steradians": np.deg2rad(PIXEL) ** 2,
        "bunit_data": "MJy/sr",
        "level": 0.0,
        "subtracted": False,
    }
    for name in ("var_rnoise", "var_flat", "var_poisson", "var_sky"):
        model[name] = rng.gamma(5, 1, shape).astype(np.float32)
    return {**model, **changes}
