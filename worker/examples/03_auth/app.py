"""Three doors for the telephony side: a permanent token (in use), none at all, and OAuth access tokens."""

import asyncio
import os

from dotenv import load_dotenv

from deepgram_audiocodes_bridge import (
    BridgeConfig,
    BridgeErrorEvent,
    DeepgramBridge,
    Session,
    SessionEndEvent,
    SessionStartEvent,
)

load_dotenv()

api_key = os.getenv("DEEPGRAM_API_KEY")
if not api_key:
    raise SystemExit("DEEPGRAM_API_KEY is not set. Export it, or put it into a .env file.")

# For door 3: `authenticate` decides alone. None lets the caller in, a Response turns it away.
#
# import jwt
# from websockets.asyncio.server import ServerConnection
# from websockets.datastructures import Headers
# from websockets.http11 import Request, Response
#
# keys = jwt.PyJWKClient("https://login.example.com/.well-known/jwks.json")
#
#
# def check(token: str) -> None:
#     key = keys.get_signing_key_from_jwt(token)
#     jwt.decode(token, key, algorithms=["RS256"], audience="parcel-desk", issuer="https://login.example.com")
#
#
# async def authenticate(connection: ServerConnection, request: Request) -> Response | None:
#     scheme, _, token = request.headers.get("Authorization", "").partition(" ")
#     try:
#         if scheme.lower() != "bearer":
#             raise jwt.InvalidTokenError("no bearer token")
#         await asyncio.to_thread(check, token)  # may fetch keys, so not in the event loop
#     except jwt.PyJWTError:
#         return Response(401, "Unauthorized", Headers({"WWW-Authenticate": "Bearer"}), b"Unauthorized\n")
#     return None

bridge = DeepgramBridge(
    BridgeConfig(
        deepgram_api_key=api_key,
        deepgram_config={
            "agent": {
                "listen": {"provider": {"type": "deepgram", "model": "flux-general-en"}},
                "think": {
                    "provider": {"type": "open_ai", "model": "gpt-4o-mini"},
                    "prompt": "You answer the phone at a parcel desk, in one or two short spoken sentences.",
                },
                "speak": {"provider": {"type": "deepgram", "model": "aura-2-thalia-en"}},
                "greeting": "Hello, this is the parcel desk.",
            },
        },
        port=8000,
        # Door 1: the caller's side sends `Authorization: Bearer <AC_TOKEN>`. Mind that an unset variable
        # gives None, and None asks nobody for anything.
        ac_token=os.getenv("AC_TOKEN"),
        # Door 2: open to everybody. Only where the network itself keeps strangers out.
        # ac_token=None,
        # Door 3: OAuth 2.0 access tokens.
        # ac_token=None,
        # authenticate=authenticate,
    )
)


@bridge.on("session_start")
async def on_session_start(session: Session, event: SessionStartEvent) -> None:
    print(f"{event.conversation_id} was let in")


@bridge.on("session_end")
async def on_session_end(session: Session, event: SessionEndEvent) -> None:
    print(f"{session.conversation_id} ended: {event.reason} after {event.duration_ms} ms")


@bridge.on("error")
async def on_error(session: Session, event: BridgeErrorEvent) -> None:
    print(f"{session.conversation_id} {event.code}: {event.description}")


asyncio.run(bridge.run())
