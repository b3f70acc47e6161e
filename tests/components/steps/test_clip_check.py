"""CLIP's second opinion in validation: off unless configured, and then only what stands out far is kept out."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from components.config.zero_shot import ZeroShotSettings
from components.core.contracts import RunRef
from components.core.errors import InputError
from components.steps.validate.clip_check import clip_check
from components.steps.validate.step import validate
from stlm.screening import outlier_limit
from tests.components.steps.test_validate import LENIENT, encoded, goods, new_plant, table_of
from tests.helpers.model_package import KEY
from tests.helpers.small_networks import write_clip
from tests.helpers.tiny_nights import texture


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> ZeroShotSettings:
    model, path, digest = write_clip(tmp_path_factory.mktemp("clip"))
    return ZeroShotSettings(
        clip_model=model, clip_checkpoint=path, clip_sha256=digest, device="cpu", second_opinion=True
    )


def images_in(folder: Path, num: int) -> pd.DataFrame:
    (folder / "lot").mkdir(parents=True)
    for seed in range(num):
        Image.fromarray(texture(seed)).save(folder / "lot" / f"{seed}.png")
    return pd.DataFrame({"lot": ["lot"] * num, "name": [f"{seed}.png" for seed in range(num)]}, index=range(3, num + 3))


def run(tmp_path: Path) -> RunRef:
    return RunRef(key=KEY, partition="2026-11-01", work_dir=str(tmp_path / "work"))


def test_the_excess_is_over_so_many_robust_deviations_of_the_nights_scores(
    tmp_path: Path, settings: ZeroShotSettings
) -> None:
    images = images_in(tmp_path / "night", 10)

    table = clip_check(images, tmp_path / "night", run(tmp_path), settings)

    scores = table["second_score"].to_numpy()
    assert table.index.tolist() == images.index.tolist()
    assert len(set(scores)) == 10
    limit = outlier_limit(scores, settings.second_opinion_deviations)
    np.testing.assert_allclose(table["second_limit"], limit)
    np.testing.assert_allclose(table["second_excess"], scores - limit)


def test_too_few_images_have_no_opinion(tmp_path: Path, settings: ZeroShotSettings) -> None:
    table = clip_check(images_in(tmp_path / "night", 7), tmp_path / "night", run(tmp_path), settings)

    assert table.isna().all().all()


def test_a_checkpoint_that_does_not_fit_is_one_line(tmp_path: Path, settings: ZeroShotSettings) -> None:
    wrong = replace(settings, clip_sha256="0" * 64)

    with pytest.raises(InputError, match=r"zero_shot: checkpoint .* expected sha256 0000"):
        clip_check(images_in(tmp_path / "night", 8), tmp_path / "night", run(tmp_path), wrong)


def test_validation_keeps_out_what_it_finds_suspicious(tmp_path: Path, settings: ZeroShotSettings) -> None:
    plant = new_plant(tmp_path)
    plant.deliver("lot", "2026-11-01", goods(0, 9) | {"good-50.png": encoded(Image.fromarray(texture(50)))})
    inputs = plant.inputs("2026-11-01", replace(LENIENT, min_images=1))
    strict = replace(settings, second_opinion_deviations=0.5)

    asked = validate(replace(inputs, zero_shot=strict))

    table = table_of(asked)
    suspicious = table["second_excess"] > 0
    assert 0 < suspicious.sum() < 10
    assert (table["reasons"] == "suspicious to CLIP").equals(suspicious)
    assert asked.reasons == {"suspicious to CLIP": int(suspicious.sum())}
    assert json.loads(json.dumps(asked.to_json()))["num_quarantined"] == suspicious.sum()
