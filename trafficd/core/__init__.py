"""Deciding, without doing: every module here is pure.

No clock, no socket, no random, no logging: time comes in as an argument, reasons go out as values.
"""
