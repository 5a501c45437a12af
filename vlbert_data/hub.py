"""Whether a model hub can be asked. Promise: where its name is unknown here, nobody waits a minute to be told so."""

import os
import socket
from urllib.parse import urlsplit
from urllib.request import getproxies

HUB = "https://huggingface.co"


def is_out_of_reach(address: str | None = None) -> bool:
    """Return whether the hub's host has no address on this machine's network; then only what is cached can be had.

    address: the hub's, that of the environment (HF_ENDPOINT) or the usual one where none is given. A proxy may know
    names that this machine does not, so with one nothing is out of reach.
    """
    host = urlsplit(address or os.environ.get("HF_ENDPOINT") or HUB).hostname
    if host is None or getproxies():
        return False
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return True
    return False
