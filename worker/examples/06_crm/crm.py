"""A stand-in for a CRM: takes records by POST and keeps one for each `Idempotency-Key`.

`python crm.py [PORT]`; GET /records shows them.
"""

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

records: dict[str, dict[str, Any]] = {}
posts = 0
slow_seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        global posts
        record = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        records.setdefault(self.headers.get("Idempotency-Key", record["conversation_id"]), record)
        posts += 1
        time.sleep(slow_seconds)  # stored, but not answered yet: the worst moment to die
        self._answer({"stored": True})

    def do_GET(self) -> None:
        self._answer({"posts": posts, "records": list(records.values())})

    def _answer(self, body: dict[str, Any]) -> None:
        encoded = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    def log_message(self, format: str, *args: Any) -> None:
        pass


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8090
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    print(f"http://127.0.0.1:{server.server_port}/records", flush=True)
    server.serve_forever()
