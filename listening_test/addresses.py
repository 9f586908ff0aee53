"""Where this server is to be reached, and whom it believes about where a request came from.

    trust_platform(os.environ)       before serving: whose X-Forwarded-For counts
    root_of(os.environ, address)     where raters find this server

uvicorn reads X-Forwarded-For from the right and takes the first address that is no trusted proxy's:
what the nearest proxy wrote, never what a client put before it. By itself it trusts this machine
only, so elsewhere an address is that of the connection.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

# Set by the platform, where the disk does not outlive a restart.
SPACE_VARIABLE = "SPACE_ID"
HOST_VARIABLE = "SPACE_HOST"
PROXIES_VARIABLE = "FORWARDED_ALLOW_IPS"  # uvicorn's
# A Space can be reached through its platform's proxies only, and those have private addresses.
_PLATFORM_PROXIES = (
    "127.0.0.1,::1,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,100.64.0.0/10,fc00::/7"
)  # fmt: skip


def trust_platform(environment: MutableMapping[str, str]) -> None:
    """On a Space, believe its proxies about where requests come from.

    Whoever has set uvicorn's variable knows better; but not with `*`, which believes the client.
    """
    if environment.get(SPACE_VARIABLE) and environment.get(PROXIES_VARIABLE, "*") == "*":
        environment[PROXIES_VARIABLE] = _PLATFORM_PROXIES


def root_of(environment: Mapping[str, str], address: str) -> str:
    """Where raters find this server: on a Space its own address, else `address`; without a last /.

    The page that shows a Space inside a frame has another one, and drops what stands behind a `?`.
    """
    host = environment.get(HOST_VARIABLE)
    return f"https://{host}" if host else address.rstrip("/")
