"""A rollout under load, with a verdict.

What is sent and where to is made of the configuration (`target`), what it means is decided by `verdict`, when each
thing happened is known to `phases`; all three are pure. `conduct` brings one verification to its end, `verifier` has
all of them, and `load` runs the generators, in processes of their own.
"""
