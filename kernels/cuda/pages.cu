// Chunk <-> pages: a chunk is contiguous, its pages lie where the engine's cache has them.
//
// A chunk is layer after layer, each layer's pages in the order of the chunk's blocks, as the engine plugin lays it
// out. Three orders of the engine's memory, each with its own way to share the work among threads:
//
//   larder_scatter, _gather                per layer (LBHNC): thread block (l, i) moves one layer's page of a block
//   larder_scatter_blocks, _gather_blocks  block first (BLHNC): one "layer" whose page is a whole block, megabytes of
//                                          it, so thread block (t, i) moves tile t of the block
//   larder_scatter_latent, _gather_latent  MLA: one latent vector for each token, a row, and rows may lie apart; the
//                                          chunk has them packed. Thread block (l, i) as above, each warp takes rows
//
// The second index i is of the chunk's block first + i, which is the engine's block blocks[i]. The caller has held
// every block id against the cache's size.
//
// 16-byte accesses where both sides begin at a multiple of 16, 4-byte ones where at a multiple of 4; the bytes left
// over, and all where neither holds, go one at a time.
#include "freestanding.cuh"

// Mirrored by `Layer` in src/layout.rs, and by the table that src/imported.rs writes.
struct Layer {
    u64 pages;       // where block 0 begins in the engine's memory
    u64 stride;      // bytes from one block to the next
    u64 page_bytes;  // of a block's content in a chunk
    u64 offset;      // of the layer's first page in a chunk
    u64 rows;        // of a page; 1 but for latent layers
    u64 row_bytes;   // of a row's content
    u64 row_stride;  // bytes from one row to the next in the engine's memory
};

#define WARP 32u
// Bytes of a block that one thread block moves: 256 threads do four vectors each.
#define TILE_BYTES 16384ull

__device__ static inline void copy(u8 *to, const u8 *from, u64 bytes, u32 lane, u32 lanes) {
    u64 done = 0;
    u64 both = (u64)to | (u64)from;
    if ((both & 15) == 0) {
        u64 vectors = bytes / 16;
        vec16 *to16 = (vec16 *)to;
        const vec16 *from16 = (const vec16 *)from;
        for (u64 i = lane; i < vectors; i += lanes) to16[i] = from16[i];
        done = vectors * 16;
    } else if ((both & 3) == 0) {
        u64 words = bytes / 4;
        u32 *to4 = (u32 *)to;
        const u32 *from4 = (const u32 *)from;
        for (u64 i = lane; i < words; i += lanes) to4[i] = from4[i];
        done = words * 4;
    }
    for (u64 i = done + lane; i < bytes; i += lanes) to[i] = from[i];
}

__device__ static inline u8 *page(const Layer &layer, const u32 *blocks) {
    return (u8 *)layer.pages + (u64)blocks[block_y()] * layer.stride;
}

__device__ static inline u64 place(const Layer &layer, u32 first) {
    return layer.offset + (first + (u64)block_y()) * layer.page_bytes;
}

extern "C" __global__ void larder_scatter(const u8 *chunk, const Layer *layers, const u32 *blocks, u32 first) {
    const Layer layer = layers[block_x()];
    copy(page(layer, blocks), chunk + place(layer, first), layer.page_bytes, thread_x(), threads_x());
}

extern "C" __global__ void larder_gather(u8 *chunk, const Layer *layers, const u32 *blocks, u32 first) {
    const Layer layer = layers[block_x()];
    copy(chunk + place(layer, first), page(layer, blocks), layer.page_bytes, thread_x(), threads_x());
}

__device__ static inline u64 tile_bytes(u64 from, u64 bytes) {
    u64 left = bytes - from;
    return left < TILE_BYTES ? left : TILE_BYTES;
}

extern "C" __global__ void larder_scatter_blocks(const u8 *chunk, const Layer *layers, const u32 *blocks, u32 first) {
    const Layer layer = layers[0];
    u64 from = block_x() * TILE_BYTES;
    if (from >= layer.page_bytes) return;
    copy(page(layer, blocks) + from, chunk + place(layer, first) + from, tile_bytes(from, layer.page_bytes),
         thread_x(), threads_x());
}

extern "C" __global__ void larder_gather_blocks(u8 *chunk, const Layer *layers, const u32 *blocks, u32 first) {
    const Layer layer = layers[0];
    u64 from = block_x() * TILE_BYTES;
    if (from >= layer.page_bytes) return;
    copy(chunk + place(layer, first) + from, page(layer, blocks) + from, tile_bytes(from, layer.page_bytes),
         thread_x(), threads_x());
}

extern "C" __global__ void larder_scatter_latent(const u8 *chunk, const Layer *layers, const u32 *blocks, u32 first) {
    const Layer layer = layers[block_x()];
    u8 *to = page(layer, blocks);
    const u8 *from = chunk + place(layer, first);
    for (u64 row = thread_x() / WARP; row < layer.rows; row += threads_x() / WARP)
        copy(to + row * layer.row_stride, from + row * layer.row_bytes, layer.row_bytes, thread_x() % WARP, WARP);
}

extern "C" __global__ void larder_gather_latent(u8 *chunk, const Layer *layers, const u32 *blocks, u32 first) {
    const Layer layer = layers[block_x()];
    u8 *to = chunk + place(layer, first);
    const u8 *from = page(layer, blocks);
    for (u64 row = thread_x() / WARP; row < layer.rows; row += threads_x() / WARP)
        copy(to + row * layer.row_bytes, from + row * layer.row_stride, layer.row_bytes, thread_x() % WARP, WARP);
}
