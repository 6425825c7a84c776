"""The scheduler's side against a scripted node: no sockets, no waiting, a clock that the test moves."""

import unittest

from vllm.v1.kv_offload.base import LookupResult, OffloadKey, ReqContext

from larder_vllm import wire
from larder_vllm.ask import Ask
from larder_vllm.jobs import LoadSpec, Outcome, StoreSpec
from larder_vllm.link import Session
from larder_vllm.manager import LarderManager
from larder_vllm.questions import Patience

HIT, MISS, RETRY = LookupResult.HIT, LookupResult.MISS, LookupResult.RETRY
TAG = b"t" * 16


def registered(session: bytes = b"s" * 16, region_slots: int = 8) -> Session:
    return Session(b"n" * 16, wire.Registered(
        id=0, namespace=b"0" * 16, slab_bytes=2**26, extent_bytes=2**26, slots_per_extent=512, slot_stride=2**17,
        region_bytes=2**20, region_stride=2**17, region_slots=region_slots, lease_ttl_ms=30_000, fds=0, session=session,
    ))


def keys(count: int, name: str = "k") -> list[bytes]:
    return [f"{name}{place}".encode() for place in range(count)]


class Case(unittest.TestCase):
    def setUp(self) -> None:
        self.now = 100.0
        self.sent: list[wire.Message] = []
        self.connected = True
        self.manager = LarderManager(self._send, 2, Patience(0.05, 1.0), lambda: self.now)
        self.manager.on_registered(registered(), [])

    def _send(self, message: wire.Message) -> bool:
        if self.connected:
            self.sent.append(message)
        return self.connected

    def begin(self, name: str = "r", count: int = 4, tag: bytes | None = None, **more: bool) -> ReqContext:
        context = ReqContext(name)
        for place, key in enumerate(keys(count)):
            context.set_offload_key_position(OffloadKey(key), 32 * (place + 1))
        self.manager.begin(Ask(name, keys(count), [32 * (n + 1) for n in range(count)], 32 * count + 5, tag, **more))
        return context

    def last(self, kind: type[wire.Message]) -> wire.Message:
        return [message for message in self.sent if isinstance(message, kind)][-1]

    def count(self, kind: type[wire.Message]) -> int:
        return sum(isinstance(message, kind) for message in self.sent)

    def lease(self, held: int, id: bytes = b"L" * 16, expires_ms: int = 30_000) -> None:
        question = self.last(wire.Lookup)
        assert isinstance(question, wire.Lookup)
        self.manager.on_message(wire.Lease(id=question.id, lease=id, slots=list(range(10, 10 + held)),
                                           generations=[7] * held, expires_ms=expires_ms))

    def grant(self, granted: list[bytes], tag: bytes = TAG, id: bytes = b"G" * 16) -> None:
        self.manager.on_message(wire.Grant(
            lease=id, tag=tag, keys=granted, end_tokens=[32 * (n + 1) for n in range(len(granted))],
            slots=list(range(20, 20 + len(granted))), generations=[9] * len(granted), expires_ms=30_000,
        ))

    def verdicts(self, context: ReqContext, count: int = 4) -> list[LookupResult]:
        return [self.manager.lookup(OffloadKey(key), context) for key in keys(count)]

    def settle(self, spec: object, failed: set[int] | None = None, workers: int = 2) -> None:
        assert isinstance(spec, (LoadSpec, StoreSpec))
        self.manager.settle({spec.ticket: Outcome(workers, failed or set())})


class Lookups(Case):
    def test_one_question_for_all_keys_then_hits_for_the_leased_ones(self) -> None:
        context = self.begin()
        self.assertEqual(self.verdicts(context), [RETRY, MISS, MISS, MISS])
        self.manager.on_schedule_end(None)
        # In the next step the engine's own cache may hold the first chunk: the walk starts elsewhere.
        self.assertEqual([self.manager.lookup(OffloadKey(key), context) for key in keys(4)[1:]], [RETRY, MISS, MISS])
        self.lease(3)
        self.assertEqual(self.verdicts(context), [HIT, HIT, HIT, MISS])
        self.assertEqual(self.count(wire.Lookup), 1)

    def test_retry_ends_after_the_limit_and_stays_a_miss(self) -> None:
        context = self.begin()
        self.now += 10  # queued: nobody waited
        self.assertEqual(self.verdicts(context)[0], RETRY)
        self.now += 0.049
        self.assertEqual(self.verdicts(context)[0], RETRY)
        self.now += 0.002
        self.assertEqual(self.verdicts(context)[0], MISS)
        self.lease(4)  # too late: given back, not used
        self.assertEqual(self.verdicts(context), [MISS] * 4)
        self.assertEqual(self.last(wire.Release), wire.Release(id=self.last(wire.Release).id, lease=b"L" * 16))

    def test_a_silent_node_is_not_waited_for_until_it_speaks(self) -> None:
        for name in "abc":
            context = self.begin(name)
            self.verdicts(context)
            self.now += 0.06
            self.assertEqual(self.verdicts(context)[0], MISS)
        self.assertEqual(self.verdicts(self.begin("d"))[0], MISS)
        self.manager.on_message(wire.Ok(id=1))
        self.assertEqual(self.verdicts(self.begin("e"))[0], RETRY)

    def test_a_silent_node_is_probed(self) -> None:
        for name in "abc":
            context = self.begin(name)
            self.verdicts(context)
            self.now += 0.06
            self.verdicts(context)
        asked = self.count(wire.Lookup)
        self.begin("d")
        self.assertEqual(self.count(wire.Lookup), asked)
        self.now += 1.1
        self.assertEqual(self.verdicts(self.begin("e"))[0], MISS)
        self.assertEqual(self.count(wire.Lookup), asked + 1)

    def test_misses_and_errors_are_misses(self) -> None:
        for name, answer in (("a", wire.Miss), ("b", wire.ErrorAnswer)):
            context = self.begin(name)
            id = self.last(wire.Lookup).id
            self.manager.on_message(
                answer(id=id, reason="not_held") if answer is wire.Miss else answer(id=id, code="?", message="?"))
            self.assertEqual(self.verdicts(context), [MISS] * 4)

    def test_no_node_no_waiting(self) -> None:
        self.manager.on_lost()
        self.assertEqual(self.verdicts(self.begin()), [MISS] * 4)
        self.assertEqual(self.count(wire.Lookup), 0)

    def test_losing_the_node_ends_the_wait_and_the_lease(self) -> None:
        waiting, leased = self.begin("a"), self.begin("b")
        self.lease(4)
        self.manager.on_lost()
        self.assertEqual(self.verdicts(waiting) + self.verdicts(leased), [MISS] * 8)

    def test_garbage_leases_are_given_back(self) -> None:
        for name, slots, generations in (("a", [1, 2], [1]), ("b", [1] * 9, [1] * 9), ("c", [2**32], [1]), ("d", [], [])):
            context = self.begin(name)
            self.manager.on_message(wire.Lease(id=self.last(wire.Lookup).id, lease=b"x" * 16, slots=slots,
                                               generations=generations, expires_ms=30_000))
            self.assertEqual(self.verdicts(context), [MISS] * 4, name)
        self.assertEqual(self.count(wire.Release), 4)

    def test_answers_to_nothing_are_given_back(self) -> None:
        self.manager.on_message(wire.Lease(id=999, lease=b"x" * 16, slots=[1], generations=[1], expires_ms=1))
        self.manager.on_message(wire.Miss(id=998, reason="?"))
        self.manager.on_message(wire.Committed(id=997, results=[0]))
        self.assertEqual(self.last(wire.Release).lease, b"x" * 16)

    def test_an_expired_lease_is_asked_for_again(self) -> None:
        context = self.begin()
        self.lease(4, expires_ms=5_000)
        self.now += 4.5
        self.assertEqual(self.verdicts(context)[0], RETRY)
        self.lease(2, id=b"M" * 16)
        self.assertEqual(self.verdicts(context), [HIT, HIT, MISS, MISS])

    def test_adapters_share_nothing(self) -> None:
        context = self.begin(shares=False)
        self.assertEqual(self.verdicts(context), [MISS] * 4)
        self.assertEqual(self.count(wire.Lookup), 0)
        stored = self.manager.prepare_store(keys(4), context)
        assert stored is not None
        self.assertEqual(stored.keys_to_store, [])


class Pending(Case):
    """Chunks that come up from the node's disk."""

    def pending(self) -> None:
        self.manager.on_message(wire.Pending(id=self.last(wire.Lookup).id, chunks=4, bytes=2**20))

    def test_the_request_waits_and_asks_again_until_the_chunks_are_leased(self) -> None:
        context = self.begin()
        self.assertEqual(self.verdicts(context)[0], RETRY)
        self.pending()
        for asked in range(2, 6):
            self.assertEqual(self.verdicts(context)[0], RETRY)
            self.assertEqual(self.count(wire.Lookup), asked - 1, "not before the pause is over")
            self.now += 0.065
            self.assertEqual(self.verdicts(context)[0], RETRY)
            self.assertEqual(self.count(wire.Lookup), asked)
            self.pending()
        self.now += 0.065
        self.verdicts(context)
        self.lease(4)
        self.assertEqual(self.verdicts(context), [HIT] * 4)
        self.assertEqual(self.manager.counters.total["lookups_pending"], 5)
        self.assertEqual(self.manager.counters.total["lookup_timeouts"], 0)

    def test_the_pauses_grow(self) -> None:
        context = self.begin()
        self.pending()
        for pause in (0.004, 0.008, 0.016, 0.032, 0.064, 0.064):
            asked = self.count(wire.Lookup)
            self.now += pause - 0.001
            self.verdicts(context)
            self.assertEqual(self.count(wire.Lookup), asked)
            self.now += 0.0011
            self.verdicts(context)
            self.assertEqual(self.count(wire.Lookup), asked + 1)
            self.pending()

    def test_it_does_not_wait_longer_than_it_may(self) -> None:
        context = self.begin()
        self.pending()
        for _ in range(9):
            self.now += 0.1
            self.assertEqual(self.verdicts(context)[0], RETRY)
            self.pending()
        self.now += 0.101
        self.assertEqual(self.verdicts(context), [MISS] * 4)
        self.assertEqual(self.manager.counters.total["pending_timeouts"], 1)
        asked = self.count(wire.Lookup)
        self.now += 1
        self.assertEqual(self.verdicts(context), [MISS] * 4)
        self.assertEqual(self.count(wire.Lookup), asked, "decided once")
        self.assertEqual(self.verdicts(self.begin("next"))[0], RETRY, "the node is not silent")

    def test_waiting_for_a_disk_does_not_spend_the_time_for_answers(self) -> None:
        context = self.begin()
        self.verdicts(context)
        self.pending()
        self.now += 0.5
        self.assertEqual(self.verdicts(context)[0], RETRY)
        self.now += 0.049
        self.assertEqual(self.verdicts(context)[0], RETRY)
        self.now += 0.002  # but a second question that nobody answers does
        self.assertEqual(self.verdicts(context)[0], MISS)
        self.assertEqual(self.manager.counters.total["lookup_timeouts"], 1)

    def test_a_part_in_hand_is_not_kept_waiting(self) -> None:
        self.grant(keys(2))
        context = self.begin(tag=TAG)
        self.pending()
        self.assertEqual(self.verdicts(context), [HIT, HIT, MISS, MISS])

    def test_a_miss_after_all_is_a_miss(self) -> None:
        context = self.begin()
        self.pending()
        self.now += 0.01
        self.verdicts(context)
        self.manager.on_message(wire.Miss(id=self.last(wire.Lookup).id, reason="not_held"))
        self.assertEqual(self.verdicts(context), [MISS] * 4)

    def test_losing_the_node_ends_it(self) -> None:
        context = self.begin()
        self.pending()
        self.manager.on_lost()
        self.assertEqual(self.verdicts(context), [MISS] * 4)
        self.manager.on_registered(registered(), [])
        self.now += 1  # asked once is enough: what a node that was away holds is not waited for
        self.assertEqual(self.verdicts(context), [MISS] * 4)

    def test_a_connection_that_is_gone_when_it_asks_again(self) -> None:
        context = self.begin()
        self.pending()
        self.connected = False
        self.now += 0.01
        self.assertEqual(self.verdicts(context), [MISS] * 4)

    def test_one_that_is_finished_asks_no_more(self) -> None:
        context = self.begin()
        self.manager.on_request_finished(context)
        self.pending()
        self.now += 0.01
        self.assertEqual(self.verdicts(context), [MISS] * 4)
        self.assertEqual(self.count(wire.Lookup), 1)

    def test_it_can_be_switched_off(self) -> None:
        self.manager = LarderManager(self._send, 2, Patience(0.05, 0.0), lambda: self.now)
        self.manager.on_registered(registered(), [])
        context = self.begin()
        self.pending()
        self.assertEqual(self.verdicts(context), [MISS] * 4)


class Grants(Case):
    def test_a_pushed_lease_and_one_that_goes_further_are_loaded_together(self) -> None:
        self.grant(keys(2))
        context = self.begin(tag=TAG)
        self.assertEqual(self.last(wire.Lookup).tag, TAG)
        self.assertEqual(self.verdicts(context)[0], RETRY)
        self.lease(3)
        self.assertEqual(self.verdicts(context), [HIT, HIT, HIT, MISS])
        spec = self.manager.prepare_load(keys(3), context)
        loads = [(m.lease, m.first, m.count) for m in self.sent if isinstance(m, wire.Load)]
        self.assertEqual(loads, [(b"G" * 16, 0, 2), (b"L" * 16, 2, 1)])
        self.assertEqual((list(spec.slots), list(spec.generations)), ([20, 21, 12], [9, 9, 7]))
        self.settle(spec, failed={1, 2})
        done = [(m.lease, m.ok, m.failed) for m in self.sent if isinstance(m, wire.Complete)]
        self.assertEqual(done, [(b"G" * 16, False, [1]), (b"L" * 16, False, [2])])
        self.assertEqual([m.lease for m in self.sent if isinstance(m, wire.Release)], [b"G" * 16, b"L" * 16])
        self.assertEqual(self.manager.counters.total["grant_tokens_unused"], 0)

    def test_a_pushed_lease_is_used_alone_when_the_answer_takes_long(self) -> None:
        self.grant(keys(3))
        context = self.begin(tag=TAG)
        self.assertEqual(self.verdicts(context)[0], RETRY)
        self.now += 0.006
        self.assertEqual(self.verdicts(context), [HIT, HIT, HIT, MISS])
        self.lease(4)
        self.assertEqual(self.last(wire.Release).lease, b"L" * 16)
        self.assertEqual(self.manager.counters.total["lookup_timeouts"], 0)

    def test_an_answer_that_goes_no_further_is_given_back(self) -> None:
        self.grant(keys(3))
        context = self.begin(tag=TAG)
        self.lease(3)
        self.assertEqual(self.last(wire.Release).lease, b"L" * 16)
        self.assertEqual(self.verdicts(context), [HIT, HIT, HIT, MISS])

    def test_only_the_part_that_equals_the_requests_own_keys_is_used(self) -> None:
        self.grant([*keys(2), b"other", b"k3"])
        context = self.begin(tag=TAG)
        self.manager.on_message(wire.Miss(id=self.last(wire.Lookup).id, reason="not_held"))
        self.assertEqual(self.verdicts(context), [HIT, HIT, MISS, MISS])

    def test_a_lease_for_another_prompt_is_given_back(self) -> None:
        self.grant(keys(4, "x"))
        context = self.begin(tag=TAG)
        self.assertEqual(self.last(wire.Release).lease, b"G" * 16)
        self.assertEqual(self.verdicts(context)[0], RETRY)

    def test_another_tag_gets_nothing(self) -> None:
        self.grant(keys(4))
        self.assertEqual(self.verdicts(self.begin(tag=b"u" * 16))[0], RETRY)
        self.assertEqual(self.verdicts(self.begin("s"))[0], RETRY)

    def test_unused_ones_end_and_are_counted(self) -> None:
        self.grant(keys(4))
        self.now += 31
        self.manager.on_schedule_end(None)
        self.assertEqual(self.last(wire.Release).lease, b"G" * 16)
        self.assertEqual(self.manager.counters.total["grant_tokens_unused"], 128)


class Loads(Case):
    def leased(self, name: str = "r") -> ReqContext:
        context = self.begin(name)
        self.lease(4)
        self.assertEqual(self.verdicts(context), [HIT] * 4)
        return context

    def test_load_goes_out_first_and_complete_after_the_last_worker(self) -> None:
        context = self.leased()
        spec = self.manager.prepare_load(keys(4)[1:3], context)
        assert isinstance(spec, LoadSpec)
        load = self.last(wire.Load)
        self.assertEqual((load.first, load.count), (1, 2))
        self.assertEqual((list(spec.slots), spec.session), ([11, 12], b"s" * 16))
        self.settle(spec, workers=1)
        self.assertEqual(self.count(wire.Complete), 0)
        self.settle(spec, workers=1)
        self.assertEqual(self.last(wire.Complete).ok, True)
        self.assertIsInstance(self.sent[-1], wire.Release)

    def test_a_failed_load_is_told_and_never_hit_again(self) -> None:
        context = self.leased()
        spec = self.manager.prepare_load(keys(4)[1:], context)
        self.settle(spec, failed={1}, workers=1)
        self.settle(spec, workers=1)
        complete = self.last(wire.Complete)
        self.assertEqual((complete.ok, complete.failed), (False, [2]))
        self.assertEqual(self.verdicts(context), [MISS] * 4)
        other = self.leased_but_quarantined()
        self.assertEqual(self.verdicts(other), [HIT, HIT, MISS, HIT])
        self.now += 31
        again = self.begin("third")
        self.lease(4)
        self.assertEqual(self.verdicts(again), [HIT] * 4)

    def leased_but_quarantined(self) -> ReqContext:
        context = self.begin("other")
        self.lease(4)
        return context

    def test_a_lease_lost_before_the_load_fails_without_touching_memory(self) -> None:
        for name, lose in (("expired", self._expire), ("gone", self.manager.on_lost), ("deaf", self._deafen)):
            self.connected = True
            self.manager.on_registered(registered(), [])
            context = self.leased(name)
            lose()
            spec = self.manager.prepare_load(keys(4), context)
            self.assertIsNone(spec.session, name)
            self.settle(spec, failed={0, 1, 2, 3})
            self.assertEqual(self.verdicts(context), [MISS] * 4)

    def _expire(self) -> None:
        self.now += 29.5

    def _deafen(self) -> None:
        self.connected = False

    def test_finished_before_complete(self) -> None:
        context = self.leased()
        spec = self.manager.prepare_load(keys(4), context)
        self.manager.on_request_finished(context)
        self.assertEqual(self.count(wire.Release), 0)  # the workers still copy
        self.settle(spec)
        self.assertEqual((self.count(wire.Complete), self.count(wire.Release)), (1, 1))
        self.assertEqual(self.manager._asks, {})

    def test_finished_without_a_load_gives_the_lease_back(self) -> None:
        context = self.leased()
        self.manager.on_request_finished(context)
        self.assertEqual(self.last(wire.Release).lease, b"L" * 16)
        self.assertEqual((self.manager._asks, self.manager._tickets), ({}, {}))

    def test_finished_while_asked_gives_the_late_lease_back(self) -> None:
        context = self.begin()
        self.manager.on_request_finished(context)
        self.lease(4)
        self.assertEqual(self.last(wire.Release).lease, b"L" * 16)

    def test_a_new_session_is_not_told_of_the_old_ones_loads(self) -> None:
        context = self.leased()
        spec = self.manager.prepare_load(keys(4), context)
        self.manager.on_lost()
        self.manager.on_registered(registered(b"2" * 16), [])
        self.settle(spec)
        self.assertEqual(self.count(wire.Complete), 0)

    def test_a_preempted_request_asks_again(self) -> None:
        context = self.leased()
        self.settle(self.manager.prepare_load(keys(4), context))
        self.assertEqual(self.verdicts(context)[0], RETRY)
        self.assertEqual(self.count(wire.Lookup), 2)


class Stores(Case):
    def store(self, context: ReqContext, wanted: list[bytes]) -> StoreSpec:
        output = self.manager.prepare_store(wanted, context)
        assert output is not None and isinstance(output.store_spec, StoreSpec)
        self.stored = output.keys_to_store
        return output.store_spec

    def commit_results(self, results: list[int]) -> None:
        self.manager.on_message(wire.Committed(id=self.last(wire.Commit).id, results=results))

    def test_a_commit_names_the_chunk_it_continues(self) -> None:
        context = self.begin(count=6)
        context.set_offload_key_position(OffloadKey(b"decoded0"), 32 * 7)
        context.set_offload_key_position(OffloadKey(b"decoded1"), 32 * 8)
        parents = []
        # Two steps of prefill, then chunks of generated tokens, which are not among the prompt's.
        for part in (keys(6)[:4], keys(6)[4:], [b"decoded0"], [b"decoded1"]):
            self.settle(self.store(context, part))
            commit = self.last(wire.Commit)
            assert isinstance(commit, wire.Commit)
            parents.append(commit.parent)
            self.commit_results([0] * len(part))
        self.assertEqual(parents, [None, b"k3", b"k5", b"decoded0"])

    def test_a_commit_behind_chunks_that_are_held_continues_the_last_of_them(self) -> None:
        context = self.begin()
        self.lease(3)
        self.settle(self.store(context, keys(4)))
        commit = self.last(wire.Commit)
        assert isinstance(commit, wire.Commit)
        self.assertEqual((commit.keys, commit.parent), ([b"k3"], b"k2"))

    def test_commit_after_the_last_worker_and_slots_come_back(self) -> None:
        context = self.begin(tag=TAG)
        spec = self.store(context, keys(4))
        self.settle(spec, workers=1)
        self.assertEqual(self.count(wire.Commit), 0)
        self.settle(spec, workers=1)
        commit = self.last(wire.Commit)
        self.assertEqual((commit.keys, commit.end_tokens), (keys(4), [32, 64, 96, 128]))
        self.assertEqual((commit.region_slots, commit.tag), (list(spec.slots), TAG))
        self.assertEqual(len(self.manager._stores._free_slots), 4)
        self.commit_results([0, 1, 2, 0])
        self.assertEqual(len(self.manager._stores._free_slots), 8)
        self.store(context, keys(4))
        self.assertEqual(self.stored, [b"k2"])  # the refused one only

    def test_what_another_request_stores_is_not_stored_twice(self) -> None:
        first = self.begin("a")
        self.store(first, keys(3))
        self.store(self.begin("b"), keys(4))
        self.assertEqual(self.stored, [b"k3"])

    def test_no_room_drops_the_tail_and_all_after_it(self) -> None:
        context = self.begin(count=12)
        self.store(context, keys(12)[:10])
        self.assertEqual(self.stored, keys(8))
        self.manager.on_message(wire.Ok(id=1))
        self.store(context, keys(12)[10:])
        self.assertEqual(self.stored, [])
        self.assertEqual(self.manager.counters.total["stores_dropped"], 2)

    def test_a_failed_copy_is_not_committed_nor_what_follows_it(self) -> None:
        spec = self.store(self.begin(), keys(4))
        self.settle(spec, failed={2})
        self.assertEqual(self.last(wire.Commit).keys, keys(2))
        self.commit_results([0, 0])
        self.assertEqual(len(self.manager._stores._free_slots), 8)

    def test_a_store_of_a_lost_session_is_not_committed_in_the_next(self) -> None:
        for first, second in ((b"1" * 16, b"2" * 16), (None, None)):
            self.setUp()
            self.manager.on_lost()
            self.manager.on_registered(self._of(b"m" * 16, first), [])
            spec = self.store(self.begin(), keys(4))
            self.assertEqual(self.stored, keys(4))
            self.manager.on_lost()
            self.manager.on_registered(self._of(b"m" * 16, second), [])
            self.settle(spec)
            self.assertEqual(self.count(wire.Commit), 0)
            self.assertEqual(len(self.manager._stores._free_slots), 8 if second else 0)

    @staticmethod
    def _of(node: bytes, session: bytes | None) -> Session:
        fields = {name: getattr(registered().registered, name) for name in wire.Registered.__struct_fields__}
        return Session(node, wire.Registered(**{**fields, "session": session}))

    def test_finished_before_the_store_is_done(self) -> None:
        context = self.begin()
        spec = self.store(context, keys(4))
        self.manager.on_request_finished(context)
        self.settle(spec)
        self.assertEqual(self.count(wire.Commit), 1)
        self.assertEqual(self.manager._asks, {})

    def test_a_node_without_session_names_gets_no_stores_the_second_time(self) -> None:
        self.manager.on_lost()
        self.manager.on_registered(self._of(b"n" * 16, None), [])
        self.store(self.begin(), keys(4))
        self.assertEqual(self.stored, [])


class Resets(Case):
    def test_a_reset_raises_the_epoch_and_voids_everything_under_way(self) -> None:
        leased = self.begin("a")
        self.lease(4)
        storing = self.begin("b")
        output = self.manager.prepare_store(keys(4), storing)
        assert output is not None
        self.manager.reset_cache()
        epoch = self.last(wire.Epoch)
        self.assertGreater(epoch.epoch, 0)
        self.assertEqual(self.verdicts(leased), [MISS] * 4)
        self.settle(output.store_spec)
        self.assertEqual(self.count(wire.Commit), 0)
        self.assertEqual(len(self.manager._stores._free_slots), 8)

    def test_grants_of_the_old_epoch_are_given_back(self) -> None:
        self.manager.reset_cache()
        self.grant(keys(4))
        self.assertEqual(self.verdicts(self.begin(tag=TAG))[0], RETRY)
        self.manager.on_message(wire.EpochSet(id=self.last(wire.Epoch).id, namespace=b"1" * 16))
        self.grant(keys(4))
        context = self.begin("c", tag=TAG)
        self.manager.on_message(wire.Miss(id=self.last(wire.Lookup).id, reason="not_held"))
        self.assertEqual(self.verdicts(context)[0], HIT)

    def test_a_new_session_hears_of_the_epoch_first(self) -> None:
        self.manager.reset_cache()
        epoch = self.last(wire.Epoch).epoch
        self.manager.on_lost()
        self.sent.clear()
        self.manager.on_registered(registered(b"2" * 16), [])
        self.begin()
        self.assertIsInstance(self.sent[0], wire.Epoch)
        self.assertEqual(self.sent[0].epoch, epoch)

    def test_two_engines_never_draw_the_same_epoch(self) -> None:
        self.manager.reset_cache()
        first = self.last(wire.Epoch).epoch
        self.manager.reset_cache()
        self.assertNotEqual(self.last(wire.Epoch).epoch, first)


if __name__ == "__main__":
    unittest.main()
