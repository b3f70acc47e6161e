"""The morning page: complete, self-contained, escaped, the same for the same night, and written whatever happened."""

import base64
import html.parser
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from PIL import Image

from components.config import MlflowSettings, ReportSettings
from components.core.atomic_files import write_json
from components.core.contracts import GateDecision, PromotionRef, ReportRef, Verdict
from components.local_stack.airflow_env import repository_root
from components.steps.report.step import ReportInputs, report
from tests.helpers.report_night import finished_night, some_images

# MLflow's own queries.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning")


@pytest.fixture(scope="module")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated MLflow database; making one takes seconds, copying it none."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def root(tmp_path: Path, empty_mlflow: Path) -> Path:
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    return tmp_path


def page_of(inputs: ReportInputs) -> str:
    return Path(report(inputs).page_path).read_text(encoding="utf-8")


class _Page(html.parser.HTMLParser):
    """Tags, what they point to, and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.targets: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.targets += [
            value or "" for name, value in attrs if name in {"src", "href", "xlink:href", "srcset", "action"}
        ]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def test_a_promoted_night_shows_verdict_metrics_quarantine_and_lineage(root: Path) -> None:
    text = _Page(page_of(finished_night(root))).text

    assert "PROMOTED" in text
    assert "Version 3 is the champion. It replaces version 2" in text
    assert "0.957 0.937 to 0.977" in text
    assert "+0.016 +0.007 to +0.025 better" in text
    assert "floor:image_auroc met 0.957 0.7" in text
    assert "champion_anomalous" in text
    assert "lot lot-c has no manifest.json yet" in text
    assert "Worst false alarms" in text
    assert "Missed defects" in text
    assert "Largest disagreements between champion and candidate" in text
    assert "7" * 32 + ".dir" in text
    assert "recipe lite" in text


def test_pixel_figures_of_synthetic_defects_are_called_synthetic_and_real_ones_are_not(root: Path) -> None:
    inputs = finished_night(root)
    assert inputs.evaluation is not None
    real = replace(inputs, evaluation=replace(inputs.evaluation, synthetic_pixels=False))

    synthetic_text = _Page(page_of(inputs)).text
    assert "PRO synthetic" in synthetic_text
    assert "Pixel AUROC synthetic" in synthetic_text
    assert "Image AUROC synthetic" not in synthetic_text
    assert "PRO synthetic" not in _Page(page_of(real)).text


def test_the_page_asks_for_nothing_outside_itself(root: Path) -> None:
    text = page_of(finished_night(root))
    page = _Page(text)

    assert "://" not in text
    assert not {"script", "link", "iframe", "object", "embed", "form"} & set(page.tags)
    outside = [target for target in page.targets if not target.startswith(("data:image/", "#"))]
    assert outside == [
        os.path.relpath(
            root / "work/runs/elpv-mono.line1.cam1/2026-11-03/validate/docs/index.html",
            Path(report(finished_night(root)).page_path).parent,
        )
    ]
    assert "url(" not in re.sub(r"url\(#", "", text)
    assert "default-src 'none'" in text


@pytest.mark.chaos("markup and formulas in names, metadata and messages", outcome="text in the report")
def test_file_names_metadata_and_messages_stay_text(root: Path) -> None:
    evil = "<script>alert(1)</script>"
    names = [f"img_{index:03d}.png" for index in range(11)] + ["<img src=x onerror=alert(1)>.png"]
    inputs = finished_night(root, names=names)
    assert inputs.candidate is not None
    assert inputs.decision is not None
    assert inputs.collect is not None
    lineage = Path(inputs.candidate.package_dir) / "lineage.json"
    lineage.write_text(json.dumps({evil: evil}), encoding="utf-8")
    curves = {evil: [{"step": 1, evil: 1.0, "$\\frac$": 2.0}, {"step": 2, evil: 0.5, "$\\frac$": 2.0}]}
    Path(inputs.candidate.curves_path).write_text(json.dumps(curves), encoding="utf-8")
    reason = replace(inputs.decision.reasons[0], rule=evil, detail=evil)
    inputs = replace(
        inputs,
        collect=inputs.collect | {"waiting": [evil]},
        decision=replace(inputs.decision, reasons=(reason,)),
        failures=(f"export: {evil}", evil),
    )

    text = page_of(inputs)

    page = _Page(text)
    assert "script" not in page.tags
    assert evil not in text
    assert "<img src=x" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;.png" in text
    assert page.tags.count("main") == 1
    assert page.text.count(evil) >= 6


def test_the_same_night_gives_the_same_bytes(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    inputs = finished_night(root)
    first = Path(report(inputs).page_path)
    before = first.read_bytes()
    shutil.rmtree(first.parent)

    assert Path(report(inputs).page_path).read_bytes() == before


def test_a_second_call_returns_what_the_first_one_did(root: Path) -> None:
    inputs = finished_night(root)
    first = report(inputs)
    written = Path(first.page_path).stat().st_mtime_ns

    assert report(inputs) == first
    assert Path(first.page_path).stat().st_mtime_ns == written


def test_page_and_figures_are_stored_in_the_nights_mlflow_run(root: Path) -> None:
    inputs = finished_night(root)
    ref = report(inputs)

    client = MlflowClient(tracking_uri=inputs.mlflow.tracking_uri)
    experiment = client.get_experiment_by_name("stlm.elpv-mono.line1.cam1")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics["candidate/image_auroc"] == pytest.approx(0.957)
    assert run.data.metrics["champion/image_auroc"] == pytest.approx(0.941)
    assert run.data.metrics["images/quarantined"] == 6
    assert run.data.tags["stlm.headline"] == "PROMOTED"
    stored = Path(client.download_artifacts(run.info.run_id, "report/report.html", str(root)))
    assert stored.read_bytes() == Path(ref.page_path).read_bytes()
    assert ref.artifact_uri.endswith("/artifacts/report/report.html")


def test_images_that_cannot_be_decoded_get_a_placeholder_and_deep_ones_a_picture(root: Path) -> None:
    inputs = finished_night(root)
    folder = root / "work/runs/elpv-mono.line1.cam1/2026-11-03/collect/images/lot-b"
    ramp = np.linspace(0, 65535, 48 * 48).reshape(48, 48).astype(np.uint16)
    Image.fromarray(ramp).save(folder / "img_010.png")

    text = page_of(inputs)

    assert "cannot be decoded (UnidentifiedImageError)" in text
    uri = re.search(r'<img src="data:image/jpeg;base64,([^"]+)" alt="lot-b/img_010.png"', text)
    assert uri is not None
    with Image.open(io.BytesIO(base64.b64decode(uri[1]))) as picture:
        levels = np.asarray(picture.convert("L"))
    assert int(levels.min()) < 20
    assert int(levels.max()) > 235


def test_pictures_are_small_and_the_page_stays_below_three_megabytes_whatever_is_asked_for(root: Path) -> None:
    large = some_images(40, side_px=400)
    inputs = finished_night(
        root, night_images=large[:14], golden_good=large[:20], golden_bad=large[20:], max_pictures=20
    )
    ref = report(inputs)

    text = Path(ref.page_path).read_text(encoding="utf-8")
    assert len(text) < 3_000_000
    assert "the page has reached its size limit" in text
    sides = [max(int(w), int(h)) for w, h in re.findall(r'width="(\d+)" height="(\d+)"', text)]
    assert max(sides) <= 256


def test_true_defect_outlines_are_drawn_where_the_golden_set_has_masks(root: Path) -> None:
    inputs = finished_night(root)
    without = page_of(inputs)
    for path in (root / "golden" / "test" / "crack").glob("*.png"):
        mask = np.zeros((48, 48), dtype=np.uint8)
        mask[10:30, 10:30] = 255
        target = root / "golden" / "ground_truth" / "crack" / f"{path.stem}_mask.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(target)
    shutil.rmtree(Path(report(inputs).page_path).parent)

    assert page_of(inputs) != without


def _early(inputs: ReportInputs, **changes: object) -> ReportInputs:
    """The night without anything after validation, unless said otherwise."""
    cut = dict.fromkeys(("candidate", "evaluation", "package", "decision", "promotion"))
    return replace(inputs, **(cut | changes))  # type: ignore[arg-type]


def test_a_night_without_new_images_says_so_and_keeps_what_is_waiting(root: Path) -> None:
    inputs = finished_night(root)
    assert inputs.collect is not None
    quiet = _early(
        inputs,
        dataset=None,
        validation=None,
        collect={"status": "NOTHING_NEW", "batch": None, "waiting": inputs.collect["waiting"]},
    )

    text = _Page(page_of(quiet)).text

    assert "NOTHING NEW" in text
    assert "There is no champion yet." in text
    assert "Champion now none" in text
    assert "No complete new lot had arrived, so the night ended after collecting." in text
    assert "lot lot-c has no manifest.json yet" in text


def test_a_night_that_validation_refused_shows_its_lots_and_pictures_all_the_same(root: Path) -> None:
    inputs = finished_night(root)
    assert inputs.validation is not None
    table = pd.read_parquet(inputs.validation.table_path)
    table = table.assign(accepted=False, rejected=True, reasons=table["reasons"] + ";lot rejected: quarantined share")
    folder = inputs.run.run_dir / "validate" / "0123456789abcdef"
    folder.mkdir()
    table.to_parquet(folder / "images.parquet")
    refused = _early(inputs, validation=None, failures=("validate: no image may be learnt from",))

    page = page_of(refused)
    text = _Page(page).text

    assert "FAILED validate: no image may be learnt from. There is no champion yet." in text
    assert "lot-a 2026-11-03 6 0 0 6 lot rejected: quarantined share" in text
    assert 'alt="lot-b/img_010.png"' in page
    assert "validate/0123456789abcdef/data_docs/index.html" in page


def test_a_double_is_shown_with_its_original(root: Path) -> None:
    assert "near_duplicate of 2026-11-02/lot-x/img_004.png" in _Page(page_of(finished_night(root))).text


def test_a_failed_step_is_named_with_its_message_where_its_part_would_be(root: Path) -> None:
    inputs = _early(finished_night(root), failures=("fine_tune: loss is nan at step 12",))

    text = _Page(page_of(inputs)).text

    assert "FAILED" in text
    assert "The step fine_tune failed: loss is nan at step 12" in text
    assert "The night stopped at the step fine_tune; its message is above." in text
    assert report(inputs).summary["tone"] == "bad"


def test_the_page_says_whom_the_candidate_was_held_against_and_what_a_comparison_could_see(root: Path) -> None:
    inputs = finished_night(root)
    assert inputs.decision is not None
    assert inputs.evaluation is not None
    first, second, third = inputs.decision.reasons
    reasons = (replace(first, warning=True), replace(second, detectable=0.0123), third)
    decision = replace(inputs.decision, reasons=reasons, becomes_anchor=True)

    page = page_of(replace(inputs, decision=decision, evaluation=replace(inputs.evaluation, anchor_version=1)))

    text = _Page(page).text
    assert "Compared with the champion, version 2, and with the anchor, version 1 (the best ever approved)." in text
    assert "Once promoted, the candidate is the new anchor." in text
    assert "0.0123" in text
    assert "met, but read" in text


@pytest.mark.parametrize(
    ("verdict", "badge", "tone"),
    [
        (Verdict.REJECT, "REJECTED", "bad"),
        (Verdict.INCONCLUSIVE, "INCONCLUSIVE", "warn"),
        (Verdict.ERROR, "ERROR", "bad"),
    ],
)
def test_a_refused_candidate_is_told_with_the_rule_that_refused_it(
    root: Path, verdict: Verdict, badge: str, tone: str
) -> None:
    inputs = finished_night(root)
    assert inputs.decision is not None
    objection = replace(inputs.decision.reasons[1], verdict=verdict, detail="image_auroc fell by 0.11, allowed 0.02")
    decision: GateDecision = replace(
        inputs.decision, verdict=verdict, reasons=(inputs.decision.reasons[0], objection, inputs.decision.reasons[2])
    )
    promotion = PromotionRef(
        outcome="REFUSED", name="stlm.elpv-mono.line1.cam1", version=None, champion_version=2, previous_version=1
    )

    ref = report(replace(inputs, decision=decision, promotion=promotion))

    assert (ref.summary["badge"], ref.summary["tone"]) == (badge, tone)
    text = _Page(Path(ref.page_path).read_text(encoding="utf-8")).text
    assert "image_auroc fell by 0.11, allowed 0.02. The champion is untouched." in text
    assert "v2 unchanged" in text


def test_a_version_that_waits_for_approval_and_one_that_was_replaced_since_are_not_called_champion(root: Path) -> None:
    inputs = finished_night(root)
    assert inputs.promotion is not None
    detail = "version 3 is registered and waits for approval"
    waiting = replace(inputs.promotion, outcome="REFUSED", champion_version=2, previous_version=1, detail=detail)
    replaced = replace(inputs.promotion, outcome="ALREADY_PROMOTED", champion_version=5, previous_version=4)

    first, second = report(replace(inputs, promotion=waiting)), report(replace(inputs, promotion=replaced))

    assert first.summary["badge"] == "NOT PROMOTED"
    assert first.summary["sentence"] == f"{detail}. The champion is untouched."
    assert second.summary["sentence"] == "Version 3 was promoted before; the champion is version 5."
    assert "Champion now v5 unchanged" in _Page(Path(second.page_path).read_text(encoding="utf-8")).text


def test_the_first_model_is_told_as_such_and_has_no_champion_column(root: Path) -> None:
    inputs = finished_night(root)
    assert inputs.evaluation is not None
    assert inputs.validation is not None
    assert inputs.decision is not None
    metrics = json.loads(Path(inputs.evaluation.report_path).read_text(encoding="utf-8"))
    metrics |= {"champion": None, "champion_version": None, "difference": None, "decisions": None}
    for stratum in metrics["strata"].values():
        stratum |= {"champion": None, "difference": None}
    Path(inputs.evaluation.report_path).write_text(json.dumps(metrics), encoding="utf-8")
    with np.load(inputs.evaluation.scores_path) as stored:
        arrays = {name: stored[name] for name in stored.files if name != "champion_scores"}
    np.savez(inputs.evaluation.scores_path, **arrays)
    first = replace(
        inputs,
        validation=replace(inputs.validation, champion=None),
        evaluation=replace(inputs.evaluation, champion_version=None, champion_metrics={}),
        decision=replace(inputs.decision, champion_version=None, bootstrap=True),
        promotion=PromotionRef(outcome="PROMOTED", name="x", version=1, champion_version=1, previous_version=None),
    )

    text = _Page(page_of(first)).text

    assert "It is the first model of this key and was judged by the floors alone." in text
    assert "There was no champion to compare with." in text
    assert "Figure Candidate Image AUROC 0.957 0.937 to 0.977 False-alarm" in text


_FILES = ["report.json", "scores.npz", "maps.npz", "curves.json", "images.parquet", "manifest.json", "lineage.json"]


def _file(root: Path, name: str) -> Path:
    (path,) = (root / "work").rglob(name)
    return path


@pytest.mark.parametrize("name", _FILES)
def test_a_file_of_another_shape_costs_its_part_and_not_the_page(root: Path, name: str) -> None:
    inputs = finished_night(root, max_pictures=1)
    path = _file(root, name)
    if path.suffix == ".json":
        path.write_text(json.dumps({"stage": [1, "two", None], "lots": [3], "strata": []}), encoding="utf-8")
    elif path.suffix == ".npz":
        np.savez(path, candidate=np.zeros(3), paths=np.zeros(2))
    else:
        pd.DataFrame({"other": [1]}).to_parquet(path)

    text = _Page(page_of(inputs)).text

    assert "PROMOTED" in text
    assert "Where it came from" in text


@pytest.mark.chaos("what the report reads is gone or garbage", outcome="a page that says so")
@pytest.mark.parametrize("content", [None, b"\x00garbage"])
def test_files_that_are_gone_or_garbage_leave_a_page_that_says_so(root: Path, content: bytes | None) -> None:
    inputs = finished_night(root)
    shutil.rmtree(root / "golden")
    for name in _FILES:
        path = _file(root, name)
        path.unlink()
        if content is not None:
            path.write_bytes(content)

    text = _Page(page_of(inputs)).text

    assert "report.json cannot be read" in text
    assert "scores.npz cannot be read" in text
    assert "curves.json cannot be read" in text
    assert "The table images.parquet cannot be read, so no picture is shown." in text


def test_golden_images_that_are_gone_leave_their_figures(root: Path) -> None:
    inputs = finished_night(root)
    shutil.rmtree(root / "golden")

    text = _Page(page_of(inputs)).text

    assert "the file is not there any more" in text
    assert "truth crack score" in text


def test_a_night_of_which_nothing_is_known_still_gets_its_page(root: Path) -> None:
    inputs = finished_night(root)
    bare = ReportInputs(
        run=inputs.run, golden=str(root / "nowhere"), mlflow=inputs.mlflow, failures=("collect: bucket is gone",)
    )

    text = _Page(page_of(bare)).text

    assert "FAILED collect: bucket is gone" in text
    assert "The step collect failed: bucket is gone" in text


def test_the_page_is_there_even_when_mlflow_is_not(root: Path) -> None:
    inputs = finished_night(root)
    gone = replace(inputs, mlflow=MlflowSettings(tracking_uri="http://127.0.0.1:9", artifact_root=str(root)))

    with pytest.raises(RuntimeError, match="cannot be reached"):
        report(gone)

    (page,) = (inputs.run.run_dir / "report").glob("*/report.html")
    assert "PROMOTED" in page.read_text(encoding="utf-8")


def test_no_pictures_are_shown_when_none_are_asked_for(root: Path) -> None:
    text = page_of(replace(finished_night(root), settings=ReportSettings(max_pictures=0)))

    assert "data:image/jpeg" not in text
    assert "PROMOTED" in text


@pytest.mark.slow
def test_the_step_runs_from_the_command_line(root: Path) -> None:
    inputs = finished_night(root)
    write_json(root / "in.json", inputs)

    subprocess.run(
        [
            sys.executable,
            "-m",
            "components.steps",
            "report",
            "--inputs",
            str(root / "in.json"),
            "--outputs",
            str(root / "out.json"),
        ],
        check=True,
        cwd=repository_root(),
    )

    ref = ReportRef.from_json(json.loads((root / "out.json").read_text(encoding="utf-8")))
    assert Path(ref.page_path).is_file()
