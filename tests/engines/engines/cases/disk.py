"""(k): what the node wrote to disk outlives it."""

from engines import chat
from engines.world import Case, World, loaded, whole_blocks


def from_disk(world: World) -> Case:
    """(k) The node is killed and started on its disk: the engine waits for what comes up, and loads it."""
    case = Case("k: loaded from the node's disk after its kill -9")
    disk = world.folder / "disk"
    world.restart_node(disk=disk)
    messages = chat.user(chat.prompt("k", 2400))
    first = world.put(world.a, messages)
    world.node.wait_for_disk()
    written = world.node.stats()["disk_chunks"]
    world.restart_node(disk=disk)
    world.node.wait_for_disk()
    stats = world.node.stats()
    case.more |= {"written_chunks": written, "recovered_chunks": stats["disk_recovered_chunks_total"]}
    case.expect(stats["held_chunks"] == 0, f"{stats['held_chunks']} chunks in the host tier of a node just started")
    case.expect(stats["disk_chunks"] == written, f"{stats['disk_chunks']} of {written} chunks found on disk")
    pending = world.b.counter("lookups_pending")
    loaded(case, world.b, messages)
    case.more["lookups_pending"] = world.b.counter("lookups_pending") - pending
    case.expect(case.more["lookups_pending"] > 0, "the engine was never told to wait")
    case.expect(case.external_prefix_cache_hits == whole_blocks(first.prompt_tokens) == case.cached_tokens,
                f"{case.external_prefix_cache_hits} hits, {case.cached_tokens} of {first.prompt_tokens} cached")
    case.right()
    world.restart_node()
    return case
