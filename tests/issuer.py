"""An issuer of OAuth 2.0 tokens on this machine: real HTTP, real keys, made for each test."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

AUDIENCE = "bridge"


class SigningKey:
    """One key pair with an id."""

    def __init__(self, kid: str, algorithm: str = "RS256") -> None:
        self.kid, self.algorithm = kid, algorithm
        self.private: Any
        if algorithm.startswith("ES"):
            self.private = ec.generate_private_key(ec.SECP256R1())
        else:
            self.private = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def public(self, **more: Any) -> dict[str, Any]:
        """As it stands in a key set."""
        of = jwt.algorithms.ECAlgorithm if self.algorithm.startswith("ES") else jwt.algorithms.RSAAlgorithm
        return {**of.to_jwk(self.private.public_key(), as_dict=True), "kid": self.kid, "use": "sig", **more}


class LocalIssuer:
    """Serves a discovery document and a key set on a loopback port while the block lasts.

    Attributes:
        keys: the key set as it is served.
        fetches: how often it was asked for.
        asked: how many requests of any kind have come, answered or not.
        may_answer: cleared: they wait until it is set, 10 s at most.
        broken: answer 500 to everything.
        speaks: HTTP; otherwise its answers are none.
    """

    def __init__(self, *keys: dict[str, Any]) -> None:
        self.keys = list(keys)
        self.fetches = self.asked = 0
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.broken = False
        self.speaks = True
        self.claims_to_be: str | None = None
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked += 1
                issuer.may_answer.wait(10)
                if not issuer.speaks:
                    self.wfile.write(b"no HTTP at all\r\n\r\n")
                    return
                body = issuer._answer(self.path)
                self.send_response(500 if body is None else 200)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    def _answer(self, path: str) -> dict[str, Any] | None:
        if self.broken:
            return None
        if path == "/.well-known/openid-configuration":
            return {"issuer": self.claims_to_be or self.url, "jwks_uri": f"{self.url}/keys"}
        self.fetches += 1
        return {"keys": self.keys}

    def token(self, key: SigningKey, **claims: Any) -> str:
        """A good token signed with that key; a claim that is `...` is left out."""
        given = {"iss": self.url, "aud": AUDIENCE, "exp": time.time() + 600, "sub": "vaic", **claims}
        payload = {name: value for name, value in given.items() if value is not ...}
        return jwt.encode(payload, key.private, algorithm=key.algorithm, headers={"kid": key.kid})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
