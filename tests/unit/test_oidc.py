"""bridge_edge.oidc: who waits for the issuer's keys and who does not, against a real issuer that can be held."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import jwt
import pytest

from bridge_edge import oidc
from issuer import AUDIENCE, LocalIssuer, SigningKey

Eventually = Callable[..., Awaitable[None]]

OLD, NEW = SigningKey("old", "ES256"), SigningKey("new", "ES256")


@contextlib.asynccontextmanager
async def trusting(issuer: LocalIssuer) -> AsyncIterator[oidc.Issuer]:
    """The edge's side, once it has the keys."""
    keys = oidc.Issuer(issuer.url, AUDIENCE, refresh_seconds=3600.0, outage_seconds=3600.0)
    running = asyncio.create_task(keys.run())
    try:
        async with asyncio.timeout(5):
            await keys._tried.wait()
        yield keys
    finally:
        issuer.may_answer.set()
        running.cancel()
        await asyncio.wait([running])


async def refusal(keys: oidc.Issuer, token: str) -> str:
    """Why it is refused; empty if it is not."""
    try:
        await keys.check(token)
    except oidc.TokenRefused as refused:
        return str(refused)
    return ""


async def test_everybody_with_a_new_key_who_comes_while_it_is_fetched_is_let_in(eventually: Eventually) -> None:
    with LocalIssuer(OLD.public()) as issuer:
        async with trusting(issuer) as keys:
            issuer.keys = [NEW.public()]
            issuer.may_answer.clear()
            asked = issuer.asked
            first = asyncio.create_task(refusal(keys, issuer.token(NEW)))
            await eventually(lambda: issuer.asked > asked)
            others = [asyncio.create_task(refusal(keys, issuer.token(NEW))) for _ in range(20)]
            await asyncio.sleep(0)  # each has asked by now
            issuer.may_answer.set()
            assert await asyncio.gather(first, *others) == [""] * 21
            assert issuer.fetches == 2


async def test_a_new_key_is_asked_for_again_when_a_fetch_from_before_it_was_known_is_under_way(
    eventually: Eventually,
) -> None:
    class Rotating(LocalIssuer):
        def _answer(self, path: str) -> dict[str, Any] | None:
            if self.fetches == 2:
                self.keys = [NEW.public()]
            return super()._answer(path)

    with Rotating(OLD.public()) as issuer:
        async with trusting(issuer) as keys:
            issuer.may_answer.clear()
            asked = issuer.asked
            keys._wanted.set()  # as the time for the next fetch does
            await eventually(lambda: issuer.asked > asked and not keys._wanted.is_set())
            newcomer = asyncio.create_task(refusal(keys, issuer.token(NEW)))
            await asyncio.sleep(0)
            issuer.may_answer.set()
            assert await newcomer == ""
            assert issuer.fetches == 3


async def test_a_flood_of_unknown_keys_causes_one_fetch_and_holds_up_nobody_whose_key_is_known(
    eventually: Eventually,
) -> None:
    with LocalIssuer(OLD.public()) as issuer:
        async with trusting(issuer) as keys:
            issuer.may_answer.clear()
            flood = [SigningKey(f"unknown-{n}", "ES256") for n in range(200)]
            waiting = [asyncio.create_task(refusal(keys, issuer.token(key))) for key in flood]
            await eventually(lambda: issuer.asked > 2)
            assert await refusal(keys, issuer.token(OLD)) == ""
            assert not issuer.may_answer.is_set()
            assert not any(one.done() for one in waiting)
            issuer.may_answer.set()
            assert set(await asyncio.gather(*waiting)) == {"names a key that the issuer does not have"}
            assert [await refusal(keys, issuer.token(key)) for key in flood[:3]] == [
                "names a key that the issuer does not have"
            ] * 3
            assert issuer.fetches == 2


@pytest.mark.parametrize("claims", [{"sub": 7}, {"jti": 7}], ids=["sub", "jti"])
async def test_a_claim_of_the_wrong_type_is_not_called_a_bad_signature(claims: dict[str, int]) -> None:
    with LocalIssuer(OLD.public()) as issuer:
        async with trusting(issuer) as keys:
            payload = {"iss": issuer.url, "aud": AUDIENCE, "exp": time.time() + 600, **claims}
            signed = jwt.PyJWS().encode(json.dumps(payload).encode(), OLD.private, "ES256", {"kid": OLD.kid})
            assert await refusal(keys, signed) == "has a sub or jti that is no text"
