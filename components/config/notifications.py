"""Settings of notifications: what operators are told, when and how; secrets are named here, never written."""

import re
from dataclasses import dataclass
from typing import Literal

from components.config.checks import check, check_at_least

__all__ = ["AlertSettings", "NotifySettings"]

_CLOCK = re.compile(r"([01]\d|2[0-3]):[0-5]\d")
_ADDRESS = re.compile(r"[^@\s<>,;]+@[^@\s<>,;]+")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class AlertSettings:
    """When a night is trouble."""

    training_deadline: str = ""
    """``HH:MM`` in the schedule's timezone: training that is not done by then is told; empty: nobody watches."""
    escalate_after: int = 2
    """So many failed or skipped nights in a row go to ``notify.escalate_to`` as well."""
    count_nothing_new: bool = True
    """Whether a night without any new image counts as skipped."""

    def __post_init__(self) -> None:
        deadline = self.training_deadline
        check(not deadline or bool(_CLOCK.fullmatch(deadline)), f"training_deadline must be HH:MM, got {deadline!r}")
        check(self.escalate_after >= 1, f"escalate_after must be at least 1, got {self.escalate_after}")


@dataclass(frozen=True, kw_only=True, slots=True)
class NotifySettings:
    """Whom to tell how a night ended: a webhook, people by mail, both, or nobody."""

    only_trouble: bool = False
    """Whether nights that went well are not told."""
    webhook_url: str = ""
    """Gets a signed POST of JSON; ``env:NAME`` takes a secret address from an environment variable; empty: none."""
    webhook_secret_env: str = "STLM_WEBHOOK_SECRET"
    """Environment variable with the secret of the signature; empty: unsigned."""
    mail_to: tuple[str, ...] = ()
    """Empty: no mail."""
    escalate_to: tuple[str, ...] = ()
    """Who gets a mail as well when it is escalated."""
    mail_from: str = "stlm@localhost"
    smtp_host: str = "localhost"
    smtp_port: int = 25
    smtp_security: Literal["none", "starttls", "tls"] = "none"
    smtp_user_env: str = ""
    """Environment variables with user and password; empty: no login."""
    smtp_password_env: str = ""
    timeout_s: float = 10.0
    attempts: int = 3
    """How often a delivery is tried; one that fails for good is logged, and the night goes on."""

    @property
    def is_on(self) -> bool:
        """Whether there is anybody to tell."""
        return bool(self.webhook_url or self.mail_to or self.escalate_to)

    @property
    def variables(self) -> tuple[str, ...]:
        """Environment variables that must be there for what is set."""
        hook = (self.webhook_url.partition("env:")[2], self.webhook_secret_env) if self.webhook_url else ()
        mail = (self.smtp_user_env, self.smtp_password_env) if self.mail_to or self.escalate_to else ()
        return tuple(name for name in (*hook, *mail) if name)

    def __post_init__(self) -> None:
        url = self.webhook_url
        check(
            not url or url.startswith(("https://", "http://", "env:")),
            f"webhook_url must be https://…, http://… or env:NAME, got {url.partition(':')[0]!r}: …",
        )
        for address in (*self.mail_to, *self.escalate_to, self.mail_from):
            check(bool(_ADDRESS.fullmatch(address)), f"expected a mail address like ada@example.com, got {address!r}")
        for name in (self.webhook_secret_env, self.smtp_user_env, self.smtp_password_env, url.partition("env:")[2]):
            check(not name or bool(_VARIABLE.fullmatch(name)), "expected the name of an environment variable")
        check(
            bool(self.smtp_user_env) == bool(self.smtp_password_env),
            "smtp_user_env and smtp_password_env go together",
        )
        check(not self.smtp_user_env or self.smtp_security != "none", "a password needs smtp_security starttls or tls")
        check(self.timeout_s > 0, f"timeout_s must be positive, got {self.timeout_s}")
        check_at_least(self, 1, "attempts")
        check(1 <= self.smtp_port <= 65535, f"smtp_port must be within [1, 65535], got {self.smtp_port}")
