// The loops over values that stay in the GPU's memory: error sums as compare/kernel.py has them, and histograms as
// calibration/kernel.py has them. Each launch takes many tensors, one to a row of the grid: their addresses and sizes
// lie in arrays, so that a segment of a model costs a few launches and not some for each tensor.

typedef unsigned int u32;
typedef unsigned long long u64;

#define THREADS 256
#define SUMS 6
#define COUNTS 12
#define BINS 4096
#define MAGNITUDE 0x7FFFFFFFu
#define INFINITE 0x7F800000u

// The larger of two maxima so far; NaN once either is.
__device__ double larger(double a, double b) { return (b > a || b != b) && a == a ? b : a; }

// Add up (or for a maximum, compare) one number of each thread, always in the same order.
template <typename T, bool MAXIMUM> __device__ T over_block(T value, T* room) {
    const int t = threadIdx.x;
    room[t] = value;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (t < half) room[t] = MAXIMUM ? (T)larger((double)room[t], (double)room[t + half]) : room[t] + room[t + half];
        __syncthreads();
    }
    const T total = room[0];
    __syncthreads();
    return total;
}

// grid (blocks, tensors): each block's part of the sums and counts of one pair. A reference of null asks only for the
// NaN and Inf of the output. `limits` has two for each pair: the largest value of the output's format, and the one from
// which on it may round to Inf.
extern "C" __global__ void error_sums(
    const float* const* references, const float* const* outputs, const u64* sizes, const float* limits, double* sums,
    u64* counts
) {
    __shared__ double room[THREADS];
    __shared__ u64 counted[THREADS];
    const float* reference = references[blockIdx.y];
    const float* output = outputs[blockIdx.y];
    const u64 size = sizes[blockIdx.y];
    const u32 largest = __float_as_uint(limits[2 * blockIdx.y]);
    const u32 overflowing = __float_as_uint(limits[2 * blockIdx.y + 1]);
    double s[SUMS] = {0};
    u64 c[COUNTS] = {0};
    for (u64 i = (u64)blockIdx.x * THREADS + threadIdx.x; i < size; i += (u64)gridDim.x * THREADS) {
        const float out = output[i];
        const u32 o = __float_as_uint(out) & MAGNITUDE;
        c[4] += o > INFINITE;
        c[5] += o == INFINITE;
        if (!reference) continue;
        const float ref = reference[i];
        const u32 r = __float_as_uint(ref) & MAGNITUDE;
        const double a = ref, b = out, e = b - a;
        if (r >= INFINITE) {
            c[3] += 1;
            c[9] += r > INFINITE;
            const bool same = a == b || (a != a && b != b);
            c[7] += !same;
            c[11] += a == a && !same;
            continue;
        }
        s[0] += a * a;
        s[1] += e * e;
        s[2] += a * b;
        s[3] += b * b;
        // The float32 difference; two finite numbers of opposite sign can be further apart than float32 reaches.
        double difference = fabs((double)(out - ref));
        if (o < INFINITE && isinf(difference)) difference = fabs(e);
        s[4] = larger(s[4], difference);
        s[5] = larger(s[5], fabs(a));
        c[0] += 1;
        c[1] += r > largest;
        c[2] += o == 0 && r != 0;
        c[6] += o >= INFINITE;
        c[8] += o > INFINITE;
        c[10] += o == INFINITE && r < overflowing;
    }
    const u64 part = (u64)blockIdx.y * gridDim.x + blockIdx.x;
    for (int i = 0; i < SUMS; ++i) {
        const double total = i < 4 ? over_block<double, false>(s[i], room) : over_block<double, true>(s[i], room);
        if (threadIdx.x == 0) sums[part * SUMS + i] = total;
    }
    for (int i = 0; i < COUNTS; ++i) {
        const u64 total = over_block<u64, false>(c[i], counted);
        if (threadIdx.x == 0) counts[part * COUNTS + i] = total;
    }
}

// grid (tensors), SUMS + COUNTS threads: add the blocks' parts to the tensors' rows, in the blocks' order.
extern "C" __global__ void gather_sums(
    const double* sums, const u64* counts, int blocks, const int* rows, double* all_sums, u64* all_counts
) {
    const int t = threadIdx.x, row = rows[blockIdx.x];
    const u64 first = (u64)blockIdx.x * blocks;
    if (t < SUMS) {
        double total = all_sums[row * SUMS + t];
        for (int block = 0; block < blocks; ++block) {
            const double part = sums[(first + block) * SUMS + t];
            total = t < 4 ? total + part : larger(total, part);
        }
        all_sums[row * SUMS + t] = total;
    } else {
        const int i = t - SUMS;
        u64 total = all_counts[row * COUNTS + i];
        for (int block = 0; block < blocks; ++block) total += counts[(first + block) * COUNTS + i];
        all_counts[row * COUNTS + i] = total;
    }
}

// grid (blocks, tensors): the bits of the largest finite |x|, how many values are zero and how many not finite.
extern "C" __global__ void look(const float* const* tensors, const u64* sizes, u32* largest, u64* zeros, u64* nonfinite) {
    __shared__ u64 counted[THREADS];
    const float* values = tensors[blockIdx.y];
    const u64 size = sizes[blockIdx.y];
    u32 most = 0;
    u64 zero = 0, broken = 0;
    for (u64 i = (u64)blockIdx.x * THREADS + threadIdx.x; i < size; i += (u64)gridDim.x * THREADS) {
        const u32 magnitude = __float_as_uint(values[i]) & MAGNITUDE;
        if (magnitude >= INFINITE) broken += 1;
        else if (magnitude > most) most = magnitude;
        zero += magnitude == 0;
    }
    atomicMax(&largest[blockIdx.y], most);
    const u64 all_zero = over_block<u64, false>(zero, counted);
    const u64 all_broken = over_block<u64, false>(broken, counted);
    if (threadIdx.x == 0) {
        atomicAdd(&zeros[blockIdx.y], all_zero);
        atomicAdd(&nonfinite[blockIdx.y], all_broken);
    }
}

// grid (blocks, tensors): add each finite |x| to bin floor(|x| · scale) of the tensor's row. `scale` is a power of two
// for which all of them fall into the bins.
extern "C" __global__ void fill(const float* const* tensors, const u64* sizes, const float* scales, const int* rows, u64* bins) {
    __shared__ u32 counted[BINS];
    for (int bin = threadIdx.x; bin < BINS; bin += THREADS) counted[bin] = 0;
    __syncthreads();
    const float* values = tensors[blockIdx.y];
    const u64 size = sizes[blockIdx.y];
    const float scale = scales[blockIdx.y];
    for (u64 i = (u64)blockIdx.x * THREADS + threadIdx.x; i < size; i += (u64)gridDim.x * THREADS) {
        const float magnitude = fabsf(values[i]);
        if (__float_as_uint(magnitude) < INFINITE) atomicAdd(&counted[(int)(magnitude * scale)], 1u);
    }
    __syncthreads();
    u64* row = bins + (u64)rows[blockIdx.y] * BINS;
    for (int bin = threadIdx.x; bin < BINS; bin += THREADS)
        if (counted[bin]) atomicAdd(&row[bin], (u64)counted[bin]);
}
