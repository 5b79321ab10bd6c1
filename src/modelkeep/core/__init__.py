"""The pure ground floor: what the words mean and how every decision is made.

Nothing in here reads a clock, a file, a socket, the environment or a random number: time, ids and entropy are
arguments, so that each decision can be replayed years later from what was stored.
"""
