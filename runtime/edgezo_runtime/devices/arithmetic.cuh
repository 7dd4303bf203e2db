// float32 arithmetic with the CPU's bits, and the dtypes that weights are stored in.
//
// PTX, since CuPy has the compiler flush subnormals, in comparisons too, whatever it is asked for.

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

__device__ __forceinline__ float add(float a, float b) {
    float sum;
    asm("add.rn.f32 %0, %1, %2;" : "=f"(sum) : "f"(a), "f"(b));
    return sum;
}

__device__ __forceinline__ float subtract(float a, float b) {
    float difference;
    asm("sub.rn.f32 %0, %1, %2;" : "=f"(difference) : "f"(a), "f"(b));
    return difference;
}

__device__ __forceinline__ float mul(float a, float b) {
    float product;
    asm("mul.rn.f32 %0, %1, %2;" : "=f"(product) : "f"(a), "f"(b));
    return product;
}

__device__ __forceinline__ float divide(float a, float b) {
    float quotient;
    asm("div.rn.f32 %0, %1, %2;" : "=f"(quotient) : "f"(a), "f"(b));
    return quotient;
}

__device__ __forceinline__ float root(float a) {
    float found;
    asm("sqrt.rn.f32 %0, %1;" : "=f"(found) : "f"(a));
    return found;
}

__device__ __forceinline__ float narrow(double a) {
    float rounded;
    asm("cvt.rn.f32.f64 %0, %1;" : "=f"(rounded) : "d"(a));
    return rounded;
}

__device__ __forceinline__ double widen(float a) {
    double same;
    asm("cvt.f64.f32 %0, %1;" : "=d"(same) : "f"(a));
    return same;
}

__device__ __forceinline__ bool less(float a, float b) {
    u32 found;
    asm("set.lt.u32.f32 %0, %1, %2;" : "=r"(found) : "f"(a), "f"(b));
    return found;
}

__device__ __forceinline__ bool at_most(float a, float b) {
    u32 found;
    asm("set.le.u32.f32 %0, %1, %2;" : "=r"(found) : "f"(a), "f"(b));
    return found;
}

__device__ __forceinline__ float negative(float a) {
    return __uint_as_float(__float_as_uint(a) ^ 0x80000000u);
}

__device__ __forceinline__ float size_of(float a) {
    return __uint_as_float(__float_as_uint(a) & 0x7FFFFFFFu);
}

// As in NumPy, what is not a number stays so.
__device__ __forceinline__ float sign_of(float a) {
    return less(0.0f, a) ? 1.0f : less(a, 0.0f) ? -1.0f : a != a ? a : 0.0f;
}
__device__ __forceinline__ float larger(float a, float b) {
    return a != a || at_most(b, a) ? a : b;
}
__device__ __forceinline__ float smaller(float a, float b) {
    return a != a || at_most(a, b) ? a : b;
}

template <int ONNX> struct Storage;  // by the number that ONNX gives the dtype
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
#if __CUDA_ARCH__ >= 800
        u16 bits;
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
        return bits;
#else
        u32 bits = __float_as_uint(value);
        return (u16)((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
#endif
    }
};
