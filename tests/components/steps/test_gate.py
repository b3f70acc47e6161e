"""The gate: every rule, its verdict and its words; and how often it is right on simulated models."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binom

from components.config import GateSettings
from components.core.atomic_files import write_json
from components.core.contracts import Verdict, to_json
from components.steps.__main__ import main
from tests.helpers.gate_evidence import (
    IMAGE_ONLY,
    KEY,
    NIGHT,
    OTHER_NIGHT,
    EvidenceFiles,
    binormal_pair,
)
from tests.helpers.gate_simulation import DEFAULT, Drift, drift, tally


@pytest.fixture
def equal(tmp_path):
    """A candidate as good as the champion, which is not the anchor."""
    labels, champion, candidate = binormal_pair(1)
    anchor = champion + np.random.default_rng(2).normal(0, 0.2, size=labels.size)
    return EvidenceFiles(tmp_path, labels=labels, candidate=candidate, champion=champion, anchor=anchor)


def verdicts(decision):
    return {reason.rule: reason.verdict for reason in decision.reasons}


def reason_of(decision, rule):
    return next(reason for reason in decision.reasons if reason.rule == rule)


def objections(decision):
    return {reason.rule: reason.verdict for reason in decision.reasons if reason.verdict is not Verdict.PROMOTE}


def test_an_equal_candidate_is_promoted_with_a_reason_per_rule(equal):
    decision = equal.judge()
    assert decision.verdict is Verdict.PROMOTE
    assert set(verdicts(decision)) == {
        "binding",
        "golden set",
        "leakage",
        "enough good golden images",
        "enough defective golden images",
        "golden set size",
        "floor image_auroc",
        "champion image_auroc",
        "anchor image_auroc",
        "false alarms at recall",
        "forgetting",
        "old score shift",
        "decision flips",
        "false alarms",
        "export parity",
        "latency",
        "package size",
    }
    assert (decision.champion_version, decision.bootstrap, decision.becomes_anchor) == (4, False, False)
    assert (decision.candidate_key, decision.evaluation_digest, decision.package_digest) == (
        KEY,
        equal.evaluation.digest,
        "p",
    )


def test_a_comparison_says_the_smallest_difference_that_it_could_have_seen(equal):
    reason = reason_of(equal.judge(), "champion image_auroc")
    assert f"show in 80 % of all cases is {reason.detectable:.4f}" in reason.detail
    # Spec of the simulation: the paired difference of 150 + 150 images has a deviation of 0.006, of 400 + 400 0.0034.
    assert 2.49 * 0.003 < reason.detectable < 2.49 * 0.006


def test_the_decision_is_kept_and_the_same_inputs_give_it_again(equal):
    first, second = equal.judge(), equal.judge()
    assert first == second
    (stored,) = Path(equal.inputs().run.work_dir).rglob("decision.json")
    assert json.loads(stored.read_text()) == to_json(first)


def test_a_clearly_worse_candidate_is_rejected(tmp_path):
    labels, champion, candidate = binormal_pair(1, worse=0.1)
    decision = EvidenceFiles(tmp_path, labels=labels, candidate=candidate, champion=champion).judge()
    assert decision.verdict is Verdict.REJECT
    assert "inferior" in reason_of(decision, "champion image_auroc").detail


def test_a_golden_set_that_cannot_tell_is_inconclusive_and_says_what_it_could_show(tmp_path):
    labels, champion, candidate = binormal_pair(7, num_good=25, num_bad=25, auroc=0.9, rho=0.3)
    reason = reason_of(
        EvidenceFiles(tmp_path, labels=labels, candidate=candidate, champion=champion).judge(), "champion image_auroc"
    )
    assert reason.verdict is Verdict.INCONCLUSIVE
    assert "difference that these images show" in reason.detail


def test_a_package_of_another_candidate_is_an_error(equal):
    decision = equal.judge(package=replace(equal.package, candidate_key="d" * 64))
    assert decision.verdict is Verdict.ERROR
    assert "d" * 64 in reason_of(decision, "binding").detail


@pytest.mark.chaos("evidence missing or altered before the gate", outcome="verdict ERROR; nothing promoted")
@pytest.mark.parametrize("name", ["report.json", "scores.npz", "pixels.npz", "normals.npz", "package/calibration.json"])
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


@pytest.mark.parametrize("metric", ["pro", "pixel_auroc", "pixel_ap"])
def test_a_floor_for_what_cannot_be_measured_is_an_error(equal, metric):
    assert equal.judge(replace(IMAGE_ONLY, floors={metric: 0.0})).verdict is Verdict.ERROR


@pytest.mark.parametrize("metric", ["pro", "pixel_auroc", "pixel_ap"])
def test_a_margin_for_what_cannot_be_measured_is_an_error_even_where_the_champion_lacks_it_too(equal, metric):
    decision = equal.judge(replace(IMAGE_ONLY, margins={metric: 1.0}))
    assert verdicts(decision)[f"champion {metric}"] is Verdict.ERROR
    assert decision.verdict is Verdict.ERROR


def test_scores_that_are_not_numbers_are_an_error(tmp_path):
    labels, champion, candidate = binormal_pair(1)
    evidence = EvidenceFiles(tmp_path, labels=labels, candidate=candidate, champion=champion)
    evidence.scores["candidate_scores"][3] = np.nan
    evidence.seal()
    decision = evidence.judge()
    assert decision.verdict is Verdict.ERROR
    assert verdicts(decision)["champion image_auroc"] is Verdict.ERROR


def test_too_few_golden_images_are_inconclusive(tmp_path):
    labels, champion, _ = binormal_pair(1, num_good=60, num_bad=12)
    decision = EvidenceFiles(tmp_path, labels=labels, candidate=champion, champion=champion).judge()
    assert decision.verdict is Verdict.INCONCLUSIVE
    assert verdicts(decision)["enough defective golden images"] is Verdict.INCONCLUSIVE


def test_the_first_model_is_judged_by_floors_alone(tmp_path):
    labels, _, candidate = binormal_pair(1)
    decision = EvidenceFiles(tmp_path, labels=labels, candidate=candidate).judge()
    assert (decision.verdict, decision.bootstrap, decision.champion_version) == (Verdict.PROMOTE, True, None)
    assert not any(reason.rule.startswith(("champion ", "anchor ")) for reason in decision.reasons)
    assert decision.becomes_anchor
    reason = reason_of(decision, "bootstrap")
    assert reason.warning
    assert "floors alone" in reason.detail


def test_a_first_model_without_the_metric_of_a_margin_is_an_error(tmp_path):
    labels, _, candidate = binormal_pair(1)
    decision = EvidenceFiles(tmp_path, labels=labels, candidate=candidate).judge(GateSettings())
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
    evidence = EvidenceFiles(tmp_path, labels=labels, candidate=candidate, champion=champion)
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
    evidence = EvidenceFiles(tmp_path, labels=labels, candidate=candidate, champion=champion, defects=defects)
    decision = evidence.judge(replace(IMAGE_ONLY, margins={"image_auroc": 0.06}))
    assert verdicts(decision)["champion image_auroc"] is Verdict.PROMOTE
    assert verdicts(decision)["champion worst stratum"] is Verdict.REJECT
    reason = reason_of(decision, "champion worst stratum")
    assert "defect:crack" in reason.detail
    assert "defect:rare" in reason.detail  # named as too small to judge


def test_a_class_that_is_not_harmed_does_not_stop_the_candidate(tmp_path):
    labels, champion, candidate, defects = two_classes(harmed=False)
    evidence = EvidenceFiles(tmp_path, labels=labels, candidate=candidate, champion=champion, defects=defects)
    assert verdicts(evidence.judge())["champion worst stratum"] is Verdict.PROMOTE


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
    evidence = EvidenceFiles(
        tmp_path, labels=labels, candidate=candidate, champion=champion, pixels=synthetic_pixels(0)
    )
    decision = evidence.judge(GateSettings())
    assert decision.verdict is Verdict.PROMOTE
    assert "pro (synthetic defects)" in reason_of(decision, "champion pro").detail
    assert reason_of(decision, "enough images with a synthetic defect").value == 64


def test_worse_maps_are_rejected_though_the_scores_are_equal(tmp_path):
    labels, champion, candidate = binormal_pair(1)
    pixels = synthetic_pixels(0, worse=1.0)
    evidence = EvidenceFiles(tmp_path, labels=labels, candidate=candidate, champion=champion, pixels=pixels)
    decision = evidence.judge(GateSettings())
    assert decision.verdict is Verdict.REJECT
    assert verdicts(decision)["champion image_auroc"] is Verdict.PROMOTE
    assert verdicts(decision)["champion pro"] is Verdict.REJECT


def test_a_metric_where_lower_is_better_is_compared_the_right_way_round(tmp_path):
    labels, champion, candidate = binormal_pair(1, worse=0.1)
    only = replace(IMAGE_ONLY, margins={"false_alarm_rate_at_recall": 0.05})
    worse = EvidenceFiles(tmp_path / "a", labels=labels, candidate=candidate, champion=champion).judge(only)
    better = EvidenceFiles(tmp_path / "b", labels=labels, candidate=champion, champion=candidate).judge(only)
    assert verdicts(worse)["champion false_alarm_rate_at_recall"] is Verdict.REJECT
    assert verdicts(better)["champion false_alarm_rate_at_recall"] is Verdict.PROMOTE


@given(seed=st.integers(0, 10_000), worse=st.sampled_from([0.0, 0.02, 0.04]), lift=st.floats(0, 2))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_better_candidate_is_never_turned_from_promoted_to_refused(tmp_path_factory, seed, worse, lift):
    labels, champion, candidate = binormal_pair(seed, num_good=60, num_bad=60, worse=worse)
    before = EvidenceFiles(tmp_path_factory.mktemp("a"), labels=labels, candidate=candidate, champion=champion).judge()
    lifted = candidate + lift * labels
    after = EvidenceFiles(tmp_path_factory.mktemp("b"), labels=labels, candidate=lifted, champion=champion).judge()
    if before.verdict is Verdict.PROMOTE:
        assert after.verdict is Verdict.PROMOTE


# --- the anchor -------------------------------------------------------------------------------------------------------


def better_by(labels, scores, shift):
    return scores + shift * labels


def test_a_candidate_that_keeps_up_with_the_champion_but_not_with_the_anchor_is_rejected(tmp_path):
    labels, champion, candidate = binormal_pair(1, auroc=0.94)
    anchor = better_by(labels, candidate, 1.0)
    decision = EvidenceFiles(tmp_path, labels=labels, candidate=candidate, champion=champion, anchor=anchor).judge()
    assert objections(decision) == {"anchor image_auroc": Verdict.REJECT}
    assert "the anchor's" in reason_of(decision, "anchor image_auroc").detail


def test_the_anchor_has_a_margin_of_its_own(equal):
    strict = replace(IMAGE_ONLY, anchor_margins={"image_auroc": 0.0005})
    assert objections(equal.judge(strict)) == {"anchor image_auroc": Verdict.INCONCLUSIVE}


def test_a_champion_that_is_the_anchor_is_judged_by_both_margins(tmp_path):
    labels, champion, candidate = binormal_pair(1)
    evidence = EvidenceFiles(tmp_path, labels=labels, candidate=candidate, champion=champion, anchor=champion)
    evidence.report["anchor_version"] = 4
    del evidence.scores["anchor_scores"]
    evidence.seal()
    decision = evidence.judge(evaluation=replace(evidence.evaluation, anchor_version=4))
    assert decision.verdict is Verdict.PROMOTE
    ours, theirs = (reason_of(decision, f"{name} image_auroc") for name in ("champion", "anchor"))
    assert (ours.value, ours.detectable) == (theirs.value, theirs.detectable)


def test_only_a_candidate_that_is_surely_better_than_the_anchor_takes_its_place(tmp_path):
    labels, champion, candidate = binormal_pair(1, auroc=0.94)
    for shift, becomes in ((0.0, False), (0.05, False), (1.0, True)):
        ours = better_by(labels, candidate, shift)
        evidence = EvidenceFiles(
            tmp_path / str(shift), labels=labels, candidate=ours, champion=candidate, anchor=champion
        )
        decision = evidence.judge()
        assert (decision.verdict, decision.becomes_anchor) == (Verdict.PROMOTE, becomes)


def test_a_refused_candidate_never_becomes_the_anchor(tmp_path):
    labels, champion, candidate = binormal_pair(1, auroc=0.94)
    ours = better_by(labels, candidate, 1.0)
    evidence = EvidenceFiles(tmp_path, labels=labels, candidate=ours, champion=champion, anchor=champion)
    assert not evidence.judge(replace(IMAGE_ONLY, floors={"image_auroc": 0.999})).becomes_anchor


def test_without_an_anchor_the_next_one_promoted_becomes_it_and_the_page_warns(tmp_path):
    labels, champion, candidate = binormal_pair(1)
    decision = EvidenceFiles(tmp_path, labels=labels, candidate=candidate, champion=champion).judge()
    assert (decision.verdict, decision.becomes_anchor) == (Verdict.PROMOTE, True)
    assert reason_of(decision, "anchor").warning


# --- modes and sizes --------------------------------------------------------------------------------------------------

SUPERIORITY = replace(IMAGE_ONLY, mode="superiority")


def test_an_equal_candidate_is_undecided_where_superiority_is_asked_for(equal):
    decision = equal.judge(SUPERIORITY)
    assert objections(decision) == {"champion image_auroc": Verdict.INCONCLUSIVE}
    assert "superiority is asked for" in reason_of(decision, "champion image_auroc").detail


def test_a_better_candidate_passes_where_superiority_is_asked_for(tmp_path):
    labels, champion, candidate = binormal_pair(1, auroc=0.94)
    ours = better_by(labels, candidate, 1.0)
    evidence = EvidenceFiles(tmp_path, labels=labels, candidate=ours, champion=champion, anchor=champion)
    assert evidence.judge(SUPERIORITY).verdict is Verdict.PROMOTE


def test_superiority_is_asked_for_in_one_metric_only(tmp_path):
    labels, champion, candidate = binormal_pair(1, auroc=0.94)
    ours = better_by(labels, candidate, 1.0)
    pixels = synthetic_pixels(0)
    evidence = EvidenceFiles(tmp_path, labels=labels, candidate=ours, champion=champion, pixels=pixels)
    settings = replace(SUPERIORITY, margins={"image_auroc": 0.02, "pro": 0.04})
    assert verdicts(evidence.judge(settings))["champion pro"] is Verdict.PROMOTE


def test_a_superior_metric_without_a_margin_is_refused_by_the_configuration():
    with pytest.raises(ValueError, match=r"superior_metric 'pro' has no margin"):
        GateSettings(mode="superiority", superior_metric="pro", margins={"image_auroc": 0.01})


def test_a_small_golden_set_is_warned_about(tmp_path):
    labels, champion, candidate = binormal_pair(3, num_good=149, num_bad=300)
    decision = EvidenceFiles(tmp_path, labels=labels, candidate=candidate, champion=champion).judge()
    reason = reason_of(decision, "golden set size")
    assert (reason.warning, reason.verdict, reason.value) == (True, Verdict.PROMOTE, 149)


def test_images_of_one_lot_count_as_one(tmp_path):
    labels, champion, candidate = binormal_pair(2)
    lots = [f"{'bad' if label else 'good'} {i // 12}" for i, label in enumerate(labels)]
    alone, together = (
        EvidenceFiles(tmp_path / name, labels=labels, candidate=candidate, champion=champion, lots=named).judge()
        for name, named in (("alone", None), ("together", lots))
    )
    ours, theirs = (reason_of(decision, "champion image_auroc") for decision in (alone, together))
    assert ours.value != theirs.value
    one_lot = [f"{label}" for label in labels]
    evidence = EvidenceFiles(tmp_path / "one", labels=labels, candidate=candidate, champion=champion, lots=one_lot)
    reason = reason_of(evidence.judge(), "champion image_auroc")
    assert (reason.verdict, reason.value, reason.detectable) == (Verdict.INCONCLUSIVE, None, None)


# --- what would change for the people at the line ---------------------------------------------------------------------


def test_more_false_alarms_where_the_same_defects_are_found_are_rejected(tmp_path):
    # The area under the curve stays: a tenth of the defects is found later, the rest earlier.
    labels, champion, _ = binormal_pair(1, auroc=0.9)
    candidate = champion.copy()
    bad = np.flatnonzero(labels)[np.argsort(champion[labels])]
    candidate[bad[:45]] -= 1.0
    candidate[bad[45:150]] += 1.5
    evidence = EvidenceFiles(tmp_path, labels=labels, candidate=candidate, champion=champion, anchor=champion)
    wide = {"image_auroc": 0.06}
    decision = evidence.judge(replace(IMAGE_ONLY, margins=wide, anchor_margins=wide))
    assert objections(decision) == {"false alarms at recall": Verdict.REJECT}
    assert "surely at least +" in reason_of(decision, "false alarms at recall").detail


def test_alarms_on_normals_of_other_nights_are_rejected(equal):
    old = np.flatnonzero(equal.normals["nights"] == OTHER_NIGHT)
    threshold = equal.report["candidate"]["calibration"]["threshold"]
    equal.normals["candidate_scores"][old[:30]] = threshold + 0.01
    equal.seal()
    decision = equal.judge()
    assert objections(decision) == {"forgetting": Verdict.REJECT}
    assert "of 1 other nights the candidate raises" in reason_of(decision, "forgetting").detail


def test_normals_of_other_nights_that_now_look_stranger_than_new_ones_are_rejected_though_none_alarms(equal):
    threshold = equal.report["candidate"]["calibration"]["threshold"]
    equal.normals["candidate_scores"] = np.where(
        equal.normals["nights"] == OTHER_NIGHT, threshold - 0.1, threshold - 0.2
    ).astype(np.float32)
    equal.seal()
    assert objections(equal.judge()) == {"old score shift": Verdict.REJECT}


def test_a_champion_that_never_saw_the_new_light_does_not_make_the_candidate_look_forgetful(equal):
    new = equal.normals["nights"] == NIGHT
    equal.normals["champion_scores"][new] += 1.0
    equal.seal()
    assert verdicts(equal.judge())["old score shift"] is Verdict.PROMOTE


def test_deciding_most_normals_differently_is_rejected_and_last_week_is_told_apart(equal):
    threshold = equal.report["champion"]["calibration"]["threshold"]
    equal.normals["champion_scores"][::2] = threshold + 1.0
    equal.normals["nights"][:] = np.tile([NIGHT, NIGHT, "2026-10-20", "2026-10-20"], len(equal.normals["nights"]) // 4)
    equal.seal()
    decision = equal.judge()
    assert objections(decision) == {"decision flips": Verdict.REJECT}
    detail = reason_of(decision, "decision flips").detail
    assert "alarms fewer" in detail
    assert f"Of the {len(equal.normals['nights']) // 2} of the last seven days" in detail


@pytest.mark.parametrize("harm", ["nan", "no other night"])
def test_held_out_normals_that_are_missing_are_an_error(equal, harm):
    if harm == "nan":
        equal.normals["champion_scores"][0] = np.nan
        rules = {"forgetting", "old score shift", "decision flips"}
    else:
        equal.normals["nights"][:] = NIGHT
        rules = {"forgetting", "old score shift"}
    equal.seal()
    assert objections(equal.judge()) == dict.fromkeys(rules, Verdict.ERROR)


def test_a_champion_of_the_same_night_has_nothing_to_forget(equal):
    equal.normals["nights"][:] = NIGHT
    equal.report["normals"]["expected_nights"] = []
    equal.seal()
    assert equal.judge().verdict is Verdict.PROMOTE


# --- the yardstick and the package ------------------------------------------------------------------------------------


@pytest.mark.chaos("the golden set changes between evaluate and gate", outcome="verdict ERROR; nothing promoted")
def test_a_golden_set_that_changed_after_the_evaluation_is_an_error(equal):
    Image.fromarray(np.full((8, 8), 91, np.uint8)).save(equal.golden / "test" / "good" / "0.png")
    decision = equal.judge()
    assert objections(decision) == {"golden set": Verdict.ERROR}
    assert "changed after the evaluation" in reason_of(decision, "golden set").detail


def test_a_golden_set_that_cannot_be_read_is_an_error(equal):
    (equal.golden / "test" / "good" / "0.png").write_bytes(b"no image")
    assert objections(equal.judge()) == {"golden set": Verdict.ERROR}


@pytest.mark.parametrize("model", ["champion", "anchor"])
@pytest.mark.parametrize("record", ["f" * 64, None])
def test_a_model_judged_on_another_golden_set_is_an_error_until_the_change_is_accepted(equal, model, record):
    equal.report[model]["golden_digest"] = record
    equal.seal()
    decision = equal.judge()
    assert objections(decision) == {"golden set": Verdict.ERROR}
    detail = reason_of(decision, "golden set").detail
    assert f"The {model}" in detail
    assert f"add {equal.golden_digest} to gate.accepted_golden" in detail
    accepted = replace(IMAGE_ONLY, accepted_golden=(equal.golden_digest,))
    assert equal.judge(accepted).verdict is Verdict.PROMOTE


@pytest.mark.parametrize("how", ["same", "near"])
def test_a_golden_image_that_was_learnt_from_is_an_error_and_named(equal, how):
    equal.report["leakage"] |= {f"num_{how}": 1, how: ["test/good/7.png = 2026-11-01/lot/3.png"]}
    equal.seal()
    decision = equal.judge()
    assert objections(decision) == {"leakage": Verdict.ERROR}
    assert "test/good/7.png = 2026-11-01/lot/3.png" in reason_of(decision, "leakage").detail


def test_not_knowing_what_was_learnt_from_is_an_error(equal):
    equal.report["leakage"]["num_images"] = 0
    equal.seal()
    assert objections(equal.judge()) == {"leakage": Verdict.ERROR}


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({"onnx_ms_per_image": 21.0}, Verdict.REJECT),
        ({"onnx_ms_per_image": 1001.0, "champion_ms_per_image": 900.0}, Verdict.REJECT),
        ({"onnx_ms_per_image": 0.0}, Verdict.ERROR),
        ({"champion_ms_per_image": None}, Verdict.ERROR),
        ({"champion_ms_per_image": -1.0}, Verdict.ERROR),
    ],
)
def test_a_slow_package_is_rejected_and_a_missing_time_is_an_error(equal, change, verdict):
    decision = equal.judge(package=replace(equal.package, **change))
    assert objections(decision) == {"latency": verdict}


def test_a_package_beyond_the_size_budget_is_rejected(equal):
    decision = equal.judge(package=replace(equal.package, size_bytes=500_000_001))
    assert objections(decision) == {"package size": Verdict.REJECT}


# --- how often it is right: the table is tests/benchmarks/bench_gate.py -----------------------------------------------


def promoted(*, worse, trials, per_class, settings=DEFAULT):
    verdicts, _ = tally(range(trials), per_class=per_class, worse=worse, settings=settings)
    return verdicts[Verdict.PROMOTE]


def surely_within(num, trials, limit):
    """The count does not contradict the limit, at 1 %: a gate at its limit fails here one time in a hundred."""
    return num <= binom.ppf(0.99, trials, limit)


def test_an_equal_model_is_seldom_promoted_where_superiority_is_asked_for():
    settings = replace(DEFAULT, mode="superiority", bootstrap_samples=300)
    assert surely_within(promoted(worse=0.0, trials=80, per_class=60, settings=settings), 80, 0.08)


def test_a_model_two_points_worse_is_hardly_ever_promoted():
    settings = replace(DEFAULT, bootstrap_samples=300)
    assert surely_within(promoted(worse=0.02, trials=60, per_class=150, settings=settings), 60, 0.01)
    assert surely_within(promoted(worse=0.02, trials=120, per_class=30, settings=settings), 120, 0.03)


def test_an_equal_model_passes_often_enough_on_a_large_golden_set():
    settings = replace(DEFAULT, bootstrap_samples=300)
    assert promoted(worse=0.0, trials=12, per_class=500, settings=settings) >= 3


def test_a_month_of_downward_drift_leaves_the_champion_near_the_best():
    world = Drift(nights=30, mean=-0.004)
    walks = [drift(seed, world, settings=replace(DEFAULT, bootstrap_samples=200)) for seed in range(2)]
    assert np.mean([walk.best - walk.final for walk in walks]) <= 0.005


def test_the_command_line_writes_a_refusal_and_succeeds(equal, tmp_path):
    inputs = equal.inputs(replace(IMAGE_ONLY, floors={"image_auroc": 1.0}))
    write_json(tmp_path / "in.json", inputs)
    assert main(["gate", "--inputs", str(tmp_path / "in.json"), "--outputs", str(tmp_path / "out.json")]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["verdict"] == "REJECT"
