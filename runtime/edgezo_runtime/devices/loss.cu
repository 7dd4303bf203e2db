// Mean losses of forward passes, in double precision.
//
// Sums are added up in an order that hangs on nothing but their number, so that a run which is
// continued finds the same bits.

typedef unsigned int u32;
typedef unsigned long long u64;

#define THREADS 256

// Returns the sum of each thread's value, to thread 0.
__device__ __forceinline__ double sum(double value) {
    __shared__ double values[THREADS];
    values[threadIdx.x] = value;
    for (u32 half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) values[threadIdx.x] += values[threadIdx.x + half];
    }
    return values[0];
}

// sign / n * sum(x)
extern "C" __global__ void __launch_bounds__(THREADS)
    total(const float* x, u64 count, double sign, double* loss) {
    double mine = 0.0;
    for (u64 at = threadIdx.x; at < count; at += THREADS) mine += (double)x[at];
    const double all = sum(mine);
    if (threadIdx.x == 0) *loss = sign * all / (double)count;
}

// The mean over rows of log(sum(exp(scores))) - scores[label].
extern "C" __global__ void __launch_bounds__(THREADS)
    choice(const float* scores, const long long* labels, u32 rows, u32 columns, double* loss) {
    double mine = 0.0;
    for (u32 row = threadIdx.x; row < rows; row += THREADS) {
        const float* own = scores + (u64)row * columns;
        double highest = own[0], whole = 0.0;
        for (u32 i = 1; i < columns; ++i) highest = own[i] > highest ? own[i] : highest;
        for (u32 i = 0; i < columns; ++i) whole += exp((double)own[i] - highest);
        mine += log(whole) + highest - (double)own[labels[row]];
    }
    const double all = sum(mine);
    if (threadIdx.x == 0) *loss = all / (double)rows;
}
