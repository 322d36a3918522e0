"""Whose adapters and exports are accepted: the policy file, and which policy is in force.

A policy is YAML. Paths in it are relative to the file::

    identities:
      - name: release            # how messages call it
        key: release.pub         # PEM, an elliptic-curve public key
      - name: build server
        chain: [root.pem]        # PEM, the certificates that are trusted
        subject: CN=build server,O=Example
    revoked: []                  # SHA-256 of a certificate (DER) or of a public key (DER, SubjectPublicKeyInfo)
    unsigned: refuse             # or accept: artifacts without any signature

It is in force through :func:`trusting`, which the options ``--policy`` and ``--require-signature`` use, or through the
variables ``SAFETYKIT_POLICY`` and ``SAFETYKIT_REQUIRE_SIGNATURE`` of the environment, for every process of a server.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from ..errors import UsageError
from .manifest import Sha256, Strict

POLICY, REQUIRE = "SAFETYKIT_POLICY", "SAFETYKIT_REQUIRE_SIGNATURE"
_LIMIT = 2**20  # bytes of a policy file
_SWITCH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
_ADVICE = "docs/howto/signing.md shows a policy."


class Identity(Strict):
    """Somebody whose signatures are accepted: the holder of a key, or of a certificate with this subject.

    Attributes:
        key: file of the public key.
        chain: files of the certificates that are trusted, roots and intermediates.
        subject: of the signing certificate, as RFC 4514 writes it (``CN=…,O=…``).
    """

    name: Annotated[str, Field(min_length=1, max_length=200)]
    key: Path | None = None
    chain: tuple[Path, ...] = ()
    subject: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.key is None) != bool(self.chain and self.subject) or (self.key and (self.chain or self.subject)):
            raise ValueError(f"{self.name} needs either a key, or a chain and a subject")
        return self

    @property
    def files(self) -> tuple[Path, ...]:
        """All files it names."""
        return (self.key,) if self.key else self.chain


class Policy(Strict):
    """Accepted identities, and what is refused all the same."""

    identities: Annotated[tuple[Identity, ...], Field(min_length=1)]
    revoked: tuple[Sha256, ...] = ()
    unsigned: Literal["refuse", "accept"] = "refuse"


@dataclass(frozen=True)
class _Trust:
    """What was asked for in this thread.

    Attributes:
        own: nothing is asked of what is read, see :func:`own_work`.
    """

    policy: Path | Policy | None = None
    require: bool = False
    own: bool = False


_NOTHING_ASKED = _Trust()


_TRUST: ContextVar[_Trust] = ContextVar("trust", default=_NOTHING_ASKED)


@contextmanager
def trusting(policy: Path | str | Policy | None = None, *, require_signature: bool = False) -> Iterator[None]:
    """Accept only what a policy accepts, for all adapters and exports that are opened in the block.

    It holds in this thread, and wins over the environment's policy; a signature that the environment requires stays
    required.

    Args:
        policy: a file or a policy; None keeps the one in force.
        require_signature: refuse unsigned artifacts even where the policy accepts them.

    Raises:
        UsageError: the policy cannot be read, or a signature is required and there is no policy.
    """
    before = _TRUST.get()
    given = Path(policy) if isinstance(policy, str) else policy
    token = _TRUST.set(
        _Trust(before.policy if given is None else given, before.require or require_signature, before.own)
    )
    try:
        in_force()  # what is wrong with it shows before any work
        yield
    finally:
        _TRUST.reset(token)


@contextmanager
def own_work() -> Iterator[None]:
    """Read in the block what this process has just written, and nobody can have signed yet."""
    token = _TRUST.set(replace(_TRUST.get(), own=True))
    try:
        yield
    finally:
        _TRUST.reset(token)


def in_force() -> Policy | None:
    """The policy that artifacts have to satisfy now; None where nobody asks for signatures.

    Raises:
        UsageError: it cannot be read, or a signature is required and there is no policy.
    """
    trust, said = _TRUST.get(), os.environ.get(REQUIRE, "0").strip().lower() or "0"
    if said not in _SWITCH:
        raise UsageError(f"{REQUIRE} is {said!r}, which is neither on nor off.", "Set it to 1 or to 0.")
    if trust.own:
        return None
    require, policy = trust.require or _SWITCH[said], trust.policy or os.environ.get(POLICY) or None
    if policy is None:
        if require:
            raise UsageError(
                "A signature is required, and no policy says whose.", f"Pass --policy FILE, or set {POLICY}."
            )
        return None
    found = policy if isinstance(policy, Policy) else read_policy(Path(policy))
    return found.model_copy(update={"unsigned": "refuse"}) if require else found


def read_policy(path: Path) -> Policy:
    """Read a policy file; its paths become absolute.

    Raises:
        UsageError: it or a file that it names is missing or cannot be read, or it is no policy.
    """
    import yaml

    try:
        with open(path, "rb") as file:
            data = file.read(_LIMIT + 1)
        if len(data) > _LIMIT:
            raise UsageError(f"The policy {path} is larger than {_LIMIT} bytes.", _ADVICE)
        body: Any = yaml.safe_load(data.decode("utf-8"))
    except OSError as error:
        raise UsageError(f"The policy {path} cannot be read: {error.strerror}.", _ADVICE) from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"The policy {path} is not YAML: {' '.join(str(error).split())}", _ADVICE) from None
    try:
        policy = Policy.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the top"
        raise UsageError(f"The policy {path} is not valid at {place}: {first['msg']}.", _ADVICE) from None
    here = path.absolute().parent
    found = tuple(
        one.model_copy(update={"key": one.key and here / one.key, "chain": tuple(here / file for file in one.chain)})
        for one in policy.identities
    )
    for one in found:
        for named in one.files:
            if not named.is_file():
                raise UsageError(f"{named} of the policy {path} is not there.", _ADVICE)
    return policy.model_copy(update={"identities": found})
