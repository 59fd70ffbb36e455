/* Sample clips in the middle of training: the configured prompts drawn with the present weights. */
#include "infer/commands.h"

#include "core/base/error.h"
#include "core/base/file.h"
#include "dist/comm.h"
#include "infer/generate.h"
#include "infer/output.h"
#include "infer/sheet.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

typedef struct Samples {
    int rank, ranks; /* that make them together */
    KnRequest *requests;
    KnContactSheet *sheet;
} Samples;

/* "folder/01-a-red-circle-moves.mp4" */
static const char *name_of(KnArena *arena, const char *folder, int index, const KnRequest *request)
{
    char words[41];
    size_t length = 0;
    for (const char *c = request->prompt; *c && length + 1 < sizeof words; c++)
        if (isalnum((unsigned char)*c))
            words[length++] = *c;
        else if (length > 0 && words[length - 1] != '-')
            words[length++] = '-';
    while (length > 0 && words[length - 1] == '-')
        length--;
    words[length] = '\0';
    return kn_arena_format(arena, "%s/%02d%s%s.%s", folder, index + 1, length ? "-" : "", words,
                           request->frames == 1 ? "png" : "mp4");
}

static int take_clip(void *context, int index, int place, const uint8_t *pixels)
{
    const Samples *samples = context;
    const KnRequest *request = &samples->requests[index];
    if (samples->rank == 0)
        kn_contact_sheet_set(samples->sheet, index, request, pixels, request->prompt, 0);
    return place % samples->ranks == samples->rank ? kn_output_video(request, pixels, request->prompt) : KN_OK;
}

int kn_draw_samples(const KnLayout *layout, const KnParameterValues *weights, const KnConfig *config,
                    KnBackend *backend, const char *folder)
{
    int count = config->sample.prompts.count;
    if (count == 0)
        return KN_OK;
    KnArena *arena = kn_arena_create();
    Samples samples = {.rank = layout->mesh.rank,
                       .ranks = layout->mesh.ranks,
                       .requests = kn_arena_alloc(arena, (size_t)count * sizeof(KnRequest)),
                       .sheet = kn_contact_sheet_create(count)};
    for (int i = 0; i < count; i++) {
        KnRequest *request = &samples.requests[i];
        kn_request_defaults(request, config, arena);
        request->prompt = config->sample.prompts.items[i];
        request->seed = config->run_seed + i;
        request->out = name_of(arena, folder, i, request);
    }
    KnGenerateJob job = {.model = layout->model,
                         .weights = weights,
                         .layout = layout,
                         .backend = backend,
                         .requests = samples.requests,
                         .count = count,
                         .arena = arena,
                         .silent = 1,
                         .take = take_clip,
                         .context = &samples};
    int code = samples.rank == 0 ? kn_make_directories(folder) : KN_OK;
    if (layout->comms.world)
        code = kn_comm_error_agree(layout->comms.world, code);
    if (code == KN_OK)
        code = kn_generate_check(&job);
    if (code == KN_OK)
        code = kn_generate(&job);
    if (code == KN_OK && samples.rank == 0) {
        char *path = kn_path_join(folder, "sheet.png");
        code = kn_contact_sheet_write(samples.sheet, path, "Samples during training", folder);
        free(path);
    }
    kn_contact_sheet_destroy(samples.sheet);
    kn_arena_destroy(arena);
    return code;
}
