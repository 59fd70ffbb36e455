/* Opening and exporting models. */
#include "dist/model_file.h"

#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/hash.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char weights_name[] = "diffusion_pytorch_model.safetensors";
static const char text_folder[] = "text_encoder";
static const char run_config[] = "kinora.yaml"; /* of the run that made an exported model */
static const char text_prefix[] = "text_encoder.";

/* --- Opening ------------------------------------------------------------------------------------------------------ */

/* Where the weights go: all of them, or into this rank's place in a layout. */
typedef struct Place {
    const KnLayoutOptions *options; /* NULL: all */
    KnLayout *layout;
    float *whole; /* with a layout, the parameter that is being read */
} Place;

static int create_weights(KnModelFile *file, Place *place)
{
    const KnParameterSet *set = &file->model.parameters;
    int64_t largest = 0;
    if (!place->options)
        return kn_parameter_values_create(&file->weights, set, "the model's weights");
    KN_TRY(kn_layout_create(place->layout, &file->model, place->options));
    for (int i = 0; i < set->count; i++)
        largest = set->list[i].elements > largest ? set->list[i].elements : largest;
    void *whole = NULL;
    KN_TRY(kn_alloc_large(&whole, (size_t)largest * sizeof(float), "one parameter of the model"));
    place->whole = whole;
    return kn_zero_values(&place->layout->zero, 3, &file->weights, "this rank's part of the model's weights");
}

/* What this rank holds of the parameter that was read. */
static void keep_part(KnModelFile *file, const Place *place, const KnParameter *parameter)
{
    const KnParameterSet *part = &place->layout->part; /* in another order, since shapes are others */
    int index = (int)(kn_parameter_find(part, parameter->name) - part->list);
    KnBox box = kn_layout_box(place->layout, &file->weights, index);
    int64_t width = parameter->dims > 1 ? parameter->shape[1] : 1;
    int64_t rest = parameter->elements / (parameter->shape[0] * width), run = box.count[1] * rest;
    for (int64_t r = 0; r < box.count[0]; r++)
        memcpy(box.data + r * run, place->whole + ((box.start[0] + r) * width + box.start[1]) * rest,
               (size_t)run * sizeof(float));
}

/* A file's way of reading one whole parameter. */
typedef int ReadParameter(const void *source, const KnParameter *parameter, float *out);

static int fill_weights(KnModelFile *file, const Place *place, ReadParameter *read, const void *source)
{
    const KnParameterSet *set = &file->model.parameters;
    unsigned char digest[KN_SHA256_BYTES];
    KnSha256 *stream = kn_sha256_create();
    int code = KN_OK;
    for (int i = 0; i < set->count && code == KN_OK; i++) {
        const KnParameter *parameter = &set->list[i];
        float *out = place->options ? place->whole : kn_parameter_data(&file->weights, parameter);
        if ((code = read(source, parameter, out)) < 0)
            break;
        kn_sha256_update(stream, parameter->name, strlen(parameter->name) + 1);
        kn_sha256_update(stream, out, (size_t)parameter->elements * sizeof(float));
        if (place->options)
            keep_part(file, place, parameter);
    }
    kn_sha256_finish(stream, digest);
    kn_hex(digest, sizeof digest, file->hash);
    return code;
}

static int create_model(KnModelFile *file, Place *place, const char *json, const char *name, KnTokenizer *tokenizer)
{
    KnModelConfig config;
    KnTextConfig text;
    KnPrediction prediction;
    int code = kn_model_from_json(json, name, &config, &text, &prediction);
    if (code == KN_OK && text.kind == KN_TEXT_TRAINED && !tokenizer)
        code = kn_fail(KN_EFORMAT, "%s: the model has a text encoder but no tokenizer is beside it", name);
    if (code < 0) {
        kn_tokenizer_destroy(tokenizer);
        return code;
    }
    if (text.kind == KN_TEXT_NONE) { /* config.json has the last word: a vocabulary may lie there for other programs */
        kn_tokenizer_destroy(tokenizer);
        tokenizer = NULL;
    }
    code = kn_model_create(&file->model, &config, &text, prediction, tokenizer);
    if (code < 0)
        return kn_fail_prefix(code, "%s", name);
    return create_weights(file, place);
}

static int checkpoint_tokenizer(const KnCheckpoint *checkpoint, KnTokenizer **tokenizer)
{
    const KnCheckpointTensor *found = kn_checkpoint_find(checkpoint, KN_CHECKPOINT_TOKENIZER);
    *tokenizer = NULL;
    if (!found)
        return KN_OK;
    KnCheckpointTensor tensor = *found;
    tensor.data = kn_alloc((size_t)tensor.shape[0]);
    int code = kn_checkpoint_load(checkpoint, &tensor, 1);
    if (code == KN_OK)
        code = kn_tokenizer_load(tensor.data, (size_t)tensor.shape[0], kn_checkpoint_path(checkpoint), tokenizer);
    free(tensor.data);
    return code;
}

typedef struct CheckpointSource {
    const KnCheckpoint *checkpoint;
    const char *prefix;
} CheckpointSource;

static int read_from_checkpoint(const void *context, const KnParameter *parameter, float *out)
{
    const CheckpointSource *source = context;
    char *name = kn_format("%s%s", source->prefix, parameter->name);
    KnCheckpointTensor tensor = {.name = name, .type = KN_SAFETENSORS_F32, .dims = parameter->dims, .data = out};
    memcpy(tensor.shape, parameter->shape, (size_t)parameter->dims * sizeof *tensor.shape);
    kn_checkpoint_whole(&tensor);
    int code = kn_checkpoint_load(source->checkpoint, &tensor, 1);
    free(name);
    return code;
}

static int fill_from_checkpoint(KnModelFile *file, Place *place, const KnCheckpoint *checkpoint)
{
    const KnCheckpointMeta *meta = kn_checkpoint_meta(checkpoint);
    KnTokenizer *tokenizer = NULL;
    char first[256];
    KN_TRY(checkpoint_tokenizer(checkpoint, &tokenizer));
    KN_TRY(create_model(file, place, meta->model_json, kn_checkpoint_path(checkpoint), tokenizer));
    file->config_yaml = meta->config ? kn_strdup(meta->config) : NULL;
    file->step = meta->step;
    snprintf(first, sizeof first, "%s%s", KN_CHECKPOINT_AVERAGE, file->model.parameters.list[0].name);
    CheckpointSource source = {checkpoint,
                               kn_checkpoint_find(checkpoint, first) ? KN_CHECKPOINT_AVERAGE : KN_CHECKPOINT_WEIGHTS};
    return fill_weights(file, place, read_from_checkpoint, &source);
}

static int open_checkpoint(KnModelFile *file, Place *place, const char *path)
{
    KnCheckpoint *checkpoint = NULL;
    KN_TRY(kn_checkpoint_open(&checkpoint, path, KN_CHECK_HASHES));
    int code = fill_from_checkpoint(file, place, checkpoint);
    kn_checkpoint_close(checkpoint);
    return code;
}

static int open_run(KnModelFile *file, Place *place, KnComm *comm, const char *path)
{
    char *newest = NULL;
    int code = kn_checkpoint_newest(comm, path, &newest);
    if (code == KN_END)
        return kn_fail(KN_EINPUT, "%s has no checkpoint yet: train it first", path);
    if (code == KN_OK) {
        free(file->path);
        file->path = newest;
        code = open_checkpoint(file, place, newest);
    }
    return code;
}

typedef struct FolderSource {
    const KnSafetensorsSet *transformer, *text;
} FolderSource;

/* Every parameter is taken from the set that its name belongs to, each with the published shape. */
static int read_from_folder(const void *context, const KnParameter *parameter, float *out)
{
    const FolderSource *source = context;
    int is_text = !strncmp(parameter->name, text_prefix, sizeof text_prefix - 1);
    const KnSafetensorsSet *set = is_text ? source->text : source->transformer;
    const char *name = parameter->name + (is_text ? sizeof text_prefix - 1 : 0);
    const KnSafetensor *found = kn_safetensors_find(set, name);
    if (found && (found->dims != parameter->dims ||
                  memcmp(found->shape, parameter->shape, (size_t)parameter->dims * sizeof *found->shape))) {
        return kn_fail(KN_EFORMAT,
                       "%s: tensor %s has another shape than config.json asks for (%lld elements, not %lld)",
                       kn_safetensors_path(set, found), name, (long long)kn_safetensor_elements(found),
                       (long long)parameter->elements);
    }
    return kn_safetensors_read_f32(set, name, out, parameter->elements);
}

/* A tensor that the architecture has no place for means that config.json describes another model. */
static int refuse_extra(const KnModelFile *file, const KnSafetensorsSet *set, const char *prefix)
{
    for (int i = 0; set && i < kn_safetensors_count(set); i++) {
        const KnSafetensor *tensor = kn_safetensors_at(set, i);
        char *name = kn_format("%s%s", prefix, tensor->name);
        int known = kn_parameter_find(&file->model.parameters, name) != NULL;
        free(name);
        if (!known)
            return kn_fail(KN_EFORMAT, "%s holds a tensor %s, which the model that config.json describes does not have",
                           kn_safetensors_path(set, tensor), tensor->name);
    }
    return KN_OK;
}

static int folder_tokenizer(const char *folder, KnTokenizer **tokenizer)
{
    char *path = kn_format("%s/%s/spiece.model", folder, text_folder);
    *tokenizer = NULL;
    int code = kn_file_exists(path) ? kn_tokenizer_load_file(path, tokenizer) : KN_OK;
    free(path);
    return code;
}

static int open_sets(KnModelFile *file, const Place *place, const char *folder)
{
    KnSafetensorsSet *transformer = NULL, *text = NULL;
    char *text_path = kn_path_join(folder, text_folder), *whole = kn_path_join(folder, weights_name);
    int code = kn_safetensors_open(&transformer, kn_file_exists(whole) ? whole : folder);
    if (code == KN_OK && file->model.text.kind == KN_TEXT_TRAINED)
        code = kn_safetensors_open(&text, text_path);
    if (code == KN_OK)
        code = fill_weights(file, place, read_from_folder, &(FolderSource){transformer, text});
    if (code == KN_OK)
        code = refuse_extra(file, transformer, "");
    if (code == KN_OK)
        code = refuse_extra(file, text, text_prefix);
    kn_safetensors_close(transformer);
    kn_safetensors_close(text);
    free(text_path);
    free(whole);
    return code;
}

static int read_run_config(KnModelFile *file, const char *folder)
{
    size_t size = 0;
    char *path = kn_path_join(folder, run_config);
    int code = kn_file_exists(path) ? kn_file_read(path, &file->config_yaml, &size) : KN_OK;
    free(path);
    return code;
}

static int open_folder(KnModelFile *file, Place *place, const char *folder, const char *config_path)
{
    char *json = NULL;
    size_t size = 0;
    KnTokenizer *tokenizer = NULL;
    KN_TRY(kn_file_read(config_path, &json, &size));
    int code = folder_tokenizer(folder, &tokenizer);
    if (code == KN_OK)
        code = create_model(file, place, json, config_path, tokenizer);
    free(json);
    KN_TRY(code);
    KN_TRY(read_run_config(file, folder));
    return open_sets(file, place, folder);
}

static int open_any(KnModelFile *file, Place *place, KnComm *comm, const char *path)
{
    char *config_json = kn_path_join(path, "config.json"), *config_yaml = kn_path_join(path, "config.yaml");
    int code;
    *file = (KnModelFile){.path = kn_strdup(path), .step = -1};
    if (!kn_file_exists(path))
        code = kn_fail(KN_EIO, "there is no model at %s", path);
    else if (kn_is_checkpoint(path))
        code = open_checkpoint(file, place, path);
    else if (kn_file_exists(config_json))
        code = open_folder(file, place, path, config_json);
    else if (kn_file_exists(config_yaml))
        code = open_run(file, place, comm, path);
    else
        code = kn_fail(KN_EINPUT,
                       "%s is no model: expected a run folder (config.yaml), a checkpoint (manifest.json) or a "
                       "transformer folder (config.json)",
                       path);
    free(config_json);
    free(config_yaml);
    kn_free_large(place->whole);
    if (code < 0)
        kn_model_close(file);
    return code;
}

int kn_model_open(KnModelFile *file, KnComm *comm, const char *path)
{
    return open_any(file, &(Place){0}, comm, path);
}

int kn_model_open_shared(KnModelFile *file, KnComm *comm, const char *path, const KnLayoutOptions *options,
                         KnLayout *layout)
{
    *layout = (KnLayout){0};
    return open_any(file, &(Place){.options = options, .layout = layout}, comm, path);
}

void kn_model_close(KnModelFile *file)
{
    kn_parameter_values_clear(&file->weights);
    kn_model_destroy(&file->model);
    free(file->path);
    free(file->config_yaml);
    *file = (KnModelFile){0};
}

int kn_model_file_config(const KnModelFile *file, KnConfig *config)
{
    char *name = kn_format("the configuration in %s", file->path);
    int code = kn_config_parse(config, file->config_yaml, name);
    free(name);
    return code;
}

/* --- Exporting ---------------------------------------------------------------------------------------------------- */

/* Writes the parameters of the text encoder or those of the transformer. */
static int write_weights(const KnModelFile *file, const char *path, int text)
{
    const KnParameterSet *set = &file->model.parameters;
    KnSafetensor *tensors = kn_alloc((size_t)set->count * sizeof *tensors);
    KnSafetensorsPair metadata = {"format", "pt"};
    int count = 0;
    for (int i = 0; i < set->count; i++) {
        const KnParameter *parameter = &set->list[i];
        int is_text = !strncmp(parameter->name, text_prefix, sizeof text_prefix - 1);
        if (is_text != text)
            continue;
        KnSafetensor *tensor = &tensors[count++];
        *tensor = (KnSafetensor){.name = parameter->name + (is_text ? sizeof text_prefix - 1 : 0),
                                 .type = KN_SAFETENSORS_F32,
                                 .dims = parameter->dims,
                                 .data = kn_parameter_data(&file->weights, parameter)};
        memcpy(tensor->shape, parameter->shape, (size_t)parameter->dims * sizeof *tensor->shape);
    }
    int code = kn_safetensors_write(path, tensors, count, &metadata, 1);
    free(tensors);
    return code;
}

static int write_in(const char *folder, const char *name, const void *bytes, size_t size)
{
    char *path = kn_path_join(folder, name);
    int code = kn_file_write(path, bytes, size);
    free(path);
    return code;
}

static int export_text(const KnModelFile *file, const char *folder)
{
    size_t size = 0;
    const void *spiece = kn_tokenizer_model(file->model.tokenizer, &size);
    char *path = kn_path_join(folder, text_folder), *weights = kn_path_join(path, "model.safetensors");
    int code = kn_make_directories(path);
    if (code == KN_OK)
        code = write_weights(file, weights, 1);
    if (code == KN_OK)
        code = write_in(path, "spiece.model", spiece, size);
    free(path);
    free(weights);
    return code;
}

static int export_into(const KnModelFile *file, const char *folder)
{
    char *json = kn_model_to_json(&file->model), *weights = kn_path_join(folder, weights_name);
    int code = kn_make_directories(folder);
    if (code == KN_OK)
        code = write_in(folder, "config.json", json, strlen(json));
    if (code == KN_OK)
        code = write_weights(file, weights, 0);
    if (code == KN_OK && file->config_yaml)
        code = write_in(folder, run_config, file->config_yaml, strlen(file->config_yaml));
    if (code == KN_OK && file->model.text.kind == KN_TEXT_TRAINED)
        code = export_text(file, folder);
    free(json);
    free(weights);
    return code;
}

int kn_model_export(const KnModelFile *file, const char *directory)
{
    char *temporary = kn_temporary_path(directory);
    int code = export_into(file, temporary);
    if (code == KN_OK)
        code = kn_directory_publish(temporary, directory);
    else
        kn_remove_tree(temporary);
    free(temporary);
    return code;
}
