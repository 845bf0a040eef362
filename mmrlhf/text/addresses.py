"""Hosts and URLs that name this machine."""

from ipaddress import ip_address
from urllib.parse import urlsplit


def is_loopback(host: str) -> bool:
    """Return whether a host's name or address is that of this machine for itself."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_local_url(url: str) -> bool:
    """Return whether a URL, or a `HOST:PORT` after two slashes, leads to this machine."""
    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:  # half an IPv6 address
        return False
