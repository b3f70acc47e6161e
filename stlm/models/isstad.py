"""ISSTAD (arXiv 2303.17354): a masked autoencoder, then a deeper decoder that repairs images and judges pixels.

Shape legend: B batch, K decoder blocks, N patches, H x W pixels of the network's input.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stlm.config_isstad import IsstadRecipe
from stlm.constants import IMAGENET_MEAN, IMAGENET_STD
from stlm.errors import WeightsError
from stlm.models.outputs import AnomalyOutput
from stlm.nn.exposure import equalise_exposure
from stlm.nn.masked_autoencoder import PatchDecoder, PatchEncoder, patchify, random_keep, take, unpatchify
from stlm.nn.smoothing import GaussianSmoothing
from stlm.nn.teachers import download_checkpoint, read_state

__all__ = ["Hidden", "Isstad", "Repaired", "load_mae_checkpoint"]

_SCALES = {"imagenet": (IMAGENET_MEAN, IMAGENET_STD), "half": ((0.5,) * 3, (0.5,) * 3)}
_MIN_SCALE = 1e-8


class Hidden(NamedTuple):
    """Stage one: what was predicted, what was there, and where it counts."""

    predicted: Tensor
    """``(B, N, p * p * 3)``."""
    target: Tensor
    """The same shape."""
    hidden: Tensor
    """``(B, N)`` bool."""


class Repaired(NamedTuple):
    """Stage two."""

    logits: tuple[Tensor, ...]
    """One ``(B, 2, H, W)`` a block, normal first."""
    image: Tensor
    """``(B, 3, H, W)`` normalised."""


class Isstad(nn.Module):
    """The detector. The first stage's shallow decoder stays with it, so that a later night can go on with that stage.

    Args:
        config: The recipe.
    """

    residual_scale: Tensor
    score_scale: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, *, config: IsstadRecipe) -> None:
        super().__init__()
        self.config = config
        model = config.model
        self.grid = (config.image_size[0] // model.patch_size, config.image_size[1] // model.patch_size)
        self.encoder = PatchEncoder(
            image_size=config.image_size,
            patch_size=model.patch_size,
            dim=model.dim,
            depth=model.depth,
            num_heads=model.num_heads,
        )
        self.mae_decoder, self.decoder = (
            PatchDecoder(
                grid=self.grid,
                patch_size=model.patch_size,
                in_dim=model.dim,
                dim=model.decoder_dim,
                depth=depth,
                num_heads=model.decoder_heads,
            )
            for depth in (model.first_decoder_depth, model.decoder_depth)
        )
        self.mask_pred = nn.Linear(model.decoder_dim, model.patch_size**2 * 2)
        self.smooth = GaussianSmoothing(size=config.image_size, sigma=model.smoothing_px)
        # Nothing is hidden in the second stage.
        self.decoder.mask_token.requires_grad_(False)
        self.register_buffer("residual_scale", torch.ones(()))
        self.register_buffer("score_scale", torch.ones(()))
        first, second = ("imagenet", "half") if model.normalisation == "published" else (model.normalisation,) * 2
        scales = [torch.tensor(_SCALES[name]) for name in (first, second)]
        self.register_buffer("mean", torch.stack([s[0] for s in scales]).view(2, 1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.stack([s[1] for s in scales]).view(2, 1, 3, 1, 1), persistent=False)

    @property
    def image_size(self) -> tuple[int, int]:
        """``(height, width)`` of the input."""
        return self.config.image_size

    def expose(self, images: Tensor) -> Tensor:
        """Images ``(B, 3, H, W)`` in [0, 1] at the recipe's exposure."""
        return equalise_exposure(images, self.config.data.exposure)

    def normalise(self, images: Tensor, *, stage: int = 1) -> Tensor:
        """Images ``(B, 3, H, W)`` in [0, 1] as stage 0 or 1 sees them."""
        return (images - self.mean[stage]) / self.deviation[stage]

    def denormalise(self, images: Tensor) -> Tensor:
        """Back to [0, 1], from the second stage's normalisation."""
        return images * self.deviation[1] + self.mean[1]

    def predict_hidden(self, images: Tensor, noise: Tensor, mask_ratio: float) -> Hidden:
        """Stage one.

        Args:
            images: ``(B, 3, H, W)``, normalised.
            noise: ``(B, N)``; decides which patches are hidden.
            mask_ratio: Share to hide.

        Returns:
            Predicted and true patches.
        """
        kept, restore = random_keep(noise, mask_ratio)
        states = self.mae_decoder(self.encoder(images, kept), restore)
        hidden = (restore >= kept.shape[1]).to(torch.bool)
        target = patchify(images, self.config.model.patch_size)
        return Hidden(self.mae_decoder.pixels(states[-1]), target, hidden)

    @torch.no_grad()
    def deepen(self) -> None:
        """Between the stages of a first night: the second decoder's first blocks, and its ends, come from the first."""
        self.decoder.load_state_dict(self.mae_decoder.state_dict(), strict=False)

    def encode(self, images: Tensor) -> Tensor:
        """The frozen encoder's tokens ``(B, 1 + N, D)`` of normalised images, in random order where so configured."""
        with torch.no_grad():
            tokens: Tensor = self.encoder(images)
            if not self.config.model.unshuffle:
                order = torch.rand(tokens.shape[0], tokens.shape[1] - 1, device=tokens.device).argsort(dim=1)
                tokens = torch.cat([tokens[:, :1], take(tokens[:, 1:], order)], dim=1)
        return tokens

    def repair(self, images: Tensor) -> Repaired:
        """Stage two.

        Args:
            images: ``(B, 3, H, W)``, normalised.

        Returns:
            Logits of every block, and the image without its anomalies.
        """
        states = self.decoder(self.encode(images))
        size = self.config.model.patch_size
        logits = tuple(unpatchify(self.mask_pred(block[:, 1:]), size, self.grid) for block in states)
        return Repaired(logits, unpatchify(self.decoder.pixels(states[-1]), size, self.grid))

    def evidence(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The two maps that make the anomaly map.

        Args:
            images: ``(B, 3, H, W)`` float32 in [0, 1].

        Returns:
            Probability of "anomalous", averaged over the blocks, and squared error of the reconstruction, averaged
            over the colours; both ``(B, 1, H, W)``.
        """
        normalised = self.normalise(self.expose(images))
        repaired = self.repair(normalised)
        probability = torch.stack([block.softmax(dim=1)[:, 1:] for block in repaired.logits]).mean(dim=0)
        return probability, (repaired.image - normalised).square().mean(dim=1, keepdim=True)

    def combine(self, probability: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """ISSTAD's score and map, before any scale of the score.

        Args:
            probability: ``(B, 1, H, W)``.
            residual: The same shape.

        Returns:
            Scores ``(B,)`` and maps ``(B, H, W)``.
        """
        model = self.config.model
        both = self.smooth(probability) * self.smooth(residual)
        score = _top_mean(self.smooth(both).flatten(1), model.score_top_share)
        if model.map_scale == "per_image":
            low, high = residual.amin(dim=(2, 3), keepdim=True), residual.amax(dim=(2, 3), keepdim=True)
            scaled = (residual - low) / (high - low).clamp_min(_MIN_SCALE)
        else:
            scaled = residual / self.residual_scale
        return score, self.smooth(probability * scaled).squeeze(1)

    @torch.no_grad()
    def fit_scales(self, images: Tensor, *, batch_size: int = 8) -> None:
        """Set the units: a residual of 1 is the largest of a typical normal image, a score of 1 the mean normal's.

        Args:
            images: ``(N, 3, H, W)`` in [0, 1], normals that were not trained on.
            batch_size: Images at a time.
        """
        peaks, scores = [], []
        for batch in torch.split(images, batch_size):
            probability, residual = self.evidence(batch.to(self.residual_scale.device))
            peaks.append(residual.amax(dim=(1, 2, 3)))
            scores.append(self.combine(probability, residual)[0])
        self.residual_scale.copy_(torch.cat(peaks).mean().clamp_min(_MIN_SCALE))
        self.score_scale.copy_(torch.cat(scores).mean().clamp_min(_MIN_SCALE))

    def forward(self, images: Tensor) -> AnomalyOutput:
        """Score images.

        Args:
            images: ``(B, 3, H, W)`` float32 in [0, 1], at :attr:`image_size`.

        Returns:
            Scores ``(B,)`` and maps ``(B, H, W)``.
        """
        score, anomaly_map = self.combine(*self.evidence(images))
        return AnomalyOutput(score=score / self.score_scale, anomaly_map=anomaly_map)


def _top_mean(values: Tensor, share: float) -> Tensor:
    if share == 1.0:
        return values.mean(dim=1)
    return values.topk(max(1, math.ceil(share * values.shape[1])), dim=1).values.mean(dim=1)


def load_mae_checkpoint(model: Isstad, checkpoint: str, sha256: str, cache_dir: Path) -> None:
    """Start the encoder and the first stage's decoder from a file in the layout of ``mae_visualize_vit_large``.

    Decoder blocks beyond the first stage's are left out; nothing else may be missing, of another shape, or surplus.

    Args:
        model: Changed in place.
        checkpoint: Path or URL.
        sha256: Digest it must have.
        cache_dir: Where downloads are kept.

    Raises:
        WeightsError: The file is missing, altered, or of another architecture.
    """
    if not checkpoint:
        wanted = "set fine_tune.teacher_checkpoint and fine_tune.teacher_sha256"
        raise WeightsError(f"recipe {model.config.name} starts from a masked autoencoder: {wanted}")
    path = download_checkpoint(checkpoint, sha256, cache_dir)
    state = read_state(path)
    parts = (model.encoder, model.mae_decoder)
    problems = _misfits({name: value for part in parts for name, value in part.state_dict().items()}, state)
    if problems:
        raise WeightsError(
            f"checkpoint {path} is of another architecture: {problems[0]} ({len(problems)} such tensors)"
        )
    for part in parts:
        part.load_state_dict({name: state[name] for name in part.state_dict()})


def _misfits(wanted: dict[str, Tensor], state: dict[str, Tensor]) -> Sequence[str]:
    missing = [f"{name} is missing" for name in wanted if name not in state]
    surplus = [f"{name} is unknown" for name in state if name not in wanted and not name.startswith("decoder_blocks.")]
    shapes = [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    return missing + shapes + surplus
