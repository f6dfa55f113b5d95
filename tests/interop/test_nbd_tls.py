# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""TLS with clients that use GnuTLS: certificates made by certtool, keys made by psktool."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from require import requires

if TYPE_CHECKING:
    from pathlib import Path

SERVE = [sys.executable, "-m", "vmdkit.cli.main", "serve", "--raw"]
CA = 'cn = "test CA"\nca\ncert_signing_key\nexpiration_days = 2\n'
SERVER = 'cn = "localhost"\ndns_name = "localhost"\nip_address = "127.0.0.1"\ntls_www_server\nsigning_key\n'
CLIENT = 'cn = "a client"\ntls_www_client\nsigning_key\n'


def run(*command: str) -> subprocess.CompletedProcess[str]:
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in told.stderr
    return told


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA, a server and a client, in the layout of libnbd and qemu."""
    requires("certtool")
    at = tmp_path_factory.mktemp("pki")

    def tool(*arguments: str) -> None:
        subprocess.run(["certtool", *arguments], cwd=at, check=True, capture_output=True, timeout=60)

    for name, text in (("ca", CA), ("server", SERVER), ("client", CLIENT)):
        (at / f"{name}.info").write_text(text)
        tool("--generate-privkey", "--ecc", "--outfile", f"{name}-key.pem")
        how = ["--generate-self-signed"] if name == "ca" else [
            "--generate-certificate", "--load-ca-certificate", "ca-cert.pem", "--load-ca-privkey", "ca-key.pem",
        ]  # fmt: skip
        tool(*how, "--load-privkey", f"{name}-key.pem", "--template", f"{name}.info", "--outfile", f"{name}-cert.pem")
    return at


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    requires("psktool")
    path = tmp_path_factory.mktemp("psk") / "keys.psk"
    subprocess.run(["psktool", "-u", "alice", "-p", str(path)], check=True, capture_output=True, timeout=60)
    return path


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        for number in range(4000):
            file.write(number.to_bytes(4, "big") * 512)
    return path


def test_certificates(tmp_path: Path, disk: Path, certificates: Path) -> None:
    requires("nbdinfo", "nbdcopy")
    copy = tmp_path / "copy"
    client = f"nbds://localhost:$port/?tls-certificates={certificates}"
    script = f'set -e; case "$uri" in nbds://*) ;; *) exit 9;; esac; nbdinfo --size "{client}"; '
    script += f'nbdcopy "{client}" {copy}; nbdcopy --connections=4 --no-extents "{client}" {copy}'
    told = run(*SERVE, "-p", "0", "--tls-certificates", str(certificates), str(disk), "--run", script)
    assert told.returncode == 0, told.stderr
    assert told.stdout.strip() == str(disk.stat().st_size)
    assert copy.read_bytes() == disk.read_bytes()


def test_client_certificates(disk: Path, certificates: Path, tmp_path: Path) -> None:
    requires("nbdinfo")
    known, stranger = certificates, tmp_path / "stranger"
    stranger.mkdir()
    (stranger / "ca-cert.pem").write_bytes((certificates / "ca-cert.pem").read_bytes())
    options = ["-p", "0", "--tls-certificates", str(certificates), "--tls-verify-peer", str(disk), "--run"]
    uri = "nbds://localhost:$port/?tls-certificates="
    assert run(*SERVE, *options, f'nbdinfo --size "{uri}{known}"').returncode == 0
    assert run(*SERVE, *options, f'nbdinfo --size "{uri}{stranger}"').returncode == 1


def test_psk(tmp_path: Path, disk: Path, keys: Path) -> None:
    requires("nbdinfo", "nbdcopy")
    copy = tmp_path / "copy"
    uri = f"nbds+unix://alice@/?socket=$unixsocket&tls-psk-file={keys}"
    script = f'set -e; nbdinfo "{uri}" | head -1; nbdcopy "{uri}" {copy}'
    told = run(*SERVE, "-U", "-", "--tls-psk", str(keys), str(disk), "--run", script)
    assert told.returncode == 0, told.stderr
    assert "using TLS" in told.stdout or "with TLS" in told.stdout
    assert copy.read_bytes() == disk.read_bytes()


def test_psk_qemu(disk: Path, keys: Path) -> None:
    requires("qemu-img")
    creds = f"tls-creds-psk,id=t,endpoint=client,username=alice,dir={keys.parent}"
    image = "driver=nbd,server.type=unix,server.path=$unixsocket,tls-creds=t"
    script = f"qemu-img compare --object {creds} --image-opts {image} driver=raw,file.filename={disk}"
    told = run(*SERVE, "-U", "-", "--tls-psk", str(keys), str(disk), "--run", script)
    assert told.returncode == 0, told.stderr


def test_psk_of_somebody_else(disk: Path, keys: Path, tmp_path: Path) -> None:
    requires("nbdinfo")
    wrong = tmp_path / "wrong.psk"
    wrong.write_text("alice:" + "00" * 32 + "\nmallory:" + "11" * 32 + "\n")
    for user in ("alice", "mallory"):
        uri = f"nbds+unix://{user}@/?socket=$unixsocket&tls-psk-file={wrong}"
        told = run(*SERVE, "-U", "-", "--tls-psk", str(keys), str(disk), "--run", f'nbdinfo --size "{uri}"')
        assert told.returncode == 1
        assert told.stdout == ""


def test_plain_clients_are_refused(disk: Path, keys: Path) -> None:
    requires("nbdinfo", "qemu-img")
    uri = "nbd+unix:///?socket=$unixsocket"
    for command in ("nbdinfo --size", "nbdinfo --list", "qemu-img info"):
        told = run(*SERVE, "-U", "-", "--tls-psk", str(keys), str(disk), "--run", f'{command} "{uri}"')
        assert told.returncode == 1
        assert told.stdout == ""


def test_tls_by_choice(disk: Path, keys: Path) -> None:
    requires("nbdinfo")
    script = 'set -e; nbdinfo --size "nbd+unix:///?socket=$unixsocket"; '
    script += f'nbdinfo --size "nbds+unix://alice@/?socket=$unixsocket&tls-psk-file={keys}"'
    told = run(*SERVE, "-U", "-", "--tls", "on", "--tls-psk", str(keys), str(disk), "--run", script)
    assert told.returncode == 0, told.stderr
