/* Compares the tensors of one safetensors file with those of another: the judge of test_parity.sh.
 *
 *   tool_compare OUT TRUTH --forward 1e-5 --gradient 1e-4     bounds on the relative L2 error
 *   tool_compare OUT TRUTH --report CASE.json --factor 1.2    bounds from the larger of the two errors
 *                                                            of another implementation, cast and autocast
 *
 * Every `sample`, `loss` and `grad.*` of TRUTH must be in OUT with the same shape. The loss counts as forward; it is
 * left out of the second form, since the error of a single number is a matter of luck. Prints each tensor's error and
 * ends with 1 if any is above its bound, 2 if the comparison could not be made. */
#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/base/safetensors.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *out, *truth, *report;
    double forward, gradient, factor;
} Options;

static int parse(Options *options, int argc, char **argv)
{
    if (argc < 3 || argc % 2 == 0)
        return kn_fail(KN_EINPUT, "usage: tool_compare OUT TRUTH [--forward E] [--gradient E] [--report FILE] "
                                  "[--factor F]");
    *options = (Options){.out = argv[1], .truth = argv[2], .forward = 1e-5, .gradient = 1e-4, .factor = 1.2};
    for (int i = 3; i < argc; i += 2) {
        const char *value = argv[i + 1];
        if (strcmp(argv[i], "--forward") == 0)
            options->forward = atof(value);
        else if (strcmp(argv[i], "--gradient") == 0)
            options->gradient = atof(value);
        else if (strcmp(argv[i], "--report") == 0)
            options->report = value;
        else if (strcmp(argv[i], "--factor") == 0)
            options->factor = atof(value);
        else
            return kn_fail(KN_EINPUT, "unknown option %s", argv[i]);
    }
    return KN_OK;
}

/* ||ours - truth|| / ||truth||; NaN when anything is not a number. */
static int relative_error(double *error, const KnSafetensorsSet *ours, const KnSafetensorsSet *truth,
                          const KnSafetensor *tensor)
{
    int64_t count = kn_safetensor_elements(tensor);
    const KnSafetensor *mine = kn_safetensors_find(ours, tensor->name);
    double difference = 0, norm = 0;
    int code;
    if (!mine)
        return kn_fail(KN_EINPUT, "%s is missing", tensor->name);
    if (mine->dims != tensor->dims || memcmp(mine->shape, tensor->shape, sizeof(int64_t) * (size_t)tensor->dims) != 0)
        return kn_fail(KN_EINPUT, "%s has another shape", tensor->name);
    float *a = kn_alloc((size_t)count * sizeof *a), *b = kn_alloc((size_t)count * sizeof *b);
    KN_TRY_GOTO(code, kn_safetensors_read_f32(ours, tensor->name, a, count), done);
    KN_TRY_GOTO(code, kn_safetensors_read_f32(truth, tensor->name, b, count), done);
    for (int64_t i = 0; i < count; i++) {
        difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        norm += (double)b[i] * b[i];
    }
    *error = sqrt(difference / norm);
done:
    free(a);
    free(b);
    return code;
}

/* The bound for one tensor; 0 when the tensor is not to be compared. */
static int bound_of(double *bound, const Options *options, json_t *peer_errors, const char *name)
{
    int is_loss = strcmp(name, "loss") == 0, is_gradient = strncmp(name, "grad.", 5) == 0;
    *bound = 0;
    if (!is_loss && !is_gradient && strcmp(name, "sample") != 0)
        return KN_OK;
    if (!peer_errors) {
        *bound = is_gradient ? options->gradient : options->forward;
    } else if (!is_loss) {
        json_t *cast = json_object_get(json_object_get(peer_errors, "bf16_error"), name);
        json_t *autocast = json_object_get(json_object_get(peer_errors, "bf16_autocast_error"), name);
        if (!json_is_real(cast) || !json_is_real(autocast))
            return kn_fail(KN_EFORMAT, "%s has no bf16_error or no bf16_autocast_error for %s", options->report, name);
        *bound = options->factor * fmax(json_real_value(cast), json_real_value(autocast));
    }
    return KN_OK;
}

static int compare(const Options *options, json_t *peer_errors, int *failures)
{
    KnSafetensorsSet *ours = NULL, *truth = NULL;
    double worst = 0;
    int code, compared = 0;
    KN_TRY_GOTO(code, kn_safetensors_open(&ours, options->out), done);
    KN_TRY_GOTO(code, kn_safetensors_open(&truth, options->truth), done);
    for (int i = 0; i < kn_safetensors_count(truth); i++) {
        const KnSafetensor *tensor = kn_safetensors_at(truth, i);
        double bound = 0, error = INFINITY;
        KN_TRY_GOTO(code, bound_of(&bound, options, peer_errors, tensor->name), done);
        if (bound == 0)
            continue;
        const char *note = relative_error(&error, ours, truth, tensor) < 0 ? kn_error_message() : "";
        int good = error <= bound; /* false for NaN */
        printf("%s %9.2e of %9.2e allowed  %s %s\n", good ? "ok  " : "FAIL", error, bound, tensor->name, note);
        worst = fmax(worst, error / bound);
        *failures += !good;
        compared++;
    }
    printf("%d of %d tensors within bounds; the worst takes %.2f of its bound\n", compared - *failures, compared,
           worst);
    if (compared == 0)
        code = kn_fail(KN_EFORMAT, "%s holds neither sample, loss nor gradients", options->truth);
done:
    kn_safetensors_close(ours);
    kn_safetensors_close(truth);
    return code;
}

int main(int argc, char **argv)
{
    Options options = {0};
    json_t *report = NULL;
    json_error_t error;
    int failures = 0, code = parse(&options, argc, argv);
    if (code == KN_OK && options.report && !(report = json_load_file(options.report, 0, &error)))
        code = kn_fail(KN_EFORMAT, "%s:%d: %s", options.report, error.line, error.text);
    if (code == KN_OK)
        code = compare(&options, report, &failures);
    json_decref(report);
    if (code < 0)
        fprintf(stderr, "tool_compare: %s\n", kn_error_message());
    return code < 0 ? 2 : failures > 0;
}
