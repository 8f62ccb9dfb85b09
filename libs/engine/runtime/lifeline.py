"""One connection from every process of a run to process 0: whoever ends takes the others along, and its error is shown once.

A process that fails sends its error to process 0, which prints it and tells the others to leave.  One that is killed sends
nothing, but the operating system closes its connection.  Each end is watched by a thread, so that a process notices although its
main thread waits for the others in a collective operation.
"""
from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any, NoReturn, TextIO

from libs.core.errors import UserError

LOOPBACK = ("localhost", "127.0.0.1", "::1")
GRACE_S = 10.0  # how long a failed process waits for process 0 to show its error, and that for processes that begin late
TICK_S = 0.1
KEY = "lifeline"


@dataclass(eq=False)
class _Peer:
    connection: socket.socket
    rank: int = -1  # until it has said who it is
    done: bool = False
    gone: bool = False
    unread: bytes = b""
    sending: threading.Lock = field(default_factory=threading.Lock)

    def send(self, **message: Any) -> None:
        with self.sending, contextlib.suppress(OSError):  # whoever has gone needs no message
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def hear(self) -> list[dict[str, Any]] | None:
        """The messages that have arrived (waits for a part of one at least); None at the end of the connection."""
        try:
            data = self.connection.recv(65536)
            *lines, self.unread = (self.unread + data).split(b"\n")
            messages = [json.loads(line) for line in lines]
        except (OSError, ValueError):
            return None
        stranger = self.rank < 0 and (len(self.unread) > 1000 or any(not isinstance(m, dict) for m in messages))
        return messages if data and not stranger else None


class Lifeline:
    """The connections of process `rank` of `size`; `store` (a torch.distributed store) tells where process 0 listens.

    Until `close`, the end of another process ends this one at once, without cleaning up.  `errors`: where process 0 prints (and
    another process, once process 0 has gone).  UserError if process 0 cannot be reached.
    """

    def __init__(self, rank: int, size: int, store: Any, address: str, errors: TextIO):
        self.rank, self.size, self._errors = rank, size, errors
        self._closing, self._told = False, threading.Lock()
        self._stop: tuple[int, float] | None = None  # process 0: how the run ends, and when at the latest
        self._peers: list[_Peer] = []
        local = address in LOOPBACK
        if rank == 0:
            self._token = secrets.token_hex(16)
            self._server: socket.socket | None = _listen(local)
            store.set(KEY, f"{self._server.getsockname()[1]} {self._token}")
            watch = self._serve
        else:
            port, self._token = store.get(KEY).decode().split()
            self._server = None
            hub = _Peer(_connect(rank, "127.0.0.1" if local else address, int(port)), rank=0)
            _keep_alive(hub.connection)
            self._peers.append(hub)
            hub.send(token=self._token, rank=rank)
            watch = self._listen_to_hub
        os.register_at_fork(after_in_child=self._let_go)
        threading.Thread(target=watch, name="lifeline", daemon=True).start()

    def fail(self, code: int, text: str) -> NoReturn:
        """Show `text` once, unless another process has failed before, and end all processes with `code`."""
        if self.rank == 0:
            self._end(code, text)
            threading.Event().wait()  # the watching thread ends this process once the others know
        self._peers[0].send(failed=text, code=code)
        threading.Event().wait(GRACE_S)  # the watching thread ends this process as soon as process 0 says so
        self._print(text)
        self._leave(code)

    def close(self) -> None:
        """This process has done its work: it may go, and so may the others."""
        self._closing = True
        for peer in self._peers:
            peer.send(done=True)

    def _serve(self) -> None:
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._server, selectors.EVENT_READ)
            while True:
                for key, _ in waiting.select(TICK_S):
                    if key.fileobj is self._server:
                        with contextlib.suppress(OSError):  # gone before it was let in
                            connection, _address = self._server.accept()
                            _keep_alive(connection)
                            waiting.register(connection, selectors.EVENT_READ, _Peer(connection))
                    elif not self._attend(key.data):
                        waiting.unregister(key.fileobj)
                        key.fileobj.close()
                if self._stop is not None:
                    # last of all: a connection that closes with something unread takes back what was sent
                    all_gone = len(self._peers) == self.size - 1 and all(peer.gone for peer in self._peers)
                    if all_gone or time.monotonic() > self._stop[1]:
                        self._leave(self._stop[0])

    def _attend(self, peer: _Peer) -> bool:
        messages = peer.hear()
        if messages is None:
            peer.gone = True
            if peer.rank > 0 and not peer.done and not self._closing:
                self._end(1, f"error: process {peer.rank} of {self.size} has ended without a word (killed, or out of memory?); "
                             "the others end too")
            return False
        for message in messages:
            if "rank" in message and message.get("token") == self._token:
                peer.rank = message["rank"]
                self._peers.append(peer)
                if self._stop is not None:
                    peer.send(stop=self._stop[0])
            elif peer.rank < 0:
                return False  # a stranger
            elif "failed" in message:
                self._end(message["code"], message["failed"])
            peer.done = peer.done or "done" in message
        return True

    def _listen_to_hub(self) -> None:
        hub = self._peers[0]
        while not self._closing:
            messages = hub.hear()
            if messages is None:
                if not self._closing and not hub.done:
                    if self.rank == 1:  # one of those that are left
                        self._print(f"error: process 0 of {self.size} has ended without a word (killed, or out of memory?); the "
                                    "others end too")
                    self._leave(1)
                return
            for message in messages:
                if "stop" in message:
                    self._leave(message["stop"])
                hub.done = hub.done or "done" in message

    def _end(self, code: int, text: str) -> None:
        """Process 0: show the first failure and tell the others; `_serve` ends this process when all have gone."""
        if not self._told.acquire(blocking=False):
            return
        self._print(text)
        self._stop = code, time.monotonic() + GRACE_S
        for peer in list(self._peers):
            peer.send(stop=code)

    def _print(self, text: str) -> None:
        if text:
            print(text, file=self._errors, flush=True)

    def _leave(self, code: int) -> NoReturn:
        with contextlib.suppress(Exception):
            for child in multiprocessing.active_children():  # reading processes
                child.terminate()
            sys.stdout.flush()
        os._exit(code)  # the main thread may wait in an operation that never ends

    def _let_go(self) -> None:
        """In a forked child: its copies of the connections would keep them open when this process is gone."""
        for peer in self._peers:
            peer.connection.close()
        if self._server is not None:
            self._server.close()


def _listen(local: bool) -> socket.socket:
    if local:
        return socket.create_server(("127.0.0.1", 0))
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _connect(rank: int, address: str, port: int) -> socket.socket:
    try:
        connection = socket.create_connection((address, port), timeout=60)
    except OSError as error:
        raise UserError(f"process {rank} cannot reach process 0 at {address}, port {port} ({error}); it has ended, or the ports "
                        "between the machines are closed: open them, see docs/distributed.md") from error
    connection.settimeout(None)
    return connection


def _keep_alive(connection: socket.socket) -> None:
    """Notice within half a minute that a machine has gone without closing its connections."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
