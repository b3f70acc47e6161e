"""Evaluation through its real door: real models, real files, and the gate reading what it wrote."""

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from components.config import EvaluateSettings, GateSettings
from components.core.atomic_files import write_json
from components.core.contracts import (
    CandidateRef,
    ModelKey,
    ModelRef,
    PackageRef,
    RunRef,
    Verdict,
    canonical_json,
    digest_of,
)
from components.core.errors import InputError
from components.image_index import write_index
from components.steps.evaluate.step import EvaluateInputs, evaluate
from components.steps.gate.step import GateInputs, gate
from stlm.calibration import Calibration, calibrate_threshold
from stlm.data.facts import image_facts
from stlm.data.image_files import read_image
from stlm.data.probes import draw_probe
from stlm.evaluation import score_images
from stlm.metrics import auroc, pixel_metrics
from stlm.models.registry import build_model, load_model, save_model
from stlm.recipes import recipe
from stlm.serving.package import seal_package
from tests.helpers.model_package import write_package

SETTINGS = EvaluateSettings(bootstrap_samples=60, num_synthetic=6, device="cpu")
ARRAYS = {"scores.npz", "pixels.npz", "normals.npz", "maps.npz"}
FILES = {"report.json", "calibration.json", "inputs.json", "outputs.json"} | ARRAYS
EARLIER = "2026-11-01"


def texture(seed):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:64, :64]
    wave = 120 + 25 * np.sin(x / 4 + rng.uniform(0, 6)) + 15 * np.cos(y / 5 + rng.uniform(0, 6))
    return np.repeat((wave + rng.normal(0, 4, size=wave.shape)).astype(np.uint8)[:, :, None], 3, axis=2)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_golden(root, *, masks, num_good=8):
    for i in range(num_good):
        save(root / "test/good" / f"{i}.png", texture(i))
    for number, kind in enumerate(("scratch", "stain")):
        for i in range(4):
            seed = 100 + 10 * number + i
            probe = draw_probe(texture(seed), kind=kind, rng=np.random.default_rng(seed))
            save(root / f"test/{kind}" / f"{i}.png", probe.image)
            if masks:
                save(root / f"ground_truth/{kind}" / f"{i}_mask.png", probe.mask.astype(np.uint8) * 255)
    return root


def write_model(folder, seed):
    model = build_model(recipe("tiny"), seed=seed)
    with torch.no_grad():
        # An untrained memory and its scale would hide differences between images.
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return save_model(model, folder)


class World:
    """A candidate with held-out normals, a champion, and golden sets."""

    def __init__(self, root):
        self.root = root
        weights = write_model(root / "candidate/package", 0)
        for name, first in (("held_out", 50), ("training", 70)):
            listed = []
            for i in range(5):
                save(path := root / name / f"{i}.png", texture(first + i))
                sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
                listed.append({"path": str(path), "sha256": sha256, "night": EARLIER if i < 2 else "2026-11-02"})
            write_json(root / "candidate" / f"{name}.json", listed)
        write_model(root / "champion", 1)
        write_json(root / "champion/replay.json", {"training": [], "held_out": [{"night": EARLIER}]})
        write_json(root / "champion/golden.json", {"digest": "judged-on"})
        (root / "champion/calibration.json").write_text(
            calibrate_threshold([0.1, 0.2, 0.3], 0.3, bootstrap_samples=10).to_json()
        )
        self.candidate = CandidateRef(
            package_dir=str(root / "candidate/package"),
            candidate_key=hashlib.sha256(b"candidate").hexdigest(),
            weights_sha256=weights,
            parent_version=3,
            num_steps=1,
            num_new_images=1,
            num_replay_images=0,
            training_seconds=1.0,
            curves_path="",
        )
        self.champion = ModelRef(name="stlm.p.l.c", version=3, candidate_key="x", package_dir=str(root / "champion"))

    def inputs(self, golden, **changes):
        run = RunRef(
            key=ModelKey(product="p", line="l", camera="c"), partition="2026-11-02", work_dir=str(self.root / "work")
        )
        inputs = EvaluateInputs(
            run=run, candidate=self.candidate, champion=self.champion, golden=str(golden), settings=SETTINGS
        )
        return replace(inputs, **changes)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A world with the evaluation of a golden set with masks and of one without; not to be changed."""
    world = World(tmp_path_factory.mktemp("world"))
    with_masks = write_golden(world.root / "golden", masks=True)
    without = write_golden(world.root / "golden-no-masks", masks=False)
    return world, {
        "masks": (with_masks, evaluate(world.inputs(with_masks))),
        "synthetic": (without, evaluate(world.inputs(without))),
    }


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def report_of(evaluation):
    return json.loads(Path(evaluation.report_path).read_text())


def arrays_of(evaluation, name):
    with np.load(Path(evaluation.report_path).with_name(name), allow_pickle=False) as stored:
        return dict(stored)


def test_the_figures_are_those_of_the_metrics_on_the_scores_and_maps(shared):
    world, results = shared
    golden, evaluation = results["masks"]
    paths = sorted(golden.glob("test/*/*.png"))
    labels = np.array([path.parent.name != "good" for path in paths])
    for name, folder in (("candidate", world.candidate.package_dir), ("champion", world.champion.package_dir)):
        scored = score_images(load_model(Path(folder)), paths, batch_size=8)
        masks = np.zeros((len(paths), 64, 64), dtype=bool)
        for row in np.flatnonzero(labels):
            mask = golden / "ground_truth" / paths[row].parent.name / f"{paths[row].stem}_mask.png"
            masks[row] = read_image(mask)[:, :, 0] > 0
        pixels = pixel_metrics(scored.maps, masks)
        figures = {k: v["value"] for k, v in report_of(evaluation)[name]["metrics"].items()}
        assert figures["image_auroc"] == pytest.approx(auroc(scored.scores, labels), abs=1e-6)
        assert figures["pixel_auroc"] == pytest.approx(pixels.auroc, abs=1e-4)
        assert figures["pixel_ap"] == pytest.approx(pixels.average_precision, abs=1e-3)
        assert figures["pro"] == pytest.approx(pixels.pro, abs=1e-3)
        assert figures == (evaluation.metrics if name == "candidate" else evaluation.champion_metrics)


def test_the_report_is_plain_complete_and_bound(shared):
    world, results = shared
    for kind, (_, evaluation) in results.items():
        report = report_of(evaluation)
        assert digest_of(report) == evaluation.digest
        assert report["candidate_key"] == evaluation.candidate_key == world.candidate.candidate_key
        assert (report["champion_version"], evaluation.champion_version) == (3, 3)
        assert report["golden"]["digest"] == evaluation.golden_digest
        assert report["golden"]["classes"] == {"scratch": 4, "stain": 4}
        assert report["pixels"]["synthetic"] is evaluation.synthetic_pixels is (kind == "synthetic")
        folder = Path(evaluation.report_path).parent
        assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} == FILES
        for name, sha256 in report["files"].items():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == sha256
        for metric, found in report["difference"].items():
            ours, theirs = (report[model]["metrics"][metric]["value"] for model in ("candidate", "champion"))
            assert found["value"] == pytest.approx(ours - theirs)
            assert found["interval"][0] <= found["interval"][1]


def test_each_defect_class_and_each_synthetic_kind_gets_its_figures(shared):
    _, results = shared
    strata = report_of(results["masks"][1])["strata"]
    assert set(strata) == {"defect:scratch", "defect:stain"}
    assert (strata["defect:stain"]["num_good"], strata["defect:stain"]["num_defective"]) == (8, 4)
    assert strata["defect:stain"]["candidate"]["pro"]["value"] is not None
    synthetic = report_of(results["synthetic"][1])["strata"]
    assert {"synthetic:corner", "defect:stain"} <= set(synthetic)
    assert set(synthetic["synthetic:corner"]["candidate"]) == {"pixel_auroc", "pixel_ap", "pro"}


def test_the_arrays_are_in_the_order_of_the_golden_set_and_name_files_inside_it(shared):
    _, results = shared
    golden, evaluation = results["masks"]
    scores, maps = arrays_of(evaluation, "scores.npz"), arrays_of(evaluation, "maps.npz")
    assert all((golden / path).is_file() for path in scores["paths"])
    assert scores["labels"].tolist() == [name != "good" for name in scores["defect"]]
    assert scores["candidate_scores"].shape == scores["champion_scores"].shape == (16,)
    assert maps["candidate"].shape == maps["champion"].shape == (16, 64, 64)
    assert maps["candidate"].dtype == np.float16


def test_the_threshold_is_calibrated_on_the_held_out_normals(shared):
    world, results = shared
    _, evaluation = results["masks"]
    stored = Calibration.from_json(Path(evaluation.report_path).with_name("calibration.json").read_text())
    paths = sorted((world.root / "held_out").glob("*.png"))
    scores = score_images(load_model(Path(world.candidate.package_dir)), paths).scores
    assert stored.threshold == pytest.approx(float(scores.max()), abs=1e-6)  # five normals: the largest
    report = report_of(evaluation)
    assert report["candidate"]["calibration"]["threshold"] == stored.threshold
    assert report["champion"]["calibration"]["threshold"] == pytest.approx(0.3)


def test_pictures_of_one_part_are_not_counted_as_several_normals(world):
    listing = world.root / "candidate/held_out.json"
    entries = json.loads(listing.read_text())
    write_json(listing, [{**entry, "part": "ab"[i % 2]} for i, entry in enumerate(entries)])
    evaluation = evaluate(world.inputs(write_golden(world.root / "golden", masks=True)))
    stored = Calibration.from_json(Path(evaluation.report_path).with_name("calibration.json").read_text())
    assert stored.promised_false_alarm_rate == pytest.approx(1 / 3)  # two parts, and the new one


def test_a_second_call_and_a_second_work_folder_give_the_same_evaluation(shared, tmp_path):
    world, results = shared
    golden, evaluation = results["synthetic"]
    assert evaluate(world.inputs(golden)) == evaluation
    elsewhere = world.inputs(golden)
    again = evaluate(replace(elsewhere, run=replace(elsewhere.run, work_dir=str(tmp_path))))
    assert again.digest == evaluation.digest


@pytest.mark.chaos("evaluate dies before its end", outcome="done again; the same digest")
def test_a_crash_before_the_end_leaves_nothing_that_counts(shared, tmp_path):
    world, results = shared
    golden, evaluation = results["masks"]
    inputs = world.inputs(golden)
    inputs = replace(inputs, run=replace(inputs.run, work_dir=str(tmp_path)))
    first = evaluate(inputs)
    Path(first.report_path).with_name("outputs.json").unlink()
    Path(first.scores_path).write_bytes(b"half")
    assert evaluate(inputs).digest == evaluation.digest
    assert report_of(first)["files"]["scores.npz"] == hashlib.sha256(Path(first.scores_path).read_bytes()).hexdigest()


def test_the_gate_reads_what_evaluation_wrote(shared, tmp_path):
    world, results = shared
    golden, evaluation = results["synthetic"]
    package_dir = tmp_path / "package"
    package_dir.mkdir()
    (package_dir / "calibration.json").write_bytes(
        Path(evaluation.report_path).with_name("calibration.json").read_bytes()
    )
    package = PackageRef(
        package_dir=str(package_dir),
        digest="p",
        candidate_key=evaluation.candidate_key,
        max_score_difference=0.0,
        num_decision_flips=0,
        num_parity_images=4,
        onnx_ms_per_image=1.0,
        champion_ms_per_image=1.0,
        size_bytes=1,
    )
    margins = {"image_auroc": 1.5, "pixel_auroc": 1.5, "pixel_ap": 1.5, "pro": 1.5, "recall": 2.5}
    settings = GateSettings(
        floors={"image_auroc": 0.0, "pro": 0.0},
        margins=margins,
        anchor_margins=margins,
        min_per_class=3,
        max_false_alarm_rate=1.0,
        max_false_alarm_rise=1.0,
        max_forgetting=1.0,
        max_old_shift=1.0,
        max_flip_rate=1.0,
        accepted_golden=(evaluation.golden_digest,),
        bootstrap_samples=100,
    )
    run = replace(world.inputs("").run, work_dir=str(tmp_path / "work"))
    judged = GateInputs(run=run, evaluation=evaluation, package=package, golden=str(golden), settings=settings)
    decision = gate(judged)
    assert decision.verdict is Verdict.PROMOTE, decision.reasons
    assert {"forgetting", "old score shift", "decision flips"} <= {reason.rule for reason in decision.reasons}
    not_accepted = gate(replace(judged, settings=replace(settings, accepted_golden=())))
    assert [reason.rule for reason in not_accepted.reasons if reason.verdict is not Verdict.PROMOTE] == ["golden set"]
    assert any("synthetic" in reason.detail for reason in decision.reasons)


@pytest.fixture(scope="module")
def anchor(tmp_path_factory):
    """A sealed package with an exported file, of another model than candidate and champion."""
    package = tmp_path_factory.mktemp("anchor") / "package"
    write_package(package, seed=2, threshold=0.4)
    write_json(package / "golden.json", {"digest": "judged-on"})
    seal_package(package)
    return ModelRef(name="stlm.p.l.c", version=1, candidate_key="y", package_dir=str(package))


def test_the_anchor_is_measured_through_its_exported_file_on_the_same_images(shared, anchor):
    world, results = shared
    for kind in ("masks", "synthetic"):
        golden, alone = results[kind]
        evaluation = evaluate(world.inputs(golden, anchor=anchor))
        report = report_of(evaluation)
        assert (report["anchor_version"], evaluation.anchor_version) == (1, 1)
        assert report["anchor"]["golden_digest"] == report["champion"]["golden_digest"] == "judged-on"
        paths = [golden / path for path in arrays_of(evaluation, "scores.npz")["paths"]]
        torch_scores = score_images(load_model(Path(anchor.package_dir)), paths, batch_size=8).scores
        assert arrays_of(evaluation, "scores.npz")["anchor_scores"] == pytest.approx(torch_scores, abs=1e-3)
        ours, theirs = (report[name]["metrics"]["pro"]["value"] for name in ("candidate", "anchor"))
        assert report["anchor_difference"]["pro"]["value"] == pytest.approx(ours - theirs)
        assert report["champion"] == report_of(alone)["champion"]
        assert "anchor" not in arrays_of(evaluation, "maps.npz")


def test_an_anchor_that_is_the_champion_is_measured_once(shared):
    world, results = shared
    golden, _ = results["masks"]
    evaluation = evaluate(world.inputs(golden, anchor=world.champion))
    report = report_of(evaluation)
    assert report["anchor"] == report["champion"]
    assert report["anchor_difference"] == report["difference"]
    assert "anchor_scores" not in arrays_of(evaluation, "scores.npz")


def test_the_anchor_is_remembered_until_package_golden_set_or_machine_say_something_else(world, anchor, caplog):
    caplog.set_level("INFO")
    golden = write_golden(world.root / "golden", masks=True)
    first = evaluate(world.inputs(golden, anchor=anchor))
    (cache,) = (world.root / "work/cache").iterdir()

    def again(**changes):
        caplog.clear()
        Path(first.report_path).with_name("outputs.json").unlink(missing_ok=True)
        evaluation = evaluate(world.inputs(golden, anchor=anchor, **changes))
        return evaluation, "anchor scores remembered" in caplog.text

    assert again() == (first, True)
    with np.load(cache) as stored:
        arrays = dict(stored)
    np.savez(cache, **(arrays | {"scores": arrays["scores"] + 1}))  # as another machine might have found them
    assert again() == (first, False)
    cache.write_bytes(b"no archive")
    assert again() == (first, False)
    cache.write_bytes(cache.read_bytes()[:-9])
    assert again() == (first, False)
    save(golden / "test/good/0.png", texture(99))
    assert again()[1] is False


def test_an_anchor_that_was_altered_is_named(world, anchor, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(anchor.package_dir, broken)
    (broken / "model.onnx").write_bytes(b"x")
    golden = write_golden(world.root / "golden", masks=True)
    with pytest.raises(InputError, match=r"anchor version 1: .*model\.onnx is altered"):
        evaluate(world.inputs(golden, anchor=replace(anchor, package_dir=str(broken))))


def test_held_out_normals_are_scored_by_both_models_and_told_apart_by_night(shared):
    _, results = shared
    _, evaluation = results["masks"]
    normals = arrays_of(evaluation, "normals.npz")
    assert normals["nights"].tolist() == [EARLIER] * 2 + ["2026-11-02"] * 3
    assert normals["candidate_scores"].shape == normals["champion_scores"].shape == (5,)
    assert report_of(evaluation)["normals"] == {
        "num": 5,
        "nights": {EARLIER: 2, "2026-11-02": 3},
        "expected_nights": [EARLIER],
    }


def test_no_golden_image_was_learnt_from(shared):
    _, results = shared
    found = report_of(results["masks"][1])["leakage"]
    assert (found["num_golden"], found["num_images"], found["num_same"], found["num_near"]) == (16, 10, 0, 0)


@pytest.mark.parametrize("place", ["training", "history"])
@pytest.mark.parametrize("how", ["same", "near"])
def test_a_golden_image_that_was_learnt_from_is_found_by_content_and_by_look(world, place, how):
    golden = write_golden(world.root / "golden", masks=True)
    original = golden / "test/good/3.png"
    leaked = world.root / "leaked.png"
    brighter = np.clip(texture(3).astype(int) + 3, 0, 255).astype(np.uint8)
    save(leaked, brighter if how == "near" else texture(3))
    if how == "same":
        leaked.write_bytes(original.read_bytes())
    facts = image_facts(leaked, max_pixels=10_000_000)
    if place == "training":
        listing = world.root / "candidate/training.json"
        entries = json.loads(listing.read_text())
        write_json(listing, [*entries, {"path": str(leaked), "sha256": facts.sha256, "night": EARLIER}])
    else:
        run = replace(world.inputs("").run, partition=EARLIER)
        write_index(run, pd.DataFrame([{"image": "lot/leaked.png", "sha256": facts.sha256, "hash": facts.hash}]))
    found = report_of(evaluate(world.inputs(golden)))["leakage"]
    assert (found["num_same"], found["num_near"]) == ((1, 0) if how == "same" else (0, 1))
    assert found[how] == [f"test/good/3.png = {EARLIER}/" + ("leaked.png" if place == "training" else "lot/leaked.png")]


def test_images_of_later_nights_do_not_count_as_learnt(world):
    golden = write_golden(world.root / "golden", masks=True)
    facts = image_facts(golden / "test/good/3.png", max_pixels=10_000_000)
    run = replace(world.inputs("").run, partition="2026-11-03")
    write_index(run, pd.DataFrame([{"image": "lot/x.png", "sha256": facts.sha256, "hash": facts.hash}]))
    assert report_of(evaluate(world.inputs(golden)))["leakage"]["num_same"] == 0


def test_lots_of_the_golden_set_are_kept_for_the_gate(world):
    golden = write_golden(world.root / "golden", masks=True)
    names = sorted(path.relative_to(golden).as_posix() for path in golden.glob("test/*/*.png"))
    lines = [f"{name},all,{'' if i % 2 else f'lot{i // 4}'}" for i, name in enumerate(names)]
    (golden / "strata.csv").write_text("\n".join(["path,stratum,lot", *lines]) + "\n")
    evaluation = evaluate(world.inputs(golden))
    assert report_of(evaluation)["golden"]["num_lots"] == 4
    assert arrays_of(evaluation, "scores.npz")["lot"].tolist()[:4] == ["lot0", "", "lot0", ""]
    assert set(arrays_of(evaluation, "pixels.npz")["lot"]) == {"", "lot0", "lot1", "lot2", "lot3"}


def test_the_first_model_is_measured_alone(shared):
    world, results = shared
    golden, with_champion = results["masks"]
    evaluation = evaluate(world.inputs(golden, champion=None))
    report = report_of(evaluation)
    assert (evaluation.champion_version, evaluation.champion_metrics) == (None, {})
    assert report["champion"] is report["difference"] is report["decisions"] is report["score_shift"] is None
    assert evaluation.metrics == with_champion.metrics
    assert "champion_scores" not in arrays_of(evaluation, "scores.npz")


def test_a_champion_measured_against_itself_differs_by_nothing(shared):
    world, results = shared
    golden, _ = results["masks"]
    same = world.root / "same"
    save_model(load_model(Path(world.candidate.package_dir)), same)
    for name in ("calibration.json", "replay.json"):
        (same / name).write_bytes((world.root / "champion" / name).read_bytes())
    evaluation = evaluate(world.inputs(golden, champion=replace(world.champion, package_dir=str(same))))
    difference = report_of(evaluation)["difference"]
    for metric in ("image_auroc", "pixel_auroc", "pixel_ap", "pro", "false_alarm_rate_at_recall"):
        assert difference[metric]["value"] == 0
        assert difference[metric]["interval"] == [0, 0]


def test_a_golden_set_without_defects_gives_null_with_a_reason_and_the_gate_calls_it_an_error(world):
    for i in range(4):
        save(world.root / "golden/test/good" / f"{i}.png", texture(i))
    evaluation = evaluate(world.inputs(world.root / "golden"))
    assert evaluation.metrics["image_auroc"] is None
    assert "no anomalous" in report_of(evaluation)["candidate"]["metrics"]["image_auroc"]["reason"]
    assert evaluation.metrics["pro"] is not None  # synthetic defects on the normals
    assert evaluation.metrics["false_alarm_rate"] is not None


def test_a_golden_set_without_normals_gives_null_with_a_reason(world):
    golden = write_golden(world.root / "golden", masks=False, num_good=0)
    evaluation = evaluate(world.inputs(golden))
    assert evaluation.metrics["image_auroc"] is None
    assert evaluation.metrics["pro"] is None
    assert evaluation.metrics["false_alarm_rate"] is None
    assert "no image for pixel metrics" in report_of(evaluation)["candidate"]["metrics"]["pro"]["reason"]
    canonical_json(report_of(evaluation))


def test_strata_of_the_golden_set_are_reported(world):
    golden = write_golden(world.root / "golden", masks=True)
    names = sorted(path.relative_to(golden).as_posix() for path in golden.glob("test/*/*.png"))
    lines = [f"{name},{'dim' if i % 2 else 'bright'}" for i, name in enumerate(names)]
    (golden / "strata.csv").write_text("\n".join(["path,stratum", *lines]) + "\n")
    strata = report_of(evaluate(world.inputs(golden)))["strata"]
    assert (strata["stratum:dim"]["num_good"], strata["stratum:dim"]["num_defective"]) == (4, 4)
    assert strata["stratum:bright"]["difference"]["pro"]["value"] is not None


def break_weights(world):
    with (world.root / "candidate/package/model.safetensors").open("ab") as file:
        file.write(b"x")


def break_held_out_image(world):
    save(world.root / "held_out/2.png", texture(0))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (break_weights, "sha256"),
        (break_held_out_image, r"held_out/2\.png"),
        (lambda world: (world.root / "candidate/held_out.json").unlink(), r"held_out\.json"),
        (lambda world: (world.root / "candidate/held_out.json").write_text("[]"), "names no image"),
        (lambda world: (world.root / "candidate/held_out.json").write_text('[{"path": 1}]'), r"held_out\.json"),
        (lambda world: (world.root / "candidate/training.json").unlink(), r"training\.json"),
        (lambda world: (world.root / "training/0.png").write_bytes(b"x"), r"training/0\.png"),
        (lambda world: (world.root / "champion/replay.json").write_text("{}"), r"replay\.json"),
        (lambda world: (world.root / "champion/calibration.json").unlink(), r"calibration\.json"),
        (lambda world: (world.root / "champion/calibration.json").write_text("{}"), "not a calibration"),
        (lambda world: (world.root / "champion/model.safetensors").write_bytes(b""), "cannot be read"),
        (lambda world: (world.root / "golden/test/good/1.png").write_bytes(b"x"), r"1\.png"),
    ],
)
def test_wrong_inputs_are_named_and_leave_no_outputs(world, harm, message):
    golden = write_golden(world.root / "golden", masks=False, num_good=2)
    harm(world)
    with pytest.raises(InputError, match=message):
        evaluate(world.inputs(golden))
    assert not list((world.root / "work").rglob("outputs.json"))


@pytest.mark.slow
def test_the_command_line_gives_the_same_evaluation(shared, tmp_path):
    world, results = shared
    golden, evaluation = results["masks"]
    write_json(tmp_path / "in.json", world.inputs(golden))
    command = [sys.executable, "-m", "components.steps", "evaluate", "--inputs", str(tmp_path / "in.json")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(__file__).resolve().parents[3], timeout=120
    )
    assert json.loads(done.stdout)["digest"] == evaluation.digest
