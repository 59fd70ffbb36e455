/* The peer of bench_matmul: one oneDNN matrix product, made once and run many times. Used by the benchmark only. */
#ifndef KN_BENCH_ONEDNN_MATMUL_H
#define KN_BENCH_ONEDNN_MATMUL_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct KnPeerMatmul {
    int64_t m, n, k;
    int bf16, c_bf16;
    int a_transposed, b_transposed;
    int packed; /* B in the layout that oneDNN likes best, reordered when it is made */
    const void *a, *b;
    void *c;
} KnPeerMatmul;

const char *kn_peer_matmul_version(void);
void *kn_peer_matmul_create(const KnPeerMatmul *product);
void kn_peer_matmul_run(void *peer);
void kn_peer_matmul_destroy(void *peer);

#ifdef __cplusplus
}
#endif
#endif
