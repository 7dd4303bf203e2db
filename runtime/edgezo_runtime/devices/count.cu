// How many weights have each value of the upper half of the bits of |w|; or, given an upper half,
// how many that have it have each value of the lower. DTYPE is given.

typedef Storage<DTYPE> Stored;

extern "C" __global__ void __launch_bounds__(THREADS)
    count(const Stored::Word* weights, u64 size, u32 all, u32 upper, u32* counts) {
    const u64 stride = (u64)gridDim.x * THREADS;
    for (u64 at = (u64)blockIdx.x * THREADS + threadIdx.x; at < size; at += stride) {
        const u32 bits = __float_as_uint(size_of(Stored::widen(weights[at])));
        if (all) atomicAdd(counts + (bits >> 16), 1u);
        else if (bits >> 16 == upper) atomicAdd(counts + (bits & 0xFFFFu), 1u);
    }
}
