"""Benchmark protocols: figures of a known detector, matrices of a known learner, peers that learn, clear refusals."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from stlm.bench.categories import find_categories, run_category
from stlm.bench.drift import read_drift_nights, run_drift
from stlm.bench.figures import judge
from stlm.bench.learners import STRATEGIES, StlmLearner, learner, night_of
from stlm.bench.patchcore import PatchCore
from stlm.bench.stfpm import Stfpm
from stlm.data.layout import read_golden_set
from stlm.errors import ConfigError, DataError
from stlm.models.outputs import AnomalyOutput
from stlm.recipes import recipe
from tests.helpers.categories import SIZE, write_category


class Brightness:
    """Brighter is more anomalous."""

    image_size = (SIZE, SIZE)

    def __call__(self, images: torch.Tensor) -> AnomalyOutput:
        grey = images.mean(dim=1)
        return AnomalyOutput(score=grey.flatten(1).amax(dim=1), anomaly_map=grey)


@dataclass
class Scripted:
    """Sees everything until its last night, when it goes blind; alarms above half."""

    nights: list[str] = field(default_factory=list)
    last: str = ""
    threshold: float = 0.9
    replay_bytes: int = 7
    device: str = "cpu"

    def learn(self, night):
        self.nights.append(night[0].night)

    @property
    def detector(self):
        if self.nights[-1] != self.last:
            return Brightness()

        class Blind(Brightness):
            def __call__(self, images):
                return AnomalyOutput(
                    score=torch.ones(len(images)), anomaly_map=torch.zeros(len(images), *self.image_size)
                )

        return Blind()


def test_a_detector_that_sees_the_defects_gets_full_marks(tmp_path):
    judged = judge(Brightness(), read_golden_set(write_category(tmp_path / "cat")))
    assert judged.figures.image_auroc == judged.figures.image_ap == judged.figures.image_f1_max == 1.0
    assert judged.figures.pixel_auroc == pytest.approx(1.0)
    assert judged.figures.pro == pytest.approx(1.0)
    assert judged.defective.sum() == 4
    bare = judge(Brightness(), read_golden_set(write_category(tmp_path / "bare", masks=False)))
    assert bare.figures.image_auroc == 1.0
    assert bare.figures.pixel_auroc is None
    assert bare.figures.pro is None


def test_forgetting_and_false_alarms_are_read_off_the_matrix(tmp_path):
    for brightness in (100, 140, 180):
        write_category(tmp_path / f"night{brightness}", brightness=brightness)
    nights = read_drift_nights(tmp_path)
    told: list[str] = []
    result = run_drift(Scripted(last="night180"), nights, strategy="scripted", seed=0, tell=told.append)
    assert result.matrices["image_auroc"].tolist() == [[1, 1, 1], [1, 1, 1], [0.5, 0.5, 0.5]]
    assert result.final_mean("image_auroc") == 0.5
    # The last night's own test set has nothing to lose: it was never better after it was learnt.
    assert result.forgetting("image_auroc") == pytest.approx((0.5 + 0.5 + 0.0) / 3)
    assert result.relative_forgetting("image_auroc") == pytest.approx((0.5 + 0.5 + 0.0) / 3)
    assert result.plasticity("image_auroc") == pytest.approx((1 + 1 + 0.5) / 3)
    assert result.false_alarms.tolist() == [[0, 0, 0], [0, 0, 0], [1, 1, 1]]
    assert result.recalls.tolist() == [[1, 1, 1]] * 3
    assert result.replay_bytes == (7, 7, 7)
    assert len(told) == 3
    assert result.to_json()["summary"]["image_auroc"]["final_mean"] == 0.5


def test_a_shuffled_order_is_the_same_nights_in_an_order_that_the_seed_decides(tmp_path):
    for brightness in (100, 120, 140, 160):
        write_category(tmp_path / f"night{brightness}", brightness=brightness)
    plain = [night.name for night in read_drift_nights(tmp_path)]
    shuffled = [night.name for night in read_drift_nights(tmp_path, shuffle_seed=2)]
    assert plain == sorted(plain) == sorted(shuffled)
    assert shuffled != plain
    assert shuffled == [night.name for night in read_drift_nights(tmp_path, shuffle_seed=2)]


def test_a_night_whose_masks_are_unsound_is_learnt_but_not_judged_on(tmp_path):
    write_category(tmp_path / "a", brightness=100)
    write_category(tmp_path / "b", brightness=120)
    next((tmp_path / "b" / "ground_truth" / "square").iterdir()).unlink()
    nights = read_drift_nights(tmp_path)
    assert [night.golden is None for night in nights] == [False, True]
    result = run_drift(Scripted(), nights, strategy="scripted", seed=0)
    assert result.nights == ("a", "b")
    assert result.judged == ("a",)


def test_what_cannot_be_measured_is_refused(tmp_path):
    with pytest.raises(DataError, match="at least two folders"):
        read_drift_nights(tmp_path)
    with pytest.raises(DataError, match="found none"):
        find_categories(tmp_path)
    write_category(tmp_path / "a")
    with pytest.raises(DataError, match="expected bottle"):
        find_categories(tmp_path, ["bottle"])
    assert find_categories(tmp_path / "a") == find_categories(tmp_path) == [tmp_path / "a"]
    with pytest.raises(ConfigError, match="known: recipe, no-update"):
        learner("magic", "tiny", 0)
    with pytest.raises(ConfigError, match="unknown recipe"):
        learner("recipe", "magic", 0)


def test_strategies_differ_in_what_they_keep(tmp_path):
    nights = [
        night_of(sorted((write_category(tmp_path / str(b), brightness=b) / "train/good").iterdir()), str(b))
        for b in (100, 140)
    ]
    states = {}
    for strategy in ("recipe", "no-update", "newest-only", "averaging", "distillation", "joint"):
        one = learner(strategy, "tiny", 0)
        for night in nights:
            one.learn(night)
        assert isinstance(one, StlmLearner)
        states[strategy] = one.detector.denoising.state_dict()["embed.weight"].clone()
        assert np.isfinite(one.threshold)
        assert (one.replay_bytes > 0) == (strategy not in {"no-update", "newest-only"})
    names = list(states)
    for index, name in enumerate(names):
        for other in names[index + 1 :]:
            assert not torch.equal(states[name], states[other]), (name, other)
    assert set(states) <= set(STRATEGIES)


def test_averaging_lies_between_the_champion_and_what_was_trained(tmp_path):
    nights = [
        night_of(sorted((write_category(tmp_path / str(b), brightness=b) / "train/good").iterdir()), str(b))
        for b in (100, 140)
    ]
    ends = {}
    for strategy in ("no-update", "recipe", "averaging"):
        one = learner(strategy, "tiny", 0)
        for night in nights:
            one.learn(night)
        ends[strategy] = one.detector.denoising.state_dict()["embed.weight"].clone()
    torch.testing.assert_close(ends["averaging"], (ends["no-update"] + ends["recipe"]) / 2)


def test_peers_learn(tmp_path):
    images = torch.rand(6, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    bank = PatchCore(seed=0, max_size=200)
    bank.fit(images[:3])
    assert bank.bank.shape == (200, 152)
    first = bank.bank.clone()
    bank.fit(images[3:])
    assert bank.bank.shape == (200, 152)
    assert not torch.equal(first, bank.bank)

    peer = Stfpm(seed=0, passes=20)
    before = peer._loss(images[4:], peer._targets(images[4:]))
    peer.fit(images[:4], images[4:])
    assert peer._loss(images[4:], peer._targets(images[4:])) < before
    assert peer(images[:1]).anomaly_map.shape == (1, 256, 256)


def test_a_category_gives_a_row_under_the_name_of_the_recipe(tmp_path):
    root = write_category(tmp_path / "cat")
    methods = ("recipe", "distribution-only")
    rows = [run_category(root, method=method, recipe_name="tiny", seed=1) for method in methods]
    assert [(row.method, row.seed) for row in rows] == [("tiny", 1), ("distribution-only", 1)]
    assert rows[0].figures.pro is not None
    assert recipe("tiny").champion_share == 0.0
