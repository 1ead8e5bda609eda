"""An S3 server that fails as real ones do: a proxy on the loopback interface in front of another endpoint.

    with moto_server() as endpoint, FaultyS3(endpoint) as faulty:
        os.environ["AWS_ENDPOINT_URL"] = faulty.url      # for this process and those it starts
        faulty.error_rate = 0.05
        ...
        assert faulty.counts()["GET", "shard"] == 6

Clients in any process use its URL; faults are set, and requests counted, in the process that made it.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

Fault = Literal["slow_down", "cut", "lost_reply", "reset"]
"""503 SlowDown · half of the body, then closed · done, but the reply is lost · closed at once, not done."""

SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Too fast.</Message></Error>"


@dataclass(frozen=True)
class Request:
    """One request that arrived: GET, PUT, HEAD, LIST, DELETE; bucket/key (of a listing the prefix); its fault."""

    operation: str
    key: str
    fault: str | None
    status: int | None
    signed_by: str | None = None
    requester_pays: bool = False

    @property
    def kind(self) -> str:
        """Class of the key: shard, metadata (zarr.json), name of a JSON file or manifest, else the folder (ledger)."""
        parts = self.key.split("/")
        if re.search(r"/c(/\d+)+$", self.key):
            return "shard"
        if parts[-1] == "zarr.json":
            return "metadata"
        by_name = self.operation == "LIST" or len(parts) == 1 or re.search(r"\.json$|^manifest\.", parts[-1])
        return parts[-1] if by_name else parts[-2]


@dataclass
class _Scripted:
    fault: Fault
    operation: str
    pattern: str
    times: int


class FaultyS3:
    """The proxy; a context manager.

    Attributes
    ----------
    error_rate, cut_rate, lost_reply_rate : float
        Share of requests answered 503 SlowDown; of GET replies cut short; of requests done without a reply.
    delay : float
        Seconds before each answer.
    stalled : bool
        Accept connections and answer nothing.
    down : bool
        Refuse connections, and drop those there are.
    """

    def __init__(self, endpoint: str, *, seed: int = 0) -> None:
        split = urlsplit(endpoint)
        self.upstream = (str(split.hostname), int(split.port or 80))
        self.error_rate = self.cut_rate = self.lost_reply_rate = self.delay = 0.0
        self.stalled = False
        self.log: list[Request] = []
        self.lock = threading.Lock()
        self._random = random.Random(seed)
        self._scripted: list[_Scripted] = []
        self._connections: set[socket.socket] = set()
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self.port = self._start(0)
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> FaultyS3:
        return self

    def __exit__(self, *exception: object) -> None:
        self.down = True

    @property
    def down(self) -> bool:
        """Whether connections are refused."""
        return self._server is None

    @down.setter
    def down(self, value: bool) -> None:
        if value and self._server is not None:
            server, thread, self._server, self._thread = self._server, self._thread, None, None
            server.shutdown()
            server.server_close()  # the port refuses from here
            if thread is not None:
                thread.join()
            with self.lock:
                open_now = list(self._connections)
            for connection in open_now:
                _abort(connection)
        elif not value and self._server is None:
            self._start(self.port)

    @contextlib.contextmanager
    def outage(self, seconds: float) -> Iterator[None]:
        """Down now and for so long, while the block goes on."""
        self.down = True
        timer = threading.Timer(seconds, setattr, (self, "down", False))
        timer.start()
        try:
            yield
        finally:
            timer.join()

    def script(self, fault: Fault, operation: str = "", pattern: str = "", times: int = 1) -> None:
        """Let the next `times` requests of this operation, whose key matches the pattern, meet this fault."""
        with self.lock:
            self._scripted.append(_Scripted(fault, operation, pattern, times))

    def counts(self) -> Counter[tuple[str, str]]:
        """Requests by (operation, class of key), failed ones included."""
        with self.lock:
            return Counter((request.operation, request.kind) for request in self.log)

    def faults(self) -> Counter[str]:
        """Faults by name."""
        with self.lock:
            return Counter(request.fault for request in self.log if request.fault)

    def forget(self) -> None:
        """Empty the log."""
        with self.lock:
            self.log.clear()

    def pick_fault(self, operation: str, key: str) -> Fault | None:
        """The fault that this request meets."""
        with self.lock:
            for scripted in self._scripted:
                matches = scripted.operation in ("", operation) and re.search(scripted.pattern, key)
                if matches and scripted.times > 0:
                    scripted.times -= 1
                    return scripted.fault
            rates: list[tuple[Fault, float]] = [
                ("slow_down", self.error_rate),
                ("lost_reply", self.lost_reply_rate),
                ("cut", self.cut_rate if operation == "GET" else 0.0),
            ]
            for fault, rate in rates:
                if rate and self._random.random() < rate:
                    return fault
        return None

    def _start(self, port: int) -> int:
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.proxy = self
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True, name="faulty-s3"
        )
        self._thread.start()
        return int(self._server.server_address[1])


@contextlib.contextmanager
def moto_server() -> Iterator[str]:
    """A moto server in a thread of this process; its URL. Conditional writes are atomic, as those of S3 are."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    assert server._server is not None
    server._server.app = one_conditional_write_at_a_time(server._server.app)
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def one_conditional_write_at_a_time(app: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a WSGI application: moto checks the condition, then writes, and two of its threads may do so at once."""
    lock = threading.Lock()

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        conditional = {"HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH"} & set(environ)
        with lock if conditional and environ["REQUEST_METHOD"] != "GET" else contextlib.nullcontext():
            return app(environ, start_response)

    return serve


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256
    proxy: FaultyS3

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave in the middle are no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.upstream: http.client.HTTPConnection | None = None
        with self.server.proxy.lock:
            self.server.proxy._connections.add(self.connection)

    def finish(self) -> None:
        with self.server.proxy.lock:
            self.server.proxy._connections.discard(self.connection)
        if self.upstream is not None:
            self.upstream.close()
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        """The log is `FaultyS3.log`."""

    def handle_expect_100(self) -> bool:
        self._wait_while_stalled()
        super().handle_expect_100()
        self.wfile.flush()
        return True

    def _wait_while_stalled(self) -> None:
        while self.server.proxy.stalled and not self.server.proxy.down:
            time.sleep(0.02)

    def answer(self) -> None:
        proxy = self.server.proxy
        self._wait_while_stalled()
        body = self._body()
        operation, key = _operation(self.command, self.path)
        fault = proxy.pick_fault(operation, key)
        time.sleep(proxy.delay)
        status: int | None = None
        reply_headers: list[tuple[str, str]] = []
        data = b""
        if fault in (None, "cut", "lost_reply"):
            status, reply_headers, data = self._forward(body)
        if fault == "slow_down":
            status, reply_headers, data = 503, [("Content-Type", "application/xml")], SLOW_DOWN
        if fault == "cut" and len(data) < 2:
            fault = None
        with proxy.lock:
            proxy.log.append(Request(operation, key, fault, status, *self._who()))
        if fault in ("reset", "lost_reply") or status is None:
            self.close_connection = True
            _abort(self.connection)
            return
        self.send_response_only(status)
        for name, value in reply_headers:
            self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if fault == "cut":
            data = data[: len(data) // 2]
            self.close_connection = True
        if self.command != "HEAD":
            self.wfile.write(data)
        self.wfile.flush()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(chunks)

    def _who(self) -> tuple[str | None, bool]:
        """Access key of the signature, and whether the requester pays."""
        signed = re.search(r"Credential=([^/]+)/", self.headers.get("Authorization", ""))
        return (signed[1] if signed else None), self.headers.get("x-amz-request-payer") == "requester"

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        hop_by_hop = {"connection", "keep-alive", "transfer-encoding", "expect", "content-length"}
        headers = {name: value for name, value in self.headers.items() if name.lower() not in hop_by_hop}
        if self.upstream is None:
            self.upstream = http.client.HTTPConnection(*self.server.proxy.upstream, timeout=60)
        self.upstream.request(self.command, self.path, body or None, headers)
        reply = self.upstream.getresponse()
        data = reply.read()
        dropped = hop_by_hop - ({"content-length"} if self.command == "HEAD" else set())
        return reply.status, [(n, v) for n, v in reply.getheaders() if n.lower() not in dropped], data


def _operation(method: str, path: str) -> tuple[str, str]:
    """Operation and bucket/key (for a listing the prefix) of an S3 request in path style."""
    split = urlsplit(path)
    query = parse_qs(split.query, keep_blank_values=True)
    key = split.path.strip("/")
    if method == "GET" and "list-type" in query:
        return "LIST", f"{key}/{query.get('prefix', [''])[0]}".rstrip("/")
    if method == "POST" and "delete" in query:
        return "DELETE", key
    return method, key


def _abort(connection: socket.socket) -> None:
    """Close with a reset, as a server that dies does."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
