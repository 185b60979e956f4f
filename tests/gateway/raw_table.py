"""The raw HTTP table: messages that peers read differently, and what must become of each.

Used by test_hostile_http.py (straight), test_hostile_proxies.py (behind nginx and HAProxy) and as
the seed of test_hostile_fuzz.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from tests.support.gateway import CHAT, KEY

SMUGGLED = "smuggled"
"""The prompt of a request that hides in another one: it must never reach an engine."""


def body(mark: str = "a", **more: object) -> bytes:
    """A chat request that is answered at once; `mark` is what the engine sees."""
    messages = [{"role": "user", "content": mark}]
    return orjson.dumps({"model": "demo", "messages": messages, "max_tokens": 1, **more})


def head(
    *lines: str | bytes, target: str = CHAT, method: str = "POST", version: str = "HTTP/1.1",
    host: str | None = "x", key: str | None = KEY,
) -> bytes:  # fmt: skip
    """A head with its empty line; `lines` are header lines."""
    out = [f"{method} {target} {version}".encode()]
    if host is not None:
        out.append(f"Host: {host}".encode())
    if key is not None:
        out.append(f"Authorization: Bearer {key}".encode())
    out += [line.encode() if isinstance(line, str) else line for line in lines]
    return b"\r\n".join([*out, b"", b""])


def post(*lines: str | bytes, mark: str = "a", content: bytes | None = None, **more: Any) -> bytes:
    """A whole request with its length."""
    content = body(mark) if content is None else content
    return head(*lines, f"Content-Length: {len(content)}", **more) + content


def chunked(*lines: str | bytes, coding: str = "chunked", payload: bytes | None = None) -> bytes:
    """A request in chunks; `payload` as it goes over the wire."""
    wire = chunks(body()) if payload is None else payload
    return head(f"Transfer-Encoding: {coding}", *lines) + wire


def chunks(content: bytes, *trailers: bytes) -> bytes:
    return b"%x\r\n%s\r\n0\r\n" % (len(content), content) + b"".join(trailers) + b"\r\n"


HIDDEN = post(mark=SMUGGLED)
"""What an attacker hides behind a message whose end two parsers see at different places."""


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    payload: bytes
    statuses: tuple[int, ...]
    closed: bool = False
    seen: tuple[str, ...] = ()
    behind: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """the statuses behind a proxy, where it answers itself or mends the message"""
    sentinel: bool = True


def refused(name: str, payload: bytes, status: int = 400, **behind: tuple[int, ...]) -> Case:
    """Answered with an error, hung up on, nothing forwarded."""
    return Case(name, payload, (status,), closed=True, behind=behind)


def taken(name: str, payload: bytes, *seen: str, **behind: tuple[int, ...]) -> Case:
    seen = seen or ("a",)
    return Case(name, payload, (200,) * len(seen), seen=seen, behind=behind)


def last(name: str, payload: bytes, status: int, *seen: str) -> Case:
    """The front closes after it as it was told to: what follows is nobody's."""
    return Case(name, payload, (status,), closed=True, seen=seen, sentinel=False)


def not_found(name: str, payload: bytes, **behind: tuple[int, ...]) -> Case:
    return Case(name, payload, (404,), behind=behind)


LENGTH = len(body())

CASES = (
    # --- two lengths -----------------------------------------------------------------------------
    refused("cl-and-te", head(f"Content-Length: {LENGTH}", "Transfer-Encoding: chunked") + chunks(body())),
    refused("te-and-cl", head("Transfer-Encoding: chunked", f"Content-Length: {LENGTH}") + chunks(body())),
    refused("cl-te-hides-a-request", head("Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n" + HIDDEN),
    refused("te-cl-hides-a-request", head("Transfer-Encoding: chunked", "Content-Length: 4") + b"%x\r\n%s\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN)),
    refused("two-lengths", head(f"Content-Length: {LENGTH}", "Content-Length: 0") + body()),
    refused("two-equal-lengths", head(f"Content-Length: {LENGTH}", f"Content-Length: {LENGTH}") + body()),
    refused("length-list", head(f"Content-Length: {LENGTH}, {LENGTH}") + body()),
    refused("length-zero-hides-a-request", head("Content-Length: 0", f"Content-Length: {len(HIDDEN)}") + HIDDEN),
    *(
        refused(f"length-{name}", head(f"Content-Length: {text}") + body())
        for name, text in (
            ("plus", f"+{LENGTH}"), ("minus", "-1"), ("hex", hex(LENGTH)), ("underscore", "1_0"),
            ("empty", ""), ("float", "1.0"), ("exponent", "1e2"), ("space-inside", "1 0"),
            ("huge", "9" * 30), ("text", "abc"), ("comma", "1,"),
        )
    ),
    refused("length-in-arabic-digits", head("Content-Length: ١٢") + body()),
    refused("space-before-the-colon", head(f"Content-Length : {LENGTH}") + body()),
    refused("tab-before-the-colon", head(f"Content-Length\t: {LENGTH}") + body()),
    taken("leading-zeros", head(f"Content-Length: 00{LENGTH}") + body()),
    taken("space-around-a-value", head(f"Content-Length:   {LENGTH}  ") + body()),
    # --- transfer codings --------------------------------------------------------------------------
    taken("chunked", chunked()),
    taken("chunked-in-capitals", chunked(coding="CHUNKED")),
    *(
        refused(f"te-{name}", chunked(coding=coding))
        for name, coding in (
            ("identity", "identity"), ("gzip", "gzip"), ("gzip-chunked", "gzip, chunked"), ("chunked-gzip", "chunked, gzip"), ("twice", "chunked, chunked"),
            ("xchunked", "xchunked"), ("quoted", '"chunked"'), ("vertical-tab", "\x0bchunked"), ("empty", ""), ("comma", "chunked,"),
        )
    ),
    refused("two-te", head("Transfer-Encoding: chunked", "Transfer-Encoding: chunked") + chunks(body())),
    refused("te-then-identity", head("Transfer-Encoding: chunked", "Transfer-Encoding: identity") + chunks(body())),
    refused("te-in-http-1.0", head("Transfer-Encoding: chunked", version="HTTP/1.0") + chunks(body())),
    *(
        refused(f"chunk-size-{name}", chunked(payload=size + b"\r\n" + body() + b"\r\n0\r\n\r\n"))
        for name, size in (
            ("plus", b"+%x" % LENGTH), ("minus", b"-1"), ("0x", b"0x%x" % LENGTH), ("underscore", b"1_0"), ("empty", b""),
            ("text", b"zz"), ("huge", b"f" * 20), ("space-before", b" %x" % LENGTH), ("space-after", b"%x " % LENGTH),
        )
    ),
    taken("chunk-size-with-100k-zeros", chunked(payload=b"0" * 100_000 + b"%x\r\n" % LENGTH + body() + b"\r\n0\r\n\r\n")),
    refused("chunk-with-a-bare-lf", chunked(payload=b"%x\n%s\r\n0\r\n\r\n" % (LENGTH, body()))),
    refused("chunk-ends-elsewhere", chunked(payload=b"%x\r\n%sxx0\r\n\r\n" % (LENGTH, body()))),
    refused("last-chunk-with-a-bare-lf", chunked(payload=b"%x\r\n%s\r\n0\n\n" % (LENGTH, body()))),
    taken("chunk-extension", chunked(payload=b"%x;a=b\r\n%s\r\n0\r\n\r\n" % (LENGTH, body()))),
    refused("chunk-extension-with-a-bare-lf", chunked(payload=b"%x;a\nb\r\n%s\r\n0\r\n\r\n" % (LENGTH, body()))),
    taken("chunk-extension-of-100k", chunked(payload=b"%x;%s\r\n%s\r\n0\r\n\r\n" % (LENGTH, b"a" * 100_000, body()))),
    taken("trailer", chunked(payload=chunks(body(), b"A: b\r\n"))),
    refused("trailer-20000", chunked(payload=chunks(body(), *(b"A%d: b\r\n" % n for n in range(20_000))))),
    refused("trailer-obs-fold", chunked(payload=chunks(body(), b"A: b\r\n c\r\n"))),
    refused("trailer-without-a-colon", chunked(payload=chunks(body(), b"what\r\n"))),
    # --- lines ----------------------------------------------------------------------------------------
    refused("bare-lf-everywhere", post().replace(b"\r\n", b"\n")),
    refused("bare-lf-in-a-header", post("A: b\nB: c")),
    refused("bare-cr-in-a-header", post("A: b\rB: c")),
    refused("bare-lf-before-the-body", post().replace(b"\r\n\r\n", b"\n\n")),
    refused("obs-fold", post("A: b\r\n c")),
    refused("obs-fold-first", head("A: b").replace(b"Host: x", b" folded\r\nHost: x")),
    refused("obs-fold-length", head("Content-Length:\r\n 5") + b"hello"),
    refused("nul-in-a-value", post(b"A: b\x00c")),
    refused("nul-in-a-name", post(b"A\x00: b")),
    refused("nul-in-the-target", post(target="/v1/chat/completions\x00")),
    refused("nul-in-the-method", post(method="PO\x00ST")),
    refused("control-in-a-value", post(b"A: \x01")),
    refused("name-with-a-space", post("A B: c")),
    refused("name-empty", post(": c")),
    refused("name-of-utf-8", post("Ä: c")),
    refused("name-with-a-colon-only", post("nothing")),
    *(refused(f"name-with-{ord(c):02x}", post(f"A{c}B: c")) for c in '()<>@,;\\"/[]?={}'),
    # --- the request line ----------------------------------------------------------------------------
    refused("target-absent", b"POST HTTP/1.1\r\nHost: x\r\n\r\n"),
    taken("two-spaces", post().replace(b"POST ", b"POST  ")),
    refused("tab-for-a-space", head().replace(b"POST ", b"POST\t")),
    refused("space-in-the-target", post(target=CHAT + " x")),
    not_found("absolute-form", post(target="http://x" + CHAT)),
    not_found("absolute-form-of-another-host", post(target="http://169.254.169.254" + CHAT)),
    refused("authority-form", post(target="x:80")),
    not_found("authority-form-connect", head(target="x:80", method="CONNECT")),
    refused("asterisk-form", post(target="*")),
    not_found("asterisk-options", head(target="*", method="OPTIONS")),
    not_found("fragment", post(target=CHAT + "#a")),
    refused("target-of-utf-8", post(target=CHAT + "/é")),
    refused("target-without-a-slash", post(target="v1/chat/completions")),
    refused("line-64k", post(target=CHAT + "?" + "a" * 65536)),
    refused("method-64k", post(method="P" * 65536)),
    refused("method-in-small-letters", post(method="post")),
    refused("method-with-a-slash", post(method="PO/ST")),
    refused("version-2.0", post(version="HTTP/2.0")),
    refused("version-1.2", post(version="HTTP/1.2")),
    refused("version-0.9", b"GET /v1/models\r\n\r\n"),
    refused("version-in-small-letters", post(version="http/1.1")),
    refused("version-long", post(version="HTTP/1.10")),
    taken("version-rtsp", post(version="RTSP/1.1")),
    refused("http-2-preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    refused("tls-hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64),
    refused("proxy-protocol", b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n" + post()),
    taken("empty-line-first", b"\r\n" + post()),
    # --- paths ------------------------------------------------------------------------------------------
    taken("query", post(target=CHAT + "?a=b")),
    *(
        not_found(f"path-{name}", post(target=target))
        for name, target in (
            ("encoded", "/v1/%63hat/completions"), ("encoded-slash", "/v1%2fchat/completions"), ("double-slash", "//v1/chat/completions"),
            ("dots", "/v1/x/../chat/completions"), ("encoded-dots", "/v1/%2e%2e/v1/chat/completions"), ("semicolon", CHAT + ";a=b"),
            ("encoded-nul", CHAT + "%00"), ("bad-percent", CHAT + "%zz"), ("encoded-crlf", CHAT + "%0d%0aA:b"), ("backslash", "/v1\\chat\\completions"),
            ("metrics", "/metrics"), ("shutdown", "/shutdown"),
        )
    ),
    # --- methods ---------------------------------------------------------------------------------------
    *(not_found(f"method-{method}", head(target=CHAT, method=method)) for method in ("GET", "OPTIONS", "TRACE", "PUT", "DELETE", "PATCH")),
    refused("method-unknown", head(method="FOO")),
    last("method-HEAD", head("Connection: close", method="HEAD"), 404),
    # --- Host ---------------------------------------------------------------------------------------------
    refused("host-absent", post(host=None)),
    taken("host-absent-in-http-1.0", post("Connection: keep-alive", host=None, version="HTTP/1.0")),
    refused("host-twice", post("Host: y")),
    refused("host-twice-equal", post("Host: x")),
    refused("host-of-garbage", post(host="x/y@z")),
    refused("host-with-a-space", post(host="x y")),
    refused("host-list", post(host="x, y")),
    taken("host-foreign", post(host="169.254.169.254")),
    taken("host-empty", post(host="")),
    # --- headers that others act on ------------------------------------------------------------------------
    refused("underscore", post("Content_Length: 0")),
    refused("underscore-x", post("X_Tier: demo")),
    taken("hop-by-hop", post("Connection: keep-alive, Authorization")),
    taken("forwarded", post("X-Forwarded-Host: evil", "X-Forwarded-For: 1.2.3.4", "Forwarded: host=evil", "X-Original-URL: /metrics", "X-Rewrite-URL: /metrics")),
    taken("method-override", post("X-HTTP-Method-Override: DELETE")),
    taken("upgrade-websocket", post("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==")),
    last("upgrade-h2c", post("Connection: Upgrade, HTTP2-Settings, close", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"), 200, "a"),
    taken("expect", post("Expect: 100-continue")),
    refused("expect-something-else", post("Expect: the-unexpected"), 417),
    refused("header-64k", post("A: " + "b" * 65536)),
    refused("headers-2000", post(*(f"A{n}: b" for n in range(2000)))),
    refused("cookie-200k", post("Cookie: " + "a" * 200_000)),
    # --- one after the other ---------------------------------------------------------------------------
    taken("pipelined", post(mark="a") + post(mark="b") + post(mark="c"), "a", "b", "c"),
    last("http-1.0-closes", post(version="HTTP/1.0"), 200, "a"),
    last("close", post("Connection: close"), 200, "a"),
    Case("get-with-a-body", head(f"Content-Length: {len(HIDDEN)}", method="GET", target=CHAT) + HIDDEN, (404,)),
    Case("get-with-chunks", head("Transfer-Encoding: chunked", method="GET", target=CHAT) + chunks(HIDDEN), (404,)),
)  # fmt: skip
