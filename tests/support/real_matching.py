"""Another way to find shifts of real scenes: mutual information."""

import numpy as np
from scipy import fft

from sar2eo.matching.structure import StructuralAligner, smooth_valid

ALIGNER = StructuralAligner()


SIDE = ALIGNER.neighbourhood_px


RADIUS = ALIGNER.radius_px


def by_information(sar: np.ndarray, eo: np.ndarray) -> tuple[int, int]:
    """Whole shift of the largest mutual information, from joint histograms of all shifts by FFT."""
    spectra, bins = [], 10
    for image in (np.log(sar + 10), eo):
        mean, valid = smooth_valid(image, 2.0)
        grades = np.digitize(mean, np.quantile(mean[valid], np.linspace(0, 1, bins + 1)[1:-1]))
        spectra.append(
            [
                fft.rfft2((valid & (grades == k)).astype(np.float32), (SIDE + 2 * RADIUS,) * 2)
                for k in range(bins)
            ]
        )
    at = np.ix_(*(np.arange(-RADIUS, RADIUS + 1),) * 2)
    joint = np.array([[fft.irfft2(a * b.conj())[at] for b in spectra[1]] for a in spectra[0]])
    joint = np.maximum(joint, 1e-6) / np.maximum(joint, 1e-6).sum(axis=(0, 1))
    chance = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    best = np.argmax((joint * np.log(joint / chance)).sum(axis=(0, 1)))
    row, col = np.unravel_index(best, (2 * RADIUS + 1,) * 2)
    return int(row) - RADIUS, int(col) - RADIUS
