/* A tiny model with random weights, exported to a folder: enough to make videos of noise, reproducibly. */
#ifndef KN_TESTS_TINY_MODEL_H
#define KN_TESTS_TINY_MODEL_H

#include "base/support.h"
#include "core/base/random.h"
#include "dist/model_file.h"

#include <math.h>

static inline void make_tiny_model_of(const char *folder, const char *config_yaml, int heads)
{
    static const char *const captions[] = {"a red circle moves left on a gray background",
                                           "a blue square stays still on a black background"};
    KnModelConfig config = {.hidden = 16 * heads,
                            .layers = 2,
                            .heads = heads,
                            .ffn = 64,
                            .channels = 3,
                            .patch = {2, 4, 4},
                            .freq_dim = 16,
                            .text_dim = 16,
                            .eps = 1e-6,
                            .cross_attn_norm = 1};
    KnTextConfig text = {.kind = KN_TEXT_TRAINED, .vocabulary = 64, .heads = 1, .max_tokens = 16};
    KnModelFile file = {.step = -1};
    KnTokenizer *tokenizer = NULL;
    assert_ok(kn_tokenizer_train(captions, 2, 64, &tokenizer));
    assert_ok(kn_model_create(&file.model, &config, &text, KN_PREDICT_SAMPLE, tokenizer));
    assert_ok(kn_parameter_values_create(&file.weights, &file.model.parameters, "a tiny model"));
    for (int i = 0; i < file.model.parameters.count; i++) { /* all of them: an output layer of zeros says nothing */
        const KnParameter *parameter = &file.model.parameters.list[i];
        float *values = kn_parameter_data(&file.weights, parameter);
        kn_random_normal_fill(kn_random_key(1, KN_RANDOM_TEST, 0, (uint64_t)i), 0, values, parameter->elements);
        for (int64_t k = 0; k < parameter->elements; k++)
            values[k] *= 0.2f;
    }
    file.config_yaml = config_yaml ? kn_strdup(config_yaml) : NULL;
    assert_ok(kn_model_export(&file, folder));
    kn_model_close(&file);
}

static inline void make_tiny_model(const char *folder, const char *config_yaml)
{
    make_tiny_model_of(folder, config_yaml, 2);
}

#endif
