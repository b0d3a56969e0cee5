"""From asterisms that look alike to a few hypotheses on the transform: each pair votes for one similarity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from skyloom.registration.asterisms import Asterisms

Float = npt.NDArray[np.float64]
Complex = npt.NDArray[np.complex128]

_CENTRE_STEP, _SCALE_STEP, _ANGLE_STEP = 12.0, 0.02, 0.02
"""Radius of agreement between votes: pixels at the image of the centre, log scale, radians."""

_MOST_VOTES = 60_000
"""Votes that are counted; of more, the ones with the most similar shapes."""


@dataclass(frozen=True)
class Similarities:
    """N similarity transforms q = z (parity x + i y) + w of template to source positions, complex notation.

    Attributes
    ----------
    z : ndarray of complex, shape (N,)
        Scale and rotation.
    w : ndarray of complex, shape (N,)
        Shift.
    parity : ndarray, shape (N,)
        -1 where x is reflected first.
    votes : ndarray of int, shape (N,)
        How many votes agree with each.
    """

    z: Complex
    w: Complex
    parity: npt.NDArray[np.int64]
    votes: npt.NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.z)

    def __getitem__(self, which: npt.NDArray[np.bool_] | npt.NDArray[np.intp]) -> Similarities:
        return Similarities(self.z[which], self.w[which], self.parity[which], self.votes[which])

    def apply(self, index: int, xy: Float) -> Float:
        """Apply one of the transforms to positions of shape (M, 2)."""
        q = self.z[index] * (self.parity[index] * xy[:, 0] + 1j * xy[:, 1]) + self.w[index]
        return np.column_stack([q.real, q.imag])

    def linear(self, index: int) -> tuple[Float, Float]:
        """Return one of the transforms as matrix (2, 2) and shift (2,)."""
        z, w, parity = self.z[index], self.w[index], self.parity[index]
        return np.array([[parity * z.real, -z.imag], [parity * z.imag, z.real]]), np.array([w.real, w.imag])


def least_squares_similarity(template: Float, source: Float, parity: npt.NDArray[np.int64]) -> tuple[Complex, Complex]:
    """Fit one similarity to each of N groups of corresponding stars.

    Parameters
    ----------
    template, source : ndarray, shape (N, size, 2)
        Corresponding positions.
    parity : ndarray, shape (N,)
        +1 or -1.

    Returns
    -------
    z, w : ndarray of complex, shape (N,)
        z = sum(conj(da) db) / sum(|da|^2), w = mean(b) - z mean(a).
    """
    a = parity[:, None] * template[..., 0] + 1j * template[..., 1]
    b = source[..., 0] + 1j * source[..., 1]
    a_mean, b_mean = a.mean(axis=1), b.mean(axis=1)
    da, db = a - a_mean[:, None], b - b_mean[:, None]
    z = (da.conj() * db).sum(axis=1) / (np.abs(da) ** 2).sum(axis=1)
    return z, b_mean - z * a_mean


def cast_votes(
    template_xy: Float,
    template: Asterisms,
    source_xy: Float,
    source: Asterisms,
    *,
    tolerance: float,
    scale_range: tuple[float, float],
) -> Similarities:
    """Pair asterisms of similar shape and return the similarity that each pair stands for (votes = 1).

    Parameters
    ----------
    template_xy, source_xy : ndarray, shape (N, 2)
        Positions of the stars.
    template, source : Asterisms
        Their asterisms.
    tolerance : float
        Largest distance of two shapes, in units of the longest side.
    scale_range : (float, float)
        Smallest and largest scale, source pixels per template pixel.
    """
    if not len(template) or not len(source):
        none = np.empty(0)
        return Similarities(none.astype(complex), none.astype(complex), none.astype(np.int64), none.astype(np.intp))
    distance, match = cKDTree(source.invariants).query(
        template.invariants, k=min(4, len(source)), distance_upper_bound=tolerance
    )
    distance, match = distance.reshape(len(template), -1), match.reshape(len(template), -1)
    t, k = np.nonzero(np.isfinite(distance))
    if len(t) > _MOST_VOTES:
        best = np.sort(np.argsort(distance[t, k], kind="stable")[:_MOST_VOTES])
        t, k = t[best], k[best]
    s = match[t, k]
    parity = template.parity[t] * source.parity[s]
    z, w = least_squares_similarity(template_xy[template.stars[t]], source_xy[source.stars[s]], parity)
    good = (np.abs(z) > scale_range[0]) & (np.abs(z) < scale_range[1])
    return Similarities(z[good], w[good], parity[good], np.ones(int(good.sum()), np.intp))


def count_votes(votes: Similarities, centre: Float, most: int) -> Similarities:
    """Find where the votes crowd together in (image of the centre, log scale, angle, parity).

    Parameters
    ----------
    votes : Similarities
        From `cast_votes`.
    centre : ndarray, shape (2,)
        Centre of the template.
    most : int
        Number of hypotheses to return.

    Returns
    -------
    Similarities
        The mean of each crowd, distinct from each other, the largest first.
    """
    if not len(votes):
        return votes
    image = votes.z * (votes.parity * centre[0] + 1j * centre[1]) + votes.w
    size = np.abs(votes.z)
    features = np.column_stack(
        [
            image.real / _CENTRE_STEP,
            image.imag / _CENTRE_STEP,
            np.log(size) / _SCALE_STEP,
            votes.z.real / size / _ANGLE_STEP,
            votes.z.imag / size / _ANGLE_STEP,
            votes.parity * 1e3,
        ]
    )
    tree = cKDTree(features)
    count = tree.query_ball_point(features, 1.0, return_length=True)
    chosen: list[tuple[complex, complex, int, int]] = []
    free = np.ones(len(votes), bool)
    for best in np.argsort(-count, kind="stable"):
        if not free[best]:
            continue
        near = np.sort(tree.query_ball_point(features[best], 1.0))
        z = votes.z[near].mean()
        w = image[near].mean() - z * (votes.parity[best] * centre[0] + 1j * centre[1])
        chosen.append((z, w, int(votes.parity[best]), int(count[best])))
        free[near] = False
        if len(chosen) == most:
            break
    z, w, parity, counts = zip(*chosen, strict=True)
    return Similarities(np.array(z), np.array(w), np.array(parity, np.int64), np.array(counts, np.intp))
