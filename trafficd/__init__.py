"""trafficd: zero-downtime deploys behind Caddy, without Kubernetes."""

__version__ = "0.1.0"
