"""Whether somebody listens at the address of a Ray cluster; Ray itself would try for a minute, and then abort."""

from __future__ import annotations

import socket

from surveybridge.cluster.errors import ClusterError

CONNECT_SECONDS = 5.0
"""Seconds within which a head must accept a connection."""


def check_port(address: str) -> None:
    """Refuse an address where nobody listens; `local` and `auto` have none that could be tried."""
    if address in ("local", "auto"):
        return
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        raise ClusterError(f"Ray address {address!r} is not HOST:PORT; give that of the head, such as 10.0.0.5:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ClusterError(
            f"Ray at {address} cannot be reached ({error.strerror or error}); start its head (`ray start --head`), "
            "or open that port from here"
        ) from error
