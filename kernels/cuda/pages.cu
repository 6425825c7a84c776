// Chunk <-> pages, for the per-layer order (LBHNC): each layer is its own array of blocks.
//
// A chunk is layer after layer, each layer's pages in the order of the chunk's blocks, as the engine plugin lays it
// out. Thread block (l, i) moves the page of layer l of the chunk's block first + i, which is the engine's block
// blocks[i]; so the grid is (layers, blocks). The caller has held every block id against the cache's size.
//
// 16-byte accesses where both sides begin at a multiple of 16; the bytes left over, and all where they do not, go
// one at a time.
#include "freestanding.cuh"

// Mirrored by `Layer` in src/layout.rs.
struct Layer {
    u64 pages;       // where block 0 begins in the engine's memory
    u64 stride;      // bytes from one block to the next
    u64 page_bytes;  // of a block's content, at most the stride
    u64 offset;      // of the layer's first page in a chunk
};

__device__ static inline void copy(u8 *to, const u8 *from, u64 bytes) {
    u64 done = 0;
    if ((((u64)to | (u64)from) & 15) == 0) {
        u64 vectors = bytes / 16;
        vec16 *to16 = (vec16 *)to;
        const vec16 *from16 = (const vec16 *)from;
        for (u64 i = thread_x(); i < vectors; i += threads_x()) to16[i] = from16[i];
        done = vectors * 16;
    }
    for (u64 i = done + thread_x(); i < bytes; i += threads_x()) to[i] = from[i];
}

__device__ static inline u8 *page(const Layer &layer, const u32 *blocks) {
    return (u8 *)layer.pages + (u64)blocks[block_y()] * layer.stride;
}

__device__ static inline u64 place(const Layer &layer, u32 first) {
    return layer.offset + (first + (u64)block_y()) * layer.page_bytes;
}

extern "C" __global__ void larder_scatter(const u8 *chunk, const Layer *layers, const u32 *blocks, u32 first) {
    const Layer layer = layers[block_x()];
    copy(page(layer, blocks), chunk + place(layer, first), layer.page_bytes);
}

extern "C" __global__ void larder_gather(u8 *chunk, const Layer *layers, const u32 *blocks, u32 first) {
    const Layer layer = layers[block_x()];
    copy(chunk + place(layer, first), page(layer, blocks), layer.page_bytes);
}
