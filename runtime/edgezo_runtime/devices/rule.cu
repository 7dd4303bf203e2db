// One update over the arena by a rule: new weights and state from weights, state and directions.
//
// `formula` is the rule's, written by cuda_rule.py; DTYPE, DIRECTIONS, STATES, NUMBERS, LATE, PLAIN
// and WRITTEN, a bit for each array of the state that changes, are given.

#define ROOM(count) ((count) > 0 ? (count) : 1)
#define LANES 4  // elements that a thread takes at once

struct Rule {
    Direction directions[ROOM(DIRECTIONS)];
    float* state[ROOM(STATES)];
    const double* late[ROOM(LATE)];  // numbers that only the card knows yet
    const double* skipped;           // where there are some, whether their step is, if not 0
    float numbers[ROOM(NUMBERS)];
    float decay;
};

typedef Storage<DTYPE> Stored;
typedef Stored::Word Word;
template <typename T, int N> struct alignas(N * sizeof(T)) Pack { T each[N]; };

// Updates N elements of a chunk, from `at` on, in one access to each array.
template <int N>
__device__ __forceinline__ void update(Word* weights, const Chunk& chunk, const Rule& rule,
                                       const float* late, const Window* windows, float decay,
                                       u32 at) {
    Pack<Word, N>* place = reinterpret_cast<Pack<Word, N>*>(weights + at);
    Pack<Word, N> held = *place;
    Pack<float, N> state[ROOM(STATES)];
#pragma unroll
    for (int i = 0; i < STATES; ++i)
        state[i] = *reinterpret_cast<const Pack<float, N>*>(rule.state[i] + chunk.noise + at);
#pragma unroll
    for (int lane = 0; lane < N; ++lane) {
        float z[ROOM(DIRECTIONS)], own[ROOM(STATES)];
#pragma unroll
        for (int i = 0; i < DIRECTIONS; ++i)
            z[i] = mul(windows[i].sign, element(windows[i], at + lane));
#pragma unroll
        for (int i = 0; i < STATES; ++i) own[i] = state[i].each[lane];
        float w = formula(Stored::widen(held.each[lane]), z, own, rule.numbers, late);
        if (decay != 1.0f) w = mul(w, decay);
        held.each[lane] = Stored::round(w);
#pragma unroll
        for (int i = 0; i < STATES; ++i) state[i].each[lane] = own[i];
    }
    *place = held;
#pragma unroll
    for (int i = 0; i < STATES; ++i)
        if (WRITTEN >> i & 1u)
            *reinterpret_cast<Pack<float, N>*>(rule.state[i] + chunk.noise + at) = state[i];
}

extern "C" __global__ void __launch_bounds__(THREADS)
    update_by(u8* buffer, const Chunk* chunks, const __grid_constant__ Rule rule) {
    __shared__ Window windows[ROOM(DIRECTIONS)];
    const Chunk chunk = chunks[blockIdx.x];
    if (LATE > 0 && *rule.skipped != 0.0) return;
    if (DIRECTIONS > 0 && !moves(rule.directions[0], chunk.noise)) return;
    if (threadIdx.x < DIRECTIONS)
        windows[threadIdx.x] = window_of(rule.directions[threadIdx.x], chunk.noise);
    __syncthreads();
    const float decay = chunk.decays ? rule.decay : 1.0f;
    float late[ROOM(LATE)];
#pragma unroll
    for (int i = 0; i < LATE; ++i) late[i] = narrow(*rule.late[i]);
    Word* weights = reinterpret_cast<Word*>(buffer) + chunk.weight;
    const u32 whole = chunk.count / LANES;
    for (u32 vector = threadIdx.x; vector < whole; vector += THREADS)
        update<LANES>(weights, chunk, rule, late, windows, decay, vector * LANES);
    for (u32 at = whole * LANES + threadIdx.x; at < chunk.count; at += THREADS)
        update<1>(weights, chunk, rule, late, windows, decay, at);
}
