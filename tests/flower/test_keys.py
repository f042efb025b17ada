"""The scripts that make keys and certificates, with the openssl and ssh-keygen of this machine."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from .federation import ROOT

SCRIPTS = ROOT / "deploy"


def script(folder: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [SCRIPTS / name, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, umask=0)


def made(folder: Path, name: str, *arguments: str) -> None:
    done = script(folder, name, *arguments)
    assert done.returncode == 0, done.stderr


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def names(path: Path) -> list[str]:
    extension = certificate(path).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return [str(name.value) for name in extension.value]


def is_good_for(keys: Path, host: str) -> bool:
    """Strict verification of the chain and the name, by openssl."""
    what = ["-verify_ip" if host[0].isdigit() else "-verify_hostname", host]
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", *what]
    command += ["-CAfile", keys / "ca.pem", keys / "server.pem"]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.parametrize("host", ["fed.example.org", "192.0.2.7", "2001:db8::7"])
def test_the_server_gets_a_certificate_for_its_host_of_at_most_397_days(tmp_path, host):
    made(tmp_path, "keys.sh", host)
    keys = tmp_path / "keys"
    ca, server = certificate(keys / "ca.pem"), certificate(keys / "server.pem")
    now = datetime.now(UTC)
    assert server.not_valid_after_utc - server.not_valid_before_utc <= timedelta(days=397)
    assert server.not_valid_after_utc > now + timedelta(days=396)
    assert ca.not_valid_after_utc > now + timedelta(days=3600)
    constraints = ca.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value.ca
    assert constraints.value.path_length == 0
    for one in (ca, server):
        assert isinstance(one.public_key(), EllipticCurvePublicKey)
    assert names(keys / "server.pem") == [host, "localhost", "127.0.0.1"]
    assert is_good_for(keys, host)
    assert is_good_for(keys, "localhost")
    assert not is_good_for(keys, "other.example.org")
    assert sorted(path.name for path in keys.iterdir()) == [
        "ca.key", "ca.pem", "server.key", "server.pem",
    ]  # fmt: skip
    assert keys.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in keys.iterdir()} == {0o600}


def test_a_certificate_is_kept_for_its_host_and_refused_for_another(tmp_path):
    made(tmp_path, "keys.sh", "fed.example.org")
    keys = tmp_path / "keys"
    before = {path: path.read_bytes() for path in keys.iterdir()}
    made(tmp_path, "keys.sh", "fed.example.org")
    done = script(tmp_path, "keys.sh", "new.example.org")
    assert done.returncode == 1
    assert "renew.sh new.example.org" in done.stderr
    assert {path: path.read_bytes() for path in keys.iterdir()} == before
    made(tmp_path, "renew.sh", "new.example.org")
    made(tmp_path, "keys.sh", "new.example.org")
    assert is_good_for(keys, "new.example.org")
    assert not is_good_for(keys, "fed.example.org")


def test_renewing_keeps_the_authority_and_makes_a_new_key(tmp_path):
    made(tmp_path, "keys.sh", "192.0.2.7")
    keys = tmp_path / "keys"
    before = {path.name: path.read_bytes() for path in keys.iterdir()}
    made(tmp_path, "renew.sh", "192.0.2.7")
    after = {path.name: path.read_bytes() for path in keys.iterdir()}
    assert {name for name in after if after[name] != before[name]} == {"server.key", "server.pem"}
    assert after.keys() == before.keys()
    assert is_good_for(keys, "192.0.2.7")
    assert ip_address("192.0.2.7") in [
        name.value
        for name in certificate(keys / "server.pem").extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        ).value
    ]  # fmt: skip
    (keys / "ca.key").rename(tmp_path / "offline")
    done = script(tmp_path, "renew.sh", "192.0.2.7")
    assert done.returncode == 1
    assert "ca.key" in done.stderr
    assert (keys / "server.pem").read_bytes() == after["server.pem"]
    made(tmp_path, "keys.sh", "192.0.2.7")  # needs no authority as long as nothing is made


def test_keys_say_when_the_certificate_ends_soon(tmp_path):
    made(tmp_path, "keys.sh", "fed.example.org")
    assert "renew" not in script(tmp_path, "keys.sh", "fed.example.org").stdout
    keys = tmp_path / "keys"
    subprocess.run(
        ["openssl", "req", "-x509", "-key", keys / "server.key", "-subj", "/CN=x", "-days", "29",
         "-addext", "subjectAltName=DNS:fed.example.org", "-out", keys / "server.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    assert "renew.sh fed.example.org" in script(tmp_path, "keys.sh", "fed.example.org").stdout


def test_a_site_makes_its_own_key_and_shows_its_fingerprint(tmp_path):
    made(tmp_path, "site-key.sh", "site0")
    keys = tmp_path / "keys"
    private, public = keys / "site0", keys / "site0.pub"
    key = load_ssh_private_key(private.read_bytes(), password=None)
    assert getattr(key, "curve").name == "secp384r1"  # noqa: B009
    assert private.stat().st_mode & 0o777 == 0o600
    before = private.read_bytes()
    shown = script(tmp_path, "site-key.sh", "site0").stdout
    assert private.read_bytes() == before
    asked = ["ssh-keygen", "-l", "-f", public]
    assert shown == subprocess.run(asked, capture_output=True, text=True).stdout


@pytest.mark.parametrize("name", ["keys.sh", "renew.sh", "site-key.sh"])
def test_another_number_of_arguments_is_refused(tmp_path, name):
    for arguments in ([], ["a", "b"]):
        assert script(tmp_path, name, *arguments).returncode == 2
    assert list(tmp_path.iterdir()) == []
