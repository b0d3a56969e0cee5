"""HOTPANTS' model as its papers state it, with full design matrices and loops over pixels."""

import numpy as np


def exponents(order):
    return [(i, j) for i in range(order + 1) for j in range(order + 1 - i)]


def basis_images(degrees, sigmas, half):
    """u^p v^q exp(-r^2 / 2 s^2); factors of even-even pairs have the sum 1 and all but the first are less B_0."""
    axis = np.arange(-half, half + 1.0)
    images = []
    for degree, sigma in zip(degrees, sigmas, strict=True):
        for p in range(degree + 1):
            for q in range(degree + 1 - p):
                fx = axis**p * np.exp(-(axis**2) / (2 * sigma**2))
                fy = axis**q * np.exp(-(axis**2) / (2 * sigma**2))
                if p % 2 == 0 and q % 2 == 0:
                    fx, fy = fx / fx.sum(), fy / fy.sum()
                image = fy[:, None] * fx[None, :]
                if p % 2 == 0 and q % 2 == 0 and images:
                    image = image - images[0]
                images.append(image)
    return np.array(images)


def convolve_at(data, kernel, x, y):
    """sum_uv K(u, v) data(x - u, y - v)"""
    half = kernel.shape[0] // 2
    return float((kernel[::-1, ::-1] * data[y - half : y + half + 1, x - half : x + half + 1]).sum())


def kernel_at(column, images, ko, *, x, y, width, height):
    """The kernel of a column of the table at pixel (x, y): a_0 is constant, the others are polynomials."""
    X, Y = (x - width / 2) / (width / 2), (y - height / 2) / (height / 2)
    kernel, row = column[1] * images[0], 2
    for image in images[1:]:
        for i, j in exponents(ko):
            kernel = kernel + column[row] * X**i * Y**j * image
            row += 1
    return kernel


def background_at(column, n_basis, ko, bgo, *, x, y, width, height):
    X, Y = (x - width / 2) / (width / 2), (y - height / 2) / (height / 2)
    row = 2 + (n_basis - 1) * len(exponents(ko))
    return sum(column[row + k] * X**i * Y**j for k, (i, j) in enumerate(exponents(bgo)))


def fit(source, target, stars, half, images, *, ko, bgo):
    """Return the table's column by least squares on all pixels of all sub-stamps, without weights (Alard 2000).

    The kernel's polynomials are those of the middle of the sub-stamp, the background's those of the pixel.
    """
    height, width = source.shape
    rows, values = [], []
    for sx, sy in stars:
        X, Y = (sx - width / 2) / (width / 2), (sy - height / 2) / (height / 2)
        for y in range(sy - half, sy + half + 1):
            for x in range(sx - half, sx + half + 1):
                smooth = [convolve_at(source, image, x, y) for image in images]
                row = [smooth[0]]
                row += [value * X**i * Y**j for value in smooth[1:] for i, j in exponents(ko)]
                x1, y1 = (x - width / 2) / (width / 2), (y - height / 2) / (height / 2)
                rows.append(row + [x1**i * y1**j for i, j in exponents(bgo)])
                values.append(target[y, x])
    design = np.array(rows)
    norm = np.linalg.norm(design, axis=0)
    solution = np.linalg.lstsq(design / norm, np.array(values), rcond=None)[0] / norm
    return np.concatenate([[0.0], solution])


def planes(image, template, column, images, *, ko, bgo, var_image, var_template):
    """Return convolved template with background, difference and noise; NaN on the border."""
    height, width = image.shape
    half = images.shape[1] // 2
    matched, noise = np.full(image.shape, np.nan), np.full(image.shape, np.nan)
    for y in range(half, height - half):
        for x in range(half, width - half):
            where = {"x": x, "y": y, "width": width, "height": height}
            kernel = kernel_at(column, images, ko, **where)
            matched[y, x] = convolve_at(template, kernel, x, y)
            matched[y, x] += background_at(column, len(images), ko, bgo, **where)
            noise[y, x] = np.sqrt(var_image[y, x] + convolve_at(var_template, kernel**2, x, y))
    return matched, image - matched, noise
