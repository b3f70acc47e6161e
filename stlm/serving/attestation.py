"""Who vouches for a package: an in-toto statement in a DSSE envelope, signed with Ed25519, verified offline.

The statement names the package by its digest, which covers every byte of every file (``package.py``). Whoever holds
the public key can tell, without a network or a registry, that the package is one that the holder of the private key
let in. Formats: in-toto Attestation Framework, Statement v1; Dead Simple Signing Envelope v1.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from stlm.errors import WeightsError

__all__ = ["ATTESTATION_FILE", "attest", "key_id", "public_pem", "read_public_key", "verified_statement"]

ATTESTATION_FILE = "attestation.json"

_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"


def attest(
    private_key: Ed25519PrivateKey, *, name: str, digest: str, predicate_type: str, predicate: Mapping[str, Any]
) -> bytes:
    """Sign a statement about a package.

    Args:
        private_key: Whose word it is.
        name: What the package is called.
        digest: The package's digest, hex.
        predicate_type: URI that says what the predicate means.
        predicate: What is said of it; JSON.

    Returns:
        The envelope; the same arguments give the same bytes.
    """
    statement = {
        "_type": _STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": digest}}],
        "predicateType": predicate_type,
        "predicate": dict(predicate),
    }
    payload = json.dumps(statement, sort_keys=True, separators=(",", ":")).encode()
    signature = {"keyid": key_id(private_key.public_key()), "sig": _text(private_key.sign(_to_sign(payload)))}
    envelope = {"payloadType": _PAYLOAD_TYPE, "payload": _text(payload), "signatures": [signature]}
    return json.dumps(envelope, sort_keys=True, indent=1).encode()


def verified_statement(envelope: bytes, trusted: Sequence[Ed25519PublicKey], *, digest: str) -> dict[str, Any]:
    """Read an envelope and check that a trusted key signed it, about this very package.

    Args:
        envelope: As :func:`attest` gives it.
        trusted: Keys whose word counts.
        digest: The digest of the package at hand, from ``verify_package``.

    Returns:
        The statement.

    Raises:
        WeightsError: It cannot be read, no trusted key signed it, or it is about another package.
    """
    try:
        parsed = json.loads(envelope)
        payload = base64.b64decode(parsed["payload"], validate=True)
        signed = [(str(each["keyid"]), base64.b64decode(each["sig"], validate=True)) for each in parsed["signatures"]]
        kind = parsed["payloadType"]
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise WeightsError(f"the attestation cannot be read: {error!r}") from error
    if kind != _PAYLOAD_TYPE:
        raise WeightsError(f"the attestation holds {kind!r}, expected {_PAYLOAD_TYPE!r}")
    if not any(_is_by(key, signature, payload) for key in trusted for _, signature in signed):
        known = ", ".join(key_id(key)[:16] for key in trusted) or "none"
        names = ", ".join(name[:16] for name, _ in signed) or "nobody"
        raise WeightsError(f"the attestation is signed by {names}, and no trusted key has signed it: {known}")
    statement: dict[str, Any] = json.loads(payload)
    subjects = [subject["digest"].get("sha256") for subject in statement["subject"]]
    if digest not in subjects:
        raise WeightsError(f"the attestation is about package {', '.join(map(str, subjects))}, not about {digest}")
    return statement


def key_id(key: Ed25519PublicKey) -> str:
    """Hex sha256 of the key's DER form."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def public_pem(key: Ed25519PublicKey) -> bytes:
    """The key as a PEM file."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def read_public_key(pem: bytes) -> Ed25519PublicKey:
    """Read a PEM file.

    Args:
        pem: Its content.

    Returns:
        The key.

    Raises:
        WeightsError: It is no public Ed25519 key.
    """
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise WeightsError(f"not a public key in PEM: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise WeightsError(f"expected an Ed25519 public key, got {type(key).__name__}")
    return key


def _is_by(key: Ed25519PublicKey, signature: bytes, payload: bytes) -> bool:
    try:
        key.verify(signature, _to_sign(payload))
    except InvalidSignature:
        return False
    return True


def _to_sign(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding."""
    kind = _PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
