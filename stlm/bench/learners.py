"""Detectors that learn night by night, behind one interface: the product's own ways, and peers."""

import abc
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from stlm.bench.patchcore import PatchCore
from stlm.bench.stfpm import Stfpm
from stlm.calibration import calibrate_threshold
from stlm.config import RecipeConfig
from stlm.config_isstad import AnyRecipe
from stlm.data.synthesis import FloatImage, embedded_textures
from stlm.errors import ConfigError
from stlm.evaluation import Detector, score_images
from stlm.models.registry import AnomalyModel, build_model
from stlm.nn.teachers import SamTeacher
from stlm.recipes import recipe
from stlm.training.fit import fit
from stlm.training.replay import NormalImage, choose_replay, split_held_out
from stlm.training.samples import Normals, load_normals

__all__ = [
    "STRATEGIES",
    "Ingredients",
    "Learner",
    "PatchCoreLearner",
    "StfpmLearner",
    "StlmLearner",
    "learner",
    "night_of",
    "with_passes",
]

_HELD_OUT_SHARE = 0.15
_HELD_OUT_LIMIT = 200
_FALSE_ALARM_RATE = 0.05


class Learner(Protocol):
    """A detector with a memory of its own."""

    def learn(self, night: Sequence[NormalImage]) -> None:
        """Take a night's normals in."""
        ...

    @property
    def detector(self) -> Detector:
        """As it stands."""
        ...

    @property
    def device(self) -> str:
        """Where the detector is."""
        ...

    @property
    def threshold(self) -> float:
        """Aimed at 5 % false alarms on normals that were held out."""
        ...

    @property
    def replay_bytes(self) -> int:
        """Size of what it keeps of earlier nights beside the model."""
        ...


def night_of(paths: Sequence[Path], name: str, parts: Mapping[str, str] | None = None) -> list[NormalImage]:
    """Normals of a night by place and content.

    Args:
        paths: The files.
        name: Of the night.
        parts: Name of a file -> its part, where that is known.

    Returns:
        One entry a file.
    """
    return [
        NormalImage(
            path=str(path),
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            night=name,
            part=(parts or {}).get(path.name, ""),
        )
        for path in paths
    ]


def _load(images: Sequence[NormalImage], size: tuple[int, int]) -> Normals:
    return load_normals([Path(image.path) for image in images], [image.sha256 for image in images], size)


def _load_tensor(images: Sequence[NormalImage], size: tuple[int, int]) -> Tensor:
    """``(N, 3, H, W)`` float32 in [0, 1]."""
    return torch.from_numpy(_load(images, size).images).permute(0, 3, 1, 2) / 255.0


@dataclass(frozen=True, kw_only=True)
class Ingredients:
    """What training takes beside images, and where it runs."""

    new_model: Callable[[AnyRecipe, int], AnomalyModel] = lambda config, seed: build_model(config, seed=seed)
    """Of a recipe and a seed; untrained."""
    teacher: SamTeacher | None = None
    """On ``device``."""
    textures: Sequence[FloatImage] = field(default_factory=embedded_textures)
    device: str = "cpu"
    bf16: bool = False


@dataclass(kw_only=True)
class _HoldsOut(abc.ABC):
    """What all learners do alike: hold normals out of every night, and set the threshold by them."""

    seed: int

    def __post_init__(self) -> None:
        self._held_out: tuple[NormalImage, ...] = ()
        self._threshold = float("nan")

    @abc.abstractmethod
    def _train(self, training: Sequence[NormalImage], held_out: Sequence[NormalImage]) -> Detector:
        """Learn a night's training images; ``held_out`` are those of the same night."""

    def learn(self, night: Sequence[NormalImage]) -> None:
        """See :class:`Learner`."""
        training, held_out = split_held_out(night, share=_HELD_OUT_SHARE, seed=self.seed)
        self._held_out = choose_replay((*self._held_out, *held_out), limit=_HELD_OUT_LIMIT, seed=self.seed)
        detector = self._train(training, held_out)
        scores = score_images(detector, [Path(image.path) for image in self._held_out], device=self.device).scores
        parts = [image.part for image in self._held_out]
        self._threshold = calibrate_threshold(scores, _FALSE_ALARM_RATE, parts=parts).threshold

    @property
    def threshold(self) -> float:
        """See :class:`Learner`."""
        return self._threshold

    @property
    def device(self) -> str:
        """See :class:`Learner`."""
        return "cpu"

    @property
    def replay_bytes(self) -> int:
        """See :class:`Learner`."""
        return 0


@dataclass(kw_only=True)
class StlmLearner(_HoldsOut):
    """The product's model and night, with the parts of a night that can be left out."""

    config: AnyRecipe
    replay_images: int = 300
    updates: bool = True
    """False: whatever comes after the first night is ignored."""
    joint: bool = False
    """True: every night trains afresh on all normals so far."""
    ingredients: Ingredients = field(default_factory=Ingredients)
    watch: Callable[[AnomalyModel, str, int, int], None] | None = None
    """Called with the model, the stage, its steps done and all of them, see ``fit``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._model: AnomalyModel | None = None
        self._memory: tuple[NormalImage, ...] = ()
        self._all: tuple[NormalImage, ...] = ()

    def learn(self, night: Sequence[NormalImage]) -> None:
        """See :class:`Learner`."""
        if self._model is None or self.updates:
            super().learn(night)

    def _train(self, training: Sequence[NormalImage], held_out: Sequence[NormalImage]) -> AnomalyModel:
        del held_out  # all nights' are wanted
        self._all = (*self._all, *training)
        has_parent = self._model is not None and not self.joint
        if self._model is None or self.joint:
            self._model = self.ingredients.new_model(self.config, self.seed).to(self.device)
        model, size = self._model, self._model.image_size
        fit(
            model,
            new=_load(self._all if self.joint else training, size),
            replay=_load(self._memory if has_parent else (), size),
            held_out=_load(self._held_out, size),
            teacher=self.ingredients.teacher,
            textures=self.ingredients.textures,
            has_parent=has_parent,
            seed=self.seed,
            bf16=self.ingredients.bf16,
            watch=None if self.watch is None else functools.partial(self.watch, model),
        )
        self._memory = choose_replay((*self._memory, *training), limit=self.replay_images, seed=self.seed)
        return model

    @property
    def detector(self) -> AnomalyModel:
        """See :class:`Learner`."""
        assert self._model is not None
        return self._model

    @property
    def device(self) -> str:
        """See :class:`Learner`."""
        return self.ingredients.device

    @property
    def replay_bytes(self) -> int:
        """See :class:`Learner`."""
        kept = self._all if self.joint else self._memory
        return sum(Path(image.path).stat().st_size for image in kept) if self.updates else 0


@dataclass(kw_only=True)
class PatchCoreLearner(_HoldsOut):
    """The peer: one coreset of constant size, chosen anew every night from itself and the new patches."""

    max_size: int = 15_000
    accumulate: bool = True
    """False: the bank is filled from the newest night alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.detector = PatchCore(seed=self.seed, max_size=self.max_size)

    def _train(self, training: Sequence[NormalImage], held_out: Sequence[NormalImage]) -> PatchCore:
        del held_out
        if not self.accumulate:
            self.detector = PatchCore(seed=self.seed, max_size=self.max_size)
        self.detector.fit(_load_tensor(training, self.detector.image_size))
        return self.detector


@dataclass(kw_only=True)
class StfpmLearner(_HoldsOut):
    """The student-teacher peer; goes on from its last state on the newest night alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.detector = Stfpm(seed=self.seed)

    def _train(self, training: Sequence[NormalImage], held_out: Sequence[NormalImage]) -> Stfpm:
        size = self.detector.image_size
        self.detector.fit(_load_tensor(training, size), _load_tensor(held_out, size))
        return self.detector


def _stlm(config: AnyRecipe) -> RecipeConfig:
    if not isinstance(config, RecipeConfig):
        raise ConfigError(f"this strategy is for STLM's recipes, not for {config.name!r}")
    return config


def _with_aggregation_only(any_config: AnyRecipe) -> RecipeConfig:
    config = _stlm(any_config)
    return replace(config, model=replace(config.model, maps=("aggregation",), map_weights=(), score_maps=()))


def _with_distillation(config: AnyRecipe, weight: float) -> RecipeConfig:
    stages = tuple(replace(stage, distillation=weight) for stage in _stlm(config).stages)
    return replace(_stlm(config), stages=stages)


def with_passes(config: AnyRecipe, **passes: tuple[float, float]) -> RecipeConfig:
    """Change how often some stages of STLM see each new image.

    Args:
        config: The recipe.
        **passes: By name of the stage, on a first night and on later ones; 0 is off.

    Returns:
        The recipe with them; other stages stay.

    Raises:
        ConfigError: It is no recipe of STLM.
    """
    stages = tuple(
        replace(stage, passes=passes[stage.name][0], update_passes=passes[stage.name][1])
        if stage.name in passes
        else stage
        for stage in _stlm(config).stages
    )
    return replace(_stlm(config), stages=stages)


def _only(any_config: AnyRecipe, name: str, **changes: int) -> RecipeConfig:
    config = _stlm(any_config)
    stages = tuple(replace(stage, passes=0.0, update_passes=0.0) for stage in config.stages)
    scores = ("deep_distribution",) if name == "distribution" else ()
    model = replace(config.model, maps=(name,), map_weights=(), score_maps=scores, **changes)  # type: ignore[arg-type]
    return replace(config, model=model, stages=stages)


STRATEGIES: dict[str, Callable[[AnyRecipe, int], Learner]] = {
    "recipe": lambda config, seed: StlmLearner(config=config, seed=seed),
    "no-update": lambda config, seed: StlmLearner(config=config, seed=seed, updates=False),
    "newest-only": lambda config, seed: StlmLearner(config=config, seed=seed, replay_images=0),
    "replay-40": lambda config, seed: StlmLearner(config=config, seed=seed, replay_images=40),
    "replay-100": lambda config, seed: StlmLearner(config=config, seed=seed, replay_images=100),
    "distillation": lambda config, seed: StlmLearner(config=_with_distillation(config, 1.0), seed=seed),
    "averaging": lambda config, seed: StlmLearner(config=replace(_stlm(config), champion_share=0.5), seed=seed),
    "aggregation-only": lambda config, seed: StlmLearner(config=_with_aggregation_only(config), seed=seed),
    "distribution-only": lambda config, seed: StlmLearner(config=_only(config, "distribution"), seed=seed),
    "coreset-only": lambda config, seed: StlmLearner(config=_only(config, "memory", memory_size=5000), seed=seed),
    "both-stages": lambda config, seed: StlmLearner(
        config=with_passes(config, masked_reconstruction=(3, 2)), seed=seed
    ),
    "pixel-stage-long": lambda config, seed: StlmLearner(config=with_passes(config, pixel=(10, 8)), seed=seed),
    "statistics-only": lambda config, seed: StlmLearner(config=with_passes(config, pixel=(10, 0)), seed=seed),
    "joint": lambda config, seed: StlmLearner(config=config, seed=seed, joint=True),
    "patchcore": lambda _config, seed: PatchCoreLearner(seed=seed, max_size=5_000),
    "patchcore-newest": lambda _config, seed: PatchCoreLearner(seed=seed, max_size=5_000, accumulate=False),
    "stfpm": lambda _config, seed: StfpmLearner(seed=seed),
}
"""Ways to live through nights, by name."""


def learner(strategy: str, recipe_name: str, seed: int, ingredients: Ingredients | None = None) -> Learner:
    """A fresh learner.

    Args:
        strategy: A key of ``STRATEGIES``.
        recipe_name: Recipe of the STLM ones.
        seed: Decides everything drawn.
        ingredients: Of the recipe's training; without, a recipe that wants a checkpoint cannot learn.

    Returns:
        The learner.

    Raises:
        ConfigError: Strategy or recipe is unknown.
    """
    if strategy not in STRATEGIES:
        raise ConfigError(f"unknown strategy {strategy!r}; known: {', '.join(STRATEGIES)}")
    one = STRATEGIES[strategy](recipe(recipe_name), seed)
    if ingredients is not None and isinstance(one, StlmLearner):
        return replace(one, ingredients=ingredients)
    return one
