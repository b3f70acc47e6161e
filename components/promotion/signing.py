"""Signing: the key that vouches for what an installation lets in, and the keys whose word counts.

Without a key of its own an installation makes one on first use, below ``work_dir``: whoever can write there can sign.
A key from a secret store keeps the two apart.
"""

import contextlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from components.config import PromoteSettings
from components.core.errors import InputError
from stlm.errors import WeightsError
from stlm.serving.attestation import public_pem, read_public_key

__all__ = ["Signing"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Signing:
    """Where the keys are; they are read when they are needed."""

    work_dir: str
    settings: PromoteSettings

    @property
    def private_path(self) -> Path:
        """PEM file of the private key."""
        return Path(self.settings.signing_key or Path(self.work_dir) / "keys" / "signing.pem")

    def private_key(self) -> Ed25519PrivateKey:
        """The key to sign with; made where none is configured and none is there yet.

        Returns:
            The key.

        Raises:
            InputError: The file cannot be read, or is no private Ed25519 key.
        """
        path = self.private_path
        if not self.settings.signing_key and not path.exists():
            _make(path)
        try:
            key = load_pem_private_key(path.read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"signing key {path} cannot be read: {error}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise InputError(f"signing key {path}: expected an Ed25519 private key, got {type(key).__name__}")
        public = path.with_suffix(".pub.pem")
        if not self.settings.signing_key and not public.exists():
            public.write_bytes(public_pem(key.public_key()))  # for those who verify elsewhere
        return key

    def trusted(self) -> tuple[Ed25519PublicKey, ...]:
        """The keys whose word counts: those of the settings, or else the installation's own.

        Returns:
            At least one key.

        Raises:
            InputError: A file cannot be read, or holds no public Ed25519 key.
        """
        if not self.settings.trusted_keys:
            return (self.private_key().public_key(),)
        keys = []
        for path in self.settings.trusted_keys:
            try:
                keys.append(read_public_key(Path(path).read_bytes()))
            except (OSError, WeightsError) as error:
                raise InputError(f"trusted key {path} cannot be read: {error}") from error
        return tuple(keys)


def _make(path: Path) -> None:
    """Write a new pair; of several processes that do so at once, the first one's stays."""
    key = Ed25519PrivateKey.generate()
    path.parent.mkdir(parents=True, exist_ok=True)
    content = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".signing-")  # readable by its owner alone
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        Path(temporary).unlink()
