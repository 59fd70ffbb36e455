/* The table of worlds, and what is the same for all of them: see data/world.h. */
#include "data/world.h"

#include "core/base/error.h"
#include "core/base/text.h"
#include "data/world_table.h"

#include <math.h>
#include <string.h>

static const KnWorld *const worlds[] = {&kn_world_moving_shapes};
enum { WORLDS = sizeof worlds / sizeof worlds[0] };

int kn_world_find(const char *name, const KnWorld **world)
{
    KnText names = {0};
    for (int i = 0; i < WORLDS; i++) {
        if (!strcmp(worlds[i]->name, name)) {
            kn_text_clear(&names);
            *world = worlds[i];
            return KN_OK;
        }
        kn_text_appendf(&names, "%s%s", i ? ", " : "", worlds[i]->name);
    }
    int code = kn_fail(KN_EINPUT, "no world is called \"%s\"; there is: %s", name, names.bytes);
    kn_text_clear(&names);
    return code;
}

const KnWorld *kn_world_at(int index)
{
    return index >= 0 && index < WORLDS ? worlds[index] : NULL;
}

const char *kn_world_name(const KnWorld *world)
{
    return world->name;
}

const char *kn_world_about(const KnWorld *world)
{
    return world->about;
}

int kn_world_check_geometry(const KnWorld *world, int frames, int height, int width)
{
    if (frames < 1 || height < 1 || width < 1)
        return kn_fail(KN_EINPUT, "a clip of %d frames of %dx%d pixels has no pixels", frames, width, height);
    return world->check_geometry(frames, height, width);
}

void kn_world_describe(const KnWorld *world, uint64_t seed, KnWorldSplit split, uint64_t index, int frames, int height,
                       int width, KnWorldClip *clip)
{
    world->describe(seed, split, index, frames, height, width, clip);
}

int kn_world_is_held_out(const KnWorld *world, const KnWorldFacts *facts)
{
    return world->is_held_out(facts);
}

int kn_world_combinations(const KnWorld *world, KnWorldSplit split, KnWorldFacts *facts)
{
    const KnWorldFacts *n = &world->counts;
    int count = 0, all = n->colour * n->shape * n->motion * n->background;
    for (int i = 0; i < all; i++) {
        KnWorldFacts f = {.background = i % n->background,
                          .motion = i / n->background % n->motion,
                          .shape = i / (n->background * n->motion) % n->shape,
                          .colour = i / (n->background * n->motion * n->shape)};
        if (world->is_held_out(&f) != (split == KN_WORLD_HELD_OUT))
            continue;
        if (facts)
            facts[count] = f;
        count++;
    }
    return count;
}

void kn_world_caption(const KnWorld *world, const KnWorldFacts *facts, char caption[KN_WORLD_CAPTION_BYTES])
{
    world->caption(facts, caption);
}

int kn_world_parse_caption(const KnWorld *world, const char *text, KnWorldFacts *facts)
{
    return world->parse_caption(text, facts);
}

void kn_world_render(const KnWorld *world, const KnWorldClip *clip, int frames, int height, int width, uint8_t *out)
{
    world->render(clip, frames, height, width, out);
}

void kn_world_measure(const KnWorld *world, const uint8_t *pixels, int frames, int height, int width,
                      KnMeasured *measured)
{
    world->measure(pixels, frames, height, width, measured);
}

int kn_world_matches(const KnWorld *world, const char *caption, const KnMeasured *measured, KnWorldMatch *match)
{
    KnWorldFacts said;
    KN_TRY(world->parse_caption(caption, &said));
    const KnWorldFacts *seen = &measured->facts;
    *match = (KnWorldMatch){.colour = seen->colour == said.colour,
                            .shape = seen->shape == said.shape,
                            .motion = seen->motion == said.motion,
                            .background = seen->background == said.background};
    return KN_OK;
}

void kn_wilson_interval(int64_t successes, int64_t trials, double *low, double *high)
{
    const double z = 1.959963984540054; /* the normal distribution's 97.5% point */
    *low = 0;
    *high = 1;
    if (trials <= 0)
        return;
    double n = (double)trials, p = (double)successes / n, z2 = z * z;
    double centre = (p + z2 / (2 * n)) / (1 + z2 / n);
    double half = z / (1 + z2 / n) * sqrt(p * (1 - p) / n + z2 / (4 * n * n));
    if (successes > 0)
        *low = centre - half;
    if (successes < trials)
        *high = centre + half;
}
