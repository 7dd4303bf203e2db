// Directions within a chunk: a window of the pool, masked or not, or a part of a low-rank matrix.
//
// A CUDA block goes through one chunk, which lies in one parameter and in one block of the noise's
// index space: where its windows begin, and their signs, are drawn once. PLAIN is 1 where no
// direction has a mask or matrices, which spares the registers.

#define POOL_MASK ((1u << 20) - 1u)
#define BLOCK_BITS 15
#define THREADS 256

struct Chunk {
    u64 weight;  // first element in the buffer
    u64 noise;   // its index in the noise's index space, a multiple of 64
    u32 count;
    u32 decays;
};

struct Name {
    u32 key_low, key_high, step_low, step_high, sample;  // sample: purpose << 24 | sample
};

struct Matrix {
    u64 offset, size;    // in the index space
    const float* left;   // u, (rows, rank)
    const float* right;  // v, (rank, columns)
    u32 rank, columns;
};

struct Direction {
    Name name;
    float unit;  // what a count of the pool is worth
    const i8* pool;
    const u64* ranges;       // where each part that moves begins and ends, rising; or null: all moves
    const u8* mask;          // a pool of bytes, or a bit for each index; or null
    const Matrix* matrices;  // that are of low rank, rising
    u32 range_count, matrix_count;
    Name masked;  // names the mask's windows
    u32 packed;   // whether the mask holds bits
};

struct Window {
    const i8* counts;
    float sign, unit;
    const u8* mask;
    u32 packed;
    const float *left, *right;  // of the first element's row
    u32 rank, columns, column;
};

__device__ __forceinline__ uint2 draw(const Name& name, u32 block) {
    u32 c0 = block, c1 = name.sample, c2 = name.step_low, c3 = name.step_high;
    u32 k0 = name.key_low, k1 = name.key_high;
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        u32 high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
        u32 high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return make_uint2(c0, c1);
}

// Whether a direction moves the chunk that begins at `noise`.
__device__ __forceinline__ bool moves(const Direction& direction, u64 noise) {
    if (!direction.ranges) return true;
    u32 low = 0, high = direction.range_count;
    while (low < high) {
        const u32 middle = (low + high) / 2;
        if (direction.ranges[2 * middle] <= noise) low = middle + 1;
        else high = middle;
    }
    return low > 0 && noise < direction.ranges[2 * low - 1];
}

__device__ __forceinline__ Window window_of(const Direction& direction, u64 noise) {
    const u32 block = (u32)(noise >> BLOCK_BITS);
    const u32 within = (u32)noise & ((1u << BLOCK_BITS) - 1u);
    const uint2 words = draw(direction.name, block);
    Window window;
    window.counts = direction.pool + (words.x & POOL_MASK) + within;
    window.sign = words.y & 1u ? -1.0f : 1.0f;
    window.unit = direction.unit;
    window.mask = 0;
    window.left = 0;
#if !PLAIN
    if (direction.mask) {
        window.packed = direction.packed;
        window.mask = direction.mask + (direction.packed ? noise / 8
                                        : (draw(direction.masked, block).x & POOL_MASK) + within);
    }
    u32 low = 0, high = direction.matrix_count;
    while (low < high) {
        const u32 middle = (low + high) / 2;
        if (direction.matrices[middle].offset <= noise) low = middle + 1;
        else high = middle;
    }
    if (low > 0) {
        const Matrix matrix = direction.matrices[low - 1];
        const u64 place = noise - matrix.offset;
        if (place < matrix.size) {
            window.left = matrix.left + place / matrix.columns * matrix.rank;
            window.right = matrix.right;
            window.rank = matrix.rank;
            window.columns = matrix.columns;
            window.column = (u32)(place % matrix.columns);
            window.sign = 1.0f;
        }
    }
#endif
    return window;
}

// Element `at` of the chunk, without its sign.
__device__ __forceinline__ float element(const Window& window, u32 at) {
#if !PLAIN
    if (window.left) {
        const u32 place = window.column + at, row = place / window.columns;
        const float* u = window.left + (u64)row * window.rank;
        const float* v = window.right + (place - row * window.columns);
        float total = mul(u[0], v[0]);
        for (u32 k = 1; k < window.rank; ++k) {
            v += window.columns;
            total = add(total, mul(u[k], *v));
        }
        return total;
    }
#endif
    float value = mul((float)window.counts[at], window.unit);
#if !PLAIN
    if (window.mask) {
        const u32 moved = window.packed ? window.mask[at / 8] >> (7 - at % 8) & 1u : window.mask[at];
        value = mul(value, (float)moved);
    }
#endif
    return value;
}
