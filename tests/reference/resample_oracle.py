"""The co-add of models by the formulas of stcal: every plane of every model drizzled by itself, and combined."""

import numpy as np

from reference.drizzle_oracle import drizzle_square


def weights_of(model, weight_type, good_bits=0):
    """Weights of the pixels of a model."""
    if weight_type in ("ivm", "ivm-sky"):
        variance = model["var_rnoise" if weight_type == "ivm" else "var_sky"]
        with np.errstate(divide="ignore", invalid="ignore"):
            weight = np.where(variance > 0, 1 / variance, 0)
    elif weight_type == "exptime":
        time = model["exposure_time"] if model["measurement_time"] is None else model["measurement_time"]
        weight = np.full(model["data"].shape, float(time))
    else:
        weight = np.ones(model["data"].shape)
    return weight * ((model["dq"].astype(np.int64) & ~good_bits) == 0) * np.isfinite(model["data"])


def coadd(models, pixmaps, shape, weight_type, ratios, *, names=(), error=False, good_bits=0, pixfrac=1.0):
    """Return data, wht, err, dq and the variances of the co-add of models at the positions of `pixmaps`."""
    data, wht, err = (np.zeros(shape) for _ in range(3))
    dq = np.zeros(shape, np.uint32)
    summed, weights = {k: np.zeros(shape) for k in names}, {k: np.zeros(shape) for k in names}
    for model, pixmap, ratio in zip(models, pixmaps, ratios, strict=True):
        weight = weights_of(model, weight_type, good_bits)

        def mean(plane, weight=weight, pixmap=pixmap, **bits):
            wd, w, _, bits, _ = drizzle_square(plane, weight, pixmap, shape, pixfrac=pixfrac, **bits)
            return np.divide(wd, w, out=np.full(shape, np.nan), where=w > 0), w, bits

        level = 0 if model["subtracted"] else model["level"]
        one, w, bits = mean(model["data"] - level, dq=model["dq"])
        total = wht + w
        data = np.where(w > 0, (data * wht + np.nan_to_num(one) * w) / np.where(total > 0, total, 1), data)
        if error:
            e = np.nan_to_num(mean(model["err"])[0]) / ratio
            err = np.where(w > 0, (err * wht + e * w) / np.where(total > 0, total, 1), err)
        dq |= bits
        reference = {"ivm": "var_rnoise", "ivm-sky": "var_sky"}.get(weight_type)
        variance = {k: mean(np.sqrt(model[k]))[0] ** 2 for k in {*names, reference} - {None}}
        own = np.full(shape, float(weight.max())) if reference is None else 1 / variance[reference]
        for k in names:
            used = (w > 0) & np.isfinite(variance[k])
            summed[k] += np.where(used, variance[k] / ratio**2 * own**2, 0)
            weights[k] += np.where(used, own, 0)
        wht = total
    with np.errstate(divide="ignore", invalid="ignore"):
        variances = {k: summed[k] / weights[k] ** 2 for k in names}
    return {"data": data, "wht": wht, "err": err, "dq": dq, **variances}


def propagated(models, pixmaps, shape, weight_type, name):
    """Return the variance of the co-add that the noise of independent pixels gives: squared weights."""
    top, bottom = np.zeros(shape), np.zeros(shape)
    for model, pixmap in zip(models, pixmaps, strict=True):
        weight = weights_of(model, weight_type)
        _, w, (wwv,), *_ = drizzle_square(model["data"], weight, pixmap, shape, squares=[model[name]])
        top, bottom = top + wwv, bottom + w
    with np.errstate(divide="ignore", invalid="ignore"):
        return top / bottom**2
