"""SMTP client: one plain-text mail."""

import contextlib
import smtplib
import ssl
from collections.abc import Sequence
from email.message import EmailMessage
from typing import Literal

from components.core.errors import InputError, TransientError

__all__ = ["send_mail"]


def send_mail(
    subject: str,
    text: str,
    *,
    sender: str,
    recipients: Sequence[str],
    delivery: str,
    host: str,
    port: int,
    security: Literal["none", "starttls", "tls"],
    login: tuple[str, str] | None,
    timeout_s: float,
) -> None:
    """Hand a mail to a server, once.

    Args:
        subject: One line.
        text: The body.
        sender: Address.
        recipients: Addresses, at least one.
        delivery: Becomes the message id, so that a mail that came twice can be told.
        host: The SMTP server.
        port: Its port.
        security: Plain, upgraded by STARTTLS, or TLS from the start; certificates are checked.
        login: User and password, for servers that want them.
        timeout_s: For each wait for the server.

    Raises:
        InputError: The server does not want it; another try would end alike.
        TransientError: It does not answer, or asks to come again.
    """
    mail = EmailMessage()
    mail["Subject"], mail["From"], mail["To"] = subject, sender, ", ".join(recipients)
    mail["Message-ID"] = f"<{delivery}@{sender.partition('@')[2]}>"
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(text)
    where = f"mail server {host}:{port}"
    try:
        server = _connect(host, port, security, timeout_s)
        try:
            if login is not None:
                server.login(*login)
            refused = server.send_message(mail)
        finally:
            # What happens after the mail was taken, or refused, changes nothing about it.
            with contextlib.suppress(OSError, smtplib.SMTPException):
                server.quit()
            server.close()
    except smtplib.SMTPResponseException as error:
        # The server's words may quote what it was told, the password included.
        kind = TransientError if 400 <= error.smtp_code < 500 else InputError
        raise kind(f"{where} answered {error.smtp_code} ({type(error).__name__})") from None
    except (smtplib.SMTPRecipientsRefused, smtplib.SMTPNotSupportedError, ssl.SSLCertVerificationError) as error:
        raise InputError(f"{where}: {type(error).__name__}") from None
    except (OSError, smtplib.SMTPException) as error:
        raise TransientError(f"{where} does not answer ({type(error).__name__})") from None
    if refused:
        raise InputError(f"{where} refused {len(refused)} of {len(recipients)} recipients; the others have it")


def _connect(host: str, port: int, security: str, timeout_s: float) -> smtplib.SMTP:
    context = ssl.create_default_context()
    if security == "tls":
        return smtplib.SMTP_SSL(host, port, timeout=timeout_s, context=context)
    server = smtplib.SMTP(host, port, timeout=timeout_s)
    if security == "starttls":
        try:
            server.starttls(context=context)
        except BaseException:
            server.close()
            raise
    return server
