"""How a site reaches a SuperLink: address, certificate and key."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.supercore.primitives.asymmetric import (
    bytes_to_private_key,
    generate_key_pairs,
    private_key_to_bytes,
)

from hiso.errors import SettingsError


@dataclass(frozen=True)
class Access:
    """How to reach a SuperLink, and as whom.

    Attributes:
        address: HOST:PORT.
        ca: File of the certificate to trust; None for a connection without TLS.
        key: File of the site's private key, as `ssh-keygen -t ecdsa` makes it; None to make a key
            and to register it, which only a SuperLink without registered keys allows.
    """

    address: str
    ca: Path | None
    key: Path | None

    def load_certificate(self) -> bytes | None:
        """The content of `ca`.

        Raises:
            SettingsError: It cannot be read, or is no certificate.
        """
        if self.ca is None:
            return None
        try:
            data = self.ca.expanduser().read_bytes()
            ssl.create_default_context(cadata=data.decode("ascii"))
        except (OSError, ValueError, ssl.SSLError) as error:
            raise SettingsError(
                f"--ca {self.ca} is no certificate in PEM format: {error}"
            ) from error
        return data

    def load_key(self, folder: Path) -> ec.EllipticCurvePrivateKey:
        """The site's key; without `key`, the one of `node.key` in the folder, made if need be.

        Raises:
            SettingsError: It cannot be read, or is no private key of the right kind.
        """
        own = folder / "node.key"
        try:
            if self.key is not None:
                key = load_ssh_private_key(self.key.expanduser().read_bytes(), None)
                if not isinstance(key, ec.EllipticCurvePrivateKey):
                    raise ValueError("it is of another kind")
                return key
            if not own.exists():
                own.write_bytes(private_key_to_bytes(generate_key_pairs()[0]))
            return bytes_to_private_key(own.read_bytes())
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            wanted = "as `ssh-keygen -t ecdsa -b 384` makes it, without a passphrase"
            raise SettingsError(f"{self.key or own} is no private key {wanted}: {error}") from error
