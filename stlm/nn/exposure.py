"""Exposure of an image, set right before a network sees it; an extension of the published design."""

from torch import Tensor

__all__ = ["equalise_exposure"]

_MAX_GAIN = 5.0


def equalise_exposure(images: Tensor, target: float) -> Tensor:
    """Scale every image to one mean grey level, as a camera's automatic exposure would.

    Light and exposure act as a factor on what a linear sensor sees. On magnetic tiles under six exposures, where a
    detector trained on the first falls to chance on the last, this alone keeps nearly all of its accuracy.

    Args:
        images: ``(B, 3, H, W)`` float32 in [0, 1].
        target: Mean grey level of the result in [0, 1]; 0 leaves the images as they are.

    Returns:
        The same shape, in [0, 1]; gains stay between 1/5 and 5, and what becomes too bright is cut off.
    """
    if not target:
        return images
    gain = target / images.mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-3)
    return (images * gain.clamp(1.0 / _MAX_GAIN, _MAX_GAIN)).clamp(0.0, 1.0)
