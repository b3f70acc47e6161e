"""The console: what it says of nights, how it refuses, and that its processes end with it."""

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from components.cli import main
from components.cli.main import _parser
from components.cli.summary import night_lines, verdict_of
from components.core.contracts import GateDecision, Reason, RunRef, Verdict
from components.core.errors import EXIT_INPUT_ERROR, InputError, TransientError
from components.core.next_steps import next_steps
from components.core.run_records import StepRecord, begin_step, is_finished, nights, read_night, write_record
from components.local_stack.airflow_env import airflow_environment
from components.local_stack.processes import ProcessGroup, free_port, port_is_free, stop_running
from tests.helpers.tiny_nights import KEY, NIGHTS, TinyWorld, make_tiny_world


@pytest.fixture
def world(tmp_path: Path) -> TinyWorld:
    return make_tiny_world(tmp_path)


def _stlm(world: TinyWorld, *arguments: str) -> int:
    return main(["--config", str(world.config_path), "--state", str(world.root / "state"), *arguments])


def _record(run: RunRef, step: str, outputs: dict[str, Any] | None = None, *, error: str = "") -> None:
    write_record(
        run,
        StepRecord(step=step, outcome="FAILED" if error else "SUCCEEDED", seconds=1.0, detail=error, outputs=outputs),
    )


def _decision(verdict: Verdict, *reasons: Reason) -> GateDecision:
    return GateDecision(
        verdict=verdict,
        reasons=reasons,
        candidate_key="c" * 64,
        champion_version=1,
        bootstrap=False,
        evaluation_digest="e" * 64,
        package_digest="d" * 64,
    )


def _promoted_night(run: RunRef) -> None:
    batch = {"manifest_path": "m", "image_dir": "d", "digest": "x", "num_lots": 2, "num_images": 20}
    _record(run, "collect", {"status": "NEW_IMAGES", "batch": batch, "waiting": ["lot c has no manifest yet"]})
    _record(run, "version", {})
    _record(
        run,
        "validate",
        {
            "num_accepted": 17, "num_quarantined": 3, "num_rejected": 0, "rejected_lots": [],
            "reasons": {"dark": 1, "outlier": 2},
        },
    )  # fmt: skip
    _record(
        run,
        "fine_tune",
        {
            "training_seconds": 61.4, "num_steps": 120, "parent_version": None, "num_new_images": 15,
            "num_replay_images": 0,
        },
    )  # fmt: skip
    metrics = {"image_auroc": 0.951, "pixel_auroc": 0.9, "pixel_ap": None, "pro": 0.5}
    _record(run, "evaluate", {"report_path": "missing", "metrics": metrics, "synthetic_pixels": True})
    _record(run, "export", {})
    floor = Reason(rule="floor image_auroc", verdict=Verdict.PROMOTE, detail="image_auroc is 0.951, not below 0.700.")
    _record(run, "gate", _decision(Verdict.PROMOTE, floor).to_json())
    _record(run, "promote", {"outcome": "PROMOTED", "champion_version": 1})
    page = run.run_dir / "page.html"
    page.write_text("<html></html>")
    _record(run, "report", {"page_path": str(page)})


def test_a_night_is_told_in_a_dozen_lines(world: TinyWorld) -> None:
    run = world.run(NIGHTS[0])
    _promoted_night(run)
    assert night_lines(run) == [
        "Night 2026-03-01 of tiles.line1.cam1: promoted, champion is version 1",
        "  images     20 taken in 2 lots, 17 accepted, 3 quarantined (outlier 2, dark 1)",
        "  left       lot c has no manifest yet",
        "  training   61 s, 120 steps of a first model, 15 new and 0 replayed images (all steps together 9 s)",
        "  metrics    image AUROC 0.951, false-alarm rate at recall undefined",
        "             pixel AUROC 0.900, pixel AP undefined, PRO 0.500 (synthetic defects)",
        "  verdict    PROMOTE, 1 rule met",
        f"  page       {run.run_dir / 'page.html'}",
    ]


@pytest.mark.parametrize("verdict", [verdict for verdict in Verdict if verdict is not Verdict.PROMOTE])
@pytest.mark.parametrize("rule", ["floor image_auroc", "champion pro", "enough good golden images", "golden set"])
def test_a_refusal_is_told_in_a_dozen_lines_with_what_can_be_done(
    world: TinyWorld, verdict: Verdict, rule: str
) -> None:
    run = world.run(NIGHTS[0])
    _promoted_night(run)
    unmet = [Reason(rule=f"{rule}", verdict=verdict, detail=f"finding {number}") for number in range(4)]
    met = [Reason(rule="latency", verdict=Verdict.PROMOTE, detail="fast enough")] * 9
    _record(run, "gate", _decision(verdict, *met, *unmet).to_json())
    _record(run, "promote", {"outcome": "REFUSED", "champion_version": 1})
    _record(run, "report", {"page_path": "page.html"})

    lines = night_lines(run)

    assert len(lines) <= 12
    assert f"  verdict    {verdict.value}, 9 rules met, 4 not; 2 of them, the rest on the page:" in lines
    assert any(line.startswith("  next       ") for line in lines)
    for command in re.findall(r"`stlm ([^`]+)`", "\n".join(lines)):
        assert _parser().parse_args(shlex.split(command)).reason == "WHY"


@pytest.mark.parametrize("outcome", ["FROZEN", "REFUSED", "STALE_DECISION", "PROMOTED"])
def test_a_candidate_that_passed_and_does_not_serve_says_what_is_left_to_do(world: TinyWorld, outcome: str) -> None:
    steps = next_steps(KEY, Verdict.PROMOTE, (), candidate_key="c" * 64, outcome=outcome)

    assert bool(steps) == (outcome != "PROMOTED")
    for command in re.findall(r"`stlm ([^`]+)`", "\n".join(steps)):
        assert _parser().parse_args(shlex.split(command)).key == KEY.slug


def test_status_and_report_find_the_nights(world: TinyWorld, capsys: pytest.CaptureFixture[str]) -> None:
    _promoted_night(world.run(NIGHTS[0]))
    _record(world.run(NIGHTS[1]), "collect", error="landing zone is gone")
    assert _stlm(world, "status") == 0
    out = capsys.readouterr().out
    assert "no champion yet" in out
    assert "2026-03-01  PROMOTE       image AUROC 0.951" in out
    assert "2026-03-02  FAILED" in out
    assert _stlm(world, "report") == 0
    assert capsys.readouterr().out.strip() == str(world.run(NIGHTS[0]).run_dir / "page.html")


def test_finished_nights_are_not_run_again(world: TinyWorld, capsys: pytest.CaptureFixture[str]) -> None:
    _promoted_night(world.run(NIGHTS[0]))
    assert _stlm(world, "nightly", "--night", NIGHTS[0]) == 0
    out = capsys.readouterr().out
    assert "nothing was run" in out
    assert "make up" in out
    assert not (world.root / "state").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nightly"], "which night of tiles.line1.cam1? give it with --night YYYY-MM-DD"),
        (["nightly", "--night", "2026-02-30"], "night '2026-02-30'"),
        (
            ["nightly", "--night", NIGHTS[0], "--key", "a.b.c"],
            "unknown model key 'a.b.c'; configured: tiles.line1.cam1",
        ),
        (["report"], "there is no page of any night for tiles.line1.cam1"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_65(
    world: TinyWorld, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert _stlm(world, *arguments) == EXIT_INPUT_ERROR
    err = capsys.readouterr().err
    assert err.startswith("stlm: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_taken_port_is_refused_before_anything_starts(world: TinyWorld, capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        assert not port_is_free(port)
        assert _stlm(world, "up", "--port", str(port)) == EXIT_INPUT_ERROR
    assert f"port {port} is taken; choose another with --port" in capsys.readouterr().err
    assert not (world.root / "state" / "airflow").exists()


def test_the_doctor_finds_nothing_wrong_with_a_fresh_workspace(
    world: TinyWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _stlm(world, "doctor") == 0
    assert "No problems found." in capsys.readouterr().out


def test_the_doctor_says_what_is_wrong_and_what_to_do(
    world: TinyWorld, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
    for image in (world.root / "golden" / "test" / "scratch").iterdir():
        image.unlink()
    assert _stlm(world, "doctor") == 1
    out = capsys.readouterr().out
    assert "PROBLEM  pickle: MLFLOW_ALLOW_PICKLE_DESERIALIZATION=true\n         -> unset it" in out
    assert "has 8 good and 0 defective images" in out
    assert "2 problems found." in out


def test_a_step_that_starts_again_forgets_what_was_built_on_it(world: TinyWorld) -> None:
    run = world.run(NIGHTS[0])
    _promoted_night(run)
    assert is_finished(read_night(run))
    begin_step(run, "validate")
    assert list(read_night(run)) == ["collect", "version"]
    assert not is_finished(read_night(run))
    assert nights(run.work_dir, KEY) == [run]


def test_a_night_that_failed_or_had_nothing_new_says_so(world: TinyWorld) -> None:
    failed, empty = world.run(NIGHTS[0]), world.run(NIGHTS[1])
    _record(failed, "collect", error="2 of 3 files differ from their manifest")
    _record(empty, "collect", {"status": "NOTHING_NEW", "batch": None, "waiting": []})
    _record(empty, "report", {"page_path": "page.html"})
    assert verdict_of(read_night(failed)) == "FAILED"
    assert "  FAILED     collect: 2 of 3 files differ from their manifest" in night_lines(failed)
    assert night_lines(empty)[:2] == [
        "Night 2026-03-02 of tiles.line1.cam1: nothing new, champion untouched",
        "  images     none taken",
    ]


_FAMILY = (
    "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
    "time.sleep(60)"
)


def _start_family(programs: ProcessGroup, folder: Path) -> None:
    programs.start("family", [sys.executable, "-c", _FAMILY], dict(os.environ), folder / "family.log")


def _children(pid: int, at_least: int = 2) -> list[psutil.Process]:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if len(family := psutil.Process(pid).children(recursive=True)) >= at_least:
            return family
        time.sleep(0.05)
    raise AssertionError("the family did not grow")


def _family(programs: ProcessGroup) -> list[psutil.Process]:
    """The started program and its child; the test run has other children too, such as servers."""
    root = psutil.Process(programs._running["family"][0].pid)
    return [root, *_children(root.pid, at_least=1)]


def test_programs_end_with_everything_they_started(tmp_path: Path) -> None:
    with ProcessGroup(tmp_path) as programs:
        _start_family(programs, tmp_path)
        family = _family(programs)
    assert not any(member.is_running() for member in family)


def test_a_second_owner_is_refused_and_can_stop_the_first(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from components.local_stack.processes import *\n"
        "state = Path(sys.argv[1])\n"
        "with interruptible(), ProcessGroup(state) as programs:\n"
        f"    programs.start('family', [sys.executable, '-c', {_FAMILY!r}], {{}}, state / 'log')\n"
        "    print('up', flush=True)\n"
        "    try:\n"
        "        import time; time.sleep(60)\n"
        "    except KeyboardInterrupt:\n"
        "        print('asked to stop', flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "up\n"
        family = _children(owner.pid)
        with pytest.raises(InputError, match=rf"running already, under process {owner.pid}"), ProcessGroup(tmp_path):
            pass
        assert stop_running(tmp_path)
        assert owner.stdout.read() == "asked to stop\n"
    assert not any(member.is_running() for member in family)
    assert not stop_running(tmp_path)


def test_what_a_killed_owner_left_behind_is_ended_by_the_next(tmp_path: Path) -> None:
    abandoned = ProcessGroup(tmp_path)
    abandoned.__enter__()
    _start_family(abandoned, tmp_path)
    family = _family(abandoned)
    abandoned._lock.release()  # what the system does when a process is killed
    with ProcessGroup(tmp_path):
        assert not any(member.is_running() and member.status() != psutil.STATUS_ZOMBIE for member in family)
    for process, _ in abandoned._running.values():
        process.wait()


def test_what_a_killed_owner_left_behind_can_be_stopped_from_elsewhere(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from components.local_stack.processes import *\n"
        "state = Path(sys.argv[1])\n"
        "with ProcessGroup(state) as programs:\n"
        f"    programs.start('family', [sys.executable, '-c', {_FAMILY!r}], {{}}, state / 'log')\n"
        "    print('up', flush=True)\n"
        "    import time; time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "up\n"
        family = _children(owner.pid)
        owner.kill()
        owner.wait()
    assert any(member.is_running() for member in family)
    assert stop_running(tmp_path)
    assert not any(member.is_running() and member.status() != psutil.STATUS_ZOMBIE for member in family)
    assert not stop_running(tmp_path)


def test_a_program_that_ends_by_itself_is_reported_with_its_last_words(tmp_path: Path) -> None:
    with ProcessGroup(tmp_path) as programs:
        programs.start("crier", [sys.executable, "-c", "raise SystemExit('help')"], {}, tmp_path / "log")
        with pytest.raises(TransientError, match=r"crier ended with exit code 1(.|\n)*help"):
            _check_for_a_while(programs)


def _check_for_a_while(programs: ProcessGroup) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        programs.check()
        time.sleep(0.05)


def test_airflow_keeps_its_state_in_one_folder_and_its_secrets_to_itself(tmp_path: Path) -> None:
    port = free_port()
    env = airflow_environment(tmp_path / "airflow", tmp_path / "c.toml", api_port=port, scheduled=False)
    again = airflow_environment(tmp_path / "airflow", tmp_path / "c.toml", api_port=port, scheduled=False)
    assert env == again
    assert env["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == f"http://127.0.0.1:{port}/execution/"
    assert env["AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE"] == "False"
    assert env["GX_ANALYTICS_ENABLED"] == env["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    paths = [value for name, value in env.items() if name.startswith("AIRFLOW") and str(tmp_path) in value]
    assert paths
    assert all(str(tmp_path / "airflow") in value for value in paths)
    assert len(env["AIRFLOW__API_AUTH__JWT_SECRET"]) == 64
    for name in ("api_secret", "jwt_secret"):
        assert (tmp_path / "airflow" / name).stat().st_mode & 0o077 == 0
