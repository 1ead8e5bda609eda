"""Access to the page's server: requests by a trusted name, from the page itself, and from elsewhere with the token."""

from __future__ import annotations

import hmac
import ipaddress
import logging
import socket
from urllib.parse import SplitResult, urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from surveybridge.storage.errors import StorageError

log = logging.getLogger(__name__)

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address to bind to."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def guard(host: str, token: str | None) -> Middleware:
    """Middleware that refuses what does not come from the page or its user, with 403 (or 401 without the token).

    Parameters
    ----------
    host : str
        Address that the server is bound to.
    token : str or None
        Asked of every request, in the cookie that the page's first visit sets, as `?token=` or as a bearer token.
    """

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        reason = _refused(request, host, token)
        if reason:
            response: web.StreamResponse = web.json_response({"error": reason[1]}, status=reason[0])
        else:
            try:
                response = await handler(request)
            except web.HTTPException as error:
                response = web.json_response({"error": error.text or error.reason}, status=error.status)
            except (OSError, StorageError) as error:  # a full disk, storage that is away: the page tries again
                log.warning("%s: %s", request.path, error)
                response = web.json_response({"error": str(error)}, status=503)
            if token and _given(request.query.get("token"), token):
                response.set_cookie(cookie_name(request), token, httponly=True, samesite="Strict", path="/")
        response.headers.update(HEADERS)
        return response

    return check


def cookie_name(request: web.Request) -> str:
    """Cookies are shared by all ports of a host, so the port is in the name."""
    return f"surveybridge_vet_{request.url.port}"


def _refused(request: web.Request, host: str, token: str | None) -> tuple[int, str] | None:
    name = _split(f"//{request.host}").hostname or ""
    if not _trusted(name, host):
        # A foreign name that resolves to this address (DNS rebinding) would make a foreign page the same origin.
        return 403, f"host {name!r} is not one of this server's; open the address that it printed"
    if token:
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        shown = (request.cookies.get(cookie_name(request)), bearer, request.query.get("token"))
        if not any(_given(text, token) for text in shown):
            return 401, "this server asks for its token; open the address that it printed"
    origin = request.headers.get("Origin")
    if origin is not None and _split(origin).netloc.lower() != request.host.lower():
        return 403, f"request from another origin, {origin!r}"
    navigation = request.method == "GET" and request.headers.get("Sec-Fetch-Mode") == "navigate"
    if request.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none") and not navigation:
        return 403, "request from another site"
    if request.method == "POST" and request.content_type != "application/json":
        return 403, f"content type {request.content_type!r}; send application/json"
    return None


def _trusted(name: str, bound: str) -> bool:
    if is_loopback(bound):
        return is_loopback(name)
    try:
        ipaddress.ip_address(name)  # an address cannot be rebound
    except ValueError:
        own = socket.gethostname().lower()
        return name.lower() in {"localhost", bound.lower(), own, own.split(".")[0], socket.getfqdn().lower()}
    return True


def _split(url: str) -> SplitResult:
    """Return the parts of a URL; none of a text that is not a URL."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")


def _given(text: str | None, token: str) -> bool:
    return text is not None and hmac.compare_digest(text.encode(), token.encode())
