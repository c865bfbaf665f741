"""OAuth 2.0 access tokens: whether a JWT that a caller shows was signed by the one issuer that we trust, for us, now.

The issuer's signing keys are fetched beside the calls and kept; a caller waits for the network only when its token
names a key that is not known yet, and then for a bounded time. This is the one door to PyJWT.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import random
import time
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any, Final
from urllib.parse import urlsplit

import jwt

from bridge_shared import logs

log = logs.get("edge.oidc")

ALGORITHMS: Final = {
    "RSA": frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}),
    "EC": frozenset({"ES256", "ES384", "ES512"}),
    "OKP": frozenset({"EdDSA"}),
}
"""What a key of each type may sign with. Nothing symmetric: a public key must never serve as a password."""

LEEWAY_SECONDS: Final = 30.0
"""By how much the issuer's clock may differ from ours."""

FETCH_SECONDS: Final = 5.0
FETCH_BYTES: Final = 1024 * 1024
MOST_KEYS: Final = 100
RETRY_SECONDS: Final = (1.0, 30.0)
"""First and longest pause between tries while the issuer does not answer."""

UNKNOWN_KEY_SECONDS: Final = 60.0
"""Tokens that name unknown keys cause at most one fetch in so long, whoever sends them and however many."""

WAIT_SECONDS: Final = 3.0
"""The longest that a caller waits for such a fetch."""


class TokenRefused(Exception):
    """The token opens nothing. The message says why in words of ours, never what was in it.

    Attributes:
        ours: it may be good, but there are no keys to tell by.
    """

    def __init__(self, why: str, *, ours: bool = False) -> None:
        super().__init__(why)
        self.ours = ours


class Issuer:
    """One issuer of tokens and its keys.

    Args:
        issuer: its URL, exactly as tokens say it in `iss`; `/.well-known/openid-configuration` below it names the keys.
        audience: what `aud` has to contain.
        refresh_seconds: how often the keys are fetched anew; one that is withdrawn opens the door so long at most
            while the issuer answers.
        outage_seconds: how long they hold without an answer.
    """

    def __init__(self, issuer: str, audience: str, *, refresh_seconds: float, outage_seconds: float) -> None:
        self._issuer, self._audience = issuer, audience
        self._refresh, self._outage = refresh_seconds, outage_seconds
        self._keys: dict[str, tuple[frozenset[str], Any]] = {}
        self._fetched = -math.inf
        self._asked = -math.inf
        self._fetching = False
        self._wanted = asyncio.Event()
        self._tried = asyncio.Event()
        """Replaced after each try: who waits for one holds its event."""

    @property
    def ready(self) -> bool:
        """Whether there are keys to tell by."""
        return time.monotonic() - self._fetched <= self._outage

    async def run(self) -> None:
        """Keep the keys fresh until cancelled."""
        shortest, longest = RETRY_SECONDS
        failures = 0
        while True:
            self._wanted.clear()
            self._fetching = True
            try:
                document = await self._fetch()
                self._keys = _usable(document)
                self._fetched = time.monotonic()
                if failures:
                    log.info("the issuer of tokens answers again", keys=len(self._keys))
                failures, pause = 0, self._refresh
            except (OSError, ValueError, HTTPException) as error:
                if failures == 0:
                    log.warning("the keys of the token issuer could not be fetched, trying again", error=str(error))
                pause = min(shortest * 2**failures, longest, self._refresh)
                failures = min(failures + 1, 10)
            finally:
                self._fetching = False
            tried, self._tried = self._tried, asyncio.Event()
            tried.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause * random.uniform(0.9, 1.0)):  # pods that started together spread
                    await self._wanted.wait()

    async def check(self, token: str) -> None:
        """Return if the token is good.

        Raises:
            TokenRefused: it is not, or nobody can tell.
        """
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise TokenRefused("is no JWT") from None
        kid, algorithm = header.get("kid"), header.get("alg")
        if not isinstance(algorithm, str) or not any(algorithm in family for family in ALGORITHMS.values()):
            raise TokenRefused("is signed in a way that is not allowed")
        key = await self._key(kid if isinstance(kid, str) else None, algorithm)
        try:
            jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud"], "enforce_minimum_key_length": True},
            )
        except jwt.ExpiredSignatureError:
            raise TokenRefused("has expired") from None
        except (jwt.ImmatureSignatureError, jwt.InvalidIssuedAtError):
            raise TokenRefused("is not valid yet") from None
        except jwt.InvalidAudienceError:
            raise TokenRefused("is for somebody else") from None
        except jwt.InvalidIssuerError:
            raise TokenRefused("is from another issuer") from None
        except (jwt.exceptions.InvalidSubjectError, jwt.exceptions.InvalidJTIError):
            raise TokenRefused("has a sub or jti that is no text") from None
        except jwt.MissingRequiredClaimError as error:
            raise TokenRefused(f"has no {error.claim}") from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            raise TokenRefused("does not bear the issuer's signature") from None

    async def _key(self, kid: str | None, algorithm: str) -> Any:
        if not self.ready or self._find(kid) is None:
            await self._ask()
        if not self.ready:
            raise TokenRefused("cannot be checked: the issuer has not answered", ours=True)
        found = self._find(kid)
        if found is None:
            raise TokenRefused("names a key that the issuer does not have")
        algorithms, key = found
        if algorithm not in algorithms:
            raise TokenRefused("is signed in a way that its key does not allow")
        return key

    def _find(self, kid: str | None) -> tuple[frozenset[str], Any] | None:
        if kid is None:  # allowed only where it leaves no choice
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(kid)

    async def _ask(self) -> None:
        """Have the keys fetched, unless that was done a moment ago, and wait for it."""
        now = time.monotonic()
        if now - self._asked >= UNKNOWN_KEY_SECONDS:
            self._asked = now
            self._wanted.set()
        elif self.ready and not self._under_way:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WAIT_SECONDS):
                await self._tried.wait()
                while self._under_way:  # what has just ended may have begun before the key was there
                    await self._tried.wait()

    @property
    def _under_way(self) -> bool:
        return self._fetching or self._wanted.is_set()

    async def _fetch(self) -> Mapping[str, Any]:
        # in a thread: name resolution and TLS of the standard library block; it bounds itself
        return await asyncio.to_thread(_fetch_keys, self._issuer)


def _fetch_keys(issuer: str) -> Mapping[str, Any]:
    """The issuer's key set, by way of its discovery document (OpenID Connect Discovery 1.0, §4).

    Raises:
        OSError, ValueError, HTTPException: it cannot be had, or makes no sense.
    """
    end = time.monotonic() + FETCH_SECONDS
    found = _get(issuer.rstrip("/") + "/.well-known/openid-configuration", end)
    if found.get("issuer") != issuer:
        raise ValueError("its discovery document is of another issuer; set BRIDGE_OIDC_ISSUER as the document says it")
    address = found.get("jwks_uri")
    if not isinstance(address, str) or urlsplit(address).scheme not in {"https", urlsplit(issuer).scheme}:
        raise ValueError("its discovery document names no jwks_uri that is safe to use")
    return _get(address, end)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Keys come from where the operator said, and from nowhere else."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _get(url: str, end: float) -> dict[str, Any]:
    opener = urllib.request.build_opener(_NoRedirects)
    parts: list[bytes] = []
    with opener.open(url, timeout=max(0.1, end - time.monotonic())) as answer:
        while part := answer.read1(65536):
            parts.append(part)
            if sum(map(len, parts)) > FETCH_BYTES:
                raise ValueError(f"{url} is larger than {FETCH_BYTES} bytes")
            if time.monotonic() > end:
                raise TimeoutError(f"{url} took longer than {FETCH_SECONDS:g} s")
    try:
        document = json.loads(b"".join(parts))
    except RecursionError:
        raise ValueError(f"{url} is nested too deep") from None
    if not isinstance(document, dict):
        raise ValueError(f"{url} is no JSON object")
    return document


def _usable(document: Mapping[str, Any]) -> dict[str, tuple[frozenset[str], Any]]:
    """Key id → what it may sign with, and the key. What is not for signing, symmetric or unreadable is left out.

    Raises:
        ValueError: no key is left: an empty answer must not lock everybody out.
    """
    given = document.get("keys")
    keys: dict[str, tuple[frozenset[str], Any]] = {}
    for entry in given[:MOST_KEYS] if isinstance(given, list) else ():
        if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
            continue
        allowed = ALGORITHMS.get(str(entry.get("kty")), frozenset())
        if "alg" in entry:
            allowed &= {str(entry["alg"])}
        if not allowed:
            continue
        with contextlib.suppress(jwt.PyJWTError, ValueError, TypeError, AttributeError):
            keys[str(entry.get("kid", ""))] = (allowed, jwt.PyJWK(entry).key)
    if not keys:
        raise ValueError("the issuer offers no key that can be used")
    return keys
