"""Approval task: the question to people between gate and promotion, and the answer bound to its candidate."""

import datetime as dt
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import Context
from airflow.sdk.exceptions import TaskAwaitingInput

from components.core.contracts import Approval, GateDecision, PackageRef, Verdict
from dags._run import Json, backfill_of

if TYPE_CHECKING:
    from airflow.sdk.execution_time.hitl import HITLUser

__all__ = ["APPROVE", "REJECT", "AskApprovers"]

APPROVE = "Approve"
REJECT = "Reject"


class AskApprovers(HITLOperator):
    """Asks the named people whether a candidate that passed the gate may take over; no answer in time is a no.

    What they were asked about is parked with the task and comes back with the answer, so that a candidate that was
    judged anew meanwhile does not inherit it. A candidate that did not pass, or that a backfill made, is not asked
    about. Returns :class:`components.core.contracts.Approval` as JSON. Args: approvers: Their names in Airflow; nobody
    else can answer. hours: How long to wait. model: The registered model, for the headline. package: What would be
    promoted: the step's output. decision: The gate's output. **task_options: Further options of the task.
    """

    template_fields = ("subject", "body", "package", "decision")

    def __init__(
        self, *, approvers: Sequence[str], hours: float, model: str, package: Any, decision: Any, **task_options: Any
    ) -> None:
        users: list[HITLUser] = [{"id": name, "name": name} for name in approvers]
        super().__init__(
            subject=f"May this candidate of {model} take over?",
            options=[APPROVE, REJECT],
            defaults=[REJECT],
            assigned_users=users,
            response_timeout=dt.timedelta(hours=hours),
            **task_options,
        )
        self.package = package
        self.decision = decision

    def execute(self, context: Context) -> Json:
        """Ask and wait, or do not ask where the gate said no."""
        package, decision = PackageRef.from_json(self.package), GateDecision.from_json(self.decision)
        asked = {"candidate_key": package.candidate_key, "package_digest": package.digest}
        if decision.verdict is not Verdict.PROMOTE or backfill_of(context):
            return Approval(answer="NOT_ASKED", **asked).to_json()
        self.body = _question(package, decision)
        try:
            super().execute(context)
        except TaskAwaitingInput as waiting:
            raise TaskAwaitingInput(
                method_name="execute_complete", timeout=waiting.timeout, kwargs={"asked": asked}
            ) from None
        raise RuntimeError("Airflow took the question but does not wait for the answer")

    def execute_complete(self, context: Context, event: Json, asked: dict[str, str]) -> Json:  # type: ignore[override]
        """The answer, about what was asked."""
        said = super().execute_complete(context, event)
        if event.get("timedout") or said["responded_by_user"] is None:
            return Approval(answer="TIMED_OUT", **asked).to_json()
        return Approval(
            answer="APPROVED" if said["chosen_options"] == [APPROVE] else "REJECTED",
            by=said["responded_by_user"]["id"],
            at=said["responded_at"].isoformat(),
            **asked,
        ).to_json()


def _question(package: PackageRef, decision: GateDecision) -> str:
    against = (
        "nothing: it is the first" if decision.champion_version is None else f"version {decision.champion_version}"
    )
    rows = "\n".join(f"| {r.rule} | {r.verdict.value} | {r.detail.replace('|', '/')} |" for r in decision.reasons)
    return (
        f"Candidate `{package.candidate_key}`, package `{package.digest}`, judged against {against}: "
        f"**{decision.verdict.value}**\n\n| rule | says | why |\n|---|---|---|\n{rows}\n"
    )
