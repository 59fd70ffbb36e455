/* What inference computes on: the option `--device`, the configuration of the run that made the model, or what there
 * is. */
#ifndef KN_INFER_DEVICE_H
#define KN_INFER_DEVICE_H

#include "core/base/args.h"
#include "core/graph/comm.h"
#include "dist/model_file.h"

/* The row of a command's table that fills a const char * at this place of its options. */
/* clang-format off */
#define KN_DEVICE_ARG(place) \
    {.name = "device", \
     .kind = KN_ARG_CHOICE, \
     .offset = (place), \
     .metavariable = "auto|cpu|cuda", \
     .meaning = "what computes; by default the run's run.device. auto: GPUs where every rank has one, else the CPU,\n" \
                "and a line of the log says why"}
/* clang-format on */

/* Collective. `asked` NULL: as the model's run.device says, or auto where it has no configuration. Release with
 * kn_backend_close. KN_EPEER where GPUs are asked for and a rank has none. */
int kn_device_open(const char *asked, const KnModelFile *file, KnComm *comm, KnBackend **backend);

#endif
