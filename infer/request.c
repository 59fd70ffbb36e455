/* The table of a request's settings, and what is done with it. */
#include "infer/request.h"

#include "core/base/error.h"
#include "core/base/text.h"
#include "infer/solver.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef enum FieldKind { FIELD_TEXT, FIELD_CHOICE, FIELD_INT, FIELD_FLOAT, FIELD_BOOL } FieldKind;

typedef struct Field {
    const char *name; /* in JSON; the option is the same with dashes */
    FieldKind kind;
    size_t offset;
    double low, high;    /* of numbers, both included */
    const char *choices; /* "a|b" */
} Field;

#define AT(field) offsetof(KnRequest, field)

static const Field fields[] = {
    {"prompt", FIELD_TEXT, AT(prompt), 0, 0, NULL},
    {"negative", FIELD_TEXT, AT(negative), 0, 0, NULL},
    {"out", FIELD_TEXT, AT(out), 0, 0, NULL},
    {"seed", FIELD_INT, AT(seed), 0, 9007199254740992.0, NULL},
    {"width", FIELD_INT, AT(size.width), 1, 16384, NULL},
    {"height", FIELD_INT, AT(size.height), 1, 16384, NULL},
    {"frames", FIELD_INT, AT(frames), 1, 1 << 20, NULL},
    {"fps", FIELD_FLOAT, AT(fps), 0.01, 1000, NULL},
    {"steps", FIELD_INT, AT(steps), 1, 100000, NULL},
    {"guidance", FIELD_FLOAT, AT(guidance), 0, 1000, NULL},
    {"shift", FIELD_FLOAT, AT(shift), 1e-3, 1000, NULL},
    {"solver", FIELD_CHOICE, AT(solver), 0, 0, "euler|heun|unipc"},
    {"spacing", FIELD_CHOICE, AT(spacing), 0, 0, "wan|linspace"},
    {"dtype", FIELD_CHOICE, AT(dtype), 0, 0, "f32|bf16"},
    {"first_frame", FIELD_TEXT, AT(first_frame), 0, 0, NULL},
    {"first_frame_sha256", FIELD_TEXT, AT(first_frame_hash), 0, 0, NULL},
    {"last_frame", FIELD_TEXT, AT(last_frame), 0, 0, NULL},
    {"last_frame_sha256", FIELD_TEXT, AT(last_frame_hash), 0, 0, NULL},
    {"extend", FIELD_TEXT, AT(extend), 0, 0, NULL},
    {"extend_sha256", FIELD_TEXT, AT(extend_hash), 0, 0, NULL},
    {"extend_frames", FIELD_INT, AT(extend_frames), 0, 1 << 20, NULL},
    {"upscale", FIELD_INT, AT(upscale), 1, 64, NULL},
    {"crf", FIELD_INT, AT(crf), 0, 51, NULL},
    {"lossless", FIELD_BOOL, AT(lossless), 0, 0, NULL},
    {"full_colour", FIELD_BOOL, AT(full_colour), 0, 0, NULL},
};
enum { FIELDS = sizeof fields / sizeof fields[0] };

static const char **text_at(const KnRequest *request, const Field *field)
{
    return (const char **)((uintptr_t)request + field->offset);
}

static int64_t *int_at(const KnRequest *request, const Field *field)
{
    return (int64_t *)((uintptr_t)request + field->offset);
}

static double *float_at(const KnRequest *request, const Field *field)
{
    return (double *)((uintptr_t)request + field->offset);
}

static int *bool_at(const KnRequest *request, const Field *field)
{
    return (int *)((uintptr_t)request + field->offset);
}

static int is_set(const KnRequest *request, const Field *field)
{
    switch (field->kind) {
    case FIELD_INT:
        return *int_at(request, field) != KN_UNSET;
    case FIELD_FLOAT:
        return !isnan(*float_at(request, field));
    case FIELD_BOOL:
        return *bool_at(request, field) != KN_UNSET;
    default:
        return *text_at(request, field) != NULL;
    }
}

static void copy_field(KnRequest *to, const KnRequest *from, const Field *field)
{
    switch (field->kind) {
    case FIELD_INT:
        *int_at(to, field) = *int_at(from, field);
        break;
    case FIELD_FLOAT:
        *float_at(to, field) = *float_at(from, field);
        break;
    case FIELD_BOOL:
        *bool_at(to, field) = *bool_at(from, field);
        break;
    default:
        *text_at(to, field) = *text_at(from, field);
    }
}

/* ---- layers ---- */

void kn_request_init(KnRequest *request)
{
    *request = (KnRequest){0};
    for (int i = 0; i < FIELDS; i++)
        switch (fields[i].kind) {
        case FIELD_INT:
            *int_at(request, &fields[i]) = KN_UNSET;
            break;
        case FIELD_FLOAT:
            *float_at(request, &fields[i]) = (double)NAN;
            break;
        case FIELD_BOOL:
            *bool_at(request, &fields[i]) = KN_UNSET;
            break;
        default:
            break;
        }
}

void kn_request_overlay(KnRequest *to, const KnRequest *from)
{
    if (from->first_frame) /* another file: what is known of the former one no longer holds */
        to->first_frame_hash = NULL;
    if (from->last_frame)
        to->last_frame_hash = NULL;
    if (from->extend)
        to->extend_hash = NULL;
    for (int i = 0; i < FIELDS; i++)
        if (is_set(from, &fields[i]))
            copy_field(to, from, &fields[i]);
}

void kn_request_defaults(KnRequest *request, const KnConfig *config, KnArena *arena)
{
    KnConfig built_in;
    const KnConfig *c = config;
    if (!c) {
        kn_config_init(&built_in);
        c = &built_in;
    }
    kn_request_init(request);
    request->negative = "";
    request->seed = 0;
    request->size = (KnArgSize){c->sample.width, c->sample.height};
    request->frames = c->sample.frames;
    request->fps = c->sample.fps;
    request->steps = c->sample.steps;
    request->guidance = c->sample.guidance;
    request->shift = c->sample.shift > 0 ? c->sample.shift : c->flow.shift;
    request->solver = kn_arena_strdup(arena, c->sample.solver);
    request->spacing = "wan";
    request->dtype = c->train.precision == KN_PRECISION_F32 ? "f32" : "bf16";
    request->extend_frames = 0;
    request->upscale = 1;
    request->crf = 0;
    request->lossless = request->full_colour = 0;
    if (!config)
        kn_config_clear(&built_in);
}

static int same_field(const KnRequest *a, const KnRequest *b, const Field *field)
{
    if (!is_set(a, field) || !is_set(b, field))
        return is_set(a, field) == is_set(b, field);
    switch (field->kind) {
    case FIELD_INT:
        return *int_at(a, field) == *int_at(b, field);
    case FIELD_FLOAT:
        return *float_at(a, field) == *float_at(b, field);
    case FIELD_BOOL:
        return *bool_at(a, field) == *bool_at(b, field);
    default:
        return !strcmp(*text_at(a, field), *text_at(b, field));
    }
}

const char *kn_request_difference(const KnRequest *a, const KnRequest *b)
{
    for (int i = 0; i < FIELDS; i++)
        if (!same_field(a, b, &fields[i]))
            return fields[i].name;
    return NULL;
}

/* ---- checking ---- */

static int is_choice(const char *choices, const char *word)
{
    size_t length = strlen(word);
    for (const char *at = choices; at; at = strchr(at, '|') ? strchr(at, '|') + 1 : NULL)
        if (strcspn(at, "|") == length && !strncmp(at, word, length))
            return 1;
    return 0;
}

static int check_number(const Field *field, double number, const char *place)
{
    if (number >= field->low && number <= field->high)
        return KN_OK;
    return kn_fail(KN_EINPUT, "%s%s is %.15g, it must be from %.15g to %.15g", place, field->name, number, field->low,
                   field->high);
}

static int check_field(const KnRequest *request, const Field *field, const char *place)
{
    if (!is_set(request, field))
        return KN_OK;
    if (field->kind == FIELD_INT)
        return check_number(field, (double)*int_at(request, field), place);
    if (field->kind == FIELD_FLOAT)
        return check_number(field, *float_at(request, field), place);
    if (field->kind == FIELD_CHOICE && !is_choice(field->choices, *text_at(request, field)))
        return kn_fail(KN_EINPUT, "%s%s is \"%s\", it must be one of %s", place, field->name, *text_at(request, field),
                       field->choices);
    return KN_OK;
}

int kn_request_check(const KnRequest *request)
{
    for (int i = 0; i < FIELDS; i++)
        KN_TRY(check_field(request, &fields[i], ""));
    if (!request->prompt)
        return kn_fail(KN_EINPUT, "there is no prompt: give one with --prompt, or several with --prompts FILE.jsonl");
    const char *texts[] = {request->prompt, request->negative}, *names[] = {"prompt", "negative"};
    for (int i = 0; i < 2; i++) /* JSON could not keep it, so that the video could not be made again */
        if (texts[i] && !kn_is_utf8(texts[i], strlen(texts[i])))
            return kn_fail(KN_EINPUT, "the %s is not UTF-8", names[i]);
    return KN_OK;
}

KnDtype kn_request_dtype(const KnRequest *request)
{
    return strcmp(request->dtype, "f32") ? KN_BF16 : KN_F32;
}

/* ---- JSON ---- */

static const Field *find_field(const char *key)
{
    for (int i = 0; i < FIELDS; i++)
        if (!strcmp(fields[i].name, key))
            return &fields[i];
    return NULL;
}

static int unknown_key(const char *key, const char *place)
{
    const char *names[FIELDS];
    for (int i = 0; i < FIELDS; i++)
        names[i] = fields[i].name;
    const char *nearest = kn_nearest(key, names, FIELDS);
    if (nearest)
        return kn_fail(KN_EINPUT, "%sunknown key \"%s\"; did you mean %s?", place, key, nearest);
    KnText all = {0};
    for (int i = 0; i < FIELDS; i++)
        kn_text_appendf(&all, "%s%s", i ? ", " : "", names[i]);
    int code = kn_fail(KN_EINPUT, "%sunknown key \"%s\"; there are: %s", place, key, all.bytes);
    kn_text_clear(&all);
    return code;
}

static int set_field(KnRequest *request, const Field *field, const json_t *value, const char *place, KnArena *arena)
{
    static const char *const wanted[] = {"a text", "a text", "a whole number", "a number", "true or false"};
    if ((field->kind == FIELD_TEXT || field->kind == FIELD_CHOICE) && json_is_string(value))
        *text_at(request, field) = kn_arena_strdup(arena, json_string_value(value));
    else if (field->kind == FIELD_INT && json_is_integer(value))
        *int_at(request, field) = json_integer_value(value);
    else if (field->kind == FIELD_FLOAT && json_is_number(value))
        *float_at(request, field) = json_number_value(value);
    else if (field->kind == FIELD_BOOL && json_is_boolean(value))
        *bool_at(request, field) = json_is_true(value);
    else
        return kn_fail(KN_EINPUT, "%s%s must be %s", place, field->name, wanted[field->kind]);
    if (field->kind == FIELD_INT && json_integer_value(value) < 0) /* -1 would read as unset */
        return check_number(field, (double)json_integer_value(value), place);
    return check_field(request, field, place);
}

static int is_listed(const char *const *list, const char *word)
{
    for (; list && *list; list++)
        if (!strcmp(*list, word))
            return 1;
    return 0;
}

int kn_request_from_json(KnRequest *request, const json_t *object, const char *const *ignored, const char *place,
                         KnArena *arena)
{
    const char *key;
    json_t *value;
    char *prefix = kn_format("%s: ", place);
    int code = KN_OK;
    json_object_foreach((json_t *)(uintptr_t)object, key, value)
    {
        const Field *field = find_field(key);
        if (field)
            code = set_field(request, field, value, prefix, arena);
        else if (!is_listed(ignored, key))
            code = unknown_key(key, prefix);
        if (code < 0)
            break;
    }
    free(prefix);
    return code;
}

/* The text as the JSON value that the field takes; what it cannot be read as stays a text, for set_field to refuse. */
static json_t *value_of_text(const Field *field, const char *text)
{
    char *end;
    errno = 0;
    long long whole = strtoll(text, &end, 10);
    if (field->kind == FIELD_INT && end > text && !*end && !errno)
        return json_integer(whole);
    double number = strtod(text, &end);
    if (field->kind == FIELD_FLOAT && end > text && !*end && isfinite(number))
        return json_real(number);
    if (field->kind == FIELD_BOOL && (!strcmp(text, "true") || !strcmp(text, "false")))
        return json_boolean(!strcmp(text, "true"));
    return json_string(text);
}

int kn_request_set_text(KnRequest *request, const char *key, const char *text, const char *place, KnArena *arena)
{
    const Field *field = find_field(key);
    if (!field)
        return KN_END;
    char *prefix = kn_format("%s: ", place);
    json_t *value = value_of_text(field, text);
    int code = set_field(request, field, value, prefix, arena);
    json_decref(value);
    free(prefix);
    return code;
}

void kn_request_to_json(const KnRequest *request, json_t *object)
{
    for (int i = 0; i < FIELDS; i++) {
        const Field *field = &fields[i];
        if (!is_set(request, field))
            continue;
        json_t *value = NULL;
        switch (field->kind) {
        case FIELD_INT:
            value = json_integer(*int_at(request, field));
            break;
        case FIELD_FLOAT:
            value = json_real(*float_at(request, field));
            break;
        case FIELD_BOOL:
            value = json_boolean(*bool_at(request, field));
            break;
        default:
            value = json_string(*text_at(request, field));
            if (!value) /* a path need not be UTF-8: then it is not kept */
                value = json_null();
        }
        json_object_set_new(object, field->name, value);
    }
}
