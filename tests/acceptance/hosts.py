"""Further hosts: network namespaces with names of their own, where this machine allows that.

They are joined to this host by a bridge, and reach what listens here at the ports that its
variables name, and nothing else: as published ports of another machine.
"""

import os
import re
import shutil
import socket
import socketserver
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

LOOPBACK = "127.0.0.1"
READ_BYTES = 2**16


@dataclass(frozen=True)
class Host:
    """How a process is started there: words before its own, and variables."""

    name: str
    variables: dict[str, str]
    words: list[str] = field(default_factory=list)


@contextmanager
def hosts(number: int, variables: Mapping[str, str], folder: Path) -> Iterator[list[Host]]:
    """So many, from 2; with folders of their own, and one network where there can be one."""
    made = []
    with ExitStack() as stack:
        bridge = stack.enter_context(_bridge()) if _may() else None
        if bridge:
            for port in _ports(variables):
                stack.enter_context(_published(bridge.address, port))
        for at in range(2, 2 + number):
            own = _folders(folder, at)
            if bridge is None:
                made.append(Host(f"host-{at}", own))
                continue
            words = stack.enter_context(_namespace(bridge, at))
            there = {k: v.replace(LOOPBACK, bridge.address) for k, v in variables.items()}
            made.append(Host(f"host-{at}", there | own, words))
        yield made


def _folders(folder: Path, at: int) -> dict[str, str]:
    for name in ("data", "tmp"):
        (folder / f"{name}-{at}").mkdir()
    return {"SEPGATE_DATA_DIR": str(folder / f"data-{at}"), "TMPDIR": str(folder / f"tmp-{at}")}


@dataclass(frozen=True)
class _Bridge:
    name: str
    subnet: str

    @property
    def address(self) -> str:
        return f"{self.subnet}.1"


def _may() -> bool:
    """Whether namespaces and bridges can be made: by root, in a kernel that has them."""
    if os.getuid() != 0 or shutil.which("ip") is None:
        return False
    try:
        with _bridge() as bridge, _namespace(bridge, 1) as words:
            subprocess.run([*words, "true"], check=True, capture_output=True)
    except subprocess.CalledProcessError:
        return False
    return True


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def _bridge() -> Iterator[_Bridge]:
    bridge = _Bridge(f"sgb{os.getpid()}", f"10.213.{os.getpid() % 250}")
    _ip("link", "add", bridge.name, "type", "bridge")
    try:
        _ip("addr", "add", f"{bridge.address}/24", "dev", bridge.name)
        _ip("link", "set", bridge.name, "up")
        yield bridge
    finally:
        _ip("link", "del", bridge.name)


@contextmanager
def _namespace(bridge: _Bridge, at: int) -> Iterator[list[str]]:
    """Words that start a process in it, as this process' child, under the host's name."""
    name, here, there = f"sgn{os.getpid()}-{at}", f"sgv{os.getpid()}-{at}", f"sgw{os.getpid()}-{at}"
    _ip("netns", "add", name)
    try:
        _ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", name)
        _ip("link", "set", here, "master", bridge.name, "up")
        _ip("-n", name, "addr", "add", f"{bridge.subnet}.{at}/24", "dev", there)
        _ip("-n", name, "link", "set", there, "up")
        _ip("-n", name, "link", "set", "lo", "up")
        named = ["unshare", "--uts", "sh", "-c", f'hostname host-{at} && exec "$@"', "sh"]
        yield ["ip", "netns", "exec", name, *named]
    finally:
        _ip("netns", "del", name)


def _ports(variables: Mapping[str, str]) -> set[int]:
    urls = [value for value in variables.values() if LOOPBACK in value]
    return {int(port) for url in urls for port in re.findall(rf"{LOOPBACK}:(\d+)", url)}


@contextmanager
def _published(address: str, port: int) -> Iterator[None]:
    """What listens at the port of this host's loopback listens at the address, too."""

    class Pass(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection((LOOPBACK, port)) as inner:
                back = threading.Thread(target=_copy, args=(inner, self.request), daemon=True)
                back.start()
                _copy(self.request, inner)
                back.join()

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = daemon_threads = True

    with Server((address, port), Pass) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while read := source.recv(READ_BYTES):
            target.sendall(read)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
