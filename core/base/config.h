/* The configuration: one YAML file reproduces a run.
 *
 * Every key is a row of one table (core/base/config_table.c) with its type, default, range, choices and meaning; that
 * table reads the YAML, checks it, prints `kinora config --help` and writes the resolved file. Unknown keys, wrong
 * types and impossible values are errors with file:line:column and, for a misspelt key, the nearest valid one. The key
 * `base` at the top names a file (relative to this one) to start from. Strings belong to the config. */
#ifndef KN_BASE_CONFIG_H
#define KN_BASE_CONFIG_H

#include "core/base/text.h"

#include <stddef.h>
#include <stdint.h>

typedef enum KnPrecision { KN_PRECISION_F32, KN_PRECISION_BF16 } KnPrecision;
typedef enum KnPrediction { KN_PREDICT_VELOCITY, KN_PREDICT_SAMPLE } KnPrediction;
typedef enum KnSigmaDistribution { KN_SIGMA_LOGIT_NORMAL, KN_SIGMA_UNIFORM } KnSigmaDistribution;
typedef enum KnSchedule { KN_SCHEDULE_CONSTANT, KN_SCHEDULE_COSINE, KN_SCHEDULE_LINEAR } KnSchedule;
enum { KN_RECOMPUTE_NONE = 0, KN_RECOMPUTE_BLOCK = -1 }; /* no block, every block */
typedef enum KnOffload { KN_OFFLOAD_NONE, KN_OFFLOAD_OPTIMIZER } KnOffload;
typedef enum KnFaultAction { KN_FAULT_SKIP, KN_FAULT_ROLLBACK, KN_FAULT_WARN } KnFaultAction;
typedef enum KnParallelMode { KN_PARALLEL_FAST, KN_PARALLEL_LAYOUT_INVARIANT } KnParallelMode;
typedef enum KnTextRows { KN_TEXT_ROWS_AUTO, KN_TEXT_ROWS_WHOLE, KN_TEXT_ROWS_CUT } KnTextRows;
typedef enum KnTextKind { KN_TEXT_TRAINED, KN_TEXT_NONE } KnTextKind;

/* The transformer's shape: also what a diffusers config.json states. */
typedef struct KnModelConfig {
    int64_t hidden;      /* model.hidden: width; heads x head size */
    int64_t layers;      /* model.layers */
    int64_t heads;       /* model.heads */
    int64_t ffn;         /* model.ffn: width of the feed-forward layer */
    int64_t channels;    /* model.channels: 3 for pixels, 16 for Wan latents */
    int64_t patch[3];    /* model.patch: frames, rows, columns of one patch */
    int64_t freq_dim;    /* model.freq_dim: width of the sinusoidal timestep embedding */
    int64_t text_dim;    /* model.text_dim: width of the text states that enter the transformer */
    double eps;          /* model.eps: of all norms */
    int cross_attn_norm; /* model.cross_attn_norm: affine layer norm before cross-attention */
    int64_t
        recompute; /* model.recompute: KN_RECOMPUTE_*, or most bytes of a pass's arena: as few blocks as that takes */
} KnModelConfig;

typedef struct KnTextConfig {
    KnTextKind kind;    /* text.kind: trained | none (states come from outside) */
    int64_t vocabulary; /* text.vocabulary: most pieces that SentencePiece may learn from the captions */
    int64_t layers;     /* text.layers: bidirectional layers over the word embeddings (0 = embeddings alone) */
    int64_t heads;      /* text.heads */
    int64_t max_tokens; /* text.max_tokens: longest caption, in pieces, end included; longer ones are cut */
} KnTextConfig;

typedef struct KnFlowConfig {
    KnPrediction prediction;          /* flow.prediction: velocity | sample */
    KnSigmaDistribution distribution; /* flow.sigma: logit_normal | uniform */
    double shift;                     /* flow.shift: sigma' = s sigma / (1 + (s - 1) sigma) */
    double caption_dropout;           /* flow.caption_dropout: share of clips trained with the empty caption */
    double given_none, given_first, given_first_frames, given_both_ends, given_random; /* flow.given.*: mix weights */
} KnFlowConfig;

typedef struct KnDataConfig {
    KnStringList shards;      /* data.shards: folders made by `kinora prep` */
    int64_t tokens;           /* data.tokens: token budget of one pack */
    int64_t clips;            /* data.clips: most clips in one pack */
    int64_t text_tokens;      /* data.text_tokens: text budget of one pack; 0 = clips x text.max_tokens */
    int64_t validation_clips; /* data.validation_clips: clips set aside for the validation loss */
} KnDataConfig;

typedef struct KnOptimizerConfig {
    char *name;                             /* optimizer.name: row of the optimizer table (adamw | muon) */
    double lr;                              /* optimizer.lr: peak learning rate of the blocks' matrices */
    double lr_other;                        /* optimizer.lr_other: of everything that Muon leaves to AdamW; 0 = lr */
    double beta1, beta2, eps, weight_decay; /* AdamW */
    double momentum;                        /* optimizer.momentum: Muon */
    int64_t newton_schulz_steps;
    double clip_norm; /* optimizer.clip_norm: global gradient norm; 0 = no clipping */
    int64_t warmup_steps;
    KnSchedule schedule;   /* optimizer.schedule: constant | cosine | linear */
    double decay_fraction; /* optimizer.decay_fraction: last share of the run that decays */
    double final_fraction; /* optimizer.final_fraction: learning rate at the end, as a share of the peak */
    double ema;            /* optimizer.ema: decay of the averaged weights; 0 = none */
} KnOptimizerConfig;

typedef struct KnParallelConfig {
    int64_t data;        /* parallel.data: ranks that each take other packs; 0 = what the others leave */
    int64_t shard;       /* parallel.shard: ranks that each take other packs and cut the state among themselves */
    int64_t ulysses;     /* parallel.ulysses: ranks that share a pack's tokens; attention by heads */
    int64_t ring;        /* parallel.ring: ranks that share a pack's tokens; keys and values go round */
    int64_t tensor;      /* parallel.tensor: ranks that share each matrix */
    int64_t cfg;         /* parallel.cfg: 2 = guidance's two forwards on two groups; generate alone */
    int64_t zero;        /* parallel.zero: 0 to 3; what the shard, ring and ulysses ranks cut among themselves */
    KnParallelMode mode; /* parallel.mode */
    KnTextRows text;     /* parallel.text: whether ring and ulysses ranks cut text rows too */
} KnParallelConfig;

typedef struct KnTrainConfig {
    int64_t steps; /* train.steps */
    int64_t packs; /* train.packs: packs in one global step, over all ranks and accumulation */
    int64_t checkpoint_every;
    int64_t keep_last;      /* train.keep_last: newest checkpoints kept; 0 = all */
    int64_t keep_every;     /* train.keep_every: checkpoints of multiples of so many steps stay for ever; 0 = none */
    KnPrecision precision;  /* train.precision: f32 | bf16 */
    KnOffload offload;      /* train.offload: what of a GPU's is kept in the host's memory */
    int64_t threads;        /* train.threads: per rank; 0 = all cores shared among this host's ranks */
    int64_t log_every;      /* train.log_every: a terminal line every so many steps */
    int64_t validate_every; /* train.validate_every: 0 = never */
    int64_t sample_every;   /* train.sample_every: clips drawn during training; 0 = never */
    KnFaultAction on_nonfinite; /* train.on_nonfinite: skip | rollback */
    double spike_zscore;        /* train.spike_zscore: deviations above its trend that make a loss a spike; 0 = off */
    KnFaultAction on_spike;     /* train.on_spike: skip | rollback | warn */
} KnTrainConfig;

typedef struct KnSampleConfig {
    char *solver; /* sample.solver: euler | heun | unipc */
    int64_t steps;
    double guidance;
    double shift; /* sample.shift: 0 = flow.shift */
    int64_t width, height, frames;
    double fps;
    KnStringList prompts; /* sample.prompts: drawn every train.sample_every steps */
} KnSampleConfig;

typedef struct KnConfig {
    char *run_dir;               /* run.dir */
    int64_t run_seed;            /* run.seed */
    char *run_device;            /* run.device */
    double run_watchdog_seconds; /* run.watchdog_seconds */
    KnModelConfig model;
    KnTextConfig text; /* model.text.*: written `text:` inside `model:` */
    KnFlowConfig flow;
    KnDataConfig data;
    KnOptimizerConfig optimizer;
    KnParallelConfig parallel;
    KnTrainConfig train;
    KnSampleConfig sample;
} KnConfig;

/* All defaults. Release with kn_config_clear. */
void kn_config_init(KnConfig *config);
void kn_config_clear(KnConfig *config);

/* Reads `path` (NULL: no file) over the present values, then applies `overrides` ("train.steps=100", as --set gives
 * them), then checks what spans several keys (heads divide hidden, ...). An error names file:line:column or the --set
 * argument. After a failure the config holds a mixture: clear it. */
int kn_config_load(KnConfig *config, const char *path, const char *const *overrides, int override_count);

/* The same from YAML in memory (a checkpoint's resolved configuration); `name` stands for the file in sentences. */
int kn_config_parse(KnConfig *config, const char *yaml, const char *name);

/* The same checks, of ranges and across keys, for a configuration that was filled in by a program. */
int kn_config_check(const KnConfig *config);

/* The resolved configuration as YAML, every key with its value. */
char *kn_config_to_yaml(const KnConfig *config); /* free() it */

/* The table of keys with type, default and meaning, for `kinora config --help`. */
char *kn_config_help(void); /* free() it */

/* NULL, or the first key in which `config` would misread the weights and moments that a run of `saved` left although
 * every tensor fits, as "model.heads is 4, but it was 2". free() it. */
char *kn_config_misreads(const KnConfig *config, const KnConfig *saved);

/* NULL, or the first key that differs, as "run.seed is 4 here and 3 there". free() it. */
char *kn_config_differs(const KnConfig *config, const KnConfig *other);

/* SHA-256 of the resolved YAML without `run.dir` and other keys that do not change the result; 65 bytes. */
void kn_config_hash(const KnConfig *config, char hex[65]);

#endif
