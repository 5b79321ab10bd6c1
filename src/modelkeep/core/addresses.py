"""Which network addresses the server may be sent to by somebody's text, decided on the address itself.

A name, or an odd spelling of an address, is none of this file's business: it judges what the resolver made of
it. An address may carry another one (IPv6 has several ways to wrap an IPv4 address); every address within is
judged. It resolves nothing and connects to nothing.
"""

import ipaddress
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from modelkeep.core import errors, values

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

NETWORKS_MAX = 100
"""Networks of an allow-list: every delivery walks it."""

_NAT64 = IPv6Network("64:ff9b::/96")
_COMPATIBLE = IPv6Network("::/96")
_NEVER: tuple[Network, ...] = (
    IPv4Network("0.0.0.0/8"),  # this host
    IPv4Network("169.254.0.0/16"),  # link-local: metadata of most clouds
    IPv4Network("100.100.100.200/32"),  # metadata of Alibaba Cloud
    IPv4Network("192.0.0.192/32"),  # metadata of Oracle Cloud
    IPv4Network("168.63.129.16/32"),  # the wire server of Azure
    IPv6Network("::/128"),
    IPv6Network("fe80::/10"),
    IPv6Network("fd00:ec2::/32"),  # metadata of AWS
    IPv6Network("fd20:ce::/32"),  # metadata of Google Cloud
    IPv6Network("64:ff9b:1::/48"),  # a site's own translation: it may lead anywhere inside
)
"""What no allow-list opens: whoever reaches these gets credentials of the machine itself."""


def networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Read an allow-list: networks like `10.1.0.0/16`, or single addresses.

    Raises:
        InvalidSetting: one is neither, or there are too many.
    """
    found = []
    for text in texts:
        try:
            found.append(ipaddress.ip_network(text))
        except ValueError as problem:
            raise errors.InvalidSetting(
                f"{values.quoted(text, 60)} is no network; write one like 10.1.0.0/16, or a single address."
            ) from problem
    if len(found) > NETWORKS_MAX:
        raise errors.InvalidSetting(f"An allow-list has at most {NETWORKS_MAX} networks; join some.")
    return tuple(found)


def refusal(text: str, allowed: Iterable[Network] = ()) -> str | None:
    """Why an address must not be connected to, in a few words; None when it may be.

    Args:
        text: an address as a resolver writes it.
        allowed: networks that may be reached although they are private.
    """
    if "%" in text:
        return "it is bound to one network card"
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return "it is no address"
    carried = tuple(_carried(address))
    listed = tuple(allowed)
    for one in (address, *carried):
        if any(one in network for network in _NEVER):
            return "it is this host, link-local, or a cloud's metadata service"
    for one in carried or (address,):
        if one.is_multicast:
            return "it is a multicast address"
        if not any(one in network for network in listed) and (not one.is_global or one.is_reserved):
            return "it is private or reserved"
    return None


def is_address(host: str) -> bool:
    """Whether a host of a URL is an IP address: nobody can have one resolve to another machine."""
    try:
        ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def is_listed(text: str, allowed: Iterable[Network]) -> bool:
    """Whether an allow-list names the address itself."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return any(address in network for network in allowed)


def _carried(address: Address) -> Iterator[Address]:
    """The addresses that packets to this one would really go to."""
    if isinstance(address, IPv4Address):
        return
    if address.ipv4_mapped is not None:
        yield address.ipv4_mapped
    elif address.sixtofour is not None:
        yield address.sixtofour
    elif address.teredo is not None:
        yield from address.teredo
    elif address in _NAT64 or (address in _COMPATIBLE and int(address) > 1):
        yield IPv4Address(int(address) & 0xFFFFFFFF)
    elif (int(address) >> 32) & 0xFFFF_FFFF in (0x0000_5EFE, 0x0200_5EFE):  # ISATAP
        yield address
        yield IPv4Address(int(address) & 0xFFFFFFFF)
