// Which weights exceed their tensor's limit, or which do not, as a bit for each index. DTYPE is
// given.

typedef Storage<DTYPE> Stored;

extern "C" __global__ void __launch_bounds__(THREADS)
    mask(const u8* buffer, const Chunk* chunks, const u64* offsets, u32 tensors,
         const float* limits, u8* bits, u32 above) {
    const Chunk chunk = chunks[blockIdx.x];
    u32 low = 0, high = tensors;
    while (low < high) {
        const u32 middle = (low + high) / 2;
        if (offsets[middle] <= chunk.noise) low = middle + 1;
        else high = middle;
    }
    const float limit = limits[low - 1];
    const Stored::Word* weights = reinterpret_cast<const Stored::Word*>(buffer) + chunk.weight;
    for (u32 byte = threadIdx.x; 8 * byte < chunk.count; byte += THREADS) {
        u32 found = 0;
        for (u32 i = 0; i < 8 && 8 * byte + i < chunk.count; ++i) {
            const float size = size_of(Stored::widen(weights[8 * byte + i]));
            if (less(limit, size) == (above != 0)) found |= 0x80u >> i;
        }
        bits[chunk.noise / 8 + byte] = (u8)found;
    }
}
