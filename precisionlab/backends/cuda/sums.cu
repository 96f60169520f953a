// Sums of products that are kept in half: what backends/sums/kernel.py does, by the GPU's own half arithmetic.
//
// Output (group, m, o) is the sum over k of w[group, m, k] · x[group, channel of k, o · stride + tap of k]; where that
// place lies outside of x, the factor is 0. A convolution's rows, a matrix product (one axis of columns, every k a
// channel) and a phase of a transposed convolution all are such sums.

typedef unsigned short u16; // u32: kernels.cu, which stands in front of this

#define ROWS 64     // of w, that a block works on: 16 for each of its four warps
#define COLUMNS 32  // places, four tiles of 8
#define PRODUCTS 16 // products that a tensor core adds up exactly

struct Shape {
    int groups, weight_groups, rows, products, channels;
    int in[3], out[3], stride[3];
    int whole[3], first[3], step[3];  // of what is written: its sizes, where the first place goes, and how far the next
    int block;
};

__device__ __forceinline__ u16 to_half(float value) {
    u16 half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
    return half;
}

__device__ __forceinline__ float to_float(u16 half) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
    return value;
}

// One place of the output: where its factors lie in x, but for the tap.
struct Place {
    int i0, i1, i2;
    bool is_there;
};

__device__ __forceinline__ Place place_of(const Shape& s, int o) {
    const int o2 = o % s.out[2], o1 = o / s.out[2] % s.out[1], o0 = o / (s.out[2] * s.out[1]);
    return {o0 * s.stride[0], o1 * s.stride[1], o2 * s.stride[2], o < s.out[0] * s.out[1] * s.out[2]};
}

// The factor of product k there; 0 outside of x, which is that of the group.
__device__ __forceinline__ float factor(const float* x, const int4* taps, const Shape& s, int k, const Place& p) {
    if (k >= s.products || !p.is_there) return 0.0f;
    const int4 tap = taps[k];
    const int i0 = p.i0 + tap.y, i1 = p.i1 + tap.z, i2 = p.i2 + tap.w;
    if ((u32)i0 >= (u32)s.in[0] || (u32)i1 >= (u32)s.in[1] || (u32)i2 >= (u32)s.in[2]) return 0.0f;
    return x[((tap.x * s.in[0] + i0) * (size_t)s.in[1] + i1) * s.in[2] + i2];
}

__device__ __forceinline__ void put(float* out, const Shape& s, int group, int m, int o, u16 half) {
    if (m >= s.rows || o >= s.out[0] * s.out[1] * s.out[2]) return;
    const int o2 = o % s.out[2], o1 = o / s.out[2] % s.out[1], o0 = o / (s.out[2] * s.out[1]);
    const size_t at = (((size_t)group * s.rows + m) * s.whole[0] + s.first[0] + o0 * s.step[0]) * s.whole[1];
    out[(at + s.first[1] + o1 * s.step[1]) * s.whole[2] + s.first[2] + o2 * s.step[2]] = to_float(half);
}

// grid (places / 32, rows / 64, groups), 128 threads: in blocks of 16 products, on tensor cores.
extern "C" __global__ void half_sums_tensor(const float* w, const float* x, const int4* taps, const Shape* shape, float* out) {
#if __CUDA_ARCH__ >= 800
    __shared__ u16 a[ROWS][PRODUCTS + 2], b[COLUMNS][PRODUCTS + 2];
    const Shape s = *shape;
    const int group = blockIdx.z, own = group % s.weight_groups, t = threadIdx.x, warp = t / 32, lane = t % 32;
    const int first_row = blockIdx.y * ROWS, first_place = blockIdx.x * COLUMNS;
    // A thread always takes factors of one place, and of each fourth product.
    const Place own_place = place_of(s, first_place + t % COLUMNS);
    x += (size_t)group * s.channels * s.in[0] * s.in[1] * s.in[2];
    w += (size_t)own * s.rows * s.products;
    u32 sums[4][2] = {{0, 0}, {0, 0}, {0, 0}, {0, 0}};
    for (int k0 = 0; k0 < s.products; k0 += PRODUCTS) {
        for (int i = t; i < ROWS * PRODUCTS; i += 128) {
            const int m = first_row + i / PRODUCTS, k = k0 + i % PRODUCTS;
            const bool is_there = m < s.rows && k < s.products;
            a[i / PRODUCTS][i % PRODUCTS] = is_there ? to_half(w[(size_t)m * s.products + k]) : 0;
        }
        for (int i = t; i < COLUMNS * PRODUCTS; i += 128)
            b[i % COLUMNS][i / COLUMNS] = to_half(factor(x, taps, s, k0 + i / COLUMNS, own_place));
        __syncthreads();
        const int row = warp * 16 + lane / 4, pair = lane % 4 * 2;
        const u32 a0 = *(const u32*)&a[row][pair], a1 = *(const u32*)&a[row + 8][pair];
        const u32 a2 = *(const u32*)&a[row][pair + 8], a3 = *(const u32*)&a[row + 8][pair + 8];
        for (int tile = 0; tile < 4; ++tile) {
            const int column = tile * 8 + lane / 4;
            const u32 b0 = *(const u32*)&b[column][pair], b1 = *(const u32*)&b[column][pair + 8];
            asm volatile(
                "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0,%1}, {%2,%3,%4,%5}, {%6,%7}, {%0,%1};"
                : "+r"(sums[tile][0]), "+r"(sums[tile][1]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1)
            );
        }
        __syncthreads();
    }
    const int row = first_row + warp * 16 + lane / 4;
    for (int tile = 0; tile < 4; ++tile) {
        const int place = first_place + tile * 8 + lane % 4 * 2;
        for (int half = 0; half < 2; ++half) {
            put(out, s, group, row + half * 8, place, (u16)(sums[tile][half] & 0xFFFF));
            put(out, s, group, row + half * 8, place + 1, (u16)(sums[tile][half] >> 16));
        }
    }
#endif
}

// grid (places / 128, rows, groups), 128 threads: in blocks of any length, each of which is added up in float32; single
// products by a fused multiply-add in half.
extern "C" __global__ void half_sums_plain(const float* w, const float* x, const int4* taps, const Shape* shape, float* out) {
    const Shape s = *shape;
    const int group = blockIdx.z, own = group % s.weight_groups, m = blockIdx.y, o = blockIdx.x * 128 + threadIdx.x;
    if (o >= s.out[0] * s.out[1] * s.out[2]) return;
    const float* row = w + ((size_t)own * s.rows + m) * s.products;
    const Place place = place_of(s, o);
    x += (size_t)group * s.channels * s.in[0] * s.in[1] * s.in[2];
    u16 sum = 0;
    for (int k0 = 0; k0 < s.products; k0 += s.block) {
        if (s.block == 1) {
            const u16 left = to_half(row[k0]), right = to_half(factor(x, taps, s, k0, place));
            asm("fma.rn.f16 %0, %1, %2, %3;" : "=h"(sum) : "h"(left), "h"(right), "h"(sum));
            continue;
        }
        float exact = 0.0f;
        const int end = min(k0 + s.block, s.products);
        for (int k = k0; k < end; ++k) exact = fmaf(row[k], factor(x, taps, s, k, place), exact);
        sum = to_half(to_float(sum) + exact);
    }
    put(out, s, group, m, o, sum);
}
