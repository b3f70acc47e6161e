"""The gate: every rule, its verdict and its words; and how often it is right on simulated models."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components import gate as gate_module
from components._cli import write_json
from components.config import GateSettings
from components.contracts import EvaluationRef, ModelKey, PackageRef, RunRef, Verdict, digest_of, to_json
from components.gate import GateInputs, gate
from stlm.calibration import calibrate_threshold
from stlm.metrics import pixel_statistics

KEY = "c" * 64
IMAGE_ONLY = GateSettings(floors={"image_auroc": 0.7}, margins={"image_auroc": 0.02}, bootstrap_samples=500)


def binormal_pair(seed, *, num_good=188, num_bad=300, auroc=0.97, worse=0.0, rho=0.85):
    """Scores of champion and candidate whose noise is correlated by ``rho``; the candidate's AUROC is lower."""
    rng = np.random.default_rng(seed)
    labels = np.r_[np.zeros(num_good, dtype=bool), np.ones(num_bad, dtype=bool)]
    shifts = [np.sqrt(2) * _probit(value) for value in (auroc, auroc - worse)]
    common, noise = rng.normal(size=labels.size), rng.normal(size=(2, labels.size))
    champion, candidate = np.sqrt(rho) * common + np.sqrt(1 - rho) * noise + np.outer(shifts, labels)
    return labels, champion, candidate


def _probit(probability):
    grid = np.random.default_rng(0).normal(size=200_000)
    return float(np.quantile(grid, probability))


class Evidence:
    """Writes what evaluation writes, from made-up scores."""

    def __init__(self, folder, *, labels, candidate, champion=None, defects=None, pixels=None, candidate_key=KEY):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        defects = defects or ["bad" if label else "good" for label in labels]
        threshold = calibrate_threshold(np.asarray(candidate)[~labels], 0.05, bootstrap_samples=10)
        scores = {
            "paths": np.array([f"{i}.png" for i in range(len(labels))]),
            "labels": labels,
            "defect": np.array(defects),
            "stratum": np.array(["all"] * len(labels)),
            "candidate_scores": np.asarray(candidate, dtype=np.float32),
        }
        if champion is not None:
            scores["champion_scores"] = np.asarray(champion, dtype=np.float32)
        arrays = {"classes": np.array([], dtype=str), "stratum": np.array([], dtype=str)}
        reason = "no masks"
        if pixels is not None:
            masks, maps = pixels
            arrays["classes"] = np.array(["scratch" if mask.any() else "good" for mask in masks])
            arrays["stratum"] = np.array(["all"] * len(masks))
            for name, values in maps.items():
                arrays |= {f"{name}_{k}": v for k, v in pixel_statistics(values, masks).to_arrays().items()}
            reason = ""
        np.savez(folder / "scores.npz", **scores)
        np.savez(folder / "pixels.npz", **arrays)
        model = {"metrics": {"pro": {"value": None, "interval": None, "reason": reason}}}
        model["calibration"] = json.loads(threshold.to_json())
        self.report = {
            "candidate_key": candidate_key,
            "candidate": model,
            "champion": None if champion is None else model,
            "settings": {"recall": 0.9},
            "pixels": {"synthetic": True},
            "files": {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in ("scores.npz", "pixels.npz")},
        }
        write_json(folder / "report.json", self.report)
        (folder / "package").mkdir(exist_ok=True)
        (folder / "package" / "calibration.json").write_text(threshold.to_json())
        self.evaluation = EvaluationRef(
            report_path=str(folder / "report.json"),
            scores_path=str(folder / "scores.npz"),
            digest=digest_of(self.report),
            golden_digest="g",
            candidate_key=candidate_key,
            champion_version=None if champion is None else 4,
            synthetic_pixels=True,
            metrics={},
            champion_metrics={},
        )
        self.package = PackageRef(
            package_dir=str(folder / "package"),
            digest="p",
            candidate_key=candidate_key,
            max_score_difference=1e-6,
            num_decision_flips=0,
            num_parity_images=32,
            onnx_ms_per_image=1.0,
            size_bytes=1,
        )

    def inputs(self, settings=IMAGE_ONLY, **changes):
        run = RunRef(
            key=ModelKey(product="p", line="l", camera="c"), partition="2026-11-02", work_dir=str(self.folder / "work")
        )
        return replace(
            GateInputs(run=run, evaluation=self.evaluation, package=self.package, settings=settings), **changes
        )

    def judge(self, settings=IMAGE_ONLY, **changes):
        return gate(self.inputs(settings, **changes))


@pytest.fixture
def equal(tmp_path):
    labels, champion, candidate = binormal_pair(1)
    return Evidence(tmp_path, labels=labels, candidate=candidate, champion=champion)


def verdicts(decision):
    return {reason.rule: reason.verdict for reason in decision.reasons}


def reason_of(decision, rule):
    return next(reason for reason in decision.reasons if reason.rule == rule)


def test_an_equal_candidate_is_promoted_with_a_reason_per_rule(equal):
    decision = equal.judge()
    assert decision.verdict is Verdict.PROMOTE
    assert set(verdicts(decision)) == {
        "binding",
        "enough good golden images",
        "enough defective golden images",
        "floor image_auroc",
        "not inferior image_auroc",
        "false alarms",
        "export parity",
    }
    assert (decision.champion_version, decision.bootstrap) == (4, False)
    assert (decision.candidate_key, decision.evaluation_digest, decision.package_digest) == (
        KEY,
        equal.evaluation.digest,
        "p",
    )
    assert "can show a difference of" in reason_of(decision, "not inferior image_auroc").detail


def test_the_decision_is_kept_and_the_same_inputs_give_it_again(equal):
    first, second = equal.judge(), equal.judge()
    assert first == second
    (stored,) = Path(equal.inputs().run.work_dir).rglob("decision.json")
    assert json.loads(stored.read_text()) == to_json(first)


def test_a_clearly_worse_candidate_is_rejected(tmp_path):
    labels, champion, candidate = binormal_pair(1, worse=0.1)
    decision = Evidence(tmp_path, labels=labels, candidate=candidate, champion=champion).judge()
    assert decision.verdict is Verdict.REJECT
    assert "inferior" in reason_of(decision, "not inferior image_auroc").detail


def test_a_golden_set_that_cannot_tell_is_inconclusive_and_says_what_it_could_show(tmp_path):
    labels, champion, candidate = binormal_pair(7, num_good=25, num_bad=25, auroc=0.9, rho=0.3)
    reason = reason_of(
        Evidence(tmp_path, labels=labels, candidate=candidate, champion=champion).judge(), "not inferior image_auroc"
    )
    assert reason.verdict is Verdict.INCONCLUSIVE
    assert "can show a difference of" in reason.detail


def test_a_package_of_another_candidate_is_an_error(equal):
    decision = equal.judge(package=replace(equal.package, candidate_key="d" * 64))
    assert decision.verdict is Verdict.ERROR
    assert "d" * 64 in reason_of(decision, "binding").detail


@pytest.mark.parametrize("name", ["report.json", "scores.npz", "pixels.npz", "package/calibration.json"])
@pytest.mark.parametrize("harm", ["gone", "altered"])
def test_missing_or_altered_evidence_is_an_error(equal, name, harm):
    path = equal.folder / name
    if harm == "gone":
        path.unlink()
    else:
        text = path.read_bytes()
        path.write_bytes(text.replace(b"0.05", b"0.06") if path.suffix == ".json" else text[:-9] + b"x" + text[-8:])
    assert name != "report.json" or harm == "gone" or path.read_bytes() != text
    decision = equal.judge()
    assert decision.verdict is Verdict.ERROR
    assert verdicts(decision)["binding"] is Verdict.ERROR


def test_an_evaluation_of_another_candidate_is_an_error(equal):
    decision = equal.judge(
        evaluation=replace(equal.evaluation, candidate_key="e" * 64),
        package=replace(equal.package, candidate_key="e" * 64),
    )
    assert decision.verdict is Verdict.ERROR


def test_below_the_floor_is_rejected(equal):
    decision = equal.judge(replace(IMAGE_ONLY, floors={"image_auroc": 0.995}))
    assert decision.verdict is Verdict.REJECT
    assert reason_of(decision, "floor image_auroc").limit == 0.995


@pytest.mark.parametrize("metric", ["pro", "pixel_auroc", "pixel_ap", "image_aurok", "false_alarm_rate"])
def test_a_floor_for_what_cannot_be_measured_is_an_error(equal, metric):
    assert equal.judge(replace(IMAGE_ONLY, floors={metric: 0.0})).verdict is Verdict.ERROR


@pytest.mark.parametrize("metric", ["pro", "pixel_auroc", "pixel_ap", "image_aurok"])
def test_a_margin_for_what_cannot_be_measured_is_an_error_even_where_the_champion_lacks_it_too(equal, metric):
    decision = equal.judge(replace(IMAGE_ONLY, margins={metric: 1.0}))
    assert verdicts(decision)[f"not inferior {metric}"] is Verdict.ERROR
    assert decision.verdict is Verdict.ERROR


def test_scores_that_are_not_numbers_are_an_error(tmp_path):
    labels, champion, candidate = binormal_pair(1)
    evidence = Evidence(tmp_path, labels=labels, candidate=candidate, champion=champion)
    labels, champion, candidate = binormal_pair(1)
    with np.load(tmp_path / "scores.npz") as stored:
        arrays = dict(stored)
    arrays["candidate_scores"][3] = np.nan
    np.savez(tmp_path / "scores.npz", **arrays)
    evidence.report["files"]["scores.npz"] = hashlib.sha256((tmp_path / "scores.npz").read_bytes()).hexdigest()
    write_json(tmp_path / "report.json", evidence.report)
    decision = evidence.judge(evaluation=replace(evidence.evaluation, digest=digest_of(evidence.report)))
    assert decision.verdict is Verdict.ERROR


def test_too_few_golden_images_are_inconclusive(tmp_path):
    labels, champion, _ = binormal_pair(1, num_good=60, num_bad=12)
    decision = Evidence(tmp_path, labels=labels, candidate=champion, champion=champion).judge()
    assert decision.verdict is Verdict.INCONCLUSIVE
    assert verdicts(decision)["enough defective golden images"] is Verdict.INCONCLUSIVE


def test_the_first_model_is_judged_by_floors_alone(tmp_path):
    labels, _, candidate = binormal_pair(1)
    decision = Evidence(tmp_path, labels=labels, candidate=candidate).judge()
    assert (decision.verdict, decision.bootstrap, decision.champion_version) == (Verdict.PROMOTE, True, None)
    assert not any(reason.rule.startswith("not inferior") for reason in decision.reasons)


def test_a_first_model_without_the_metric_of_a_margin_is_an_error(tmp_path):
    labels, _, candidate = binormal_pair(1)
    decision = Evidence(tmp_path, labels=labels, candidate=candidate).judge(GateSettings())
    assert decision.verdict is Verdict.ERROR


@pytest.mark.parametrize(
    "change",
    [
        {"num_decision_flips": 1},
        {"max_score_difference": 0.5},
        {"num_parity_images": 0},
        {"error": "cannot be exported"},
    ],
)
def test_an_exported_file_that_differs_is_rejected(equal, change):
    decision = equal.judge(package=replace(equal.package, **change))
    assert decision.verdict is Verdict.REJECT
    assert verdicts(decision)["export parity"] is Verdict.REJECT


def test_a_threshold_that_alarms_on_good_parts_is_rejected(tmp_path):
    labels, champion, candidate = binormal_pair(1)
    evidence = Evidence(tmp_path, labels=labels, candidate=candidate, champion=champion)
    decision = evidence.judge(replace(IMAGE_ONLY, max_false_alarm_rate=0.01))
    assert verdicts(decision)["false alarms"] is Verdict.REJECT
    assert "good golden images raise an alarm" in reason_of(decision, "false alarms").detail


def two_classes(harmed):
    labels, champion, candidate = binormal_pair(1, num_good=150, num_bad=300)
    defects = ["good"] * 150 + ["crack"] * 40 + ["stain"] * 255 + ["rare"] * 5
    candidate = candidate + 0.15 * labels  # better on the whole
    if harmed:
        candidate = np.where(np.array(defects) == "crack", candidate - 2, candidate)
    return labels, champion, candidate, defects


def test_a_candidate_that_harms_one_defect_class_is_rejected_though_the_whole_looks_fine(tmp_path):
    labels, champion, candidate, defects = two_classes(harmed=True)
    evidence = Evidence(tmp_path, labels=labels, candidate=candidate, champion=champion, defects=defects)
    decision = evidence.judge(replace(IMAGE_ONLY, margins={"image_auroc": 0.06}))
    assert verdicts(decision)["not inferior image_auroc"] is Verdict.PROMOTE
    assert verdicts(decision)["worst stratum"] is Verdict.REJECT
    reason = reason_of(decision, "worst stratum")
    assert "defect:crack" in reason.detail
    assert "defect:rare" in reason.detail  # named as too small to judge


def test_a_class_that_is_not_harmed_does_not_stop_the_candidate(tmp_path):
    labels, champion, candidate, defects = two_classes(harmed=False)
    evidence = Evidence(tmp_path, labels=labels, candidate=candidate, champion=champion, defects=defects)
    assert verdicts(evidence.judge())["worst stratum"] is Verdict.PROMOTE


def synthetic_pixels(seed, *, worse=0.0, num_images=96, num_defective=64, side=48):
    """Maps of two models over the same images; their noise and how well each defect shows are correlated."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((num_images, side, side), dtype=bool)
    for image in range(num_defective):
        y, x = rng.integers(0, side - 10, size=2)
        masks[image, y : y + rng.integers(2, 10), x : x + rng.integers(2, 10)] = True
    difficulty = rng.normal(size=(num_images, 1, 1))
    base = rng.normal(size=masks.shape)
    maps = {}
    for name, drop in (("champion", 0.0), ("candidate", worse)):
        own = rng.normal(size=(num_images, 1, 1))
        visible = 2.5 + 0.7 * (np.sqrt(0.85) * difficulty + np.sqrt(0.15) * own) - drop
        noise = np.sqrt(0.85) * base + np.sqrt(0.15) * rng.normal(size=masks.shape)
        maps[name] = (noise + masks * visible).astype(np.float32)
    return masks, maps


def test_pixel_metrics_are_compared_image_by_image_and_called_synthetic(tmp_path):
    labels, champion, candidate = binormal_pair(1)
    evidence = Evidence(tmp_path, labels=labels, candidate=candidate, champion=champion, pixels=synthetic_pixels(0))
    decision = evidence.judge(GateSettings())
    assert decision.verdict is Verdict.PROMOTE
    assert "pro (synthetic defects)" in reason_of(decision, "not inferior pro").detail
    assert reason_of(decision, "enough images with a synthetic defect").value == 64


def test_worse_maps_are_rejected_though_the_scores_are_equal(tmp_path):
    labels, champion, candidate = binormal_pair(1)
    pixels = synthetic_pixels(0, worse=1.0)
    evidence = Evidence(tmp_path, labels=labels, candidate=candidate, champion=champion, pixels=pixels)
    decision = evidence.judge(GateSettings())
    assert decision.verdict is Verdict.REJECT
    assert verdicts(decision)["not inferior image_auroc"] is Verdict.PROMOTE
    assert verdicts(decision)["not inferior pro"] is Verdict.REJECT


def test_a_metric_where_lower_is_better_is_compared_the_right_way_round(tmp_path):
    labels, champion, candidate = binormal_pair(1, worse=0.1)
    only = replace(IMAGE_ONLY, margins={"false_alarm_rate_at_recall": 0.05})
    worse = Evidence(tmp_path / "a", labels=labels, candidate=candidate, champion=champion).judge(only)
    better = Evidence(tmp_path / "b", labels=labels, candidate=champion, champion=candidate).judge(only)
    assert verdicts(worse)["not inferior false_alarm_rate_at_recall"] is Verdict.REJECT
    assert verdicts(better)["not inferior false_alarm_rate_at_recall"] is Verdict.PROMOTE


@given(seed=st.integers(0, 10_000), worse=st.sampled_from([0.0, 0.02, 0.04]), lift=st.floats(0, 2))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_better_candidate_is_never_turned_from_promoted_to_refused(tmp_path_factory, seed, worse, lift):
    labels, champion, candidate = binormal_pair(seed, num_good=60, num_bad=60, worse=worse)
    before = Evidence(tmp_path_factory.mktemp("a"), labels=labels, candidate=candidate, champion=champion).judge()
    lifted = candidate + lift * labels
    after = Evidence(tmp_path_factory.mktemp("b"), labels=labels, candidate=lifted, champion=champion).judge()
    if before.verdict is Verdict.PROMOTE:
        assert after.verdict is Verdict.PROMOTE


def simulated(tmp_path, *, worse, trials, settings=IMAGE_ONLY):
    found = []
    for trial in range(trials):
        labels, champion, candidate = binormal_pair(100 + trial, worse=worse)
        evidence = Evidence(
            tmp_path / str(trial),
            labels=labels,
            candidate=candidate,
            champion=champion,
            candidate_key=hashlib.sha256(str(trial).encode()).hexdigest(),
        )
        found.append(evidence.judge(settings).verdict)
    return found


def test_an_equal_model_usually_passes_the_quick_start_golden_set(tmp_path):
    # 188 good + 300 defective images, correlation 0.85, default margin.
    found = simulated(tmp_path, worse=0.0, trials=40)
    assert found.count(Verdict.PROMOTE) >= 34


def test_a_model_five_points_worse_is_never_promoted(tmp_path):
    assert Verdict.PROMOTE not in simulated(tmp_path, worse=0.05, trials=40)


def test_a_margin_of_zero_asks_for_superiority_and_rarely_promotes_an_equal_model(tmp_path):
    found = simulated(tmp_path, worse=0.0, trials=60, settings=replace(IMAGE_ONLY, margins={"image_auroc": 0.0}))
    assert found.count(Verdict.PROMOTE) <= 7  # alpha is 5 %


def test_the_command_line_writes_a_refusal_and_succeeds(equal, tmp_path):
    inputs = equal.inputs(replace(IMAGE_ONLY, floors={"image_auroc": 1.0}))
    write_json(tmp_path / "in.json", inputs)
    assert gate_module.main(["--inputs", str(tmp_path / "in.json"), "--outputs", str(tmp_path / "out.json")]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["verdict"] == "REJECT"
