"""The registry under retries, crashes, races and people: one version per candidate, complete before it is seen."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from components.adapters.mlflow.registry import ModelRegistry
from components.adapters.mlflow.tracking import open_run
from components.config import MlflowSettings
from components.core.contracts import PackageRef
from components.core.errors import InputError, TransientError
from stlm.serving.predictor import OnnxPredictor
from tests.helpers.model_package import KEY, new_mlflow, night, write_package

NAME = KEY.registered_model


@pytest.fixture
def mlflow(tmp_path: Path) -> MlflowSettings:
    return new_mlflow(tmp_path / "mlflow")


@pytest.fixture
def client(mlflow: MlflowSettings) -> MlflowClient:
    return MlflowClient(tracking_uri=mlflow.tracking_uri, registry_uri=mlflow.tracking_uri)


@pytest.fixture
def registry(mlflow: MlflowSettings, tmp_path: Path) -> ModelRegistry:
    return ModelRegistry(mlflow.tracking_uri, tmp_path / "models")


@pytest.fixture
def run_id(mlflow: MlflowSettings, tmp_path: Path) -> str:
    return open_run(mlflow, night(tmp_path))


def package(tmp_path: Path, seed: int, threshold: float = 0.5) -> PackageRef:
    folder = tmp_path / f"package-{seed}-{threshold}"
    shutil.rmtree(folder, ignore_errors=True)
    return write_package(folder, seed=seed, threshold=threshold)


def test_a_key_without_a_model_has_no_champion(registry: ModelRegistry) -> None:
    assert registry.champion(KEY) is None


def test_same_candidate_registered_five_times_is_one_version(
    registry: ModelRegistry, client: MlflowClient, run_id: str, tmp_path: Path
) -> None:
    refs = [
        registry.register(KEY, package(tmp_path, 0), run_id=run_id, tags={"stlm.partition": "2026-11-01"})
        for _ in range(5)
    ]

    assert {ref.version for ref in refs} == {1}
    (version,) = client.search_model_versions(f"name = '{NAME}'")
    assert version.tags["stlm.candidate_key"] == refs[0].candidate_key
    assert version.tags["stlm.partition"] == "2026-11-01"
    assert version.run_id == run_id
    assert registry.champion(KEY) is None


def test_same_weights_with_another_threshold_are_another_version(
    registry: ModelRegistry, run_id: str, tmp_path: Path
) -> None:
    first = registry.register(KEY, package(tmp_path, 0, 0.5), run_id=run_id, tags={})
    second = registry.register(KEY, package(tmp_path, 0, 0.6), run_id=run_id, tags={})

    assert (first.version, second.version) == (1, 2)
    assert OnnxPredictor(first.package_dir).threshold == 0.5
    assert OnnxPredictor(second.package_dir).threshold == 0.6


def test_candidates_registered_at_once_by_many_are_one_version_each(
    mlflow: MlflowSettings, client: MlflowClient, run_id: str, tmp_path: Path
) -> None:
    packages = [package(tmp_path, seed) for seed in (0, 1)] * 2
    errors: list[Exception] = []

    def work(what: PackageRef) -> None:
        try:
            ModelRegistry(mlflow.tracking_uri, tmp_path / "models").register(KEY, what, run_id=run_id, tags={})
        except Exception as error:  # noqa: BLE001  the assertion below shows it
            errors.append(error)

    threads = [threading.Thread(target=work, args=(what,)) for what in packages]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert len(client.search_model_versions(f"name = '{NAME}'")) == 2


@pytest.mark.chaos("registering dies after upload, model or version", outcome="completed by the next try; one version")
@pytest.mark.parametrize("crash_after", ["upload", "create_model", "create_version"])
def test_a_crash_while_registering_is_completed_by_the_next_try(
    registry: ModelRegistry, client: MlflowClient, run_id: str, tmp_path: Path, crash_after: str
) -> None:
    what = package(tmp_path, 0)
    source = registry._upload(what, run_id)
    if crash_after != "upload":
        registry.aliases(KEY).create()
    if crash_after == "create_version":
        registry._create_version(KEY, what, source=source, run_id=run_id, tags={"stlm.partition": "2026-11-01"})

    ref = registry.register(KEY, what, run_id=run_id, tags={"stlm.partition": "2026-11-01"})

    (version,) = client.search_model_versions(f"name = '{NAME}'")
    assert version.tags["stlm.partition"] == "2026-11-01"
    assert OnnxPredictor(ref.package_dir).threshold == 0.5


@pytest.mark.chaos("half a model in the registry", outcome="replaced")
def test_a_half_uploaded_model_is_replaced(registry: ModelRegistry, run_id: str, tmp_path: Path) -> None:
    what = package(tmp_path, 0)
    uploaded = Path(registry._upload(what, run_id))
    onnx = uploaded / "artifacts" / "package" / "model.onnx"
    onnx.write_bytes(onnx.read_bytes()[:100])

    ref = registry.register(KEY, what, run_id=run_id, tags={})

    OnnxPredictor(ref.package_dir)


def champion(registry: ModelRegistry, tmp_path: Path, run_id: str) -> None:
    """Version 1 as champion, by hand."""
    version = registry.register(KEY, package(tmp_path, 0), run_id=run_id, tags={}).version
    registry.aliases(KEY).set_alias("champion", version)


def test_a_champion_whose_version_was_deleted_is_not_taken_for_a_first_night(
    registry: ModelRegistry, client: MlflowClient, run_id: str, tmp_path: Path
) -> None:
    champion(registry, tmp_path, run_id)
    client.set_registered_model_tag(NAME, "stlm.last_champion", "1")
    client.delete_model_version(NAME, "1")

    with pytest.raises(InputError, match="no alias 'champion' although version 1 carried it"):
        registry.champion(KEY)


@pytest.mark.chaos("an altered model in a worker's cache", outcome="downloaded again")
def test_an_altered_copy_in_the_cache_is_downloaded_again(registry: ModelRegistry, run_id: str, tmp_path: Path) -> None:
    champion(registry, tmp_path, run_id)
    serving = registry.champion(KEY)
    assert serving is not None
    (Path(serving.package_dir) / "calibration.json").write_text("{}")

    again = registry.champion(KEY)

    assert again == serving
    OnnxPredictor(again.package_dir)
    assert sorted(path.name for path in (tmp_path / "models" / NAME).iterdir()) == [".1.lock", "1"]


@pytest.mark.chaos("a model altered in the registry", outcome="refused")
def test_what_was_altered_in_the_registry_is_refused(
    registry: ModelRegistry, client: MlflowClient, run_id: str, tmp_path: Path
) -> None:
    champion(registry, tmp_path, run_id)
    stored = Path(str(client.get_model_version(NAME, "1").source)) / "artifacts" / "package"
    (stored / "calibration.json").write_text("{}")
    shutil.rmtree(tmp_path / "models" / NAME)

    with pytest.raises(InputError, match=r"not what was registered: .*calibration.json is altered"):
        registry.champion(KEY)


def test_a_champion_that_promote_never_saw_is_refused(
    registry: ModelRegistry, client: MlflowClient, run_id: str
) -> None:
    client.create_registered_model(NAME)
    client.create_model_version(NAME, "/nowhere", run_id=run_id)
    client.set_registered_model_alias(NAME, "champion", "1")

    with pytest.raises(InputError, match="not registered by promote"):
        registry.champion(KEY)


def test_an_unknown_version_is_bad_input(registry: ModelRegistry, run_id: str, tmp_path: Path) -> None:
    champion(registry, tmp_path, run_id)

    with pytest.raises(InputError, match="has no version 7"):
        registry.version(KEY, 7)


def test_an_unreachable_registry_is_worth_a_retry(tmp_path: Path) -> None:
    with pytest.raises(TransientError, match="cannot be reached"):
        ModelRegistry("http://127.0.0.1:9", tmp_path)


def test_a_clean_process_serves_the_champion_by_its_alias(
    mlflow: MlflowSettings, registry: ModelRegistry, run_id: str, tmp_path: Path
) -> None:
    champion(registry, tmp_path, run_id)
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((64, 64), (100, 37))]
    for index, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{index}.png")
    code = """
import base64, json, sys
import mlflow, numpy as np, pandas as pd
from PIL import Image
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/stlm.cells.line1.cam1@champion")
files = [open(path, "rb").read() for path in sys.argv[2:]]
arrays = [np.asarray(Image.open(path)) for path in sys.argv[2:]]
kinds = {
    "bytes": pd.DataFrame({"image": files}),
    "arrays": pd.DataFrame({"image": arrays}),
    "records": [{"image": array} for array in arrays],
    "base64": {"image": [base64.b64encode(file).decode() for file in files]},
    "lists": pd.DataFrame({"image": [array.tolist() for array in arrays]}),
}
answers = {}
for kind, images in kinds.items():
    table = model.predict(images)
    rows = table.itertuples()
    answers[kind] = [[r.score, r.label, float(r.anomaly_map.max()), list(r.anomaly_map.shape)] for r in rows]
indexes = [
    list(model.predict(pd.DataFrame({"image": chosen}, index=index)).index)
    for chosen, index in ((files, ["b", "a"]), (files, [7, 7]), ([], []))
]
refusals = []
for cell in (sys.argv[2], b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\\n%%EOF", [[[1.5, 0.0, 0.0]]], None):
    try:
        model.predict(pd.DataFrame({"image": [cell]}))
    except ValueError as error:
        refusals.append(str(error))
signature = model.metadata.signature
names = [[column.name for column in schema.inputs] for schema in (signature.inputs, signature.outputs)]
print(json.dumps({"answers": answers, "refusals": refusals, "names": names, "indexes": indexes,
                  "torch": "torch" in sys.modules}))
"""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, mlflow.tracking_uri, str(tmp_path / "0.png"), str(tmp_path / "1.png")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])

    serving = registry.champion(KEY)
    assert serving is not None
    expected = [
        [p.score, p.label, float(p.anomaly_map.max()), list(p.anomaly_map.shape)]
        for p in OnnxPredictor(serving.package_dir).predict(pictures)
    ]
    assert set(said["answers"]) == {"bytes", "arrays", "records", "base64", "lists"}
    assert all(answer == expected for answer in said["answers"].values())
    assert said["names"] == [["image"], ["score", "label", "anomaly_map"]]
    assert said["indexes"] == [["b", "a"], [7, 7], []]
    assert said["torch"] is False
    assert len(said["refusals"]) == 5
    assert all("image 0" in refusal for refusal in said["refusals"])
