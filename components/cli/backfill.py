"""``stlm backfill``: old nights once more, as a plan, a replay or a table of scores."""

import logging
from typing import Literal

from components.backfill.replay import (
    BackfillInputs,
    BackfillPlan,
    BackfillResult,
    evaluate_again,
    plan,
    replay,
)
from components.cli.progress import elapsed
from components.core.errors import InputError
from components.local_stack.processes import interruptible
from components.local_stack.workspace import Workspace

__all__ = ["Mode", "backfill"]

Mode = Literal["replay", "evaluate-only"]


def backfill(
    workspace: Workspace,
    *,
    key: str,
    first: str,
    last: str,
    mode: Mode,
    only_plan: bool,
    skip_bad: bool,
    ancestor: str,
) -> int:
    """Plan, replay or score old nights.

    Args:
        workspace: Configuration and state.
        key: Model key, ``product.line.camera`` or ``product/line/camera``; empty for the only one.
        first: The first night.
        last: The last night.
        mode: What to do with them.
        only_plan: Say what a replay would do, and change nothing.
        skip_bad: Leave out nights whose images cannot be used.
        ancestor: The night to build on, ``none`` for none; empty: the last champion before ``first``.

    Returns:
        0.

    Raises:
        InputError: Dates, key or parameters are wrong; or a night's images cannot be used.
        TransientError: Another run holds the key, or a store cannot be reached.
    """
    model = workspace.model(key.replace("/", "."))
    if mode == "evaluate-only" and (only_plan or skip_bad or ancestor):
        raise InputError("--plan, --skip-bad and --ancestor belong to a replay; evaluate-only changes nothing anyway")
    inputs = BackfillInputs(
        config=workspace.config, key=model.key, first=first, last=last, ancestor=ancestor, skip_bad=skip_bad
    )
    if mode == "evaluate-only":
        return _evaluate(inputs)
    planned = plan(inputs)
    _print_plan(planned, model.key.slug)
    if only_plan:
        return 0
    print(flush=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("components").setLevel(logging.INFO)
    with interruptible():
        result = replay(inputs)
    _print_result(result)
    return 0


def _time(seconds: float | None) -> str:
    return "unknown" if seconds is None else elapsed(seconds)


def _print_plan(planned: BackfillPlan, slug: str) -> None:
    print(f"Backfill {planned.name} of {slug}; ancestor: {planned.ancestor}")
    print(
        f"  {'night':<12}{'images':>7}{'lots':>6}{'rev':>5}  {'original':<13}{'replayed':<13}{'action':<8}{'time':>8}"
    )
    for row in planned.nights:
        print(
            f"  {row.night:<12}{row.num_images:>7}{row.num_lots:>6}{row.revision:>5}  {row.original or '-':<13}"
            f"{row.replayed or '-':<13}{row.action:<8}{_time(row.expected_s):>8}"
        )
    due = [row for row in planned.nights if row.action == "replay"]
    print(f"  {len(due)} of {len(planned.nights)} nights to replay, expected time {_time(planned.expected_s)}")
    for night in planned.without_data:
        print(f"  night {night} never reached the data repository and is not replayed")
    if planned.left_out:
        print(f"  left out, since they lie between the ancestor and the first: {', '.join(planned.left_out)}")
    print("  champion stays as it is")


def _print_result(result: BackfillResult) -> None:
    for night in result.nights:
        if night.gap:
            print(f"Night {night.night}: left out, {night.gap}")
            continue
        assert night.model is not None
        against = "no champion" if night.judged_against is None else f"version {night.judged_against}"
        value = night.metrics.get("image_auroc")
        auroc = "undefined" if value is None else f"{value:.3f}"
        print(
            f"Night {night.night}: version {night.model.version}, image AUROC {auroc}, verdict {night.verdict} "
            f"against {against}, {elapsed(night.seconds)}"
        )
    if result.num_run == 0:
        print("All of these nights were replayed before; nothing was run.")
    champion = "there is none" if result.champion_version is None else f"version {result.champion_version}"
    print(f"Champion untouched: {champion}. Alias backfill-{result.name} is at the last night.")
    last = [night for night in result.nights if night.model is not None][-1:]
    if last and last[0].verdict == "PROMOTE" and last[0].model is not None:
        print(f"To let it serve: stlm promote {last[0].model.version} --reason ...")
    print(f"Summary: {result.summary_path}")


def _evaluate(inputs: BackfillInputs) -> int:
    from components.backfill.rescoring import METRICS

    scores = evaluate_again(inputs)
    print(f"{scores.key} on {scores.num_good} good and {scores.num_defective} defective golden images of today")
    print(
        f"  {'night':<14}{'verdict then':<14}{'AUROC then':>11}  "
        + "".join(f"{label:>24}" for label in METRICS.values())
    )
    for row in scores.rows:
        then = "-" if row.image_auroc_then is None else f"{row.image_auroc_then:.3f}"
        then += "" if row.same_golden_set else "*"
        cells = (row.metrics.get(name) for name in METRICS)
        texts = (
            "-"
            if one is None or one.value is None
            else f"{one.value:.3f}"
            + ("" if one.low is None or one.high is None else f" [{one.low:.3f}, {one.high:.3f}]")
            for one in cells
        )
        print(f"  {row.night:<14}{row.verdict_then or '-':<14}{then:>11}  " + "".join(f"{text:>24}" for text in texts))
    if not all(row.same_golden_set for row in scores.rows):
        print("  * judged on another golden set then")
    for sentence in scores.missing:
        print(f"  {sentence}")
    print(f"Nothing was registered or promoted. {scores.folder}/scores.html and scores.json")
    return 0
