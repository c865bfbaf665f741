"""The edge: pods that hold the callers' WebSockets and nothing else that matters."""
