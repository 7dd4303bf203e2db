// The log-softmax of each row of scores, (rows, columns), at its target: a block takes a row, which
// is read once.
//
//     out = x[target] - max(x) - log(sum(exp(x - max(x))))
//
// Scores are widened to float32; what threads have added up is put together in float64. DTYPE is
// given.

typedef Storage<DTYPE> Stored;
typedef Stored::Word Word;

struct Sum {
    float highest, of;  // the sum of exp(x - highest)
};

// Lowest of the finite numbers: from -infinity it is -infinity, the power of which is 0.
__device__ __forceinline__ float lowest() { return __uint_as_float(0xFF7FFFFFu); }

// exp(x), of an x that is not above 0: expf would take most of the kernel's time.
__device__ __forceinline__ float power(float x) {
    float found;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(found) : "f"(mul(x, 1.44269504f)));
    return found;
}

__device__ __forceinline__ void take(Sum& sum, const float* x, int count) {
    float highest = sum.highest;
    for (int i = 0; i < count; ++i) highest = fmaxf(highest, x[i]);
    sum.of *= power(sum.highest - highest);
    sum.highest = highest;
    for (int i = 0; i < count; ++i) sum.of += power(x[i] - highest);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    vocabulary(const Word* scores, const long long* targets, float* out, u64 columns) {
    constexpr int LANES = 16 / sizeof(Word);
    const Word* row = scores + (u64)blockIdx.x * columns;
    Sum mine = {lowest(), 0.0f};
    const u64 whole = columns * sizeof(Word) % 16 == 0 ? columns / LANES : 0;
#pragma unroll 2
    for (u64 vector = threadIdx.x; vector < whole; vector += THREADS) {
        union { uint4 wide; Word words[LANES]; } held;
        held.wide = __ldg(reinterpret_cast<const uint4*>(row) + vector);
        float x[LANES];
#pragma unroll
        for (int i = 0; i < LANES; ++i) x[i] = Stored::widen(held.words[i]);
        take(mine, x, LANES);
    }
    for (u64 at = whole * LANES + threadIdx.x; at < columns; at += THREADS) {
        const float x = Stored::widen(row[at]);
        take(mine, &x, 1);
    }
    __shared__ float highest[THREADS];
    __shared__ double sums[THREADS];
    highest[threadIdx.x] = mine.highest;
    __syncthreads();
    for (u32 half = THREADS / 2; half; half /= 2) {
        if (threadIdx.x < half) {
            const float other = highest[threadIdx.x + half];
            if (other > highest[threadIdx.x]) highest[threadIdx.x] = other;
        }
        __syncthreads();
    }
    const double most = highest[0];
    sums[threadIdx.x] = mine.of * exp((double)mine.highest - most);
    __syncthreads();
    for (u32 half = THREADS / 2; half; half /= 2) {
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        const double x = Stored::widen(row[targets[blockIdx.x]]);
        out[blockIdx.x] = narrow(x - most - log(sums[0]));
    }
}
