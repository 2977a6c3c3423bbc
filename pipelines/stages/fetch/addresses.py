"""Addresses that strangers list: which of them a program may connect to, and how they are sent."""

import ipaddress
import re
from collections.abc import Sequence
from urllib.parse import quote

from yarl import URL

V4, V6 = ipaddress.IPv4Network, ipaddress.IPv6Network
NOT_PUBLIC = (
    V4("192.0.0.0/24"),  # protocol assignments, of which Python calls some global
    V4("168.63.129.16/32"),  # Azure's host, from inside of its machines
    V4("192.88.99.0/24"),  # relays of 6to4
    V6("2001::/23"),  # Teredo and other protocol assignments
    V6("2001:db8::/32"),
    V6("2002::/16"),  # 6to4: an IPv4 address in disguise
    V6("3fff::/20"),  # documentation
)
"""Special addresses that the registries name, and Python's `is_global` does not in every version."""
GLOBAL_V6 = V6("2000::/3")
"""All global unicast addresses of IPv6: not site-local ones, nor those that map, embed or translate IPv4."""
NAT64 = V6("64:ff9b::/96")
"""Addresses that a gateway translates to the IPv4 address in their last 32 bits (RFC 6052): how a machine without IPv4
reaches a host without IPv6."""
ADDRESS = re.compile(r"(https?)://([^/?#\\]+)([^#]*)", re.IGNORECASE)
SENT = "%!#$&'()*+,/:;=?@[]-._~"
"""Characters beside letters and digits that stand in an address as they are (RFC 3986)."""


class Allowed:
    """Public addresses, and those of the networks that are named.

    networks: such as 10.0.0.0/8. Raises ValueError for one that is none.
    """

    def __init__(self, networks: Sequence[str]) -> None:
        try:
            self.networks = [ipaddress.ip_network(n) for n in networks]
        except ValueError as error:
            raise ValueError(f"--allow: {error}; write for instance 10.0.0.0/8") from error

    def __contains__(self, address: str) -> bool:
        ip = ipaddress.ip_address(address.partition("%")[0])
        return _is_public(ip) or any(ip in network for network in self.networks)


def _is_public(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in NAT64:
            return _is_public(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        if ip not in GLOBAL_V6:
            return False
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in NOT_PUBLIC)


def parsed(address: str) -> URL:
    """An http or https address as it is sent: what stands there, only what may not be sent is quoted.

    A signature holds for the very characters of an address, so nothing that is quoted is written in another way.
    Raises ValueError where it is none.
    """
    found = ADDRESS.fullmatch(re.sub("[\t\r\n]", "", address.strip()).partition("#")[0])
    if not found:
        raise ValueError("no http or https address")
    scheme, authority, rest = found.groups()
    origin = URL(f"{scheme.lower()}://{authority}/")  # a name in other scripts than Latin has a form to be sent in
    if not origin.host or not origin.host.strip("."):
        raise ValueError("no host")
    return URL(f"{str(origin).rstrip('/')}/{quote(rest.removeprefix('/'), safe=SENT)}", encoded=True)
