"""Who may ask: API keys of a file or the environment, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path

from ..adapters.errors import UsageError
from .errors import ApiError

KEYS_VARIABLE = "SAFETYKIT_API_KEYS"  # of the environment: keys, separated by white space or commas
ANONYMOUS = "anonymous"
_SHORTEST = 16  # letters of a key
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(?::\d{1,5})?")  # of a header
_SHOWN = 8  # hexadecimal digits of a key's hash that name it in logs


class Keys:
    """The keys that are accepted; without any, everybody is.

    Only hashes are kept, which are all compared, whichever fits.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def __len__(self) -> int:
        return len(self._digests)

    def client(self, authorization: str | None) -> str:
        """Who asks, by the header ``Authorization``: a name for logs and turns that does not betray the key.

        Raises:
            ApiError: no key, or an unknown one.
        """
        if not self._digests:
            return ANONYMOUS
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise ApiError(401, "You didn't provide an API key: Authorization: Bearer KEY.", code="missing_api_key")
        digest = _digest(key.strip())
        fits = [hmac.compare_digest(digest, known) for known in self._digests]
        if not any(fits):
            raise ApiError(401, "Incorrect API key provided.", code="invalid_api_key")
        return digest.hex()[:_SHOWN]


def read_keys(path: Path | None) -> Keys:
    """The keys of a file, one a line, and those of the environment; a line that begins with # is none.

    Raises:
        UsageError: the file cannot be read or holds no key, or a key is short or holds white space.
    """
    found = os.environ.get(KEYS_VARIABLE, "").replace(",", " ").split()
    if path is not None:
        try:
            lines = [line.strip() for line in path.read_text().splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"The keys of {path} cannot be read ({error}).", "Write one key a line.") from None
        own = [line for line in lines if line and not line.startswith("#")]
        if not own:
            raise UsageError(f"{path} holds no key.", "Write one key a line.")
        found += own
    if any(len(key) < _SHORTEST or len(key.split()) != 1 for key in found):
        raise UsageError(
            f"An API key is shorter than {_SHORTEST} letters or holds white space.",
            "Make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'",
        )
    return Keys(found)


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def require_own_host(header: str, host: str) -> None:
    """Refuse a request that was sent to another name: a page of somebody else's, whose name was pointed at this machine
    (DNS rebinding), could otherwise read the answers of a server that asks for no key.

    Args:
        header: ``Host``, with a port or without.
        host: where the server listens.

    Raises:
        ApiError: it is neither this machine's own name nor where the server listens.
    """
    found = _HOST.fullmatch(header)
    named = found[1].strip("[]").lower() if found else ""
    if named != host.lower() and not is_loopback(named):
        raise ApiError(
            421, "Without API keys only requests to this machine's own name are answered.", code="wrong_host"
        )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
