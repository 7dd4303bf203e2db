// Losses of forward passes, and slopes between them, in double precision.
//
// Sums are added up in an order that hangs on nothing but their number, so that a run which is
// continued finds the same bits.

typedef unsigned int u32;
typedef unsigned long long u64;

#define THREADS 256
#define LARGEST 3.402823466e38f  // float32

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

// One slope, as walk.py computes it; the sheet is as cuda_slope.py says.
extern "C" __global__ void slope(const double* higher, const double* lower, double span,
                                 double clip, float lr, float most, u32 index, double* sheet) {
    double found = __ddiv_rn(__dsub_rn(*higher, *lower), span);
    if (found < -clip) found = -clip;
    if (found > clip) found = clip;
    const float rounded = __double2float_rn(found);
    const bool usable = fabsf(__fmul_rn(rounded, lr)) <= LARGEST && fabsf(rounded) <= most;
    if (index == 0) sheet[0] = 0.0;
    if (!usable) sheet[0] = 1.0;
    sheet[3 * index + 1] = *higher;
    sheet[3 * index + 2] = *lower;
    sheet[3 * index + 3] = (double)rounded;
}
