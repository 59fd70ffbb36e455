/* Every configuration key with its type, default, range and meaning: the one place where they are written. The
 * defaults are a small model that learns a small world on two cores. */
#include "core/base/config_table.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#define AT(field) offsetof(KnConfig, field)

const KnConfigRow kn_config_rows[] = {
    {"run.dir", KN_CONFIG_STRING, AT(run_dir), "\"\"", "folder of this run: checkpoints, metrics, samples",
     .no_result = 1},
    {"run.seed", KN_CONFIG_INT, AT(run_seed), "0", "seed of every random number", .low = 0},
    {"run.device", KN_CONFIG_STRING, AT(run_device), "auto",
     "what computes: cpu, cuda, or auto: GPUs where every rank has one", .no_result = 1},
    {"run.watchdog_seconds", KN_CONFIG_FLOAT, AT(run_watchdog_seconds), "60",
     "a rank that keeps others waiting for so long without getting on ends the job; 0 = never", .high = 1e6,
     .no_result = 1},

    {"model.hidden", KN_CONFIG_INT, AT(model.hidden), "128", "width of the transformer; heads x head size", .low = 1,
     .high = 65536},
    {"model.layers", KN_CONFIG_INT, AT(model.layers), "4", "transformer blocks", .low = 1, .high = 4096},
    {"model.heads", KN_CONFIG_INT, AT(model.heads), "2", "attention heads; divides model.hidden, head size even",
     .low = 1, .high = 4096, .reads_state = 1},
    {"model.ffn", KN_CONFIG_INT, AT(model.ffn), "512", "width of the feed-forward layers", .low = 1, .high = 1 << 20},
    {"model.channels", KN_CONFIG_INT, AT(model.channels), "3", "channels of a position: 3 for pixels", .low = 1,
     .high = 4096},
    {"model.patch", KN_CONFIG_TRIPLE, AT(model.patch), "[2, 8, 8]", "frames, rows and columns of one patch", .low = 1,
     .high = 1024},
    {"model.freq_dim", KN_CONFIG_INT, AT(model.freq_dim), "256", "width of the sinusoidal timestep embedding; even",
     .low = 2, .high = 65536},
    {"model.text_dim", KN_CONFIG_INT, AT(model.text_dim), "128", "width of the text states", .low = 1, .high = 65536},
    {"model.eps", KN_CONFIG_FLOAT, AT(model.eps), "1e-6", "added to variances in the norms", .high = 1, .above_low = 1,
     .reads_state = 1},
    {"model.cross_attn_norm", KN_CONFIG_BOOL, AT(model.cross_attn_norm), "true",
     "affine layer norm before cross-attention", .choices = NULL},
    {"model.recompute", KN_CONFIG_RECOMPUTE, AT(model.recompute), "none",
     "blocks whose forward is computed again in the backward: none, every block, or as few as let a pass's arena fit",
     .no_result = 1},
    {"model.text.kind", KN_CONFIG_CHOICE, AT(text.kind), "trained",
     "text encoder: learned with the transformer, or states from outside", .choices = "trained|none"},
    {"model.text.vocabulary", KN_CONFIG_INT, AT(text.vocabulary), "256", "most pieces learned from the captions",
     .low = 8, .high = 1 << 20},
    {"model.text.layers", KN_CONFIG_INT, AT(text.layers), "0", "layers over the word embeddings; 0 = embeddings alone",
     .high = 4096},
    {"model.text.heads", KN_CONFIG_INT, AT(text.heads), "2", "their attention heads; divides model.text_dim", .low = 1,
     .high = 4096, .reads_state = 1},
    {"model.text.max_tokens", KN_CONFIG_INT, AT(text.max_tokens), "16",
     "longest caption in pieces, end included; longer ones are cut", .low = 1, .high = 65536},

    {"data.shards", KN_CONFIG_STRINGS, AT(data.shards), "[]",
     "folders made by `kinora prep`, relative to where the program runs", .choices = NULL},
    {"data.tokens", KN_CONFIG_INT, AT(data.tokens), "1024", "token budget of one pack", .low = 1, .high = 1 << 30},
    {"data.clips", KN_CONFIG_INT, AT(data.clips), "16", "most clips in one pack", .low = 1, .high = 1 << 20},
    {"data.text_tokens", KN_CONFIG_INT, AT(data.text_tokens), "0",
     "text budget of one pack; 0 = data.clips x model.text.max_tokens", .high = 1 << 30},
    {"data.validation_clips", KN_CONFIG_INT, AT(data.validation_clips), "0", "clips set aside for the validation loss",
     .high = 1 << 20},

    {"flow.prediction", KN_CONFIG_CHOICE, AT(flow.prediction), "sample",
     "what the network's output means; the loss is on velocity either way", .choices = "velocity|sample",
     .reads_state = 1},
    {"flow.sigma", KN_CONFIG_CHOICE, AT(flow.distribution), "logit_normal", "distribution of noise levels",
     .choices = "logit_normal|uniform"},
    {"flow.shift", KN_CONFIG_FLOAT, AT(flow.shift), "3", "s in sigma' = s sigma / (1 + (s - 1) sigma)", .high = 1000,
     .above_low = 1},
    {"flow.caption_dropout", KN_CONFIG_FLOAT, AT(flow.caption_dropout), "0.1",
     "share of clips trained with the empty caption", .high = 1},
    {"flow.given.none", KN_CONFIG_FLOAT, AT(flow.given_none), "1", "weight of text-to-video: no patch is given",
     .high = 1e6},
    {"flow.given.first", KN_CONFIG_FLOAT, AT(flow.given_first), "0", "weight of a given first frame", .high = 1e6},
    {"flow.given.first_frames", KN_CONFIG_FLOAT, AT(flow.given_first_frames), "0",
     "weight of a random number of given first frames", .high = 1e6},
    {"flow.given.both_ends", KN_CONFIG_FLOAT, AT(flow.given_both_ends), "0", "weight of given frames at both ends",
     .high = 1e6},
    {"flow.given.random", KN_CONFIG_FLOAT, AT(flow.given_random), "0", "weight of a random set of given patches",
     .high = 1e6},

    {"optimizer.name", KN_CONFIG_STRING, AT(optimizer.name), "muon",
     "muon: Muon for the blocks' matrices, AdamW for the rest", .choices = "adamw|muon", .reads_state = 1},
    {"optimizer.lr", KN_CONFIG_FLOAT, AT(optimizer.lr), "4e-3", "peak learning rate", .high = 100, .above_low = 1},
    {"optimizer.lr_other", KN_CONFIG_FLOAT, AT(optimizer.lr_other), "4e-3",
     "the same for what Muon leaves to AdamW; 0 = optimizer.lr", .high = 100},
    {"optimizer.beta1", KN_CONFIG_FLOAT, AT(optimizer.beta1), "0.9", "AdamW: decay of the first moment", .high = 1,
     .below_high = 1},
    {"optimizer.beta2", KN_CONFIG_FLOAT, AT(optimizer.beta2), "0.95", "AdamW: decay of the second moment", .high = 1,
     .below_high = 1},
    {"optimizer.eps", KN_CONFIG_FLOAT, AT(optimizer.eps), "1e-8", "AdamW: added to the root of the second moment",
     .high = 1, .above_low = 1},
    {"optimizer.weight_decay", KN_CONFIG_FLOAT, AT(optimizer.weight_decay), "0", "decoupled weight decay", .high = 100},
    {"optimizer.momentum", KN_CONFIG_FLOAT, AT(optimizer.momentum), "0.95", "Muon: Nesterov momentum", .high = 1,
     .below_high = 1},
    {"optimizer.newton_schulz_steps", KN_CONFIG_INT, AT(optimizer.newton_schulz_steps), "5",
     "Muon: iterations of the orthogonalization", .low = 1, .high = 100},
    {"optimizer.clip_norm", KN_CONFIG_FLOAT, AT(optimizer.clip_norm), "1", "largest global gradient norm; 0 = any",
     .low = 0},
    {"optimizer.warmup_steps", KN_CONFIG_INT, AT(optimizer.warmup_steps), "100",
     "steps over which the learning rate rises", .high = 1e12},
    {"optimizer.schedule", KN_CONFIG_CHOICE, AT(optimizer.schedule), "linear", "how the learning rate falls at the end",
     .choices = "constant|cosine|linear"},
    {"optimizer.decay_fraction", KN_CONFIG_FLOAT, AT(optimizer.decay_fraction), "0.3",
     "last share of the run, in which it falls", .high = 1},
    {"optimizer.final_fraction", KN_CONFIG_FLOAT, AT(optimizer.final_fraction), "0",
     "learning rate at the end, as a share of the peak", .high = 1},
    {"optimizer.ema", KN_CONFIG_FLOAT, AT(optimizer.ema), "0.998", "decay of the averaged weights; 0 = no average",
     .high = 1, .below_high = 1},

    {"parallel.data", KN_CONFIG_INT, AT(parallel.data), "auto",
     "ranks that each take other packs and hold all state; auto = what the other axes leave", .high = 1 << 20,
     .zero_word = "auto"},
    {"parallel.shard", KN_CONFIG_INT, AT(parallel.shard), "1",
     "ranks that each take other packs and cut the state among themselves", .low = 1, .high = 1 << 20},
    {"parallel.ulysses", KN_CONFIG_INT, AT(parallel.ulysses), "1",
     "ranks that share the tokens of a pack; each attends with its share of the heads", .low = 1, .high = 256},
    {"parallel.ring", KN_CONFIG_INT, AT(parallel.ring), "1",
     "ranks that share the tokens of a pack; keys and values go round", .low = 1, .high = 1 << 16},
    {"parallel.tensor", KN_CONFIG_INT, AT(parallel.tensor), "1", "ranks that share each matrix of a block", .low = 1,
     .high = 1 << 16},
    {"parallel.cfg", KN_CONFIG_INT, AT(parallel.cfg), "1",
     "2 = guidance's two forwards on two groups of ranks; for generate alone", .low = 1, .high = 2, .no_result = 1},
    {"parallel.mode", KN_CONFIG_CHOICE, AT(parallel.mode), "fast",
     "layout_invariant = the same bits for every data x shard x ring x ulysses, in f32; slow",
     .choices = "fast|layout_invariant"},
    {"parallel.text", KN_CONFIG_CHOICE, AT(parallel.text), "auto",
     "text states of ring and ulysses ranks: whole on each, cut and gathered, or what costs less",
     .choices = "auto|whole|cut"},
    {"parallel.zero", KN_CONFIG_INT, AT(parallel.zero), "3",
     "what parallel.shard, ulysses and ring cut: 0 nothing, 1 optimizer, 2 and gradients, 3 and weights", .high = 3},

    {"train.steps", KN_CONFIG_INT, AT(train.steps), "1000", "optimizer steps of the whole run", .low = 1, .high = 1e12},
    {"train.packs", KN_CONFIG_INT, AT(train.packs), "1", "packs in one step, over all ranks and accumulation", .low = 1,
     .high = 1 << 20},
    {"train.checkpoint_every", KN_CONFIG_INT, AT(train.checkpoint_every), "500",
     "steps between checkpoints, besides the last; 0 = only the last", .high = 1e12, .no_result = 1},
    {"train.keep_last", KN_CONFIG_INT, AT(train.keep_last), "3", "newest checkpoints kept; 0 = all", .high = 1e12,
     .no_result = 1},
    {"train.keep_every", KN_CONFIG_INT, AT(train.keep_every), "0",
     "checkpoints of multiples of so many steps stay for ever; 0 = none", .high = 1e12, .no_result = 1},
    {"train.precision", KN_CONFIG_CHOICE, AT(train.precision), "bf16",
     "of activations and weight copies; fp8: bf16, with products of 8-bit floats in the blocks, on GPUs from Hopper on",
     .choices = "f32|bf16|fp8"},
    {"train.threads", KN_CONFIG_INT, AT(train.threads), "0",
     "threads of a rank; 0 = all cores, shared among the host's ranks", .high = 65536, .no_result = 1},
    {"train.log_every", KN_CONFIG_INT, AT(train.log_every), "10", "steps between lines on the terminal", .low = 1,
     .high = 1e12, .no_result = 1},
    {"train.validate_every", KN_CONFIG_INT, AT(train.validate_every), "0", "steps between validation losses; 0 = never",
     .high = 1e12, .no_result = 1},
    {"train.sample_every", KN_CONFIG_INT, AT(train.sample_every), "0",
     "steps between sample clips of sample.prompts; 0 = never", .high = 1e12, .no_result = 1},

    {"train.on_nonfinite", KN_CONFIG_CHOICE, AT(train.on_nonfinite), "skip",
     "where loss or gradient is not finite: leave that step out, or go back to the newest checkpoint",
     .choices = "skip|rollback"},
    {"train.spike_zscore", KN_CONFIG_FLOAT, AT(train.spike_zscore), "0",
     "deviations above its trend from which a loss is a spike; 0 = never", .high = 1e6},
    {"train.on_spike", KN_CONFIG_CHOICE, AT(train.on_spike), "warn", "what to do with the step of a spike",
     .choices = "skip|rollback|warn"},
    {"train.offload", KN_CONFIG_CHOICE, AT(train.offload), "none",
     "what GPUs keep in their host's memory: the optimizer's moments and averaged weights, or nothing",
     .choices = "none|optimizer", .no_result = 1},

    {"sample.solver", KN_CONFIG_STRING, AT(sample.solver), "euler", "how noise becomes a video",
     .choices = "euler|heun|unipc", .no_result = 1},
    {"sample.steps", KN_CONFIG_INT, AT(sample.steps), "24", "denoising steps", .low = 1, .high = 100000,
     .no_result = 1},
    {"sample.guidance", KN_CONFIG_FLOAT, AT(sample.guidance), "3", "weight of the prompt; 1 = no guidance",
     .high = 1000, .no_result = 1},
    {"sample.shift", KN_CONFIG_FLOAT, AT(sample.shift), "0", "shift of the noise levels; 0 = flow.shift", .high = 1000,
     .no_result = 1},
    {"sample.width", KN_CONFIG_INT, AT(sample.width), "32", "pixels, a multiple of the patch", .low = 1, .high = 65536,
     .no_result = 1},
    {"sample.height", KN_CONFIG_INT, AT(sample.height), "32", "pixels, a multiple of the patch", .low = 1,
     .high = 65536, .no_result = 1},
    {"sample.frames", KN_CONFIG_INT, AT(sample.frames), "8", "frames, a multiple of the patch", .low = 1,
     .high = 1 << 20, .no_result = 1},
    {"sample.fps", KN_CONFIG_FLOAT, AT(sample.fps), "8", "frames a second", .high = 1000, .above_low = 1,
     .no_result = 1},
    {"sample.prompts", KN_CONFIG_STRINGS, AT(sample.prompts), "[]", "prompts drawn every train.sample_every steps",
     .no_result = 1},
};

const int kn_config_row_count = sizeof kn_config_rows / sizeof *kn_config_rows;

const char *kn_config_choice(const char *choices, int index, int *length)
{
    for (; index > 0 && choices; index--) {
        choices = strchr(choices, '|');
        choices += choices ? 1 : 0;
    }
    *length = choices ? (int)strcspn(choices, "|") : 0;
    return choices;
}

static void describe_range(const KnConfigRow *row, char *text, size_t size)
{
    const char *low = row->above_low ? "above" : "of at least";
    if (row->high == 0 || row->high >= 1e9)
        snprintf(text, size, " %s %.15g", low, row->low);
    else if (row->above_low)
        snprintf(text, size, " above %.15g, at most %.15g", row->low, row->high);
    else
        snprintf(text, size, " from %.15g %s %.15g", row->low, row->below_high ? "to below" : "to", row->high);
}

void kn_config_describe(const KnConfigRow *row, char *text, size_t size)
{
    static const char *const names[] = {
        [KN_CONFIG_INT] = "an integer",          [KN_CONFIG_FLOAT] = "a number",
        [KN_CONFIG_BOOL] = "true or false",      [KN_CONFIG_CHOICE] = "",
        [KN_CONFIG_STRING] = "a text",           [KN_CONFIG_TRIPLE] = "a list of three integers, each",
        [KN_CONFIG_STRINGS] = "a list of texts", [KN_CONFIG_RECOMPUTE] = "none, block, or a size such as 2GiB",
    };
    char range[96] = "";
    if (row->choices) {
        size_t used = (size_t)snprintf(text, size, "one of ");
        for (const char *c = row->choices; *c && used + 3 < size; c++) {
            text[used++] = *c == '|' ? ',' : *c;
            if (*c == '|')
                text[used++] = ' ';
        }
        text[used] = 0;
        return;
    }
    if (row->type == KN_CONFIG_INT || row->type == KN_CONFIG_FLOAT || row->type == KN_CONFIG_TRIPLE)
        describe_range(row, range, sizeof range);
    snprintf(text, size, "%s%s%s%s", names[row->type], range, row->zero_word ? ", or " : "",
             row->zero_word ? row->zero_word : "");
}
