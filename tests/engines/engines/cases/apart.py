"""(g), (j): what must not be shared, and what a client cannot do."""

import secrets

from engines import chat, http_json, install
from engines.world import Case, World, against_cold, loaded


def salts(world: World) -> Case:
    """(g) Salted requests: shared within a salt, never across."""
    case = Case("g: salted requests")
    messages = chat.user(chat.prompt("g salt", 1600))
    world.put(world.a, messages, cache_salt="tenant one")
    for salt in ("tenant two", None):
        apart = Case("")
        loaded(apart, world.b, messages, **({"cache_salt": salt} if salt else {}))
        case.expect(apart.external_prefix_cache_hits == apart.cached_tokens == 0, f"{salt} was given tenant one's KV")
        case.expect(apart.max_logprob_diff <= apart.allowed, f"wrong for {salt}")
    loaded(case, world.b, messages, cache_salt="tenant one")
    case.expect(case.external_prefix_cache_hits > 0, "tenant one was not given its own KV")
    case.right()
    return case


def other_weights(world: World) -> Case:
    """(g) Two models of one name and shape with other weights."""
    case = Case("g: model of the same name and shape with other weights")
    messages = chat.user(chat.prompt("g weights", 1600))
    stored = world.put(world.a, messages)
    other = world.engine("C", set(), model=install.model(world.bin_dir, seed=1)).wait()
    try:
        world.node.wait_for_engines(3)
        answer = loaded(case, other, messages)
        namespaces = {engine["namespace"] for engine in world.node.stats()["engines"]}
        case.expect(len(namespaces) == 2, f"{len(namespaces)} namespaces for two models")
        case.expect(case.external_prefix_cache_hits == 0 and case.cached_tokens == 0, "another model's KV was loaded")
        case.control_difference = chat.difference(stored, answer)
        case.expect(case.control_difference > 10 * case.allowed, "the two models say the same")
        case.right()
        again = Case("")
        loaded(again, world.b, messages)
        case.expect(again.external_prefix_cache_hits > 0, "an engine with the same weights was not given them")
    finally:
        other.kill()
    return case


def adapters(world: World) -> Case:
    """(g) A LoRA adapter replaced at the same path and name."""
    case = Case("g: LoRA adapter replaced at the same path")
    path = world.folder / "adapter"
    messages = chat.user(chat.prompt("g lora", 1600))
    install.adapter(world.bin_dir, path, seed=1)
    world.a.load_adapter(path, again=False)
    stored = world.put(world.a, messages, model="adapter")
    install.adapter(world.bin_dir, path, seed=2)
    world.b.load_adapter(path, again=False)
    answer = loaded(case, world.b, messages, model="adapter")
    case.expect(case.external_prefix_cache_hits == 0 and case.cached_tokens == 0, "the old adapter's KV was loaded")
    case.control_difference = chat.difference(stored, answer)
    case.expect(case.control_difference > 10 * case.allowed, "the two adapters say the same")
    case.right()
    base = Case("")
    loaded(base, world.b, messages)
    case.expect(base.external_prefix_cache_hits == 0, "an adapter's KV was loaded for the base model")
    return case


def forged(world: World) -> Case:
    """(j) A forged larder object from a client is without effect."""
    case = Case("j: forged larder object")
    victim = chat.user(chat.prompt("j victim", 1600))
    attacker = chat.user(chat.prompt("j attacker", 1600))
    world.put(world.a, victim)
    forgeries: list[object] = [
        "text", 7, [], {}, {"tag": 5}, {"tag": "zz" * 16}, {"tag": "00" * 16, "lease": "ff" * 16},
        {"tag": secrets.token_hex(16), "lease": {"deep": []}}, {"lease": None, "tag": "1" * 4000},
    ]
    for forgery in forgeries:
        for url in (world.b.url, world.proxy.url):
            answer = chat.ask(url, attacker, kv_transfer_params={"larder": forgery})
            against_cold(case, world.b, attacker, answer)
    # A tag that means something: the node stages the victim's prefix for B under it, and an attacker names it.
    tag = secrets.token_hex(16)
    taught = chat.ask(world.b.url, victim, kv_transfer_params={"larder": {"tag": tag}})
    http_json.call("POST", f"{world.node.url}/v1/stage", {
        "tag": tag, "chain": ["00" * 8], "run_bytes": 512, "prompt_bytes": 512, "engine": world.b.url,
    })
    fresh = chat.user(chat.prompt("j attacker again", 1600))
    answer = loaded(case, world.b, fresh, kv_transfer_params={"larder": {"tag": tag}})
    case.expect(case.external_prefix_cache_hits == case.cached_tokens == 0, "an attacker was given a victim's KV")
    case.expect(taught.cached_tokens > 0, "the victim was not given its own KV")
    case.right()
    return case
