/* oneDNN behind bench/onednn_matmul.h, versions 2 and 3. */
#include "bench/onednn_matmul.h"

#include <oneapi/dnnl/dnnl.hpp>

#include <string>
#include <unordered_map>

using namespace dnnl;
using type = memory::data_type;
using tag = memory::format_tag;

namespace
{
struct Peer {
    engine cpu{engine::kind::cpu, 0};
    stream queue{cpu};
    matmul primitive;
    std::unordered_map<int, memory> arguments;
};

matmul::primitive_desc describe(const engine &cpu, const memory::desc &a, const memory::desc &b, const memory::desc &c)
{
#if DNNL_VERSION_MAJOR >= 3
    return matmul::primitive_desc(cpu, a, b, c);
#else
    return matmul::primitive_desc(matmul::desc(a, b, c), cpu);
#endif
}
} // namespace

const char *kn_peer_matmul_version(void)
{
    static const std::string text = "oneDNN " + std::to_string(dnnl_version()->major) + "." +
                                    std::to_string(dnnl_version()->minor) + "." + std::to_string(dnnl_version()->patch);
    return text.c_str();
}

void *kn_peer_matmul_create(const KnPeerMatmul *p)
{
    Peer *peer = new Peer;
    const type in = p->bf16 ? type::bf16 : type::f32;
    memory::desc a({p->m, p->k}, in, p->a_transposed ? tag::ba : tag::ab);
    memory::desc b({p->k, p->n}, in, p->b_transposed ? tag::ba : tag::ab);
    memory::desc c({p->m, p->n}, p->c_bf16 ? type::bf16 : type::f32, tag::ab);
    memory::desc any({p->k, p->n}, in, tag::any);
    auto description = describe(peer->cpu, a, p->packed ? any : b, c);
    peer->primitive = matmul(description);
    memory weights(b, peer->cpu, const_cast<void *>(p->b));
    if (p->packed) {
        memory packed(description.weights_desc(), peer->cpu);
        reorder(weights, packed).execute(peer->queue, weights, packed);
        peer->queue.wait();
        weights = packed;
    }
    peer->arguments = {{DNNL_ARG_SRC, memory(a, peer->cpu, const_cast<void *>(p->a))},
                       {DNNL_ARG_WEIGHTS, weights},
                       {DNNL_ARG_DST, memory(c, peer->cpu, p->c)}};
    return peer;
}

void kn_peer_matmul_run(void *peer)
{
    Peer *self = static_cast<Peer *>(peer);
    self->primitive.execute(self->queue, self->arguments);
    self->queue.wait();
}

void kn_peer_matmul_destroy(void *peer)
{
    delete static_cast<Peer *>(peer);
}
