"""Chooses how a worker's transfers are carried out, once, from where its pages lie and what the operator said."""

from collections.abc import Callable

from larder_vllm.cuda import CudaFault, Driver, NoDriver
from larder_vllm.gpu import GpuMover
from larder_vllm.handover import NodeHandover, tell_fallback
from larder_vllm.host import HostMover
from larder_vllm.layout import LayoutFault, PartLayout
from larder_vllm.pages import Names, NoName
from larder_vllm.slab import Bytes, Mapping, Offsets
from larder_vllm.transfers import Job, Transfers


def in_gpu(
    layout: PartLayout, mode: str, current_stream: Callable[[], int], moves: str | None = None,
    mover_class: type[GpuMover] = GpuMover,
) -> tuple[Transfers, NodeHandover | None]:
    """Transfers of pages in a GPU, in one of ``settings.GPU_MODES``; on a thread of the engine's.

    ``moves``: why the pages do not stay where they are (sleep mode gives them back and makes new ones), if so: the node
    may not have them open. Raises ``LayoutFault`` where nothing can be copied at all: the worker then stays unconnected.
    """
    ordinal = layout.ordinal
    assert ordinal is not None
    try:
        device = Driver().device(ordinal)
        mover = mover_class(device, layout, current_stream)
    except (NoDriver, CudaFault) as fault:
        raise LayoutFault(f"KV pages in a GPU without a driver to copy with: {fault}") from fault
    transfers = Transfers(mover, by_hand=mode != "node")
    if mode == "copy":
        return transfers, None
    transfers.wants_node = True
    reason = moves or mover.unshared
    names = None
    if reason is None:
        try:
            with device.current():
                names = Names.of(device, layout, mover.marks)
        except NoName as fault:
            reason = str(fault)
    if names is None:
        if mode == "node":
            raise LayoutFault(f"the cache node cannot copy in this GPU ({reason}), and larder_gpu is {mode}")
        tell_fallback(reason, "copies itself")
        return transfers, None
    handover = NodeHandover(device, names, layout, transfers.settled, transfers.pin_current)
    transfers.use(handover)
    return transfers, handover


class _NoMover:
    """For a worker that can copy nothing, and so is never connected: no job of it finds a session."""

    def mark(self) -> int | None:
        return None

    def copy(self, job: Job, memory: Bytes, bases: Offsets) -> int:
        raise LayoutFault("nothing can be copied here")

    def pin(self, mapping: Mapping) -> None:
        return

    def forget(self, mapping: Mapping) -> None:
        return


def none() -> Transfers:
    """Transfers that all fail."""
    return Transfers(_NoMover())


def in_host(layout: PartLayout) -> Transfers:
    """Transfers of pages in host memory."""
    return Transfers(HostMover(layout))
