"""Delivery of a message: once per channel, tried again where that may help, never at the cost of a night."""

import datetime as dt
import logging
import time
from collections.abc import Callable
from pathlib import Path

from components.adapters.env_secrets import read_secret
from components.adapters.smtp import send_mail
from components.adapters.webhook import post_signed
from components.config import NotifySettings
from components.core.atomic_files import write_json
from components.core.contracts import canonical_json
from components.core.errors import InputError, TransientError
from components.notifications.messages import Message, subject_of, text_of

__all__ = ["deliver"]

logger = logging.getLogger(__name__)

_PAUSE_S = 2.0


def deliver(
    message: Message, settings: NotifySettings, sent_dir: Path | None = None, *, pause_s: float = _PAUSE_S
) -> dict[str, str]:
    """Send a message by every channel that is set; what went wrong is logged and returned.

    Args:
        message: What to say.
        settings: Whom to tell.
        sent_dir: Remembers which channel has had the message; ``None`` sends it in any case.
        pause_s: Wait before the second attempt; doubles with each further one.

    Returns:
        Channel -> what went wrong, empty where it was delivered, now or before.
    """
    outcome: dict[str, str] = {}
    for channel, send in _channels(message, settings).items():
        sent = None if sent_dir is None else sent_dir / f"{message.id}.{channel}.json"
        if sent is not None and sent.exists():
            outcome[channel] = ""
            continue
        outcome[channel] = _attempt(send, attempts=settings.attempts, pause_s=pause_s)
        if outcome[channel]:
            logger.error("message=%s channel=%s is lost: %s", message.id, channel, outcome[channel])
        else:
            logger.info("message=%s channel=%s delivered", message.id, channel)
            if sent is not None:
                write_json(sent, message)
    return outcome


def _attempt(send: Callable[[], None], *, attempts: int, pause_s: float) -> str:
    for attempt in range(1, attempts + 1):
        try:
            send()
        except InputError as error:
            return str(error)
        except TransientError as error:
            if attempt == attempts:
                return f"{error}, at the last of {attempts} attempts"
            logger.warning("attempt %d of %d: %s", attempt, attempts, error)
            time.sleep(pause_s * 2 ** (attempt - 1))
        else:
            return ""
    return ""


def _channels(message: Message, settings: NotifySettings) -> dict[str, Callable[[], None]]:
    channels: dict[str, Callable[[], None]] = {}
    recipients = settings.mail_to
    if message.level == "escalation":
        recipients = tuple(dict.fromkeys((*recipients, *settings.escalate_to)))
    if settings.webhook_url:
        channels["webhook"] = lambda: _post(message, settings)
    if recipients:
        channels["mail"] = lambda: _mail(message, settings, recipients)
    return channels


def _post(message: Message, settings: NotifySettings) -> None:
    url = settings.webhook_url
    if url.startswith("env:"):
        url = read_secret(url.removeprefix("env:"))
    post_signed(
        url,
        canonical_json(message.to_json() | {"id": message.id}).encode(),
        delivery=message.id,
        secret=read_secret(settings.webhook_secret_env) if settings.webhook_secret_env else "",
        at=dt.datetime.now(dt.UTC),  # receivers refuse a signature of long ago; nothing else depends on it
        timeout_s=settings.timeout_s,
    )


def _mail(message: Message, settings: NotifySettings, recipients: tuple[str, ...]) -> None:
    login = None
    if settings.smtp_user_env:
        login = (read_secret(settings.smtp_user_env), read_secret(settings.smtp_password_env))
    send_mail(
        subject_of(message),
        text_of(message),
        sender=settings.mail_from,
        recipients=recipients,
        delivery=message.id,
        host=settings.smtp_host,
        port=settings.smtp_port,
        security=settings.smtp_security,
        login=login,
        timeout_s=settings.timeout_s,
    )
