"""Everything that knows Caddy. Knows nothing of deploys."""
