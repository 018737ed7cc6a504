"""The `systemd` driver: instances are units, here or on other hosts."""
