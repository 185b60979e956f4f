"""Replays public traces through the decisions of `core`, on a virtual clock and with a seed.

The same functions that the operator calls decide here; what surrounds them (markets that take
nodes back, queues, bills) is imitated in memory. No process, no network, no waiting.
"""
