// One sweep over the arena, as kernels.py defines it: for each term in turn, rounding to the
// storage dtype in between,
//
//     w <- (w + s * (c * pool)) * d
//
// in float32 without contraction. A CUDA block sweeps one chunk, which lies in one block of the
// noise's index space: its window of the pool and its sign are drawn once.

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define POOL_MASK ((1u << 20) - 1u)
#define BLOCK_BITS 15
#define MOST_TERMS 4
#define THREADS 256

struct Term {
    u32 key_low, key_high, step_low, step_high, sample;  // sample: purpose << 24 | sample
    float coefficient, decay;
    float unit;  // what a count of the pool is worth
    const i8* pool;
    const double* slope;    // that only the card knows yet, or null: see Descent in sweep.py
    const double* skipped;  // whether its step is, if not 0
    double back, rate;
};

struct Chunk {
    u64 weight;  // first element in the buffer
    u64 noise;   // its index in the noise's index space
    u32 count;
    u32 decays;
};

__device__ __forceinline__ uint2 draw(const Term& term, u32 block) {
    u32 c0 = block, c1 = term.sample, c2 = term.step_low, c3 = term.step_high;
    u32 k0 = term.key_low, k1 = term.key_high;
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

// PTX, since compilers may be told to flush subnormals or to contract.
__device__ __forceinline__ float add(float a, float b) {
    float sum;
    asm("add.rn.f32 %0, %1, %2;" : "=f"(sum) : "f"(a), "f"(b));
    return sum;
}

__device__ __forceinline__ float mul(float a, float b) {
    float product;
    asm("mul.rn.f32 %0, %1, %2;" : "=f"(product) : "f"(a), "f"(b));
    return product;
}

template <int DTYPE> struct Storage;
template <> struct Storage<1> {  // float32
    typedef u32 Word;
    static __device__ __forceinline__ float widen(u32 bits) { return __uint_as_float(bits); }
    static __device__ __forceinline__ u32 round(float value) { return __float_as_uint(value); }
};
template <> struct Storage<10> {  // float16
    typedef u16 Word;
    static __device__ __forceinline__ float widen(u16 bits) {
        float value;
        asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
        return value;
    }
    static __device__ __forceinline__ u16 round(float value) {
        u16 bits;
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
        return bits;
    }
};
template <> struct Storage<16> {  // bfloat16
    typedef u16 Word;
    static __device__ __forceinline__ float widen(u16 bits) {
        return __uint_as_float((u32)bits << 16);
    }
    static __device__ __forceinline__ u16 round(float value) {
        u32 bits = __float_as_uint(value);
        return (u16)((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
    }
};

template <int DTYPE, int TERMS>
__device__ __forceinline__ void sweep(u8* buffer, const Chunk* chunks, const Term* terms) {
    typedef typename Storage<DTYPE>::Word Word;
    constexpr int LANES = 16 / sizeof(Word);
    __shared__ const i8* windows[TERMS];
    __shared__ float scales[TERMS], signs[TERMS], decays[TERMS];
    const Chunk chunk = chunks[blockIdx.x];
    if (threadIdx.x < TERMS) {
        const Term term = terms[threadIdx.x];
        const uint2 words = draw(term, (u32)(chunk.noise >> BLOCK_BITS));
        const u32 within = (u32)chunk.noise & ((1u << BLOCK_BITS) - 1u);
        windows[threadIdx.x] = term.pool + (words.x & POOL_MASK) + within;
        const bool skipped = term.slope && *term.skipped != 0.0;
        const bool descends = term.slope && !skipped;
        scales[threadIdx.x] = !descends ? term.coefficient
            : __double2float_rn(__dsub_rn(term.back, __dmul_rn(term.rate, *term.slope)));
        signs[threadIdx.x] = skipped && term.back == 0.0 ? 0.0f : words.y & 1u ? -1.0f : 1.0f;
        decays[threadIdx.x] = chunk.decays && !skipped ? term.decay : 1.0f;
    }
    __syncthreads();
    Word* weights = reinterpret_cast<Word*>(buffer) + chunk.weight;
    const u32 whole = chunk.count / LANES;
    for (u32 vector = threadIdx.x; vector < whole; vector += THREADS) {
        union { uint4 wide; Word words[LANES]; } held;
        held.wide = reinterpret_cast<uint4*>(weights)[vector];
#pragma unroll
        for (int t = 0; t < TERMS; ++t) {
            if (signs[t] == 0.0f) continue;  // adding 0 would turn -0
            // Aligned words of the pool, shifted to where the window begins.
            const u64 address = (u64)windows[t] + (u64)vector * LANES;
            const u32* words = reinterpret_cast<const u32*>(address & ~3ull);
            const u32 shift = ((u32)address & 3u) * 8u;
            union { u32 packed[LANES / 4]; i8 counts[LANES]; } noise;
            u32 low = __ldg(words);
#pragma unroll
            for (int i = 0; i < LANES / 4; ++i) {
                const u32 high = __ldg(words + i + 1);
                noise.packed[i] = __funnelshift_r(low, high, shift);
                low = high;
            }
            const float scale = scales[t], sign = signs[t], decay = decays[t];
            const float unit = terms[t].unit;
#pragma unroll
            for (int i = 0; i < LANES; ++i) {
                const float value = mul(mul((float)noise.counts[i], unit), scale);
                float w = Storage<DTYPE>::widen(held.words[i]);
                w = add(w, mul(sign, value));
                if (decay != 1.0f) w = mul(w, decay);
                held.words[i] = Storage<DTYPE>::round(w);
            }
        }
        reinterpret_cast<uint4*>(weights)[vector] = held.wide;
    }
    for (u32 at = whole * LANES + threadIdx.x; at < chunk.count; at += THREADS) {
        Word held = weights[at];
#pragma unroll
        for (int t = 0; t < TERMS; ++t) {
            if (signs[t] == 0.0f) continue;
            const float count = (float)windows[t][at];
            const float value = mul(mul(count, terms[t].unit), scales[t]);
            float w = add(Storage<DTYPE>::widen(held), mul(signs[t], value));
            if (decays[t] != 1.0f) w = mul(w, decays[t]);
            held = Storage<DTYPE>::round(w);
        }
        weights[at] = held;
    }
}

#define KERNEL(NAME, DTYPE, TERMS)                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS)                               \
        NAME##_##TERMS(u8* buffer, const Chunk* chunks, const __grid_constant__ Terms terms) { \
        sweep<DTYPE, TERMS>(buffer, chunks, terms.term);                                \
    }
#define KERNELS(NAME, DTYPE) \
    KERNEL(NAME, DTYPE, 1) KERNEL(NAME, DTYPE, 2) KERNEL(NAME, DTYPE, 3) KERNEL(NAME, DTYPE, 4)

struct Terms { Term term[MOST_TERMS]; };
KERNELS(float32, 1)
KERNELS(float16, 10)
KERNELS(bfloat16, 16)
