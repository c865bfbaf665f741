"""What edge, worker, simulators and SDK share: the protocols, the link, the door to Redis."""

__version__ = "0.1.0"
