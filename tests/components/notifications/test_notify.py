"""Who is told of a night, by servers that really listen; and what becomes of a message that nobody takes."""

import base64
import datetime as dt
import hashlib
import hmac
import ipaddress
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from mlflow import MlflowClient

from components.cli.doctor import _secrets as _doctor_secrets
from components.cli.problem import CheckError
from components.config import AlertSettings, MlflowSettings, NotifySettings
from components.core.contracts import GateDecision, Reason, RunRef, Verdict
from components.core.run_records import StepRecord, write_record
from components.notifications.deadline import DeadlineInputs, watch
from components.notifications.delivery import deliver
from components.notifications.messages import Message, text_of
from components.steps.notify.step import NotifyInputs, NotifyRef, notify
from tests.helpers.model_package import new_mlflow
from tests.helpers.receivers import Received, mail_server, web_server
from tests.helpers.tiny_nights import KEY

SECRET = "whsec_" + base64.b64encode(b"a secret of the tests").decode()
SAID = Message(kind="test", level="info", key=KEY.slug, night="2026-03-01", outcome="TEST", sentence="Hi.", champion=3)


@pytest.fixture(autouse=True)
def _secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STLM_WEBHOOK_SECRET", SECRET)
    monkeypatch.setenv("TEST_SMTP_USER", "ada")
    monkeypatch.setenv("TEST_SMTP_PASSWORD", "opensesame")


def run_of(root: Path, night: str) -> RunRef:
    return RunRef(key=KEY, partition=night, work_dir=str(root / "work"))


def ended(root: Path, night: str, badge: str, **outputs: Any) -> RunRef:
    """A night whose page says so."""
    run = run_of(root, night)
    write_record(run, StepRecord(step="collect", outcome="SUCCEEDED", seconds=1, outputs={"batch": {"num_images": 7}}))
    for step, value in outputs.items():
        write_record(run, StepRecord(step=step, outcome="SUCCEEDED", seconds=1, outputs=value))
    summary = {"badge": badge, "tone": "calm", "sentence": f"It is {badge}."}
    page = {"page_path": f"/pages/{night}.html", "artifact_uri": "s3://b/p", "summary": summary}
    write_record(run, StepRecord(step="report", outcome="SUCCEEDED", seconds=1, outputs=page))
    return run


def settings(web: Received | None = None, mail: Received | None = None, **more: Any) -> NotifySettings:
    if web is not None:
        more["webhook_url"] = f"http://127.0.0.1:{web.port}/hook?token=s3cr3t"
    if mail is not None:
        more = {"mail_to": ("ada@example.com",), "smtp_host": "127.0.0.1", "smtp_port": mail.port} | more
    return NotifySettings(timeout_s=2, **more)


def mlflow_of(run: RunRef) -> MlflowSettings:
    folder = Path(run.work_dir).parent / "mlflow"
    if not folder.exists():
        return new_mlflow(folder)
    return MlflowSettings(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}", artifact_root="")


def tell(run: RunRef, whom: NotifySettings, *, failures: tuple[str, ...] = (), **alerts: Any) -> NotifyRef:
    return notify(
        NotifyInputs(
            run=run,
            failures=failures,
            mlflow=mlflow_of(run),
            alerts=AlertSettings(**alerts),
            settings=whom,
        )
    )


def test_a_webhook_gets_verdict_reasons_figures_champion_and_page_under_a_signature_it_can_check(
    tmp_path: Path,
) -> None:
    reason = Reason(rule="floor image_auroc", verdict=Verdict.REJECT, detail="0.6 < 0.7", value=0.6, limit=0.7)
    met = Reason(rule="size", verdict=Verdict.PROMOTE, detail="small")
    decision = GateDecision(
        verdict=Verdict.REJECT,
        reasons=(reason, met),
        candidate_key="c",
        champion_version=3,
        bootstrap=False,
        evaluation_digest="e",
        package_digest="p",
    )
    run = ended(tmp_path, "2026-03-01", "REJECTED", gate=decision.to_json())
    with web_server() as web:
        told = tell(run, settings(web))
    assert (told.level, told.outcome, told.undelivered) == ("info", "REJECTED", {})
    (body,), (headers,) = web.bodies, web.headers
    said = json.loads(body)
    assert (said["key"], said["night"], said["outcome"], said["verdict"]) == (
        KEY.slug,
        "2026-03-01",
        "REJECTED",
        "REJECT",
    )
    assert [r["rule"] for r in said["reasons"]] == ["floor image_auroc"]
    assert said["figures"]["images_taken"] == 7
    assert said["page"] == "/pages/2026-03-01.html"
    assert said["champion"] is None
    assert said["id"] == headers["webhook-id"] == told.message_id
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(b"a secret of the tests", signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    age_s = dt.datetime.now(dt.UTC).timestamp() - int(headers["webhook-timestamp"])
    assert 0 <= age_s < 60


def test_a_message_is_sent_once_and_again_only_when_there_is_other_news(tmp_path: Path) -> None:
    run = ended(tmp_path, "2026-03-01", "PROMOTED")
    with web_server() as web:
        tell(run, settings(web))
        tell(run, settings(web))
        assert len(web.bodies) == 1
        tell(ended(tmp_path, "2026-03-01", "REJECTED"), settings(web))
    assert [json.loads(body)["outcome"] for body in web.bodies] == ["PROMOTED", "REJECTED"]


def test_the_same_news_is_sent_once_although_mlflow_was_away_at_first(tmp_path: Path) -> None:
    run = ended(tmp_path, "2026-03-01", "PROMOTED")
    away = MlflowSettings(tracking_uri="http://127.0.0.1:9", artifact_root="")
    uri = mlflow_of(run).tracking_uri
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.create_registered_model(KEY.registered_model)
    version = client.create_model_version(KEY.registered_model, source=str(tmp_path))
    client.set_registered_model_alias(KEY.registered_model, "champion", version.version)
    with web_server() as web:
        without = notify(NotifyInputs(run=run, failures=(), mlflow=away, settings=settings(web)))
        told = tell(run, settings(web))

    assert len(web.bodies) == 1
    assert json.loads(web.bodies[0])["champion"] is None
    assert without.message_id == told.message_id
    assert replace(SAID, champion=None).id == SAID.id
    assert replace(SAID, outcome="FAILED").id != SAID.id


def test_a_delivery_is_tried_again_under_the_same_id(tmp_path: Path) -> None:
    with web_server(503, 429, 204) as web:
        assert deliver(SAID, settings(web), pause_s=0.01) == {"webhook": ""}
    assert len(web.bodies) == 3
    assert len({headers["webhook-id"] for headers in web.headers}) == 1


@pytest.mark.parametrize(("answer", "requests"), [(500, 3), (404, 1), (302, 1)])
def test_what_cannot_be_delivered_is_said_without_the_secret_part_of_the_address(
    tmp_path: Path, answer: int, requests: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="components")
    with web_server(answer) as web:
        outcome = deliver(SAID, settings(web), tmp_path, pause_s=0.01)
    assert f"answered {answer}" in outcome["webhook"]
    assert len(web.bodies) == requests
    assert "s3cr3t" not in caplog.text + str(outcome)
    assert not list(tmp_path.iterdir())  # the next try is not held back


def test_servers_that_are_not_there_do_not_fail_the_night(tmp_path: Path) -> None:
    gone = NotifySettings(
        webhook_url="http://127.0.0.1:9/", mail_to=("ada@example.com",), smtp_host="127.0.0.1", smtp_port=9, attempts=1
    )
    told = tell(ended(tmp_path, "2026-03-01", "PROMOTED"), gone)
    assert set(told.undelivered) == {"webhook", "mail"}
    assert "does not answer" in told.undelivered["webhook"]


def test_a_secret_that_is_not_in_the_environment_is_named_and_nothing_goes_out_unsigned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("STLM_WEBHOOK_SECRET")
    with web_server() as web:
        assert "STLM_WEBHOOK_SECRET is not set" in deliver(SAID, settings(web))["webhook"]
    assert web.bodies == []


def test_the_whole_address_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with web_server() as web:
        monkeypatch.setenv("THE_HOOK", f"http://127.0.0.1:{web.port}/")
        assert deliver(SAID, NotifySettings(webhook_url="env:THE_HOOK", timeout_s=2)) == {"webhook": ""}
    assert len(web.bodies) == 1


def test_the_doctor_names_the_secrets_that_are_missing() -> None:
    login = {"smtp_security": "tls", "smtp_user_env": "TEST_SMTP_USER", "smtp_password_env": "NOT_THERE"}
    whom = NotifySettings(webhook_url="env:THE_HOOK", mail_to=("ada@example.com",), **login)
    assert whom.variables == ("THE_HOOK", "STLM_WEBHOOK_SECRET", "TEST_SMTP_USER", "NOT_THERE")
    with pytest.raises(CheckError, match="not in this environment: THE_HOOK, NOT_THERE"):
        _doctor_secrets(whom)
    assert "every secret is there" in _doctor_secrets(NotifySettings(webhook_url="https://example.com"))


def test_people_get_a_mail_and_only_the_escalation_list_gets_the_escalation(tmp_path: Path) -> None:
    with mail_server() as mail:
        whom = settings(mail=mail, escalate_to=("boss@example.com",))
        for night in ("2026-03-01", "2026-03-02"):
            told = tell(ended(tmp_path, night, "FAILED"), whom, failures=("validate: all black",))
    assert mail.recipients == ["ada@example.com", "ada@example.com", "boss@example.com"]
    assert told.level == "escalation"
    first, second = mail.mails
    assert f"Subject: [STLM] TROUBLE: {KEY.slug} 2026-03-01: FAILED" in first
    assert "Failed: validate: all black" in first
    assert f"Subject: [STLM] ESCALATION: {KEY.slug} 2026-03-02: FAILED" in second
    assert "2 nights in a row failed or were skipped:" in second
    assert "/pages/2026-03-02.html" in second


def _certificate(folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "server.pem"
    pem = serialization.Encoding.PEM
    path.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(pem)
    )
    return path


def test_a_password_goes_only_over_starttls_to_a_server_that_is_who_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    login = {"smtp_security": "starttls", "smtp_user_env": "TEST_SMTP_USER", "smtp_password_env": "TEST_SMTP_PASSWORD"}
    certificate = _certificate(tmp_path)
    with mail_server(certificate=certificate) as mail:
        unknown = deliver(SAID, settings(mail=mail, **login))["mail"]
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert deliver(SAID, settings(mail=mail, **login)) == {"mail": ""}
    assert "SSLCertVerificationError" in unknown
    assert len(mail.logins) == len(mail.mails) == 1
    with mail_server() as plain:
        assert "SMTPNotSupportedError" in deliver(SAID, settings(mail=plain, **login))["mail"]
    assert plain.logins == []
    assert "opensesame" not in caplog.text + unknown
    with pytest.raises(ValueError, match="a password needs smtp_security"):
        NotifySettings(smtp_user_env="A", smtp_password_env="B")


def test_a_mail_server_that_asks_to_come_again_is_asked_again() -> None:
    with mail_server(451, 250) as mail:
        assert deliver(SAID, settings(mail=mail), pause_s=0.01) == {"mail": ""}
    assert len(mail.mails) == 1
    with mail_server(554) as mail:
        assert "answered 554" in deliver(SAID, settings(mail=mail), pause_s=0.01)["mail"]


@pytest.mark.parametrize(
    ("before", "outcome", "level"),
    [
        ([], "PROMOTED", "info"),
        ([], "REJECTED", "info"),
        ([], "ERROR", "trouble"),
        ([], "FAILED", "trouble"),
        ([], "NOTHING NEW", "info"),
        (["FAILED"], "NOTHING NEW", "escalation"),
        (["NOTHING NEW"], "NOTHING NEW", "escalation"),
        (["FAILED", "REJECTED"], "FAILED", "trouble"),
        (["FAILED", "FAILED"], "PROMOTED", "info"),
    ],
)
def test_bad_nights_are_trouble_and_two_in_a_row_are_escalated(
    tmp_path: Path, before: list[str], outcome: str, level: str
) -> None:
    for number, badge in enumerate(before, 1):
        ended(tmp_path, f"2026-03-{number:02d}", badge)
    with web_server() as web:
        assert tell(ended(tmp_path, "2026-03-20", outcome), settings(web)).level == level
    assert json.loads(web.bodies[0])["level"] == level


def test_what_counts_and_how_many_are_settings(tmp_path: Path) -> None:
    with web_server() as web:
        whom = settings(web, only_trouble=True)
        for night in ("2026-03-01", "2026-03-02", "2026-03-03"):
            told = tell(ended(tmp_path, night, "NOTHING NEW"), whom, escalate_after=2, count_nothing_new=False)
            assert (told.level, told.message_id) == ("info", "")
        assert tell(ended(tmp_path, "2026-03-04", "FAILED"), whom, escalate_after=3).level == "escalation"
    assert len(web.bodies) == 1


def test_a_night_that_another_run_kept_from_beginning_and_one_that_was_killed_are_bad(tmp_path: Path) -> None:
    locked = run_of(tmp_path, "2026-03-01")
    write_record(locked, StepRecord(step="collect", outcome="SKIPPED", seconds=0, detail="locked by backfill b"))
    killed = run_of(tmp_path, "2026-03-02")
    write_record(killed, StepRecord(step="collect", outcome="SUCCEEDED", seconds=0, outputs={"batch": None}))
    with web_server() as web:
        assert tell(locked, settings(web)).outcome == "LOCKED"
        told = tell(killed, settings(web))
    assert (told.outcome, told.level) == ("UNFINISHED", "escalation")
    assert json.loads(web.bodies[1])["bad_nights"] == ["2026-03-01: LOCKED", "2026-03-02: UNFINISHED"]
    assert "locked by backfill b" in json.loads(web.bodies[0])["sentence"]


def test_a_failed_step_outranks_the_page(tmp_path: Path) -> None:
    run = ended(tmp_path, "2026-03-01", "PROMOTED")
    with web_server() as web:
        told = tell(run, settings(web), failures=("report: MLflow does not answer",))
    assert (told.outcome, told.level) == ("FAILED", "trouble")


def test_a_mail_is_readable() -> None:
    message = replace(SAID, figures={"images_taken": 7, "pro": None}, page="/p.html")
    assert text_of(message) == "Hi.\n\nChampion: version 3\n\nimages_taken: 7\npro: undefined\n\nPage: /p.html\n"


def watched(run: RunRef, whom: NotifySettings) -> Any:
    mlflow = mlflow_of(run)
    return watch(DeadlineInputs(run=run, deadline="05:30 UTC", mlflow=mlflow, settings=whom))


def test_a_night_that_is_not_trained_at_the_deadline_is_told_once(tmp_path: Path) -> None:
    run = run_of(tmp_path, "2026-03-01")
    write_record(run, StepRecord(step="validate", outcome="SUCCEEDED", seconds=1))
    with web_server() as web:
        first, second = watched(run, settings(web)), watched(run, settings(web))
        write_record(run, StepRecord(step="evaluate", outcome="FAILED", seconds=1))
        assert watched(run, settings(web)).outcome == "LATE"
    assert first == second
    (body,) = web.bodies
    said = json.loads(body)
    assert (said["kind"], said["level"], said["outcome"]) == ("deadline", "trouble", "LATE")
    assert "Training was not done by 05:30 UTC: validate is done" in said["sentence"]


def test_a_night_that_is_trained_or_has_ended_is_not_late(tmp_path: Path) -> None:
    trained = run_of(tmp_path, "2026-03-01")
    write_record(trained, StepRecord(step="fine_tune", outcome="SUCCEEDED", seconds=1))
    with web_server() as web:
        assert watched(trained, settings(web)).outcome == "IN_TIME"
        assert watched(ended(tmp_path, "2026-03-02", "NOTHING NEW"), settings(web)).outcome == "ENDED"
    assert web.bodies == []


def test_nights_that_never_begin_are_found_and_escalated(tmp_path: Path) -> None:
    with web_server() as web:
        for night in ("2026-03-01", "2026-03-02"):
            assert watched(run_of(tmp_path, night), settings(web)).outcome == "LATE"
        told = tell(ended(tmp_path, "2026-03-03", "FAILED"), settings(web))
    said = [json.loads(body) for body in web.bodies]
    assert [message["level"] for message in said] == ["trouble", "escalation", "escalation"]
    assert said[2]["bad_nights"] == ["2026-03-01: NOT BEGUN", "2026-03-02: NOT BEGUN", "2026-03-03: FAILED"]
    assert told.level == "escalation"
