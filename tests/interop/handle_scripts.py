# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""Programs written for libnbd. Each runs under libnbd and under vmdkit.nbd, and must print the same.

``{NAME}`` is filled in by the test: a disk, a directory of certificates, a command that serves.
"""

from __future__ import annotations

from typing import Final

# What every program begins with; one line of it is changed.
PRELUDE: Final = """\
import nbd
import sys

def show(label, call, *words, **named):
    try:
        told = call(*words, **named)
    except nbd.Error as error:
        print(label, "|", error.string, "|", error.errno, error.errnum, str(error) == repr(str(error))[1:-1])
    else:
        print(label, "->", f"{len(told)} bytes {sum(told)}" if isinstance(told, (bytes, bytearray)) else told)
    sys.stdout.flush()

def told(*words):
    print("told", [word.value if hasattr(word, "value") else bytes(word) if isinstance(word, memoryview) else word
                   for word in words])
    return 0

"""

SCRIPTS: Final = {
    # Straight from the manuals and blogs of libnbd.
    "blog": """
h = nbd.NBD()
h.connect_command(["nbdkit", "-s", "--exit-with-parent", "memory", "1M"])
print("size = %d" % h.get_size())
buf = h.pread(512, 0)
h.pwrite(b"hello, world", 512)
h.flush()
print(buf == bytearray(512), bytes(h.pread(12, 512)))
h.zero(5, 512)
h.trim(512, 1024)
h.cache(512, 0)
print(bytes(h.pread(12, 512)))
h.shutdown()
""",
    "activation": """
h = nbd.NBD()
h.connect_systemd_socket_activation(["qemu-nbd", "-f", "raw", "-r", "{DISK}"])
print("size = %d" % h.get_size())
print(h.is_read_only(), h.get_protocol(), sum(h.pread(65536, 0)))
del h
""",
    "ours": """
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.connect_command({SERVE} + ["-w", "-s", "--exit-with-parent", "--raw", "{DISK}"])
print("size = %d" % h.get_size())
buf = h.pread(512, 0)
h.pwrite(buf, 512)
h.flush()
show("map", h.block_status, h.get_size(), 0, told)
print(h.get_structured_replies_negotiated(), h.can_multi_conn(), h.can_fast_zero(), h.can_df())
for number in range(3):
    show("block size", h.get_block_size, number)
h.shutdown()
""",
    "facts": """
for words in (["memory", "1M"], ["-r", "memory", "1M"], ["--filter=nozero", "null", "1M", "zeromode=notrim"],
              ["--no-sr", "memory", "1M"], ["-o", "memory", "1M"], ["--mask-handshake=0", "memory", "1M"],
              ["-e", "name", "--filter=exportname", "memory", "1M", "exportname=name", "exportdesc=fixed:text"]):
    h = nbd.NBD()
    h.set_full_info(True)
    h.connect_command(["nbdkit", "-s"] + words)
    print(words)
    for name in ("get_size is_read_only is_rotational can_flush can_fua can_trim can_zero can_fast_zero can_df "
                 "can_cache can_multi_conn get_protocol get_structured_replies_negotiated get_tls_negotiated "
                 "get_canonical_export_name get_export_description get_export_name get_nr_meta_contexts get_opt_mode "
                 "get_uri connection_state get_tls get_tls_verify_peer get_strict_mode get_handshake_flags "
                 "get_request_structured_replies get_request_block_size get_full_info get_pread_initialize get_debug "
                 "supports_tls supports_uri get_private_data").split():
        show(name, getattr(h, name))
    show("can_meta_context", h.can_meta_context, "base:allocation")
    for number in range(4):
        show("block size", h.get_block_size, number)
""",
    "states": """
def make(state):
    h = nbd.NBD()
    if state == "negotiating":
        h.set_opt_mode(True)
    if state != "new":
        h.connect_command(["nbdkit", "-s", "memory", "1M"])
    if state == "closed":
        h.shutdown()
    if state == "dead":
        h.kill_subprocess(9)
        try:
            h.pread(1, 0)
        except nbd.Error:  # which one, depends on who is faster
            pass
    return h

calls = [(name, ()) for name in (
    "get_size is_read_only can_flush can_fua can_trim can_zero can_fast_zero can_df can_cache can_multi_conn "
    "is_rotational get_protocol get_structured_replies_negotiated get_tls_negotiated get_uri get_export_name "
    "get_canonical_export_name get_export_description get_nr_meta_contexts get_opt_mode get_tls connection_state "
    "flush opt_go opt_info shutdown clear_meta_contexts opt_abort").split()]
calls += [
    ("get_block_size", (0,)), ("get_meta_context", (0,)), ("can_meta_context", ("x",)), ("add_meta_context", ("y",)),
    ("set_export_name", ("x",)), ("set_tls", (0,)), ("set_tls_certificates", ("/tmp",)), ("set_tls_psk_file", ("/x",)),
    ("set_tls_username", ("u",)), ("set_tls_verify_peer", (True,)), ("set_opt_mode", (True,)),
    ("set_strict_mode", (31,)), ("set_handshake_flags", (3,)), ("set_request_structured_replies", (True,)),
    ("set_request_block_size", (True,)), ("set_full_info", (True,)), ("set_pread_initialize", (True,)),
    ("set_debug", (False,)), ("set_handle_name", ("x",)), ("set_uri_allow_transports", (7,)),
    ("set_uri_allow_tls", (2,)), ("set_uri_allow_local_file", (False,)), ("opt_list", (told,)),
    ("opt_list_meta_context", (told,)), ("pread", (1, 0)), ("pwrite", (b"x", 0)), ("zero", (1, 0)), ("trim", (1, 0)),
    ("cache", (1, 0)), ("block_status", (1, 0, told)), ("pread_structured", (1, 0, told)),
]
later = [
    ("connect_uri", ("nbd://x",)), ("connect_tcp", ("x", "1")), ("connect_unix", ("/x",)), ("connect_vsock", (2, 1)),
    ("connect_command", (["true"],)), ("connect_socket", (99,)), ("connect_systemd_socket_activation", (["true"],)),
]
for state in ("new", "negotiating", "connected", "closed", "dead"):
    for name, words in calls + (later if state != "new" else []):
        show(state + " " + name, getattr(make(state), name), *words)
""",
    "failures": """
for what in ("EIO", "ENOSPC", "EPERM", "ENOMEM", "EINVAL"):
    h = nbd.NBD()
    h.add_meta_context("base:allocation")
    h.connect_command(["nbdkit", "-s", "--filter=error", "memory", "1M", "error=" + what, "error-rate=1"])
    for name, words in (("pread", (1, 0)), ("pwrite", (b"x", 0)), ("zero", (1, 0)), ("trim", (1, 0)),
                        ("cache", (1, 0)), ("flush", ()), ("block_status", (1024, 0, told)),
                        ("pread_structured", (1, 0, lambda *words: 0))):
        show(what + " " + name, getattr(h, name), *words)
    show("alive", h.connection_state)
""",
    "strict": """
def every(h, label):
    for flags in (0, 1, 2, 4, 8, 16, 32):
        for name, words in (("pread", (512, 0)), ("pwrite", (bytes(512), 0)), ("zero", (512, 0)), ("trim", (512, 0)),
                            ("cache", (512, 0)), ("flush", ())):
            show(f"{label} {name} {flags}", getattr(h, name), *words, flags=flags)
    size = h.get_size()
    for name, words in (("pread", (0, 0)), ("pwrite", (b"", 0)), ("zero", (0, 0)), ("trim", (0, 0)), ("cache", (0, 0)),
                        ("pread", (512, size)), ("pwrite", (bytes(512), size)), ("zero", (512, size)),
                        ("trim", (512, size)), ("cache", (512, size)), ("pread", (1, 1)), ("pwrite", (b"x", 1)),
                        ("zero", (1, 1)), ("trim", (1, 1)), ("cache", (1, 1)), ("pread", (513, size)),
                        ("pread", (0, size))):
        show(f"{label} {name} {len(words[0]) if name == 'pwrite' else words[0]} {words[1]}", getattr(h, name), *words)

for words in (["memory", "1M"], ["-r", "memory", "1M"],
              ["--filter=blocksize-policy", "memory", "1M", "blocksize-minimum=512", "blocksize-preferred=4096",
               "blocksize-maximum=65536", "blocksize-error-policy=error"],
              ["eval", "get_size=echo 1M", "pread=dd if=/dev/zero count=$3 iflag=count_bytes",
               "pwrite=cat >/dev/null"]):
    for mode in (31, 0):
        h = nbd.NBD()
        h.connect_command(["nbdkit", "-s"] + words)
        h.set_strict_mode(mode)
        every(h, " ".join(words[:2]) + f" {mode}")
h = nbd.NBD()
h.connect_command(["nbdkit", "-s", "memory", "200M"])
show("large", h.pread, 100 << 20, 0)
show("large", h.pwrite, bytes(65 << 20), 0)
show("large", h.zero, 100 << 20, 0)
show("larger", h.zero, 1 << 33, 0)
show("structured flag", h.pread_structured, 1, 0, told, 4)
show("mask", h.set_strict_mode, 1 << 20)
show("mask", h.set_handshake_flags, 4)
h = nbd.NBD()
show("mask", h.set_handshake_flags, 4)
show("tls", h.set_tls, 7)
show("name", h.set_export_name, "x" * 5000)
show("context", h.add_meta_context, "x" * 5000)
show("none", h.connect_command, [])
""",
    "extents": """
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.add_meta_context("x:y")
h.connect_command(["nbdkit", "-s", "data", "1 @0x100000 1 @0x200000 1"])
size = h.get_size()
show("all", h.block_status, size, 0, told)
show("one", h.block_status, size, 0, told, nbd.CMD_FLAG_REQ_ONE)
show("part", h.block_status, 100000, 5000, told)
show("zero", h.block_status, 0, 0, told)
show("out", h.block_status, 1, size, told)
show("minus", h.block_status, size, 0, lambda *words: -1)
show("none", h.block_status, size, 0, lambda *words: None)
def set_error(context, offset, entries, error):
    error.value = 28
    return -1
show("error", h.block_status, size, 0, set_error)
def set_error_only(context, offset, entries, error):
    error.value = 28
    return 0
show("error alone", h.block_status, size, 0, set_error_only)
def divide(*words):
    return 1 // 0
show("raise", h.block_status, size, 0, divide)
show("structured", h.pread_structured, 20, 1048570, told)
show("structured minus", h.pread_structured, 20, 0, lambda *words: -1)
show("contexts", h.can_meta_context, "x:y")
show("contexts", h.can_meta_context, "base:allocation")
show("contexts", h.get_nr_meta_contexts)
show("contexts", h.get_meta_context, 1)
h = nbd.NBD()
h.set_request_structured_replies(False)
h.add_meta_context("base:allocation")
h.connect_command(["nbdkit", "-s", "memory", "1M"])
show("simple", h.block_status, 512, 0, told)
show("simple", h.pread_structured, 3, 0, told)
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.connect_systemd_socket_activation(["qemu-nbd", "-f", "raw", "-r", "{DISK}"])
show("qemu", h.block_status, h.get_size(), 0, told)
show("qemu", h.pread_structured, 20, 65530, told)
""",
    "options": """
h = nbd.NBD()
h.set_opt_mode(True)
h.set_full_info(True)
h.connect_command(["nbdkit", "-s", "-e", "abc", "memory", "1M"])
show("state", h.connection_state)
show("list", h.opt_list, told)
show("info", h.opt_info)
show("size", h.get_size)
show("name", h.get_canonical_export_name)
show("description", h.get_export_description)
show("contexts", h.opt_list_meta_context, told)
h.add_meta_context("base:allocation")
show("contexts", h.opt_list_meta_context, told)
show("info", h.opt_info)
show("contexts", h.can_meta_context, "base:allocation")
show("go", h.opt_go)
show("state", h.connection_state)
show("mode", h.get_opt_mode)
show("contexts", h.can_meta_context, "base:allocation")
show("map", h.block_status, 1 << 20, 0, told)
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_command(["nbdkit", "-s", "memory", "1M"])
show("abort", h.opt_abort)
show("state", h.connection_state)
picky = ["nbdkit", "-s", "eval", "get_size=echo 1M", "pread=dd if=/dev/zero bs=$3 count=1",
         'open=[ "$3" = good ] || {{ echo ENOENT no such >&2; exit 1; }}; echo h',
         "list_exports=echo INTERLEAVED; echo good; echo first; echo bad; echo second"]
h = nbd.NBD()
h.set_export_name("bad")
show("connect", h.connect_command, picky)
show("state", h.connection_state)
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_command(picky)
show("list", h.opt_list, told)
h.set_export_name("bad")
show("info", h.opt_info)
show("go", h.opt_go)
show("state", h.connection_state)
show("size", h.get_size)
h.set_export_name("good")
show("go", h.opt_go)
show("size", h.get_size)
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_command(["nbdkit", "-s", "-o", "memory", "1M"])
show("old", h.connection_state)
show("old", h.get_size)
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_command({SERVE} + ["-s", "-x", "one", "-D", "first text", "--raw", "{DISK}"])
show("ours", h.opt_list, told)
show("ours", h.opt_info)
h.set_export_name("one")
show("ours", h.opt_info)
show("ours", h.get_size)
show("ours", h.opt_go)
""",
    "reaching": """
h = nbd.NBD()
show("scheme", h.connect_uri, "foo://bar")
show("socket", h.connect_uri, "nbd+unix:///x")
show("state", h.connection_state)
show("nobody", h.connect_uri, "nbd+unix:///?socket={DISK}.none")
show("state", h.connection_state)
h = nbd.NBD()
show("refused", h.connect_uri, "nbd://127.0.0.1:1/")
show("state", h.connection_state)
show("refused", h.connect_tcp, "127.0.0.1", "1")
show("unix", h.connect_unix, "{DISK}.none")
h = nbd.NBD()
show("allow", h.set_uri_allow_transports, nbd.ALLOW_TRANSPORT_TCP)
show("unix", h.connect_uri, "nbd+unix:///?socket=/x")
h.set_uri_allow_tls(nbd.TLS_DISABLE)
show("tls", h.connect_uri, "nbds://localhost:1")
h.set_uri_allow_tls(nbd.TLS_REQUIRE)
show("tls", h.connect_uri, "nbd://localhost:1")
for key in ("tls-psk-file", "tls-certificates"):
    h = nbd.NBD()
    show(key, h.connect_uri, "nbds://localhost:1?" + key + "=/x")
show("kill", h.kill_subprocess, 9)
h = nbd.NBD()
h.set_tls(nbd.TLS_REQUIRE)
show("tls", h.connect_command, ["nbdkit", "-s", "memory", "1M"])
show("state", h.connection_state)
h = nbd.NBD()
h.set_tls(nbd.TLS_ALLOW)
show("tls", h.connect_command, ["nbdkit", "-s", "memory", "1M"])
show("tls", h.get_tls_negotiated)
show("kill", h.kill_subprocess, 99)
show("kill", h.kill_subprocess, 0)
h = nbd.NBD()
h.set_handshake_flags(0)
h.connect_command(["nbdkit", "-s", "memory", "1M"])
show("protocol", h.get_protocol)
h = nbd.NBD()
show("garbage", h.connect_command, ["true"])
show("state", h.connection_state)
h = nbd.NBD()
h.set_export_name("a b/c?")
h.connect_unix("{SOCKET}")
show("uri", h.get_uri)
show("size", h.get_size)
h = nbd.NBD()
h.connect_uri("nbd+unix:///a%20b?socket={SOCKET}")
show("uri", h.get_uri)
show("name", h.get_export_name)
import socket
sock = socket.socket(socket.AF_UNIX)
sock.connect("{SOCKET}")
h = nbd.NBD()
h.connect_socket(sock.detach())
show("size", h.get_size)
show("uri", h.get_uri)
""",
    "tls": """
h = nbd.NBD()
h.set_uri_allow_local_file(True)
h.connect_uri("nbds+unix://alice@/?socket={TLS_SOCKET}&tls-psk-file={KEYS}")
print(h.get_size(), h.get_tls_negotiated(), h.get_tls(), h.get_tls_username(), sum(h.pread(4096, 0)))
h = nbd.NBD()
h.set_tls(nbd.TLS_REQUIRE)
h.set_tls_psk_file("{KEYS}")
h.set_tls_username("alice")
h.connect_unix("{TLS_SOCKET}")
print(h.get_size(), h.get_tls_negotiated(), h.get_protocol())
h = nbd.NBD()
show("plain", h.connect_unix, "{TLS_SOCKET}")
show("state", h.connection_state)
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_unix("{TLS_SOCKET}")
for name, words in (("opt_go", ()), ("opt_info", ()), ("opt_list", (told,)), ("opt_list_meta_context", (told,))):
    show(name, getattr(h, name), *words)
""",
}
