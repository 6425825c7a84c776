"""Proof with real engines: two vLLM, one cache node, the proxy. ``../run`` is the command.

``install`` makes vLLM's environment, ``program`` runs processes, ``engine`` / ``node`` / ``proxy`` are the three kinds of
them, ``chat`` asks and ``compare`` judges the answers; ``world`` holds one running constellation and ``cases`` the
proofs. What lies in ``../inside`` runs in vLLM's environment.
"""
