// One sweep over the arena, as kernels.py defines it: for each term in turn, rounding to the
// storage dtype in between,
//
//     w <- (w + s * (c * pool)) * d
//
// in float32 without contraction. DTYPE, TERMS and PLAIN are given.

struct Term {
    Direction direction;
    float coefficient, decay;
    // Those of an update are null where the host knows: see Descent in sweep.py.
    const double* late;     // what is added where the step is not skipped
    const double* skipped;  // whether it is, if not 0
    float taken;            // what `late` would point to
};
struct Terms { Term term[TERMS]; };

typedef Storage<DTYPE> Stored;
typedef Stored::Word Word;

extern "C" __global__ void __launch_bounds__(THREADS)
    sweep(u8* buffer, const Chunk* chunks, const __grid_constant__ Terms terms) {
    constexpr int LANES = 16 / sizeof(Word);
    __shared__ Window windows[TERMS];
    __shared__ float scales[TERMS], decays[TERMS];
    __shared__ bool stays[TERMS];
    const Chunk chunk = chunks[blockIdx.x];
    if (threadIdx.x < TERMS) {
        const Term term = terms.term[threadIdx.x];
        const Window window = window_of(term.direction, chunk.noise);
        windows[threadIdx.x] = window;
        const bool skipped = term.skipped && *term.skipped != 0.0;
        const bool descends = term.skipped && !skipped;
        const float scale = !descends ? term.coefficient
            : term.late ? narrow(*term.late) : term.taken;
        scales[threadIdx.x] = mul(window.sign, scale);  // a sign changes no rounding
        stays[threadIdx.x] = skipped && at_most(size_of(term.coefficient), 0.0f)
                             || !moves(term.direction, chunk.noise);
        decays[threadIdx.x] = chunk.decays && !skipped ? term.decay : 1.0f;
    }
    __syncthreads();
    bool still = true;
#pragma unroll
    for (int t = 0; t < TERMS; ++t) still = still && stays[t];
    if (still) return;
    Word* weights = reinterpret_cast<Word*>(buffer) + chunk.weight;
    const u32 whole = PLAIN ? chunk.count / LANES : 0;
    for (u32 vector = threadIdx.x; vector < whole; vector += THREADS) {
        union { uint4 wide; Word words[LANES]; } held;
        held.wide = reinterpret_cast<uint4*>(weights)[vector];
#pragma unroll
        for (int t = 0; t < TERMS; ++t) {
            if (stays[t]) continue;  // adding 0 would turn -0
            // Aligned words of the pool, shifted to where the window begins.
            const u64 address = (u64)windows[t].counts + (u64)vector * LANES;
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
            const float scale = scales[t], decay = decays[t];
            const float unit = terms.term[t].direction.unit;
#pragma unroll
            for (int i = 0; i < LANES; ++i) {
                const float value = mul(mul((float)noise.counts[i], unit), scale);
                float w = Stored::widen(held.words[i]);
                w = add(w, value);
                if (decay != 1.0f) w = mul(w, decay);
                held.words[i] = Stored::round(w);
            }
        }
        reinterpret_cast<uint4*>(weights)[vector] = held.wide;
    }
    for (u32 at = whole * LANES + threadIdx.x; at < chunk.count; at += THREADS) {
        Word held = weights[at];
#pragma unroll
        for (int t = 0; t < TERMS; ++t) {
            if (stays[t]) continue;
            float w = add(Stored::widen(held), mul(element(windows[t], at), scales[t]));
            if (decays[t] != 1.0f) w = mul(w, decays[t]);
            held = Stored::round(w);
        }
        weights[at] = held;
    }
}
