"""What goes to the node: region slots, chunks under way, and what the node is known to hold.

Everything here is called under the manager's lock.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from typing import Final

from larder_vllm import wire
from larder_vllm.ask import Ask, StoreTicket
from larder_vllm.counters import Counters
from larder_vllm.link import Session

HELD_KEYS_MAX: Final = 262_144
"""Keys remembered as held by the node, so that they are not stored again: about 40 MiB at most."""
STORED, HELD = 0, 1
"""Results of a commit; any other is a refusal."""


class Stores:
    """The scheduler's side of storing."""

    def __init__(
        self, send: Callable[[wire.Message], bool], number: Callable[[], int], counters: Counters
    ) -> None:
        self._send, self._number, self._counters = send, number, counters
        self._session: Session | None = None
        self._nodes: set[bytes] = set()
        self._free_slots: list[int] = []
        self._held: OrderedDict[bytes, None] = OrderedDict()
        self._under_way: set[bytes] = set()
        self._commits: dict[int, StoreTicket] = {}

    def begin_session(self, session: Session) -> None:
        """A region of free slots.

        A node that does not name its sessions leaves a worker that still maps an earlier session's region unable to
        tell: in a second session with it nothing is stored.
        """
        blind = session.registered.session is None and session.node in self._nodes
        self._nodes.add(session.node)
        self._session = session
        self._free_slots = [] if blind else list(range(session.registered.region_slots - 1, -1, -1))

    def end_session(self) -> None:
        """The region is gone, and whatever lay in it."""
        self._session = None
        self._free_slots.clear()
        self._commits.clear()
        self._held.clear()
        self._under_way.clear()

    def void(self, tickets: Iterable[object]) -> None:
        """The cache was reset: what is under way is not stored, and what is held is of no use any more."""
        for ticket in (*tickets, *self._commits.values()):
            if isinstance(ticket, StoreTicket):
                ticket.void = True
        self._under_way.clear()
        self._held.clear()

    def note(self, held: Collection[bytes], missing: Collection[bytes]) -> None:
        """What the node's answers say about chunks."""
        for key in missing:
            self._held.pop(key, None)
        for key in held:
            self._held[key] = None
            self._held.move_to_end(key)
        while len(self._held) > HELD_KEYS_MAX:
            self._held.popitem(last=False)

    def prepare(
        self, ask: Ask, keys: Iterable[bytes], end_token: Callable[[bytes], int | None], world: int
    ) -> StoreTicket | None:
        """Takes region slots for the chunks that the node may not hold yet; None when there is nothing to write."""
        if self._session is None or not ask.stores:
            return None
        offered = list(keys)
        wanted = [key for key in offered if key not in self._held and key not in self._under_way]
        room = len(self._free_slots)
        if len(wanted) > room:
            self._counters.add("stores_dropped", len(wanted) - room)
            ask.stores = False  # a chunk behind a hole can never be loaded
            wanted = wanted[:room]
        parent = None
        for key in offered:
            end = end_token(key) or 0
            if wanted and key == wanted[0]:
                parent = ask.before(end)
            ask.tail = (end, key)
        if not wanted:
            return None
        slots = [self._free_slots.pop() for _ in wanted]
        self._under_way.update(wanted)
        return StoreTicket(ask, self._session, wanted, [end_token(key) or 0 for key in wanted], parent, slots, world)

    def settle(self, ticket: StoreTicket) -> None:
        """All workers have written: commits the chunks before the first that failed."""
        if ticket.failed:
            self._counters.add("stores_dropped", len(ticket.failed))
            ticket.ask.stores = False
        if ticket.session is not self._session:
            return
        good = 0 if ticket.void else min(ticket.failed, default=len(ticket.keys))
        self._free_slots += ticket.slots[good:]
        if not ticket.void:
            self._under_way.difference_update(ticket.keys[good:])
        if not good:
            return
        ask, id = ticket.ask, self._number()
        ticket.keys, ticket.slots = ticket.keys[:good], ticket.slots[:good]
        self._commits[id] = ticket
        # Not sent means the connection is lost: ``end_session`` follows.
        self._send(wire.Commit(
            id=id, keys=ticket.keys, end_tokens=ticket.end_tokens[:good], region_slots=ticket.slots,
            request=ask.req_id[:1024], tag=ask.tag, prompt_tokens=ask.prompt_tokens, parent=ticket.parent,
        ))

    def on_committed(self, id: int, results: list[int]) -> None:
        """The node has copied a commit's chunks, or says why not; the slots are free again."""
        ticket = self._commits.pop(id, None)
        if ticket is None:
            return
        self._free_slots += ticket.slots
        if ticket.void:
            return
        self._under_way.difference_update(ticket.keys)
        for key, result in zip(ticket.keys, results):
            self._counters.add({STORED: "stored_chunks", HELD: "stores_held"}.get(result, "stores_refused"))
            if result in (STORED, HELD):
                self.note([key], [])
