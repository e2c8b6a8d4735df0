"""The server of the viewer: viser, which is imported here alone, at an address that was tried before."""

from __future__ import annotations

import contextlib
import io
import logging
import socket
from collections.abc import Iterator
from typing import Any

from geomtx.checks import check_range

__all__ = ["check_address", "require_viser", "start_server", "stop_server"]


def require_viser() -> Any:
    """Import viser.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        import viser
    except ImportError as error:
        raise ImportError("viser must be installed for the viewer, got none; pip install 'geomtx[viewer]'") from error
    return viser


def check_address(host: str, port: int) -> None:
    """Require an address that a server can listen at: viser waits for ever where it can't.

    Args:
        host: Name or number of the machine, as it is known to those who connect.
        port: Port, 0 for any free one.

    Raises:
        ValueError: If the port is not in 0 … 65535.
        OSError: If the port is in use, or the address isn't this machine's.
    """
    check_range("port", port, 0, 65535)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # A port that a viewer has just left is free, which only other systems than Windows have to be asked for.
            if hasattr(socket, "AF_UNIX"):
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except (OSError, UnicodeError) as error:  # a host's name of odd characters can't be encoded
        reason = getattr(error, "strerror", None) or str(error)
        raise OSError(f"host and port must be an address that is free here, got {host}:{port}: {reason}") from error


def start_server(host: str, port: int) -> Any:
    """Start a server without a scene, and without the button that shares it through a server of viser's authors.

    Args:
        host: Address to listen on, see `check_address`.
        port: Port to listen on, see `check_address`.

    Returns:
        A `viser.ViserServer`.

    Raises:
        ImportError: If viser is not installed.
        ValueError: As `check_address`.
        OSError: As `check_address`.
    """
    viser = require_viser()
    check_address(host, port)
    # A browser that goes away in the middle of a greeting is no error that a user should see.
    logging.getLogger("websockets").addHandler(logging.NullHandler())
    with _silence():
        server = viser.ViserServer(host=host, port=port, label="geomtx", verbose=False)
    if port not in (0, server.get_port()):  # taken in between, so that viser went on to the next one
        stop_server(server)
        raise OSError(f"host and port must be an address that is free here, got {host}:{port}: in use")
    server.gui.configure_theme(show_share_button=False, show_logo=False)
    return server


def stop_server(server: Any) -> None:
    """Stop a server; its port is free then."""
    with _silence():
        server.stop()


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep back what viser prints: its boxes are not the user's."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
