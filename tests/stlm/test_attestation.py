"""The word of a key for a package, verified with nothing but the public key."""

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from stlm.errors import WeightsError
from stlm.serving.attestation import attest, key_id, public_pem, read_public_key, verified_statement

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
DIGEST = "a" * 64


def _envelope(key: Ed25519PrivateKey = KEY, digest: str = DIGEST) -> bytes:
    return attest(key, name="stlm.tiles", digest=digest, predicate_type="urn:test", predicate={"candidate": "c1"})


def _trusted(key: Ed25519PrivateKey = KEY) -> tuple[Ed25519PublicKey, ...]:
    return (read_public_key(public_pem(key.public_key())),)


def test_what_was_said_is_read_again_and_said_in_the_same_bytes_every_time() -> None:
    statement = verified_statement(_envelope(), _trusted(), digest=DIGEST)

    assert statement["predicate"] == {"candidate": "c1"}
    assert statement["subject"] == [{"name": "stlm.tiles", "digest": {"sha256": DIGEST}}]
    assert _envelope() == _envelope()


def test_the_signature_is_over_the_published_encoding() -> None:
    envelope = json.loads(_envelope())
    payload = base64.b64decode(envelope["payload"])
    signed = b"DSSEv1 28 application/vnd.in-toto+json " + str(len(payload)).encode() + b" " + payload
    (signature,) = envelope["signatures"]

    KEY.public_key().verify(base64.b64decode(signature["sig"]), signed)
    assert signature["keyid"] == key_id(KEY.public_key())


def test_no_flipped_bit_of_the_envelope_passes() -> None:
    whole = _envelope()
    expected = verified_statement(whole, _trusted(), digest=DIGEST)
    passed = []
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1
        try:
            if verified_statement(bytes(flipped), _trusted(), digest=DIGEST) != expected:
                passed.append(position)
        except WeightsError:
            continue
    assert passed == []


def test_another_key_another_package_and_nobodys_word_are_refused() -> None:
    other = Ed25519PrivateKey.from_private_bytes(bytes(32))
    with pytest.raises(WeightsError, match="no trusted key has signed it"):
        verified_statement(_envelope(other), _trusted(), digest=DIGEST)
    with pytest.raises(WeightsError, match="no trusted key has signed it: none"):
        verified_statement(_envelope(), (), digest=DIGEST)
    with pytest.raises(WeightsError, match=r"about package a+, not about b+"):
        verified_statement(_envelope(), _trusted(), digest="b" * 64)
    # A name for a key that is not its own proves nothing.
    borrowed = json.loads(_envelope(other))
    borrowed["signatures"][0]["keyid"] = key_id(KEY.public_key())
    with pytest.raises(WeightsError, match="no trusted key has signed it"):
        verified_statement(json.dumps(borrowed).encode(), _trusted(), digest=DIGEST)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"payload": 1, "signatures": [], "payloadType": "x"}', b"\xff"]
)
def test_what_is_no_envelope_is_named(content: bytes) -> None:
    with pytest.raises(WeightsError, match="attestation"):
        verified_statement(content, _trusted(), digest=DIGEST)


def test_what_is_no_ed25519_key_is_named() -> None:
    with pytest.raises(WeightsError, match="not a public key in PEM"):
        read_public_key(b"-----BEGIN nothing")
