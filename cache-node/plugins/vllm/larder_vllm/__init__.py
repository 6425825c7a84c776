"""Larder for vLLM: KV cache shared between engines through a cache node.

A request meets the modules in this order: ``connector`` (what vLLM loads; decides whether this engine may share at
all), ``spec`` (one per process), ``manager`` (scheduler: which chunks are held, leased, stored), ``worker`` (each
worker process: vLLM's jobs), ``transfers`` (who carries each one out and when it counts), ``slab`` (where a chunk lies
in the node's memory), ``layout`` (how it is cut from pages). Copies are made by ``host`` or ``gpu``; in a GPU also by
the node that ``handover`` asks, to which ``pages`` names them. ``movers`` chooses, ``cuda`` is the driver. Beside them
``link`` is the connection to the node, ``wire`` its messages, ``identity`` the digests that keep two models' KV apart.
"""

__version__ = "0.1.0"
