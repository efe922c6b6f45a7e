"""Integer registration of whole frames by cross-correlation, on the host."""

from __future__ import annotations

import numpy as np
import scipy.fft

from deepsum_jax.data import resample
from deepsum_jax.data.fill import fill_hidden, without_outliers


def plain_shift(reference: np.ndarray, frame: np.ndarray) -> tuple[int, int]:
    """Translation that registers a frame, by plain circular cross-correlation, as published.

    No masks and no normalisation: clouds can fool it, and did.

    Args:
      reference, frame: [H, W].

    Returns:
      (s_y, s_x): registered(y, x) = frame(y − s_y, x − s_x); (0, 0) for a flat image.
    """
    if np.ptp(reference) == 0 or np.ptp(frame) == 0:
        return 0, 0  # a flat image fits everywhere
    # The means cannot move a circular correlation's peak, but would drown it in rounding.
    a, b = (x - x.mean(dtype=np.float64) for x in (reference, frame))
    spectrum = scipy.fft.rfft2(a) * np.conj(scipy.fft.rfft2(b))
    correlation = scipy.fft.irfft2(spectrum, s=reference.shape)
    peak = np.unravel_index(int(correlation.argmax()), correlation.shape)
    sy, sx = (int(p) - n if p > n // 2 else int(p) for p, n in zip(peak, reference.shape))
    return sy, sx


class MaskedCorrelation:
    """Normalised cross-correlation with one reference frame over reliable pixels only.

    At every shift the coefficient of correlation is taken over the pixels that both masks call
    reliable (Padfield 2012), so neither clouds nor a change of brightness or contrast move the
    peak. Nothing wraps around.

    Args:
      reference: [H, W].
      mask: [H, W] bool, True = reliable.
      search: greatest shift that is tried, pixels; by default a quarter of the smaller side.
      min_overlap: fraction of the greatest overlap that a shift must keep to be tried.
    """

    def __init__(
        self,
        reference: np.ndarray,
        mask: np.ndarray,
        search: int | None = None,
        min_overlap: float = 0.3,
    ) -> None:
        height, width = reference.shape
        self.search = min(height, width) // 4 if search is None else search
        self.min_overlap = min_overlap
        # Zeros of the search's width keep shifted copies apart from their wrapped selves.
        self._shape = tuple(
            scipy.fft.next_fast_len(n + self.search, real=True) for n in (height, width)
        )
        self._reference = self._spectra(reference, mask)

    def _spectra(self, frame: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
        values = frame[mask]
        mean, std = (values.mean(), values.std()) if values.size else (0.0, 1.0)
        x = np.where(mask, (frame - mean) / max(float(std), 1e-12), 0).astype(np.float32)
        weights = mask.astype(np.float32)
        return [scipy.fft.rfft2(a, self._shape) for a in (weights, x, x * x)]

    def shift(self, frame: np.ndarray, mask: np.ndarray) -> tuple[int, int]:
        """Translation (s_y, s_x) that registers a frame: registered(y) = frame(y − s).

        (0, 0) where the two have too few reliable pixels in common, or are flat.
        """
        return self._shift(self._spectra(frame, mask))

    def shift_of(self, other: MaskedCorrelation) -> tuple[int, int]:
        """The same for another correlation's reference, of the same shape and search."""
        return self._shift(other._reference)

    def _shift(self, spectra: list[np.ndarray]) -> tuple[int, int]:
        m_r, r, rr = self._reference
        m_f, f, ff = (np.conj(s) for s in spectra)
        window = np.arange(-self.search, self.search + 1)

        def total(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            """Σ_y a(y) · b(y − s) for every shift s within the search."""
            full = scipy.fft.irfft2(a * b, s=self._shape)
            return full[np.ix_(window, window)]

        count = np.maximum(total(m_r, m_f), 1e-6)
        sum_r, sum_f = total(r, m_f), total(m_r, f)
        covariance = total(r, f) - sum_r * sum_f / count
        variance = (total(rr, m_f) - sum_r**2 / count) * (total(m_r, ff) - sum_f**2 / count)
        enough = (count >= max(self.min_overlap * count.max(), 16)) & (variance > 1e-6 * count**2)
        score = np.where(enough, covariance / np.sqrt(np.maximum(variance, 1e-12)), -np.inf)
        if not enough.any():
            return 0, 0
        peak = np.unravel_index(int(score.argmax()), score.shape)
        return int(window[peak[0]]), int(window[peak[1]])


def register_frames(
    frames: np.ndarray, masks: np.ndarray | None, method: str = "masked", search: int | None = None
) -> np.ndarray:
    """Integer translations that register frames on frame 0.

    Args:
      frames: [T, H, W] or [T, H, W, C]; channels are averaged, since they share one grid.
      masks: [T, H, W] bool, or None for all reliable.
      method: "masked" or "plain" cross-correlation.
      search: of the masked one; see `MaskedCorrelation`.

    Returns:
      int32 [T, 2]; zeros for frame 0.

    Raises:
      ValueError: another method.
    """
    if method not in ("masked", "plain"):
        raise ValueError(f"method: found {method!r}, expected 'masked' or 'plain'")
    grey = frames.mean(axis=-1) if frames.ndim == 4 else frames
    shifts = np.zeros((len(grey), 2), np.int32)
    if method == "plain":
        for n in range(1, len(grey)):
            shifts[n] = plain_shift(grey[0], grey[n])
        return shifts
    masks = np.ones(grey.shape, bool) if masks is None else masks
    correlation = MaskedCorrelation(grey[0], masks[0], search)
    for n in range(1, len(grey)):
        shifts[n] = correlation.shift(grey[n], masks[n])
    return shifts


def register_upsampled(
    lr: np.ndarray,
    masks: np.ndarray,
    scale: int,
    images: np.ndarray | None = None,
    method: str = "masked",
) -> np.ndarray:
    """Integer translations, HR pixels, that register frames on frame 0, whatever their hot pixels.

    Args:
      lr: [T, h, w, C], finite.
      masks: [T, h, w] bool.
      scale: r.
      images: [T, H, W, C] made of the frames, if there are any; else they are upsampled.
      method: as of `register_frames`.

    Returns:
      int32 [T, 2].
    """
    hot = masks & ~without_outliers(lr, masks)
    if hot.any():  # upsampling has carried them into their neighbours
        images = resample.upsample(fill_hidden(lr, ~hot), scale)
    elif images is None:
        images = resample.upsample(lr, scale)
    return register_frames(images, resample.nearest_upsample(masks & ~hot, scale), method)
