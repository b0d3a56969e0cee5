"""Find what changed: matched filter, candidates, flags."""

from skyloom.detection.score import Score, filter_image, noise_gain, score

__all__ = ["Score", "filter_image", "noise_gain", "score"]
