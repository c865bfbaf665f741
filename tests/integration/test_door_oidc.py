"""OAuth 2.0 tokens at the door: a real issuer over HTTP, real signatures, real upgrades."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from bridge_edge import oidc
from deepgram_audiocodes_bridge import DeepgramBridge
from harness import configuration, free_port
from issuer import AUDIENCE, LocalIssuer, SigningKey
from pods import Pod, Pods
from telephone import Stage, stage, wire

Eventually = Callable[..., Awaitable[None]]

RSA, EC = SigningKey("rsa-1"), SigningKey("ec-1", "ES256")


@pytest.fixture
def issuer() -> Iterator[LocalIssuer]:
    with LocalIssuer(RSA.public(), EC.public()) as issuer:
        yield issuer


def asks(issuer: LocalIssuer, **more: Any) -> dict[str, Any]:
    """Settings of an edge that wants this issuer's tokens."""
    return {"oidc_issuer": issuer.url, "oidc_audience": AUDIENCE, **more}


async def status(bridge: Stage | Pod, token: str | None) -> int:
    """How the upgrade with that token is answered."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        async with connect(bridge.url, additional_headers=headers, proxy=None, close_timeout=1):
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code


async def ready(bridge: Stage, eventually: Eventually) -> None:
    edge = bridge.app.process.edge
    assert edge is not None
    await eventually(lambda: edge.not_ready() is None)


def by_hand(header: dict[str, Any], claims: dict[str, Any], secret: bytes | None) -> str:
    """A token as no library would make it."""

    def part(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    signed = f"{part(json.dumps(header).encode())}.{part(json.dumps(claims).encode())}"
    return signed + "." + (part(hmac.digest(secret, signed.encode(), hashlib.sha256)) if secret is not None else "")


async def test_a_token_of_the_issuer_opens_the_door_and_a_call_goes_through(
    redis_url: str, issuer: LocalIssuer, eventually: Eventually
) -> None:
    async with stage(redis_url, **asks(issuer)) as bridge:
        await ready(bridge, eventually)
        for key in (RSA, EC):
            async with wire(bridge.url, token=issuer.token(key)) as vaic:
                await vaic.begin()
        assert await status(bridge, issuer.token(RSA, aud=["other", AUDIENCE])) == 101
        assert issuer.fetches == 1  # no caller waits for the issuer


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"exp": time.time() - 60}, "has expired"),
        ({"exp": ...}, "has no exp"),
        ({"exp": "soon"}, "does not bear"),
        ({"exp": 1e400}, "does not bear"),
        ({"nbf": time.time() + 600}, "is not valid yet"),
        ({"aud": "somebody else"}, "is for somebody else"),
        ({"aud": ...}, "has no aud"),
        ({"aud": ["a", "b"]}, "is for somebody else"),
        ({"iss": "http://127.0.0.1:1"}, "is from another issuer"),
        ({"iss": ...}, "has no iss"),
    ],
    ids=["expired", "no exp", "odd exp", "infinite exp", "too early", "aud", "no aud", "two auds", "iss", "no iss"],
)
async def test_a_token_that_is_not_for_us_now_is_answered_401(
    redis_url: str,
    issuer: LocalIssuer,
    eventually: Eventually,
    caplog: pytest.LogCaptureFixture,
    claims: dict[str, Any],
    why: str,
) -> None:
    async with stage(redis_url, **asks(issuer)) as bridge:
        await ready(bridge, eventually)
        assert await status(bridge, issuer.token(RSA, **claims)) == 401
        assert await status(bridge, issuer.token(RSA)) == 101
    lines = [vars(record)["why"] for record in caplog.records if record.getMessage() == "connection refused"]
    assert len(lines) == 1
    assert why in lines[0]


async def test_clocks_may_differ_a_little(redis_url: str, issuer: LocalIssuer, eventually: Eventually) -> None:
    async with stage(redis_url, **asks(issuer)) as bridge:
        await ready(bridge, eventually)
        assert await status(bridge, issuer.token(RSA, exp=time.time() - 5, nbf=time.time() + 15)) == 101


async def test_forged_tokens_open_nothing(redis_url: str, issuer: LocalIssuer, eventually: Eventually) -> None:
    claims = {"iss": issuer.url, "aud": AUDIENCE, "exp": time.time() + 600}
    pem = RSA.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    good, stranger = issuer.token(RSA), SigningKey("rsa-1")
    head, body, signature = good.split(".")
    forged = {
        "nothing": None,
        "no JWT": "secret",
        "three dots": "...",
        "no signature": by_hand({"alg": "none", "typ": "JWT"}, claims, None),
        "no signature, a known key": by_hand({"alg": "none", "kid": "rsa-1"}, claims, None),
        "None": by_hand({"alg": "None", "kid": "rsa-1"}, claims, None),
        "the public key as a password": by_hand({"alg": "HS256", "kid": "rsa-1"}, claims, pem),
        "the public key as a password, PEM stripped": by_hand({"alg": "HS256", "kid": "rsa-1"}, claims, pem.strip()),
        "an empty password": by_hand({"alg": "HS256", "kid": "rsa-1"}, claims, b""),
        "somebody's own key under a known id": issuer.token(stranger),
        "another body": f"{head}.{by_hand({}, claims, None).split('.')[1]}.{signature}",
        "a cut signature": good[:-4],
        "the signature left out": f"{head}.{body}.",
        "the algorithm of another key": by_hand({"alg": "ES256", "kid": "rsa-1"}, claims, b"x"),
        "a key id that is a list": by_hand({"alg": "RS256", "kid": ["rsa-1"]}, claims, b"x"),
        "a key of its own": by_hand({"alg": "RS256", "jwk": stranger.public()}, claims, b"x"),
        "a header that is a list": by_hand([], claims, b"x"),  # type: ignore[arg-type]
        "claims that are a list": by_hand({"alg": "RS256", "kid": "rsa-1"}, [], b"x"),  # type: ignore[arg-type]
        "deep nesting": base64.urlsafe_b64encode(b"[" * 4000).decode() + ".e30.e30",
    }
    async with stage(redis_url, **asks(issuer)) as bridge:
        await ready(bridge, eventually)
        answers = {name: await status(bridge, token) for name, token in forged.items()}
        assert answers == dict.fromkeys(forged, 401)
        assert await status(bridge, good) == 101


async def test_a_symmetric_key_in_the_key_set_is_never_used(
    redis_url: str, issuer: LocalIssuer, eventually: Eventually
) -> None:
    secret = b"s" * 32
    issuer.keys.append({"kty": "oct", "kid": "sym", "k": base64.urlsafe_b64encode(secret).decode(), "alg": "HS256"})
    claims = {"iss": issuer.url, "aud": AUDIENCE, "exp": time.time() + 600}
    async with stage(redis_url, **asks(issuer)) as bridge:
        await ready(bridge, eventually)
        assert await status(bridge, by_hand({"alg": "HS256", "kid": "sym"}, claims, secret)) == 401


async def test_a_new_key_is_taken_at_its_first_token_and_unknown_keys_cause_no_more_fetches(
    redis_url: str, issuer: LocalIssuer, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc, "UNKNOWN_KEY_SECONDS", 3600.0)
    rotated, later = SigningKey("rsa-2"), SigningKey("rsa-3")
    async with stage(redis_url, **asks(issuer)) as bridge:
        await ready(bridge, eventually)
        issuer.keys = [rotated.public()]
        assert await status(bridge, issuer.token(rotated)) == 101
        assert issuer.fetches == 2
        assert await status(bridge, issuer.token(RSA)) == 401  # withdrawn
        issuer.keys.append(later.public())
        assert [await status(bridge, issuer.token(later)) for _ in range(5)] == [401] * 5
        assert issuer.fetches == 2
        assert await status(bridge, issuer.token(rotated)) == 101


async def test_keys_are_fetched_anew_by_themselves(redis_url: str, issuer: LocalIssuer, eventually: Eventually) -> None:
    async with stage(redis_url, **asks(issuer, oidc_refresh_seconds=1.0)) as bridge:
        await ready(bridge, eventually)
        issuer.keys = [EC.public()]
        fetches = issuer.fetches
        await eventually(lambda: issuer.fetches >= fetches + 2)
        assert await status(bridge, issuer.token(EC)) == 101
        assert await status(bridge, issuer.token(RSA)) == 401


async def test_an_issuer_that_is_down_locks_nobody_out_whose_key_is_known(
    redis_url: str, issuer: LocalIssuer, eventually: Eventually
) -> None:
    async with stage(redis_url, **asks(issuer, oidc_refresh_seconds=1.0)) as bridge:
        await ready(bridge, eventually)
        issuer.broken = True
        edge = bridge.app.process.edge
        assert edge is not None and edge._issuer is not None
        tried = edge._issuer._tried
        await eventually(lambda: tried.is_set())
        assert await status(bridge, issuer.token(RSA)) == 101
        issuer.broken, issuer.keys = False, []  # an empty key set is a fault too
        tried = edge._issuer._tried
        await eventually(lambda: tried.is_set())
        assert await status(bridge, issuer.token(RSA)) == 101


async def test_keys_do_not_outlast_the_outage_that_is_allowed(
    redis_url: str, issuer: LocalIssuer, eventually: Eventually
) -> None:
    async with stage(redis_url, **asks(issuer, oidc_outage_seconds=1.0, oidc_refresh_seconds=1.0)) as bridge:
        await ready(bridge, eventually)
        issuer.broken = True
        edge = bridge.app.process.edge
        assert edge is not None
        await eventually(lambda: edge.not_ready() == "the keys of the token issuer are not known")
        assert await status(bridge, issuer.token(RSA)) == 503


async def test_an_issuer_that_was_never_reached_opens_nothing_until_it_answers(
    redis_url: str, issuer: LocalIssuer, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    issuer.broken = True
    async with stage(redis_url, **asks(issuer)) as bridge:
        assert await status(bridge, issuer.token(RSA)) == 503
        issuer.broken = False
        await ready(bridge, eventually)
        assert await status(bridge, issuer.token(RSA)) == 101
    assert [r.getMessage() for r in caplog.records if "could not be fetched" in r.getMessage()] == [
        "the keys of the token issuer could not be fetched, trying again"
    ]


async def test_a_discovery_document_of_somebody_else_is_not_believed(
    redis_url: str, issuer: LocalIssuer, caplog: pytest.LogCaptureFixture
) -> None:
    issuer.claims_to_be = "https://somebody.example"
    async with stage(redis_url, **asks(issuer)) as bridge:
        assert await status(bridge, issuer.token(RSA)) == 503
    assert issuer.fetches == 0


async def test_an_issuer_that_answers_nonsense_ends_no_pod(
    redis_url: str, issuer: LocalIssuer, eventually: Eventually
) -> None:
    issuer.speaks = False
    async with stage(redis_url, bridge=DeepgramBridge(configuration(ac_token="permanent")), **asks(issuer)) as bridge:
        assert await status(bridge, issuer.token(RSA)) == 503
        assert await status(bridge, "permanent") == 101
        issuer.speaks = True
        edge = bridge.app.process.edge
        assert edge is not None and edge._issuer is not None
        keys = edge._issuer
        await eventually(lambda: keys.ready)
        assert await status(bridge, issuer.token(RSA)) == 101


async def test_no_token_gets_into_the_log_whether_it_is_taken_or_refused(
    redis_url: str, issuer: LocalIssuer, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    tokens = [
        issuer.token(RSA, sub="canary"),
        issuer.token(RSA, aud="canary-audience"),
        "canary-permanent",
        "canary.a.b",
    ]
    async with stage(redis_url, **asks(issuer)) as bridge:
        await ready(bridge, eventually)
        assert [await status(bridge, token) for token in tokens] == [101, 401, 401, 401]
    ours = [record for record in caplog.records if record.name.startswith("deepgram_audiocodes_bridge")]
    text = "\n".join(" ".join(map(str, vars(record).values())) for record in ours)
    assert "connection refused" in text  # the others follow within a second: unsaid
    assert "canary" not in text
    for token in tokens:
        assert not any(part in text for part in token.split(".") if len(part) > 3)


async def test_tokens_from_the_environment_open_the_door_beside_the_issuer_also_while_it_is_away(
    redis_url: str, eventually: Eventually
) -> None:
    closed = DeepgramBridge(configuration(ac_token="permanent"))
    with LocalIssuer(RSA.public()) as issuer:
        async with stage(redis_url, bridge=closed, **asks(issuer)) as bridge:
            await eventually(lambda: issuer.fetches == 1)
            assert await status(bridge, "permanent") == 101
            assert await status(bridge, issuer.token(RSA)) == 101
            assert await status(bridge, "another") == 401
    away = {"oidc_issuer": f"http://127.0.0.1:{free_port()}", "oidc_audience": AUDIENCE}
    async with stage(redis_url, bridge=DeepgramBridge(configuration(ac_token="permanent")), **away) as bridge:
        assert await status(bridge, "permanent") == 101


async def test_an_edge_without_an_application_may_have_an_issuer_as_its_only_door(
    redis_url: str, issuer: LocalIssuer
) -> None:
    door = {"BRIDGE_OIDC_ISSUER": issuer.url, "BRIDGE_OIDC_AUDIENCE": AUDIENCE}
    async with Pods(redis_url, "ws://127.0.0.1:9", None, **door) as pods:
        edge = await pods.edge()  # ready: it has the keys
        assert await status(edge, None) == 401
        assert await status(edge, issuer.token(RSA)) == 101
        assert issuer.fetches == 1
