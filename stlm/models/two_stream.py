"""STLM: a plain and a denoising student, one shared decoder, and feature aggregation.

Shape legend: B batch, D embedding channels, h x w positions of a level, H x W pixels of the network's input.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stlm.config import RecipeConfig
from stlm.models.outputs import AnomalyOutput
from stlm.nn.aggregation import FeatureAggregation
from stlm.nn.distances import cosine_distance
from stlm.nn.distribution import PatchDistribution
from stlm.nn.encoders import Features, TrunkEmbedding
from stlm.nn.exposure import equalise_exposure
from stlm.nn.frozen import frozen_features
from stlm.nn.mask_decoder import SharedDecoder
from stlm.nn.memory import NormalMemory

__all__ = ["Levels", "Streams", "TwoStream"]

Levels = tuple[Tensor, Tensor]
_MIN_SCALE = 0.02
_MIN_DISTANCE = 1e-6


class Streams(NamedTuple):
    """Both students at both levels, and what the aggregation makes of them."""

    plain: Levels
    denoising: Levels
    logits: Tensor
    """``(B, h, w)``."""


class TwoStream(nn.Module):
    """The detector. Teacher parts that live on the shared trunk travel with it, so that every night has one target."""

    map_centre: Tensor
    map_scale: Tensor
    map_weights: Tensor
    score_weights: Tensor

    def __init__(
        self,
        *,
        config: RecipeConfig,
        taps: tuple[tuple[int, ...], tuple[int, ...]],
        trunk: nn.Module | None,
        embedding: TrunkEmbedding | None,
        teacher_decoder: SharedDecoder | None,
        plain: nn.Module,
        denoising: nn.Module,
        decoder: SharedDecoder,
        aggregation: FeatureAggregation,
        distribution: PatchDistribution | None,
        memory: NormalMemory | None,
    ) -> None:
        super().__init__()
        self.config = config
        self.core_taps, self.extra_taps = taps
        self.trunk = trunk
        self.embedding = embedding
        self.teacher_decoder = teacher_decoder
        self.plain = plain
        self.denoising = denoising
        self.decoder = decoder
        self.aggregation = aggregation
        self.distribution = distribution
        self.memory = memory
        maps, score_maps = config.model.maps, config.model.score_maps or config.model.maps
        self.map_names = tuple(dict.fromkeys((*maps, *score_maps)))
        self.register_buffer("map_centre", torch.zeros(len(self.map_names)))
        self.register_buffer("map_scale", torch.ones(len(self.map_names)))
        weights = config.model.map_weights or (1.0,) * len(maps)
        for buffer, names in (("map_weights", maps), ("score_weights", score_maps)):
            share = torch.tensor([dict(zip(names, weights, strict=True)).get(name, 0.0) for name in self.map_names])
            self.register_buffer(buffer, share / share.sum(), persistent=False)
        for frozen in (trunk, embedding, teacher_decoder, distribution, memory):
            if frozen is not None:
                frozen.requires_grad_(False)

    @property
    def image_size(self) -> tuple[int, int]:
        """``(height, width)`` of the input."""
        return self.config.image_size

    def trunk_features(self, images: Tensor, *, extra: bool = False) -> Features:
        """What can be cached of an image: frozen trunk features, or the image itself where nothing is shared.

        Args:
            images: ``(B, 3, H, W)`` float32 in [0, 1].
            extra: Also give the levels that only the Gaussians see.

        Returns:
            Levels ``(B, C_i, h_i, w_i)``: the students', finest first, then the extra ones.
        """
        images = equalise_exposure(images, self.config.data.exposure)
        if self.trunk is None:
            return (images,)
        return frozen_features(self.trunk, images, (*self.core_taps, *(self.extra_taps if extra else ())))

    def standardise(self, features: Features) -> Features:
        """Trunk features as the students see them."""
        return features if self.embedding is None else self.embedding.standardise(features)

    def teacher_levels(self, standardised: Features) -> Levels:
        """Targets where the teacher is the shared trunk.

        Args:
            standardised: Output of :meth:`standardise`.

        Returns:
            Two levels ``(B, D, h, w)``.
        """
        assert self.embedding is not None
        assert self.teacher_decoder is not None
        first = self.embedding(standardised)
        return first, self.teacher_decoder(first)

    def streams(self, standardised: Features, denoising_input: Features | None = None) -> Streams:
        """Run both students, the shared decoder and the aggregation.

        Args:
            standardised: Output of :meth:`standardise`.
            denoising_input: Where given, the denoising student sees this instead (masked features).

        Returns:
            Levels of both students and the aggregation's logits.
        """
        if self.embedding is None:
            plain = self.plain(standardised[0])
            denoised = self.denoising((denoising_input or standardised)[0])
        else:
            plain = self.plain(self.embedding.join(standardised))
            denoised = self.denoising(denoising_input or standardised[: len(self.core_taps)])
        # One decoder pass for both students: the decoder is shared and treats every image on its own.
        second_plain, second_denoised = self.decoder(torch.cat([plain, denoised])).chunk(2)
        products = [
            -F.normalize(p, dim=1) * F.normalize(d, dim=1)
            for p, d in ((plain, denoised), (second_plain, second_denoised))
        ]
        logits = self.aggregation(torch.cat(products, dim=1))
        return Streams((plain, second_plain), (denoised, second_denoised), logits)

    def raw_maps(self, features: Features) -> Tensor:
        """The maps named in the recipe, before standardisation.

        Args:
            features: Output of :meth:`trunk_features` with the extra levels.

        Returns:
            ``(B, M, h, w)`` in the order of ``map_names``.
        """
        standardised = self.standardise(features)
        streams = self.streams(standardised)
        distances = self.distribution(standardised) if self.distribution is not None else None
        maps = []
        for name in self.map_names:
            if name == "aggregation":
                # Alone it is the published probability map; to be averaged with distances it must not saturate.
                maps.append(streams.logits if len(self.map_names) > 1 else streams.logits.sigmoid())
            elif name == "two_stream":
                levels = zip(streams.plain, streams.denoising, strict=True)
                maps.append(torch.stack([cosine_distance(p, d) for p, d in levels]).sum(dim=0))
            elif name in {"distribution", "deep_distribution"}:
                assert distances is not None
                maps.append(self._of_levels(distances, deep=name == "deep_distribution"))
            else:
                assert self.embedding is not None
                assert self.memory is not None
                maps.append(self.memory(self.embedding(standardised)))
        stacked = torch.stack(maps, dim=1)
        if self.config.model.smoothing > 1:
            kernel = self.config.model.smoothing
            stacked = F.avg_pool2d(stacked, kernel, stride=1, padding=kernel // 2, count_include_pad=False)
        return stacked

    def _of_levels(self, distances: Tensor, *, deep: bool) -> Tensor:
        """Mean over the students' levels and the finer, or the coarser, of the extra ones; a log where geometric."""
        core = len(self.core_taps)
        extra = [core + i for i, tap in enumerate(self.extra_taps) if (tap > self.core_taps[-1]) == deep]
        chosen = distances[:, [*range(core), *extra]]
        if self.config.model.distribution_mean == "geometric":
            chosen = chosen.clamp_min(_MIN_DISTANCE).log()
        return chosen.mean(dim=1)

    def image_scores(self, maps: Tensor) -> Tensor:
        """Mean of the largest values of each map.

        Args:
            maps: ``(B, M, h, w)``.

        Returns:
            ``(B, M)``.
        """
        size = self.config.model.score_size
        if tuple(maps.shape[-2:]) != size:
            maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
        return maps.flatten(2).topk(self.config.model.score_top_k, dim=-1).values.mean(dim=-1)

    def fuse(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted averages of the standardised maps; a single map stays as it is.

        Args:
            maps: ``(B, M, h, w)`` in the order of ``map_names``.

        Returns:
            The anomaly map and the map behind the image score, ``(B, 1, h, w)`` each.
        """
        centre, scale = self.map_centre.view(1, -1, 1, 1), self.map_scale.view(1, -1, 1, 1)
        standardised = (maps - centre) / scale
        anomaly_map, score_map = (
            (weights.view(1, -1, 1, 1) * standardised).sum(dim=1, keepdim=True)
            for weights in (self.map_weights, self.score_weights)
        )
        return anomaly_map, score_map

    @torch.no_grad()
    def fit_fusion(self, maps: Tensor) -> None:
        """Make the maps comparable: on held-out normals each map's image score gets mean 0 and deviation 1.

        Args:
            maps: ``(N, M, h, w)`` raw maps of normals that were not trained on.
        """
        if len(self.map_names) == 1:
            return
        scores = self.image_scores(maps)
        self.map_centre.copy_(scores.mean(dim=0))
        # The floor keeps a map that is silent on normals from drowning the others in its rounding noise.
        self.map_scale.copy_(scores.std(dim=0).clamp_min(_MIN_SCALE))

    def forward(self, images: Tensor) -> AnomalyOutput:
        """Score images.

        Args:
            images: ``(B, 3, H, W)`` float32 in [0, 1], at :attr:`image_size`.

        Returns:
            Scores ``(B,)`` and maps ``(B, H, W)``.
        """
        anomaly_map, score_map = self.fuse(self.raw_maps(self.trunk_features(images, extra=True)))
        score = self.image_scores(score_map)[:, 0]
        resized = F.interpolate(anomaly_map, size=self.image_size, mode="bilinear", align_corners=False)
        return AnomalyOutput(score=score, anomaly_map=resized[:, 0])
