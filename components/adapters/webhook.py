"""Webhook client: a signed POST of JSON, after Standard Webhooks, for which receivers find ready libraries.

The headers ``webhook-id``, ``webhook-timestamp`` and ``webhook-signature`` go with the body; the signature is
``v1,`` and the base64 of HMAC-SHA256 over ``<id>.<timestamp>.<body>``. Neither address nor secret is ever logged.
"""

import base64
import binascii
import datetime as dt
import hashlib
import hmac
from urllib.parse import urlsplit

import requests

from components.core.errors import InputError, TransientError

__all__ = ["post_signed"]

_PREFIX = "whsec_"
_WORTH_ANOTHER_TRY = {408, 425, 429}


def post_signed(url: str, body: bytes, *, delivery: str, secret: str, at: dt.datetime, timeout_s: float) -> None:
    """Deliver once.

    Args:
        url: Where; redirects are not followed.
        body: JSON.
        delivery: The delivery's id, the same at each attempt.
        secret: Of the signature; a ``whsec_…`` one is base64. Empty: unsigned.
        at: The time of the attempt.
        timeout_s: For connecting, and for each wait for the answer.

    Raises:
        InputError: The receiver does not want it, or the secret is no secret; another try would end alike.
        TransientError: It does not answer, or asks to come again.
    """
    host = urlsplit(url).hostname  # the rest of the address may be a secret
    stamp = str(int(at.timestamp()))
    headers = {"Content-Type": "application/json", "webhook-id": delivery, "webhook-timestamp": stamp}
    if secret:
        signed = hmac.new(_key(secret), f"{delivery}.{stamp}.".encode() + body, hashlib.sha256).digest()
        headers["webhook-signature"] = f"v1,{base64.b64encode(signed).decode()}"
    try:
        with requests.post(
            url, data=body, headers=headers, timeout=timeout_s, allow_redirects=False, stream=True
        ) as answer:
            status = answer.status_code
    except (requests.ConnectionError, requests.Timeout) as error:
        raise TransientError(f"webhook at {host} does not answer ({type(error).__name__})") from None
    except requests.RequestException as error:
        raise InputError(f"webhook at {host}: {type(error).__name__}") from None
    if status >= 500 or status in _WORTH_ANOTHER_TRY:
        raise TransientError(f"webhook at {host} answered {status}")
    if not 200 <= status < 300:
        raise InputError(f"webhook at {host} answered {status}")


def _key(secret: str) -> bytes:
    if not secret.startswith(_PREFIX):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except binascii.Error:
        raise InputError(f"the webhook's secret begins with {_PREFIX}, but what follows is not base64") from None
