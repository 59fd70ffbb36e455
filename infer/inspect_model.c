/* Describing what training and exchange leave: runs, model folders and safetensors files. */
#include "infer/inspect.h"

#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/hash.h"
#include "core/base/memory.h"
#include "core/base/safetensors.h"
#include "data/index.h"
#include "dist/comm.h"
#include "dist/model_file.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* A JSON string, or null for text that is not UTF-8. */
static json_t *text_json(const char *text)
{
    json_t *value = json_string(text);
    return value ? value : json_null();
}

static json_t *begin(const char *kind, const char *path)
{
    json_t *object = json_object();
    json_object_set_new(object, "kind", json_string(kind));
    json_object_set_new(object, "path", kn_json_text(path));
    return object;
}

/* ---- safetensors ---- */

static json_t *tensor_json(const KnSafetensor *tensor)
{
    json_t *shape = json_array();
    for (int d = 0; d < tensor->dims; d++)
        json_array_append_new(shape, json_integer(tensor->shape[d]));
    return json_pack("{sossso}", "name", text_json(tensor->name), "type", kn_safetensors_type_name(tensor->type),
                     "shape", shape);
}

/* How many tensors, elements and bytes, and of which types. */
static void add_totals(json_t *object, const KnSafetensorsSet *set)
{
    int64_t elements = 0, bytes = 0;
    json_t *types = json_object();
    for (int i = 0; i < kn_safetensors_count(set); i++) {
        const KnSafetensor *tensor = kn_safetensors_at(set, i);
        const char *type = kn_safetensors_type_name(tensor->type);
        elements += kn_safetensor_elements(tensor);
        bytes += (int64_t)kn_safetensor_bytes(tensor);
        json_object_set_new(types, type, json_integer(1 + json_integer_value(json_object_get(types, type))));
    }
    json_object_set_new(object, "tensors", json_integer(kn_safetensors_count(set)));
    json_object_set_new(object, "types", types);
    json_object_set_new(object, "elements", json_integer(elements));
    json_object_set_new(object, "bytes", json_integer(bytes));
}

/* The format keeps no hash to compare with: they are told, one for each file of a set. */
static int add_hashes(json_t *object, const KnSafetensorsSet *set)
{
    json_t *files = json_object();
    int code = KN_OK;
    for (int i = 0; i < kn_safetensors_count(set) && code == KN_OK; i++) {
        const char *path = kn_safetensors_path(set, kn_safetensors_at(set, i));
        char hash[KN_SHA256_HEX_BYTES];
        if (json_object_get(files, kn_path_name(path)))
            continue;
        code = kn_sha256_file(path, hash);
        if (code == KN_OK)
            json_object_set_new(files, kn_path_name(path), json_string(hash));
    }
    json_object_set_new(object, "sha256", files);
    return code;
}

int kn_inspect_safetensors(const char *path, int verify, json_t **object)
{
    KnSafetensorsSet *set = NULL;
    KN_TRY(kn_safetensors_open(&set, path));
    json_t *list = json_array();
    const char *format = kn_safetensors_metadata(set, "format");
    *object = begin("safetensors", path);
    add_totals(*object, set);
    if (format)
        json_object_set_new(*object, "format", text_json(format));
    int code = verify ? add_hashes(*object, set) : KN_OK;
    for (int i = 0; i < kn_safetensors_count(set); i++)
        json_array_append_new(list, tensor_json(kn_safetensors_at(set, i)));
    json_object_set_new(*object, "list", list);
    kn_safetensors_close(set);
    if (code < 0)
        json_decref(*object);
    return code;
}

/* ---- model folders ---- */

static json_t *architecture_json(const KnModelConfig *c, const KnTextConfig *text, KnPrediction prediction)
{
    return json_pack("{sI sI sI sI sI s[III] sI ss ss}", "layers", (json_int_t)c->layers, "hidden",
                     (json_int_t)c->hidden, "heads", (json_int_t)c->heads, "ffn", (json_int_t)c->ffn, "channels",
                     (json_int_t)c->channels, "patch", (json_int_t)c->patch[0], (json_int_t)c->patch[1],
                     (json_int_t)c->patch[2], "text_dim", (json_int_t)c->text_dim, "text_encoder",
                     text->kind == KN_TEXT_TRAINED ? "trained with it" : "none", "prediction",
                     prediction == KN_PREDICT_SAMPLE ? "sample" : "velocity");
}

static int add_architecture(json_t *object, const char *folder)
{
    KnModelConfig config;
    KnTextConfig text;
    KnPrediction prediction;
    char *path = kn_path_join(folder, "config.json"), *json = NULL;
    size_t size = 0;
    int code = kn_file_read(path, &json, &size);
    if (code == KN_OK)
        code = kn_model_from_json(json, path, &config, &text, &prediction);
    if (code == KN_OK)
        json_object_set_new(object, "architecture", architecture_json(&config, &text, prediction));
    free(json);
    free(path);
    return code;
}

/* Opening the model as a whole checks every name and shape and reads every weight. */
static int add_verification(json_t *object, const char *folder)
{
    KnComm *comm = NULL;
    KnModelFile file;
    KN_TRY(kn_comm_self_open(&comm));
    int code = kn_model_open(&file, comm, folder);
    if (code == KN_OK) {
        json_object_set_new(object, "model_hash", json_string(file.hash));
        kn_model_close(&file);
    }
    comm->table->destroy(comm);
    return code;
}

static int describe_model(const char *folder, int verify, json_t *object)
{
    KnSafetensorsSet *set = NULL;
    KN_TRY(add_architecture(object, folder));
    if (verify)
        KN_TRY(add_verification(object, folder));
    char *whole = kn_path_join(folder, "diffusion_pytorch_model.safetensors");
    int code = kn_safetensors_open(&set, kn_file_exists(whole) ? whole : folder);
    free(whole);
    KN_TRY(code);
    add_totals(object, set);
    kn_safetensors_close(set);
    return KN_OK;
}

int kn_inspect_model(const char *path, int verify, json_t **object)
{
    char *own = kn_path_join(path, "config.json"), *inner = kn_path_join(path, "transformer");
    *object = begin("model", path);
    int code = describe_model(kn_file_exists(own) ? path : inner, verify, *object);
    free(own);
    free(inner);
    if (code < 0)
        json_decref(*object);
    return code;
}

/* ---- runs ---- */

/* The last line of metrics.jsonl that has `key`, or NULL. */
static json_t *last_metrics(const char *text, size_t size, const char *key)
{
    for (size_t end = size; end > 0;) {
        size_t start = end;
        while (start > 0 && text[start - 1] != '\n')
            start--;
        json_t *line = json_loadb(text + start, end - start, 0, NULL);
        if (json_object_get(line, key))
            return line;
        json_decref(line);
        end = start > 0 ? start - 1 : 0;
    }
    return NULL;
}

static int add_metrics(json_t *object, const char *path)
{
    static const char *const keys[] = {"loss", "validation_loss"};
    char *name = kn_path_join(path, "metrics.jsonl"), *text = NULL;
    size_t size = 0;
    int code = kn_file_exists(name) ? kn_file_read(name, &text, &size) : KN_OK;
    free(name);
    KN_TRY(code);
    for (int i = 0; i < 2 && text; i++) {
        json_t *line = last_metrics(text, size, keys[i]);
        if (line && i == 0)
            json_object_set(object, "steps", json_object_get(line, "step"));
        if (line)
            json_object_set(object, keys[i], json_object_get(line, keys[i]));
        json_decref(line);
    }
    free(text);
    return KN_OK;
}

static int add_configuration(json_t *object, const char *path)
{
    KnConfig config;
    char *name = kn_path_join(path, "config.yaml");
    kn_config_init(&config);
    int code = kn_config_load(&config, name, NULL, 0);
    if (code == KN_OK) {
        json_t *shards = json_array();
        for (int i = 0; i < config.data.shards.count; i++)
            json_array_append_new(shards, text_json(config.data.shards.items[i]));
        json_object_set_new(object, "steps_asked", json_integer(config.train.steps));
        json_object_set_new(object, "seed", json_integer(config.run_seed));
        json_object_set_new(object, "data", shards);
        json_object_set_new(object, "tokens_a_step", json_integer(config.data.tokens * config.train.packs));
        json_object_set_new(object, "optimizer", text_json(config.optimizer.name));
        json_object_set_new(object, "learning_rate", json_real(config.optimizer.lr));
        json_object_set_new(object, "precision", json_string(kn_precision_name(config.train.precision)));
        json_object_set_new(object, "architecture",
                            architecture_json(&config.model, &config.text, config.flow.prediction));
    }
    kn_config_clear(&config);
    free(name);
    return code;
}

static int add_checkpoint(json_t *list, const char *folder, const char *name, int verify)
{
    KnCheckpoint *checkpoint = NULL;
    char *path = kn_path_join(folder, name);
    int code = kn_checkpoint_open(&checkpoint, path, verify ? KN_CHECK_HASHES : KN_CHECK_SIZES);
    if (code == KN_OK)
        json_array_append_new(
            list, json_pack("{so ss}", "name", text_json(name), "state", verify ? "every hash holds" : "sizes hold"));
    else if (!verify) /* told, so that the whole ones can still be seen; an error only where it was asked for */
        json_array_append_new(list,
                              json_pack("{so so}", "name", text_json(name), "state", text_json(kn_error_message())));
    kn_checkpoint_close(checkpoint);
    free(path);
    return verify ? code : KN_OK;
}

static int add_checkpoints(json_t *object, const char *path, int verify)
{
    char *folder = kn_path_join(path, "checkpoints");
    KnStringList names = {0};
    json_t *list = json_array();
    int code = kn_is_directory(folder) ? kn_list_directory(folder, &names) : KN_OK;
    for (int i = 0; code == KN_OK && i < names.count; i++)
        if (kn_starts_with(names.items[i], "step-"))
            code = add_checkpoint(list, folder, names.items[i], verify);
    json_object_set_new(object, "checkpoints", list);
    kn_string_list_clear(&names);
    free(folder);
    return code;
}

int kn_inspect_run(const char *path, int verify, json_t **object)
{
    *object = begin("run", path);
    int code = add_metrics(*object, path);
    if (code == KN_OK)
        code = add_checkpoints(*object, path, verify);
    if (code == KN_OK)
        code = add_configuration(*object, path);
    if (code < 0)
        json_decref(*object);
    return code;
}
