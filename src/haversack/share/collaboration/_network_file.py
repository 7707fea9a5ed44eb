"""A network as a person writes it down: TOML with nodes, links and a home.

home = "phone"
screened = true                    # answers from elsewhere that give orders count as none

[[node]]
name = "phone"
url = "http://127.0.0.1:8000"      # haversack serve PACK, or any OpenAI-compatible server
tier = "device"

[[node]]
name = "cloud"
url = "https://api.example.com"
key_env = "CLOUD_KEY"
tier = "cloud"
price = [0.15, 0.60]               # USD for a million tokens read and written

[[link]]                           # adds the waiting of a link; leave it out for the real one
from = "phone"
to = "cloud"
kind = "lte"                       # a name of core/link.py, or a CSV trace
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

import msgspec

from haversack.core.errors import DamagedFileError, UserError
from haversack.core.link import Link, link
from haversack.share._endpoint import Address, Endpoint
from haversack.share._prices import Price
from haversack.share.collaboration._network import EndpointEngine, Network, Node

Number = Annotated[float, msgspec.Meta(ge=0)]


class NodeEntry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One node of the file."""

    name: str
    url: str
    model: str = ""
    key_env: str = ""
    tier: str = "device"
    domain: str = ""
    price: tuple[Number, Number] = (0.0, 0.0)
    accuracy: float | None = None
    schema: str = "text"
    confidence: bool = False
    tries: Annotated[int, msgspec.Meta(ge=1, le=10)] = 2


class LinkEntry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, rename={"sender": "from"}):
    """One link, both ways."""

    sender: str
    to: str
    kind: str


class NetworkEntry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The whole file."""

    node: Annotated[list[NodeEntry], msgspec.Meta(min_length=1, max_length=256)]
    link: list[LinkEntry] = []
    home: str = ""
    screened: bool = False


def read_entry(path: Path) -> NetworkEntry:
    """The file, checked. Raises UserError when it cannot be read, DamagedFileError when it does not hold."""
    try:
        with path.open("rb") as file:
            record: dict[str, Any] = tomllib.load(file)
    except OSError as error:
        said = f"{path} cannot be read: {error.strerror}."
        raise UserError(said, field="network", given=str(path)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DamagedFileError(path, f"it is not TOML ({error})", field="network") from error
    try:
        return msgspec.convert(record, NetworkEntry)
    except msgspec.ValidationError as error:
        raise DamagedFileError(path, str(error).replace("`", ""), field="network") from error


def network_of(
    entry: NetworkEntry, deadline_s: float = 120.0, *, audit: Any = None
) -> tuple[Network, list[Endpoint]]:
    """The network with its endpoints, made on the event loop they are used on; close these at the end."""
    endpoints, nodes = [], []
    for one in entry.node:
        address = Address(one.url, one.model, one.key_env, price=Price(*one.price), tries=one.tries)
        endpoint = Endpoint(address)
        endpoints.append(endpoint)
        engine = EndpointEngine(endpoint, confidence=one.confidence, deadline_s=deadline_s)
        nodes.append(
            Node(
                one.name,
                engine,
                one.tier,
                Price(*one.price),
                domain=one.domain,
                accuracy=one.accuracy,
                schema=one.schema,
            )
        )
    links: dict[tuple[str, str], Link] = {}
    for seed, each in enumerate(entry.link):
        links[each.sender, each.to] = link(each.kind, seed=2 * seed)
        links[each.to, each.sender] = link(each.kind, seed=2 * seed + 1)
    return Network(nodes, links, entry.home, screened=entry.screened, audit=audit), endpoints
