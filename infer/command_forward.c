/* `kinora forward`: one pass of the transformer on given tensors, with gradients if asked, to be compared with other
 * implementations. */
#include "infer/commands.h"

#include "core/base/args.h"
#include "core/base/error.h"
#include "core/base/log.h"
#include "core/base/safetensors.h"
#include "core/graph/devices.h"
#include "core/ops/ops.h"
#include "dist/comm.h"
#include "dist/gradients.h"
#include "dist/model_file.h"
#include "infer/device.h"

#include <stdlib.h>
#include <string.h>

typedef struct Options {
    const char *model, *inputs, *out, *dtype, *device;
    int gradients;
} Options;

static const KnArg rows[] = {
    {.name = "model",
     .kind = KN_ARG_STRING,
     .offset = offsetof(Options, model),
     .metavariable = "DIR",
     .meaning = "run folder, checkpoint or transformer folder",
     .required = 1},
    {.name = "inputs",
     .kind = KN_ARG_STRING,
     .offset = offsetof(Options, inputs),
     .metavariable = "FILE",
     .meaning = "safetensors with hidden_states [C,T,H,W], timestep [1], encoder_hidden_states [L,text_dim] and, for\n"
                "gradients, target [C,T,H,W]",
     .required = 1},
    {.name = "out",
     .kind = KN_ARG_STRING,
     .offset = offsetof(Options, out),
     .metavariable = "FILE",
     .meaning = "safetensors to write: sample; with gradients also loss, grad.hidden_states and grad.PARAMETER",
     .required = 1},
    {.name = "gradients",
     .kind = KN_ARG_FLAG,
     .offset = offsetof(Options, gradients),
     .meaning = "differentiate the mean squared error between sample and target"},
    {.name = "dtype",
     .kind = KN_ARG_CHOICE,
     .offset = offsetof(Options, dtype),
     .metavariable = "f32|bf16",
     .fallback = "f32",
     .meaning = "what the pass computes in"},
    KN_DEVICE_ARG(offsetof(Options, device)),
};

static const KnArgSpec spec = {
    .command = "forward",
    .usage = "--model DIR --inputs FILE --out FILE [--gradients] [--dtype f32|bf16] [--device auto|cpu|cuda]",
    .description = "Runs the transformer once on given tensors, for numerical comparison with other implementations.",
    .examples = "kinora forward --model runs/first --inputs case.safetensors --out result.safetensors --gradients",
    .args = rows,
    .arg_count = sizeof rows / sizeof rows[0],
};

typedef struct Pass {
    const Options *options;
    KnModelFile file;
    KnSafetensorsSet *inputs;
    int64_t size[4], grid[3], tokens, text_tokens, dim; /* size: C, T, H, W */
    float *patches, *target, *text, *weight, *rope;
    KnStream stream;
    KnModelGraph built;
    KnTensor *target_leaf, *weight_leaf, *loss, *prediction;
    KnTensor **wanted, **gradients;
    int wanted_count;
    KnBackend *backend;
    KnExecutor *executor;
} Pass;

/* --- Inputs ------------------------------------------------------------------------------------------------------- */

static int find(const Pass *p, const char *name, int dims, const KnSafetensor **found)
{
    *found = kn_safetensors_find(p->inputs, name);
    if (!*found)
        return kn_fail(KN_EINPUT, "%s holds no tensor %s", p->options->inputs, name);
    if ((*found)->dims != dims)
        return kn_fail(KN_EINPUT, "%s: %s has %d dimensions, not %d", p->options->inputs, name, (*found)->dims, dims);
    return KN_OK;
}

static int find_sizes(Pass *p)
{
    const KnModelConfig *c = &p->file.model.config;
    const KnSafetensor *hidden, *text;
    KN_TRY(find(p, "hidden_states", 4, &hidden));
    KN_TRY(find(p, "encoder_hidden_states", 2, &text));
    memcpy(p->size, hidden->shape, sizeof p->size);
    p->tokens = 1;
    for (int i = 0; i < 3; i++) {
        p->grid[i] = p->size[i + 1] / c->patch[i];
        p->tokens *= p->grid[i];
        if (p->grid[i] < 1 || p->size[i + 1] % c->patch[i] || p->grid[i] > KN_ROPE_POSITIONS)
            return kn_fail(KN_EINPUT, "%s: hidden_states cannot be cut into patches of %lld,%lld,%lld",
                           p->options->inputs, (long long)c->patch[0], (long long)c->patch[1], (long long)c->patch[2]);
    }
    if (p->size[0] != c->channels || text->shape[1] != c->text_dim || text->shape[0] < 1)
        return kn_fail(KN_EINPUT,
                       "%s: %lld channels and text states of %lld x %lld do not fit a model of %lld "
                       "channels and text_dim %lld",
                       p->options->inputs, (long long)p->size[0], (long long)text->shape[0], (long long)text->shape[1],
                       (long long)c->channels, (long long)c->text_dim);
    p->text_tokens = text->shape[0];
    p->dim = kn_model_patch_dim(c);
    return KN_OK;
}

/* [C, T, H, W] <-> [tokens, (C, pt, ph, pw)] */
static void cut(const Pass *p, float *video, float *patches, int to_patches)
{
    const int64_t *patch = p->file.model.config.patch, *size = p->size;
    for (int64_t c = 0; c < size[0]; c++)
        for (int64_t t = 0; t < size[1]; t++)
            for (int64_t y = 0; y < size[2]; y++)
                for (int64_t x = 0; x < size[3]; x++) {
                    int64_t token = (t / patch[0] * p->grid[1] + y / patch[1]) * p->grid[2] + x / patch[2];
                    int64_t inside =
                        ((c * patch[0] + t % patch[0]) * patch[1] + y % patch[1]) * patch[2] + x % patch[2];
                    float *pixel = &video[((c * size[1] + t) * size[2] + y) * size[3] + x];
                    float *value = &patches[token * p->dim + inside];
                    if (to_patches)
                        *value = *pixel;
                    else
                        *pixel = *value;
                }
}

static int read_video(const Pass *p, const char *name, float *patches)
{
    int64_t count = p->tokens * p->dim;
    float *video = kn_alloc((size_t)count * sizeof *video);
    int code = kn_safetensors_read_f32(p->inputs, name, video, count);
    if (code == KN_OK)
        cut(p, video, patches, 1);
    free(video);
    return code;
}

static int read_inputs(Pass *p)
{
    float timestep = 0;
    size_t bytes = (size_t)(p->tokens * p->dim) * sizeof(float);
    KN_TRY(kn_safetensors_read_f32(p->inputs, "timestep", &timestep, 1));
    p->patches = kn_alloc(bytes);
    p->target = kn_alloc(bytes);
    p->text = kn_alloc((size_t)(p->text_tokens * p->file.model.config.text_dim) * sizeof(float));
    p->weight = kn_alloc((size_t)p->tokens * sizeof(float));
    KN_TRY(read_video(p, "hidden_states", p->patches));
    if (p->options->gradients)
        KN_TRY(read_video(p, "target", p->target));
    for (int64_t i = 0; i < p->tokens; i++)
        p->weight[i] = (float)(1.0 / (double)(p->tokens * p->dim));
    kn_stream_create(&p->stream, (KnStreamShape){p->tokens, 1, p->text_tokens});
    kn_stream_add(&p->stream, &(KnStreamClip){.grid = {p->grid[0], p->grid[1], p->grid[2]},
                                              .sigma = timestep / 1000,
                                              .text_tokens = p->text_tokens});
    p->stream.timesteps[0] = timestep;
    return kn_safetensors_read_f32(p->inputs, "encoder_hidden_states", p->text,
                                   p->text_tokens * p->file.model.config.text_dim);
}

/* --- The graph ---------------------------------------------------------------------------------------------------- */

static void differentiate(Pass *p)
{
    KnGraph *graph = p->built.graph;
    const KnParameterSet *set = &p->file.model.parameters;
    p->target_leaf = kn_leaf(graph, KN_ROLE_INPUT, KN_F32, 2, p->built.prediction->shape, "input.target");
    p->weight_leaf = kn_leaf(graph, KN_ROLE_INPUT, KN_F32, 1, &p->tokens, "input.weight");
    p->loss = kn_masked_mse(graph, p->prediction, p->target_leaf, p->weight_leaf);
    p->wanted = kn_alloc((size_t)(set->count + 1) * sizeof *p->wanted);
    p->gradients = kn_alloc((size_t)(set->count + 2) * sizeof *p->gradients);
    for (int i = 0; i < set->count; i++) {
        KnTensor *leaf = kn_leaf_find(graph, set->list[i].name);
        if (leaf)
            p->wanted[p->wanted_count++] = leaf;
    }
    p->wanted[p->wanted_count++] = p->built.patches;
    kn_gradient(graph, p->loss, p->wanted, p->wanted_count, p->gradients, kn_add);
}

static int build(Pass *p)
{
    const KnModelConfig *config = &p->file.model.config;
    const KnParameterSet *set = &p->file.model.parameters;
    KnBackend *backend = p->backend;
    kn_model_build(&p->file.model,
                   &(KnModelGraphOptions){.shape = p->stream.shape,
                                          .dtype = strcmp(p->options->dtype, "bf16") ? KN_F32 : KN_BF16,
                                          .outside_text = 1},
                   &p->built);
    p->prediction = p->built.prediction;
    if (p->options->gradients)
        differentiate(p);
    if (backend->lower)
        backend->lower(backend, p->built.graph);
    KnTensor **keep = kn_alloc((size_t)(p->wanted_count + 2) * sizeof *keep);
    int keep_count = p->wanted_count;
    if (keep_count)
        memcpy(keep, p->gradients, (size_t)keep_count * sizeof *keep);
    keep[keep_count++] = p->prediction;
    keep[keep_count++] = p->loss;
    kn_graph_finish(p->built.graph, keep, keep_count);
    int code = kn_executor_create(&p->executor, p->built.graph, backend, keep, keep_count);
    free(keep);
    KN_TRY(code);
    p->rope = kn_alloc((size_t)(KN_ROPE_POSITIONS * (config->hidden / config->heads)) * sizeof(float));
    kn_dit_rope_table(config, p->rope);
    kn_executor_bind(p->executor, p->built.leaves.rope_table, p->rope);
    kn_stream_bind(p->executor, &p->built.leaves, &p->stream, 0, 0);
    kn_executor_bind(p->executor, p->built.patches, p->patches);
    kn_executor_bind(p->executor, p->built.text, p->text);
    for (int i = 0; i < set->count; i++) {
        const KnTensor *leaf = kn_leaf_find(p->built.graph, set->list[i].name);
        if (leaf)
            kn_executor_bind(p->executor, leaf, kn_parameter_data(&p->file.weights, &set->list[i]));
    }
    if (p->loss) {
        kn_executor_bind(p->executor, p->target_leaf, p->target);
        kn_executor_bind(p->executor, p->weight_leaf, p->weight);
    }
    return KN_OK;
}

/* --- Results ------------------------------------------------------------------------------------------------------ */

/* Tensors to be written; their values live in the arena. */
typedef struct Results {
    Pass *pass;
    KnArena *arena;
    KnSafetensor *tensors;
    int count;
} Results;

/* Adds a result with room for its values, which are then read from the executor. */
static int add_result(Results *r, const char *name, const KnTensor *value, int dims, const int64_t *shape, float **read)
{
    KnSafetensor *tensor = &r->tensors[r->count++];
    *read = kn_arena_alloc(r->arena, kn_tensor_bytes(value));
    *tensor = (KnSafetensor){.name = name, .type = KN_SAFETENSORS_F32, .dims = dims, .data = *read};
    if (dims)
        memcpy(tensor->shape, shape, (size_t)dims * sizeof *shape);
    return kn_executor_read(r->pass->executor, value, *read);
}

static int add_video(Results *r, const char *name, const KnTensor *value)
{
    const Pass *p = r->pass;
    float *patches, *video = kn_arena_alloc(r->arena, kn_tensor_bytes(value));
    KN_TRY(add_result(r, name, value, 4, p->size, &patches));
    cut(p, video, patches, 0);
    r->tensors[r->count - 1].data = video;
    return KN_OK;
}

static int add_gradients(Results *r)
{
    const Pass *p = r->pass;
    float *values;
    for (int i = 0; i + 1 < p->wanted_count; i++) {
        const KnParameter *parameter = kn_parameter_find(&p->file.model.parameters, p->wanted[i]->name);
        if (p->gradients[i]) /* else the loss does not depend on it */
            KN_TRY(add_result(r, kn_arena_format(r->arena, "grad.%s", parameter->name), p->gradients[i],
                              parameter->dims, parameter->shape, &values));
    }
    return KN_OK;
}

static int read_results(Results *r)
{
    const Pass *p = r->pass;
    float *loss;
    KN_TRY(add_video(r, "sample", p->prediction));
    if (!p->loss)
        return KN_OK;
    KN_TRY(add_result(r, "loss", p->loss, 0, NULL, &loss));
    KN_TRY(add_video(r, "grad.hidden_states", p->gradients[p->wanted_count - 1]));
    return add_gradients(r);
}

static int write_results(Pass *p)
{
    Results results = {.pass = p, .arena = kn_arena_create()};
    results.tensors = kn_arena_alloc(results.arena, (size_t)(p->wanted_count + 3) * sizeof *results.tensors);
    int code = read_results(&results);
    if (code == KN_OK)
        code = kn_safetensors_write(p->options->out, results.tensors, results.count, NULL, 0);
    kn_arena_destroy(results.arena);
    return code;
}

static int forward(Pass *p, KnComm *comm)
{
    KN_TRY(kn_model_open(&p->file, comm, p->options->model));
    KN_TRY(kn_safetensors_open(&p->inputs, p->options->inputs));
    KN_TRY(find_sizes(p));
    KN_TRY(read_inputs(p));
    KN_TRY(kn_device_open(p->options->device, &p->file, comm, &p->backend));
    KN_TRY(kn_parameter_values_place(&p->file.weights, p->backend, "the weights"));
    KN_TRY(build(p));
    KN_TRY(kn_executor_run(p->executor));
    return write_results(p);
}

static void release(Pass *p)
{
    kn_executor_destroy(p->executor);
    kn_graph_destroy(p->built.graph);
    kn_stream_destroy(&p->stream);
    kn_safetensors_close(p->inputs);
    free(p->patches);
    free(p->target);
    free(p->text);
    free(p->weight);
    free(p->rope);
    free(p->wanted);
    free(p->gradients);
    if (p->backend)
        kn_parameter_values_withdraw(&p->file.weights, p->backend);
    kn_model_close(&p->file);
    kn_backend_close(p->backend);
}

int kn_command_forward(int argc, char **argv)
{
    Options options = {0};
    Pass pass = {.options = &options};
    KnComm *comm = NULL;
    KN_TRY(kn_args_parse(&spec, argc, argv, &options, NULL));
    int code = kn_comm_open(&comm);
    if (code == KN_OK) {
        code = forward(&pass, comm);
        release(&pass);
        code = kn_comm_close(comm, code);
    }
    kn_args_clear(&spec, &options, NULL);
    return code;
}
