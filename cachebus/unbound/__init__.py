"""What fills an Unbound and what reads one have in common: its control channel, and the text form of its cache.

Knows Unbound's formats and nothing of queues, nodes and the bus.
"""
