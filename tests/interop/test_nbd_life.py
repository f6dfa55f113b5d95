# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""How the server is started, reached, trusted and ended, seen by other programs."""

from __future__ import annotations

import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

import images
import nbdwire as n
from nbdserver import COMMAND, certificates, eventually, psk, serving
from require import requires

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 1 << 20
# Becomes a program that finds the descriptor in its first argument as systemd passes it.
PASS = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return images.monolithic_sparse(tmp_path, "512k:A 512k:-", name="disk").path


def vmdkit(*words: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, words)], capture_output=True, text=True, timeout=30, check=False, env=env,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def come(path: str) -> n.Client:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    return n.Client(sock)


# ── addresses ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mask", [0, 0o022, 0o077])
def test_the_socket_belongs_to_its_user(tmp_path: Path, disk: Path, mask: int) -> None:
    old = os.umask(mask)
    try:
        with serving(tmp_path, "-t", disk) as served:
            assert stat.S_IMODE(os.stat(served.path).st_mode) == 0o600
            assert stat.S_ISSOCK(os.stat(served.path).st_mode)
    finally:
        os.umask(old)
    assert not os.path.exists(served.path)


def test_the_private_directory_is_private_and_goes(disk: Path) -> None:
    done = vmdkit(disk, "--run", 'stat -c "%a" "$(dirname "$unixsocket")" "$unixsocket"; echo "$unixsocket"')
    assert done.returncode == 0, done.stderr
    directory_mode, mode, path = done.stdout.split()
    assert (directory_mode, mode) == ("700", "600")
    assert not os.path.exists(os.path.dirname(path))


def test_the_socket_of_a_dead_server_is_replaced(tmp_path: Path, disk: Path) -> None:
    path = tmp_path / "nbd.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with serving(tmp_path, "-t", disk) as served, come(served.path) as client:
        assert client.enter().alive()


def test_nothing_else_is_replaced(tmp_path: Path, disk: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    done = vmdkit("-U", path, disk)
    assert done.returncode == 1
    assert "something is there already" in done.stderr
    assert path.read_text() == "data"


def test_two_servers_do_not_share_a_socket(tmp_path: Path, disk: Path) -> None:
    with serving(tmp_path, "-t", disk) as served:
        done = vmdkit("-U", served.path, disk)
        assert done.returncode == 1
        with come(served.path) as client:
            assert client.enter().alive()


def test_tcp_is_loopback(disk: Path) -> None:
    requires("nbdinfo")
    done = vmdkit("-p", 0, disk, "--run", 'echo "$uri $port"; nbdinfo --size "$uri"')
    assert done.returncode == 0, done.stderr
    uri, port, size = done.stdout.split()
    assert (uri, size) == (f"nbd://127.0.0.1:{port}/", str(SIZE))


@pytest.mark.parametrize("address", ["0.0.0.0", "::"])
def test_open_addresses_are_refused(disk: Path, address: str) -> None:
    done = vmdkit("-i", address, "-p", 0, disk)
    assert done.returncode == 1
    assert "can be reached by others" in done.stderr
    assert "Traceback" not in done.stderr
    allowed = vmdkit("-i", address, "-p", 0, "--i-know-it-is-open", disk, "--run", "true")
    assert allowed.returncode == 0, allowed.stderr


def test_an_open_address_is_allowed_with_tls(tmp_path: Path, disk: Path) -> None:
    requires("psktool", "nbdinfo")
    keys = psk(tmp_path / "keys.psk")
    script = (
        f'nbdinfo --size "nbds://alice@127.0.0.1:$port/?tls-psk-file={keys}"; nbdinfo --size "nbd://127.0.0.1:$port"'
    )
    done = vmdkit("-i", "0.0.0.0", "-p", 0, "--tls-psk", keys, disk, "--run", script)
    assert done.stdout == f"{SIZE}\n"
    assert done.returncode == 1  # of the second


def test_several_disks_have_names(tmp_path: Path, disk: Path) -> None:
    requires("nbdinfo")
    other = images.monolithic_flat(tmp_path, "64k:B", name="other").path
    script = 'for name in disk.vmdk other.vmdk ""; do nbdinfo --size "nbd+unix:///$name?socket=$unixsocket"; done'
    assert vmdkit(disk, other, "--run", script).stdout.split() == [str(SIZE), "65536", str(SIZE)]


# ── standard input, and sockets of others ────────────────────────────────────────────────────────────────────────


def test_single_over_a_socket(disk: Path) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [*COMMAND, "-s", str(disk)], stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=subprocess.PIPE
        )
    with n.Client(ours) as client:
        assert client.enter().alive()
        client.send(client.header(n.DISC, 0, 0))
        assert client.closed()
    _, errors = process.communicate(timeout=10)
    assert (process.returncode, errors) == (0, b"")


def test_single_over_pipes(disk: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "-s", str(disk)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    go = b"IHAVEOPT" + (7).to_bytes(4, "big") + (6).to_bytes(4, "big") + n.go()
    read = struct.pack(">IHHQQI", 0x25609513, 0, n.READ, 5, 0, 4096)
    disc = struct.pack(">IHHQQI", 0x25609513, 0, n.DISC, 6, 0, 0)
    out, errors = process.communicate(b"\0\0\0\3" + go + read * 500 + disc, timeout=10)
    assert len(out) > 500 * 4112  # also what was still on its way when the server was done
    assert out[:16] == b"NBDMAGICIHAVEOPT"
    assert out[-4096 - 16 : -4096] == struct.pack(">IIQ", 0x67446698, 0, 5)
    assert out[-4096:-4080] == b"A" + b"0" * 15
    assert (process.returncode, errors) == (0, b"")


def test_single_ends_with_its_client(disk: Path) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen([*COMMAND, "-s", "-w", str(disk)], stdin=theirs.fileno(), stdout=theirs.fileno())
    with n.Client(ours) as client:
        client.enter()
        assert client.write(0, b"hello").error == 0
    assert process.wait(10) == 0


def test_single_goes_with_no_address(disk: Path) -> None:
    done = vmdkit("-s", "-p", 0, disk)
    assert done.returncode == 1
    assert "goes with no address" in done.stderr


@pytest.mark.parametrize("persistent", [False, True])
def test_socket_activation(tmp_path: Path, disk: Path, persistent: bool) -> None:
    path = str(tmp_path / "given.sock")
    words = [*COMMAND, *(["-t"] if persistent else []), str(disk)]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        fd = listener.fileno()
        process = subprocess.Popen(
            [sys.executable, "-c", PASS, str(fd), *words], pass_fds=(fd,), stderr=subprocess.PIPE
        )
        with come(path) as client:
            assert client.enter().alive()
        if persistent:
            with come(path) as client:
                assert client.enter().alive()
            process.terminate()
        _, errors = process.communicate(timeout=10)
    assert (process.returncode, errors) == (0, b"")
    assert os.path.exists(path)  # it is not ours


def test_activation_of_another_process_is_not_ours(disk: Path) -> None:
    environment = {**os.environ, "LISTEN_PID": "1", "LISTEN_FDS": "1"}
    done = vmdkit(disk, "--run", 'echo "$unixsocket" "${LISTEN_FDS-none}"', env=environment)
    assert done.stdout.split()[1] == "none"


# ── its life ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_ends_with_its_last_client(tmp_path: Path, disk: Path) -> None:
    with serving(tmp_path, disk) as served:
        with come(served.path) as silent:
            silent.hello()  # who never chose an export does not count
        with come(served.path) as first:
            first.enter()
            with come(served.path) as second:
                assert second.enter().alive()
            time.sleep(0.1)
            assert first.alive()
        assert served.process.wait(10) == 0
    assert not os.path.exists(served.path)


def test_it_stays_where_it_shall(tmp_path: Path, disk: Path) -> None:
    with serving(tmp_path, "-t", disk) as served:
        for _ in range(3):
            with come(served.path) as client:
                assert client.enter().alive()
        time.sleep(0.1)
        assert served.alive()


def test_the_pid_file(tmp_path: Path, disk: Path) -> None:
    with serving(tmp_path, "-t", disk) as served:
        assert (tmp_path / "nbd.pid").read_text() == f"{served.process.pid}\n"
    assert not (tmp_path / "nbd.pid").exists()


@pytest.mark.parametrize("status", [0, 1, 7])
def test_run_gives_its_status(disk: Path, status: int) -> None:
    done = vmdkit(disk, "--run", f'test -n "$uri" && test -S "$unixsocket" && test -z "$exportname" && exit {status}')
    assert (done.returncode, done.stderr) == (status, "")


def test_run_ended_by_a_signal(disk: Path) -> None:
    assert vmdkit(disk, "--run", "kill -9 $$").returncode == 128 + 9


def test_run_is_ended_with_the_server(tmp_path: Path, disk: Path) -> None:
    process = subprocess.Popen([*COMMAND, str(disk), "--run", f"echo $$ > {tmp_path}/child; exec sleep 60"])
    child = tmp_path / "child"
    end = time.monotonic() + 10
    while not (child.exists() and child.read_text().endswith("\n")) and time.monotonic() < end:
        time.sleep(0.01)
    process.terminate()
    assert process.wait(10) == 128 + signal.SIGTERM
    assert not os.path.exists(f"/proc/{child.read_text().strip()}")


def test_exit_with_parent(tmp_path: Path, disk: Path) -> None:
    path = tmp_path / "nbd.sock"
    script = '"$@" & wait'
    words = [*COMMAND, "-t", "--exit-with-parent", "-U", str(path), "-P", str(tmp_path / "pid"), str(disk)]
    parent = subprocess.Popen(["/bin/sh", "-c", script, "sh", *words])
    end = time.monotonic() + 10
    while not (tmp_path / "pid").exists() and time.monotonic() < end:
        time.sleep(0.01)
    with come(str(path)) as client:
        assert client.enter().alive()
        parent.kill()
        parent.wait()
        assert client.closed()
    assert eventually(path.exists, 0) == 0


# ── trust ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    requires("certtool")
    return certificates(tmp_path_factory.mktemp("tls") / "pki")


def test_a_client_of_another_ca_does_not_trust_us(tmp_path: Path, disk: Path, pki: Path) -> None:
    requires("nbdinfo")
    stranger = certificates(tmp_path / "stranger")
    uri = "nbds://localhost:$port/?tls-certificates="
    script = f'nbdinfo --size "{uri}{stranger}"; nbdinfo --size "{uri}{pki}"'
    done = vmdkit("-p", 0, "--tls-certificates", pki, disk, "--run", script)
    assert (done.returncode, done.stdout) == (0, f"{SIZE}\n")


def test_we_do_not_trust_a_client_of_another_ca(tmp_path: Path, disk: Path, pki: Path) -> None:
    requires("nbdinfo")
    mixed = certificates(tmp_path / "stranger")
    (mixed / "ca-cert.pem").write_bytes((pki / "ca-cert.pem").read_bytes())  # it trusts us
    uri = "nbds://localhost:$port/?tls-certificates="
    script = f'nbdinfo --size "{uri}{mixed}"; nbdinfo --size "{uri}{pki}"'
    done = vmdkit("-p", 0, "--tls-certificates", pki, "--tls-verify-peer", disk, "--run", script)
    assert (done.returncode, done.stdout) == (0, f"{SIZE}\n")


def test_qemu_img_with_certificates(tmp_path: Path, disk: Path, pki: Path) -> None:
    requires("qemu-img>=7")
    (tmp_path / "mine").mkdir()
    for name in ("ca-cert.pem", "client-cert.pem", "client-key.pem"):
        (tmp_path / "mine" / name).write_bytes((pki / name).read_bytes())
    credentials = f"tls-creds-x509,id=t,endpoint=client,dir={tmp_path / 'mine'}"
    options = "driver=nbd,server.type=inet,server.host=localhost,server.port=$port,tls-creds=t"
    script = f"qemu-img convert --object {credentials} --image-opts {options} -O raw {tmp_path / 'out.raw'}"
    done = vmdkit("-p", 0, "--tls-certificates", pki, "--tls-verify-peer", disk, "--run", script)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.raw").read_bytes()[: SIZE // 2 : 512] == b"A" * (SIZE // 1024)


def test_nbdcopy_writes_through_tls(tmp_path: Path, disk: Path, pki: Path) -> None:
    requires("nbdcopy", "qemu-img>=7")
    source = tmp_path / "source.raw"
    source.write_bytes(os.urandom(SIZE // 2) + bytes(SIZE // 2))
    script = f'nbdcopy --connections=4 {source} "nbds://localhost:$port/?tls-certificates={pki}"'
    done = vmdkit("-w", "-p", 0, "--tls-certificates", pki, disk, "--run", script)
    assert done.returncode == 0, done.stderr
    subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "vmdk", source, disk], check=True, capture_output=True)
