/* Models on disk: opening whatever a user may point at, and writing the published layout.
 *
 * A path may be a run folder (its newest valid checkpoint), a checkpoint, a folder exported here, or a transformer
 * folder of diffusers (config.json and safetensors, whole or sharded by an index). Averaged weights are taken where a
 * checkpoint has them. */
#ifndef KN_DIST_MODEL_FILE_H
#define KN_DIST_MODEL_FILE_H

#include "core/model/model.h"
#include "dist/checkpoint.h"
#include "dist/layout.h"

/* Prefixes of tensor names in a checkpoint; "tokenizer" (u8) holds spiece.model. */
#define KN_CHECKPOINT_WEIGHTS "weights."
#define KN_CHECKPOINT_AVERAGE "average."
#define KN_CHECKPOINT_TOKENIZER "tokenizer"

typedef struct KnModelFile {
    KnModel model;
    KnParameterValues weights;
    char *path;        /* of what was opened in the end: the checkpoint or the folder */
    char hash[65];     /* SHA-256 that identifies these weights, hex */
    char *config_yaml; /* the run's resolved configuration; NULL where there is none */
    int64_t step;      /* of the checkpoint; -1 for published models */
} KnModelFile;

/* KN_EINPUT, KN_EFORMAT or KN_EIO with a sentence that names the path, and the tensor where one is missing or of
 * another shape. */
int kn_model_open(KnModelFile *file, KnComm *comm, const char *path);
/* The same for ranks that share the model: creates `layout` by `options`, and `weights` are what this rank holds of it,
 * its tensor part, of which only its range where parallel.zero is 3. More is never in memory than that and one
 * parameter. Collective over options->world; neither struct may be moved, and the
 * model is closed before the layout is destroyed. */
int kn_model_open_shared(KnModelFile *file, KnComm *comm, const char *path, const KnLayoutOptions *options,
                         KnLayout *layout);
void kn_model_close(KnModelFile *file);

/* Reads the run's configuration, which must be there, into one that kn_config_init has made. */
int kn_model_file_config(const KnModelFile *file, KnConfig *config);

/* The architecture as the JSON text of a diffusers config.json, with an object "kinora" for what diffusers does not
 * know (text encoder, prediction). free() it. */
char *kn_model_to_json(const KnModel *model);
/* The reverse; `name` stands in the sentence. A config.json without "kinora" predicts velocity and has no text
 * encoder of ours. */
int kn_model_from_json(const char *json, const char *name, KnModelConfig *config, KnTextConfig *text,
                       KnPrediction *prediction);

/* Writes DIR/config.json and DIR/diffusion_pytorch_model.safetensors (the transformer, names and shapes as published)
 * and, where the model has an encoder, DIR/text_encoder/{model.safetensors, spiece.model}; DIR/kinora.yaml is the
 * configuration of the run that made it, for its sample.* defaults. Atomic: the folder appears
 * whole; an existing one that is not empty is refused. */
int kn_model_export(const KnModelFile *file, const char *directory);

#endif
