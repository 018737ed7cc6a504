"""How instances are replaced. Each module is one driver; none imports another."""
