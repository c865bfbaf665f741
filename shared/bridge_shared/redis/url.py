"""What a Redis URL describes.

    redis://[user:password@]host[:port][/database]      one server; rediss:// over TLS
    redis+sentinel://[user:password@]host[:port],…/name[/database]
    redis+cluster://[user:password@]host[:port],…

User and password may be written with %XX. With rediss://, and with `?ssl=true` behind the other two, these may follow:
ssl_ca_certs, ssl_certfile, ssl_keyfile, ssl_cert_reqs. Certificates are then checked against the addresses that
sentinels and nodes announce (`sentinel announce-ip`, `cluster-announce-hostname`).
"""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from bridge_shared.errors import ConfigError
from bridge_shared.redis.cluster import Cluster
from bridge_shared.redis.sentinel import Sentinel
from bridge_shared.redis.wire import Lone, Place, Topology

_TLS: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs")

_PARTS: Final = re.compile(r"([^/?#]*)([^?#]*)\??([^#]*)(?:#.*)?", re.DOTALL)

_EXAMPLES: Final = {
    "redis": "redis://[user:password@]host:port/0",
    "rediss": "rediss://[user:password@]host:port/0",
    "redis+sentinel": "redis+sentinel://[user:password@]host1:26379,host2:26379/name/0",
    "redis+cluster": "redis+cluster://[user:password@]host1:6379,host2:6379",
}


def topology(url: str, setting: str = "REDIS_URL") -> Topology:
    """What `url` describes.

    Raises:
        ConfigError: it cannot be used; the message never repeats the URL, which holds the password.
    """
    scheme = url.partition("://")[0].lower() if "://" in url else ""
    if scheme not in _EXAMPLES:
        raise ConfigError(
            setting, f"the scheme {scheme!r} is not one of {', '.join(_EXAMPLES)}", f"Write {_EXAMPLES['redis']}"
        )
    mend = f"Write {_EXAMPLES[scheme]}"
    # By hand, for there may be several hosts.
    authority, path, query = _PARTS.fullmatch(url.partition("://")[2]).groups()  # type: ignore[union-attr]
    login, _, hosts = authority.rpartition("@")
    try:
        addresses = [_address(host, 26379 if scheme == "redis+sentinel" else 6379) for host in hosts.split(",")]
    except ValueError:
        raise ConfigError(setting, "host or port cannot be read", mend) from None
    if scheme.startswith("redis+") and not all(host for host, _ in addresses):
        raise ConfigError(setting, "it names no host", mend)
    if not scheme.startswith("redis+") and len(addresses) > 1:
        raise ConfigError(setting, "it names several hosts", mend)
    user, _, password = login.partition(":")
    steps = [unquote(step) for step in path.split("/") if step]
    name = steps.pop(0) if scheme == "redis+sentinel" and steps else ""
    database = steps.pop(0) if steps else "0"
    if not database.isdecimal() or steps:
        raise ConfigError(setting, "the database is not a number", mend)
    arguments: dict[str, Any] = {
        "db": int(database),
        "username": unquote(user) or None,
        "password": unquote(password) or None,
    }
    options = parse_qsl(query)
    tls = scheme == "rediss" or ("ssl", "true") in options
    for option, value in options:
        if option == "ssl" and scheme.startswith("redis+") and value in ("true", "false"):
            continue
        # The client's other options would undo the rules that wire.py is about.
        if not tls or option not in _TLS:
            raise ConfigError(
                setting,
                f"the option {option!r} is not known",
                f"With rediss://, or with ?ssl=true behind Sentinel and Cluster, these may follow: {', '.join(_TLS)}",
            )
        arguments[option] = value
    if scheme == "redis+cluster":
        if arguments["db"]:
            raise ConfigError(setting, "a cluster has only the database 0", mend)
        return Cluster(addresses, arguments, tls=tls)
    if scheme == "redis+sentinel":
        if not name:
            raise ConfigError(setting, "it does not say what the sentinels call the primary", mend)
        return Sentinel(addresses, name, arguments, tls=tls)
    host, port = addresses[0]
    return Lone(Place({"host": host or "localhost", "port": port, **arguments}, tls=tls))


def _address(text: str, default: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    return parts.hostname or "", parts.port or default
