"""Which addresses a program that fetches what strangers list may connect to."""

import ipaddress
from collections.abc import Sequence

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""Addresses that a gateway translates to the IPv4 address in their last 32 bits (RFC 6052)."""


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
        ip = _reached(ipaddress.ip_address(address.partition("%")[0]))
        return (ip.is_global and not ip.is_multicast) or any(ip in network for network in self.networks)


def _reached(ip: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for, where it stands for one."""
    if isinstance(ip, ipaddress.IPv6Address):
        translated = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else None
        return ip.ipv4_mapped or ip.sixtofour or translated or ip
    return ip
