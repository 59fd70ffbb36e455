/* The options that say how a clip is denoised, the same in every command that does it: rows of a KnArg table which fill
 * the KnRequest that lies `base` bytes into the command's options. */
#ifndef KN_INFER_REQUEST_ARGS_H
#define KN_INFER_REQUEST_ARGS_H

#include "infer/request.h"

#include <stddef.h>

/* clang-format off */
#define KN_SAMPLING_ARGS(base) \
    {.name = "size", \
     .kind = KN_ARG_SIZE, \
     .offset = (base) + offsetof(KnRequest, size), \
     .metavariable = "WxH", \
     .meaning = "picture size in pixels, multiples of the model's patch; by default the run's sample.width and .height", \
     .low = 1, \
     .high = 16384}, \
    {.name = "frames", \
     .kind = KN_ARG_INT, \
     .offset = (base) + offsetof(KnRequest, frames), \
     .metavariable = "N", \
     .meaning = "length, a multiple of the model's patch, or 1 for an image; by default the run's sample.frames", \
     .low = 1, \
     .high = 1 << 20}, \
    {.name = "steps", \
     .kind = KN_ARG_INT, \
     .offset = (base) + offsetof(KnRequest, steps), \
     .metavariable = "N", \
     .meaning = "denoising steps; by default the run's sample.steps", \
     .low = 1, \
     .high = 100000}, \
    {.name = "guidance", \
     .kind = KN_ARG_FLOAT, \
     .offset = (base) + offsetof(KnRequest, guidance), \
     .metavariable = "G", \
     .meaning = "weight of the prompt, 1 = none and half the time; by default the run's sample.guidance", \
     .low = 0, \
     .high = 1000}, \
    {.name = "shift", \
     .kind = KN_ARG_FLOAT, \
     .offset = (base) + offsetof(KnRequest, shift), \
     .metavariable = "S", \
     .meaning = "more steps at high noise when above 1; by default the run's sample.shift", \
     .low = 1e-3, \
     .high = 1000}, \
    {.name = "solver", \
     .kind = KN_ARG_CHOICE, \
     .offset = (base) + offsetof(KnRequest, solver), \
     .metavariable = "euler|heun|unipc", \
     .meaning = "by default the run's sample.solver"}, \
    {.name = "spacing", \
     .kind = KN_ARG_CHOICE, \
     .offset = (base) + offsetof(KnRequest, spacing), \
     .metavariable = "wan|linspace", \
     .meaning = "noise levels as Wan's own code has them (by default) or as newer diffusers has"}, \
    {.name = "dtype", \
     .kind = KN_ARG_CHOICE, \
     .offset = (base) + offsetof(KnRequest, dtype), \
     .metavariable = "f32|bf16", \
     .meaning = "what the model computes in; by default as it was trained"}
/* clang-format on */

#endif
